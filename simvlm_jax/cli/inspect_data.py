"""`simvlm data inspect CONFIG_OR_RUN`: a batch as a person reads it: picture, pieces, prefix, masks, targets."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import printable

_WIDTH = 32
_RAMP = " .:-=+*#%@"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a config, FILE.py or FILE.py:VARIANT, or a run directory")
    parser.add_argument("--step", type=int, default=0, help="the batch of this step (default 0)")
    parser.add_argument("--rows", type=int, default=4, help="so many of its rows (0: all)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the config, such as data.parts.pairs.path=DIR",
    )
    parser.add_argument("--no-picture", action="store_true")


def inspect(args) -> int:
    """Prints rows of a training batch; returns 1 if any of them would train nothing."""
    from simvlm_jax.core.build import assign, load_config
    from simvlm_jax.data.assemble import part_sources
    from simvlm_jax.materials import Data, make_pipeline, make_tokenizer_and_labels
    from simvlm_jax.run.directory import RunDir
    from simvlm_jax.run.load import build_model, load_tokenizer, recorded_config
    from simvlm_jax.train.init_from import tokenizer_of

    is_run = Path(args.config).is_dir()
    run = RunDir(args.config)
    config = recorded_config(run) if is_run else load_config(args.config)
    for assignment in args.set:
        assign(config, assignment)
    if args.rows < 0 or args.step < 0:
        raise ValueError(f"--rows {args.rows} and --step {args.step} must not be negative")
    sources = part_sources(config.data)
    if is_run:
        tokenizer, labels = load_tokenizer(run, config.text is not None), run.labels()
    else:
        origin = tokenizer_of(config.train.init_from)
        tokenizer, labels = make_tokenizer_and_labels(config, sources, origin)
    pipeline = make_pipeline(config, Data(sources, {}, tokenizer, labels, []))
    model = build_model(config.model, config.data.image_size, tokenizer, labels)
    batch, keys = pipeline.batch(args.step), pipeline.keys(args.step)
    layout = model.capabilities().get("layout")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    idle = 0
    for name, group in batch.items():
        seen = layout(group) if layout and "label" not in group else None
        count = len(group["id"])
        for i in range(min(args.rows or count, count)):
            lines, trains = describe(
                {k: v[i] for k, v in group.items()},
                tokenizer,
                labels,
                {k: v[i] for k, v in seen.items()} if seen else None,
                colour,
                not args.no_picture,
            )
            print(f"\n{name} row {i} of {count}, step {args.step}: {printable(keys[name][i])}")
            print("\n".join(f"  {line}" for line in lines))
            idle += not trains
    for cut in pipeline.report_cuts():
        print(f"\n{cut} at config.text.length")
    if idle:
        print(f"\n{idle} of the rows shown train nothing", file=sys.stderr)
    return 1 if idle else 0


def describe(
    row: dict[str, Any],
    tokenizer: Any,
    labels: tuple[str, ...],
    layout: dict[str, Any] | None,
    colour: bool,
    picture: bool,
) -> tuple[list[str], bool]:
    """(lines that describe one row, whether anything is trained by it)."""
    out: list[str] = []
    if "image" in row and picture:
        for pixels in row["image"]:
            out += _picture(pixels, colour)
    if "image" in row:
        count, height, width, _ = row["image"].shape
        out.append(f"image    {count} x {height} x {width} px, mean {row['image'].mean():.0f}")
    if "text" in row:
        out += _text(row, tokenizer)
    trains = bool(row.get("weight", 1) > 0)
    labels = tuple(map(printable, labels))
    if "label" in row:
        label = int(row["label"])
        known = 0 <= label < len(labels)
        alone = "" if "scores" in row else ": trains nothing"
        out.append(f"label    {label}: {labels[label] if known else f'(not in the answer list{alone})'}")
        if "scores" in row:
            best = [(labels[i], float(s)) for i, s in enumerate(row["scores"]) if s]
            out.append(f"scores   {', '.join(f'{a} {s:.1f}' for a, s in best) or '(all 0: no answer is right)'}")
        return out, trains and (known or "scores" in row)
    if layout is None:
        return out, trains

    def show(ids: Any, mask: Any) -> str:
        return "".join(_shown(p) for p, m in zip(_pieces(tokenizer, ids), mask, strict=True) if m)

    encoder = show(layout["tokens"], layout["given"])
    out.append(f"encoder  {'[image] ' if 'image' in row else ''}{encoder or '(no text)'}")
    out.append(f"decoder  {show(layout['inputs'], layout['predicted'])}")
    predicted = int(layout["predicted"].sum())
    out.append(
        f"targets  {show(layout['targets'], layout['predicted']) or '(nothing is predicted)'}   ({predicted} trained)"
    )
    marks = zip(layout["given"], layout["predicted"], strict=True)
    slots = "".join("b" if g and p else "p" if g else "T" if p else "." for g, p in marks).rstrip(".")
    out.append(
        f"slots    {slots}   (p prefix, T target, b both; then {len(layout['predicted']) - len(slots)} of padding)"
    )
    return out, trains and predicted > 0


def _text(row: dict[str, Any], tokenizer: Any) -> list[str]:
    """Lines that describe the text of a row, or each text of a packed one."""
    import numpy as np

    pieces = [_shown(p) for p in tokenizer.pieces(row["text"])]
    real, segment = row["text_mask"], row.get("segment")
    texts = [slice(None)] if segment is None else [segment == n for n in range(int(segment.max()) + 1)]
    prefix = np.broadcast_to(row.get("prefix_length", 0), real.shape)
    given = real & (row.get("position", np.arange(len(real))) < prefix)
    lengths = ", ".join(str(prefix[text][0]) for text in texts)
    out = [f"text     {tokenizer.decode(row['text'][text])!r}" for text in texts]
    out.append(
        f"pieces   {''.join(p for p, m in zip(pieces, real, strict=True) if m)}   ({int(real.sum())} of {len(real)} slots)"
    )
    out.append(
        f"prefix   {''.join(p for p, m in zip(pieces, given, strict=True) if m) or '(none)'}   (length {lengths})"
    )
    if segment is None and real.all() and row["text"][-1] != tokenizer.vocabulary.eos:
        out.append("         the text is longer than config.text.length and has lost its end")
    return out


def _pieces(tokenizer: Any, ids: Any) -> list[str]:
    """Pieces of ids; those beyond the vocabulary are sentinels."""
    size = tokenizer.vocabulary.size
    return [tokenizer.pieces([i])[0] if i < size else f"<{int(i) - size}>" for i in ids]


def _shown(piece: str) -> str:
    return f"|{printable(piece)}"


def _picture(pixels: Any, colour: bool) -> list[str]:
    """A picture in half blocks, or in grey letters where there is no colour."""
    import numpy as np
    from PIL import Image

    height = max(2 * round(_WIDTH * pixels.shape[0] / pixels.shape[1] / 2), 2)
    small = np.asarray(Image.fromarray(pixels).resize((_WIDTH, height), Image.Resampling.BOX))
    if not colour:
        grey = small.reshape(height // 2, 2, _WIDTH, 3).mean((1, 3))
        return ["".join(_RAMP[int(9.99 * (1 - v / 256))] for v in line) for line in grey]
    return [
        "".join(
            f"\033[38;2;{';'.join(map(str, top))};48;2;{';'.join(map(str, bottom))}m▀"
            for top, bottom in zip(small[y].tolist(), small[y + 1].tolist(), strict=True)
        )
        + "\033[0m"
        for y in range(0, height, 2)
    ]

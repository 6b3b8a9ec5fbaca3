"""`simvlm caption RUN image ... [--prompt TEXT] [--json]`: captions for any image files."""

import argparse
import json
import sys
import zlib
from collections import Counter
from typing import Any

from simvlm_jax.core.files import printable


def main(argv: list[str]) -> int:
    """Captions every readable image; returns 1 if any could not be."""
    parser = argparse.ArgumentParser(prog="simvlm caption", description="Caption images with a trained run.")
    parser.add_argument("run", help="a run directory")
    parser.add_argument("images", nargs="+", help="image files: JPEG, PNG, WebP, GIF (first frame), BMP")
    parser.add_argument("--prompt", default="", help='how the caption begins, such as "a picture of"')
    parser.add_argument(
        "--json", action="store_true", help='one line an input: {"image", "caption"[, "n_best"]} or {"image", "error"}'
    )
    parser.add_argument("--step", type=int, help="the checkpoint's step (default: the best, or the newest)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--max-length", type=int, default=0, help="pieces after the prompt (default: all there is room for)"
    )
    parser.add_argument("--beams", type=int, default=1, help="width of the beam search (default: greedy)")
    parser.add_argument("--n-best", type=int, default=1, help="captions an image, the best first (needs as many beams)")
    parser.add_argument("--length-penalty", type=float, default=1.0, help="above 0 longer captions gain (beams only)")
    parser.add_argument("--min-length", type=int, default=0, help="pieces before a caption may end")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 repeats become less likely")
    parser.add_argument("--no-repeat-ngram", type=int, default=0, help="no so many pieces in a row come twice")
    parser.add_argument("--forced", default="", help="how the decoder begins; --prompt is read by the encoder instead")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 is greedy; above, draws depend on the image alone"
    )
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    import numpy as np

    from simvlm_jax.cli import print_cuts
    from simvlm_jax.core.schema import Seed, check
    from simvlm_jax.data.assemble import eval_pixels
    from simvlm_jax.data.transforms import NO_DRAWS
    from simvlm_jax.decode.decoding import Decoding
    from simvlm_jax.decode.sampling import Sampler
    from simvlm_jax.infer.engine import Engine
    from simvlm_jax.jobs.embed import FileList
    from simvlm_jax.parallel.environment import setup_jax
    from simvlm_jax.run.load import load_run

    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size} must be at least 1")
    check(args.seed, Seed, "--seed")
    how = Decoding(
        args.max_length,
        args.min_length,
        args.beams,
        args.n_best,
        args.length_penalty,
        args.repetition_penalty,
        args.no_repeat_ngram,
        Sampler(args.temperature, args.top_k, args.top_p),
    )
    setup_jax()
    run = load_run(args.run, args.step)
    pixels = eval_pixels(run.config.data)
    rows = -(-min(args.batch_size, len(args.images)) // run.mesh.size) * run.mesh.size
    engine = Engine(
        run.model, run.tokenizer, run.mesh, run.params, run.extra, run.labels, batch_size=rows, seed=args.seed
    )
    files = FileList(args.images)
    opening = f"{args.prompt} " if args.prompt else ""

    ok = True
    notes: Counter[str] = Counter()
    for start in range(0, len(args.images), rows):
        names = args.images[start : start + rows]
        seen, ids, answers = [], [], {}
        for i, name in enumerate(names):
            try:
                data = files[start + i]["image"]
                seen.append((i, pixels({"image": data}, NO_DRAWS)["image"]))
                ids.append(zlib.crc32(data))
            except (ValueError, OSError) as e:
                answers[i] = {"image": name, "error": _reason(e)}
        if seen:
            images = np.stack([p for _, p in seen])
            made, noted = engine.generate(
                images, [args.prompt] * len(seen), np.asarray(ids, np.int64), how, args.forced
            )
            notes.update(noted)
            for (i, _), hypotheses in zip(seen, made, strict=True):
                captions = [{"caption": f"{opening}{t}".strip(), "score": round(s, 4)} for t, s in hypotheses]
                answers[i] = {"image": names[i], "caption": captions[0]["caption"]}
                if args.n_best > 1:
                    answers[i]["n_best"] = captions
        for i in range(len(names)):
            ok = _print(answers[i], args.json) and ok
    print_cuts(notes, engine.vocabulary.length)
    return 0 if ok else 1


def _reason(e: Exception) -> str:
    return e.strerror if isinstance(e, OSError) and e.strerror else str(e)


def _print(answer: dict[str, Any], as_json: bool) -> bool:
    """Prints one answer; whether it is a caption."""
    if as_json:
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    elif "caption" in answer:
        print(f"{printable(answer['image'])}: {printable(answer['caption'])}", flush=True)
        for other in answer.get("n_best", ())[1:]:
            print(f"    {other['score']:8.3f}  {printable(other['caption'])}", flush=True)
    if "error" in answer:
        print(f"error: {printable(answer['image'])}: {printable(answer['error'])}", file=sys.stderr)
    return "caption" in answer

"""`simvlm embed RUN image ... --out x.npz`, or `--data PATH`: vectors of pictures, or of texts."""

import argparse
import functools
import json
import math
import sys
from pathlib import Path

PART, PART_BYTES = 512, 2**28


def main(argv: list[str]) -> int:
    """Writes the vectors of every readable picture; returns 1 if any could not be read."""
    parser = argparse.ArgumentParser(prog="simvlm embed", description="Vectors of pictures in a run's shared space.")
    parser.add_argument("run", help="a run directory")
    parser.add_argument("images", nargs="*", help="image files: JPEG, PNG, WebP, GIF (first frame), BMP")
    parser.add_argument("--data", help="a data set in place of files: tars, a folder, a table, a TFDS name")
    parser.add_argument("--split", help="of --data (default: train)")
    parser.add_argument("--texts", help="a text file, one text per line, in place of pictures")
    parser.add_argument("--out", required=True, help="the .npz to write: embeddings [N,...], keys [N], errors, about")
    parser.add_argument(
        "--shard", default="0/1", help="I/N: do every N-th part, from I on; whoever comes last makes the file of all"
    )
    parser.add_argument(
        "--part",
        type=int,
        default=0,
        help=f"pictures a part (default: whole batches, {PART} or fewer that are large); finished parts are not made again",
    )
    parser.add_argument("--step", type=int, help="the checkpoint's step (default: the best, or the newest)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one JSON object about what was written")
    args = parser.parse_intermixed_args(argv)
    if sum(map(bool, (args.images, args.data, args.texts))) != 1:
        parser.error("name image files, or --data, or --texts")
    index, _, shards = args.shard.partition("/")
    if not (index.isdigit() and shards.isdigit() and int(index) < int(shards)):
        parser.error(f"--shard {args.shard!r} is not I/N with I below N, such as 0/4")
    if args.batch_size < 1 or args.part < 0:
        parser.error("--batch-size must be at least 1, and --part not below 0")
    if args.split and not args.data:
        parser.error("--split is a split of --data")
    if args.texts and (args.part or args.shard != "0/1"):
        parser.error("texts are embedded at once; --part and --shard are for pictures")
    if Path(args.out).is_dir():
        parser.error(f"--out {args.out!r} is a folder; name the .npz to write")
    if Path(args.out).suffix != ".npz":
        parser.error(f"--out {args.out!r} must end in .npz")

    import numpy as np

    from simvlm_jax.cli import print_cuts
    from simvlm_jax.core.files import can_be_written, printable, read_text
    from simvlm_jax.core.lock import held
    from simvlm_jax.data.assemble import eval_pixels
    from simvlm_jax.data.source import understood
    from simvlm_jax.data.sources import open_one_split
    from simvlm_jax.eval.provenance import weights_hash
    from simvlm_jax.infer.engine import load_engine
    from simvlm_jax.jobs.embed import (
        LONGEST_KEY,
        FileList,
        embed_parts,
        made_before,
        merge,
        read_vectors,
        stamp,
        write_arrays,
    )
    from simvlm_jax.parallel.environment import setup_jax
    from simvlm_jax.run.directory import not_of_a_run
    from simvlm_jax.text.lines import lines_of

    out = Path(args.out)
    can_be_written(out, stream=False)
    not_of_a_run(out)
    if out.exists():
        read_vectors(out)  # an error where it is something else, which is not to be lost
    setup_jax()
    engine, run = load_engine(args.run, args.step, min(args.batch_size, max(len(args.images), 64)))
    about = {"run": str(args.run), "step": run.step, "weights": weights_hash((run.params, run.extra))}
    if args.texts:
        texts = [t for t in lines_of(read_text(args.texts)) if t.strip()]
        if not texts:
            raise ValueError(f"{args.texts!r} holds no text")
        if long := [i for i, t in enumerate(texts, 1) if len(t) > LONGEST_KEY]:
            raise ValueError(
                f"text {long[0]} of {args.texts!r} has more than {LONGEST_KEY:,} characters; cut it, or leave it out"
            )
        vectors, notes = engine.embed_texts(texts)
        print_cuts(notes, engine.vocabulary.length)
        about |= {"of": "texts"}
        write_arrays(
            out,
            embeddings=vectors,
            keys=np.asarray(texts),
            errors=np.zeros((0, 2), str),
            about=np.asarray(json.dumps(about)),
        )
        made, errors = len(texts), []
    else:
        shape = engine.vector_shape(run.config.data.image_size)
        source = open_one_split(args.data, args.split) if args.data else FileList(args.images)
        if args.data:
            print(printable(f"{args.data}: {understood(source).line()}"), file=sys.stderr)
        pixels, folder = eval_pixels(run.config.data), out.with_name(out.name + ".parts")
        about |= {"of": "images", "pixels": repr(pixels), "files": stamp(args.data, out) if args.data else ""}
        batches = min(PART, PART_BYTES // (math.prod(shape) * 4)) // engine.batch_size
        rows = args.part or max(batches, 1) * engine.batch_size
        mine = lambda part: part % int(shards) == int(index)  # noqa: E731
        share = f"running-{index}-of-{shards}.lock"
        finished = functools.partial(made_before, out, folder, source, about)
        if (before := finished()) is None:
            try:
                with held(folder, "embeds into", share):
                    errors = embed_parts(
                        source, pixels, engine.embed_images, folder, about, rows, mine, engine.batch_size
                    )
            except (OSError, ValueError):  # another shard has just made the file of all, and removed the folder
                if (before := finished()) is None:
                    raise
        if before is not None:
            print(f"{out} holds these {before} vectors already", file=sys.stderr)
            summary = {"out": str(out), "vectors": before, "errors": len(source) - before, "step": run.step}
            print(json.dumps(summary) if args.json else f"{before} vectors in {out}")
            return 1 if before < len(source) else 0
        for key, why in errors:
            print(f"error: {printable(key)}: {printable(why)}", file=sys.stderr)
        made = merge(folder, out)
        if made is None:
            if args.json:
                print(json.dumps({"parts": str(folder), "errors": len(errors), "step": run.step}))
            print(f"this shard's parts are in {folder}; whoever makes the last one makes {out}", file=sys.stderr)
            return 1 if errors else 0
        errors = [("", "")] * (len(source) - made)
    summary = {"out": str(out), "vectors": made, "errors": len(errors), "step": run.step}
    print(json.dumps(summary) if args.json else f"{made} vectors in {out}")
    return 1 if errors else 0

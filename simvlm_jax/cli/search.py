"""`simvlm search RUN --index x.npz "a red cube left of a ball"`: the pictures of an index that fit a text best."""

import argparse
import json
from pathlib import Path

from simvlm_jax.core.files import printable


def main(argv: list[str]) -> int:
    """Prints the best pictures of every query."""
    parser = argparse.ArgumentParser(prog="simvlm search", description="Search pictures by text, or by a picture.")
    parser.add_argument("run", help="the run directory that made the index")
    parser.add_argument("queries", nargs="*", help="texts")
    parser.add_argument("--index", required=True, help="an .npz of `simvlm embed`")
    parser.add_argument("--like", action="append", default=[], help="an image file: pictures like it; may be repeated")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="by a graph of neighbours kept beside the index (pip install .[search])",
    )
    parser.add_argument("--step", type=int, help="the checkpoint's step (default: the best, or the newest)")
    parser.add_argument("--json", action="store_true", help='one line a query: {"query", "found": [{"key", "score"}]}')
    args = parser.parse_intermixed_args(argv)  # queries may come after --index
    if not args.queries and not args.like:
        parser.error("name a text, or an image by --like")
    if args.top < 1:
        parser.error("--top must be at least 1")
    if not all(q.strip() for q in args.queries):
        parser.error("a query is empty")

    import numpy as np

    from simvlm_jax.cli import print_cuts
    from simvlm_jax.data.assemble import eval_pixels
    from simvlm_jax.data.transforms import NO_DRAWS
    from simvlm_jax.eval.provenance import weights_hash
    from simvlm_jax.infer.engine import load_engine
    from simvlm_jax.infer.search import approximate, exact
    from simvlm_jax.jobs.embed import FileList, read_vectors
    from simvlm_jax.parallel.environment import setup_jax

    vectors, keys, about = read_vectors(Path(args.index))
    if about.get("of") != "images":
        raise ValueError(f"{args.index} holds vectors of {about.get('of')}; search looks for pictures")
    setup_jax()
    engine, run = load_engine(args.run, args.step)
    own = weights_hash((run.params, run.extra))
    if about.get("weights") != own:
        raise ValueError(
            f"{args.index} was made by other weights ({about.get('run')}, step {about.get('step')}) than {args.run}, step "
            f"{run.step}; their vectors do not compare. Embed again, or name that run (and --step)"
        )
    if vectors.shape[1:] != (shape := engine.vector_shape(run.config.data.image_size)):
        raise ValueError(
            f"{args.index} holds vectors [{_axes('N', *vectors.shape[1:])}], and {args.run} makes [{_axes('N', *shape)}] of "
            "N pictures; embed them again"
        )
    parts = []
    if args.queries:
        embedded, notes = engine.embed_texts(args.queries)
        print_cuts(notes, engine.vocabulary.length)
        parts.append(embedded)
    if args.like:
        if vectors.ndim > 2:
            raise ValueError("this model gives an image a vector only for a text, so pictures cannot be compared")
        pixels, files, shown = eval_pixels(run.config.data), FileList(args.like), []
        for i, name in enumerate(args.like):
            try:
                shown.append(pixels(files[i], NO_DRAWS)["image"])
            except (ValueError, OSError) as e:
                raise ValueError(f"--like {name}: {e}") from e
        parts.append(engine.embed_images(np.stack(shown)))
    queries = np.concatenate(parts)
    if args.approximate:
        scores, places = approximate(vectors, queries, args.top, Path(args.index))
    else:
        scores, places = exact(engine, vectors, queries, args.top)
    for name, score, place in zip([*args.queries, *args.like], scores, places, strict=True):
        found = [{"key": str(keys[i]), "score": round(float(s), 4)} for s, i in zip(score, place, strict=True)]
        if args.json:
            print(json.dumps({"query": name, "found": found}, ensure_ascii=False))
        else:
            print("\n".join([printable(name), *(f"  {f['score']:.4f}  {printable(f['key'])}" for f in found)]))
    return 0


def _axes(*axes: object) -> str:
    return ", ".join(map(str, axes))

"""`simvlm export RUN --family NAME --format hf --out DIR`: a run as weights that other people's programs load."""

import argparse
import json
import sys


def main(argv: list[str]) -> int:
    """Exports weights."""
    parser = argparse.ArgumentParser(
        prog="simvlm export", description="Write a run as other people's programs load it."
    )
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--family", required=True, help="what the weights are to be, such as llama")
    parser.add_argument("--format", default="hf", help="hf (transformers) by default")
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument("--step", type=int, help="the checkpoint's step (default: the best, or the newest)")
    parser.add_argument(
        "--compare", action="store_true", help="compare outputs with the reference implementation too (needs .[parity])"
    )
    parser.add_argument("--json", action="store_true", help="print parity.json on stdout")
    args = parser.parse_args(argv)

    from simvlm_jax.jobs.weights import export_run
    from simvlm_jax.parallel.environment import setup_jax

    setup_jax()
    log = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    report = export_run(args.run, args.out, args.family, args.format, args.step, args.compare, log)
    if args.json:
        print(json.dumps(report))
    return 0

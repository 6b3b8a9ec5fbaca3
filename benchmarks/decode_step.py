"""What a step of decoding costs, beside an earlier state of this library: python benchmarks/decode_step.py [--against COMMIT]

SimVLM base (224 px, 32k pieces) and CoCa base (288 px, 64k pieces), 16 captions of 20 pieces in float32: milliseconds of a
step, greedy and with four beams, and of the prefill; the temporary memory of both programs. Each state runs in processes of its
own, in turn, several rounds; the table has medians and the ratio of each round. Without --against, this state alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CASES = {"SimVLM base": ("prefixlm.py:base", 32_000, 256), "CoCa base": ("coca.py:base", 64_000, 64)}
ROWS, STEPS = 16, 20


def measure(case: str) -> dict[str, float]:
    """Milliseconds and MiB of this process's state of the library."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax.linen import unbox

    from simvlm_jax.core.build import load_config
    from simvlm_jax.core.types import Vocabulary
    from simvlm_jax.decode import generate
    from simvlm_jax.decode.beam import beam_search
    from simvlm_jax.decode.decoding import Decoding
    from simvlm_jax.run.load import build_model

    file, pieces, length = CASES[case]
    config = load_config(str(Path("configs") / file))
    config.model.compute.dtype = "float32"

    class Tokenizer:
        vocabulary = Vocabulary(pieces, length)

    model, side = build_model(config, Tokenizer()), config.data.image_size
    rows = {
        "image": np.random.default_rng(0).integers(0, 256, (ROWS, 1, side, side, 3), dtype=np.uint8),
        "text": np.zeros((ROWS, 0), np.int32),
        "text_mask": np.zeros((ROWS, 0), bool),
    }
    example = {**rows, "text": np.zeros((ROWS, length), np.int32), "text_mask": np.ones((ROWS, length), bool)}
    example["prefix_length"] = np.zeros(ROWS, np.int32)
    params = unbox(jax.jit(model.init)(jax.random.key(0), example)[0])
    able, how = model.capabilities(), Decoding(max_length=STEPS, min_length=STEPS - 1)
    keys = jax.random.split(jax.random.key(0), ROWS)

    def extending(params):
        ready = generate.decoding_params(able, params, {}) if hasattr(generate, "decoding_params") else params

        def extend(cache, chosen):
            logits, cache = able["extend"](ready, {}, cache, chosen[:, None])
            return logits[:, 0], cache

        return extend

    def greedy(params, logits, cache):
        return generate.one_by_one(extending(params), logits, cache, keys, Tokenizer.vocabulary, how, ())

    def beam(params, logits, cache):
        wide = Decoding(max_length=STEPS, min_length=STEPS - 1, beams=4)
        return beam_search(extending(params), logits, cache, Tokenizer.vocabulary, wide)

    def timed(function, *args, calls=3):
        compiled = jax.jit(function).lower(*args).compile()
        out = jax.block_until_ready(compiled(*args))
        took = []
        for _ in range(calls):
            began = time.perf_counter()
            jax.block_until_ready(compiled(*args))
            took.append(time.perf_counter() - began)
        return out, 1e3 * min(took), compiled.memory_analysis().temp_size_in_bytes / 2**20

    found: dict[str, float] = {}
    first, found["prefill ms"], found["prefill MiB"] = timed(
        lambda p, x: able["prefill"](p, {}, x, STEPS), params, jax.tree.map(jnp.asarray, rows)
    )
    for name, function in (("greedy", greedy), ("beam 4", beam)):
        _, took, found[f"{name} MiB"] = timed(function, params, *first)
        found[f"{name} ms a step"] = took / STEPS
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", help="a commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES)
    args = parser.parse_args()
    if args.case and "DECODE_STEP" in os.environ:
        print(json.dumps(measure(args.case)))
        return
    with tempfile.TemporaryDirectory() as folder:
        states = {"now": ROOT}
        if args.against:
            packed = subprocess.run(["git", "archive", args.against], cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "x", "-C", folder], input=packed, check=True)
            states = {args.against[:7]: Path(folder), **states}
        for case in [args.case] if args.case else CASES:
            found = {state: [] for state in states}
            for _ in range(args.rounds):
                for state, where in states.items():
                    env = {**os.environ, "PYTHONPATH": str(where), "DECODE_STEP": "1"}
                    command = [sys.executable, __file__, "--case", case]
                    done = subprocess.run(command, cwd=where, env=env, check=True, capture_output=True, text=True)
                    found[state].append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"\n## {case}\n\n| | {' | '.join(states)} | ratio, by round |\n|---|{'---|' * (len(states) + 1)}",
                flush=True,
            )
            for what in found["now"][0]:
                middle = [f"{statistics.median(r[what] for r in rounds):.1f}" for rounds in found.values()]
                first, last = (found[state] for state in (next(iter(states)), "now"))
                ratio = ", ".join(f"{a[what] / max(b[what], 1e-9):.2f}" for a, b in zip(first, last, strict=True))
                print(f"| {what} | {' | '.join(middle)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()

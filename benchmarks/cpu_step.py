"""What parallel/environment.py is worth on CPU: median step time of the built-in run's model, with and without.

    python benchmarks/cpu_step.py > benchmarks/cpu_step.md

Each variant runs in processes of its own, in turn, several times over, so that a noisy machine hits all alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from simvlm_jax.parallel.environment import CPU_FLAGS

PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
ROUNDS, STEPS, BATCH = 3, 20, 64


def measure() -> float:
    """Milliseconds of a train step in this process."""
    import jax
    import numpy as np
    from flax import linen as nn

    from simvlm_jax.core.build import build, load_config
    from simvlm_jax.core.types import TrainState, Vocabulary
    from simvlm_jax.parallel.mesh import letters_of
    from simvlm_jax.train.step import make_train_step

    config = load_config("configs/prefixlm.py")
    vocabulary = Vocabulary(size=256, length=24)
    model = build(config.model, vocabulary=vocabulary, image_size=64)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, 1, 64, 64, 3), dtype=np.uint8),
        "text": rng.integers(4, 256, (BATCH, 24)).astype(np.int32),
        "text_mask": np.ones((BATCH, 24), bool),
        "prefix_length": np.zeros(BATCH, np.int32),
        "weight": np.ones(BATCH, np.float32),
    }
    boxed, extra = jax.jit(model.init)(jax.random.key(0), batch := {"pairs": batch})
    params = nn.unbox(boxed)
    tx = build(config.optimizer).make(params, 1000, letters_of(boxed))
    state = TrainState(np.int32(0), params, tx.init(params), extra, jax.random.key(0))
    step = jax.jit(make_train_step(model, tx, jax.tree.map(lambda _: True, params)), donate_argnums=0)
    times = []
    for _ in range(STEPS + 3):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:]) * 1e3


def main() -> None:
    """Prints a table of all variants."""
    import jaxlib

    flags = {"XLA_FLAGS": " ".join(CPU_FLAGS.get(jaxlib.__version__, ()))}
    variants = {"as XLA and glibc come": {}, "XLA flags": flags, "huge pages": PAGES, "both": {**flags, **PAGES}}
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, env in variants.items():
            command = [sys.executable, __file__, "--one"]
            run = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=True)
            found[name].append(json.loads(run.stdout.splitlines()[-1]))
    base = statistics.median(found["as XLA and glibc come"])
    print(f"# A train step of configs/prefixlm.py on {os.cpu_count()} CPU cores, jaxlib {jaxlib.__version__}\n")
    print(f"{BATCH} scenes a step; median of {STEPS} steps, median of {ROUNDS} rounds (`benchmarks/cpu_step.py`).\n")
    print("| settings | ms a step | images/s | times as fast |\n|---|---|---|---|")
    for name, times in found.items():
        ms = statistics.median(times)
        print(f"| {name} | {ms:.0f} | {BATCH / ms * 1e3:.0f} | {base / ms:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", action="store_true", help="measure in this process and print milliseconds")
    if parser.parse_args().one:
        print(json.dumps(measure()))
    else:
        main()

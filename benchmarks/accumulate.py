"""What gradient accumulation costs: the gradient of one batch, whole and in parts, side by side.

python benchmarks/accumulate.py > benchmarks/accumulate.md
"""

import os
import statistics
import time

import flax.linen as nn
import jax
import numpy as np

from simvlm_jax.core.build import build, load_config
from simvlm_jax.core.terms import total_loss
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.train.step import accumulated, split

BATCH, LENGTH, ROUNDS = 64, 24, 5


def main() -> None:
    """Prints a table."""
    config = load_config("configs/prefixlm.py")
    model = build(config.model, vocabulary=Vocabulary(256, LENGTH), image_size=64)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, 1, 64, 64, 3), dtype=np.uint8),
        "text": rng.integers(4, 256, (BATCH, LENGTH)).astype(np.int32),
        "text_mask": np.ones((BATCH, LENGTH), bool),
        "prefix_length": np.zeros(BATCH, np.int32),
        "weight": np.ones(BATCH, np.float32),
    }
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch := {"pairs": batch})[0])

    def per_example(params, micro, key):
        return model.per_example(params, {}, micro, rngs=key, step=0, train=True)

    def in_parts(parts, unroll):
        keys = jax.random.split(jax.random.key(0), parts)
        return lambda p, b: accumulated(per_example, lambda p, f: ({}, {}), p, split(b, parts), keys, unroll)[-1]

    steps = {"whole": jax.grad(lambda p, b: total_loss(per_example(p, b, jax.random.key(0))[1]))}
    steps |= {f"{parts} parts": in_parts(parts, unroll=True) for parts in (2, 4, 8)}
    steps["4 parts, in a loop"] = in_parts(4, unroll=False)
    times = {}
    for name, step in steps.items():
        step = jax.jit(step)
        jax.block_until_ready(step(params, batch))
        laps = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            jax.block_until_ready(step(params, batch))
            laps.append(1e3 * (time.perf_counter() - began))
        times[name] = statistics.median(laps)
    print(
        f"# The gradient of {BATCH} scenes on {os.cpu_count()} {jax.devices()[0].device_kind} cores, jax {jax.__version__}\n"
    )
    print(f"Median of {ROUNDS} (`benchmarks/accumulate.py`).\n\n| batch | ms | of the whole |\n|---|---|---|")
    for name, ms in times.items():
        print(f"| {name} | {ms:.0f} | {ms / times['whole']:.2f} |")


if __name__ == "__main__":
    main()

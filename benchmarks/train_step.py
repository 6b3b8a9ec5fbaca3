"""What a train step costs, beside an earlier state of this library: python benchmarks/train_step.py [--against COMMIT]

CLIP B/32 at batch 16 (224 px) and CoCa base at batch 4 (288 px), float32, the paper's optimizer: milliseconds of a step, the
memory that XLA plans for it, and the work that it counts in the compiled program. See beside.py.
"""

import time

from beside import run, set_up

CASES = {"CLIP B/32, batch 16": ("clip.py:B/32", 49_408, 76, 16), "CoCa base, batch 4": ("coca.py:base", 64_000, 64, 4)}
STEPS = 4


def measure(case: str) -> dict[str, float]:
    """Milliseconds and MiB of this process's state of the library."""
    set_up()
    import jax
    import numpy as np

    from simvlm_jax.core.build import build, load_config
    from simvlm_jax.core.types import Vocabulary
    from simvlm_jax.parallel.mesh import make_mesh
    from simvlm_jax.train.state import prepare

    file, pieces, length, rows = CASES[case]
    config = load_config(f"configs/{file}")
    config.model.compute.update(dtype="float32", remat="none", scan=False)

    draw, side = np.random.default_rng(0), config.data.image_size
    group = {
        "image": draw.integers(0, 256, (rows, 1, side, side, 3), dtype=np.uint8),
        "text": draw.integers(4, 1000, (rows, length)).astype(np.int32),
        "text_mask": np.ones((rows, length), bool),
        "prefix_length": np.zeros(rows, np.int32),
        "weight": np.ones(rows, np.float32),
        "id": np.arange(rows),
    }
    batch = {"pairs": group} if "parts" in config.data else group
    model = build(config.model, vocabulary=Vocabulary(pieces, length), image_size=side)
    optimizer = build(config.optimizer)
    prepared = prepare(model, optimizer, batch, make_mesh(), seed=0, steps=1000)
    state = prepared.make()
    make_step = getattr(prepared, "train_step", None) or prepared.step  # its name in an earlier state
    step = make_step().lower(state, batch).compile()
    memory, cost, took = step.memory_analysis(), step.cost_analysis(), []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        took.append(time.perf_counter() - began)
    return {
        "ms": 1e3 * min(took[1:]),
        "temporary MiB": memory.temp_size_in_bytes / 2**20,
        "peak MiB": memory.peak_memory_in_bytes / 2**20,
        "GFLOP": cost["flops"] / 1e9,
        "traffic MB": cost["bytes accessed"] / 1e6,
    }


if __name__ == "__main__":
    run(measure, CASES, __file__)

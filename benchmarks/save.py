"""How long a save holds up training, beside an earlier state of this library: python benchmarks/save.py [--against COMMIT]

The state of the built-in SimVLM (configs/prefixlm.py, with AdamW) as devices of one CPU hold it: milliseconds until `save` returns,
the first time, in which Orbax compiles what it needs, and the least of three later ones. See beside.py.
"""

import os
import tempfile
import time
from pathlib import Path

from beside import run, set_up

CASES = {f"{devices} device{'s' * (devices > 1)}": devices for devices in (1, 4, 8)}


def measure(case: str) -> dict[str, float]:
    """Milliseconds in this process's state of the library."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={CASES[case]}"
    set_up()
    import jax
    import numpy as np

    from simvlm_jax.core.build import build, load_config
    from simvlm_jax.core.types import Vocabulary
    from simvlm_jax.parallel.mesh import make_mesh
    from simvlm_jax.run.checkpoints import Checkpoints
    from simvlm_jax.train.optimizer import Optimizer
    from simvlm_jax.train.state import prepare

    config = load_config("configs/prefixlm.py")
    rows, length, side = 8, 24, config.data.image_size
    batch = {
        "image": np.zeros((rows, 1, side, side, 3), np.uint8),
        "text": np.zeros((rows, length), np.int32),
        "text_mask": np.ones((rows, length), bool),
        "prefix_length": np.zeros(rows, np.int32),
        "weight": np.ones(rows, np.float32),
    }
    model = build(config.model, vocabulary=Vocabulary(320, length), image_size=side)
    state = prepare(model, Optimizer(), {"pairs": batch}, make_mesh(), seed=0, steps=1000).make()
    jax.block_until_ready(state)
    took = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        for step in range(4):
            began = time.perf_counter()
            checkpoints.save(step, state, (state.params, state.extra))
            took.append(1e3 * (time.perf_counter() - began))
            checkpoints.wait()
    return {"first ms": took[0], "later ms": min(took[1:])}


if __name__ == "__main__":
    run(measure, CASES, __file__)

"""What a step of decoding costs, beside an earlier state of this library: python benchmarks/decode_step.py [--against COMMIT]

SimVLM base (224 px, 32k pieces) and CoCa base (288 px, 64k pieces), 16 captions of 20 pieces in float32: milliseconds of a
step, greedy and with four beams, and of the prefill; the temporary memory of the programs. Weights are laid out beforehand, as an
Engine does it once; flags and compiler options are those of the command line. See beside.py.
"""

import importlib.util
import time
from pathlib import Path

from beside import run, set_up

CASES = {"SimVLM base": ("prefixlm.py:base", 32_000, 256), "CoCa base": ("coca.py:base", 64_000, 64)}
ROWS, STEPS = 16, 20


def measure(case: str) -> dict[str, float]:
    """Milliseconds and MiB of this process's state of the library."""
    set_up()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax.linen import unbox

    from simvlm_jax.core.build import build, load_config
    from simvlm_jax.core.types import Vocabulary
    from simvlm_jax.decode import generate
    from simvlm_jax.decode.beam import beam_search
    from simvlm_jax.decode.decoding import Decoding

    file, pieces, length = CASES[case]
    config = load_config(str(Path("configs") / file))
    config.model.compute.dtype = "float32"

    side, vocabulary = config.data.image_size, Vocabulary(pieces, length)
    model = build(config.model, vocabulary=vocabulary, image_size=side)
    rows = {
        "image": np.random.default_rng(0).integers(0, 256, (ROWS, 1, side, side, 3), dtype=np.uint8),
        "text": np.zeros((ROWS, 0), np.int32),
        "text_mask": np.zeros((ROWS, 0), bool),
    }
    example = {**rows, "text": np.zeros((ROWS, length), np.int32), "text_mask": np.ones((ROWS, length), bool)}
    example["prefix_length"] = np.zeros(ROWS, np.int32)
    draw = np.random.default_rng(0)
    parted = importlib.util.find_spec("simvlm_jax.core.parts") is not None  # an earlier state has batches without parts
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), {"pairs": example} if parted else example)[0])
    params = jax.tree.map(lambda x: jnp.asarray(0.02 * draw.standard_normal(x.shape, np.float32)), shapes)
    able, how = model.capabilities(), Decoding(max_length=STEPS, min_length=STEPS - 1)
    keys = jax.random.split(jax.random.key(0), ROWS)

    def extending(params):
        def extend(cache, chosen):
            logits, cache = able["extend"](params, {}, cache, chosen[:, None])
            return logits[:, 0], cache

        return extend

    def greedy(params, logits, cache):
        return generate.one_by_one(extending(params), logits, cache, keys, vocabulary, how, ())

    def beam(params, logits, cache):
        wide = Decoding(max_length=STEPS, min_length=STEPS - 1, beams=4)
        return beam_search(extending(params), logits, cache, vocabulary, wide)

    def timed(function, *args, calls=3, options=None):
        compiled = jax.jit(function, compiler_options=options).lower(*args).compile()
        out = jax.block_until_ready(compiled(*args))
        took = []
        for _ in range(calls):
            began = time.perf_counter()
            jax.block_until_ready(compiled(*args))
            took.append(time.perf_counter() - began)
        return out, 1e3 * min(took), compiled.memory_analysis().temp_size_in_bytes / 2**20

    try:
        from simvlm_jax.parallel.environment import decoding_options

        options = decoding_options("cpu")
    except ImportError:  # an earlier state has none
        options = None
    if "decoding_params" in able:
        params = jax.block_until_ready(jax.jit(able["decoding_params"])(params, {}))
    found: dict[str, float] = {}
    first, found["prefill ms"], found["prefill MiB"] = timed(
        lambda p, x: able["prefill"](p, {}, x, STEPS), params, jax.tree.map(jnp.asarray, rows)
    )
    for name, function in (("greedy", greedy), ("beam 4", beam)):
        _, took, found[f"{name} MiB"] = timed(function, params, *first, options=options)
        found[f"{name} ms a step"] = took / STEPS
    return found


if __name__ == "__main__":
    run(measure, CASES, __file__)

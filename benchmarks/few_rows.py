"""Products of few rows with kernels read from memory on a CPU, kernel on the right and on the left: python benchmarks/few_rows.py

`x [rows,D] @ kernel [D,F]` beside `nn.linear.multiply_transposed` of the same kernel as [F,D], in float32, each with XLA's own matrix
products and with the compiler options of decoding. Kernels take turns, so that none is in a cache, as in a step of decoding:
milliseconds a product, the least of several turns. Prints the table of few_rows.md; FEW_ROWS in nn/linear.py is read from it.
"""

import time
from unittest import mock

from simvlm_jax.parallel.environment import decoding_options, setup_xla

KERNELS = ((768, 3072), (3072, 768), (768, 32_000))
ROWS = (1, 4, 16, 64, 128, 256, 512)
BYTES = 2**28


def main() -> None:
    setup_xla()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from simvlm_jax.nn import linear

    def milliseconds(function, x, kernels, options) -> float:
        compiled = jax.jit(function, compiler_options=options).lower(x, kernels[0]).compile()
        took, until = [], time.perf_counter() + 1
        while time.perf_counter() < until or len(took) < 3:
            began = time.perf_counter()
            jax.block_until_ready([compiled(x, kernel) for kernel in kernels])
            took.append((time.perf_counter() - began) / len(kernels))
        return 1e3 * min(took)

    draw = np.random.default_rng(0)
    print(
        "| kernel | rows | right ms | left ms | right, options of decoding | left, options of decoding |\n|---|---|---|---|---|---|"
    )
    for D, F in KERNELS:
        kernels = [jnp.asarray(draw.standard_normal((D, F), np.float32)) for _ in range(BYTES // (4 * D * F) + 1)]
        transposed = [kernel.T.copy() for kernel in kernels]
        for rows in ROWS:
            x = jnp.asarray(draw.standard_normal((rows, D), np.float32))
            with mock.patch.object(linear, "FEW_ROWS", rows):
                found = [
                    milliseconds(function, x, chosen, options)
                    for options in (None, decoding_options(jax.default_backend()))
                    for function, chosen in ((jnp.matmul, kernels), (linear.multiply_transposed, transposed))
                ]
            print(f"| {D} x {F:,} | {rows} | {' | '.join(f'{ms:.2f}' for ms in found)} |", flush=True)


if __name__ == "__main__":
    main()

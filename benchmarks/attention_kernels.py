"""Dense attention beside the splash kernel, compiled for a TPU that need not be here: python benchmarks/attention_kernels.py

One attention layer with its projections, forward and backward, B = 16 rows and H = 16 heads in bfloat16, by TPU's own
compiler (`pip install -e .[tpu]`). Writes benchmarks/attention_kernels.md; what stands there already is kept.
"""

import argparse
import os
import re
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
B, H = 16, 16
HEAD = """# Attention kernels, compiled for TPU v5e

`python benchmarks/attention_kernels.py`: one self-attention layer with its projections, every query sees every key, forward
and backward, {rows} rows and {heads} heads in bfloat16, on one chip, by TPU's own compiler (libtpu {libtpu}, jax {jax}).
Temporaries are what the compiler allots beside arguments and results; traffic is what the program reads from and writes to
main memory, from its text (which does not know that a block of keys is read once for each block of queries). Nothing was run.

| tokens | head width | temporaries MiB, dense | splash | traffic MB, dense | splash |
|---|---|---|---|---|---|
"""


def compile_layer(T: int, K: int, kernel: str, device) -> tuple[float, float]:
    """(bytes of temporaries, bytes of traffic) of a layer with T tokens and head width K."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from simvlm_jax.nn.kernel_tpu import splash
    from simvlm_jax.nn.kernels import dense
    from simvlm_jax.parallel.program import Program

    attention = {"dense": lambda *qkv: dense(*qkv)[0], "splash": lambda *qkv: splash(*qkv, None)}[kernel]

    def loss(x, weights, out):
        q, k, v = (jnp.einsum("BTD,DHK->BTHK", x, w) for w in weights)
        y = jnp.einsum("BTHK,HKD->BTD", attention(q, k, v), out)
        return y.astype(jnp.float32).sum()

    place = SingleDeviceSharding(device)
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=place)  # noqa: E731
    D = H * K
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    compiled = step.lower(shape(B, T, D), [shape(D, H, K)] * 3, shape(H, K, D)).compile()
    return compiled.memory_analysis().temp_size_in_bytes, Program(compiled.as_text(), 1).traffic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="*", default=[128, 196, 256, 452, 1024, 2048])
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 88, 128])
    args = parser.parse_args()

    from simvlm_jax.parallel.targets import parse_target

    target = parse_target("v5e:1x1")
    os.environ.update(target.environment())
    import importlib.metadata

    import jax

    device = target.devices()[0]
    head = HEAD.format(rows=B, heads=H, libtpu=importlib.metadata.version("libtpu"), jax=jax.__version__)
    for T in args.tokens:
        for K in args.widths:
            if (T, K) in kept():
                continue
            (a, b), (x, y) = (compile_layer(T, K, name, device) for name in ("dense", "splash"))
            line = f"| {T} | {K} | {a / 2**20:.0f} | {x / 2**20:.0f} | {b / 1e6:.0f} | {y / 1e6:.0f} |"
            print(line, flush=True)
            rows = {**kept(), (T, K): line}
            PAGE.write_text(head + "".join(rows[key] + "\n" for key in sorted(rows)))


def kept() -> dict[tuple[int, int], str]:
    """The lines of the page by tokens and head width."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    found = [(re.match(r"\| (\d+) \| (\d+) \|", line), line) for line in lines]
    return {(int(m[1]), int(m[2])): line for m, line in found if m}


if __name__ == "__main__":
    main()

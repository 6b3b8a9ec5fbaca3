"""Depthwise convolutions of EfficientNet-lite0 on a CPU: shifted products beside XLA's grouped convolution.

python benchmarks/depthwise.py > benchmarks/depthwise.md
"""

import time

import jax
import numpy as np

from simvlm_jax.nn.depthwise import _shifted, convolved

SHAPES = ((112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 5, 2), (28, 240, 3, 2), (14, 480, 5, 1), (7, 1152, 5, 1))
ROWS, ROUNDS = 50, 5


def seconds(function, *args) -> float:
    """The median of a few rounds."""
    jax.block_until_ready(function(*args))  # compiled here
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def gradient(function):
    """Gradients of the sum of squares, of input and kernel."""
    return jax.grad(lambda x, kernel, stride: (function(x, kernel, stride) ** 2).sum(), (0, 1))


def main() -> None:
    """Prints a table."""
    print("# Depthwise convolutions on a CPU\n")
    print(
        f"`python benchmarks/depthwise.py`, {ROWS} images, fp32, jax {jax.__version__}, milliseconds, median of {ROUNDS}.\n"
    )
    print("| pixels | channels | kernel | stride | XLA | shifted | ratio | XLA, gradient | shifted, gradient | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for side, channels, size, stride in SHAPES:
        x = rng.normal(size=(ROWS, side, side, channels)).astype(np.float32)
        kernel = rng.normal(size=(size, size, 1, channels)).astype(np.float32)
        cells = []
        for wrap in (lambda f: f, gradient):
            made = [jax.jit(wrap(f), static_argnums=2) for f in (convolved, _shifted)]
            a, b = (seconds(f, x, kernel, stride) for f in made)
            cells += [f"{1e3 * a:.1f}", f"{1e3 * b:.1f}", f"{a / b:.1f}"]
        print(f"| {side} | {channels} | {size} | {stride} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

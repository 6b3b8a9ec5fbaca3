"""Depthwise convolution: every channel has a kernel of its own."""

import jax
import jax.numpy as jnp

from simvlm_jax.core.platform import is_counted, platform


def depthwise(x_BYXC: jax.Array, kernel_YX1C: jax.Array, stride: int) -> jax.Array:
    """Convolution [B,Y,X,C] -> [B,ceil(Y/stride),ceil(X/stride),C], padded as XLA's "SAME".

    XLA's CPU backend walks through groups of one channel one by one. A sum of shifted products, a term a place of the kernel, is one
    loop over all channels, 3 to 19 times as fast (benchmarks/depthwise.md). Accelerators have kernels of their own.
    """
    if platform() == "cpu" and not is_counted():
        return _shifted(x_BYXC, kernel_YX1C, stride)
    return convolved(x_BYXC, kernel_YX1C, stride)


def convolved(x_BYXC: jax.Array, kernel_YX1C: jax.Array, stride: int) -> jax.Array:
    """The same by XLA's convolution, of as many groups as channels."""
    return jax.lax.conv_general_dilated(
        x_BYXC,
        kernel_YX1C,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x_BYXC.shape[-1],
    )


def _shifted(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    B, Y, X, C = x.shape
    size, across = kernel.shape[:2], (-(-Y // stride), -(-X // stride))
    missing = [max((n - 1) * stride + k - whole, 0) for n, k, whole in zip(across, size, (Y, X), strict=True)]
    x = jnp.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))
    ends = [(n - 1) * stride + 1 for n in across]
    dtype = x.dtype  # the sum in fp32: of a narrower dtype 25 terms would lose what the last digits hold
    x, kernel = (a.astype(jnp.promote_types(dtype, jnp.float32)) for a in (x, kernel))
    terms = [
        jax.lax.slice(x, (0, i, j, 0), (B, i + ends[0], j + ends[1], C), (1, stride, stride, 1)) * kernel[i, j, 0]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return sum(terms[1:], terms[0]).astype(dtype)

"""A linear map, the addition of a parameter to activations, and products of few rows with transposed matrices."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.platform import platform
from simvlm_jax.core.sharding import in_use

TRANSPOSED = "_transposed"
"""Ends the name of a parameter that `transposed_kernels` made of a kernel."""

FEW_ROWS = 128
"""Up to how many rows a CPU multiplies fastest with the matrix on the left, with `decoding_options` (benchmarks/few_rows.md)."""


class Transposed(NamedTuple):
    """A kernel whose output axes come first."""

    kernel: jax.Array


def transposed_kernels(params: dict[str, Any], dtype: jnp.dtype, **inputs: int) -> dict[str, Any]:
    """The parameters of a layer with the kernels named in `inputs` transposed, in a dtype.

    inputs: how many leading axes of each kernel are those of its input; the others come first in the transposed one, which
    `multiply_transposed` reads.
    """
    out = dict(params)
    for name in inputs.keys() & params.keys():
        kernel = out.pop(name)
        order = [*range(inputs[name], kernel.ndim), *range(inputs[name])]
        out[name + TRANSPOSED] = kernel.astype(dtype).transpose(order)
    return out


def multiply_transposed(
    x: jax.Array, kernel: jax.Array, inputs: int = 1, preferred_element_type: jnp.dtype | None = None
) -> jax.Array:
    """Product [..., *output] of rows [..., *input] and a kernel [*output, *input]; inputs: how many axes the input has.

    A CPU copies the right factor of every product into panels, which for the few rows of a decoding step takes longer than
    the product itself; so there the matrix is the left one. The barrier keeps XLA from changing the sides back.
    """
    rows, out = x.shape[: x.ndim - inputs], kernel.shape[: kernel.ndim - inputs]
    x = x.reshape(math.prod(rows), -1)
    matrix = kernel.reshape(-1, x.shape[1])
    if platform() == "cpu" and len(x) <= FEW_ROWS:
        y = jnp.matmul(matrix, x.T, preferred_element_type=preferred_element_type)
        y = jax.lax.optimization_barrier(y).T
    else:
        y = jnp.matmul(x, matrix.T, preferred_element_type=preferred_element_type)
    return y.reshape(*rows, *out)


def add(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """Activations [...,*shape] plus a parameter [*shape], in the dtype of the activations.

    The parameter's gradient, a sum over all rows, is summed in the parameter's own dtype: in bfloat16 a sum of thousands of
    terms is off by percents, whatever the compiler says it does.
    """
    return x + parameter if x.dtype == parameter.dtype else _add(x, parameter)


@jax.custom_vjp
def _add(x: jax.Array, parameter: jax.Array) -> jax.Array:
    return x + parameter.astype(x.dtype)


def _add_forward(x: jax.Array, parameter: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _add(x, parameter), jnp.zeros((0, *parameter.shape), parameter.dtype)


def _add_backward(like: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = tuple(range(gradient.ndim - (like.ndim - 1)))
    wide = jnp.promote_types(gradient.dtype, like.dtype)
    return gradient, gradient.astype(wide).sum(rows).astype(like.dtype)


_add.defvjp(_add_forward, _add_backward)


def multiply(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """Activations [...,*shape] times a parameter [*shape], in the dtype of the activations.

    The product is made in the parameter's own dtype, in which its gradient is summed too; see `add`.
    """
    return (x.astype(jnp.promote_types(x.dtype, parameter.dtype)) * parameter).astype(x.dtype)


class Linear(nn.Module):
    """[..., D] -> [..., width] in `dtype`; out: the letter of the new axis, a space that towers share or "A", answers."""

    width: int
    dtype: jnp.dtype
    bias: bool = False
    out: str = "E"

    @nn.compact
    def __call__(self, x: jax.Array):
        into, across = ("D", self.out), (self.out,)
        init = nn.with_logical_partitioning(nn.initializers.normal(x.shape[-1] ** -0.5), into)
        kernel = self.param("kernel", init, (x.shape[-1], self.width))
        y = x.astype(self.dtype) @ in_use(kernel, into, self.dtype)
        if self.bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, across)
            y = add(y, in_use(self.param("bias", init, (self.width,)), across))
        return y

"""A linear map, and the addition of a parameter to activations."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import in_use


def add(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """Activations [...,*shape] plus a parameter [*shape], in the dtype of the activations.

    The parameter's gradient, a sum over all rows, is summed in the parameter's own dtype: in bfloat16 a sum of thousands of
    terms is off by percents, whatever the compiler says it does.
    """
    return x + parameter if x.dtype == parameter.dtype else _add(x, parameter)


@jax.custom_vjp
def _add(x, parameter):
    return x + parameter.astype(x.dtype)


def _add_forward(x, parameter):
    return _add(x, parameter), jnp.zeros((0, *parameter.shape), parameter.dtype)


def _add_backward(like, gradient):
    rows = tuple(range(gradient.ndim - (like.ndim - 1)))
    wide = jnp.promote_types(gradient.dtype, like.dtype)
    return gradient, gradient.astype(wide).sum(rows).astype(like.dtype)


_add.defvjp(_add_forward, _add_backward)


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

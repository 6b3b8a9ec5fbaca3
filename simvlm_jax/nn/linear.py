"""A linear map."""

import flax.linen as nn
import jax.numpy as jnp

from simvlm_jax.core.layout import in_use


class Linear(nn.Module):
    """[..., D] -> [..., width] in `dtype`."""

    width: int
    dtype: jnp.dtype
    bias: bool = False
    letters: tuple[str | None, str | None] = ("D", None)

    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.normal(x.shape[-1] ** -0.5), self.letters)
        kernel = self.param("kernel", init, (x.shape[-1], self.width))
        y = x.astype(self.dtype) @ in_use(kernel, self.letters, self.dtype)
        if self.bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.letters[1:])
            y = y + in_use(self.param("bias", init, (self.width,)), self.letters[1:], self.dtype)
        return y

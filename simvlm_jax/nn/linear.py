"""A linear map."""

import flax.linen as nn
import jax.numpy as jnp

from simvlm_jax.core.layout import in_use


class Linear(nn.Module):
    """[..., D] -> [..., width] in `dtype`."""

    width: int
    dtype: jnp.dtype
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.normal(x.shape[-1] ** -0.5), ("D", None))
        kernel = self.param("kernel", init, (x.shape[-1], self.width))
        y = x.astype(self.dtype) @ in_use(kernel, ("D", None), self.dtype)
        if self.bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
            y = y + in_use(self.param("bias", init, (self.width,)), (None,), self.dtype)
        return y

"""Batch normalisation with statistics that were learned elsewhere (Ioffe & Szegedy, arXiv 1502.03167, section 3.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import in_use
from simvlm_jax.nn.sizes import statistics_dtype

STATISTICS = "statistics"
"""The collection of variables, and the key of a model's `extra`, that means and variances stand in."""


class BatchNorm(nn.Module):
    """Normalisation by stored means and variances, [B,Y,X,C] -> [B,Y,X,C].

    The statistics are those that came with the weights, in training too, as is usual when a network is fine-tuned: no row then
    depends on its neighbours, and nothing has to agree over devices. Scale and bias are trained. A network that begins from
    nothing takes nn.norm.GroupNorm.
    """

    dtype: jnp.dtype
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array):
        C = x.shape[-1]
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("C",)), (C,))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("C",)), (C,))
        mean = self.variable(STATISTICS, "mean", lambda: jnp.zeros((C,), jnp.float32))
        variance = self.variable(STATISTICS, "variance", lambda: jnp.ones((C,), jnp.float32))
        x = x.astype(statistics_dtype(x.dtype))
        x = (x - mean.value) * (jax.lax.rsqrt(variance.value + self.epsilon) * in_use(scale, "C")) + in_use(bias, "C")
        return x.astype(self.dtype)

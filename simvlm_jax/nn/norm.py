"""Normalisation with fp32 statistics; the result is cast to the activation dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.layout import in_use
from simvlm_jax.nn.sizes import statistics_dtype


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), [..., D] -> [..., D]."""

    dtype: jnp.dtype
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("D",)), (width,))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("D",)), (width,))
        x = x.astype(statistics_dtype(x.dtype))
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (x * in_use(scale, "D") + in_use(bias, "D")).astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation over rows, columns and a group's channels (Wu & He 2018), [B,Y,X,C] -> [B,Y,X,C].

    Chosen over batch normalisation for every convolution here: a sample's output then depends on that sample alone, so
    accumulation, sharding and evaluation need no running statistics and no synchronisation.
    """

    dtype: jnp.dtype
    group_width: int = 16
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        groups = max(channels // self.group_width, 1)
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("C",)), (channels,))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("C",)), (channels,))
        x = x.astype(statistics_dtype(x.dtype))

        def of_group(moment_BC):
            """Pixels come first, then a group's channels: a last axis of 16 would waste seven eighths of a TPU's lanes."""
            mean = moment_BC.reshape(-1, groups, channels // groups).mean(-1)
            return jnp.repeat(mean, channels // groups, axis=-1)

        mean = of_group(x.mean((1, 2)))
        variance = of_group(jnp.square(x).mean((1, 2))) - jnp.square(mean)
        scale = jax.lax.rsqrt(jnp.maximum(variance, 0) + self.epsilon) * in_use(scale, "C")
        shift = in_use(bias, "C") - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).astype(self.dtype)

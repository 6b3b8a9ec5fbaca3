"""Normalisation with fp32 statistics; the result is cast to the activation dtype."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import in_use
from simvlm_jax.nn.sizes import Style, statistics_dtype


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al., arXiv 1607.06450), [..., D] -> [..., D].

    letter: of the axis, where it is not D.
    """

    dtype: jnp.dtype
    epsilon: float = 1e-6
    bias: bool = True
    letter: str = "D"

    @nn.compact
    def __call__(self, x: jax.Array):
        width = x.shape[-1]
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, (self.letter,)), (width,))
        x = x.astype(statistics_dtype(x.dtype))
        if self.centred:
            x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        x = x * in_use(scale, self.letter)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.letter,))
            x = x + in_use(self.param("bias", zeros, (width,)), self.letter)
        return x.astype(self.dtype)

    @property
    def centred(self) -> bool:
        return True


class RMSNorm(LayerNorm):
    """Normalisation by the root mean square of the last axis (Zhang & Sennrich, arXiv 1910.07467), [..., D] -> [..., D]."""

    @property
    def centred(self) -> bool:
        return False


def norm_of(style: Style, dtype: Any) -> Callable[..., LayerNorm]:
    """The norm of a style, as a constructor."""
    return functools.partial({"layer": LayerNorm, "rms": RMSNorm}[style.norm], dtype, style.epsilon, style.bias.norm)


class GroupNorm(nn.Module):
    """Group normalisation over rows, columns and a group's channels (Wu & He 2018), [B,Y,X,C] -> [B,Y,X,C].

    Chosen over batch normalisation for every convolution here: a sample's output then depends on that sample alone, so
    accumulation, sharding and evaluation need no running statistics and no synchronisation.
    """

    dtype: jnp.dtype
    group_width: int = 16
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array):
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

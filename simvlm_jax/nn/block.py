"""The pre-LN transformer block: self-attention, optional cross-attention, mlp; dropout and stochastic depth."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.layout import constrain, in_use
from simvlm_jax.nn.attention import Attention
from simvlm_jax.nn.cache import KeyValue, write_keys_values
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.masks import Mask
from simvlm_jax.nn.norm import LayerNorm
from simvlm_jax.nn.position import RelativeBias2D
from simvlm_jax.nn.sizes import Size, Style


class Shared(NamedTuple):
    """What all blocks of a stack get alike.

    mask: of the self-attention; None where all see all. context [B,S,W] and context_mask: of the cross-attention.
    """

    mask: Mask | None
    context: jax.Array | None = None
    context_mask: Mask | None = None


@jax.custom_vjp
def gelu(x):
    """GELU, tanh form. Its derivative is kept from the forward pass: recomputing tanh costs more than the memory."""
    return _gelu_and_slope(x)[0]


def _gelu_and_slope(x):
    c = jnp.asarray((2 / jnp.pi) ** 0.5, x.dtype)
    t = jnp.tanh(c * (x + 0.044715 * x * x * x))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + t), slope


gelu.defvjp(_gelu_and_slope, lambda slope, g: (g * slope,))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Mlp(nn.Module):
    """D -> F -> D."""

    width: int
    dtype: jnp.dtype
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x):
        D = x.shape[-1]
        xavier, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        up = self.param("up", nn.with_logical_partitioning(xavier, ("D", "F")), (D, self.width))
        up_bias = self.param("up_bias", nn.with_logical_partitioning(zeros, ("F",)), (self.width,))
        down = self.param("down", nn.with_logical_partitioning(xavier, ("F", "D")), (self.width, D))
        down_bias = self.param("down_bias", nn.with_logical_partitioning(zeros, ("D",)), (D,))
        x = add(x @ in_use(up, "DF", self.dtype), in_use(up_bias, "F"))
        x = ACTIVATIONS[self.activation](constrain(x, "BTF"))
        return add(x @ in_use(down, "FD", self.dtype), in_use(down_bias, "D"))


class Block(nn.Module):
    """One layer. Randomness is on exactly when `apply` gets a "dropout" rng, that is, while training.

    relative_grid: (rows, columns) of image tokens at the front of the sequence that get a 2D relative bias.
    """

    size: Size
    dtype: jnp.dtype
    cross: bool = False
    relative_grid: tuple[int, int] | None = None
    dropout: float = 0.0
    style: Style = Style()

    def setup(self):
        size, dtype, style = self.size, self.dtype, self.style
        if self.relative_grid is not None:
            self.relative = RelativeBias2D(self.relative_grid, size.heads)
        self.norm_attention = LayerNorm(dtype, style.epsilon)
        self.attention = Attention(size.width, size.heads, dtype, style.key_bias)
        if self.cross:
            self.norm_cross = LayerNorm(dtype, style.epsilon)
            self.cross_attention = Attention(size.width, size.heads, dtype, style.key_bias)
        self.norm_mlp = LayerNorm(dtype, style.epsilon)
        self.mlp = Mlp(size.mlp, dtype, style.activation)

    def __call__(self, x: jax.Array, drop_path: jax.Array | None, shared: Shared) -> jax.Array:
        """x [B,T,D], rate of stochastic depth -> x [B,T,D]."""
        x, bias = constrain(x, "BTD"), None
        if self.relative_grid is not None:
            bias = self.relative(x.shape[1], x.shape[1])
        h = self.norm_attention(x)
        x = x + self._drop(self.attention(h, h, shared.mask, bias), drop_path)
        if self.cross:
            h = self.cross_attention(self.norm_cross(x), shared.context, shared.context_mask)
            x = x + self._drop(h, drop_path)
        return x + self._drop(self.mlp(self.norm_mlp(x)), drop_path)

    def context(self, context_BSW: jax.Array) -> KeyValue:
        """Keys and values of the cross-attention, which no step changes."""
        return self.cross_attention.keys_values(context_BSW)

    def step(
        self,
        x: jax.Array,
        cache: KeyValue,
        slot: jax.Array,
        mask: Mask,
        context: KeyValue | None,
        context_mask: Mask | None,
    ) -> tuple[jax.Array, KeyValue]:
        """New tokens [B,T,D], whose keys and values go into the cache from `slot` on -> ([B,T,D], cache)."""
        x, bias = constrain(x, "BTD"), None
        if self.relative_grid is not None:
            bias = self.relative(x.shape[1], cache.key.shape[2])
        h = self.norm_attention(x)
        cache = write_keys_values(cache, self.attention.keys_values(h), slot)
        x = x + self.attention.step(h, cache, mask, bias)
        if self.cross:
            x = x + self.cross_attention.step(self.norm_cross(x), context, context_mask)
        return x + self.mlp(self.norm_mlp(x)), cache

    def _drop(self, h, drop_path):
        """Dropout, then stochastic depth: a whole residual branch is dropped for a sample with odds `drop_path`."""
        if not self.has_rng("dropout"):
            return h
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False)(h)
        if drop_path is None:
            return h
        return drop_branch(self.make_rng("dropout"), h, drop_path)


def drop_branch(rng: jax.Array, h: jax.Array, rate: jax.Array | float) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): zeroes samples of `h` [B,...] with odds `rate`, scales the others up."""
    keep = jax.random.bernoulli(rng, 1 - rate, (h.shape[0],) + (1,) * (h.ndim - 1))
    return jnp.where(keep, h / (1 - rate), 0).astype(h.dtype)

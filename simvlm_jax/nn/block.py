"""The pre-LN transformer block: self-attention, optional cross-attention, mlp; dropout and stochastic depth."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.layout import constrain, in_use
from simvlm_jax.nn.attention import Attention
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.norm import LayerNorm
from simvlm_jax.nn.position import RelativeBias2D
from simvlm_jax.nn.sizes import Size, Style


class Shared(NamedTuple):
    """What all blocks of a stack get alike.

    visible: bool [B,T,S] of the self-attention. context [B,S,W] and context_visible [B,T,S]: of the cross-attention;
    `context` is None when the cache holds its keys. slots [B,T]: where new keys go when there is a cache.
    """

    visible: Any
    context: Any = None
    context_visible: Any = None
    slots: Any = None


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

    @nn.compact
    def __call__(self, x, cache, drop_path, shared: Shared):
        """(x [B,T,D], cache, drop_path rate) -> (x, new cache). The cache is {} or a dict of keys and values."""
        x, new_cache = constrain(x, "BTD"), {}
        bias, norm = None, functools.partial(LayerNorm, self.dtype, self.style.epsilon)
        if self.relative_grid is not None:
            bias = RelativeBias2D(self.relative_grid, self.size.heads, name="relative")(*shared.visible.shape[1:])
        h = norm(name="norm_attention")(x)
        kept = (cache["key"], cache["value"]) if cache else None
        h, kv = Attention(self.size.heads, self.dtype, self.style.key_bias, name="attention")(
            h, h, shared.visible, bias=bias, cache=kept, slots_BT=shared.slots
        )
        x = x + self._thin(h, drop_path)
        if cache:
            new_cache["key"], new_cache["value"] = kv
        if self.cross:
            h = norm(name="norm_cross")(x)
            kept = None if shared.context is not None else (cache["cross_key"], cache["cross_value"])
            h, kv = Attention(self.size.heads, self.dtype, self.style.key_bias, name="cross_attention")(
                h, shared.context, shared.context_visible, cache=kept
            )
            x = x + self._thin(h, drop_path)
            if cache:
                new_cache["cross_key"], new_cache["cross_value"] = kv
        h = norm(name="norm_mlp")(x)
        h = Mlp(self.size.mlp, self.dtype, self.style.activation, name="mlp")(h)
        return x + self._thin(h, drop_path), new_cache

    def _thin(self, h, drop_path):
        """Dropout, then stochastic depth: a whole residual branch is dropped for a sample with odds `drop_path`."""
        if not self.has_rng("dropout"):
            return h
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False)(h)
        if drop_path is None:
            return h
        return drop_branch(self.make_rng("dropout"), h, drop_path)


def drop_branch(rng, h, rate):
    """Stochastic depth (Huang et al. 2016): zeroes samples of `h` [B,...] with odds `rate`, scales the others up."""
    keep = jax.random.bernoulli(rng, 1 - rate, (h.shape[0],) + (1,) * (h.ndim - 1))
    return jnp.where(keep, h / (1 - rate), 0).astype(h.dtype)

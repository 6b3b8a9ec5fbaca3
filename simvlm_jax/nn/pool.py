"""Attention as a pooler: learned queries that look at a sequence."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import in_use
from simvlm_jax.nn.attention import Attention
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.masks import bidirectional, cross_mask
from simvlm_jax.nn.mlp import Mlp
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.sizes import Compute, Style


class LearnedTokens(nn.Module):
    """The same learned tokens in every row: a batch size to [B,count,D]."""

    count: int
    width: int
    dtype: jnp.dtype
    init: Callable | None = None

    @nn.compact
    def __call__(self, batch: int):
        init = nn.with_logical_partitioning(self.init or nn.initializers.normal(self.width**-0.5), ("Q", "D"))
        tokens = in_use(self.param("tokens", init, (self.count, self.width)), ("Q", "D"))
        return add(jnp.zeros((batch, self.count, self.width), self.dtype), tokens)


class AttentionalPool(nn.Module):
    """Q learned queries look at a sequence once, [B,S,W] -> [B,Q,D], with a norm after (arXiv 2205.01917, section 3.2).

    Queries begin at unit variance, as what they look at has: smaller ones would look everywhere alike for long.
    """

    queries: int
    width: int
    heads: int
    compute: Compute
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array | None = None):
        """seen: bool [B,S], which of the sequence is there; None for all."""
        dtype = self.compute.activation_dtype
        queries = LearnedTokens(self.queries, self.width, dtype, nn.initializers.normal(1.0), name="query")(x.shape[0])
        mask = None
        if seen is not None:
            mask = cross_mask(bidirectional(jnp.ones(queries.shape[:2], bool)), seen)
        style = self.style
        look = Attention(self.width, self.heads, dtype, style.key_bias, x.shape[-1], bias=style.bias, name="attention")
        return norm_of(style, dtype)(name="norm")(look(queries, x, mask))


class MapHead(nn.Module):
    """Multi-head attention pooling (Zhai et al., arXiv 2106.04560, section 2.3): one probe, then a residual mlp; [B,S,D] -> [B,D]."""

    heads: int
    mlp: int
    compute: Compute
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array):
        dtype, width = self.compute.activation_dtype, x.shape[-1]
        probe = LearnedTokens(1, width, dtype, nn.initializers.xavier_uniform(), name="probe")(x.shape[0])
        style = self.style
        x = Attention(width, self.heads, dtype, style.key_bias, bias=style.bias, name="attention")(probe, x, None)
        y = norm_of(style, dtype)(name="norm")(x)
        return (x + Mlp(self.mlp, dtype, style.activation, style.gated, style.bias.mlp, name="mlp")(y))[:, 0]

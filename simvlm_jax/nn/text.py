"""The text tower: a transformer over pieces, causal or in both directions, pooled to one vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.masks import Kind, bidirectional, causal, self_mask
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.sizes import Compute, Size, Style
from simvlm_jax.nn.stack import Stack

POOLS = ("eos", "last", "first")


class TextTower(nn.Module):
    """Tokens [B,T] int32 where `valid` [B,T], padding after them, to hidden states and one vector.

    Args:
      size: of the stack. vocabulary: rows of the embedding. length: positions there are.
      causal: tokens see what stands before them, or all.
      pool: "eos" (the last valid token), "last" (the last slot, padding or not) or "first" (a CLS token there).
    """

    size: Size
    vocabulary: int
    length: int
    compute: Compute
    causal: bool = True
    pool: str = "eos"
    style: Style = Style()

    def setup(self):
        if self.pool not in POOLS:
            raise ValueError(f"pool {self.pool!r} is not one of {', '.join(POOLS)}")
        D = self.size.width
        self.embedding = self.param(
            "embedding", nn.with_logical_partitioning(nn.initializers.normal(0.02), ("V", "D")), (self.vocabulary, D)
        )
        self.position = self.param(
            "position", nn.with_logical_partitioning(nn.initializers.normal(0.01), (None, "D")), (self.length, D)
        )
        self.stack = Stack(self.size, self.compute, style=self.style)
        self.norm = norm_of(self.style, self.compute.activation_dtype)()

    def __call__(self, tokens: jax.Array, valid: jax.Array):
        """(hidden states [B,T,D] after the last norm, pooled [B,D])."""
        dtype, T = self.compute.activation_dtype, tokens.shape[1]
        if self.pool == "last" and self.length != T:
            raise ValueError(f"a text tower that takes its last slot needs all {self.length} of them; got {T}")
        # looked up before the cast, so that the gradient of a row is summed in float32
        x = add(in_use(self.embedding, "VD")[tokens].astype(dtype), in_use(self.position, (None, "D"))[:T])
        sight = (causal if self.causal else bidirectional)(valid)
        kind = Kind("causal" if self.causal else "full", "right")
        x = self.stack(constrain(x, "BTD"), Shared(self_mask(sight, kind)))
        x = self.norm(x)
        if self.pool == "eos":
            last = jnp.where(valid, jnp.arange(T), 0).max(1)
            return x, jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        return x, x[:, -1] if self.pool == "last" else x[:, 0]

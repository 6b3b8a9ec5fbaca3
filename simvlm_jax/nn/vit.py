"""The vision transformer (Dosovitskiy et al., arXiv 2010.11929) and the ways of its descendants to pool it."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.core.types import sides_of
from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.conv_stem import ConvStem, ConvStemSize, Patches
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.pool import LearnedTokens, MapHead
from simvlm_jax.nn.position import resize_grid
from simvlm_jax.nn.sizes import Compute, Size, Style, statistics_dtype
from simvlm_jax.nn.stack import Stack

POOLS = ("cls", "mean", "map")


class ViT(nn.Module):
    """Images [B,Y,X,C], normalised, to tokens and one vector.

    Args:
      size: of the stack. patch: pixels a side. image_size: pixels a side, or rows and columns of pixels; P = (Y // patch) *
        (X // patch) image tokens (pixels that are left over, below and on the right, are not seen).
      pool: "cls" (a learned token in front), "mean" (of the image tokens) or "map" (a MapHead).
      first: learned tokens in front of the image's, None for what the pool needs: one of "cls", none of the others. The first of
        them is the class token, the second DeiT's of distillation (arXiv 2012.12877, section 4).
      positions: whether there is a learned table of positions. relative: whether attention has a 2D relative bias, a table a
        layer (BEiT).
      last_norm: whether a norm follows the last block.
      learned: more learned tokens, without positions, after the image's (arXiv 2405.00740).
      pre_norm: a norm before the first block (CLIP). patch_bias: of the patch map.
      stem: a conv stem in place of the linear map of patches.
    """

    size: Size
    patch: int
    image_size: int | tuple[int, int]
    compute: Compute
    pool: str = "cls"
    first: int | None = None
    positions: bool = True
    relative: bool = False
    last_norm: bool = True
    learned: int = 0
    pre_norm: bool = False
    patch_bias: bool = True
    style: Style = Style()
    stem: ConvStemSize | None = None
    dropout: float = 0.0
    drop_path: float = 0.0

    def setup(self):
        if self.pool not in POOLS:
            raise ValueError(f"pool {self.pool!r} is not one of {', '.join(POOLS)}")
        if self.stem is not None and any(side % self.patch for side in self.sides):
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")
        dtype, D = self.compute.activation_dtype, self.size.width
        if self.stem is not None:
            self.patches = ConvStem(self.stem, D, self.patch, self.compute, self.drop_path)
        else:
            self.patches = Patches(D, self.patch, dtype, self.patch_bias)
        if self.positions:
            init = nn.with_logical_partitioning(nn.initializers.normal(D**-0.5), (None, "D"))
            self.position = self.param("position", init, (self.tokens + self.front, D))
        if self.front:
            self.class_token = LearnedTokens(1, D, dtype)
        if self.front > 1:
            self.distillation_token = LearnedTokens(1, D, dtype)
        if self.learned:
            self.learned_tokens = LearnedTokens(self.learned, D, dtype)
        if self.pre_norm:
            self.norm_before = norm_of(self.style, dtype)()
        self.stack = Stack(
            self.size,
            self.compute,
            relative_grid=self.grid if self.relative else None,
            relative_class=self.front == 1,
            dropout=self.dropout,
            drop_path=self.drop_path,
            style=self.style,
        )
        if self.last_norm:
            self.norm = norm_of(self.style, dtype)()
        if self.pool == "map":
            self.head = MapHead(self.size.heads, self.size.mlp, self.compute, self.style)

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        return sides_of(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.sides[0] // self.patch, self.sides[1] // self.patch

    @property
    def tokens(self) -> int:
        """P, of the image alone."""
        return self.grid[0] * self.grid[1]

    @property
    def front(self) -> int:
        """Learned tokens in front of the image's."""
        return int(self.pool == "cls") if self.first is None else self.first

    def encode(self, image: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        """[B,Y,X,C] -> (image tokens [B,P,D], class token [B,D] or None, learned tokens [B,learned,D]), after the last norm."""
        first, image_tokens, learned = self.sequence(image)
        return image_tokens, first[:, 0] if self.front else None, learned

    def sequence(self, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B,Y,X,C] -> (tokens in front [B,front,D], image tokens [B,P,D], learned tokens [B,learned,D]), after the last norm."""
        B, Y, X, _ = image.shape
        if self.sides != (Y, X):
            raise ValueError(f"this image tower takes {self.sides[0]} x {self.sides[1]} px; got {Y} x {X}")
        dtype, first = self.compute.activation_dtype, self.front
        x = self.patches(image.astype(dtype))
        if first > 1:
            x = jnp.concatenate([self.distillation_token(B), x], axis=1)
        if first:
            x = jnp.concatenate([self.class_token(B), x], axis=1)
        if self.positions:
            x = add(x, in_use(self.position, (None, "D")))
        if self.learned:
            x = jnp.concatenate([x, self.learned_tokens(B)], axis=1)
        if self.pre_norm:
            x = self.norm_before(x)
        x = self.stack(constrain(x, "BTD"), Shared(None))
        self.sow("intermediates", "last", x)
        x = self.norm(x) if self.last_norm else x
        self.sow("intermediates", "normed", x)
        return x[:, :first], x[:, first : first + self.tokens], x[:, first + self.tokens :]

    def __call__(self, image: jax.Array) -> jax.Array:
        """[B,Y,X,C] -> [B,D], pooled."""
        tokens, class_token, _ = self.encode(image)
        if self.pool == "cls":
            return class_token
        if self.pool == "map":
            return self.head(tokens)
        return tokens.astype(statistics_dtype(tokens.dtype)).mean(1).astype(tokens.dtype)


def resize_positions(table: jax.Array, image_tokens: int | tuple[int, int], first: int | None = None):
    """A ViT's position table for another grid, or for a square one of so many tokens; rows of tokens in front stay what they are.

    The old grid is a square. first: how many tokens stand in front; None: what is more than the largest square in the table.

    Raises:
      ValueError: the table is no square grid with so many tokens in front, or more than two.
    """
    side = math.isqrt(table.shape[0] - (first or 0))
    first = table.shape[0] - side * side if first is None else first
    if first > 2 or side * side != table.shape[0] - first:
        raise ValueError(
            f"a table of {table.shape[0]} positions, {first} of them in front, is of no square grid and cannot be resized; "
            "keep the image size it was learned at"
        )
    new = (math.isqrt(image_tokens),) * 2 if isinstance(image_tokens, int) else image_tokens
    grid = resize_grid(table[first:], (side, side), (new[0], new[1]))
    return jnp.concatenate([table[:first], grid], axis=0)

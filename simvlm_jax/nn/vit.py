"""The vision transformer (Dosovitskiy et al., arXiv 2010.11929) and the ways of its descendants to pool it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import constrain, in_use
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
      size: of the stack. patch: pixels a side. image_size: pixels a side; P = (image_size // patch)^2 image tokens (pixels
        that are left over, below and on the right, are not seen).
      pool: "cls" (a learned token in front), "mean" (of the image tokens) or "map" (a MapHead).
      learned: more learned tokens, without positions, after the image's (arXiv 2405.00740).
      pre_norm: a norm before the first block (CLIP). patch_bias: of the patch map.
      stem: a conv stem in place of the linear map of patches.
    """

    size: Size
    patch: int
    image_size: int
    compute: Compute
    pool: str = "cls"
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
        if self.stem is not None and self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")
        dtype, D = self.compute.activation_dtype, self.size.width
        if self.stem is not None:
            self.patches = ConvStem(self.stem, D, self.patch, self.compute, self.drop_path)
        else:
            self.patches = Patches(D, self.patch, dtype, self.patch_bias)
        init = nn.with_logical_partitioning(nn.initializers.normal(D**-0.5), (None, "D"))
        self.position = self.param("position", init, (self.tokens + (self.pool == "cls"), D))
        if self.pool == "cls":
            self.class_token = LearnedTokens(1, D, dtype)
        if self.learned:
            self.learned_tokens = LearnedTokens(self.learned, D, dtype)
        if self.pre_norm:
            self.norm_before = norm_of(self.style, dtype)()
        self.stack = Stack(self.size, self.compute, dropout=self.dropout, drop_path=self.drop_path, style=self.style)
        self.norm = norm_of(self.style, dtype)()
        if self.pool == "map":
            self.head = MapHead(self.size.heads, self.size.mlp, self.compute, self.style)

    @property
    def tokens(self) -> int:
        """P, of the image alone."""
        return (self.image_size // self.patch) ** 2

    def encode(self, image: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        """[B,Y,X,C] -> (image tokens [B,P,D], class token [B,D] or None, learned tokens [B,learned,D]), after the last norm."""
        B, Y, X, _ = image.shape
        if (self.image_size, self.image_size) != (Y, X):
            raise ValueError(f"this image tower takes {self.image_size} px a side; got {Y} x {X}")
        dtype = self.compute.activation_dtype
        x = self.patches(image.astype(dtype))
        first = self.pool == "cls"
        if first:
            x = jnp.concatenate([self.class_token(B), x], axis=1)
        x = add(x, in_use(self.position, (None, "D")))
        if self.learned:
            x = jnp.concatenate([x, self.learned_tokens(B)], axis=1)
        if self.pre_norm:
            x = self.norm_before(x)
        x = self.stack(constrain(x, "BTD"), Shared(None))
        x = self.norm(x)
        return x[:, first : first + self.tokens], x[:, 0] if first else None, x[:, first + self.tokens :]

    def __call__(self, image: jax.Array) -> jax.Array:
        """[B,Y,X,C] -> [B,D], pooled."""
        tokens, class_token, _ = self.encode(image)
        if self.pool == "cls":
            return class_token
        if self.pool == "map":
            return self.head(tokens)
        return tokens.astype(statistics_dtype(tokens.dtype)).mean(1).astype(tokens.dtype)


def resize_positions(table: jax.Array, image_tokens: int):
    """A ViT's position table for another number of image tokens; the row of a class token stays what it is."""
    first = round((table.shape[0] - 1) ** 0.5) ** 2 == table.shape[0] - 1
    old, new = round((table.shape[0] - first) ** 0.5), round(image_tokens**0.5)
    grid = resize_grid(table[int(first) :], (old, old), (new, new))
    return jnp.concatenate([table[: int(first)], grid], axis=0)

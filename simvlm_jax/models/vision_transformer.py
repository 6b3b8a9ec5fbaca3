"""The vision transformer as a classifier (Dosovitskiy et al., arXiv 2010.11929), and its descendants by fields of their sizes.

One idea: patches of an image are pieces of a text. Images [B,1,Y,X,C] become P tokens after a class token, whose last state is
the image's vector. DeiT (arXiv 2012.12877) has a second token, taught by another classifier, whose head's logits are averaged with
the first's; BEiT (arXiv 2106.08254) has relative positions, branches that are scaled, no bias of keys, and the mean of the image
tokens in place of the class token; an MAE (arXiv 2111.06377) is a ViT once its decoder is gone.
"""

import dataclasses

import flax.linen as nn
import jax

from simvlm_jax.core.schema import Count, Positive
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Params, sides_of
from simvlm_jax.families.dual_encoder import HALF, normalised
from simvlm_jax.families.image_classifier import IMAGENET, Channels, ImageClassifier
from simvlm_jax.nn.conv_stem import TINY_STEM, ConvStemSize
from simvlm_jax.nn.linear import Linear
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.position import resize_relative_tables
from simvlm_jax.nn.sizes import TOWERS, Size, Style, statistics_dtype
from simvlm_jax.nn.vit import ViT, resize_positions

STYLE = Style("gelu_exact", epsilon=1e-6, key_bias=True)
BEIT = Style("gelu_exact", epsilon=1e-12, layer_scale=0.1)


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """A row of SIZES.

    Args:
      stack, style: of the blocks. patch: pixels a side.
      tokens: in front of the image's: 1 (a class token), 2 (and one of distillation) or 0. heads: 2 where the token of distillation
        has one of its own.
      pool: "cls" or "mean", what the head reads.
      positions: whether there is a table of positions. relative: whether attention has relative positions.
      norm: where the last norm stands: "before" the pool, "after" it, or both ("both").
      stem: a conv stem in place of plain patches. mean, deviation: of pixels in [0, 1].
    """

    stack: Size
    style: Style = STYLE
    patch: Positive = 16
    tokens: Count = 1
    heads: Count = 1
    pool: str = "cls"
    positions: bool = True
    relative: bool = False
    norm: str = "before"
    stem: ConvStemSize | None = None
    mean: Channels = HALF[0]
    deviation: Channels = HALF[1]

    def __post_init__(self):
        if self.pool not in ("cls", "mean") or self.norm not in ("before", "after", "both") or self.tokens > 2:
            raise ValueError(f"{self}: pool is cls or mean, norm before, after or both, and tokens 0, 1 or 2")
        if (self.pool == "cls" and not self.tokens) or not 1 <= self.heads <= max(self.tokens, 1):
            raise ValueError(f"{self}: the class token and every head but the first need a token to read")
        if self.relative and self.tokens > 1:
            raise ValueError(f"{self}: relative positions are known with one token in front at most")


_IMAGENET = dict(mean=IMAGENET[0], deviation=IMAGENET[1])
SIZES = {
    "tiny": Sizes(TOWERS["tiny"], stem=TINY_STEM),
    "B/16": Sizes(TOWERS["B"]),
    "B/32": Sizes(TOWERS["B"], patch=32),
    "L/16": Sizes(TOWERS["L"]),
    "H/14": Sizes(TOWERS["H"], patch=14),
    "deit-S/16": Sizes(Size(384, 12, 6, 1536), **_IMAGENET),
    "deit-distilled-S/16": Sizes(Size(384, 12, 6, 1536), tokens=2, heads=2, **_IMAGENET),
    "beit-B/16": Sizes(TOWERS["B"], BEIT, pool="mean", positions=False, relative=True, norm="after"),
    "mae-B/16": Sizes(TOWERS["B"], **_IMAGENET),
}


class Network(nn.Module):
    """The tower, what pools it, and its heads."""

    model: "VisionTransformer"

    def setup(self):
        m, s = self.model, self.model.sizes
        dtype = m.compute.activation_dtype
        self.image_tower = ViT(
            s.stack,
            s.patch,
            m.image_size,
            m.compute,
            pool=s.pool,
            first=s.tokens,
            positions=s.positions,
            relative=s.relative,
            last_norm=s.norm != "after",
            style=s.style,
            stem=s.stem,
            dropout=m.dropout,
            drop_path=m.drop_path,
        )
        if s.norm != "before":
            self.pool_norm = norm_of(s.style, dtype)()
        if m.classes:
            precise = statistics_dtype(dtype)
            self.head = Linear(m.classes, precise, bias=True, out="A")
            if s.heads == 2:
                self.distillation_head = Linear(m.classes, precise, bias=True, out="A")

    def tokens(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(tokens in front [B,front,D], image tokens [B,P,D])."""
        s = self.model.sizes
        return self.image_tower.sequence(normalised(pixels, (s.mean, s.deviation)))[:2]

    def pooled(self, pixels: jax.Array) -> jax.Array:
        return self._pooled(*self.tokens(pixels))

    def _pooled(self, first: jax.Array, image_tokens: jax.Array) -> jax.Array:
        x = first[:, 0] if self.model.sizes.pool == "cls" else image_tokens.mean(1)
        return x if self.model.sizes.norm == "before" else self.pool_norm(x)

    def logits(self, pixels: jax.Array) -> jax.Array:
        first, image_tokens = self.tokens(pixels)
        found = self.head(self._pooled(first, image_tokens))
        if self.model.sizes.heads < 2:
            return found
        return (found + self.distillation_head(first[:, 1])) / 2

    def everything(self, pixels: jax.Array):
        """Touches every parameter once, to make them."""
        return self.logits(pixels) if self.model.classes else self.pooled(pixels)


@buildable("model")
@dataclasses.dataclass(frozen=True)
class VisionTransformer(ImageClassifier):
    """A vision transformer by size."""

    SIZES = SIZES
    network_class = Network

    size: str | Sizes = "tiny"

    def adapt(self, params: Params, target: Params):
        """Positions resized as a grid, relative tables with the centre where it was."""
        if "image_tower" not in params:
            return params
        grid = tuple(side // self.sizes.patch for side in sides_of(self.image_size))
        tower = dict(params["image_tower"])
        if "position" in tower and tower["position"].shape != target["image_tower"]["position"].shape:
            tower["position"] = resize_positions(tower["position"], (grid[0], grid[1]), self.sizes.tokens)
        tower["stack"] = resize_relative_tables(tower["stack"], (grid[0], grid[1]))
        return {**params, "image_tower": tower}

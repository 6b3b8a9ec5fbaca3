"""SigLIP: Sigmoid Loss for Language Image Pre-Training (Zhai et al., arXiv 2303.15343).

One idea: every image with every text is a question of its own, yes or no, so that no pair needs to know of the others.
The loss is a sigmoid's, divided by the number of images (not of pairs), with a learned scale t = exp(t'), t' = log 10 at the
start, and a learned bias b = -10 that makes up for so many negatives (section 3.2).

Images [B,1,Y,X,C] in [-1, 1] and texts of T pieces become unit vectors [B,E]. The image tower is a ViT with a MAP head and
without class token or projection; the text tower looks both ways over all T slots, padding included and unmasked, and its last
slot is mapped linearly. Both follow the authors' released models; texts there are lower case without punctuation (the
configs say so to the tokenizer).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import AboveZero, Finite
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Extra, Features, Params, Term
from simvlm_jax.families.dual_encoder import DualEncoder, DualNetwork, Scale, normalised, unit
from simvlm_jax.nn.conv_stem import TINY_STEM, ConvStemSize
from simvlm_jax.nn.linear import Linear
from simvlm_jax.nn.sizes import TOWERS, Size, Style
from simvlm_jax.nn.text import TextTower
from simvlm_jax.nn.vit import ViT
from simvlm_jax.objectives.contrastive import sigmoid_pairs

STYLE = Style("gelu", epsilon=1e-6, key_bias=True)


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """A row of SIZES: the image tower, whose width is E, patch, a conv stem in place of plain patches, where a model is to learn in
    minutes, and the text tower, where it is not of the same size (SigLIP 2's giant)."""

    tower: Size
    patch: int
    stem: ConvStemSize | None = None
    text: Size | None = None


SIZES = {
    "tiny": Sizes(TOWERS["tiny"], 16, TINY_STEM),
    "B/16": Sizes(TOWERS["B"], 16),
    "L/16": Sizes(TOWERS["L"], 16),
    "So400m/14": Sizes(TOWERS["So400m"], 14),
}


class Network(DualNetwork):
    """The two towers, the linear map after the text's, scale and bias."""

    model: "SigLIP"

    def setup(self):
        m = self.model
        size, patch, stem = m.sizes.tower, m.sizes.patch, m.sizes.stem
        text = m.sizes.text or size
        self.image_tower = ViT(size, patch, m.image_size, m.compute, pool="map", style=STYLE, stem=stem)
        self.text_tower = TextTower(
            text, m.vocabulary.size, m.text_length, m.compute, causal=False, pool="last", style=STYLE
        )
        self.text_projection = Linear(size.width, m.compute.activation_dtype, bias=True)
        self.logit_scale = Scale(math.log(m.start_scale), m.start_bias if m.use_bias else None)

    def pooled(self, pixels: jax.Array):
        return self.image_tower(normalised(pixels))

    def image(self, pixels: jax.Array):
        return unit(self.pooled(pixels))


@buildable("model")
@dataclasses.dataclass(frozen=True)
class SigLIP(DualEncoder):
    """SigLIP by size.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the text's T.
      image_size: pixels.
      size: a row of SIZES.
      start_scale, start_bias: t and b at the start; use_bias: whether there is a b (table 4 of the paper).
      compute: dtype, remat, scan.
    """

    SIZES = SIZES
    network_class = Network

    size: str | Sizes = "tiny"
    start_scale: AboveZero = 10.0
    start_bias: Finite = -10.0
    use_bias: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.start_scale <= 0:
            raise ValueError(f"SigLIP start_scale {self.start_scale} must be positive: it is exp(t')")

    @property
    def text_length(self) -> int:
        return self.vocabulary.length

    def lay_out(self, text: Array, valid: Array):
        """No BOS, an EOS where a text was cut, and padding up to T that is seen like any piece."""
        missing = self.vocabulary.length - text.shape[1]
        text = jnp.pad(
            jnp.where(valid, self.ended(text, valid), self.vocabulary.pad),
            ((0, 0), (0, missing)),
            constant_values=self.vocabulary.pad,
        )
        return text, jnp.ones(text.shape, bool)

    def across_batch(self, params: Params, extra: Extra, features: Features, *, step: Array, train: bool):
        loss, count = sigmoid_pairs(self.apply(params, "scale"), features["image"], features["text"])
        return self.with_scale(params, {"contrastive": Term(loss, count)}, {})

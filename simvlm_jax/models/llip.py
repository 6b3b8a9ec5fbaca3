"""Llip: Modeling Caption Diversity in Contrastive Vision-Language Pretraining (Lavoie et al., arXiv 2405.00740).

One idea: a picture can be described in many ways, so its vector waits for the caption. The image tower gives Q learned mixture
tokens (the paper calls their number K); a caption looks at them by cross-attention and gets an image vector of its own, which
it is compared with. Every (image i, text j) has another image vector, negatives as well, so that captions cannot leak; the loss
is SigLIP's.

Images [B,1,Y,X,C] become keys and values [B,Q,2E], texts unit vectors [B,E]. To classify, the Q tokens of an image are kept and
mixed for each class prompt.

The abstract states Q and the loss. What it does not, and our choice: heads and softmax temperature of the mixture are fields;
the query is a linear map of the caption's unit vector (scaled to unit variance), so that prompts can be averaged.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import AboveZero
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Extra, Features, Params, Rows, Term
from simvlm_jax.families.dual_encoder import DualEncoder, DualNetwork, Scale, normalised, unit
from simvlm_jax.nn.conv_stem import TINY_STEM, ConvStemSize
from simvlm_jax.nn.linear import Linear
from simvlm_jax.nn.sizes import TOWERS, Size, Style, statistics_dtype
from simvlm_jax.nn.text import TextTower
from simvlm_jax.nn.vit import ViT
from simvlm_jax.objectives.contrastive import sigmoid_pairs

STYLE = Style("gelu", epsilon=1e-5)
TILE = 64
"""Pairs a side whose mixtures [r,c,E] are held at once."""


class Sizes(NamedTuple):
    """A row of SIZES: image tower and patch, text tower, E, Q, heads of the mixture, and a conv stem in place of plain patches,
    where a model is to learn in minutes."""

    image: Size
    patch: int
    text: Size
    width: int
    tokens: int
    heads: int
    stem: ConvStemSize | None = None


SIZES = {
    "tiny": Sizes(TOWERS["tiny"], 16, TOWERS["tiny"], 128, 8, 4, TINY_STEM),
    "B/32": Sizes(TOWERS["B"], 32, TOWERS["512"], 512, 64, 8),
    "B/16": Sizes(TOWERS["B"], 16, TOWERS["512"], 512, 64, 8),
    "L/14": Sizes(TOWERS["L"], 14, TOWERS["768"], 768, 64, 8),
    "H/14": Sizes(TOWERS["H"], 14, TOWERS["1024x24"], 1024, 64, 8),
    "G/14": Sizes(TOWERS["G"], 14, TOWERS["1280"], 1280, 64, 8),
}


class Network(DualNetwork):
    """The two towers and what mixes an image's tokens."""

    model: "Llip"

    def setup(self):
        m = self.model
        image, patch, text, width, tokens, _, stem = m.sizes
        dtype = m.compute.activation_dtype
        self.image_tower = ViT(
            image, patch, m.image_size, m.compute, pool="mean", learned=tokens, style=STYLE, stem=stem
        )
        self.keys_values = Linear(2 * width, dtype)
        self.text_tower = TextTower(text, m.vocabulary.size, m.text_length, m.compute, style=STYLE)
        self.text_projection = Linear(width, dtype)
        precise = statistics_dtype(dtype)
        self.query, self.out = Linear(width, precise), Linear(width, precise)
        self.logit_scale = Scale(math.log(10.0), -10.0)

    def _mixture_tokens(self, pixels: jax.Array) -> jax.Array:
        return self.image_tower.encode(normalised(pixels))[2]

    def pooled(self, pixels: jax.Array):
        return self._mixture_tokens(pixels).mean(1)

    def image(self, pixels: jax.Array):
        found = self.keys_values(self._mixture_tokens(pixels))
        return found.astype(statistics_dtype(found.dtype))

    def mixed(self, images: jax.Array, texts: jax.Array):
        """The vectors [r,c,E] of images [r,Q,2E] as texts [c,E] see them, of length 1."""
        heads, E = self.model.sizes.heads, texts.shape[-1]
        split = lambda x: x.reshape(*x.shape[:-1], heads, -1)  # noqa: E731
        query, key, value = split(self.query(texts * E**0.5)), split(images[..., :E]), split(images[..., E:])
        weights = jax.nn.softmax(jnp.einsum("cHK,rQHK->rcHQ", query, key) / self.model.temperature, axis=-1)
        return unit(self.out(jnp.einsum("rcHQ,rQHK->rcHK", weights, value).reshape(len(images), len(texts), E)))

    def similarity(self, images: jax.Array, texts: jax.Array):
        """Cosines [r,c] of every image, as each text sees it, with that text."""
        return jnp.einsum("rcE,cE->rc", self.mixed(images, texts), texts, precision=jax.lax.Precision.HIGHEST)

    def everything(self, pixels: jax.Array, tokens: jax.Array, valid: jax.Array):
        return self.similarity(self.image(pixels), self.text(tokens, valid)), self.scale()


@buildable("model")
@dataclasses.dataclass(frozen=True)
class Llip(DualEncoder):
    """Llip by size.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the longest text, T.
      image_size: pixels.
      size: a row of SIZES.
      temperature: by which a query's products with keys are divided before their softmax.
      compute: dtype, remat, scan.
    """

    SIZES = SIZES
    network_class = Network

    size: str = "tiny"
    temperature: AboveZero = 5.0

    def across_batch(self, params: Params, extra: Extra, features: Features, *, step: Array, train: bool):
        mixing = {k: params[k] for k in ("query", "out", "logit_scale")}

        def logits(mixing, rows, columns):
            found = self.apply(mixing, "scale")
            return (
                found["scale"] * self.similarity(mixing, extra, rows["features"], columns["features"]) + found["bias"]
            )

        loss, count = sigmoid_pairs(mixing, features["image"], features["text"], logits=logits, tile=TILE)
        return self.with_scale(params, {"contrastive": Term(loss, count)}, {})

    def similarity(self, params: Params, extra: Extra, images: jax.Array, texts: jax.Array):
        """Cosines [r,c] of every image [r,Q,2E], mixed as each text [c,E] asks, with that text."""
        return self.apply(params, "similarity", images, texts)

    def pair_features(self, params: Params, extra: Extra, batch: Rows):
        """Features [B,3E] fp32: the image's vector as the text sees it, the text's, and their product."""
        image, text = self.embed_image(params, extra, batch), self.embed_text(params, extra, batch)
        seen = jax.vmap(lambda x, t: self.apply(params, "mixed", x[None], t[None])[0, 0])(image, text)
        return jnp.concatenate([seen, text, seen * text], axis=-1)

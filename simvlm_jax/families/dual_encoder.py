"""Two towers, one space: what every contrastive model has in common, whatever its towers and its loss."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.parts import PAIRS, only_part
from simvlm_jax.core.schema import Sides
from simvlm_jax.core.types import Array, Aux, Batch, Extra, Params, Rngs, Rows, Term, Terms, Vocabulary, sides_of
from simvlm_jax.families.network import NetworkModel
from simvlm_jax.nn.position import fit_positions
from simvlm_jax.nn.sizes import Compute, statistics_dtype
from simvlm_jax.nn.vit import resize_positions

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation that map pixels to [-1, 1]."""


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., E] of length 1 in fp32 (or wider), as everything is that meets another tower; zeros stay zeros."""
    x = x.astype(statistics_dtype(x.dtype))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def normalised(image: Array, statistics: tuple[Sequence[float], Sequence[float]] = HALF) -> jax.Array:
    """uint8 pixels [B,1,Y,X,C] as fp32 [B,Y,X,C], by a mean and a deviation per channel (of pixels in [0, 1])."""
    if image.shape[1] != 1:
        raise ValueError(f"this model takes one image per row; got {image.shape[1]}")
    mean, deviation = (np.asarray(x, np.float32) for x in statistics)
    return (image[:, 0].astype(jnp.float32) / 255 - mean) / deviation


def pair_weight(batch: Rows):
    """The weight [B] of rows as pairs: 0 for padding, and for rows without an image."""
    weight = jnp.asarray(batch["weight"])
    return weight * batch["image_mask"][:, 0] if "image_mask" in batch else weight


class Scale(nn.Module):
    """The learned factor of cosines, exp(log), and with `bias` an offset: `{"scale"[, "bias"]}`, fp32."""

    log: float
    bias: float | None = None

    @nn.compact
    def __call__(self):
        def number(name, value) -> Any:
            return self.param(name, nn.with_logical_partitioning(nn.initializers.constant(value), ()), ())

        found = {"scale": jnp.exp(number("log", self.log))}
        return found if self.bias is None else {**found, "bias": number("bias", self.bias)}


class DualNetwork(nn.Module):
    """What networks of two towers have in common; `setup` makes `text_tower`, `text_projection` and `logit_scale`."""

    def text(self, tokens: jax.Array, valid: jax.Array):
        return unit(self.text_projection(self.text_tower(tokens, valid)[1]))

    def scale(self):
        return self.logit_scale()

    def everything(self, pixels: jax.Array, tokens: jax.Array, valid: jax.Array):
        return self.image(pixels), self.text(tokens, valid), self.scale()


@dataclasses.dataclass(frozen=True)
class DualEncoder(NetworkModel):
    """A model with an image tower and a text tower that meet in a space.

    A model of this kind gives its table of SIZES (records with at least a `patch`), its network and `across_batch`. The network
    has the methods `image(pixels)` -> [B,E] in the shared space, of length 1 (or what its own `similarity` takes);
    `text(tokens, valid)` -> [B,E], of length 1; `pooled(pixels)` -> [B,D] before the projection, for probing; `scale()` -> what
    logits are made with; and `everything(pixels, tokens, valid)`, to make parameters.
    """

    vocabulary: Vocabulary
    image_size: Sides
    size: Any = "tiny"
    compute: Compute = Compute()

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens of the image tower."""
        Y, X = sides_of(self.image_size)
        return Y // self.sizes.patch, X // self.sizes.patch

    @property
    def image_tokens(self) -> int:
        """P, of the image tower."""
        return self.image_grid[0] * self.image_grid[1]

    @property
    def text_length(self) -> int:
        """Positions of the text tower."""
        return self.vocabulary.length + 1

    def lay_out(self, text: Array, valid: Array):
        """Pieces [B,T] as the text tower takes them, (tokens, valid): BOS before them, and an EOS where a text was cut."""
        text = self.ended(text, valid)
        start = jnp.full((text.shape[0], 1), self.vocabulary.bos, jnp.int32)
        return jnp.concatenate([start, text], axis=1), jnp.pad(
            jnp.asarray(valid), ((0, 0), (1, 0)), constant_values=True
        )

    def ended(self, text: Array, valid: Array):
        """Pieces [B,T] with an EOS at the end of those that were cut."""
        text = jnp.asarray(text)
        return text.at[:, -1].set(jnp.where(jnp.asarray(valid)[:, -1], self.vocabulary.eos, text[:, -1]))

    def init(self, rng: Array, batch: Batch):
        pixels = np.zeros((1, 1, *sides_of(self.image_size), 3), np.uint8)
        text = np.zeros((1, self.vocabulary.length), np.int32)
        return self.made(self.network.init(rng, pixels, *self.lay_out(text, text == 0), method="everything"))

    def pairs(self, batch: Batch) -> Rows:
        """The rows that are learned from.

        Raises:
          ValueError: other parts than `pairs`, or rows without images.
        """
        rows = only_part(batch, PAIRS, type(self).__name__)
        if "image" not in rows:
            raise ValueError(f"{type(self).__name__} learns from pairs, and these rows have no image")
        return rows

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        """Both towers' features; every loss lies across the batch."""
        rows = self.pairs(batch)
        streams = {"dropout": rngs} if train else {}
        text = self.lay_out(rows["text"], rows["text_mask"])
        weight = pair_weight(rows)
        return (
            {
                "image": {
                    "features": self.apply(params, "image", rows["image"], rngs=streams, extra=extra),
                    "weight": weight,
                },
                "text": {"features": self.apply(params, "text", *text, rngs=streams), "weight": weight},
            },
            {},
            {},
        )

    def with_scale(self, params: Params, terms: Terms, aux: Aux) -> tuple[Terms, Aux]:
        """Add the scale of logits to the measurements: (terms, aux)."""
        return terms, {**aux, **{f"logit_{k}": Term(v, 1.0) for k, v in self.apply(params, "scale").items()}}

    def capabilities(self):
        return {
            "embed_image": self.embed_image,
            "embed_text": self.embed_text,
            "similarity": self.similarity,
            "logit_scale": lambda params, extra: self.apply(params, "scale")["scale"],
            "features": self.features,
            "pair_features": self.pair_features,
        }

    def embed_image(self, params: Params, extra: Extra, batch: Rows):
        """Images in the shared space: [B,E], unit vectors (or what `similarity` takes in their place), fp32."""
        return self.apply(params, "image", batch["image"], extra=extra)

    def embed_text(self, params: Params, extra: Extra, batch: Rows):
        """Texts in the shared space: [B,E], unit vectors, fp32. Pieces, one EOS, padding; T is the run's text length."""
        return self.apply(params, "text", *self.lay_out(batch["text"], batch["text_mask"]))

    def similarity(self, params: Params, extra: Extra, images: jax.Array, texts: jax.Array):
        """How alike embedded images [r,E] and embedded texts [c,E] are, the higher the more: cosines [r,c]."""
        return jnp.einsum("rE,cE->rc", images, texts, precision=jax.lax.Precision.HIGHEST)

    def features(self, params: Params, extra: Extra, batch: Rows):
        """Image features [B,D] fp32 for probing: before the projection."""
        pooled = self.apply(params, "pooled", batch["image"], extra=extra)
        return pooled.astype(statistics_dtype(pooled.dtype))

    def pair_features(self, params: Params, extra: Extra, batch: Rows):
        """Features [B,3E] fp32 of an image with a text, for probing: both vectors and their product."""
        image, text = self.embed_image(params, extra, batch), self.embed_text(params, extra, batch)
        return jnp.concatenate([image, text, image * text], axis=-1)

    def adapt(self, params: Params, target: Params):
        """Image positions resized as a grid; of text positions those learned are kept, and fresh ones come after them."""
        out = {**params, **{k: dict(params[k]) for k in ("image_tower", "text_tower") if k in params}}
        if "position" in out.get("image_tower", {}):
            table, wanted = params["image_tower"]["position"], target["image_tower"]["position"].shape
            if table.shape != wanted:
                grid = self.image_grid
                out["image_tower"]["position"] = resize_positions(table, grid, wanted[0] - math.prod(grid))
        if "position" in out.get("text_tower", {}):
            learned = params["text_tower"]["position"]
            out["text_tower"]["position"] = fit_positions(learned, target["text_tower"]["position"])
        return out

"""Classifiers of images: what networks that give an image one vector, and a list of answers logits, have in common."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.parts import PAIRS, only_part
from simvlm_jax.core.schema import Count, Rate, Sides
from simvlm_jax.core.types import Array, Batch, Extra, Params, Rngs, Rows, sides_of
from simvlm_jax.families.class_head import class_terms
from simvlm_jax.families.dual_encoder import unit
from simvlm_jax.families.network import NetworkModel
from simvlm_jax.nn.sizes import Compute, statistics_dtype

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pixels in [0, 1]."""
Channels = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class ImageClassifier(NetworkModel):
    """A network of images with a head.

    A model of this kind gives its SIZES (records with `mean` and `deviation` of pixels in [0, 1]) and its network, which has the
    methods `pooled(pixels)` -> [B,D], `logits(pixels)` -> [B,A] fp32, and `everything(pixels)`, to make parameters.

    Args:
      image_size: pixels a side, or rows and columns of pixels.
      size: a row of SIZES, or its name.
      classes: answers of the head, 0 for none.
      dropout, drop_path: of the blocks.
      compute: dtype, remat, scan.
    """

    image_size: Sides
    size: Any = "tiny"
    classes: Count = 0
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    compute: Compute = Compute()

    def init(self, rng: Array, batch: Batch):
        pixels = np.zeros((1, 1, *sides_of(self.image_size), 3), np.uint8)
        return self.made(self.network.init(rng, pixels, method="everything"))

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        rows = only_part(batch, PAIRS, type(self).__name__)
        if "image" not in rows or not ("label" in rows or "scores" in rows):
            raise ValueError(
                f"{type(self).__name__} learns from images with a label; keep `image` and `label` in "
                "config.data.parts.pairs.transforms"
            )
        self._check_head()
        streams = {"dropout": rngs} if train else {}
        return {}, *class_terms(self.apply(params, "logits", rows["image"], rngs=streams, extra=extra), rows)

    def _check_head(self) -> None:
        if not self.classes:
            raise ValueError(f"{type(self).__name__} has no head to classify with; set config.data.labels.size")

    def capabilities(self):
        able = {"embed_image": self.embed_image, "similarity": self.similarity, "features": self.features}
        return {**able, "classify": self.classify} if self.classes else able

    def classify(self, params: Params, extra: Extra, batch: Rows):
        """Logits [B,A] fp32 of the head."""
        self._check_head()
        return self.apply(params, "logits", batch["image"], extra=extra)

    def features(self, params: Params, extra: Extra, batch: Rows):
        """Image features [B,D] fp32 for probing: what the head reads."""
        pooled = self.apply(params, "pooled", batch["image"], extra=extra)
        return pooled.astype(statistics_dtype(pooled.dtype))

    def embed_image(self, params: Params, extra: Extra, batch: Rows):
        """Images as unit vectors [B,D] fp32."""
        return unit(self.features(params, extra, batch))

    def similarity(self, params: Params, extra: Extra, first: jax.Array, second: jax.Array):
        """Cosines [r,c] of embedded images [r,D] and [c,D]."""
        return jnp.einsum("rE,cE->rc", first, second, precision=jax.lax.Precision.HIGHEST)


def channels(values: Sequence[float]) -> Channels:
    """Three numbers, one a channel.

    Raises:
      ValueError: there are not three.
    """
    if len(values) != 3:
        raise ValueError(f"{values} are not three numbers, one a channel")
    return float(values[0]), float(values[1]), float(values[2])

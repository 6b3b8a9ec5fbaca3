"""A model that reads no text: the mean colour of an image, mapped linearly to answers."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import optax

from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import BaseModel, Term


@buildable("model")
@dataclasses.dataclass(frozen=True)
class ColourClassifier(BaseModel):
    """`classes` answers from the images [B,M,Y,X,C] of the part `pairs`."""

    classes: int

    def init(self, rng, batch):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.3), ("C", "A"))
        return {"kernel": init(rng, (3, self.classes), jnp.float32)}, {}

    def per_example(self, params, extra, batch, *, rngs, step, train):
        rows = batch["pairs"]
        colour = rows["image"].astype(jnp.float32).mean((1, 2, 3)) / 255
        losses = optax.softmax_cross_entropy_with_integer_labels(colour @ params["kernel"], rows["label"])
        return {}, {"label": Term((losses * rows["weight"]).sum(), rows["weight"].sum())}, {}

"""A model from another folder: patches and words in one space, drawn to a slow copy of itself (tests/test_promise.py).

Images [B,1,Y,X,C] and texts of T pieces become unit vectors [B,E]; those of texts are also compared with a momentum copy's of the
images, and with a queue of N of them, which both live in `extra`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import Positive, Side
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import BaseModel, Term, Vocabulary


def unit(x: jax.Array) -> jax.Array:
    """Vectors [...,E] of length 1."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


@buildable("model")
@dataclasses.dataclass(frozen=True)
class Drift(BaseModel):
    """A linear map of mean pixels, a mean of word vectors, and `slots` past images in a queue."""

    vocabulary: Vocabulary
    image_size: Side
    width: Positive = 16
    slots: Positive = 24

    def init(self, rng, batch):
        def made(key, letters, *shape):
            return nn.with_logical_partitioning(nn.initializers.normal(0.5), letters)(key, shape)

        image, text, old = jax.random.split(rng, 3)
        params = {
            "image": {"kernel": made(image, ("C", "D"), 3, self.width)},
            "text": {"embedding": made(text, ("V", "D"), self.vocabulary.size, self.width)},
        }
        extra = {
            "slow": {"image": {"kernel": jnp.zeros((3, self.width))}},
            "queue": made(old, ("N", "E"), self.slots, self.width),
            "pushed": jnp.zeros((), jnp.int32),
        }
        return params, extra

    def begin(self, params, extra):
        return {**extra, "slow": {"image": params["image"]}}

    def per_example(self, params, extra, batch, *, rngs, step, train):
        rows = batch["pairs"]
        features = {
            "text": self.embed_text(params, extra, rows),
            "image": self.embed_image(params, extra, rows),
            "slow": jax.lax.stop_gradient(self.embed_image(extra["slow"], extra, rows)),
        }
        return {**features, "weight": rows["weight"]}, {}, {}

    def across_batch(self, params, extra, features, *, step, train):
        seen = jnp.concatenate([features["image"], features["slow"], unit(extra["queue"])])
        scores = jax.nn.log_softmax(5.0 * features["text"] @ seen.T, axis=-1)
        own = jnp.logaddexp(scores.diagonal(), scores[:, len(scores) :].diagonal())
        return {"contrastive": Term(-(own * features["weight"]).sum(), features["weight"].sum())}, {}

    def after_update(self, params, extra, features, *, step, rng):
        slow = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, extra["slow"], {"image": params["image"]})
        queue = jnp.concatenate([extra["queue"], features["slow"]])[-self.slots :]
        return {"slow": slow, "queue": queue, "pushed": extra["pushed"] + len(features["slow"])}

    def capabilities(self):
        return {
            "embed_image": self.embed_image,
            "embed_text": self.embed_text,
            "similarity": lambda params, extra, images, texts: jnp.einsum("rE,cE->rc", images, texts),
        }

    def embed_image(self, params, extra, batch):
        """Unit vectors [B,E] of images."""
        return unit((batch["image"][:, 0].astype(jnp.float32) / 255 - 0.5).mean((1, 2)) @ params["image"]["kernel"])

    def embed_text(self, params, extra, batch):
        """Unit vectors [B,E] of texts."""
        return unit((params["text"]["embedding"][batch["text"]] * batch["text_mask"][..., None]).sum(1))

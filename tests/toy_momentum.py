"""A model whose loss needs state beside its parameters: a momentum encoder and a queue of its features (MoCo, arXiv 1911.05722).

Rows {"x": [B,D], "y": [B,D], "weight": [B]}. The encoder's features of x are compared with the momentum encoder's of y, with
those of the other rows, and with the N features in the queue.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.core.types import BaseModel, Term

D, E = 16, 8


def unit(x):
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Plain(BaseModel):
    """The encoder alone, with a loss of its own."""

    def init(self, rng, batch):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.3, jnp.result_type(float)), ("D", "F"))
        return {"encoder": {"kernel": init(rng, (D, E), jnp.result_type(float))}}, {}

    def encode(self, params, x):
        return unit(constrain(x @ in_use(params["encoder"]["kernel"], ("D", "F")), "BF"))

    def per_example(self, params, extra, batch, *, rngs, step, train):
        batch = batch["pairs"]
        loss = jnp.square(self.encode(params, batch["x"]) - self.encode(params, batch["y"])).sum(-1)
        return {}, {"alike": Term((loss * batch["weight"]).sum(), batch["weight"].sum())}, {}


@dataclasses.dataclass(frozen=True)
class ToyMomentum(Plain):
    """With a momentum encoder and a queue of N features in `extra`.

    The momentum encoder has its letters by its name, which ends as the encoder's does, the queue has its own.
    """

    slots: int = 48
    momentum: float = 0.9

    def init(self, rng, batch):
        keys = jax.random.split(rng, 3)
        params, _ = super().init(keys[0], batch)
        queue = nn.with_logical_partitioning(lambda key, shape: unit(jax.random.normal(key, shape)), ("N", "E"))
        elsewhere = nn.unbox(super().init(keys[1], batch)[0])  # which `begin` is to replace
        extra = {"target": elsewhere, "queue": queue(keys[2], (self.slots, E)), "next": jnp.zeros((), jnp.int32)}
        return params, extra

    def begin(self, params, extra):
        return {**extra, "target": params}

    def per_example(self, params, extra, batch, *, rngs, step, train):
        batch = batch["pairs"]
        query = self.encode(params, batch["x"])
        key = jax.lax.stop_gradient(self.encode(extra["target"], batch["y"]))
        distance = jnp.square(query - key).sum(-1) * batch["weight"]
        terms = {"distance": Term(distance.sum(), batch["weight"].sum(), 0.5)}
        return {"query": query, "key": key, "weight": batch["weight"]}, terms, {}

    def across_batch(self, params, extra, features, *, step, train):
        others = jnp.concatenate([features["key"], extra["queue"]])
        scores = jax.nn.log_softmax(features["query"] @ others.T / 0.2).diagonal()
        return {"contrast": Term(-(scores * features["weight"]).sum(), features["weight"].sum())}, {}

    def after_update(self, params, extra, features, *, step, rng):
        target = jax.tree.map(lambda old, new: old + (1 - self.momentum) * (new - old), extra["target"], params)
        places = (extra["next"] + jnp.arange(len(features["key"]))) % self.slots
        queue = extra["queue"].at[places].set(features["key"])
        return {"target": target, "queue": queue, "next": (extra["next"] + len(features["key"])) % self.slots}


@dataclasses.dataclass(frozen=True)
class Normalised(Plain):
    """The encoder with its outputs normalised over the rows that stand beside each other, as batch norm does."""

    mixes_rows: ClassVar[bool] = True

    def init(self, rng, batch):
        return super().init(rng, batch)[0], {"mean": jnp.zeros(E, jnp.result_type(float))}

    def per_example(self, params, extra, batch, *, rngs, step, train):
        batch = batch["pairs"]
        x, y = (batch[k] @ params["encoder"]["kernel"] for k in ("x", "y"))
        mean = x.mean(0)
        loss = jnp.square((x - mean) / x.std(0) - y).sum(-1) * batch["weight"]
        return {"mean": mean[None]}, {"alike": Term(loss.sum(), batch["weight"].sum())}, {}

    def after_update(self, params, extra, features, *, step, rng):
        """Statistics come as a row a micro-batch."""
        return {"mean": 0.9 * extra["mean"] + 0.1 * features["mean"].mean(0)}


def toy_batch(step: int, rows: int = 16):
    """Rows of a step, of which some are padding."""
    rng = np.random.default_rng(step)
    x, noise = rng.normal(size=(2, rows, D))
    weight = (np.arange(rows) % 5 > 0).astype(float)
    found = {"x": x, "y": x + 0.3 * noise, "weight": weight}
    return {"pairs": {k: v.astype(jnp.result_type(float)) for k, v in found.items()}}


@dataclasses.dataclass
class Part:
    rows: int


class ToyPipeline:
    """What the loop asks of a pipeline, over `toy_batch`."""

    share = 1.0

    def __init__(self):
        self.parts = [Part(16)]

    def batch(self, step):
        return toy_batch(step)

    def iterate(self, step, steps, threads):
        return (toy_batch(n) for n in range(step, steps))

    def keys(self, step):
        return []

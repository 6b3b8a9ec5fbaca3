"""Two towers contrasted with slow copies of themselves: momentum encoders, queues of their features, soft targets.

ALBEF (arXiv 2107.07651, section 3.2), BLIP (arXiv 2201.12086, section 3.2) and what follows them. The copies and the queues are
`extra`: they are saved, sharded and restored as parameters are.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import Count, NotNegative, Share
from simvlm_jax.core.types import Array, Aux, Extra, Features, Params, Term, Terms
from simvlm_jax.families.dual_encoder import DualEncoder, unit
from simvlm_jax.objectives.contrastive import softmax_pairs
from simvlm_jax.objectives.momentum import columns, enqueue, soft_contrast


@dataclasses.dataclass(frozen=True)
class MomentumContrast(DualEncoder):
    """A dual encoder with momentum encoders.

    A model of this kind says which of its parameters are copied (`followed`) and the width E of its vectors (`vector_width`); its
    `per_example` gives the features {"image", "text": {"online", "momentum" if it `follows`} [B,E], "weight" [B], and "id" [B] int32
    if rows have one}.

    Args:
      contrastive_weight: of the loss; at 0 there are no copies and no queues.
      queue: N, features of each side that are remembered; at least a batch. 0: no copies and no queues, but the batch alone, as
        CLIP has it; that is what imported weights begin with.
      momentum: of the copies, in each step.
      soft, ramp: share of the copies' own softmax in the targets, which it reaches after `ramp` steps.
      same_image: rows with the same `id` are each other's positives, in the batch and in the queues.
    """

    contrastive_weight: NotNegative = 1.0
    queue: Count = 57_600
    momentum: Share = 0.995
    soft: Share = 0.4
    ramp: Count = 0
    same_image: bool = False

    @property
    def follows(self) -> bool:
        """Whether there are copies and queues."""
        return bool(self.contrastive_weight and self.queue)

    @property
    def vector_width(self) -> int:
        raise NotImplementedError

    def followed(self, params: Params) -> Params:
        """Those parameters of which there is a copy, under the same names."""
        raise NotImplementedError

    def remembered(self, features: Features) -> dict[str, Any]:
        """What of a batch goes into the queues, [B,...] by their names."""
        rows = {k: features[k]["momentum"] for k in ("image", "text")}
        return {**rows, **({"id": features["id"]} if self.same_image else {})}

    def state(self, rng: Array, params: Params) -> Extra:
        """Copies, and queues of random unit vectors, which the first batches replace."""
        if not self.follows:
            return {}
        box = nn.with_logical_partitioning(lambda key, shape: unit(jax.random.normal(key, shape)), ("N", "E"))
        shape, keys = (self.queue, self.vector_width), jax.random.split(rng)
        queues: dict[str, Any] = {"image": box(keys[0], shape), "text": box(keys[1], shape)}
        if self.same_image:
            queues["id"] = jnp.full((self.queue,), -1, jnp.int32)
        copies = jax.tree.map(jnp.copy, self.followed(nn.unbox(params)))
        return {"momentum": copies, "queue": queues, "next": jnp.zeros((), jnp.int32)}

    def begin(self, params: Params, extra: Extra):
        return {**extra, "momentum": self.followed(params)} if extra else extra

    def after_update(self, params: Params, extra: Extra, features: Features, *, step: Array, rng: Array):
        if not extra:
            return extra
        move = lambda old, new: old + (1 - self.momentum) * (new - old)  # noqa: E731
        queues, place = enqueue(extra["queue"], extra["next"], self.remembered(features), features["weight"])
        momentum = jax.tree.map(move, extra["momentum"], self.followed(params))
        return {"momentum": momentum, "queue": queues, "next": place}

    def contrast(self, params: Params, extra: Extra, features: Features, step: Array) -> tuple[Terms, Aux]:
        """(terms, aux) of the contrast over the batch and the queues, the mean of both directions."""
        own, weight = self.apply(params, "scale"), features["weight"]
        if not self.queue:
            return self._in_batch(params, own, features)
        share = self.soft * (jnp.minimum(step / self.ramp, 1.0) if self.ramp else 1.0)
        total, count, aux = 0.0, weight.sum(), {}
        for one, other in (("image", "text"), ("text", "image")):
            among = columns(
                features[other]["momentum"], extra["queue"][other], weight, self._positive(features, extra["queue"])
            )
            sides = features[one]["online"], features[one]["momentum"]
            loss, right = soft_contrast(own["scale"], *sides, among, weight, share)
            total, aux[f"{one}_accuracy"] = total + loss, Term(right, (weight > 0).sum())
        return self.with_scale(params, {"contrastive": Term(total, count, self.contrastive_weight / 2)}, aux)

    def _in_batch(self, params: Params, own: Any, features: Features) -> tuple[Terms, Aux]:
        more = {"weight": features["weight"], **({"group": features["id"]} if self.same_image else {})}
        found = softmax_pairs(own, *({"features": features[k]["online"], **more} for k in ("image", "text")))
        aux = {f"{k}_accuracy": Term(getattr(found, f"{k}_right"), found.count) for k in ("image", "text")}
        terms = {"contrastive": Term(found.loss, found.count, self.contrastive_weight / 2)}
        return self.with_scale(params, terms, aux)

    def _positive(self, features: Features, queues: Any) -> jax.Array | None:
        """Which columns [B,B+N] are of a row's own image, if ids are to say so."""
        if not self.same_image:
            return None
        if "id" not in features:
            raise ValueError(f"{type(self).__name__} with same_image=True needs rows with an `id`, and these have none")
        own, every = features["id"], jnp.concatenate([features["id"], queues["id"]])
        return own[:, None] == every[None]

    def alike(self, params: Params, features: Features, one: str, other: str, queue: Array | None = None) -> jax.Array:
        """Scaled cosines [B,B] of the rows' features of one side with those of the other, of the momentum encoder if there is one.

        queue [N,E]: more of the other side, [B,B+N].
        """
        scale, columns = self.apply(params, "scale")["scale"], features[other]
        columns = columns.get("momentum", columns["online"])
        columns = columns if queue is None else jnp.concatenate([columns, queue.astype(columns.dtype)])
        return scale * jnp.einsum("rE,cE->rc", features[one]["online"], columns, precision=jax.lax.Precision.HIGHEST)

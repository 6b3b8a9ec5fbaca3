"""Checks of what a model's gradient and forward pass are traced to; nothing of a network is computed."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.types import Batch
from simvlm_jax.nn.kernels import dense
from simvlm_jax.nn.masks import Mask
from tests.nn.kinds import check_kind

SUMS = ("reduce_sum", "cumsum", "scatter-add", "reduce_window_sum")


def gradient_sums_nothing_in_bfloat16(model: Any, batch: Batch):
    """No sum over rows is written in bfloat16, for no compiler is relied on to widen one. model: of that dtype."""
    params, extra = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))

    def loss(params, extra):
        features, own, _ = model.per_example(params, extra, batch, rngs=jax.random.key(1), step=0, train=True)
        between, _ = model.across_batch(params, extra, features, step=0, train=True)
        return sum(t.weight * t.sum / jnp.maximum(t.count, 1) for t in {**own, **between}.values())

    found = list(_equations(jax.make_jaxpr(jax.grad(loss))(params, extra).jaxpr))
    narrow = [e for e in found if e.primitive.name in SUMS and e.invars[0].aval.dtype == jnp.bfloat16]
    narrow = [e for e in narrow if not _picks(e)]
    assert any(e.primitive.name == "reduce_sum" for e in found)
    assert any(v.aval.dtype == jnp.bfloat16 for e in found for v in e.outvars)  # it is the network of that dtype
    assert not narrow, [str(e)[:200] for e in narrow[:3]]


def _picks(e):
    """Whether a scatter puts one value a row into zeros, as the gradient of picking a token does: nothing is summed."""
    return e.primitive.name == "scatter-add" and e.params["dimension_numbers"].operand_batching_dims


def _equations(jaxpr):
    for e in jaxpr.eqns:
        yield e
        for value in e.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def masks_are_of_their_kinds(model: Any, batches: list[Batch], monkeypatch):
    """The masks that attention gets in a loss are of the kinds they say."""
    for masks in masks_in_losses(model, batches, monkeypatch):
        for mask in masks:
            check_kind(mask)
        assert masks and any(mask.kind.order != "any" for mask in masks)


def masks_in_losses(model: Any, batches: list[Batch], monkeypatch) -> list[list[Mask]]:
    """The masks that attention gets in the loss of each batch, with their values."""
    found = []
    monkeypatch.setattr(
        "simvlm_jax.nn.attention.attend",
        lambda q, k, v, mask, bias: (found.append(mask), dense(q, k, v, mask, bias)[0])[1],
    )
    made = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batches[0]))
    params, extra = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), made)

    def masks(params, batch):
        found.clear()
        model.per_example(params, extra, batch, rngs=jax.random.key(0), step=0, train=False)
        return [mask for mask in found if mask is not None]

    return [jax.jit(masks)(params, batch) for batch in batches]


def without_some_images(batch: Batch) -> Batch:
    """Every other row of the pairs has no image."""
    rows = batch["pairs"]
    absent = np.repeat(np.arange(len(rows["weight"]))[:, None] % 2 == 0, rows["image"].shape[1], 1)
    return {**batch, "pairs": {**rows, "image_mask": absent}}

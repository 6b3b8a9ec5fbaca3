"""The one train step, for every model.

The gradient is that of `sum over terms of weight * sum / max(count, 1)`, with counts over the whole global batch. With
`accumulate` > 1 it is still exactly that: features and counts of all micro-batches come first, without gradient, then
the gradient of `across_batch`, then the vjp of `per_example` with the same rngs (GradCache, arXiv 2101.06983).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from simvlm_jax.core.parts import parts_of
from simvlm_jax.core.platform import platform
from simvlm_jax.core.terms import check_terms, join_halves, total_loss
from simvlm_jax.core.trees import check_same_shapes, merge, partition, path_name
from simvlm_jax.core.types import Batch, Model, Term, TrainState


def split(batch: Batch, parts: int) -> Batch:
    """[B,...] -> [parts, B/parts, ...]; micro-batch i takes every `parts`-th row, so device shards stay whole."""

    def cut(x):
        if x.shape[0] % parts:
            raise ValueError(
                f"{x.shape[0]} rows do not divide into {parts} micro-batches; mend config.train.accumulate"
            )
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def make_train_step(
    model: Model, tx: optax.GradientTransformation, flags: dict, accumulate: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """`(state, batch) -> (state, measurements)`. Measurements are Terms under their names, `loss` and `grad_norm`.

    Raises, while it is traced:
      TypeError: a term or measurement is no Term.
      ValueError: two of them share a name, a feature has no rows, or `after_update` changes a shape or dtype of `extra`.
    """
    name = type(model).__name__

    def train_step(state: TrainState, batch: Batch):
        step_rng = jax.random.fold_in(state.rng, state.step)
        trainable, frozen = partition(state.params, flags)
        kwargs = {"step": state.step, "train": True}

        def per_example(trainable, micro, rng):
            found = model.per_example(merge(trainable, frozen), state.extra, micro, rngs=rng, **kwargs)
            return _checked_half(found, f"{name}.per_example")

        def across(trainable, features):
            terms, aux = model.across_batch(merge(trainable, frozen), state.extra, features, **kwargs)
            return _checked_half((features, terms, aux), f"{name}.across_batch")[1:]

        if accumulate == 1:

            def whole(trainable):
                features, terms, aux = per_example(trainable, batch, step_rng)
                terms, aux = join_halves((terms, aux), across(trainable, features), name)
                return total_loss(terms), (features, terms, aux)

            (loss, (features, terms, aux)), grads = jax.value_and_grad(whole, has_aux=True)(trainable)
        else:
            micros, rngs = split(batch, accumulate), jax.random.split(step_rng, accumulate)
            loss, features, first, second, grads = accumulated(per_example, across, trainable, micros, rngs)
            terms, aux = join_halves(first, second, name)
        updates, opt = tx.update(grads, state.opt, trainable)
        params = merge(optax.apply_updates(trainable, updates), frozen)
        after_rng = jax.random.fold_in(step_rng, _AFTER)
        extra = model.after_update(params, state.extra, features, step=state.step, rng=after_rng)
        check_same_shapes(extra, state.extra, f"{name}.after_update changes the shapes of extra")
        measured = {**terms, **aux, **fingerprint(batch), "loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt, extra, state.rng), measured

    return train_step


_AFTER = 2**32 - 1
"""Folded into a step's key for `after_update`, so that it draws nothing that a forward pass has drawn."""


def _checked_half(found: tuple[Any, Any, Any], where: str) -> tuple[Any, Any, Any]:
    """What a half returns, (features, terms, aux), whose terms are Terms and whose features have rows."""
    features, terms, aux = found
    check_terms({**terms, **aux}, where)
    if bare := [path_name(p) for p, x in jax.tree_util.tree_leaves_with_path(features) if not jnp.ndim(x)]:
        raise ValueError(
            f"{where} returns features without rows, {', '.join(bare)}; their first axis must be the batch's"
        )
    return found


def fingerprint(batch: Batch) -> dict[str, jax.Array]:
    """`samples`: a checksum of which samples a batch holds and in which order, so that runs can be compared by it."""
    parts = [rows["id"] for _, rows in parts_of(batch) if "id" in rows]
    total = jnp.zeros((), jnp.uint32)
    for ids in parts:
        place = jnp.arange(1, ids.shape[0] + 1, dtype=jnp.uint32) * jnp.uint32(2654435761)
        mixed = (ids.astype(jnp.uint32) + place) * (place | 1)
        total = total * jnp.uint32(31) + (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)
    return {"samples": total} if parts else {}


def accumulated(per_example, across, trainable, micros, rngs, unroll: bool | None = None):
    """The gradient of a batch cut into micro-batches [parts, B/parts, ...], equal to the whole batch's.

    Equal, that is, where `per_example` draws nothing (with dropout each micro-batch has a mask of its own) and looks at no
    other row (see `Model.mixes_rows`).

    unroll: by default on CPU, where XLA runs convolutions in a loop many times slower (benchmarks/accumulate.md).

    Returns:
      (loss, features [B,...] in the whole batch's order, (terms, aux) of `per_example`, (terms, aux) of `across`, gradients).
    """
    unroll = platform() == "cpu" if unroll is None else unroll

    def look(inputs):  # what every micro-batch must know of the others; for a model without features the counts alone
        features, terms, _ = per_example(trainable, *inputs)
        return features, {k: (t.count, t.weight) for k, t in terms.items()}

    _, (features, seen) = jax.lax.scan(lambda _, inputs: (None, look(inputs)), None, (micros, rngs), unroll=unroll)
    counts = {k: count.sum() for k, (count, _) in seen.items()}
    # undoes `split`: rows lie over the devices as in the whole batch
    joined = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), features)
    leaves, shape = jax.tree.flatten(joined)
    # the others are labels and the like
    real = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def second_half(trainable, reals):
        found = [dict(zip(real, reals, strict=True)).get(i, x) for i, x in enumerate(leaves)]
        more, more_aux = across(trainable, jax.tree.unflatten(shape, found))
        return total_loss(more), (more, more_aux)

    (loss, second), (grads, pulls) = jax.value_and_grad(second_half, (0, 1), has_aux=True)(
        trainable, [leaves[i] for i in real]
    )
    parts = jax.tree.leaves(micros)[0].shape[0]
    pulls = [pull.reshape(-1, parts, *pull.shape[1:]).swapaxes(0, 1) for pull in pulls]

    def first_half(grads, inputs):
        micro, rng, pull = inputs

        def scalar(trainable):
            features, own, aux = per_example(trainable, micro, rng)
            share = {k: Term(t.sum, counts[k], t.weight) for k, t in own.items()}
            made = jax.tree.leaves(features)
            pulled = [(made[i] * p).sum() for i, p in zip(real, pull, strict=True)]
            return total_loss(share) + sum(pulled, jnp.zeros(())), (own, aux)

        more, measured = jax.grad(scalar, has_aux=True)(trainable)
        return jax.tree.map(jnp.add, grads, more), measured

    grads, (own, aux) = jax.lax.scan(first_half, grads, (micros, rngs, pulls), unroll=unroll)
    terms = {k: Term(t.sum.sum(), t.count.sum(), seen[k][1].mean()) for k, t in own.items()}
    aux = {k: Term(t.sum.sum(), t.count.sum()) for k, t in aux.items()}
    return loss + total_loss(terms), joined, (terms, aux), second, grads

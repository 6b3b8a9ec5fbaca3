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

from simvlm_jax.core.layout import platform
from simvlm_jax.core.types import Batch, Model, Term, Terms, TrainState


def total_loss(terms: Terms) -> jax.Array:
    """The loss of summed terms."""
    return sum((t.weight * t.sum / jnp.maximum(t.count, 1) for t in terms.values()), jnp.zeros(()))


def split(batch: Batch, parts: int) -> Batch:
    """[B,...] -> [parts, B/parts, ...]; micro-batch i takes every `parts`-th row, so device shards stay whole."""

    def cut(x):
        if x.shape[0] % parts:
            raise ValueError(
                f"{x.shape[0]} rows do not divide into {parts} micro-batches; mend config.train.accumulate"
            )
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def merge(trainable: Any, frozen: Any) -> Any:
    """One nested dict of two with different leaves."""
    out = dict(frozen)
    for k, v in trainable.items():
        out[k] = merge(v, out[k]) if isinstance(v, dict) and k in out else v
    return out


def partition(params: dict, flags: dict) -> tuple[dict, dict]:
    """(trainable, frozen): nested dicts of the leaves whose flag is true, and of the others."""
    kept, rest = {}, {}
    for k, v in params.items():
        if isinstance(v, dict):
            a, b = partition(v, flags[k])
            kept.update({k: a} if a else {})
            rest.update({k: b} if b else {})
        else:
            (kept if flags[k] else rest)[k] = v
    return kept, rest


def make_train_step(
    model: Model, tx: optax.GradientTransformation, flags: dict, accumulate: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """`(state, batch) -> (state, measurements)`. Measurements are Terms under their names, `loss` and `grad_norm`."""

    def train_step(state: TrainState, batch: Batch):
        step_rng = jax.random.fold_in(state.rng, state.step)
        trainable, frozen = partition(state.params, flags)
        kwargs = {"step": state.step, "train": True}

        def per_example(trainable, micro, rng):
            return model.per_example(merge(trainable, frozen), state.extra, micro, rngs=rng, **kwargs)

        def across(trainable, features):
            return model.across_batch(merge(trainable, frozen), state.extra, features, **kwargs)

        if accumulate == 1:

            def whole(trainable):
                features, terms, aux = per_example(trainable, batch, step_rng)
                more, more_aux = across(trainable, features)
                terms = {**terms, **more}
                return total_loss(terms), (terms, {**aux, **more_aux})

            (loss, (terms, aux)), grads = jax.value_and_grad(whole, has_aux=True)(trainable)
        else:
            loss, terms, aux, grads = accumulated(
                per_example, across, trainable, split(batch, accumulate), jax.random.split(step_rng, accumulate)
            )
        updates, opt = tx.update(grads, state.opt, trainable)
        params = merge(optax.apply_updates(trainable, updates), frozen)
        extra = model.after_update(params, state.extra, step=state.step, rng=step_rng)
        measured = {**terms, **aux, **fingerprint(batch), "loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt, extra, state.rng), measured

    return train_step


def fingerprint(batch: Batch) -> dict[str, jax.Array]:
    """`samples`: a checksum of which samples a batch holds and in which order, so that runs can be compared by it."""
    parts = [group["id"] for group in (batch, batch.get("documents", {})) if "id" in group]
    total = jnp.zeros((), jnp.uint32)
    for ids in parts:
        place = jnp.arange(1, ids.shape[0] + 1, dtype=jnp.uint32) * jnp.uint32(2654435761)
        mixed = (ids.astype(jnp.uint32) + place) * (place | 1)
        total = total * jnp.uint32(31) + (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)
    return {"samples": total} if parts else {}


def accumulated(per_example, across, trainable, micros, rngs, unroll: bool | None = None):
    """(loss, terms, aux, gradients) of a batch cut into micro-batches [N, B/N, ...], equal to the whole batch's.

    Equal, that is, where `per_example` draws nothing: with dropout each micro-batch has a mask of its own.

    unroll: by default on CPU, where XLA runs convolutions in a loop many times slower (benchmarks/accumulate.md).
    """
    unroll = platform() == "cpu" if unroll is None else unroll

    def look(inputs):  # what every micro-batch must know of the others; for a model without features the counts alone
        features, terms, _ = per_example(trainable, *inputs)
        return features, {k: (t.count, t.weight) for k, t in terms.items()}

    _, (features, seen) = jax.lax.scan(lambda _, inputs: (None, look(inputs)), None, (micros, rngs), unroll=unroll)
    counts = {k: count.sum() for k, (count, _) in seen.items()}
    # undoes `split`: rows lie over the devices as in the whole batch
    leaves, shape = jax.tree.flatten(jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), features))
    real = [
        i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)
    ]  # the others are labels and the like

    def second_half(trainable, reals):
        joined = jax.tree.unflatten(
            shape, [dict(zip(real, reals, strict=True)).get(i, x) for i, x in enumerate(leaves)]
        )
        more, more_aux = across(trainable, joined)
        return total_loss(more), (more, more_aux)

    (loss, (more, more_aux)), (grads, pulls) = jax.value_and_grad(second_half, (0, 1), has_aux=True)(
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
    return loss + total_loss(terms), {**terms, **more}, {**aux, **more_aux}, grads

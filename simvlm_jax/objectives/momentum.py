"""Contrast with a momentum encoder and queues of its features (MoCo, arXiv 1911.05722; ALBEF, arXiv 2107.07651, section 3.2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simvlm_jax.objectives.contrastive import HIDDEN


class Columns(NamedTuple):
    """What one side of a batch is compared with: the other side's momentum features of the batch, then of a queue.

    features [B+N,E]: unit vectors, without gradient. there [B+N] bool: False for padding rows. positive [B,B+N]: which are a
    row's own, in equal shares.
    """

    features: jax.Array
    there: jax.Array
    positive: jax.Array


def columns(momentum_BE: jax.Array, queue_NE: jax.Array, weight_B: jax.Array, positive: jax.Array | None) -> Columns:
    """A batch of B rows before N of a queue. positive [B,B+N] bool: by default each row's own column."""
    B, N = len(momentum_BE), len(queue_NE)
    features = jax.lax.stop_gradient(jnp.concatenate([momentum_BE, queue_NE.astype(momentum_BE.dtype)]))
    there = jnp.concatenate([weight_B > 0, jnp.ones(N, bool)])
    return Columns(features, there, jnp.eye(B, B + N, dtype=bool) if positive is None else positive)


def soft_contrast(
    scale: jax.Array,
    online_BE: jax.Array,
    momentum_BE: jax.Array,
    other: Columns,
    weight_B: jax.Array,
    share: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """(sum of cross-entropies in nats, how many rows find one of their own first), fp32 scalars, of one direction.

    The target of a row is `share` of the momentum encoder's own softmax over all columns, and for the rest its positives
    (ALBEF, eq. 6). scale: the factor of cosines. online, momentum: features of the rows by the trained and the momentum
    encoder, unit vectors. weight_B: 0 for padding.
    """

    def logits(rows: jax.Array, scale: jax.Array) -> jax.Array:
        found = jnp.einsum("rE,cE->rc", rows, other.features, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(other.there, scale * found, HIDDEN)

    own = other.positive & other.there
    hard = own / jnp.maximum(own.sum(1, keepdims=True), 1)
    soft = jax.nn.softmax(logits(momentum_BE, scale), axis=1)
    target = jax.lax.stop_gradient(share * soft + (1 - share) * hard)
    found = logits(online_BE, scale)
    loss = jax.nn.logsumexp(found, axis=1) - (target * found).sum(1)
    right = jnp.where(own, found, HIDDEN).max(1) >= found.max(1)
    real = weight_B > 0
    return jnp.where(real, weight_B * loss, 0).sum(), (real & right).sum()


def enqueue(queues: Any, place: jax.Array, rows: Any, weight_B: jax.Array) -> tuple[Any, jax.Array]:
    """Queues [N,...] in which the rows [B,...] of weight above 0 have taken the oldest places, and the next place to be taken.

    place: of the oldest, int32. rows: as `queues`, of a batch.

    Raises:
      ValueError: a batch is larger than the queue.
    """
    N, B = (len(jax.tree.leaves(tree)[0]) for tree in (queues, rows))
    if B > N:
        raise ValueError(
            f"a batch of {B} rows does not fit a queue of {N}; set a longer queue, or a smaller batch_size"
        )
    real = weight_B > 0
    places = jnp.where(real, (place + jnp.cumsum(real) - 1) % N, N)  # N is nowhere
    put = jax.tree.map(lambda old, new: old.at[places].set(new.astype(old.dtype), mode="drop"), queues, rows)
    return put, ((place + real.sum()) % N).astype(place.dtype)

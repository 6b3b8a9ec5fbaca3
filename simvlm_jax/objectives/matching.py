"""Matching: does a text belong to an image, asked of pairs that are hard to tell apart (ALBEF, arXiv 2107.07651, section 3.2)."""

import jax
import jax.numpy as jnp

FLOOR = 1e-4
"""What is added to every probability of being drawn, so that no negative is out of reach."""


def hard_negatives(
    logits_BB: jax.Array, allowed_BB: jax.Array, seed_B: jax.Array, draw: int = 0
) -> tuple[jax.Array, jax.Array]:
    """A column for each row, drawn by how alike they are: (column [B] int32, whether there is one [B] bool).

    The odds of a column are those of a softmax over the row, plus FLOOR; columns that are not `allowed` are never drawn. A row
    draws from its own seed (uint32) alone, wherever it lies. logits: scaled similarities, of which no gradient is taken. draw:
    a number for each draw from the same seeds.
    """
    odds = jnp.where(allowed_BB, jax.nn.softmax(jax.lax.stop_gradient(logits_BB), axis=1) + FLOOR, 0)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), draw))(seed_B)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits_BB.shape[1:], odds.dtype))(keys)
    return (jnp.log(odds) + noise).argmax(1).astype(jnp.int32), allowed_BB.any(1)


def picked(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows [R,...] of x [B,...] by their numbers [R]; a row's gradient, over all who picked it, is summed in fp32 (or wider)."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x[rows]
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))[rows].astype(x.dtype)


def matching_loss(
    logits_R2: jax.Array, matches_R: jax.Array, weight_R: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sum of weighted cross-entropies in nats, sum of weights, weighted correct guesses), fp32 scalars.

    logits: of "no" and of "yes". matches: bool.
    """
    logits = logits_R2.astype(jnp.promote_types(logits_R2.dtype, jnp.float32))
    odds = logits[:, 1] - logits[:, 0]
    loss = jax.nn.softplus(jnp.where(matches_R, -odds, odds))
    weight = weight_R.astype(loss.dtype)
    right = (odds > 0) == matches_R
    return jnp.where(weight > 0, weight * loss, 0).sum(), weight.sum(), (weight * right).sum()

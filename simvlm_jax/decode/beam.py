"""Beam search with a length penalty, n-best lists and a stop that never changes the answer.

Each row keeps J running hypotheses and the J best finished ones. Of the 2J likeliest continuations, those that end (by EOS,
or because the length is used up) and are among the first J may become finished ones; the first J of the others run on. A
row stops when no running hypothesis, however it goes on, can beat its worst finished one; so stopping is exact, and the
rows of a batch do not touch each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simvlm_jax.core.types import FIXED, Vocabulary
from simvlm_jax.decode.constraints import apply_rules
from simvlm_jax.decode.decoding import Decoding

_NEVER = -1e9
"""The sum of a running hypothesis that cannot be; finite, so that adding to it never makes a NaN."""


def beam_search(
    extend: Callable[[Any, jax.Array], tuple[jax.Array, Any]],
    logits: jax.Array,
    cache: dict[str, Any],
    vocabulary: Vocabulary,
    decoding: Decoding,
    forced: tuple[int, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """Search: (tokens [B,n_best,U] int32, scores [B,n_best] fp32) of each row's best finished hypotheses; -inf: there is none.

    extend: `(cache, tokens [B*J]) -> (logits [B*J,V], cache)`; logits [B,V] and cache, a dict, are those after the prompt. What
    is FIXED in the cache is neither repeated nor gathered: it keeps its B rows. A score
    is log-likelihood / length^length_penalty; repetition rules act on log-probabilities.
    """
    (B, V), J, U, skipped = logits.shape, decoding.beams, decoding.max_length, len(forced)
    if V < 2:
        raise ValueError(f"a beam search needs a vocabulary of 2 pieces or more, not {V}")
    fixed, cache = {k: cache[k] for k in (FIXED,) if k in cache}, {k: v for k, v in cache.items() if k != FIXED}
    cache = jax.tree.map(lambda x: jnp.repeat(x, J, axis=0), cache)
    logits = jnp.repeat(logits, J, axis=0)

    def rows(x, index):
        """x [B,n,...] at index [B,k]."""
        return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)

    def normalise(total, length):
        return total / jnp.maximum(length, 1).astype(jnp.float32) ** decoding.length_penalty

    def unfinished(carry):
        i, _, _, _, _, running, _, finished = carry
        # scores are sums of numbers <= 0: a hypothesis is best at its longest if length helps, else at its shortest
        length = U - skipped if decoding.length_penalty > 0 else jnp.maximum(i + 1 - skipped, 1)
        hope = normalise(running[:, 0], length)
        return (i < U) & (hope > finished[:, -1]).any()

    def select(i, logits, tokens, running, ended, finished):
        """The next pieces [B*J], the hypotheses that they continue [B*J], and the search from then on."""
        scores = jax.nn.log_softmax(logits.astype(jnp.float32))
        scores = apply_rules(scores, tokens.reshape(B * J, U), i, decoding, vocabulary, forced)
        totals = running[:, :, None] + jnp.maximum(scores, _NEVER).reshape(B, J, V)
        best, index = jax.lax.top_k(totals.reshape(B, J * V), 2 * J)
        best = jnp.maximum(best, _NEVER)
        parent, piece = index // V, (index % V).astype(jnp.int32)
        grown = rows(tokens, parent).at[:, :, i].set(piece)

        ends = (piece == vocabulary.eos) | (i == U - 1)
        may_end = ends & (jnp.arange(2 * J) < J) & (best > _NEVER / 2)
        candidates = jnp.where(may_end, normalise(best, i + 1 - skipped), -jnp.inf)
        finished, order = jax.lax.top_k(jnp.concatenate([finished, candidates], axis=1), J)
        ended = rows(jnp.concatenate([ended, grown], axis=1), order)

        running, order = jax.lax.top_k(jnp.where(ends, _NEVER, best), J)
        tokens, parent, piece = rows(grown, order), rows(parent, order), rows(piece, order)
        source = (jnp.arange(B)[:, None] * J + parent).reshape(-1)
        return piece.reshape(-1), source, tokens, running, ended, finished

    def step(carry):
        i, cache, piece, source, *search = carry
        chosen = jax.tree.map(lambda x: x[source], cache)
        logits, cache = extend({**chosen, **fixed}, piece)
        return i + 1, {k: cache[k] for k in chosen}, *select(i, logits, *search)

    empty = jnp.full((B, J, U), vocabulary.pad, jnp.int32)
    running = jnp.full((B, J), _NEVER).at[:, 0].set(0.0)  # all beams are alike at first: one of them stands for all
    none = jnp.full((B, J), -jnp.inf)
    first = select(jnp.zeros((), jnp.int32), logits, empty, running, empty, none)
    *_, ended, finished = jax.lax.while_loop(unfinished, step, (jnp.ones((), jnp.int32), cache, *first))
    return ended[:, : decoding.n_best], finished[:, : decoding.n_best]

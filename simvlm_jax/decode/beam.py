"""Beam search with a length penalty, n-best lists and a stop that never changes the answer.

Each row keeps W running hypotheses and the W best finished ones. Of the 2W likeliest continuations, those that end (by EOS,
or because the length is used up) and are among the first W may become finished ones; the first W of the others run on. A
row stops when no running hypothesis, however it goes on, can beat its worst finished one; so stopping is exact, and the
rows of a batch do not touch each other.
"""

import jax
import jax.numpy as jnp

from simvlm_jax.core.types import FIXED, Vocabulary
from simvlm_jax.decode.constraints import constrain
from simvlm_jax.decode.decoding import Decoding

_NEVER = -1e9
"""The sum of a running hypothesis that cannot be; finite, so that adding to it never makes a NaN."""


def beam_search(extend, logits, cache, vocabulary: Vocabulary, decoding: Decoding, forced: tuple[int, ...] = ()):
    """(tokens [B,N,L] int32, scores [B,N] fp32) of the N = n_best best finished hypotheses of each row; -inf: there is none.

    extend: `(cache, tokens [B*W]) -> (logits [B*W,V], cache)`; logits [B,V] and cache, a dict, are those after the prompt. What
    is FIXED in the cache is neither repeated nor gathered: it keeps its B rows. A score
    is log-likelihood / length^length_penalty; repetition rules act on log-probabilities.
    """
    (B, V), W, L, F = logits.shape, decoding.beams, decoding.max_length, len(forced)
    if V < 2:
        raise ValueError(f"a beam search needs a vocabulary of 2 pieces or more, not {V}")
    fixed, cache = {k: cache[k] for k in (FIXED,) if k in cache}, {k: v for k, v in cache.items() if k != FIXED}
    cache = jax.tree.map(lambda x: jnp.repeat(x, W, axis=0), cache)
    logits = jnp.repeat(logits, W, axis=0)
    empty = jnp.full((B, W, L), vocabulary.pad, jnp.int32)
    running = jnp.full((B, W), _NEVER).at[:, 0].set(0.0)  # all beams are alike at first: one of them stands for all
    none = jnp.full((B, W), -jnp.inf)
    start = (jnp.zeros((), jnp.int32), logits, cache, empty, running, empty, none)

    def rows(x, index):
        """x [B,n,...] at index [B,k]."""
        return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)

    def normalise(total, length):
        return total / jnp.maximum(length, 1).astype(jnp.float32) ** decoding.length_penalty

    def unfinished(carry):
        i, _, _, _, running, _, finished = carry
        # scores are sums of numbers <= 0: a hypothesis is best at its longest if length helps, else at its shortest
        length = L - F if decoding.length_penalty > 0 else jnp.maximum(i + 1 - F, 1)
        hope = normalise(running[:, 0], length)
        return (i < L) & (hope > finished[:, -1]).any()

    def step(carry):
        i, logits, cache, tokens, running, ended, finished = carry
        scores = jax.nn.log_softmax(logits.astype(jnp.float32))
        scores = constrain(scores, tokens.reshape(B * W, L), i, decoding, vocabulary, forced)
        totals = running[:, :, None] + jnp.maximum(scores, _NEVER).reshape(B, W, V)
        best, index = jax.lax.top_k(totals.reshape(B, W * V), 2 * W)
        best = jnp.maximum(best, _NEVER)
        parent, piece = index // V, (index % V).astype(jnp.int32)
        grown = rows(tokens, parent).at[:, :, i].set(piece)

        ends = (piece == vocabulary.eos) | (i == L - 1)
        may_end = ends & (jnp.arange(2 * W) < W) & (best > _NEVER / 2)
        candidates = jnp.where(may_end, normalise(best, i + 1 - F), -jnp.inf)
        finished, order = jax.lax.top_k(jnp.concatenate([finished, candidates], axis=1), W)
        ended = rows(jnp.concatenate([ended, grown], axis=1), order)

        running, order = jax.lax.top_k(jnp.where(ends, _NEVER, best), W)
        tokens, parent, piece = rows(grown, order), rows(parent, order), rows(piece, order)
        source = (jnp.arange(B)[:, None] * W + parent).reshape(-1)
        chosen = jax.tree.map(lambda x: x[source], cache)
        logits, cache = extend({**chosen, **fixed}, piece.reshape(-1))
        cache = {k: cache[k] for k in chosen}
        return i + 1, logits, cache, tokens, running, ended, finished

    *_, ended, finished = jax.lax.while_loop(unfinished, step, start)
    return ended[:, : decoding.n_best], finished[:, : decoding.n_best]

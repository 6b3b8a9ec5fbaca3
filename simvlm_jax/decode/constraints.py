"""What may come next: rules over the pieces generated so far, as functions of scores.

`scores` are logits or log-probabilities [R,V] fp32 of R rows, `tokens` [R,L] int32 what they have said, of which the first
`i` (a traced int) are written. A piece that may not come is -inf.
"""

import jax
import jax.numpy as jnp

from simvlm_jax.core.types import Vocabulary
from simvlm_jax.decode.decoding import Decoding


def constrain(scores, tokens, i, decoding: Decoding, vocabulary: Vocabulary, forced: tuple[int, ...] = ()):
    """All rules of a decoding. At the places of a `forced` prefix its piece scores 0 and everything else -inf.

    Padding and BOS are never generated, unless they are the EOS too.
    """
    scores = penalise_repetition(scores, tokens, i, decoding.repetition_penalty)
    scores = forbid_repeated_ngrams(scores, tokens, i, decoding.no_repeat_ngram)
    if decoding.min_length:
        scores = scores.at[:, vocabulary.eos].add(jnp.where(i < decoding.min_length, -jnp.inf, 0.0))
    never = sorted({vocabulary.pad, vocabulary.bos} - {vocabulary.eos})
    scores = scores.at[:, jnp.asarray(never, jnp.int32)].set(-jnp.inf) if never else scores
    if not forced:
        return scores
    piece = jnp.asarray(forced, jnp.int32)[jnp.minimum(i, len(forced) - 1)]
    only = jnp.where(jnp.arange(scores.shape[1]) == piece, 0.0, -jnp.inf)
    return jnp.where(i < len(forced), only, scores)


def penalise_repetition(scores, tokens, i, penalty: float):
    """Divides positive and multiplies negative scores of pieces already said by the penalty."""
    if penalty == 1.0:
        return scores
    written = jnp.arange(tokens.shape[1]) < i
    said = jnp.zeros(scores.shape, bool)
    said = jax.vmap(lambda row, ids: row.at[ids].max(written))(said, tokens)
    return jnp.where(said, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def forbid_repeated_ngrams(scores, tokens, i, n: int):
    """Forbids the piece that would end a run of `n` pieces said before."""
    R, L = tokens.shape
    if not n or n > L:
        return scores
    starts = jnp.arange(L - n + 1)
    if n > 1:
        seen = jnp.stack([tokens[:, k : k + L - n + 1] for k in range(n - 1)], -1)  # [R,L-n+1,n-1]
        last = jax.lax.dynamic_slice_in_dim(tokens, jnp.maximum(i - n + 1, 0), n - 1, axis=1)
        again = (seen == last[:, None]).all(-1)
    else:
        again = jnp.ones((R, L), bool)
    again = again & (starts + n - 1 < i)
    banned = jnp.zeros(scores.shape, bool)
    banned = jax.vmap(lambda row, ids, hit: row.at[ids].max(hit))(banned, tokens[:, n - 1 :], again)
    return jnp.where(banned, -jnp.inf, scores)

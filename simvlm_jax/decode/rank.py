"""Likelihoods of given answers: ranking instead of generating."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.types import Batch, Extra, Params
from simvlm_jax.decode.generate import decoding_params


def likelihoods(
    capabilities: dict[str, Callable],
    params: Params,
    extra: Extra,
    batch: Batch,
    candidates: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray,
    shortlist: int = 0,
) -> jax.Array:
    """Log-likelihood [B,J] fp32 (nats) of each of J candidates as the continuation of each row's prompt.

    candidates [J,T] int32 and mask [J,T] bool: pieces and EOS, then padding. The prompt is read once; candidates follow one
    after another over its cache.

    shortlist: only so many candidates per row are scored whole, those with the likeliest first piece (BLIP, arXiv
    2201.12086, appendix); the others get -inf. 0: all of them.
    """
    candidates, mask = jnp.asarray(candidates), jnp.asarray(mask)
    J, T = candidates.shape
    params = decoding_params(capabilities, params, extra)
    logits, cache = capabilities["prefill"](params, extra, batch, T)
    B = logits.shape[0]
    first = jax.nn.log_softmax(logits.astype(jnp.float32))[:, candidates[:, 0]]  # [B,J]
    kept = min(shortlist or J, J)
    chosen = jax.lax.top_k(first, kept)[1] if kept < J else jnp.broadcast_to(jnp.arange(J), (B, J))

    def rest(which):  # [B] candidates, one per row
        pieces, real = candidates[which], mask[which]
        logits, _ = capabilities["extend"](params, extra, cache, pieces[:, :-1])
        likely = jax.nn.log_softmax(logits.astype(jnp.float32))
        likely = jnp.take_along_axis(likely, pieces[:, 1:, None], axis=-1)[..., 0]
        return jnp.where(real[:, 1:], likely, 0.0).sum(1)

    more = jax.lax.map(rest, chosen.T).T if T > 1 else jnp.zeros((B, kept))
    rows = jnp.arange(B)[:, None]
    total = jnp.take_along_axis(first, chosen, axis=1) + more
    return jnp.full((B, J), -jnp.inf).at[rows, chosen].set(total)

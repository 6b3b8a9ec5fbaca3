"""Scaled dot-product attention: the dense reference, and which kernel computes it on which platform.

All kernels take q [B,T,H,K], k and v [B,S,G,K] (H a multiple of G: groups of query heads share a key head, Ainslie et al.,
arXiv 2305.13245), and a Mask or None, when every query sees every key. A query that sees no key gives zeros.
"""

import jax
import jax.numpy as jnp

from simvlm_jax.nn.masks import Mask
from simvlm_jax.nn.sizes import statistics_dtype

HIDDEN = -1e30
"""The logit of a key that is not seen: finite, so that a row without any visible key has no NaN in its gradient."""


def dense(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask | None = None,
    bias: jax.Array | None = None,
    heads_first: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention with fp32 logits [B,H,T,S]; returns ([B,T,H,K], weights [B,H,T,S]).

    bias: added to the logits, broadcastable to [B,H,T,S]. heads_first: keys and values are [B,G,S,K], as a cache has them.
    """
    dtype, precise = q_BTHK.dtype, statistics_dtype(q_BTHK.dtype)
    (B, T, H, K), keys = q_BTHK.shape, "BHSK" if heads_first else "BSHK"
    G = k_BSGK.shape[1 if heads_first else 2]
    if G != H:
        q_BTHK = q_BTHK.reshape(B, T, G, H // G, K)
        into, out = f"BTHRK,{keys}->BHRTS", f"BHRTS,{keys}->BTHRK"
    else:
        into, out = f"BTHK,{keys}->BHTS", f"BHTS,{keys}->BTHK"
    logits = jnp.einsum(into, q_BTHK, k_BSGK, preferred_element_type=precise)
    logits = logits.reshape(B, H, T, -1) * K**-0.5
    if bias is not None:
        logits = logits + bias.astype(precise)
    seen = None if mask is None else mask.visible
    if seen is not None:
        logits = jnp.where(seen[:, None], logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1)
    if seen is not None:
        weights = weights * seen.any(-1)[:, None, :, None]
    used = weights.astype(dtype).reshape(B, G, H // G, T, -1) if G != H else weights.astype(dtype)
    return jnp.einsum(out, used, v_BSGK).reshape(B, T, H, K), weights


def attend(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask | None = None, bias: jax.Array | None = None
) -> jax.Array:
    """Softmax attention [B,T,H,K] by the kernel that suits the platform, the shapes and the mask's kind."""
    return dense(q_BTHK, k_BSGK, v_BSGK, mask, bias)[0]

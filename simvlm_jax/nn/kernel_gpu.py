"""Attention on GPUs: cuDNN's flash attention, by calls without a mask.

A mask would become a dense bias [B,H,T,S]; so padding goes by lengths, which are counted from the segments, and a prefix by
two calls.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from simvlm_jax.nn.masks import Kind, Mask

Implementation = Literal["xla", "cudnn"]


def fused(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask | None, implementation: Implementation = "cudnn"
) -> jax.Array:
    """Softmax attention [B,T,H,K] of a mask that is full, causal or prefix, without padding or with padding at the right.

    implementation: of `jax.nn.dot_product_attention`; "xla" gives the same where there is no cuDNN.
    """
    if mask is None or mask.kind == Kind("full", "none"):
        return _attention(q_BTHK, k_BSGK, v_BSGK, implementation)
    kind, padded = mask.kind, mask.kind.padding != "none"
    queries, keys = mask.query.segment >= 0, mask.key.segment >= 0
    if padded:  # what cuDNN leaves in padding is not specified: it must reach neither the result nor a gradient
        q_BTHK = _only(q_BTHK, queries)
        k_BSGK, v_BSGK = _only(k_BSGK, keys), _only(v_BSGK, keys)
    lengths = (_end(queries), _end(keys)) if padded else None
    out = _attention(q_BTHK, k_BSGK, v_BSGK, implementation, kind.order != "full", lengths)
    if kind.order == "prefix" and kind.prefix is None:
        inside = queries & (mask.query.block == 0)
        within = keys & (mask.key.block == 0)
        q_BTHK, k_BSGK, v_BSGK = _only(q_BTHK, inside), _only(k_BSGK, within), _only(v_BSGK, within)
        front = _attention(q_BTHK, k_BSGK, v_BSGK, implementation, lengths=(_end(inside), _end(within)))
        out = jnp.where(inside[..., None, None], front, out)
    elif kind.order == "prefix" and kind.prefix:
        n = kind.prefix
        short = jax.tree.map(lambda length: jnp.minimum(length, n), lengths)
        front = _attention(q_BTHK[:, :n], k_BSGK[:, :n], v_BSGK[:, :n], implementation, lengths=short)
        out = jnp.concatenate([front, out[:, n:]], axis=1)
    return _only(out, queries & keys.any(1, keepdims=True)) if padded else out


def _end(valid_BT: jax.Array) -> jax.Array:
    """The position [B] after the last that is valid; 1 at least, so that no row is empty."""
    return jnp.where(valid_BT, 1 + jnp.arange(valid_BT.shape[1], dtype=jnp.int32), 1).max(1)


def _only(x: jax.Array, valid_BT: jax.Array) -> jax.Array:
    """x [B,T,...] where it is valid, zero elsewhere, and its gradient too."""
    return jnp.where(valid_BT[..., None, None], x, 0)


def _attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    implementation: Implementation,
    causal: bool = False,
    lengths: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """One call; lengths: of queries and keys, [B] int32 both."""
    queries, keys = lengths or (None, None)
    call = functools.partial(jax.nn.dot_product_attention, implementation=implementation, is_causal=causal)
    return call(q, k, v, query_seq_lengths=queries, key_value_seq_lengths=keys)

"""Attention on TPUs: the splash kernel of jax.experimental.pallas, which never writes the logits to memory.

Order is a static mask of the kernel, so that blocks above the diagonal are skipped; padding and packed rows go by segment ids.
The ids of padded queries and padded keys differ (-1 and -2): the kernel lets equal ids see each other.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    MultiHeadMask,
    NumpyMask,
    SegmentIds,
    make_splash_mha,
)

from simvlm_jax.core.sharding import activation_sharding
from simvlm_jax.nn.masks import Mask

BLOCK, LANES = 512, 128
"""The longest block of queries or keys, and what a block is a multiple of."""


def splash(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask | None, interpret: bool = False
) -> jax.Array:
    """Softmax attention [B,T,H,K] of a mask that is full, causal or prefix, with any padding.

    Under sharding rules every device computes its own rows and heads. interpret: run on any platform, slowly.
    """
    run = functools.partial(_of_device, interpret=interpret)
    where = activation_sharding("BTHK", q_BTHK.shape)
    if where is None:
        return run(q_BTHK, k_BSGK, v_BSGK, mask)
    H, G, (rows, _, heads, _) = q_BTHK.shape[2], k_BSGK.shape[2], where.spec
    axes = (heads,) if isinstance(heads, str) else heads or ()
    if G % math.prod(where.mesh.shape[a] for a in axes):  # each device has its query heads' keys to itself
        k_BSGK, v_BSGK = (jnp.repeat(x, H // G, axis=2) for x in (k_BSGK, v_BSGK))
    four, two = jax.P(rows, None, heads, None), jax.P(rows, None)
    # GSPMD cannot split a custom call: it would gather all rows on every device
    split = jax.shard_map(run, mesh=where.mesh, in_specs=(four, four, four, two), out_specs=four, check_vma=False)
    return split(q_BTHK, k_BSGK, v_BSGK, mask)


def _of_device(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask | None, interpret: bool) -> jax.Array:
    """Return the attention of the rows and heads that one device has."""
    if mask is None:
        return _call(q, k, v, "full", interpret=interpret)
    (query, key), kind = (mask.query, mask.key), mask.kind
    ids = (query.segment, jnp.where(key.segment >= 0, key.segment, -2))
    static = None if kind.padding == "none" else ids
    if kind.order == "prefix" and kind.prefix is None:  # causal over all, and the prefix over itself
        out = _call(q, k, v, "causal", ids=static, interpret=interpret)
        ids = (jnp.where(query.block == 0, ids[0], -1), jnp.where(key.block == 0, ids[1], -2))
        front = _call(q, k, v, "full", ids=ids, interpret=interpret)
        out = jnp.where((query.block == 0)[..., None, None], front, out)
    else:
        out = _call(q, k, v, kind.order, kind.prefix or 0, static, interpret)
    if kind.padding == "none":
        return out
    seen = mask.visible.any(-1)  # reduced as it is compared: [B,T,S] is not written
    return jnp.where(seen[..., None, None], out, 0)


def _call(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    order: str,
    prefix: int = 0,
    ids: tuple[jax.Array, jax.Array] | None = None,
    interpret: bool = False,
) -> jax.Array:
    """One kernel over all rows; ids: of segments, of queries [B,T] and keys [B,S]."""
    (B, T, H, K), S = q.shape, k.shape[1]
    (block_q, long), (block_k, wide) = _blocks(T), _blocks(S)
    if order == "full" and wide > S and ids is None:
        ids = (jnp.zeros((B, T), jnp.int32), jnp.zeros((B, S), jnp.int32))
    q = _lengthened(q * jnp.asarray(K**-0.5, q.dtype), long).swapaxes(1, 2)
    k, v = (_lengthened(x, wide).swapaxes(1, 2) for x in (k, v))
    kernel = _kernel(order, prefix, H, long, wide, block_q, block_k, interpret)
    if ids is None:
        out = jax.vmap(kernel)(q, k, v)
    else:
        out = jax.vmap(kernel)(q, k, v, SegmentIds(_lengthened(ids[0], long, -1), _lengthened(ids[1], wide, -2)))
    return out.swapaxes(1, 2)[:, :T]


def _blocks(length: int) -> tuple[int, int]:
    """(block, length that is a multiple of it): as few blocks as BLOCK allows, and as short as LANES allows."""
    count = -(-length // BLOCK)
    block = -(-length // (count * LANES)) * LANES
    return block, count * block


def _lengthened(x: jax.Array, length: int, value: int = 0) -> jax.Array:
    """x [B,T,...] of a longer T."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2), constant_values=value)


@functools.lru_cache(maxsize=64)
def _kernel(order: str, prefix: int, heads: int, T: int, S: int, block_q: int, block_k: int, interpret: bool):
    """The kernel of one row, q [H,T,K], k and v [G,S,K]: its tables of blocks stand as constants in what is traced."""
    if order == "full":
        mask = FullMask((T, S))
    elif order == "causal":
        mask = CausalMask((T, S))
    else:
        mask = NumpyMask(np.tril(np.ones((T, S), bool)) | (np.arange(S) < prefix))
    # one block of keys: the backward kernel makes all gradients in one pass over the logits
    fused = block_k == S
    own: Any = {} if fused else dict(block_q_dq=block_q, block_kv_dq=block_k)
    sizes = BlockSizes(
        block_q=block_q, block_kv=block_k, block_q_dkv=block_q, block_kv_dkv=block_k, use_fused_bwd_kernel=fused, **own
    )  # fmt: skip
    make = functools.partial(make_splash_mha, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    with ThreadPoolExecutor(1) as apart:  # a thread of its own traces nothing, whatever its caller traces
        kernel = apart.submit(make, MultiHeadMask([mask] * heads)).result()
    return jax.tree.map(np.asarray, kernel)

"""Scaled dot-product attention: the dense reference, and which kernel computes it on which platform.

All kernels take q [B,T,H,K], k and v [B,S,G,K] (H a multiple of G: groups of query heads share a key head, Ainslie et al.,
arXiv 2305.13245), and a Mask or None, when every query sees every key. A query that sees no key gives zeros.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from simvlm_jax.core.platform import platform
from simvlm_jax.core.sharding import is_split
from simvlm_jax.nn.masks import Kind, Mask
from simvlm_jax.nn.sizes import statistics_dtype

HIDDEN = -1e30
"""The logit of a key that is not seen: finite, so that a row without any visible key has no NaN in its gradient."""

SPLASH_LOGITS = 256 * 256
"""From how many logits a head on (T times S) TPUs take the splash kernel, which keeps none of them in memory.

By TPU's own compiler (benchmarks/attention_kernels.md), a layer's temporaries are the same at 196 tokens, which the kernel rounds
up to 256, a third to a half of those of dense attention at 256 and a third at 452.
"""


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
    (B, T, H, K), G = q_BTHK.shape, k_BSGK.shape[1 if heads_first else 2]
    q, k, v = q_BTHK, k_BSGK, v_BSGK
    flat = heads_first and T > 1 and platform() == "cpu" and not is_split("H", H)  # rows and heads as one batch axis N
    if flat:
        q = q.reshape(B, T, G, -1, K).transpose(0, 2, 3, 1, 4).reshape(B * G, -1, K)
        k, v = k.reshape(B * G, -1, K), v.reshape(B * G, -1, K)
        into, out = "NTK,NSK->NTS", "NTS,NSK->NTK"
    elif heads_first or G < H:
        keys = "BGSK" if heads_first else "BSGK"
        q = q.reshape(B, T, G, -1, K)
        into, out = f"BTGRK,{keys}->BGRTS", f"BGRTS,{keys}->BTGRK"
    else:  # an axis of groups of one would cost transposes in a training step
        into, out = "BTHK,BSHK->BHTS", "BHTS,BSHK->BTHK"
    logits = jnp.einsum(into, q, k, preferred_element_type=precise)
    shape = logits.shape
    logits = logits.reshape(B, H, T, -1) * K**-0.5
    if bias is not None:
        logits = logits + bias.astype(precise)
    seen = None if mask is None else mask.visible
    if seen is not None:
        logits = jnp.where(seen[:, None], logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1)
    if seen is not None:
        weights = weights * seen.any(-1)[:, None, :, None]
    y = jnp.einsum(out, weights.astype(dtype).reshape(shape), v)
    if flat:
        y = y.reshape(B, H, T, K).swapaxes(1, 2)
    return y.reshape(B, T, H, K), weights


def chosen(
    platform: str,
    dtype: Any,
    q_BTHK: Sequence[int],
    k_BSGK: Sequence[int],
    kind: Kind,
    bias: bool = False,
    widest: int = 128,
) -> str:
    """The kernel for shapes of queries and keys: "dense", "cudnn" (on "gpu") or "splash" (on "tpu").

    A bias needs dense logits anywhere: neither kernel makes one up as it goes, and a table [H,T,S] read from memory, with a
    gradient of its size written back, is what the kernels are there to avoid (cuDNN also trains with one at even T and S only).
    A sliding window is dense everywhere, too.

    Args:
      bias: whether something is added to the logits.
      widest: head width K that the GPU's cuDNN takes: 256 from Hopper on, 128 before.
    """
    T, K, S = q_BTHK[1], q_BTHK[3], k_BSGK[1]
    if bias or kind.window or kind.order == "any" or (kind.order != "full" and T != S):
        return "dense"
    if platform == "gpu":
        half = dtype in (jnp.bfloat16, jnp.float16)
        lengths = kind.padding != "any"  # it takes lengths, no segments
        return "cudnn" if half and lengths and widest >= K and K % 8 == 0 else "dense"
    if platform == "tpu":
        return "splash" if dtype in (jnp.bfloat16, jnp.float32) and T * S >= SPLASH_LOGITS else "dense"
    return "dense"


def attend(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask | None = None, bias: jax.Array | None = None
) -> jax.Array:
    """Softmax attention [B,T,H,K] by the kernel that suits the platform, the shapes and the mask's kind."""
    kind = Kind("full", "none") if mask is None else mask.kind
    where = platform()
    if where == "gpu" and jax.default_backend() != "gpu":
        where = "cpu"  # stands in for a GPU, and has no cuDNN
    widest = _widest_head() if where == "gpu" else 0
    name = chosen(where, q_BTHK.dtype, q_BTHK.shape, k_BSGK.shape, kind, bias is not None, widest)
    if name == "cudnn":
        from simvlm_jax.nn.kernel_gpu import fused

        return fused(q_BTHK, k_BSGK, v_BSGK, mask)
    if name == "splash":
        from simvlm_jax.nn.kernel_tpu import splash

        return splash(q_BTHK, k_BSGK, v_BSGK, mask)
    return dense(q_BTHK, k_BSGK, v_BSGK, mask, bias)[0]


def _widest_head() -> int:
    """The widest head that cuDNN's flash attention takes on this machine's GPUs."""
    capability = str(getattr(jax.devices()[0], "compute_capability", "8.0"))
    return 256 if float(capability) >= 9 else 128

"""Multi-head attention with explicit keys and values, so that caches and cross-attention need no second code path."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.layout import constrain, in_use
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.sizes import statistics_dtype

HIDDEN = -1e30
"""The logit of a key that is not seen: finite, so that a row without any visible key has no NaN in its gradient."""


def attend(q_BTHK, k_BSHK, v_BSHK, visible_BTS, bias=None):
    """Softmax attention with fp32 logits; a row that sees no key gives zeros. Returns ([B,T,H,K], weights [B,H,T,S]).

    visible_BTS: bool [B,T,S], or None when every query sees every key. bias: added to the logits, broadcastable to
    [B,H,T,S].
    """
    dtype = q_BTHK.dtype
    precise = statistics_dtype(dtype)
    logits = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, preferred_element_type=precise)
    logits = logits * (q_BTHK.shape[-1] ** -0.5)
    if bias is not None:
        logits = logits + bias.astype(precise)
    if visible_BTS is not None:
        logits = jnp.where(visible_BTS[:, None], logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1)
    if visible_BTS is not None:
        weights = weights * visible_BTS.any(-1)[:, None, :, None]
    out = jnp.einsum("BHTS,BSHK->BTHK", weights.astype(dtype), v_BSHK)
    return out, weights


class Attention(nn.Module):
    """Projections of multi-head attention (Vaswani et al. 2017, section 3.2.2).

    Keys have no bias unless asked for: softmax does not see it, so its gradient is zero and optimizers would turn rounding
    into noise.
    """

    heads: int
    dtype: jnp.dtype
    key_bias: bool = False
    width: int | None = None
    """Of the result, where it is not D."""

    @nn.compact
    def __call__(self, x_BTD, source_BSW, visible_BTS, *, bias=None, cache=None, slots_BT=None) -> tuple[Any, Any]:
        """Attends from `x_BTD` to a source and returns ([B,T,D], (k, v)), the keys and values [B,S,H,K] it looked at.

        source_BSW: the sequence to look at (`x_BTD` itself for self-attention), or None to look at `cache` alone.
        cache: earlier (k, v). With `slots_BT` the source's keys are written into it at those slots.
        """
        width = x_BTD.shape[-1]
        shape = (width, self.heads, width // self.heads)
        q = self._project("query", x_BTD, shape, bias=True)
        kv: Any = cache
        if source_BSW is not None:
            kv_shape = (source_BSW.shape[-1], *shape[1:])
            kv = (
                self._project("key", source_BSW, kv_shape, bias=self.key_bias),
                self._project("value", source_BSW, kv_shape, bias=True),
            )
            if cache is not None:
                rows = jnp.arange(x_BTD.shape[0])[:, None]
                kv = tuple(old.at[rows, slots_BT].set(new) for old, new in zip(cache, kv, strict=True))
        k, v = kv
        out, weights = attend(q, k, v, visible_BTS, bias)
        self.sow("intermediates", "weights", weights)
        width = self.width or width
        kernel = self._kernel("out", (*shape[1:], width), ("H", "K", "D"), in_axis=(0, 1), out_axis=2)
        offset = self.param("out_bias", nn.with_logical_partitioning(nn.initializers.zeros, ("D",)), (width,))
        y = add(jnp.einsum("BTHK,HKD->BTD", constrain(out, "BTHK"), kernel), in_use(offset, "D"))
        return y, kv

    def _project(self, name, x, shape, bias):
        kernel = self._kernel(name, shape, ("D", "H", "K"), in_axis=0, out_axis=(1, 2))
        y = jnp.einsum("BTD,DHK->BTHK", x, kernel)
        if bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("H", "K"))
            y = add(y, in_use(self.param(f"{name}_bias", init, shape[1:]), "HK"))
        return constrain(y, "BTHK")

    def _kernel(self, name, shape, letters, in_axis, out_axis):
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=in_axis, out_axis=out_axis)
        return in_use(self.param(name, nn.with_logical_partitioning(init, letters), shape), letters, self.dtype)

"""Multi-head attention: projections around a kernel, for whole sequences and for a cache of keys and values."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.nn.cache import KeyValue
from simvlm_jax.nn.kernels import attend, dense
from simvlm_jax.nn.linear import TRANSPOSED, Transposed, add, multiply_transposed
from simvlm_jax.nn.masks import Mask, Sight
from simvlm_jax.nn.norm import LayerNorm
from simvlm_jax.nn.rotary import rotate
from simvlm_jax.nn.sizes import Bias, Rotary

Axes = int | tuple[int, ...]


class Attention(nn.Module):
    """Projections of multi-head attention (Vaswani et al. 2017, section 3.2.2), [B,T,D] -> [B,T,D].

    Args:
      width: D of the queries. heads: H.
      source_width: W of the sequence that is looked at, where it is not D.
      key_bias: keys have no bias unless asked for: softmax does not see it, so its gradient is zero and optimizers would turn
        rounding into noise.
      out_width: of the result, where it is not D.
      kv_heads: G, where keys and values have fewer heads than queries. head_width: K, where it is not D / H.
      bias: of queries, values and the result.
      norm: constructor of the norm of queries and keys over K, one scale for all heads; None for none.
      rotary: by which queries and keys turn; a call then needs their positions.
      scaled: whether logits are divided by the root of K.
    """

    width: int
    heads: int
    dtype: jnp.dtype
    key_bias: bool = False
    source_width: int | None = None
    out_width: int | None = None
    kv_heads: int = 0
    head_width: int = 0
    bias: Bias = Bias()
    norm: Callable[..., LayerNorm] | None = None
    rotary: Rotary | None = None
    scaled: bool = True

    def setup(self):
        K = self.head_width or self.width // self.heads
        heads, groups = (self.heads, K), (self.kv_heads or self.heads, K)
        G = self._key_letter
        source, out = self.source_width or self.width, self.out_width or self.width
        self.query = self._kernel("query", (self.width, *heads), ("D", "H", "K"), 0, (1, 2))
        self.query_bias = self._offset("query_bias", heads, ("H", "K"), self.bias.query)
        self.key = self._kernel("key", (source, *groups), ("D", G, "K"), 0, (1, 2))
        self.key_offset = self._offset("key_bias", groups, (G, "K"), self.key_bias)
        self.value = self._kernel("value", (source, *groups), ("D", G, "K"), 0, (1, 2))
        self.value_bias = self._offset("value_bias", groups, (G, "K"), self.bias.value)
        self.out = self._kernel("out", (*heads, out), ("H", "K", "D"), (0, 1), 2)
        self.out_bias = self._offset("out_bias", (out,), ("D",), self.bias.out)
        if self.norm is not None:
            self.query_norm, self.key_norm = self.norm(letter="K"), self.norm(letter="K")

    def __call__(
        self,
        x_BTD: jax.Array,
        source_BSW: jax.Array,
        mask: Mask | None,
        bias: jax.Array | None = None,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Looks from `x_BTD` at a source (`x_BTD` itself for self-attention).

        bias: added to the logits [B,H,T,S]. position [B,T]: of a sequence that looks at itself, for rotary embedding.
        The weights [B,H,T,S] are made and sown as "weights" where "intermediates" are collected, and nowhere else.
        """
        q = self._queries(x_BTD, position)
        k, v = self._keys_values(source_BSW, position)
        if self.is_mutable_collection("intermediates"):
            out, weights = dense(q, k, v, mask, bias)
            self.sow("intermediates", "weights", weights)
        else:
            out = attend(q, k, v, mask, bias)
        return self._join(out)

    def keys_values(self, source_BSW: jax.Array, position: jax.Array | None = None) -> KeyValue:
        """Keys and values of a source at `position` [B,S], to be looked at by many steps."""
        k, v = self._keys_values(source_BSW, position)
        return KeyValue(k.swapaxes(1, 2), v.swapaxes(1, 2))

    def step(
        self,
        x_BTD: jax.Array,
        cache: KeyValue,
        mask: Mask | None,
        bias: jax.Array | None = None,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Looks at keys and values that are there, of B rows or of fewer, each of which as many rows of `x_BTD` share.

        position [B,T]: of the queries, for rotary embedding.
        """
        q = self._queries(x_BTD, position)
        B, shared = len(q), len(cache.key)
        if shared != B:  # several continuations of one row: more queries of the same keys
            fold = lambda x: x.reshape(shared, -1, *x.shape[2:])  # noqa: E731
            if mask is not None:
                mask = Mask(Sight(*map(fold, mask.query)), mask.key, mask.kind)
            out = dense(fold(q), *cache, mask, heads_first=True)[0].reshape(q.shape)
        else:
            out = dense(q, *cache, mask, bias, heads_first=True)[0]
        return self._join(out)

    def _join(self, out_BTHK: jax.Array) -> jax.Array:
        y = constrain(out_BTHK, "BTHK")
        if isinstance(self.out, Transposed):
            out = multiply_transposed(y, in_use(self.out.kernel, ("D", "H", "K"), self.dtype), inputs=2)
        else:
            out = jnp.einsum("BTHK,HKD->BTD", y, in_use(self.out, ("H", "K", "D"), self.dtype))
        return out if self.out_bias is None else add(out, in_use(self.out_bias, "D"))

    def _queries(self, x: jax.Array, position: jax.Array | None) -> jax.Array:
        q = self._project(x, self.query, self.query_bias, "H")
        q = q if self.scaled else q * jnp.asarray(q.shape[-1] ** 0.5, q.dtype)  # by which kernels divide
        return self._turned(q if self.norm is None else self.query_norm(q), position)

    def _keys_values(self, x: jax.Array, position: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        G = self._key_letter
        k = self._project(x, self.key, self.key_offset, G)
        k = self._turned(k if self.norm is None else self.key_norm(k), position)
        return k, self._project(x, self.value, self.value_bias, G)

    def _turned(self, x: jax.Array, position: jax.Array | None) -> jax.Array:
        if self.rotary is None:
            return x
        if position is None:
            raise ValueError(
                "rotary position embedding turns queries and keys by their positions, and there are none; give positions [B,T] "
                "(Shared.position of a sequence, Written.position of a step)"
            )
        return rotate(x, position, self.rotary)

    def _project(self, x: jax.Array, kernel: jax.Array | Transposed, offset: jax.Array | None, heads: str) -> jax.Array:
        if isinstance(kernel, Transposed):
            y = multiply_transposed(x, in_use(kernel.kernel, (heads, "K", "D"), self.dtype))
        else:
            y = jnp.einsum("BTD,DHK->BTHK", x, in_use(kernel, ("D", heads, "K"), self.dtype))
        return constrain(y if offset is None else add(y, in_use(offset, (heads, "K"))), f"BT{heads}K")

    @property
    def _key_letter(self) -> str:
        """The letter of the heads of keys and values."""
        return "H" if self.kv_heads in (0, self.heads) else "G"

    def _kernel(
        self, name: str, shape: tuple[int, ...], letters: tuple[str, ...], in_axis: Axes, out_axis: Axes
    ) -> Any:
        if self.has_variable("params", name + TRANSPOSED):
            return Transposed(self.get_variable("params", name + TRANSPOSED))
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=in_axis, out_axis=out_axis)
        return self.param(name, nn.with_logical_partitioning(init, letters), shape)

    def _offset(self, name: str, shape: tuple[int, ...], letters: tuple[str, ...], wanted: bool) -> Any:
        if not wanted:
            return None
        return self.param(name, nn.with_logical_partitioning(nn.initializers.zeros, letters), shape)

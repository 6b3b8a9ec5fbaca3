"""Multi-head attention: projections around a kernel, for whole sequences and for a cache of keys and values."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.layout import constrain, in_use
from simvlm_jax.nn.cache import KeyValue
from simvlm_jax.nn.kernels import attend, dense
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.masks import Mask, Sight


class Attention(nn.Module):
    """Projections of multi-head attention (Vaswani et al. 2017, section 3.2.2), [B,T,D] -> [B,T,D].

    Args:
      width: D of the queries. heads: H; head width K = D / H.
      source_width: W of the sequence that is looked at, where it is not D.
      key_bias: keys have no bias unless asked for: softmax does not see it, so its gradient is zero and optimizers would turn
        rounding into noise.
      out_width: of the result, where it is not D.
    """

    width: int
    heads: int
    dtype: jnp.dtype
    key_bias: bool = False
    source_width: int | None = None
    out_width: int | None = None

    def setup(self):
        heads = (self.heads, self.width // self.heads)
        source, out = self.source_width or self.width, self.out_width or self.width
        self.query = self._kernel("query", (self.width, *heads), ("D", "H", "K"), 0, (1, 2))
        self.query_bias = self._offset("query_bias", heads, ("H", "K"))
        self.key = self._kernel("key", (source, *heads), ("D", "H", "K"), 0, (1, 2))
        self.key_offset = self._offset("key_bias", heads, ("H", "K")) if self.key_bias else None
        self.value = self._kernel("value", (source, *heads), ("D", "H", "K"), 0, (1, 2))
        self.value_bias = self._offset("value_bias", heads, ("H", "K"))
        self.out = self._kernel("out", (*heads, out), ("H", "K", "D"), (0, 1), 2)
        self.out_bias = self._offset("out_bias", (out,), ("D",))

    def __call__(
        self, x_BTD: jax.Array, source_BSW: jax.Array, mask: Mask | None, bias: jax.Array | None = None
    ) -> jax.Array:
        """Looks from `x_BTD` at a source (`x_BTD` itself for self-attention); bias: added to the logits [B,H,T,S].

        The weights [B,H,T,S] are made and sown as "weights" where "intermediates" are collected, and nowhere else.
        """
        q = self._project(x_BTD, self.query, self.query_bias)
        k = self._project(source_BSW, self.key, self.key_offset)
        v = self._project(source_BSW, self.value, self.value_bias)
        if self.is_mutable_collection("intermediates"):
            out, weights = dense(q, k, v, mask, bias)
            self.sow("intermediates", "weights", weights)
        else:
            out = attend(q, k, v, mask, bias)
        return self._join(out)

    def keys_values(self, source_BSW: jax.Array) -> KeyValue:
        """Keys and values of a source, to be looked at by many steps."""
        k = self._project(source_BSW, self.key, self.key_offset)
        v = self._project(source_BSW, self.value, self.value_bias)
        return KeyValue(k.swapaxes(1, 2), v.swapaxes(1, 2))

    def step(self, x_BTD: jax.Array, cache: KeyValue, mask: Mask, bias: jax.Array | None = None) -> jax.Array:
        """Looks at keys and values that are there, of B rows or of fewer, each of which as many rows of `x_BTD` share."""
        q = self._project(x_BTD, self.query, self.query_bias)
        B, shared = len(q), len(cache.key)
        if shared != B:  # several continuations of one row: more queries of the same keys
            fold = lambda x: x.reshape(shared, -1, *x.shape[2:])  # noqa: E731
            mask = Mask(Sight(*map(fold, mask.query)), mask.key, mask.kind)
            out = dense(fold(q), *cache, mask, heads_first=True)[0].reshape(q.shape)
        else:
            out = dense(q, *cache, mask, bias, heads_first=True)[0]
        return self._join(out)

    def _join(self, out_BTHK):
        kernel = in_use(self.out, ("H", "K", "D"), self.dtype)
        return add(jnp.einsum("BTHK,HKD->BTD", constrain(out_BTHK, "BTHK"), kernel), in_use(self.out_bias, "D"))

    def _project(self, x, kernel, offset):
        y = jnp.einsum("BTD,DHK->BTHK", x, in_use(kernel, ("D", "H", "K"), self.dtype))
        return constrain(y if offset is None else add(y, in_use(offset, "HK")), "BTHK")

    def _kernel(self, name, shape, letters, in_axis, out_axis):
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=in_axis, out_axis=out_axis)
        return self.param(name, nn.with_logical_partitioning(init, letters), shape)

    def _offset(self, name, shape, letters):
        return self.param(name, nn.with_logical_partitioning(nn.initializers.zeros, letters), shape)

"""The transformer block: self-attention, optional cross-attention, mlp, placed as a Style says; dropout and stochastic depth."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.nn.attention import Attention
from simvlm_jax.nn.cache import KeyValue, write_keys_values
from simvlm_jax.nn.linear import multiply, transposed_kernels
from simvlm_jax.nn.masks import Mask
from simvlm_jax.nn.mlp import Mlp
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.position import RelativeBias2D
from simvlm_jax.nn.sizes import Size, Style

Branch = Callable[[jax.Array], jax.Array]


class Shared(NamedTuple):
    """What all blocks of a stack get alike.

    mask: of the self-attention; None where all see all. context [B,S,W] and context_mask: of the cross-attention. position
    [B,T] int32: of the tokens, for rotary embedding. bias: added to the logits of the self-attention, broadcastable to [B,H,T,S].
    """

    mask: Mask | None
    context: jax.Array | None = None
    context_mask: Mask | None = None
    position: jax.Array | None = None
    bias: jax.Array | None = None


def attention_of(
    size: Size, dtype: jnp.dtype, style: Style, cross: bool = False, context_width: int | None = None
) -> Attention:
    """The attention of a block: to itself, or to a context of width W."""
    return Attention(
        size.width,
        size.heads,
        dtype,
        style.key_bias,
        source_width=context_width,
        kv_heads=size.kv_heads,
        head_width=size.head_width,
        bias=style.bias,
        norm=norm_of(style, dtype) if style.qk_norm in ("both", "cross" if cross else "self") else None,
        rotary=None if cross else style.rotary,
        scaled=style.scaled,
    )


def mlp_of(size: Size, dtype: jnp.dtype, style: Style) -> Mlp:
    """The mlp of a block."""
    return Mlp(size.mlp, dtype, style.activation, style.gated, style.bias.mlp)


class Block(nn.Module):
    """One layer. Randomness is on exactly when `apply` gets a "dropout" rng, that is, while training.

    relative_grid: (rows, columns) of image tokens at the front of the sequence that get a 2D relative bias; relative_class: a class
    token stands before them. context_width: W of what the cross-attention looks at, where it is not D.
    """

    size: Size
    dtype: jnp.dtype
    cross: bool = False
    relative_grid: tuple[int, int] | None = None
    relative_class: bool = False
    dropout: float = 0.0
    style: Style = Style()
    context_width: int | None = None

    def setup(self):
        size, dtype, style = self.size, self.dtype, self.style
        norm = norm_of(style, dtype)
        if self.relative_grid is not None:
            self.relative = RelativeBias2D(self.relative_grid, size.heads, self.relative_class)
        self.norm_attention = norm()
        self.attention = attention_of(size, dtype, style)
        if self.cross:
            if style.block == "parallel":
                raise ValueError(
                    "block 'parallel' has one norm, and no place for cross-attention between attention and mlp; set cross_every "
                    "for cross-attention in layers of its own"
                )
            self.norm_cross = norm()
            self.cross_attention = attention_of(size, dtype, style, True, self.context_width)
        if style.block != "parallel":
            self.norm_mlp = norm()
        self.mlp = mlp_of(size, dtype, style)
        if style.layer_scale:
            start = nn.with_logical_partitioning(nn.initializers.constant(style.layer_scale), ("D",))
            self.scale_attention, self.scale_mlp = (
                self.param(f"scale_{k}", start, (size.width,)) for k in ("attention", "mlp")
            )

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | None, shared: Shared) -> jax.Array:
        """x [B,T,D], rate of stochastic depth -> x [B,T,D]."""
        x, bias = constrain(x, "BTD"), shared.bias
        if self.relative_grid is not None:
            bias = self.relative(x.shape[1], x.shape[1])
        mask = self._within_window(shared.mask)
        return self._residual(
            x,
            lambda h: self.attention(h, h, mask, bias, shared.position),
            lambda h: self.cross_attention(h, _needed(shared.context), shared.context_mask),
            functools.partial(dropped, self, rate=self.dropout, drop_path=drop_path),
        )

    def context(self, context_BSW: jax.Array) -> KeyValue:
        """Keys and values of the cross-attention, which no step changes."""
        return self.cross_attention.keys_values(context_BSW)

    def step(
        self,
        x: jax.Array,
        cache: KeyValue,
        slot: jax.Array,
        mask: Mask,
        context: KeyValue | None,
        context_mask: Mask | None,
        position: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValue]:
        """New tokens [B,T,D] at `position` [B,T], whose keys and values go into the cache from `slot` on -> ([B,T,D], cache).

        bias: as in Shared, over all slots of the cache.
        """
        x = constrain(x, "BTD")
        if self.relative_grid is not None:
            bias = self.relative(x.shape[1], cache.key.shape[2])
        bounded, written = self._within_window(mask), cache

        def attend(h):
            nonlocal written
            written = write_keys_values(cache, self.attention.keys_values(h, position), slot)
            return self.attention.step(h, written, bounded, bias, position)

        def look(h):
            return self.cross_attention.step(h, _needed(context), context_mask)

        x = self._residual(x, attend, look, lambda h: h)
        return x, written

    def _residual(self, x: jax.Array, attend: Branch, look: Branch, drop: Branch) -> jax.Array:
        """The branches around the residual stream: what attends to the sequence, what looks at a context, the mlp."""
        attend, mlp = self._scaled(attend, "attention"), self._scaled(self.mlp, "mlp")
        if self.style.block == "parallel":
            h = self.norm_attention(x)
            return x + drop(attend(h) + mlp(h))
        branches = [(self.norm_attention, attend), (self.norm_mlp, mlp)]
        if self.cross:
            branches.insert(1, (self.norm_cross, look))
        for norm, branch in branches:
            x = norm(x + drop(branch(x))) if self.style.block == "post" else x + drop(branch(norm(x)))
        return x

    def _scaled(self, branch: Branch, name: str) -> Branch:
        """A branch whose channels are multiplied by learned numbers, if the style has them."""
        if not self.style.layer_scale:
            return branch
        scale = in_use(getattr(self, f"scale_{name}"), "D")
        return lambda h: multiply(branch(h), scale)

    def _within_window(self, mask: Mask | None) -> Mask | None:
        if not self.style.window:
            return mask
        if mask is None:
            raise ValueError(
                f"window {self.style.window} is counted in blocks of the mask, and there is no mask; give one, such as "
                "self_mask(causal(valid)), or set window=0"
            )
        return mask.within(self.style.window)


class CrossLayer(nn.Module):
    """Cross-attention and an mlp as a layer of their own between the blocks of a language model, pre-norm.

    With `style.cross_gate` both branches are multiplied by tanh of a number that begins at 0, so that what was learned without a
    context is undisturbed at first (Flamingo, arXiv 2204.14198, section 2.2; Llama 3, arXiv 2407.21783, section 7.2).
    """

    size: Size
    dtype: jnp.dtype
    dropout: float = 0.0
    style: Style = Style()
    context_width: int | None = None

    def setup(self):
        norm = norm_of(self.style, self.dtype)
        self.norm_cross, self.norm_mlp = norm(), norm()
        self.cross_attention = attention_of(self.size, self.dtype, self.style, True, self.context_width)
        self.mlp = mlp_of(self.size, self.dtype, self.style)
        if self.style.cross_gate:
            closed = nn.with_logical_partitioning(nn.initializers.zeros, ())
            self.gate_cross, self.gate_mlp = (self.param(f"gate_{k}", closed, ()) for k in ("cross", "mlp"))
        else:
            self.gate_cross = self.gate_mlp = None

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | None, shared: Shared) -> jax.Array:
        """x [B,T,D], rate of stochastic depth -> x [B,T,D]."""
        look = lambda h: self.cross_attention(h, _needed(shared.context), shared.context_mask)  # noqa: E731
        drop = functools.partial(dropped, self, rate=self.dropout, drop_path=drop_path)
        return self._residual(x, look, drop)

    def context(self, context_BSW: jax.Array) -> KeyValue:
        """Keys and values of the cross-attention, which no step changes."""
        return self.cross_attention.keys_values(context_BSW)

    def step(self, x: jax.Array, context: KeyValue, context_mask: Mask | None) -> jax.Array:
        """New tokens [B,T,D] -> [B,T,D]."""
        return self._residual(x, lambda h: self.cross_attention.step(h, context, context_mask), lambda h: h)

    def _residual(self, x: jax.Array, look: Branch, drop: Branch) -> jax.Array:
        x = x + drop(self._gated(look(self.norm_cross(x)), self.gate_cross))
        return x + drop(self._gated(self.mlp(self.norm_mlp(x)), self.gate_mlp))

    def _gated(self, h: jax.Array, gate: Any) -> jax.Array:
        return h if gate is None else h * jnp.tanh(gate).astype(h.dtype)


def _needed(context: Any) -> Any:
    """What a cross-attention looks at, or an error where it is missing."""
    if context is None:
        raise ValueError(
            "cross-attention looks at a context, and there is none; give Shared.context [B,S,W], or to a step the keys and values "
            "that `context` made of it"
        )
    return context


def dropped(module: nn.Module, h: jax.Array, rate: float, drop_path: jax.Array | None) -> jax.Array:
    """Dropout, then stochastic depth: a whole residual branch is dropped for a sample with odds `drop_path`.

    Called inside a compact method of the module, which then has the dropout as its own.
    """
    if not module.has_rng("dropout"):
        return h
    if rate:
        h = nn.Dropout(rate, deterministic=False)(h)
    if drop_path is None:
        return h
    return drop_branch(module.make_rng("dropout"), h, drop_path)


def drop_branch(rng: jax.Array, h: jax.Array, rate: jax.Array | float) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): zeroes samples of `h` [B,...] with odds `rate`, scales the others up."""
    keep = jax.random.bernoulli(rng, 1 - rate, (h.shape[0],) + (1,) * (h.ndim - 1))
    return jnp.where(keep, h / (1 - rate), 0).astype(h.dtype)


def decoding_layer(params: dict[str, Any], dtype: jnp.dtype) -> dict[str, Any]:
    """The parameters of a Block or a CrossLayer as a decoding step reads them fastest: matrices in a dtype and transposed.

    Relative biases are added to fp32 logits, and stay as they are; keys and values of a context are made once, of many rows.
    """
    kinds = {
        "attention": dict(query=1, key=1, value=1, out=2),
        "cross_attention": dict(query=1, out=2),
        "mlp": dict(up=1, gate=1, down=1),
    }
    out = {name: transposed_kernels(params[name], dtype, **inputs) for name, inputs in kinds.items() if name in params}
    relative = {name: params[name] for name in ("relative",) if name in params}
    rest = {name: x for name, x in params.items() if name not in relative}
    return {**jax.tree.map(lambda x: x if x.ndim < 2 else x.astype(dtype), {**rest, **out}), **relative}

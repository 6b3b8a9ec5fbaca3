"""A stack of blocks: scanned or unrolled, rematerialised or not. The result does not depend on either."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.nn.block import Block, CrossLayer, Shared, decoding_layer
from simvlm_jax.nn.cache import KeyValue
from simvlm_jax.nn.masks import Mask
from simvlm_jax.nn.sizes import Compute, Size, Style


class Stack(nn.Module):
    """`size.depth` blocks. Stochastic depth rises linearly from 0 at the first block to `drop_path` at the last.

    cross: cross-attention to `Shared.context`, in every block or in layers of its own (`style.cross_every`). context_width: W of
    the context, where it is not D. The other fields: as in Block.
    """

    size: Size
    compute: Compute
    cross: bool = False
    relative_grid: tuple[int, int] | None = None
    relative_class: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    style: Style = Style()
    context_width: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, image_tokens: bool = True) -> jax.Array:
        """[B,T,D] -> [B,T,D].

        image_tokens: whether the sequence begins with the image tokens that `relative_grid` speaks of. Layers of
        cross-attention of their own are passed over where `shared` has no context.
        """
        depth, every = self.size.depth, self._every
        rates = jnp.linspace(0, self.drop_path, depth) if self.drop_path else None
        block = functools.partial(
            self.compute.rematerialised(Block, scanned=self.compute.scan), **self._block(image_tokens)
        )
        cross = functools.partial(self.compute.rematerialised(CrossLayer, scanned=self.compute.scan), **self._cross())
        if not self.compute.scan:
            return run_layers(x, rates, shared, block, cross, depth, every)
        if every:
            layers = Group(block, cross, every, name="layers")
            rates = None if rates is None else rates.reshape(-1, every)
        else:
            layers = block(name="layers")
        scanned = nn.scan(
            lambda layer, x, rate, shared: (layer(x, rate, shared), None),
            length=depth // max(every, 1),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            metadata_params={nn.PARTITION_NAME: "L"},
        )
        return scanned(layers, x, rates, shared)[0]

    def context(self, context_BSW: jax.Array) -> tuple[KeyValue, ...]:
        """Keys and values of every cross-attention, from the first layer that has one to the last."""
        if self._every:
            layer, kind = CrossLayer(**self._cross(), parent=None), "cross_layer_"
        else:
            layer, kind = Block(**self._block(False), parent=None), "layer_"
        layers = [params for name, params in self._layers().items() if name.startswith(kind)]
        context: Any = [layer.apply({"params": params}, context_BSW, method="context") for params in layers]
        return tuple(context)

    def step(
        self,
        x: jax.Array,
        cache: tuple[KeyValue, ...],
        slot: jax.Array,
        mask: Mask,
        context: tuple[KeyValue, ...] = (),
        context_mask: Mask | None = None,
        image_tokens: bool = False,
        position: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        """New tokens [B,T,D] over a cache: ([B,T,D], cache). See Block.step.

        The layers are unrolled, whatever `compute.scan` says, and each has its cache to itself: so it is written in place, and
        nothing is sliced out of a stack and put back.
        """
        block: Any = Block(**self._block(image_tokens), parent=None)
        cross: Any = CrossLayer(**self._cross(), parent=None)
        layers, every, new = self._layers(), self._every, []
        for i in range(self.size.depth):
            if context and _has_cross(i, every):
                params, own = layers[f"cross_layer_{i // every}"], context[i // every]
                x = cross.apply({"params": params}, x, own, context_mask, method="step")
            own = context[i] if context and not every else None
            given = x, cache[i], slot, mask, own, context_mask, position, bias
            x, kept = block.apply({"params": layers[f"layer_{i}"]}, *given, method="step")
            new.append(kept)
        return x, tuple(new)

    @property
    def _every(self) -> int:
        """Every how many blocks a layer of cross-attention stands; 0 for none."""
        every = self.style.cross_every if self.cross else 0
        if every and self.size.depth % every:
            raise ValueError(
                f"cross_every {every} does not divide depth {self.size.depth}; choose a divisor, so that every {every}th block has "
                "its layer of cross-attention and the last one too"
            )
        return every

    def _layers(self) -> dict[str, Any]:
        """The parameters of each layer."""
        params: Any = self.variables["params"]
        return unstacked(params, self.size.depth)

    def _block(self, image_tokens: bool) -> dict[str, Any]:
        return dict(
            **self._cross(),
            cross=self.cross and not self._every,
            relative_grid=self.relative_grid if image_tokens else None,
            relative_class=self.relative_class,
        )

    def _cross(self) -> dict[str, Any]:
        return dict(
            size=self.size,
            dtype=self.compute.activation_dtype,
            dropout=self.dropout,
            style=self.style,
            context_width=self.context_width,
        )


class Group(nn.Module):
    """`every` blocks with the layer of cross-attention that stands in front of the last: what a scan repeats."""

    block: Callable[..., Block]
    cross: Callable[..., CrossLayer]
    every: int

    @nn.compact
    def __call__(self, x: jax.Array, rates: jax.Array | None, shared: Shared) -> jax.Array:
        """x [B,T,D], rates of stochastic depth [every] -> x [B,T,D]."""
        return run_layers(x, rates, shared, self.block, self.cross, self.every, self.every)


def run_layers(
    x: jax.Array,
    rates: jax.Array | None,
    shared: Shared,
    block: Callable[..., Block],
    cross: Callable[..., CrossLayer],
    depth: int,
    every: int,
) -> jax.Array:
    """Blocks "layer_0", "layer_1", ... and layers of cross-attention "cross_layer_0", ... of the calling module, one by one."""
    for i in range(depth):
        rate = None if rates is None else rates[i]
        if shared.context is not None and _has_cross(i, every):
            x = cross(name=f"cross_layer_{i // every}")(x, rate, shared)
        x = block(name=f"layer_{i}")(x, rate, shared)
    return x


def _has_cross(layer: int, every: int) -> bool:
    """Whether a layer of cross-attention stands in front of a block."""
    return bool(every) and layer % every == every - 1


def unstacked(params: dict[str, Any], depth: int) -> dict[str, Any]:
    """The parameters of each of `depth` layers by its name in a stack that is not scanned: "layer_0", "cross_layer_0", ...

    params: of a scanned stack ([L,...] under "layers", or [L / n,...] of each layer in a group of n) or of one that is not.
    """
    if "layers" not in params:
        return params
    scanned = params["layers"]
    pick = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
    every = sum(name.startswith("layer_") for name in scanned)
    if not every:
        return {f"layer_{i}": pick(scanned, i) for i in range(depth)}
    out = {f"layer_{i}": pick(scanned[f"layer_{i % every}"], i // every) for i in range(depth)}
    if "cross_layer_0" in scanned:
        out |= {f"cross_layer_{i}": pick(scanned["cross_layer_0"], i) for i in range(depth // every)}
    return out


def decoding_layers(params: dict[str, Any], depth: int, dtype: jnp.dtype) -> dict[str, Any]:
    """The parameters of a stack of `depth` layers as `Stack.step` reads them fastest; see `nn.block.decoding_layer`."""
    return {name: decoding_layer(layer, dtype) for name, layer in unstacked(params, depth).items()}

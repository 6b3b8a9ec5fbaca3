"""A stack of blocks: scanned or unrolled, rematerialised or not. The result does not depend on either."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.nn.block import Block, Shared
from simvlm_jax.nn.cache import KeyValue
from simvlm_jax.nn.masks import Mask
from simvlm_jax.nn.sizes import Compute, Size, Style


class Stack(nn.Module):
    """`size.depth` blocks. Stochastic depth rises linearly from 0 at the first block to `drop_path` at the last."""

    size: Size
    compute: Compute
    cross: bool = False
    relative_grid: tuple[int, int] | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, image_tokens: bool = True) -> jax.Array:
        """[B,T,D] -> [B,T,D].

        image_tokens: whether the sequence begins with the image tokens that `relative_grid` speaks of.
        """
        depth, kwargs = self.size.depth, self._block(image_tokens)
        rates = jnp.linspace(0, self.drop_path, depth) if self.drop_path else None
        block = self.compute.rematerialised(Block, scanned=self.compute.scan)
        if not self.compute.scan:
            for i in range(depth):
                x = block(**kwargs, name=f"layer_{i}")(x, None if rates is None else rates[i], shared)
            return x
        scanned = nn.scan(
            lambda layer, x, rate, shared: (layer(x, rate, shared), None),
            length=depth,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            metadata_params={nn.PARTITION_NAME: "L"},
        )
        return scanned(block(**kwargs, name="layers"), x, rates, shared)[0]

    def context(self, context_BSW: jax.Array) -> tuple[KeyValue, ...]:
        """Keys and values of every layer's cross-attention."""
        block = Block(**self._block(False), parent=None)
        return tuple(block.apply({"params": layer}, context_BSW, method="context") for layer in self._layers())

    def step(
        self,
        x: jax.Array,
        cache: tuple[KeyValue, ...],
        slot: jax.Array,
        mask: Mask,
        context: tuple[KeyValue, ...] = (),
        context_mask: Mask | None = None,
        image_tokens: bool = False,
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        """New tokens [B,T,D] over a cache: ([B,T,D], cache). See Block.step.

        The layers are unrolled, whatever `compute.scan` says, and each has its cache to itself: so it is written in place, and
        nothing is sliced out of a stack and put back.
        """
        block, new = Block(**self._block(image_tokens), parent=None), []
        for i, layer in enumerate(self._layers()):
            own = context[i] if context else None
            x, kept = block.apply({"params": layer}, x, cache[i], slot, mask, own, context_mask, method="step")
            new.append(kept)
        return x, tuple(new)

    def _layers(self) -> list[Any]:
        """The parameters of each layer."""
        return unstacked(self.variables["params"], self.size.depth)

    def _block(self, image_tokens: bool) -> dict[str, Any]:
        return dict(
            size=self.size,
            dtype=self.compute.activation_dtype,
            cross=self.cross,
            relative_grid=self.relative_grid if image_tokens else None,
            dropout=self.dropout,
            style=self.style,
        )


def unstacked(params: dict[str, Any], depth: int) -> list[Any]:
    """The parameters of each of `depth` layers, scanned ([L,...] under "layers") or not ("layer_0", "layer_1", ...)."""
    if "layers" in params:
        return [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(depth)]
    return [params[f"layer_{i}"] for i in range(depth)]

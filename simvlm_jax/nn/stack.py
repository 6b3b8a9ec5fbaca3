"""A stack of blocks: scanned or unrolled, rematerialised or not. The result does not depend on either."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.nn.block import Block, Shared
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
    def __call__(self, x, shared: Shared, cache=None, image_tokens: bool = True):
        """x [B,T,D] -> (x, cache). Cache leaves are [B,L,S,H,K]; None when there is no cache.

        image_tokens: whether the sequence begins with the image tokens that `relative_grid` speaks of.
        """
        kwargs: dict[str, Any] = dict(
            size=self.size,
            dtype=self.compute.activation_dtype,
            cross=self.cross,
            relative_grid=self.relative_grid if image_tokens else None,
            dropout=self.dropout,
            style=self.style,
        )
        depth = self.size.depth
        rates = jnp.linspace(0, self.drop_path, depth) if self.drop_path else None
        block = self.compute.rematerialised(Block, scanned=self.compute.scan)
        if self.compute.scan:
            scanned = nn.scan(
                block,
                length=depth,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(1, 0, nn.broadcast),  # pyright: ignore[reportArgumentType]
                out_axes=1,
                metadata_params={nn.PARTITION_NAME: "L"},
            )
            return scanned(**kwargs, name="layers")(x, cache or {}, rates, shared)
        new = []
        for i in range(depth):
            old = jax.tree.map(lambda leaf, i=i: leaf[:, i], cache or {})
            x, layer = block(**kwargs, name=f"layer_{i}")(x, old, None if rates is None else rates[i], shared)
            new.append(layer)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *new)


def stack_flops(size: Size, tokens: int, context: int = 0) -> float:
    """Forward FLOPs of a stack over one row; `context` keys of cross-attention, 0 for none."""
    D = size.width
    layer = tokens * (8.0 * D * D + 4.0 * D * size.mlp) + 4.0 * tokens * tokens * D
    if context:
        layer += 4.0 * D * D * (tokens + context) + 4.0 * tokens * context * D
    return size.depth * layer

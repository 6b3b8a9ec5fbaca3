"""Positions: learned and sin-cos tables, 2D relative attention bias, and tables at another resolution. Rotary: nn.rotary."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.sharding import in_use
from simvlm_jax.nn.sizes import statistics_dtype


class LearnedPositions(nn.Module):
    """A learned vector for each of `length` places, positions [B,T] int32 -> [B,T,D] in `dtype`.

    Under jit nobody can see a position: one past the table takes its last row, as `jax.numpy` indexing has it.
    """

    length: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, position_BT: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.width**-0.5), (None, "D"))
        table = self.param("table", init, (self.length, self.width))
        # looked up before the cast, so that the gradient of a row is summed in float32
        return in_use(table, (None, "D"))[position_BT].astype(self.dtype)


def sin_cos(position: jax.Array, width: int, base: float = 10_000.0) -> jax.Array:
    """Sines, then cosines of positions [...] at width / 2 frequencies base^(-2i / width), [..., width] fp32 (or wider).

    Vaswani et al. 2017, section 3.5, with the sines together and not between the cosines.
    """
    if width % 2:
        raise ValueError(f"a sin-cos position of width {width} is half sines, half cosines; choose an even width")
    position = jnp.asarray(position)
    precise = statistics_dtype(position.dtype)
    angle = position.astype(precise)[..., None] * base ** (jnp.arange(0, width, 2, dtype=precise) / -width)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def sin_cos_grid(grid: tuple[int, int], width: int, base: float = 10_000.0) -> jax.Array:
    """2D sin-cos positions of a grid of Y rows and X columns, row by row, [Y*X, width] fp32.

    The first half is the column's, the second the row's, as MAE has it (He et al., arXiv 2111.06377).
    """
    if width % 4:
        raise ValueError(f"2D sin-cos positions of width {width} are four quarters; choose a multiple of 4")
    y, x = (sin_cos(jnp.arange(n, dtype=jnp.float32), width // 2, base) for n in grid)
    halves = jnp.broadcast_to(x[None], (*grid, width // 2)), jnp.broadcast_to(y[:, None], (*grid, width // 2))
    return jnp.concatenate(halves, axis=-1).reshape(-1, width)


class RelativeBias2D(nn.Module):
    """2D relative attention (CoAtNet, arXiv 2106.04803, appendix A.1): one table [2Y-1, 2X-1] a head.

    The bias of image token (y, x) looking at (y', x') is table[y - y' + Y - 1, x - x' + X - 1]. Only pairs of image
    tokens get it; text has none, neither as query nor as key.

    class_token: one stands before the image tokens, and has three numbers a head: as it looks at them, as they look at it, and as
    it looks at itself (BEiT).
    """

    grid: tuple[int, int]
    heads: int
    class_token: bool = False

    @nn.compact
    def __call__(self, queries: int, keys: int):
        """The bias [1,H,T,S] of `queries` looking at `keys`; the first Y*X of both (after a class token) are the image's tokens."""
        Y, X = self.grid
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("H", None, None))
        table = self.param("table", init, (self.heads, 2 * Y - 1, 2 * X - 1))
        y, x = np.divmod(np.arange(Y * X), X)
        dy = y[:, None] - y[None, :] + Y - 1
        dx = x[:, None] - x[None, :] + X - 1
        bias = in_use(table, ("H", None, None))[:, dy, dx]
        seen = Y * X
        if self.class_token:
            three = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("H", None))
            looks, looked, itself = jnp.moveaxis(in_use(self.param("class", three, (self.heads, 3)), ("H", None)), 1, 0)
            column = jnp.broadcast_to(looked[:, None, None], (self.heads, seen, 1))
            row = jnp.concatenate([itself[:, None], jnp.broadcast_to(looks[:, None], (self.heads, seen))], axis=1)
            bias = jnp.concatenate([row[:, None], jnp.concatenate([column, bias], axis=2)], axis=1)
            seen += 1
        if min(queries, keys) < seen:
            raise ValueError(f"a grid of {Y} x {X} image tokens does not fit in a sequence of {min(queries, keys)}")
        return jnp.pad(bias, ((0, 0), (0, queries - seen), (0, keys - seen)))[None]


class RelativeBuckets(nn.Module):
    """Relative positions by buckets of distance (Raffel et al., arXiv 1910.10683, section 2.1): a number a bucket and head.

    Half of the buckets are single distances, the others grow logarithmically up to `furthest`, from which on all are one. both:
    whether keys after the query have buckets of their own (an encoder), or are taken for distance 0, as none sees them.

    Positions of queries [B,T] and keys [B,S] to the bias [B,H,T,S].
    """

    heads: int
    buckets: int = 32
    furthest: int = 128
    both: bool = True

    @nn.compact
    def __call__(self, query_BT: jax.Array, key_BS: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "H"))
        table = in_use(self.param("table", init, (self.buckets, self.heads)), (None, "H"))
        return table[self.bucket(key_BS[:, None] - query_BT[:, :, None])].transpose(0, 3, 1, 2)

    def bucket(self, distance: jax.Array) -> jax.Array:
        """The bucket of each distance, key minus query, int32."""
        count, first = self.buckets, jnp.zeros_like(distance)
        if self.both:
            count //= 2
            first, distance = jnp.where(distance > 0, count, 0), jnp.abs(distance)
        else:
            distance = jnp.maximum(-distance, 0)
        single = count // 2
        far = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / single) / math.log(self.furthest / single)
        far = jnp.minimum(single + (far * (count - single)).astype(distance.dtype), count - 1)
        return first + jnp.where(distance < single, distance, far)


def resize_grid(table: jax.Array, old: tuple[int, int], new: tuple[int, int]):
    """Resizes a position table [..., Y*X, D] bilinearly as a 2D grid; the identity where `old == new`."""
    if old == new:
        return table
    *lead, _, D = table.shape
    grid = table.reshape(*lead, *old, D)
    return jax.image.resize(grid, (*lead, *new, D), "bilinear").reshape(*lead, new[0] * new[1], D)


def resize_relative(table: jax.Array, new: tuple[int, int]):
    """Resizes relative tables [..., 2Y-1, 2X-1] to a new grid (Y, X); offset 0 stays in the centre."""
    shape = (*table.shape[:-2], 2 * new[0] - 1, 2 * new[1] - 1)
    return table if shape == table.shape else jax.image.resize(table, shape, "bilinear")


def resize_relative_tables(params: Any, new: tuple[int, int]) -> Any:
    """Resize every relative table in the parameters of a stack; see `resize_relative`."""

    def fit(path, leaf):
        return resize_relative(leaf, new) if [k.key for k in path[-2:]] == ["relative", "table"] else leaf

    return jax.tree_util.tree_map_with_path(fit, params)


def fit_positions(learned: jax.Array, fresh: jax.Array) -> jax.Array:
    """A table of text positions for another length, [T,D]: the rows that were learned, then those of `fresh`."""
    kept = learned[: len(fresh)]
    return jnp.asarray(fresh).at[: len(kept)].set(kept)

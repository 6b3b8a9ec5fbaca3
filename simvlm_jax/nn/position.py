"""Positions: 2D relative attention bias, and resizing of position tables to another resolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.layout import in_use


class RelativeBias2D(nn.Module):
    """2D relative attention (CoAtNet, arXiv 2106.04803, appendix A.1): one table [2Y-1, 2X-1] a head.

    The bias of image token (y, x) looking at (y', x') is table[y - y' + Y - 1, x - x' + X - 1]. Only pairs of image
    tokens get it; text has none, neither as query nor as key.
    """

    grid: tuple[int, int]
    heads: int

    @nn.compact
    def __call__(self, queries: int, keys: int):
        """The bias [1,H,T,S] of `queries` looking at `keys`; the first Y*X of both are the image's tokens."""
        Y, X = self.grid
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("H", None, None))
        table = self.param("table", init, (self.heads, 2 * Y - 1, 2 * X - 1))
        y, x = np.divmod(np.arange(Y * X), X)
        dy = y[:, None] - y[None, :] + Y - 1
        dx = x[:, None] - x[None, :] + X - 1
        bias = in_use(table, ("H", None, None))[:, dy, dx]
        if min(queries, keys) < Y * X:
            raise ValueError(f"a grid of {Y} x {X} image tokens does not fit in a sequence of {min(queries, keys)}")
        return jnp.pad(bias, ((0, 0), (0, queries - Y * X), (0, keys - Y * X)))[None]


def resize_grid(table, old: tuple[int, int], new: tuple[int, int]):
    """Resizes a position table [..., Y*X, D] bilinearly as a 2D grid; the identity where `old == new`."""
    if old == new:
        return table
    *lead, _, D = table.shape
    grid = table.reshape(*lead, *old, D)
    return jax.image.resize(grid, (*lead, *new, D), "bilinear").reshape(*lead, new[0] * new[1], D)


def resize_relative(table, new: tuple[int, int]):
    """Resizes relative tables [..., 2Y-1, 2X-1] to a new grid (Y, X); offset 0 stays in the centre."""
    shape = (*table.shape[:-2], 2 * new[0] - 1, 2 * new[1] - 1)
    return table if shape == table.shape else jax.image.resize(table, shape, "bilinear")


def fit_positions(learned: jax.Array, fresh: jax.Array) -> jax.Array:
    """A table of text positions for another length, [T,D]: the rows that were learned, then those of `fresh`."""
    kept = learned[: len(fresh)]
    return jnp.asarray(fresh).at[: len(kept)].set(kept)

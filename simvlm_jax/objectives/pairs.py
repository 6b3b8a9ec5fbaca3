"""Sums over all pairs of a global batch in memory that does not grow with it: the core of every contrastive loss.

Rows (images) and columns (texts) are split over devices alike. Columns go once around the ring of devices while rows stay;
where a device's own pairs are many they are taken in tiles; and no pair's logit outlives its tile, for the backward pass
makes it again. What a column gathers on its way (its gradient, its normaliser) travels with it and comes home. On one device,
or outside `core.sharding.use_sharding`, the ring has one member and only tiles are left.

The ring is that of arXiv 2303.15343, section 3.3; the normalisers of a softmax are streamed (Milakov & Gimelshein, arXiv
1805.02867).

Rows and columns are pytrees whose leaves have the pairs' axis first; leaves of integers carry no gradient. Where tiles do not
come out even zeros fill the last, so both hold a `weight`, and a pair in which one is 0 must count for nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from simvlm_jax.core.sharding import row_split, use_sharding

TILE = 1024
"""Rows and columns of a tile, at most: 4 MiB of fp32 logits, in products large enough for any accelerator."""

Tree = Any
"""A pytree of arrays whose leaves have the pairs' axis first."""

OfTile = Callable[[Any, Any, Any], jax.Array]
"""`(params, rows, columns)` of a tile to a scalar (a sum over its pairs), or to logits [r,c]; fp32 or wider."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def pair_sum(of_tile: OfTile, params: Any, rows: Tree, columns: Tree, tile: int = TILE) -> jax.Array:
    """The sum of `of_tile` over every row with every column: a scalar, differentiable in params, rows and columns."""

    def visit(total: jax.Array, r: Tree, _: tuple[()], c: Tree, __: tuple[()]):
        return total + of_tile(params, r, c), (), ()

    def local(params: Any, rows: Tree, columns: Tree, ring: _Ring):
        kind = jax.eval_shape(of_tile, params, _cut(rows, tile, first=True), _cut(columns, tile, first=True)).dtype
        total, _, _ = _walk(visit, jnp.zeros((), kind), _cut(rows, tile), (), _cut(columns, tile), (), ring)
        return (ring.everywhere(total),)

    return _around(local, (params, rows, columns), out=(False,))[0]


def _pair_sum_forward(of_tile: OfTile, params: Any, rows: Tree, columns: Tree, tile: int):
    """A sum's gradient is needed up to a factor that comes later, so one pass makes both."""
    total, *gradients = _value_and_gradients(of_tile, params, rows, columns, tile)
    return total, gradients


def _pair_sum_backward(of_tile: OfTile, tile: int, gradients: list[Any], factor: jax.Array):
    return tuple(jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree) for tree in gradients)


pair_sum.defvjp(_pair_sum_forward, _pair_sum_backward)


def _value_and_gradients(of_tile: OfTile, params: Any, rows: Tree, columns: Tree, tile: int):
    """(sum, its gradients in params, rows and columns; None for integers)."""

    def local(params: Any, rows: Tree, columns: Tree, ring: _Ring):
        def visit(carry: tuple[jax.Array, Any], r: Tree, d_r: Tree, c: Tree, d_c: Tree):
            def value_of(params: Any, real_r: Tree, real_c: Tree) -> jax.Array:
                return of_tile(params, _filled(real_r, r), _filled(real_c, c))

            value, pull = jax.vjp(value_of, params, _real(r), _real(c))
            more = pull(jnp.ones_like(value))
            total, d_params = carry
            return (total + value, _plus(d_params, more[0])), _plus(d_r, more[1]), _plus(d_c, more[2])

        rows_cut, columns_cut = _cut(rows, tile), _cut(columns, tile)
        kind = jax.eval_shape(of_tile, params, _cut(rows, tile, first=True), _cut(columns, tile, first=True)).dtype
        start = (jnp.zeros((), kind), _zeros(params))
        (total, d_params), d_rows, d_columns = _walk(
            visit, start, rows_cut, _zeros(rows_cut), columns_cut, _zeros(columns_cut), ring
        )
        total, d_params = ring.everywhere((total, d_params))
        return total, d_params, _joined(d_rows, rows), _joined(d_columns, columns)

    return _around(local, (params, rows, columns), out=(False, False, True, True))


_Running = tuple[jax.Array, jax.Array]
"""(largest logit so far, sum of exp relative to it), of each row or column of a tile."""


class Normalisers(NamedTuple):
    """Log-sum-exp and largest logit of each row over all columns and of each column over all rows, [B] each."""

    rows: jax.Array
    columns: jax.Array
    row_max: jax.Array
    column_max: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def log_normalisers(logits: OfTile, params: Any, rows: Tree, columns: Tree, tile: int = TILE) -> Normalisers:
    """The normalisers of a softmax over all columns and of one over all rows.

    No gradient flows through the largest logits. `logits` itself makes those of pairs that do not count very low.
    """

    def visit(_: tuple[()], r: Tree, own: _Running, c: Tree, theirs: _Running):
        block = logits(params, r, c)
        return (), _merged(own, block, axis=1), _merged(theirs, block, axis=0)

    def local(params: Any, rows: Tree, columns: Tree, ring: _Ring):
        rows_cut, columns_cut = _cut(rows, tile), _cut(columns, tile)
        kind = jax.eval_shape(logits, params, _cut(rows, tile, first=True), _cut(columns, tile, first=True)).dtype

        def begun(cut: Tree) -> _Running:
            shape = jax.tree.leaves(cut)[0].shape[:2]
            return jnp.full(shape, -jnp.inf, kind), jnp.zeros(shape, kind)

        _, own, theirs = _walk(visit, (), rows_cut, begun(rows_cut), columns_cut, begun(columns_cut), ring)
        (m, s), (mc, sc) = (
            tuple(x.reshape(-1)[: len(jax.tree.leaves(tree)[0])] for x in pair)
            for pair, tree in ((own, rows), (theirs, columns))
        )
        return m + jnp.log(s), mc + jnp.log(sc), m, mc

    return Normalisers(*_around(local, (params, rows, columns), out=(True,) * 4))


def _normalisers_forward(logits: OfTile, params: Any, rows: Tree, columns: Tree, tile: int):
    found = log_normalisers(logits, params, rows, columns, tile)
    return found, (params, rows, columns, found)


def _normalisers_backward(logits: OfTile, tile: int, kept: tuple[Any, Tree, Tree, Normalisers], gradient: Normalisers):
    """The gradient of a log-sum-exp is its softmax: logits are made again, and weighted by theirs."""
    params, rows, columns, found = kept

    def of_tile(params: Any, r: Tree, c: Tree) -> jax.Array:
        block = logits(params, r["of"], c["of"])
        share = r["by"][:, None] * jnp.exp(block - r["normaliser"][:, None])
        share = share + c["by"][None] * jnp.exp(block - c["normaliser"][None])
        return (jax.lax.stop_gradient(share) * block).sum()

    beside = lambda of, by, normaliser: {"of": of, "by": by, "normaliser": normaliser}  # noqa: E731
    both = beside(rows, gradient.rows, found.rows), beside(columns, gradient.columns, found.columns)
    _, d_params, d_rows, d_columns = _value_and_gradients(of_tile, params, *both, tile)
    return d_params, d_rows["of"], d_columns["of"]


log_normalisers.defvjp(_normalisers_forward, _normalisers_backward)


def _merged(seen: _Running, block: jax.Array, axis: int) -> _Running:
    """(largest, sum of exp relative to it) after another block of logits."""
    largest, total = seen
    new = jnp.maximum(largest, block.max(axis))
    return new, total * jnp.exp(largest - new) + jnp.exp(block - jnp.expand_dims(new, axis)).sum(axis)


# ---- the walk: all tiles of all devices --------------------------------------------------------------------------------


class _Ring(NamedTuple):
    """The devices that a batch is split over, in a ring."""

    size: int = 1
    axes: tuple[str, ...] = ()

    def onward(self, tree: Any) -> Any:
        """Sends arrays to the next device of the ring."""
        if self.size == 1:
            return tree
        hops = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, hops), tree)

    def everywhere(self, tree: Any) -> Any:
        """Sums arrays over devices."""
        return tree if self.size == 1 else jax.tree.map(lambda x: jax.lax.psum(x, self.axes), tree)


def _walk(visit: Callable, carry: Any, rows: Tree, row_state: Any, columns: Tree, column_state: Any, ring: _Ring):
    """Calls `visit(carry, r, its state, c, its state)` on every row tile with every column tile, wherever they lie.

    Returns the carry (this device's part of it) and both states, each where its tiles are at home.
    """

    def turn(state: tuple[Any, ...], _: None):
        carry, row_state, columns, column_state = state

        def of_row_tile(state: tuple[Any, Any], inputs: tuple[Tree, Any]):
            carry, column_state = state
            r, own = inputs

            def of_column_tile(state: tuple[Any, Any], inputs: tuple[Tree, Any]):
                carry, own = state
                c, theirs = inputs
                carry, own, theirs = visit(carry, r, own, c, theirs)
                return (carry, own), theirs

            (carry, own), column_state = jax.lax.scan(of_column_tile, (carry, own), (columns, column_state))
            return (carry, column_state), own

        (carry, column_state), row_state = jax.lax.scan(of_row_tile, (carry, column_state), (rows, row_state))
        columns, column_state = ring.onward((columns, column_state))
        return (carry, row_state, columns, column_state), None

    state = (carry, row_state, columns, column_state)
    (carry, row_state, _, column_state), _ = jax.lax.scan(turn, state, None, length=ring.size)
    return carry, row_state, column_state


def _around(local: Callable, inputs: tuple[Any, Tree, Tree], out: tuple[bool, ...]):
    """Runs `local(params, rows, columns, ring)` on every device's share. out: which results are split as rows are."""
    split = row_split(jax.tree.leaves(inputs[1])[0].shape[0])
    if split is None:
        return local(*inputs, _Ring())
    mesh, axes = split
    ring, share, whole = _Ring(math.prod(mesh.shape[a] for a in axes), axes), PartitionSpec(axes), PartitionSpec()
    specs = tuple(share if is_split else whole for is_split in out)

    def share_of_device(*inputs: Any):
        with use_sharding(None):  # the sharding is settled here
            return local(*inputs, ring)

    run = jax.shard_map(
        share_of_device,
        mesh=mesh,
        in_specs=(whole, share, share),
        out_specs=specs,
        check_vma=False,
    )
    return run(*inputs)


# ---- trees -------------------------------------------------------------------------------------------------------------


def _cut(tree: Any, size: int, first: bool = False) -> Any:
    """Leaves [n,...] as even tiles [tiles,size or less,...], filled up with zeros; with `first` the first tile alone."""

    def cut(x: jax.Array) -> jax.Array:
        tiles = -(-x.shape[0] // size)
        each = -(-x.shape[0] // tiles)
        x = jnp.pad(x, [(0, tiles * each - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(tiles, each, *x.shape[1:])

    return jax.tree.map(lambda x: cut(x)[0] if first else cut(x), tree)


def _joined(tree: Any, like: Any) -> Any:
    """Tiles as they were before they were cut."""
    return jax.tree.map(
        lambda x, a: None if x is None else x.reshape(-1, *x.shape[2:])[: len(a)], tree, like, is_leaf=_none
    )


def _none(x: Any) -> bool:
    return x is None


def _is_real(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _real(tree: Any) -> Any:
    """The tree with None in place of integers."""
    return jax.tree.map(lambda x: x if _is_real(x) else None, tree)


def _filled(real: Any, tree: Any) -> Any:
    """`real` with the integers of `tree`."""
    return jax.tree.map(lambda a, b: b if a is None else a, real, tree, is_leaf=_none)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros_like(x) if _is_real(x) else None, tree)


def _plus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)

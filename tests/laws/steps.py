"""One step of a model from parameters off their initial values, on any mesh; each step is compiled once a session."""

import dataclasses
import functools
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import simvlm_jax.train.step
from simvlm_jax.core.sharding import with_sharding
from simvlm_jax.core.trees import match, partition
from simvlm_jax.core.types import Batch, Model, Rows, TrainState
from simvlm_jax.nn.sizes import Compute
from simvlm_jax.parallel.mesh import make_mesh, place_batch, placed, sharding_rules, state_letters
from simvlm_jax.train.step import accumulated, make_train_step

Shapes = tuple[tuple[str, tuple[tuple[str, tuple[int, ...], str], ...]], ...]


class Found(NamedTuple):
    """Gradients and measurements of a step, as numpy."""

    gradients: Any
    measured: dict[str, Any]


def make(model: Model, rows: Rows, dtype: str = "float64"):
    """(model, params) in a dtype, for a batch of pairs."""
    model = dataclasses.replace(model, compute=Compute(dtype, scan=False))
    return model, started(model, {"pairs": rows}, dtype)[0]


def started(model: Model, batch: Batch, dtype: str = "float64"):
    """(params, extra) in a dtype, every parameter off its initial value, so that zeros hide nothing."""
    return _started(model, _shapes(batch), dtype)


def _shapes(batch: Batch) -> Shapes:
    """Shapes of one row, hashable."""
    return tuple(
        (part, tuple((k, x.shape[1:], str(x.dtype)) for k, x in sorted(rows.items()))) for part, rows in batch.items()
    )


def _blank(shapes: Shapes) -> Batch:
    """A batch of one row of zeros."""
    return {part: {k: np.zeros((1, *shape), dtype) for k, shape, dtype in rows} for part, rows in shapes}


@functools.cache
def _started(model: Any, shapes: Shapes, dtype: str):
    rng = np.random.default_rng(1)

    def draw(path, x):  # by shape alone, for a compiled `init` takes longer than a step
        name, drawn = path[-1].key, rng.normal(size=x.shape)
        small = name.endswith(("scale", "bias")) or x.ndim < 2
        return (drawn * (0.1 if small else np.prod(x.shape[:-1]) ** -0.5) + name.endswith("scale")).astype(dtype)

    def cast(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    init = functools.partial(model.init, batch=_blank(shapes))
    made, extra = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(draw, made)
    if jax.tree.leaves(extra):
        extra = nn.unbox(jax.jit(init)(jax.random.key(0))[1])
    return params, model.begin(params, jax.tree.map(cast, extra))


@functools.cache
def _compiled(model: Any, shapes: Shapes, trainable: tuple, accumulate: int, looped: bool, sizes: tuple[int, int, int]):
    """(the mesh, the letters of parameters and extra, the optimizer, a tree of what trains, the jitted step)."""
    mesh = make_mesh(jax.devices()[: int(np.prod(sizes))], *sizes)
    boxed, boxed_extra = jax.eval_shape(model.init, jax.random.key(0), _blank(shapes))
    tx, flags = optax.sgd(1.0), match(nn.unbox(boxed), trainable, True)
    step = make_train_step(model, tx, flags, accumulate)

    def whole(state, batch):
        loop = functools.partial(accumulated, unroll=not looped)  # as accelerators run micro-batches, or as CPUs do
        with mock.patch.object(simvlm_jax.train.step, "accumulated", loop):
            return step(state, batch)

    return mesh, state_letters(boxed, boxed_extra), tx, flags, jax.jit(with_sharding(sharding_rules(mesh), whole))


def one_step(
    model: Any,
    state: Any,
    batch: Batch,
    *,
    trainable: tuple = (),
    accumulate: int = 1,
    looped: bool = False,
    mesh: tuple[int, int, int] = (1, 1, 1),
) -> Found:
    """A step from (params, extra). mesh: its devices for data, fsdp and tensor; looped: micro-batches in a loop, not unrolled."""
    params, extra = state
    place, letters, tx, flags, step = _compiled(model, _shapes(batch), trainable, accumulate, looped, mesh)
    learned, _ = partition(params, flags)
    laid, beside = (
        jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), x, placed(place, letters, x)) for x in (params, extra)
    )
    before = TrainState(jnp.zeros((), jnp.int32), laid, tx.init(learned), beside, jax.random.key(1))
    after, measured = step(before, place_batch(place, batch))
    gradients = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, after.params)
    return Found(gradients, jax.tree.map(np.asarray, measured))


def steps(
    model: Any,
    state: Any,
    batch: Batch,
    number: int,
    *,
    accumulate: int = 1,
    mesh: tuple[int, int, int] = (1, 1, 1),
) -> tuple[Any, Any]:
    """(params, extra) as numpy after so many steps from (params, extra)."""
    place, letters, tx, flags, step = _compiled(model, _shapes(batch), (), accumulate, False, mesh)
    laid, beside = (
        jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), x, placed(place, letters, x)) for x in state
    )
    now = TrainState(jnp.zeros((), jnp.int32), laid, tx.init(partition(laid, flags)[0]), beside, jax.random.key(1))
    for _ in range(number):
        now, _ = step(now, place_batch(place, batch))
    return jax.tree.map(np.asarray, (now.params, now.extra))


def same(found: Found, reference: Found, tolerance: float = 1e-10):
    """Equal within a tolerance of each leaf, or of a hundredth of all."""
    norm = functools.partial(np.linalg.norm, axis=None)
    every = np.sqrt(sum(norm(x) ** 2 for x in jax.tree.leaves(reference.gradients)))
    loss, also = found.measured["loss"], reference.measured["loss"]
    assert abs(loss - also) <= tolerance * abs(also), (loss, also)
    pairs = zip(jax.tree_util.tree_leaves_with_path(found.gradients), jax.tree.leaves(reference.gradients), strict=True)
    for (path, a), b in pairs:
        assert norm(a - b) <= tolerance * max(norm(b), 1e-2 * every), jax.tree_util.keystr(path)


def stacked(tree: Any) -> Any:
    """Parameters of unrolled layers as those of scanned ones."""
    if not isinstance(tree, dict):
        return tree
    layers = [tree[k] for k in sorted((k for k in tree if k.startswith("layer_")), key=lambda k: int(k[6:]))]
    rest = {k: stacked(v) for k, v in tree.items() if not k.startswith("layer_")}
    return {**rest, "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)} if layers else rest


def count(model: Model) -> int:
    """Parameters, of shapes alone."""
    shapes, _ = jax.eval_shape(lambda key: model.init(key, {}), jax.random.key(0))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))

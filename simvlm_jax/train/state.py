"""The train state: fresh, abstract (shapes and shardings), and split into trainable and frozen."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

from simvlm_jax.core.trees import match
from simvlm_jax.core.types import Batch, Model, TrainState
from simvlm_jax.parallel.mesh import replicated
from simvlm_jax.train.optimizer import Optimizer
from simvlm_jax.train.step import partition


def prepare_state(
    model: Model,
    optimizer: Optimizer,
    batch: Batch,
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    steps: int,
    trainable: Sequence[tuple[str, bool]] = (),
) -> tuple[
    Callable[[], TrainState], Callable[[TrainState], TrainState], TrainState, optax.GradientTransformation, dict
]:
    """(make, restart, abstract, tx, flags): how to make a fresh state, how to start the optimizer anew for parameters that
    were put into one, the state's shapes and shardings, the optimizer, and which parameters train."""

    def params_and_extra(key):
        params, extra = model.init(key, batch)
        return nn.unbox(params), extra

    shapes, _ = jax.eval_shape(params_and_extra, jax.random.key(0))
    flags = match(shapes, list(trainable), True, "train.trainable")
    tx = optimizer.make(shapes, steps, flags)

    def fresh() -> TrainState:
        init_key, state_key = jax.random.split(jax.random.key(seed))
        params, extra = params_and_extra(init_key)
        return TrainState(
            jax.numpy.zeros((), jax.numpy.int32), params, tx.init(partition(params, flags)[0]), extra, state_key
        )

    def restarted(state: TrainState) -> TrainState:
        return state._replace(opt=tx.init(partition(state.params, flags)[0]))

    sharding = replicated(mesh)
    abstract: Any = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), jax.eval_shape(fresh)
    )
    jitted = functools.partial(jax.jit, out_shardings=sharding)
    return jitted(fresh), jitted(restarted), abstract, tx, flags

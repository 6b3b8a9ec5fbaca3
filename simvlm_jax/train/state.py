"""What a training run is made of before it has data: its state, in shapes and places, and its compiled step."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from simvlm_jax.core.letters import Letterbook
from simvlm_jax.core.sharding import with_sharding
from simvlm_jax.core.trees import check_same_shapes, match, partition, path_name
from simvlm_jax.core.types import Batch, Model, TrainState
from simvlm_jax.parallel.mesh import placed, replicated, sharding_rules, state_letters
from simvlm_jax.train.optimizer import Optimizer
from simvlm_jax.train.step import make_train_step


class Taken(NamedTuple):
    """What other runs give. params: all of the model's, those that no run has as they were; extra: leaves by name."""

    params: Any
    extra: dict[str, Any]


Initialise = Callable[[TrainState, Letterbook], Taken]
"""`(fresh state, its letters) -> what other runs give`; see train.init_from."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model and an optimizer on a mesh.

    abstract: the state's shapes, dtypes and shardings. letters: of every parameter, and of every leaf of `extra` that the
    model boxed with letters, under "extra/" and its name. flags: which parameters train.
    """

    model: Model
    mesh: jax.sharding.Mesh
    tx: optax.GradientTransformation
    abstract: TrainState
    letters: Letterbook
    flags: dict[str, Any]
    _fresh: Callable[[], TrainState]

    def make(self) -> TrainState:
        """A fresh state, made where it lies: no device and no host ever holds more than its shards."""
        return jax.jit(self._fresh, out_shardings=self._shardings())()

    def start(self, initialise: Initialise | None = None) -> TrainState:
        """The state of step 0: fresh, with what `initialise` takes from other runs, and what follows from that.

        Parameters come first, then the optimizer's state of them, then `extra` as the model's `begin` makes it from them
        (EMA copies), and last what the other runs hold of `extra` themselves.
        """
        state = self.make()
        taken = initialise(state, self.letters) if initialise else None
        if taken is not None:
            state = self.restart(state._replace(params=taken.params))
        extra = self._begin(state)
        if taken is not None:
            extra = jax.tree_util.tree_map_with_path(lambda path, x: taken.extra.get(path_name(path), x), extra)
        return state._replace(extra=extra)

    def _begin(self, state: TrainState) -> Any:
        """The model's `begin`, traced on the mesh; the old extra is donated."""
        begin = jax.jit(
            with_sharding(sharding_rules(self.mesh), self.model.begin),
            out_shardings=self._shardings().extra,
            donate_argnums=1,
        )
        return begin(state.params, state.extra) if jax.tree.leaves(state.extra) else state.extra

    def restart(self, state: TrainState) -> TrainState:
        """The state with an optimizer that begins anew, for parameters that were put into it; the old one's is deleted."""
        for leaf in jax.tree.leaves(state.opt):
            leaf.delete()
        begin = jax.jit(
            lambda params: self.tx.init(partition(params, self.flags)[0]), out_shardings=self._shardings().opt
        )
        return state._replace(opt=begin(state.params))

    def train_step(self, accumulate: int = 1) -> Any:
        """The jitted `(state, batch) -> (state, measurements)`; the state given is donated."""
        function = make_train_step(self.model, self.tx, self.flags, accumulate)
        return jax.jit(
            with_sharding(sharding_rules(self.mesh), function),
            donate_argnums=0,
            out_shardings=(self._shardings(), replicated(self.mesh)),
        )

    def _shardings(self) -> Any:
        return jax.tree.map(lambda a: a.sharding, self.abstract)


def prepare(
    model: Model,
    optimizer: Optimizer,
    batch: Batch,
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    steps: int,
    trainable: Sequence[tuple[str, bool]] = (),
) -> Prepared:
    """All of a run that shapes decide; `batch` is of any kind that has them. Nothing is computed.

    Raises:
      ValueError: the model's `begin` changes the shapes of `extra`.
    """

    def params_and_extra(key):
        params, extra = model.init(key, batch)
        return nn.unbox(params), nn.unbox(extra)

    boxed, boxed_extra = jax.eval_shape(lambda key: model.init(key, batch), jax.random.key(0))
    shapes, extra, letters = nn.unbox(boxed), nn.unbox(boxed_extra), state_letters(boxed, boxed_extra)
    begun = jax.eval_shape(model.begin, shapes, extra)
    check_same_shapes(begun, extra, f"{type(model).__name__}.begin changes the shapes of extra")
    flags = match(shapes, list(trainable), True, "train.trainable")
    tx = optimizer.make(shapes, steps, letters, flags)

    def fresh() -> TrainState:
        init_key, state_key = jax.random.split(jax.random.key(seed))
        params, extra = params_and_extra(init_key)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(partition(params, flags)[0]), extra, state_key)

    abstract: Any = placed(mesh, letters, jax.eval_shape(fresh))
    return Prepared(model, mesh, tx, abstract, letters, flags, fresh)

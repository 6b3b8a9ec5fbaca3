"""Compiled functions: each is kept under what it computes, and runs over any number of rows in calls of one size.

What a function computes is said by the function itself: it is hashable, and two that are equal compute the same. A frozen
dataclass of the model and its static arguments (`Capability`) is one; a function of a module is another. Everything else is an
argument of the compiled call, so that other candidates, queries or seeds of the same shapes compile nothing anew.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from simvlm_jax.core.sharding import with_sharding
from simvlm_jax.core.types import Model, Rows
from simvlm_jax.parallel.environment import decoding_options
from simvlm_jax.parallel.mesh import place_everywhere, replicated, row_shards, sharding_rules

Computation = Callable[..., Any]
"""A pure, hashable function `(params, extra, *arrays)` that equals every other that computes the same."""

Array = np.ndarray | np.generic


@dataclasses.dataclass(frozen=True)
class PrefillAndSteps:
    """A prefill and the decoding steps after it, compiled apart, so that the steps have compiler options of their own."""

    prefill: Computation
    steps: Computation

    def __call__(self, params: Any, extra: Any, batch: Rows, /, *arrays: Any) -> Any:
        return self.steps(params, extra, batch["id"], self.prefill(params, extra, batch), *arrays)


@dataclasses.dataclass(frozen=True)
class Capability:
    """A capability of a model, by its name."""

    model: Model
    name: str

    def __call__(self, params: Any, extra: Any, /, *arrays: Any) -> Any:
        return self.model.capabilities()[self.name](params, extra, *arrays)


class Gathered:
    """Rows `array[index]` that are gathered a batch at a time: images that stand in many pairs are held once."""

    def __init__(self, array: np.ndarray, index: np.ndarray):
        self._array, self._index = array, np.asarray(index)
        self.shape, self.dtype = (len(self._index), *array.shape[1:]), array.dtype

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._array[self._index[rows]]


class Programs:
    """Compiled functions by computation and mesh, and the sizes that they were compiled for."""

    def __init__(self):
        self._compiled: dict[Any, Callable] = {}
        self._sizes: dict[Any, set[int]] = {}

    def compiled(self, mesh: jax.sharding.Mesh, function: Computation, whole: bool = True) -> Callable:
        """The compiled `function`, whose outputs lie whole on every device of the mesh, or as its inputs do."""
        key = function, mesh, whole
        if key not in self._compiled:
            if isinstance(function, PrefillAndSteps):
                self._compiled[key] = self._apart(mesh, function, whole)
            else:
                self._compiled[key] = _compiled(mesh, function, whole)
        return self._compiled[key]

    def _apart(self, mesh: jax.sharding.Mesh, function: PrefillAndSteps, whole: bool) -> Callable:
        prefill = self.compiled(mesh, function.prefill, whole=False)
        options = decoding_options(mesh.devices.flat[0].platform)
        return PrefillAndSteps(prefill, _compiled(mesh, function.steps, whole, options))

    def over(
        self,
        mesh: jax.sharding.Mesh,
        function: Computation,
        params: Any,
        extra: Any,
        rows: Mapping[str, np.ndarray | Gathered],
        whole: tuple[Array, ...],
        most: int,
    ) -> Any:
        """Runs `function(params, extra, batch, *whole)` over rows [N,...] of any N; its outputs [N,...] as numpy.

        rows are split over the devices, `whole` arrays lie on each of them. The last batch is filled up with copies of its
        last row, whose results are dropped. The device works on a batch while the host makes the next one ready and takes
        the results of the last. most: rows of a call, a multiple of the mesh's row shards.

        Raises:
          ValueError: the function reads an array that the rows do not have.
        """
        total = len(next(iter(rows.values())))
        size = self._rows_of_a_call(mesh, function, rows, whole, total, most)
        program, everywhere = self.compiled(mesh, function), tuple(place_whole(mesh, x) for x in whole)
        outputs, running = [], None
        for start in range(0, total, size):
            batch = {k: padded(v[start : start + size], size) for k, v in rows.items()}
            dispatched = _call(program, function, params, extra, place_everywhere(mesh, batch), everywhere)
            if running is not None:
                outputs.append(_fetched(running, size))
            running = dispatched
        outputs.append(_fetched(running, total - size * len(outputs)))
        return outputs[0] if len(outputs) == 1 else jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

    def _rows_of_a_call(
        self,
        mesh: jax.sharding.Mesh,
        function: Computation,
        rows: Mapping[str, np.ndarray | Gathered],
        whole: tuple[Array, ...],
        total: int,
        most: int,
    ) -> int:
        """`most`; where there are fewer rows in all, the fewest that an earlier call was compiled for and that hold them, else
        they themselves, rounded up to a power of two for each part of the mesh.

        So the last batch of many is filled up, and a few rows are not filled up to thousands.
        """
        shapes = tuple((k, v.shape[1:], v.dtype) for k, v in sorted(rows.items()))
        key = function, mesh, shapes, tuple((x.shape, x.dtype) for x in whole)
        known, shards = self._sizes.setdefault(key, set()), row_shards(mesh)
        if fits := [n for n in known if total <= n <= most]:
            return min(fits)
        needed = min(most, shards * 2 ** (-(-total // shards) - 1).bit_length())
        known.add(needed)
        return needed


def _compiled(mesh: jax.sharding.Mesh, function: Computation, whole: bool, options: Any = None) -> Callable:
    sharded = with_sharding(sharding_rules(mesh), lambda *args: function(*args))
    return jax.jit(sharded, out_shardings=replicated(mesh) if whole else None, compiler_options=options)


def place_whole(mesh: jax.sharding.Mesh, array: Array) -> jax.Array:
    """Places an array that every process holds, whole on every device."""
    held = np.asarray(array)
    return jax.make_array_from_callback(held.shape, replicated(mesh), lambda index: held[index])


def padded(rows: np.ndarray, count: int) -> np.ndarray:
    """Pads rows to [count,...]: those there are, and copies of the last."""
    missing = count - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def _call(program: Callable, function: Computation, params: Any, extra: Any, batch: Rows, whole: tuple) -> Any:
    """Dispatches a call; what its rows lack is named."""
    try:
        return program(params, extra, batch, *whole)
    except KeyError as e:  # while it is traced: a model reads a key of a row that is not there
        if e.args and isinstance(e.args[0], str) and e.args[0] not in batch:
            traced = function.prefill if isinstance(function, PrefillAndSteps) else function
            model = type(getattr(traced, "model", traced)).__name__
            raise ValueError(
                f"{model} needs {e.args[0]!r} in every row, and these rows have {', '.join(sorted(batch))}"
            ) from e
        raise


def _fetched(outputs: Any, count: int) -> Any:
    """The first `count` rows of every output, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[:count], outputs)

"""The device mesh, and the two tables that say which axis of it a letter claims.

Three axes: batches are split over `data` and `fsdp`, parameters over `fsdp` (and gathered to be used) and `tensor`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from simvlm_jax.core.letters import SCANNED, Letterbook
from simvlm_jax.core.sharding import Letters
from simvlm_jax.core.trees import path_name
from simvlm_jax.core.types import Batch, Rows

AXES = DATA, FSDP, TENSOR = ("data", "fsdp", "tensor")
PARAMETERS = {
    **dict.fromkeys(("V", "H", "G", "F"), (TENSOR,)),
    **dict.fromkeys(("D", "C", "N"), (FSDP,)),
}
ACTIVATIONS = {"B": (DATA, FSDP), "V": (TENSOR,), "H": (TENSOR,), "G": (TENSOR,), "F": (TENSOR,)}


def mesh_shape(devices: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> tuple[int, int, int]:
    """The sizes of the three axes over a number of devices; one of them may be -1, whatever is left.

    Raises:
      ValueError: the sizes do not make up the devices.
    """
    sizes = [data, fsdp, tensor]
    named = f"config.mesh data={data}, fsdp={fsdp}, tensor={tensor}"
    if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise ValueError(f"{named}: sizes are positive, and one at most is -1 (whatever is left)")
    given = math.prod(n for n in sizes if n != -1)
    if -1 in sizes and devices % given == 0:
        sizes[sizes.index(-1)] = devices // given
    if math.prod(sizes) != devices:
        raise ValueError(
            f"{named}: makes up {given} devices (or a multiple of them, with a -1), and there are {devices}; "
            "set config.mesh.data=-1 and let fsdp times tensor divide the devices"
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(devices=None, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices (or the given ones); see `mesh_shape`."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(len(devices), data, fsdp, tensor)
    grid = mesh_utils.create_device_mesh(shape, list(devices), allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Axis 0 over the axes of the batch."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATIONS["B"]))


def row_shards(mesh: Mesh) -> int:
    """In how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in ACTIVATIONS["B"])


@dataclasses.dataclass(frozen=True)
class MeshShardingRules:
    """What letters mean on a mesh (a `core.sharding.ShardingRules`): the first claim to an axis wins, left to right.

    A letter whose size its axis does not divide is whole; where that is the one that fsdp splits, the first other axis that
    fsdp divides is split instead. Vectors are never split by fsdp: gathering them costs more than they weigh.
    """

    mesh: Mesh

    @property
    def gathers(self) -> bool:
        return self.mesh.shape[FSDP] > 1

    def parameter(self, letters: Letters, shape: Sequence[int]) -> NamedSharding:
        axes = [i for i, letter in enumerate(letters) if letter != SCANNED]
        table = PARAMETERS if len(axes) > 1 else {k: v for k, v in PARAMETERS.items() if FSDP not in v}
        spec = self._claims(letters, shape, table)
        wants = any(FSDP in table.get(letter or "", ()) for letter in letters)
        if wants and not any(FSDP in (entry or ()) for entry in spec):
            free = [i for i in axes if not spec[i] and shape[i] > 1 and shape[i] % self.mesh.shape[FSDP] == 0]
            if free:
                spec[free[0]] = (FSDP,)
        return self._sharding(spec)

    def activation(self, letters: Letters, shape: Sequence[int]) -> NamedSharding:
        return self._sharding(self._claims(letters, shape, ACTIVATIONS))

    def _claims(self, letters: Letters, shape: Sequence[int], table: dict[str, tuple[str, ...]]) -> list[Any]:
        taken, spec = set(), []
        for letter, size in zip(letters, shape, strict=True):
            axes = table.get(letter or "", ())
            fits = axes and not taken & set(axes) and size % math.prod(self.mesh.shape[a] for a in axes) == 0
            spec.append(axes if fits else None)
            taken |= set(axes) if fits else set()
        return spec

    def _sharding(self, spec: list[Any]) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*(s[0] if s and len(s) == 1 else s for s in spec)))


def sharding_rules(mesh: Mesh) -> MeshShardingRules | None:
    """The sharding rules of a mesh; None of one device, which needs none."""
    return MeshShardingRules(mesh) if mesh.size > 1 else None


EXTRA = "extra/"
"""Before the names of leaves of `extra` in a book of letters."""


def letters_of(boxed: Any) -> dict[str, tuple[str | None, ...]]:
    """The letters of parameters as a model's `init` makes them (boxed by flax)."""
    return {name: letters or (None,) * ndim for name, letters, ndim in _boxes(boxed)}


def state_letters(boxed: Any, boxed_extra: Any) -> dict[str, tuple[str | None, ...]]:
    """The letters of parameters and extra as a model's `init` makes them.

    A leaf of extra without letters of its own is not in the book: it has those of the parameter that its name ends in, as
    momentum and EMA copies do, or none (see `letters_at`).
    """
    own = {EXTRA + name: letters for name, letters, _ in _boxes(boxed_extra) if letters is not None}
    return {**letters_of(boxed), **own}


def _boxes(boxed: Any) -> list[tuple[str, tuple[str | None, ...] | None, int]]:
    """(name, letters or None, axes) of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: hasattr(x, "names"))
    return [
        (path_name(path), tuple(x.names) if hasattr(x, "names") else None, getattr(x, "value", x).ndim)
        for path, x in leaves
    ]


def letters_at(book: Letterbook, name: str) -> tuple[str | None, ...] | None:
    """The letters of the longest ending of a name that the book has ("opt/0/mu/a/kernel" has those of "a/kernel"), or None."""
    parts = name.split("/")
    return next((tuple(book[key]) for i in range(len(parts)) if (key := "/".join(parts[i:])) in book), None)


def placement(mesh: Mesh, book: Letterbook) -> Callable[[str, Sequence[int]], NamedSharding]:
    """`(name, shape) -> sharding` of anything that is kept: parameters, and what stands beside them.

    A name that ends in a parameter's lies as that parameter does (moments, averages, targets) where it has as many axes.
    Everything else (counts, factored moments) is whole.
    """
    rules = MeshShardingRules(mesh)

    def place(name: str, shape: Sequence[int]) -> NamedSharding:
        letters = letters_at(book, name) or ()
        return rules.parameter(letters, shape) if len(letters) == len(shape) else replicated(mesh)

    return place


def placed(mesh: Mesh, book: Letterbook, tree: Any) -> Any:
    """A tree of shapes as ShapeDtypeStructs that know where they lie."""
    place = placement(mesh, book)
    return jax.tree_util.tree_map_with_path(
        lambda path, a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place(path_name(path), a.shape)), tree
    )


def rows_of_process(mesh: Mesh, rows: int) -> Sequence[int]:
    """Which rows of a global batch this process has to make, in their order."""
    if jax.process_count() == 1:
        return range(rows)
    _check_rows(rows, mesh)
    parts = by_row(mesh).addressable_devices_indices_map((rows,)).values()
    return sorted({i for part in parts if part for i in range(*part[0].indices(rows))})


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
    """This process's rows (see `rows_of_process`) as global arrays, rows over devices.

    Raises:
      ValueError: the rows do not divide over the devices.
    """

    def place(x):
        x = np.asarray(x)
        if jax.process_count() == 1:
            _check_rows(x.shape[0], mesh)
            return jax.device_put(x, by_row(mesh))
        return jax.make_array_from_process_local_data(by_row(mesh), x)

    return jax.tree.map(place, batch)


def place_everywhere(mesh: Mesh, rows: Rows) -> Rows:
    """Places rows that every process holds as global arrays, split over the devices."""

    def place(x):
        x = np.asarray(x)
        _check_rows(x.shape[0], mesh)
        return jax.make_array_from_callback(x.shape, by_row(mesh), lambda index: x[index])

    return jax.tree.map(place, rows)


def check_parts(rows: int, mesh: Mesh, accumulate: int) -> None:
    """An error where the micro-batches of a batch do not divide over the devices."""
    shards = row_shards(mesh)
    if rows % (shards * accumulate):
        raise ValueError(
            f"{rows} rows do not divide over {shards} shards x {accumulate} micro-batches; change config.train.batch_size, "
            "the `rows` of a part in config.data.parts, config.train.accumulate or config.mesh"
        )


def _check_rows(rows: int, mesh: Mesh) -> None:
    shards = row_shards(mesh)
    if rows % shards:
        raise ValueError(
            f"{rows} rows do not divide over {shards} devices; make every part of the batch "
            f"(config.train.batch_size, or its own config.data.parts.NAME.rows) a multiple of {shards}"
        )

"""Whether two runs are the same: states leaf by leaf, metrics row by row."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from simvlm_jax.core.trees import path_name
from simvlm_jax.run.directory import RunDir

SPEEDS = ("images_per_s", "tokens_per_s", "mfu", "input_bound")


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of one part of the state. apart: |a - b| over |a|, norms over all its leaves."""

    leaves: int
    differing: int
    apart: float


def compare_states(a: Path, b: Path, step: int) -> dict[str, Difference]:
    """Parameters, optimizer, other state and random key of two runs' checkpoints of a step.

    Raises:
      ValueError: the two do not hold the same leaves.
    """
    one, two = _leaves(a, step), _leaves(b, step)
    if one.keys() != two.keys():
        raise ValueError(f"{a} and {b} hold different leaves: {sorted(one.keys() ^ two.keys())[:5]}")
    out: dict[str, Difference] = {}
    for part in sorted({name.split("/")[0] for name in one}):
        names = [n for n in one if n.split("/")[0] == part]
        differing = [n for n in names if one[n].tobytes() != two[n].tobytes() or one[n].shape != two[n].shape]
        apart = sum(float(np.sum((one[n].astype(float) - two[n].astype(float)) ** 2)) for n in differing)
        norm = sum(float(np.sum(one[n].astype(float) ** 2)) for n in names)
        out[part] = Difference(len(names), len(differing), (apart / max(norm, 1e-30)) ** 0.5)
    return out


def _leaves(run: Path, step: int) -> dict[str, np.ndarray]:
    folder = RunDir(run).checkpoints.absolute() / str(step) / "state"
    with ocp.StandardCheckpointer() as reader:
        saved = reader.metadata(folder).item_metadata.tree
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def shape(m: Any) -> Any:
            return jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here)

        got = reader.restore(folder, jax.tree.map(shape, saved, is_leaf=lambda m: hasattr(m, "dtype")))
    named = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(got)}
    return {k: np.asarray(_plain(v)) for k, v in named.items()}


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _rows(run: Path) -> list[dict[str, Any]]:
    """What was measured, speeds left out."""
    return [{k: v for k, v in r.items() if k not in SPEEDS} for r in RunDir(run).rows()]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of two runs. steps: logged by both in training. equal: all rows, in order. loss_gap: the largest relative
    difference of the loss, infinite where a step is missing or twice; samples: whether all batches agree."""

    steps: int
    equal: bool
    samples: bool
    loss_gap: float


def compare_rows(a: Path, b: Path) -> Rows:
    """The rows that two runs logged."""
    one, two = ([r for r in _rows(run) if r["split"] == "train"] for run in (a, b))
    same = [r["step"] for r in one] == [r["step"] for r in two] and len({r["step"] for r in one}) == len(one)
    pairs = list(zip(one, two, strict=False)) if same else []
    gaps = [abs(x["loss"] - y["loss"]) / max(abs(x["loss"]), 1e-12) for x, y in pairs]
    samples = same and all("samples" in x and x["samples"] == y.get("samples") for x, y in pairs)
    return Rows(len(pairs), _rows(a) == _rows(b), samples, max(gaps, default=0.0) if same else float("inf"))

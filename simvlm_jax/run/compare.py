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
    """Of one part of the state. worst: the largest |a - b| over the larger norm of the two leaves; 0 is bit for bit."""

    leaves: int
    differing: int
    worst: float


def compare_states(a: Path, b: Path, step: int) -> dict[str, Difference]:
    """Parameters, optimizer, other state and random key of two runs' checkpoints of a step.

    Raises:
      ValueError: the two do not hold the same leaves.
    """
    one, two = _leaves(a, step), _leaves(b, step)
    if one.keys() != two.keys():
        raise ValueError(f"{a} and {b} hold different leaves: {sorted(one.keys() ^ two.keys())[:5]}")
    out: dict[str, list[float]] = {part: [] for part in ("params", "opt", "extra", "rng", "step")}
    for name in one:
        x, y = one[name], two[name]
        if x.tobytes() == y.tobytes() and x.shape == y.shape:
            out[name.split("/")[0]].append(0.0)
        else:
            scale = max(np.linalg.norm(x.ravel()), np.linalg.norm(y.ravel()), 1e-30)
            out[name.split("/")[0]].append(max(float(np.linalg.norm((x - y).ravel()) / scale), 1e-300))
    return {k: Difference(len(v), sum(d > 0 for d in v), max(v, default=0.0)) for k, v in out.items() if v}


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


def training_rows(run: Path) -> dict[int, dict[str, float]]:
    """What was measured of every training step, speeds left out."""
    rows = [r for r in RunDir(run).rows() if r["split"] == "train"]
    return {r["step"]: {k: v for k, v in r.items() if k not in (*SPEEDS, "split", "step")} for r in rows}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Training rows of two runs. loss_gap: the largest relative difference of the loss; samples: whether all batches agree."""

    steps: int
    equal: bool
    samples: bool
    loss_gap: float


def compare_rows(a: Path, b: Path) -> Rows:
    """The rows that two runs logged; a step that only one has is a difference."""
    one, two = training_rows(a), training_rows(b)
    both = sorted(one.keys() & two.keys())
    gaps = [abs(one[s]["loss"] - two[s]["loss"]) / max(abs(one[s]["loss"]), 1e-12) for s in both]
    same = one.keys() == two.keys()
    samples = same and all(one[s].get("samples") == two[s].get("samples") for s in both)
    return Rows(len(both), one == two, samples, max(gaps, default=0.0) if same else float("inf"))

"""Checkpoints by Orbax: asynchronous, atomic, kept by policy, restored straight onto the mesh."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

_STATE = "state"


class Checkpoints:
    """The checkpoints of a run.

    latest: how many of the newest to keep; every: keep each step divisible by it (0: none); best: name of the metric
    whose best checkpoint is kept (None: none); its higher values are better unless the name ends in "loss".
    """

    def __init__(self, path: Path, latest: int = 2, every: int = 0, best: str | None = None, read_only: bool = False):
        policies: list[Any] = [keep.LatestN(latest)]
        if every:
            policies.append(keep.EveryNSteps(every))
        if best:
            # Orbax keeps the last of the sorted list
            policies.append(
                keep.BestN(
                    get_metric_fn=lambda m: m[best], reverse=best.endswith("loss"), n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._best = best
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
            save_interval_steps=1,
        )
        self._manager = ocp.CheckpointManager(path.absolute(), options=options, item_names=(_STATE,))

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the best checkpoint kept by metric, else the newest."""
        if not self._best:
            return self.latest_step()
        steps = {s: (self._manager.metrics(s) or {}).get(self._best) for s in self._manager.all_steps()}
        scored = {s: v for s, v in steps.items() if v is not None}
        pick = min if self._best.endswith("loss") else max
        return pick(scored, key=lambda s: (scored[s], s)) if scored else self.latest_step()

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Starts a save; it is visible once complete. A step that exists is left alone."""
        if step in self._manager.all_steps():
            return
        scored = metrics if self._best and metrics and self._best in metrics else None
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=scored, force=True)

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a step, onto the shapes, dtypes and shardings of `abstract`."""
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))[_STATE]

    def restore_params(self, step: int, sharding: Any) -> tuple[Any, Any]:
        """(params, extra) of a step, without the optimizer; shapes as saved. The weight average stands in, if there is one."""
        directory = Path(str(self._manager.directory)) / str(step) / _STATE
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(directory).item_metadata.tree
            wanted = {k: tree[k] for k in ("params", "extra", "opt") if tree.get(k)}
            wanted["opt"] = {k: v for k, v in _averages(wanted.get("opt", {})).items()}
            abstract = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding), wanted, is_leaf=lambda m: hasattr(m, "dtype")
            )
            args = jax.tree.map(lambda a: ocp.ArrayRestoreArgs(sharding=sharding, global_shape=a.shape), abstract)
            got = reader.restore(
                directory, args=ocp.args.PyTreeRestore(item=abstract, restore_args=args, partial_restore=True)
            )
        average = next(iter(jax.tree.leaves(got["opt"], is_leaf=lambda x: isinstance(x, dict) and "average" in x)), None)
        params = got["params"]
        if isinstance(average, dict):
            params = _overlay(params, average["average"])
        return params, got.get("extra", {})

    def wait(self) -> None:
        """Blocks until saves under way are complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _averages(opt: Any) -> dict:
    """The part of a saved optimizer state that holds a weight average."""
    if not isinstance(opt, dict):
        return {}
    out = {}
    for k, v in opt.items():
        if isinstance(v, dict) and "average" in v:
            out[k] = {"average": v["average"]}
        elif inner := _averages(v):
            out[k] = inner
    return out


def _overlay(params: dict, other: dict) -> dict:
    return {k: _overlay(v, other.get(k, {})) if isinstance(v, dict) else other.get(k, v) for k, v in params.items()}

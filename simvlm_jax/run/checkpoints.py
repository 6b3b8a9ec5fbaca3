"""Checkpoints by Orbax: asynchronous, atomic, kept by policy, restored straight onto the mesh."""

import contextlib
import functools
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from simvlm_jax.core.trees import path_name
from simvlm_jax.run.checksums import checksums, damaged

_STATE, _WEIGHTS, _ABOUT, _SUMS = "state", "weights", "about", "checksums"
MOST_PARAMETERS = 2**42
_WRITTEN_IN_PARTS = 2**23
"""Bytes from which an array that all devices of a process hold may be written by each of them in part."""


@functools.cache
def _say_it_once() -> None:
    """Keeps what Orbax leaves behind when it gives up on a damaged checkpoint (closed loops, unread coroutines) from printing
    tracebacks of their own: the error itself has been raised."""

    def left_behind(kind: Any, error: Any, where: Any = None) -> bool:
        code = getattr(where, "cr_code", None)
        return (kind is RuntimeError and "Event loop is closed" in str(error)) or "orbax" in getattr(
            code, "co_filename", ""
        )

    unraisable, uncaught = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = lambda e: None if left_behind(e.exc_type, e.exc_value, e.object) else unraisable(e)
    sys.excepthook = lambda kind, e, trace: None if left_behind(kind, e) else uncaught(kind, e, trace)


class Checkpoints:
    """The checkpoints of a run.

    latest: how many of the newest to keep; every: keep each step divisible by it (0: none); best: name of the metric
    whose best checkpoint is kept (None: none); its higher values are better unless the name ends in "loss".
    """

    def __init__(
        self,
        path: Path,
        latest: int = 2,
        every: int = 0,
        best: str | None = None,
        read_only: bool = False,
        about: dict[str, Any] | None = None,
    ):
        """about: what the weights belong to (tokenizer, answers, model), plain values that each save records."""
        self.about = about or {}
        _say_it_once()
        policies: list[Any] = [keep.LatestN(latest)]
        if every:
            policies.append(keep.EveryNSteps(every))
        if best:
            # Orbax keeps the last of the sorted list
            policies.append(
                keep.BestN(
                    get_metric_fn=lambda m: m[best],
                    reverse=best.endswith("loss"),
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._best = best
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            best_fn=(lambda m: m[best]) if best else None,  # Orbax writes metrics down only when it has one
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
            save_interval_steps=1,
            async_options=ocp.AsyncOptions(timeout_secs=7 * 86400),  # by a clock that may jump
        )
        self._manager = ocp.CheckpointManager(path.absolute(), options=options, item_names=(_STATE, _WEIGHTS))

    @property
    def scored(self) -> bool:
        """Whether checkpoints are kept by a metric, so that a save should come with scores."""
        return self._best is not None

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the best checkpoint kept by metric, else the newest."""
        if not self._best:
            return self.latest_step()
        try:
            steps = {s: (self._manager.metrics(s) or {}).get(self._best) for s in self._manager.all_steps()}
        except Exception as e:
            raise ValueError(f"the scores of the checkpoints in {self._manager.directory} cannot be read: {e}") from e
        scored = {s: v for s, v in steps.items() if v is not None}
        pick = min if self._best.endswith("loss") else max
        return pick(scored, key=lambda s: (scored[s], s)) if scored else self.latest_step()

    def save(self, step: int, state: Any, weights: Any, metrics: dict[str, float] | None = None) -> None:
        """Starts a save of the train state and of the weights to evaluate, (params, extra); a step that exists stays.

        The weights stand beside the state so that a run can be used without knowing its optimizer.

        Raises:
          OSError: an earlier save could not be written.
        """
        if step in self._manager.all_steps():
            return
        scored = metrics if self._best and metrics and self._best in metrics else None
        items = {_STATE: state, _WEIGHTS: {"params": weights[0], "extra": weights[1]}}
        with self._written():
            kept = {_ABOUT: self.about, _SUMS: {name: checksums(tree) for name, tree in items.items()}}
            args = {name: ocp.args.StandardSave(jax.tree.map(_one_copy, tree)) for name, tree in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=scored, force=True, custom_metadata=kept)

    def save_weights(self, step: int, weights: Any) -> None:
        """Starts a save of weights alone, (params, extra): to be used and started from, and never trained on.

        Raises:
          OSError: it cannot be written.
        """
        tree = {"params": weights[0], "extra": weights[1]}
        with self._written():
            kept = {_ABOUT: self.about, _SUMS: {_WEIGHTS: checksums(tree)}}
            args = ocp.args.Composite(**{_WEIGHTS: ocp.args.StandardSave(tree)})
            self._manager.save(step, args=args, force=True, custom_metadata=kept)

    def check_about(self, step: int) -> None:
        """Compares what the weights of a step belong to with `about`, as far as both tell it.

        Raises:
          ValueError: they belong to another tokenizer, answer list or model; the message names the fields.
        """
        found = self._record(step, _ABOUT)
        wrong = [
            f"{k}: {found[k]!r:.80} in the checkpoint, {self.about[k]!r:.80} here"
            for k in sorted({*found} & {*self.about})
            if found[k] != self.about[k]
        ]
        if wrong:
            raise ValueError(
                f"the weights of {self._folder(step)} belong to something else than what lies beside them; put back the "
                "tokenizer, labels.json and config.json of the run\n  " + "\n  ".join(wrong)
            )

    def _record(self, step: int, what: str) -> dict[str, Any]:
        """What a save has recorded beside its arrays; {} of an older one."""
        try:
            return (self._manager.metadata(step).custom_metadata or {}).get(what) or {}
        except Exception as e:
            raise self._unreadable(step, e) from e

    def _check_bits(self, step: int, what: str, tree: Any) -> Any:
        """The tree, whose bits are those that were saved.

        Raises:
          ValueError: they are others.
        """
        if wrong := damaged(tree, self._record(step, _SUMS).get(what) or {}):
            more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
            raise self._unreadable(step, ValueError(f"bits of {wrong[0]}{more} are not those that were saved"))
        return tree

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a step, onto the shapes, dtypes and shardings of `abstract`.

        Raises:
          ValueError: it cannot be read, or belongs to something else; the message says what to remove to go on from an
            earlier one.
        """
        self.check_about(step)
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        self._check_structure(step, abstract)
        try:
            state = self._manager.restore(step, args=wanted)[_STATE]
        except Exception as e:  # Orbax and its file formats raise many kinds
            raise self._unreadable(step, e) from e
        return self._check_bits(step, _STATE, state)

    def _check_structure(self, step: int, abstract: Any) -> None:
        """Compares the optimizer's state of a step with the one it is to be restored as, by paths and shapes.

        Raises:
          ValueError: its structure differs; the message names the first leaves that differ.
        """
        try:
            with ocp.StandardCheckpointer() as reader:
                saved = reader.metadata(self._folder(step) / _STATE).item_metadata.tree
            found, wanted = _shapes(saved["opt"]), _shapes(abstract.opt)
        except Exception:  # what cannot be read is told of by who reads it
            return
        if found == wanted:
            return
        names = sorted(k for k in {*found} | {*wanted} if found.get(k) != wanted.get(k))
        lines = [
            f"{k}: {found.get(k, 'nothing')} in the checkpoint, {wanted.get(k, 'nothing')} here" for k in names[:4]
        ]
        factored = any("/v_row/" in k for k in found)
        why = (
            "it is of Adafactor as it was before its second moments followed the axes of each matrix; finish the run with the "
            "version that began it"
            if factored
            else "the optimizer or what it trains has changed since"
        )
        raise ValueError(
            f"the optimizer's state in {self._folder(step)} has another structure than this run's: {why}, or begin a new run "
            f"with its weights (config.train.init_from=({str(self._manager.directory.parent)!r},))\n  "
            + "\n  ".join(lines)
        )

    def _folder(self, step: int) -> Path:
        return Path(str(self._manager.directory)) / str(step)

    def _unreadable(self, step: int, e: Exception) -> ValueError:
        others = [s for s in self._manager.all_steps() if s < step]
        earlier = f"to go on from step {max(others)}" if others else "to start anew"
        return ValueError(
            f"the checkpoint {self._folder(step)} cannot be read ({type(e).__name__}: {str(e).partition(chr(10))[0]:.200}); "
            f"if files are missing or damaged, put them back or remove that folder {earlier}; if the code has changed since "
            "it was written, continue with that of then"
        )

    def restore_weights(self, step: int, place: Callable[[str, Sequence[int]], Any]) -> tuple[Any, Any]:
        """(params, extra) to evaluate at a step, shapes and dtypes as saved, sharded as `place(name, shape)` says.

        Raises:
          ValueError: they cannot be read, or belong to something else.
        """
        folder = self._weights(step)
        self.check_about(step)
        try:
            with ocp.StandardCheckpointer() as reader:
                saved = reader.metadata(folder).item_metadata.tree
                total = sum(math.prod(m.shape) for m in jax.tree.leaves(saved, is_leaf=lambda m: hasattr(m, "dtype")))
                if total > MOST_PARAMETERS:
                    raise ValueError(f"it claims {total:,} parameters")
                abstract = jax.tree_util.tree_map_with_path(
                    lambda path, m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place(path_name(path), m.shape)),
                    saved,
                    is_leaf=lambda m: hasattr(m, "dtype"),
                )
                got = reader.restore(folder, abstract)
            got = {"params": got["params"], "extra": got.get("extra") or {}}
        except Exception as e:  # Orbax and its file formats raise many kinds
            raise self._unreadable(step, e) from e
        self._check_bits(step, _WEIGHTS, got)
        return got["params"], got["extra"]

    def count_parameters(self, step: int) -> int:
        """Parameters in the weights of a step."""
        try:
            with ocp.StandardCheckpointer() as reader:
                saved = reader.metadata(self._weights(step)).item_metadata.tree["params"]
        except Exception as e:
            raise self._unreadable(step, e) from e
        leaves = jax.tree.leaves(saved, is_leaf=lambda m: hasattr(m, "dtype"))
        return sum(math.prod(m.shape) for m in leaves)

    def _weights(self, step: int) -> Path:
        if step not in self._manager.all_steps():
            raise FileNotFoundError(
                f"{self._manager.directory} has no step {step}; it has {list(self._manager.all_steps())}"
            )
        return Path(str(self._manager.directory)) / str(step) / _WEIGHTS

    def wait(self) -> None:
        """Blocks until saves under way are complete.

        Raises:
          OSError: one of them could not be written.
        """
        with self._written():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Saves run in the background: what went wrong with one is heard of at the next, or when waiting."""
        try:
            yield
        except Exception as e:  # Orbax and its file formats raise many kinds
            words = str(e)
            known = re.search(
                r"No space left on device|Permission denied|Read-only file system|Disk quota exceeded", words
            )
            reason = known[0] if known else f"{type(e).__name__}: {words.partition(chr(10))[0]:.300}"
            with contextlib.suppress(OSError):
                reason += f"; {shutil.disk_usage(self._manager.directory).free / 2**20:,.0f} MiB of disk space are free"
            raise OSError(
                f"a checkpoint could not be written to {self._manager.directory} ({reason}); mend that, and the same command "
                f"continues from step {max(self._manager.all_steps(), default=0)}"
            ) from e

    def close(self) -> None:
        self._manager.close()


def _shapes(tree: Any) -> dict[str, list[int]]:
    """The shape of every leaf that has one, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda m: hasattr(m, "shape"))
    return {path_name(path): list(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _one_copy(x: Any) -> Any:
    """The array, or the first device's copy of a small one that all devices of the only process hold.

    Orbax has each device write a part of an array that several hold, cut by a program of its own for every shape and place: with
    hundreds of small arrays that takes seconds. Its own limit can be set through its private modules alone, so arrays that are
    sharded and held twice, and those of several processes, are still cut.
    """
    if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or jax.process_count() > 1:
        return x
    held_by_all = x.is_fully_replicated and len(x.sharding.device_set) > 1
    return x.addressable_data(0) if held_by_all and x.nbytes < _WRITTEN_IN_PARTS else x

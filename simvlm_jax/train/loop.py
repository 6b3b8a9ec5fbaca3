"""A whole training run, from top to bottom, for any model."""

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from simvlm_jax.core.types import Model, Term, TrainState
from simvlm_jax.parallel.devices import peak_flops
from simvlm_jax.parallel.heartbeat import Heartbeat
from simvlm_jax.parallel.hosts import SharedFlag, require_equal
from simvlm_jax.parallel.mesh import check_parts, place_batch
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import Metrics, RunDir
from simvlm_jax.run.progress import Progress
from simvlm_jax.train.optimizer import averaged
from simvlm_jax.train.state import Initialise, prepare


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


class NonFiniteLoss(Exception):
    """The loss stayed non-finite after all retries."""


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """When things happen, in steps (0: never), and how often a non-finite loss is retried."""

    steps: int
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 500
    accumulate: int = 1
    retries: int = 2


def train(
    model: Model,
    pipeline: Any,
    optimizer: Any,
    run: RunDir,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
    options: LoopOptions,
    *,
    seed: int = 0,
    trainable: Any = (),
    threads: int = 2,
    initialise: Initialise | None = None,
    evaluate: Callable[[Any, Any], dict[str, float]] | None = None,
    heartbeat: Heartbeat | None = None,
) -> tuple[Any, Any]:
    """Trains to `options.steps`, from the newest checkpoint if there is one, and returns (params, extra) to evaluate.

    Raises:
      Interrupted: on SIGTERM or Ctrl-C, after a checkpoint.
      NonFiniteLoss: naming the samples of the batch.
    """
    # ---- state: fresh or restored --------------------------------------------------------------------------------
    heartbeat = heartbeat or Heartbeat(run.path / "hosts")
    heartbeat.enter("data", 0)
    for part in pipeline.parts:
        check_parts(part.rows, mesh, options.accumulate)
    first = pipeline.batch(0)
    heartbeat.enter("compile")
    ready = prepare(model, optimizer, first, mesh, seed=seed, steps=options.steps, trainable=trainable)
    run.write_letters(ready.letters)
    resumed = require_equal(checkpoints.latest_step(), "newest checkpoints")

    def state_of(step: int | None) -> TrainState:
        if step is not None:
            return checkpoints.restore(step, ready.abstract)
        return ready.start(initialise)

    state = state_of(resumed)
    step = resumed or 0
    metrics = Metrics(run, step)
    progress = Progress(options.steps, quiet=run.process > 0)
    if resumed is not None:
        progress.log(f"continuing {run.path} from step {resumed}")
    if model.mixes_rows and options.accumulate > 1:
        progress.log(
            f"examples of this model look at other rows: with train.accumulate={options.accumulate}, at those of their "
            "micro-batch, so that results compare with runs of as many micro-batches"
        )

    # ---- what a step does and costs ------------------------------------------------------------------------------
    train_step = ready.train_step(options.accumulate)
    flops, peak = model.train_flops(_whole(first, pipeline.share), ready.flags), peak_flops() * mesh.size
    images_per_step = round(sum(len(rows["image"]) for rows in first.values() if "image" in rows) / pipeline.share)
    stop, any_stop, stopping = _StopSignal(), SharedFlag(mesh), False
    retries = options.retries
    batches = pipeline.iterate(step, options.steps, threads)
    input_wait = _InputWait()

    def log(rows: list[StartedStep]) -> None:
        """Writes the rows that are due, with the speeds of the steps completed since the last call that wrote any."""
        nonlocal tokens, logged, speeds, pace
        tokens += sum(row.tokens for row in rows if row.step > logged)
        every = options.log_every or options.steps
        rows = [row for row in rows if row.step % every == 0 or row.step == options.steps]
        if not rows:
            return
        done = rows[-1].step - logged
        if done:
            seconds = progress.lap()
            speeds = {
                "images_per_s": images_per_step * done / seconds,
                "tokens_per_s": tokens / seconds,
                "mfu": flops * done / seconds / peak,
                "input_bound": input_wait.share(seconds),
            }
            tokens, logged, pace = 0, rows[-1].step, seconds / done
        for row in rows:
            rate = float(optimizer.schedule_for(options.steps)(row.step - 1))
            values = {**_numbers(row.measured), "learning_rate": rate, **speeds}
            metrics.write(row.step, "train", values)
            progress.show(row.step, values, pace)

    # ---- steps; the loss is looked at one step late, so that the device never waits for the host -------------------
    pending: StartedStep | None = None
    tokens, logged, compiled, best = 0, step, False, checkpoints.scored
    speeds: dict[str, float] = {"images_per_s": 0.0, "tokens_per_s": 0.0, "mfu": 0.0, "input_bound": 0.0}
    pace = 0.0
    try:
        while step < options.steps and not (stopping := any_stop.any(stop.requested)):
            heartbeat.enter("data", step)
            batch = input_wait.next(batches)
            heartbeat.enter("collective" if compiled else "compile", step)
            state, measured = train_step(state, place_batch(mesh, batch))
            step += 1
            if not compiled:  # speeds are those of the steps after it
                jax.block_until_ready(measured["loss"])
                compiled, logged, tokens = True, step, 0
                progress.restart()
                input_wait.share(1.0)
            at_end = step == options.steps
            at_eval = bool(options.eval_every) and (step % options.eval_every == 0 or at_end)
            at_save = bool(options.checkpoint_every and step % options.checkpoint_every == 0) or at_end
            at_save = at_save or (at_eval and best)  # a score is of use only beside its weights
            checked, pending = (
                ([pending] if pending else []),
                StartedStep(step, measured, round(_tokens(batch) / pipeline.share)),
            )
            if at_eval or at_save:
                checked, pending = [*checked, pending], None

            # ---- a non-finite loss: back to the last good checkpoint ------------------------------------------------
            if (bad := next((row.step for row in checked if not _finite(row.measured)), None)) is not None:
                if not retries:
                    raise NonFiniteLoss(
                        f"the loss of step {bad} is not finite, also after {options.retries} retries; "
                        f"its samples: {', '.join(k for keys in pipeline.keys(bad - 1).values() for k in keys)}"
                    )
                retries -= 1
                checkpoints.wait()
                good = checkpoints.latest_step()
                progress.log(f"the loss of step {bad} is not finite; back to step {good or 0} ({retries} retries left)")
                del state, measured, pending, checked  # memory holds one state
                state = state_of(good)
                step, pending, compiled = good or 0, None, False
                metrics.close()
                metrics = Metrics(run, step)
                batches = pipeline.iterate(step, options.steps, threads)
                continue

            # ---- log, evaluate, save --------------------------------------------------------------------------------
            log(checked)
            scores = None
            if at_eval and evaluate is not None:
                heartbeat.enter("eval", step)
                with progress.paused():
                    scores = evaluate(averaged(state.params, state.opt), state.extra)
                metrics.write(step, "validation", scores)
                progress.log(f"step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
            if at_save:
                heartbeat.enter("checkpoint", step)
                metrics.flush()
                checkpoints.save(step, state, (averaged(state.params, state.opt), state.extra), scores)
        heartbeat.enter("checkpoint", step)
        if stopping:
            if pending is None or _finite(pending.measured):  # a step that is not pending has been looked at
                log([pending] if pending else [])
                metrics.flush()
                checkpoints.save(step, state, (averaged(state.params, state.opt), state.extra))
            checkpoints.wait()
            raise Interrupted(f"stopped at step {checkpoints.latest_step() or 0}; the same command continues")
        checkpoints.wait()
    except Exception:  # that is the one to tell, whatever comes of what is left to do
        with contextlib.suppress(OSError):
            metrics.close()
        if jax.process_count() == 1:  # others might not come to it
            with contextlib.suppress(Exception):
                checkpoints.wait()
        raise
    finally:
        stop.restore()
        metrics.close()
    return averaged(state.params, state.opt), state.extra


class StartedStep(NamedTuple):
    """A step that was started: what it measures, and the pieces it trains on."""

    step: int
    measured: dict[str, Any]
    tokens: int


class _StopSignal:
    """SIGTERM and the first Ctrl-C ask for a stop; a second Ctrl-C is Python's own."""

    def __init__(self):
        self.requested = False
        self._old = {s: signal.signal(s, self._request) for s in (signal.SIGTERM, signal.SIGINT)}

    def _request(self, number, frame):
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def restore(self):
        for s, handler in self._old.items():
            signal.signal(s, handler)


class _InputWait:
    """A clock of the time spent waiting for input."""

    def __init__(self):
        self._seconds = 0.0

    def next(self, batches):
        import time

        began = time.perf_counter()
        batch = next(batches)
        self._seconds += time.perf_counter() - began
        return batch

    def share(self, seconds: float) -> float:
        """The share of `seconds` spent waiting since the last call."""
        share, self._seconds = self._seconds / seconds, 0.0
        return min(share, 1.0)


def _finite(measured: dict[str, Any]) -> bool:
    return math.isfinite(float(measured["loss"])) and math.isfinite(float(measured["grad_norm"]))


def _numbers(measured: dict[str, Any]) -> dict[str, float]:
    """Terms as means, arrays as numbers."""
    return {
        k: float(v.sum) / max(float(v.count), 1.0) if isinstance(v, Term) else float(v)
        for k, v in jax.device_get(measured).items()
    }


def _whole(batch: Any, share: float) -> Any:
    """The shapes of the global batch of which a process makes such a share."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((round(len(x) / share), *x.shape[1:]), x.dtype), batch)


def _tokens(batch: Any) -> int:
    return int(sum(np.asarray(rows["text_mask"]).sum() for rows in batch.values() if "text_mask" in rows))

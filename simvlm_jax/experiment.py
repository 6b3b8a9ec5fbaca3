"""An experiment from its config: `open` makes what it needs, `fit` trains it, `score` evaluates it, `run` does all three.

The config is unpacked here and nowhere below.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax

from simvlm_jax.core.build import build, check_specs
from simvlm_jax.core.files import printable_lines
from simvlm_jax.core.lock import held
from simvlm_jax.core.schema import check
from simvlm_jax.core.types import Extra, Model, Params
from simvlm_jax.data import assemble
from simvlm_jax.data.pipeline import Pipeline
from simvlm_jax.data.source import Source
from simvlm_jax.data.transforms import Pixels
from simvlm_jax.eval.final import evaluate_run, make_examples, own_validation
from simvlm_jax.eval.suite import Suite
from simvlm_jax.infer.engine import Engine
from simvlm_jax.materials import Data, Log, make_pipeline, open_data
from simvlm_jax.parallel.heartbeat import Heartbeat
from simvlm_jax.parallel.hosts import main_process_first, warm_up_collectives
from simvlm_jax.parallel.mesh import make_mesh, placement, rows_of_process
from simvlm_jax.run import schema
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import RunDir, recorded
from simvlm_jax.run.load import belongs_to, build_model
from simvlm_jax.text.tokenizer import NoTokenizer
from simvlm_jax.train.init_from import initialiser
from simvlm_jax.train.loop import Interrupted, LoopOptions, train
from simvlm_jax.train.optimizer import Optimizer


class Weights(NamedTuple):
    """Parameters and other state of a model after a step, as they are evaluated."""

    step: int
    params: Params
    extra: Extra


@dataclasses.dataclass(frozen=True)
class Training:
    """What only training needs. `validate`: `(params, extra) -> scores` while the run trains, None without."""

    pipeline: Pipeline
    optimizer: Optimizer
    options: LoopOptions
    threads: int
    seed: int
    trainable: Sequence[tuple[str, bool]]
    init_from: Sequence[Any]
    validate: Callable[[Params, Extra], dict[str, float]] | None


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What only the evaluation needs.

    limit: examples a split, 0 for all. bad: share of examples that may be unreadable. texts: training captions for the
    control that always gives the best constant answer.
    """

    suites: dict[str, Suite]
    pixels: Pixels
    limit: int
    bad: float
    texts: Callable[[], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Materials:
    """All that an experiment is made of, opened. training: None where it is only scored."""

    directory: RunDir
    heartbeat: Heartbeat
    log: Log
    mesh: jax.sharding.Mesh
    data: Data
    model: Model
    engine: Engine
    checkpoints: Checkpoints
    scoring: Scoring
    training: Training | None


def run(config: Any, workdir: str, variant: str = "", mode: Literal["train", "fit", "eval"] = "train") -> None:
    """Trains and evaluates a config in a run directory, and leaves results and the page there; mode "fit" or "eval" does one.

    config: a ConfigDict with the fields of run/schema.py. variant: "FILE:VARIANT" of the config, as the run records it. Of
    several processes (see parallel/hosts.py) each calls this; if one is lost, the others name it and exit.

    Raises:
      ValueError: the config is wrong, or not that of the run begun there. Interrupted: on SIGTERM or Ctrl-C.
    """
    check(recorded(config, variant), schema.Config, "config")
    check_specs(config)
    if config.checkpoint.best and not config.eval.every:
        raise ValueError(
            f"config.checkpoint.best={config.checkpoint.best!r} keeps what scores best while training; set config.eval.every too"
        )
    directory, training = RunDir(workdir, jax.process_index()), mode != "eval"
    heartbeat = Heartbeat(directory.path / "hosts", config.hosts.patience, config.hosts.late)
    with heartbeat.reporting(Interrupted), contextlib.ExitStack() as alone:
        if training and not directory.process:
            alone.enter_context(held(directory.path))
        log = _printer(directory.process)
        _check_run(config, directory, variant, training)
        if training and _finished(directory, config.train.steps):
            log(f"{directory.path} is finished at step {config.train.steps}; see {directory.report}")
            return
        opened = open(config, directory, variant, training, heartbeat)
        weights = fit(opened) if training else None
        if mode == "fit":
            log(f"{directory.path} is trained to step {config.train.steps}; --mode train or eval scores it")
        else:
            score(opened, weights)
            log(f"report: {directory.report}")
        opened.checkpoints.close()


def _printer(process: int) -> Log:
    """Returns what prints a line to stderr, on process 0 alone."""
    return lambda text: None if process else print(printable_lines(text), file=sys.stderr, flush=True)


def _check_run(config: Any, directory: RunDir, variant: str, training: bool) -> None:
    """Checks that a run directory is there to be scored, and that its run, if it has begun, is of this config."""
    if not training:
        directory.record()  # an error where there is no run; what is built is the config that was named
        if not directory.begun:
            raise FileNotFoundError(f"{directory.path} has no checkpoint to evaluate")
    if training and directory.imported:
        raise ValueError(
            f"{directory.path} holds imported weights and no training to continue; train from them in a run of its own, with "
            f'another --workdir and --config.train.init_from="({str(directory.path)!r},)"'
        )
    directory.check(config, variant)


def _finished(directory: RunDir, steps: int) -> bool:
    """Whether a run is trained and scored.

    Raises:
      ValueError: it is trained for longer than `steps`.
    """
    done = directory.newest_step()
    if done and directory.results().get("trained") == steps:
        return True
    if done > steps:
        raise ValueError(
            f"{directory.path} is trained to step {done} already, and config.train.steps={steps} is fewer; set as "
            "many at least, or use another --workdir"
        )
    return False


def open(
    config: Any, directory: RunDir, variant: str = "", training: bool = True, heartbeat: Heartbeat | None = None
) -> Materials:
    """Opens the data, and builds model, optimizer and suites; one process makes tokenizer and answer list, the others read them.

    Raises:
      ValueError: data, tokenizer or suites are not what the config says, or differ between processes.
    """
    log, heartbeat = _printer(directory.process), heartbeat or Heartbeat(directory.path / "hosts")
    with main_process_first("beginning"):
        if training and (moved_to := directory.set_aside()):
            log(moved_to)
    mesh = make_mesh(**config.mesh)
    warm_up_collectives(mesh)
    log("data ...")
    heartbeat.enter("data")
    data = open_data(config, directory, variant, training, log)
    tokenizer, labels = data.tokenizer, data.labels
    model = build_model(config.model, config.data.image_size, tokenizer, labels)
    engine = Engine(model, tokenizer, mesh, labels=labels, batch_size=config.eval.batch_size, seed=config.seed)
    suites = {
        name: build(suite, f"config.eval.suites.{name}", tokenizer=tokenizer, labels=labels)
        for name, suite in config.eval.suites.items()
    }
    scoring = Scoring(
        suites,
        assemble.eval_pixels(config.data),
        config.eval.examples,
        config.data.quarantine,
        functools.cache(lambda: list(assemble.constant_captions(data.parts))),
    )
    made = _open_training(config, directory, mesh, data, engine, scoring, log) if training else None
    keep = config.checkpoint
    about = belongs_to(config.model, config.data.image_size, bool(config.data.whole), tokenizer, labels)
    checkpoints = Checkpoints(directory.checkpoints, keep.latest, keep.keep_every, keep.best, not training, about)
    return Materials(directory, heartbeat, log, mesh, data, model, engine, checkpoints, scoring, made)


def _open_training(
    config: Any,
    directory: RunDir,
    mesh: jax.sharding.Mesh,
    data: Data,
    engine: Engine,
    scoring: Scoring,
    log: Log,
) -> Training:
    """Builds the optimizer and the pipeline of this process's rows, and what scores the run while it trains."""
    optimizer = build(config.optimizer, "config.optimizer")
    mine = functools.partial(rows_of_process, mesh)
    pipeline = make_pipeline(config, data, directory.quarantine, mine)
    t, best, suite = config.train, config.checkpoint.best, next(iter(scoring.suites.values()), None)
    validate = None
    if suite is not None and (config.eval.every or best):
        source = own_validation(suite) if suite.path else assemble.validation_source(config.data)
        if source is not None:
            validate = functools.partial(_validate, suite, source, engine, scoring, directory, best)
        elif best:
            raise ValueError(f"checkpoint.best={best!r} goes by the first suite, but {_no_validation(suite)}")
        else:
            log(_no_validation(suite))
    options = LoopOptions(
        t.steps, config.log.every, config.eval.every, config.checkpoint.every, t.accumulate, t.retries
    )
    return Training(pipeline, optimizer, options, config.data.threads, config.seed, t.trainable, t.init_from, validate)


def _no_validation(suite: Suite) -> str:
    return f"{suite.path!r} has no validation split, so there are no scores before the last"


def _validate(
    suite: Suite, source: Source, engine: Engine, scoring: Scoring, directory: RunDir, best: str | None, params, extra
) -> dict[str, float]:
    """Scores weights by a suite on validation data; `best`: the score that checkpoints are kept by."""
    limit = scoring.limit or 200
    examples = make_examples(suite, "validation", source, scoring.pixels, limit, scoring.bad, directory.quarantine)
    now = engine.with_weights(params, extra)
    scores = suite.outcome(now, suite.answers(now, examples).values).scores
    if best and best not in scores:
        raise ValueError(f"checkpoint.best={best!r} is no score of the first suite; it has {', '.join(scores)}")
    return scores


def fit(materials: Materials) -> Weights:
    """Trains to the last step, from the newest checkpoint if there is one, and returns the weights to evaluate.

    Raises:
      Interrupted: on SIGTERM or Ctrl-C, after a checkpoint. NonFiniteLoss: naming the samples of the batch.
    """
    m, t = materials, materials.training
    if t is None:
        raise ValueError(f"{m.directory.path} was opened to be scored; open it with training=True")
    data, words = m.data, None if isinstance(m.data.tokenizer, NoTokenizer) else m.data.tokenizer.vocabulary
    t.pipeline.batch(0)
    for cut in t.pipeline.report_cuts() if words else ():
        m.log(f"{cut} at {words.length} pieces, in the first batch; raise config.text.length")
    if data.changes:
        m.log("continuing under other conditions, so not bit for bit:\n  " + "\n  ".join(data.changes))
    pieces = f", {words.size} pieces" if words else ""
    counts = ", ".join(f"{len(source):,} {name}" for name, source in data.parts.items())
    m.log(f"{counts}{pieces}; compiling ...")
    params, extra = train(
        m.model,
        t.pipeline,
        t.optimizer,
        m.directory,
        m.checkpoints,
        m.mesh,
        t.options,
        seed=t.seed,
        trainable=t.trainable,
        threads=t.threads,
        initialise=initialiser(m.model, data.tokenizer.sha256, data.labels, t.init_from, m.mesh),
        evaluate=t.validate,
        heartbeat=m.heartbeat,
    )
    for cut in t.pipeline.report_cuts() if words else ():
        m.log(f"{cut} at {words.length} pieces, in this training")
    return Weights(t.options.steps, params, extra)


def score(materials: Materials, weights: Weights | None = None) -> list[dict[str, Any]]:
    """Runs all suites on the best checkpoint's weights, writes results.json and the page, and returns the entries.

    weights: those of the last step, if they are at hand; restored otherwise.

    Raises:
      FileNotFoundError: there is no checkpoint. ValueError: no suite could be run.
    """
    m, s = materials, materials.scoring
    step = m.checkpoints.best_step()
    if step is None:
        raise FileNotFoundError(f"{m.directory.path} has no checkpoint to evaluate")
    if weights is None or weights.step != step:
        weights = Weights(step, *m.checkpoints.restore_weights(step, placement(m.mesh, m.directory.letters())))
    m.log(f"evaluating step {step} ...")
    m.heartbeat.enter("eval", step)
    return evaluate_run(
        m.directory,
        m.engine.with_weights(weights.params, weights.extra),
        s.suites,
        m.data.evaluation,
        step,
        trained=m.checkpoints.latest_step() or 0,
        pixels=s.pixels,
        limit=s.limit,
        bad=s.bad,
        texts=s.texts,
        log=m.log,
    )

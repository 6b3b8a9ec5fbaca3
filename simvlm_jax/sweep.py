"""Experiments with several arms and seeds: what to run at equal compute, and what came out, as a table and a figure.

A sweep's config names `stages` (a config file each, with fields to set), `arms` (what each sets in the stages beside that; a
stage set to None is left out, and `configs` may name another file for one; the first arm is the baseline), `seeds`, the
`scores` to report (an arm may lack some, for its model cannot be asked), and the `claims` to test, on the first score or that
they name.
Tokenizers must not differ between arms, so it names the data that one for all is trained on.
"""

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simvlm_jax import experiment
from simvlm_jax.core.build import check_renamed, load_config
from simvlm_jax.core.files import MOST_RECORD, printable, read_json, write_whole
from simvlm_jax.core.flops import trainable_flags
from simvlm_jax.core.lock import turn
from simvlm_jax.core.schema import check as check_value
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.data.assemble import spread_texts
from simvlm_jax.data.shapes import StandIn, stand_in_labels
from simvlm_jax.data.sources import open_source
from simvlm_jax.materials import outline
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.progress import duration
from simvlm_jax.run.sweep_page import Summary
from simvlm_jax.text.tokenizer import CONTRACT, Tokenizer
from simvlm_jax.train.loop import NonFiniteLoss


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of the sweep: the config to train, where, and what it starts from."""

    name: str
    config: ConfigDict
    path: Path
    flops: float
    """FLOPs of all its training steps."""

    def check(self) -> None:
        """Refuses to go on with a run of another length: its schedule, and what started from it, would be neither's.

        Raises:
          ValueError: the run has begun with other `train.steps`.
        """
        run = RunDir(self.path)
        before = run.config()["train"]["steps"] if run.begun else self.config.train.steps
        if before != self.config.train.steps:
            raise ValueError(
                f"{self.path} has begun with {before} steps, the sweep wants {self.config.train.steps}; remove it, or use "
                "another --workdir"
            )


@dataclasses.dataclass(frozen=True)
class Trial:
    """An arm with a seed."""

    arm: str
    seed: int
    stages: list[Stage]

    @property
    def result(self) -> RunDir:
        """The run whose scores count: the last."""
        return RunDir(self.stages[-1].path)

    @property
    def finished(self) -> bool:
        """Whether its last stage is trained to the end and scored."""
        return self.result.results().get("trained") == self.stages[-1].config.train.steps


def check(sweep: Any, path: str) -> None:
    """Refuses a config that is no sweep.

    Raises:
      ValueError: a field is missing, or a claim names no arm.
    """
    needed = ("name", "seeds", "tokenizer", "stages", "arms", "scores", "claims")
    if missing := [k for k in needed if k not in sweep]:
        raise ValueError(f"{path} is no sweep: it has no {', '.join(missing)} (see configs/sweeps/)")
    names = {arm.name for arm in sweep.arms}
    if wrong := [c.text for c in sweep.claims if not {c.better, c.worse} <= names]:
        raise ValueError(f"{path}: claim {wrong[0]!r} is about an arm that the sweep does not have")
    known = dict(sweep.scores)
    shown = [c.get("score") for c in sweep.claims if c.get("score")] + list(sweep.get("figure", ()))
    if wrong := [name for name in shown if name not in known]:
        raise ValueError(f"{path}: {wrong[0]!r} is not one of the sweep's scores")


def trials(sweep: Any, folder: Path, tokenizer: Path, steps_factor: float = 1.0) -> list[Trial]:
    """Returns all trials, seed by seed, so that a sweep cut short has whole comparisons.

    The steps of a stage are those that cost as much as the baseline's, by the models' FLOPs (core/flops.py). An arm that leaves
    stages out is cheaper, unless it is to `spend_all` on its last one.
    """
    costs: dict[tuple[str, str], float] = {}

    def cost(stage: Any, arm: Any, config: ConfigDict) -> float:  # the same for every seed, and seconds to count
        key = (arm.name, stage.name)
        costs[key] = costs[key] if key in costs else step_flops(config)
        return costs[key]

    whole: dict[str, float] = {}
    for stage in sweep.stages:
        config = _stage_config(stage, sweep.arms[0], 0, None, tokenizer)
        whole[stage.name] = cost(stage, sweep.arms[0], config) * config.train.steps
    out = []
    for seed in sweep.seeds:
        for arm in sweep.arms:
            stages: list[Stage] = []
            for stage in sweep.stages:
                if stage.name in arm.sets and arm.sets[stage.name] is None:
                    continue
                start = stages[-1].path if stages else None
                config = _stage_config(stage, arm, seed, start, tokenizer)
                each = cost(stage, arm, config)
                budget = whole[stage.name]
                if arm.get("spend_all") and stage is sweep.stages[-1]:
                    budget = sum(whole.values()) - sum(s.flops for s in stages)
                config.train.steps = max(round(budget / each), 1)
                config.train.steps = max(round(config.train.steps * steps_factor), 1)
                path = folder / arm.name / f"seed{seed}" / stage.name
                stages.append(Stage(stage.name, config, path, each * config.train.steps))
            out.append(Trial(arm.name, seed, stages))
    return out


def _stage_config(stage: Any, arm: Any, seed: int, start: Path | None, tokenizer: Path) -> ConfigDict:
    config: Any = load_config(arm.get("configs", {}).get(stage.name) or stage.config)
    for name, value in {**stage.set, **(arm.sets.get(stage.name) or {})}.items():
        _assign(config, name, value)
    config.seed = seed
    config.text.model = str(tokenizer)
    config.train.init_from = (str(start),) if start else ()
    return config


def _assign(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a field by its flat name, whatever type it had."""
    check_renamed(name)
    *path, last = name.split(".")
    for part in path:
        config = getattr(config, part)
    if last not in config:
        raise ValueError(f"a sweep sets {name!r}, which the config does not have")
    with config.ignore_type():
        config[last] = value


def step_flops(config: ConfigDict) -> float:
    """Returns the model FLOPs of one training step of a config, by its own batch, without those that depend on how many answers
    its data turns out to have.

    Raises:
      ValueError: the config leaves the text length to the data.
    """
    if not config.text.length:
        raise ValueError("a sweep compares compute, so its configs must set text.length")
    tokenizer = StandIn(Vocabulary(config.text.vocabulary, config.text.length))
    made = outline(config, tokenizer, stand_in_labels(min(config.data.labels.size, 1)))
    flags = trainable_flags(made.model, made.batch, config.train.trainable)
    return float(made.model.train_flops(made.batch, flags))


def make_tokenizer(wanted: Any, folder: Path) -> Path:
    """Trains the one tokenizer of all arms on texts of all data sets that any of them reads, and returns its folder.

    Raises:
      ValueError: the folder holds one that was trained for something else.
    """
    made_for = json.loads(json.dumps({k: wanted[k] for k in ("paths", "vocabulary", "length")}))
    log = functools.partial(print, file=sys.stderr, flush=True)
    with turn(folder.with_name(".tokenizer.lock"), log):  # another sweep may run other arms
        record = folder.with_name("tokenizer.json")
        if (folder / CONTRACT).exists() and record.exists() and read_json(record, most=MOST_RECORD) != made_for:
            raise ValueError(
                f"{folder} was trained for {read_json(record)}, and the sweep now wants {made_for}; remove the sweep's folder, or use "
                "another --workdir"
            )
        if not (folder / CONTRACT).exists():
            record.parent.mkdir(parents=True, exist_ok=True)
            write_whole(record, json.dumps(made_for), own=True)
            texts = [
                t for path, images in wanted["paths"] for t in spread_texts(open_source(path, images=images), 10_000)
            ]
            Tokenizer.train(texts, wanted["vocabulary"], wanted["length"]).save(folder)
    return folder


def run_trials(every: list[Trial], name: str, clock: "Clock") -> None:
    """Runs what is missing of all trials, in order; one whose loss stays non-finite is left out, with a line that says so.

    Raises:
      Interrupted, KeyboardInterrupt: as `experiment.run`; the same call continues.
    """
    for i, trial in enumerate(every):
        took = [sum(clock.seconds.get(str(s.path), 0.0) for s in t.stages) for t in every if t.finished]
        left = sum(not t.finished for t in every[i:]) * sum(took) / max(len(took), 1)
        eta = f", about {duration(left)} left" if took and left else ""
        print(f"== {trial.arm}, seed {trial.seed} ({i + 1} of {len(every)}{eta})", file=sys.stderr, flush=True)
        for stage in trial.stages:
            began = time.perf_counter()
            try:
                stage.check()
                experiment.run(stage.config, str(stage.path), f"{name}:{stage.name}")
            except NonFiniteLoss as e:
                print(f"{trial.arm}, seed {trial.seed} is left out: {printable(str(e))}", file=sys.stderr)
                break
            finally:
                if time.perf_counter() - began > 1:  # a finished stage returns at once
                    clock.add(stage.path, time.perf_counter() - began)


def parameters(path: Path) -> int:
    """How many parameters a run's model has, by its newest checkpoint."""
    checkpoints = Checkpoints(RunDir(path).checkpoints, read_only=True)
    try:
        step = checkpoints.latest_step()
        assert step is not None
        return checkpoints.count_parameters(step)
    finally:
        checkpoints.close()


def summarise(sweep: Any, done: list[Trial], seconds: dict[str, float]) -> list[Summary]:
    """One summary an arm, of those trials that have finished. seconds: by the path of a stage."""
    out = []
    for arm in sweep.arms:
        mine = [t for t in done if t.arm == arm.name]
        if not mine:
            continue
        scores: dict[str, dict[int, float]] = {name: {} for name, _ in sweep.scores}
        for trial in mine:
            found = {
                f"{e['suite']}/{e['split']}/{k}": v
                for e in trial.result.results()["entries"]
                if not e["control"]
                for k, v in e["scores"].items()
            }
            for name in scores:
                if name in found:
                    scores[name][trial.seed] = found[name]
        took = [sum(seconds.get(str(s.path), 0.0) for s in t.stages) for t in mine]
        out.append(
            Summary(
                arm.name,
                arm.title,
                scores,
                sum(s.flops for s in mine[0].stages),
                " + ".join(str(s.config.train.steps) for s in mine[0].stages),
                parameters(mine[0].stages[-1].path),
                float(np.mean(took)),
            )
        )
    if not any(values for s in out for values in s.scores.values()):
        raise ValueError(f"no arm of {sweep.name} has any of its scores; see the results.json of its runs")
    return out


class Clock:
    """How long each stage took on the wall, kept beside the runs so that a sweep can be continued."""

    def __init__(self, folder: Path):
        self._path = folder / "seconds.json"
        self.seconds = self._read()

    def _read(self) -> dict[str, float]:
        seconds = read_json(self._path, most=MOST_RECORD) if self._path.exists() else {}
        check_value(seconds, dict[str, float], str(self._path))
        return seconds

    def add(self, path: Path, seconds: float) -> None:
        """Adds what an attempt took: a stage that was cut short takes the sum of its attempts."""
        with turn(self._path.with_name(".seconds.lock")):  # another sweep may run other arms
            self.seconds = self._read()
            self.seconds[str(path)] = self.seconds.get(str(path), 0.0) + seconds
            write_whole(self._path, json.dumps(self.seconds, indent=1), own=True)

"""Experiments with several arms and seeds: what to run at equal compute, and what came out, as a table and a figure.

A sweep's config names `stages` (a config file each, with fields to set), `arms` (what each sets in the stages beside that; a
stage set to None is left out, and `configs` may name another file for one; the first arm is the baseline), `seeds`, the
`scores` to report (an arm may lack some, for its model cannot be asked), and the `claims` to test, on the first score or that
they name.
Tokenizers must not differ between arms, so it names the data that one for all is trained on.
"""

import dataclasses
import html
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from simvlm_jax.core.build import load_config
from simvlm_jax.core.files import MOST_RECORD, read_json, write_whole
from simvlm_jax.core.lock import turn
from simvlm_jax.core.schema import check as check_value
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.load import build_model


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of the sweep: the config to train, where, and what it starts from."""

    name: str
    config: ConfigDict
    path: Path
    flops: float
    """Of all its training steps."""

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
    """All trials, seed by seed, so that a sweep cut short has whole comparisons.

    The steps of a stage are those that cost as much as the baseline's, by the models' analytic FLOPs. An arm that leaves
    stages out is cheaper, unless it is to `spend_all` on its last one.
    """
    whole: dict[str, float] = {}
    for stage in sweep.stages:
        config = _stage_config(stage, sweep.arms[0], 0, None, tokenizer)
        whole[stage.name] = step_flops(config) * config.train.steps
    out = []
    for seed in sweep.seeds:
        for arm in sweep.arms:
            stages: list[Stage] = []
            for stage in sweep.stages:
                if stage.name in arm.sets and arm.sets[stage.name] is None:
                    continue
                start = stages[-1].path if stages else None
                config = _stage_config(stage, arm, seed, start, tokenizer)
                each = step_flops(config)
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
    *path, last = name.split(".")
    for part in path:
        config = getattr(config, part)
    if last not in config:
        raise ValueError(f"a sweep sets {name!r}, which the config does not have")
    with config.ignore_type():
        config[last] = value


def step_flops(config: ConfigDict) -> float:
    """Analytic FLOPs of one training step of a config whose text length is set."""
    if not config.text.length:
        raise ValueError("a sweep compares compute, so its configs must set text.length")
    tokenizer: Any = SimpleNamespace(vocabulary=Vocabulary(config.text.vocabulary, config.text.length))
    model: Any = build_model(config, tokenizer, ("",) * int(config.data.labels.size > 0))
    side, T = config.data.image_size, config.text.length

    def rows(n: int, pictured: bool) -> dict[str, Any]:
        text = {"text": jax.ShapeDtypeStruct((n, T), np.int32)}
        images = getattr(model, "images", 1)
        if config.data.labels.size:
            text["label"] = jax.ShapeDtypeStruct((n,), np.int32)
        return {**text, "image": jax.ShapeDtypeStruct((n, images, side, side, 3), np.uint8)} if pictured else text

    pictured = any("Pixels" in t.get("target", "") for t in config.data.train.transforms)
    batch = rows(config.train.batch_size, pictured)
    if config.data.documents.batch_size:
        batch["documents"] = rows(config.data.documents.batch_size, False)
    return float(model.train_flops(batch))


def parameters(path: Path) -> int:
    """How many parameters a run's model has, by its newest checkpoint."""
    from simvlm_jax.run.checkpoints import Checkpoints

    checkpoints = Checkpoints(RunDir(path).checkpoints, read_only=True)
    try:
        step = checkpoints.latest_step()
        assert step is not None
        return checkpoints.count_parameters(step)
    finally:
        checkpoints.close()


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores of an arm by seed: {score: {seed: value}}, and what a seed costs."""

    arm: str
    title: str
    scores: dict[str, dict[int, float]]
    flops: float
    steps: str
    parameters: int
    seconds: float


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


def spread(values: dict[int, float]) -> tuple[float, float]:
    """(mean, standard deviation with n - 1) over seeds; NaN where there are too few."""
    v = list(values.values())
    return (float(np.mean(v)) if v else math.nan), (float(np.std(v, ddof=1)) if len(v) > 1 else math.nan)


def verdict(better: dict[int, float], worse: dict[int, float]) -> tuple[str, float, float]:
    """Whether one arm beats another: (word, mean difference, half its 95 % confidence interval), paired by seed.

    "holds" or "reversed" when the interval (Student's t, for seeds are few) leaves out 0, else "not separated".
    """
    pairs = [better[s] - worse[s] for s in sorted({*better} & {*worse})]
    if len(pairs) < 2:
        return "too few seeds" if better and worse else "no score", math.nan, math.nan
    mean, error = float(np.mean(pairs)), float(np.std(pairs, ddof=1) / math.sqrt(len(pairs)))
    half = float(stats.t.ppf(0.975, len(pairs) - 1)) * error
    if abs(mean) <= half:
        return "not separated", mean, half
    return ("holds" if mean > 0 else "reversed"), mean, half


def markdown(sweep: Any, summaries: list[Summary], figure: str) -> str:
    """The page: the table of arms, the figure, the claims."""
    by_arm = {s.arm: s for s in summaries}
    head = ["arm", *[title for _, title in sweep.scores], "seeds", "steps", "TFLOP", "parameters", "time"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for s in summaries:
        cells = []
        seeds = max(map(len, s.scores.values()))
        for name, _ in sweep.scores:
            mean, deviation = spread(s.scores[name])
            if not s.scores[name]:
                cells.append("–")
                continue
            few = f" ({len(s.scores[name])})" if len(s.scores[name]) < seeds else ""
            cells.append(f"{mean:.3f}" + (f" ± {deviation:.3f}" if math.isfinite(deviation) else "") + few)
        cells += [
            str(seeds),
            s.steps,
            f"{s.flops / 1e12:.1f}",
            f"{s.parameters:,}",
            f"{s.seconds:.0f} s",
        ]
        lines.append(f"| {s.title} | " + " | ".join(cells) + " |")
    if missing := [name for name, _ in sweep.scores if not any(s.scores[name] for s in summaries)]:
        lines += ["", f"No arm has a score {', '.join(f'`{name}`' for name in missing)}."]
    out = [*lines, "", f"![{sweep.name}]({figure})", ""]
    out += ["| the paper's direction | difference, 95 % interval | here |", "|---|---|---|"]
    titles = dict(sweep.scores)
    for claim in sweep.claims:
        if claim.better in by_arm and claim.worse in by_arm:
            name = claim.get("score") or sweep.scores[0][0]
            word, mean, error = verdict(by_arm[claim.better].scores[name], by_arm[claim.worse].scores[name])
            gap = f"{mean:+.3f} ± {error:.3f}" if math.isfinite(mean) else "–"
            by = f" ({titles[name]})" if claim.get("score") else ""
            out.append(f"| {claim.text}{by} | {gap} | {word} |")
    return "\n".join(out) + "\n"


def figure(sweep: Any, summaries: list[Summary]) -> str:
    """An SVG: a panel a score of `sweep.figure` (by default the first score), one below the other."""
    titles, panels, top, wide = dict(sweep.scores), [], 0, 0
    for name in sweep.get("figure", ()) or (sweep.scores[0][0],):
        if not any(s.scores[name] for s in summaries):
            continue
        drawn, width, height = _panel(sweep, summaries, name, titles[name])
        panels.append(f'<g transform="translate(0,{top})">{drawn}</g>')
        top, wide = top + height, max(wide, width)
    size = f'viewBox="0 0 {wide} {top}" width="{wide}" height="{top}"'
    style = "<style>text{font:12px system-ui,sans-serif;fill:#333}</style>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}{''.join(panels)}</svg>\n"


def _panel(sweep: Any, summaries: list[Summary], main: str, title: str) -> tuple[str, int, int]:
    """(drawing, width, height): an arm a row, every seed a dot and their mean a bar, the baseline's mean a dashed line."""
    rows = [s for s in summaries if s.scores[main]]
    values = [v for s in rows for v in s.scores[main].values()]
    at = ticks(min(values), max(values))
    low, high = at[0], at[-1]
    decimals = max(-math.floor(math.log10(at[1] - at[0]) + 1e-6), 0)
    left, width, line = 24 + 7 * max(len(s.title) for s in summaries), 520, 26
    bottom = line * len(rows) + 34

    def x(v: float) -> float:
        return left + width * (v - low) / (high - low)

    base = spread(next((s.scores[main] for s in rows if s.arm == sweep.arms[0].name), {}))[0]
    told = "dots: seeds · bar: mean" + (" · dashed: mean of the first arm" if math.isfinite(base) else "")
    legend = f'<tspan dx="12" fill="#777" font-weight="normal">{told}</tspan>'
    parts = [f'<text x="{left}" y="18" font-weight="bold">{html.escape(title)}{legend}</text>']
    for tick in at:
        parts.append(f'<path d="M{x(tick):.1f},28V{bottom}" stroke="#e4e4e0"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:.{decimals}f}</text>')
    if math.isfinite(base):
        parts.append(f'<path d="M{x(base):.1f},28V{bottom}" stroke="#2864c8" stroke-dasharray="4 3"/>')
    for i, s in enumerate(rows):
        y = 42 + i * line
        mean, _ = spread(s.scores[main])
        parts.append(f'<text x="{left - 14}" y="{y + 4}" text-anchor="end">{html.escape(s.title)}</text>')
        parts.append(f'<path d="M{x(mean):.1f},{y - 8}v16" stroke="#1c1c1c" stroke-width="2.5"/>')
        parts += [
            f'<circle cx="{x(v):.1f}" cy="{y}" r="4.5" fill="#d06414" fill-opacity="0.65"/>'
            for v in s.scores[main].values()
        ]
    return "".join(parts), left + width + 24, bottom + 26


def ticks(low: float, high: float) -> list[float]:
    """At least two round numbers, evenly spaced, the first at most `low` and the last at least `high`."""
    rough = max(high - low, 1e-3) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    first = math.floor(low / step)
    return [step * i for i in range(first, max(math.ceil(high / step), first + 1) + 1)]


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

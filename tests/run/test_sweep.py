"""Sweeps: equal compute, paired verdicts, and (slow) a whole one, cut short and continued."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from simvlm_jax.cli import main
from simvlm_jax.cli.sweep import END
from simvlm_jax.core.build import load_config
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.nn.sizes import TOWERS, Size
from simvlm_jax.run.directory import recorded
from simvlm_jax.run.load import build_model
from simvlm_jax.run.sweep_page import Summary, figure, markdown, spread, ticks, verdict
from simvlm_jax.sweep import Clock, Trial, check, trials
from tests.conftest import ROOT, SCENES

FAMILY = str(ROOT / "configs" / "sweeps" / "family.py")
ABLATIONS = str(ROOT / "configs" / "sweeps" / "simvlm_ablations.py")


def first_trial(folder):
    """The trial of the first arm alone: to count what every arm costs takes seconds."""
    sweep = load_config(ABLATIONS)
    sweep.arms = sweep.arms[:1]
    return trials(sweep, folder, folder / "tokenizer")[0]


def test_arms_cost_the_same():
    sweep = load_config(ABLATIONS)
    made = trials(sweep, Path("runs"), Path("tokenizer"))
    assert len(made) == len(sweep.arms) * len(sweep.seeds)
    by_arm = {t.arm: t for t in made if t.seed == 0}
    whole = sum(s.flops for s in by_arm["full"].stages)
    for arm, trial in by_arm.items():
        expected = by_arm["full"].stages[-1].flops if arm == "no_pretraining" else whole
        assert sum(s.flops for s in trial.stages) == pytest.approx(expected, rel=0.01), arm
    assert by_arm["patches"].stages[0].config.train.steps > by_arm["full"].stages[0].config.train.steps
    assert by_arm["full"].stages[1].config.train.init_from == (str(by_arm["full"].stages[0].path),)
    assert [t.seed for t in made[: len(sweep.arms)]] == [0] * len(sweep.arms)  # seed by seed


def test_two_sweeps_at_once_keep_each_others_seconds(tmp_path):
    one, two = Clock(tmp_path), Clock(tmp_path)
    one.add(Path("a"), 1.0)
    two.add(Path("b"), 2.0)
    one.add(Path("b"), 3.0)
    assert one.seconds == Clock(tmp_path).seconds == {"a": 1.0, "b": 5.0}


def test_every_claim_is_about_an_arm():
    sweep = load_config(ABLATIONS)
    names = {arm.name for arm in sweep.arms}
    assert {c.better for c in sweep.claims} | {c.worse for c in sweep.claims} == names


def test_the_family_differs_in_the_model_alone():
    sweep = load_config(FAMILY)
    check(sweep, FAMILY)
    made = [t.stages[0] for t in trials(sweep, Path("runs"), Path("tokenizer")) if t.seed == 0]
    assert len(made) == 14
    assert all(s.flops == pytest.approx(made[0].flops, rel=0.01) for s in made)
    shared = (
        "train.batch_size",
        "data.parts.pairs.path",
        "data.parts.pairs.split",
        "data.image_size",
        "text.length",
        "text.spelling",
    )
    shared += (
        "text.model",
        "optimizer.name",
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "optimizer.schedule",
        "optimizer.b2",
        "optimizer.clip",
        "optimizer.warmup",
    )
    for field in shared:
        values = set()
        for stage in made:
            value = stage.config
            for part in field.split("."):
                value = value[part]
            values.add(value)
        assert len(values) == 1, field
    assert len({s.config.model.target for s in made}) == 5
    towers = [
        build_model(s.config.model, s.config.data.image_size, SimpleNamespace(vocabulary=Vocabulary(384, 24)), ()).sizes
        for s in made
    ]
    for sizes in towers:  # every Size of every model: an image tower or encoder, and what reads or writes text
        fields = sizes if isinstance(sizes, tuple) else vars(sizes).values()
        assert {x for x in fields if isinstance(x, Size)} == {TOWERS["tiny"]}


def test_what_an_arm_lacks_is_left_empty(tmp_path):
    sweep = load_config(FAMILY)
    (zero_shot, _), (generative, _) = sweep.scores[:2]
    rest = {name: {} for name, _ in sweep.scores[2:]}
    rows = [
        Summary("simvlm", "SimVLM", {zero_shot: {}, generative: {0: 0.5, 1: 0.6}, **rest}, 1e12, "1", 1, 1),
        Summary("clip", "CLIP", {zero_shot: {0: 0.9, 1: 0.8}, generative: {}, **rest}, 1e12, "1", 1, 1),
        Summary("siglip", "SigLIP", {zero_shot: {0: 0.95, 1: 0.86}, generative: {}, **rest}, 1e12, "1", 1, 1),
    ]
    page = markdown(sweep, rows, "f.svg")
    assert "| SimVLM | – | 0.550 ± 0.071 | – |" in page and "| CLIP | 0.850 ± 0.071 | – |" in page
    claim = next(line for line in page.splitlines() if line.startswith("| SigLIP beats CLIP"))
    assert "(zero-shot, by similarity)" in claim and "+0.055" in claim
    sweep.figure = (zero_shot, generative)
    drawn = figure(sweep, rows)
    assert drawn.count("<g ") == 2 and drawn.count("<circle") == 6
    assert "\nNo arm has a score `retrieval/test/image_to_text_r1`, " in page
    sweep.claims[0].score = "taste"
    with pytest.raises(ValueError, match="'taste' is not one of the sweep's scores"):
        check(sweep, "x.py")


def test_verdicts_are_paired_by_seed():
    better = {0: 0.5, 1: 0.7, 2: 0.9}
    assert verdict(better, {k: v - 0.1 + 0.01 * k for k, v in better.items()})[0] == "holds"
    assert verdict(better, {k: v + 0.1 + 0.01 * k for k, v in better.items()})[0] == "reversed"
    assert verdict(better, {0: 0.6, 1: 0.6, 2: 0.9})[0] == "not separated"
    assert verdict(better, {0: 0.4, 1: 0.67, 2: 0.85})[0] == "not separated"  # 3 standard errors are few for 3 seeds
    assert verdict(better, {0: 0.1})[0] == "too few seeds" and verdict(better, {})[0] == "no score"
    mean, deviation = spread({0: 1.0, 1: 3.0})
    assert mean == 2.0 and deviation == pytest.approx(math.sqrt(2)) and math.isnan(spread({})[0])


def test_a_stage_of_another_length_is_refused(tmp_path):
    """Its schedule would be neither's, and what started from it would stay."""
    stage = first_trial(tmp_path).stages[0]
    stage.check()  # nothing has begun
    wanted = stage.config.train.steps
    stage.path.mkdir(parents=True)
    begun = recorded(stage.config)
    begun["train"]["steps"] = 7
    (stage.path / "config.json").write_text(json.dumps(begun))
    (stage.path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=f"has begun with 7 steps, the sweep wants {wanted}"):
        stage.check()


def test_a_trial_is_finished_when_its_last_stage_is_scored(tmp_path):
    trial = first_trial(tmp_path)
    last = trial.stages[-1]
    assert not trial.finished
    last.path.mkdir(parents=True)
    (last.path / "results.json").write_text(json.dumps({"trained": last.config.train.steps - 1, "entries": []}))
    assert not trial.finished
    (last.path / "results.json").write_text(json.dumps({"trained": last.config.train.steps, "entries": []}))
    assert trial.finished and not Trial(trial.arm, trial.seed, trial.stages[:1]).finished


@pytest.mark.parametrize(("low", "high"), [(0.41, 0.53), (0.5, 0.5), (0.0, 1.0), (-3.2, 41.0), (0.3071, 0.3074)])
def test_ticks_are_round_and_hold_the_values(low, high):
    found = ticks(low, high)
    step = found[1] - found[0]
    assert found[0] <= low and high <= found[-1] and 2 <= len(found) <= 7
    assert float(f"{step:.1g}") == pytest.approx(step) and f"{step:.0e}"[0] in "125"


@pytest.mark.parametrize("scores", [{0: 0.41, 1: 0.47}, {0: 0.5}, {0: 0.3071, 1: 0.3074}])
def test_the_figure_holds_its_labels_and_dots(scores):
    sweep = load_config(ABLATIONS)
    titles = ["short", "a much longer title, of an arm & its <stages>"]
    drawn = figure(
        sweep,
        [
            Summary(a.name, t, {sweep.scores[0][0]: scores}, 1, "1", 1, 1)
            for a, t in zip(sweep.arms[:2], titles, strict=True)
        ],
    )
    width = float(re.search(r'<svg [^>]*width="([\d.]+)"', drawn)[1])
    labels = re.findall(r'<text x="([\d.]+)" y="\d+" text-anchor="end">([^<]*)<', drawn)
    assert [text for _, text in labels] == [titles[0], "a much longer title, of an arm &amp; its &lt;stages&gt;"]
    wide = [7 * len(title) for title in titles]  # 12 px type is about 7 px wide
    assert all(float(x) >= w for (x, _), w in zip(labels, wide, strict=True))
    read = [float(t) for t in re.findall(r'text-anchor="middle">([^<]*)<', drawn)]
    assert read == pytest.approx(ticks(min(scores.values()), max(scores.values())), abs=1e-9)
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert len(dots) == 2 * len(scores) and all(float(labels[0][0]) < x < width for x in dots)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.__delattr__("arms"), "is no sweep: it has no arms"),
        (lambda s: s.claims[0].update(worse="flying"), "is about an arm that the sweep does not have"),
    ],
)
def test_configs_that_are_no_sweeps(change, message):
    sweep = load_config(ABLATIONS)
    change(sweep)
    with pytest.raises(ValueError, match=message):
        check(sweep, "x.py")


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--seeds", "99"], ["--steps-factor", "0"], ["--arms", "flying"]])
def test_options_that_mean_nothing(words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["sweep", ABLATIONS, "--workdir", str(tmp_path), *words])
    assert words[1] in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_whole_sweep_and_its_page(tmp_path, monkeypatch, capsys):
    from simvlm_jax.experiment import run
    from simvlm_jax.parallel.environment import EXIT_INTERRUPTED
    from simvlm_jax.train.loop import Interrupted

    config = tmp_path / "configs" / "sweeps" / "small.py"
    config.parent.mkdir(parents=True)
    small = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from simvlm_jax.core.build import load_config

def get_config():
    sweep = load_config({ABLATIONS!r})
    small = {{"train.batch_size": 8, "log.every": 1, "eval.batch_size": 8}}
    for stage, path in zip(sweep.stages, ({SCENES!r}, {SCENES.replace("captions", "vqa")!r})):
        paths = {{"data.parts.pairs.path": path, "data.eval.path": path, "data.parts.documents.path": "scenes/text-24_8_8_8"}}
        stage.set.update({{**stage.set, **small, **paths}})
    sweep.tokenizer.paths = (({SCENES!r}, True), ({SCENES.replace("captions", "vqa")!r}, True))
    return sweep
"""
    config.write_text(small)
    words = [
        "sweep",
        str(config),
        "--workdir",
        str(tmp_path / "out"),
        "--arms",
        "no_pretraining",
        "--steps-factor",
        "0.01",
    ]

    def interrupted(config, workdir, *rest):
        if workdir.endswith("finetune"):
            raise Interrupted("stopped")
        run(config, workdir, *rest)

    monkeypatch.setattr("simvlm_jax.experiment.run", interrupted)
    assert main([*words, "--seeds", "1"]) == EXIT_INTERRUPTED
    monkeypatch.setattr("simvlm_jax.experiment.run", run)
    assert main([*words, "--seeds", "1"]) == 0
    assert "2 of 2 trials" in capsys.readouterr().out
    out = tmp_path / "out" / "steps-x0.01"
    page = (out / "report.md").read_text()
    (out / "report.md").write_text(page.replace("# simvlm_ablations", "# Mine\n\nWords of people."))
    done = {p: p.read_bytes() for p in out.rglob("results.json")}
    assert main([*words, "--seeds", "2"]) == 0
    assert all(p.read_bytes() == data for p, data in done.items())  # what was finished is not run again
    page = (out / "report.md").read_text()
    assert "Words of people." in page and END in page and page.count("| pretraining helps |") == 1
    assert "<svg" in (out / "report.svg").read_text()
    assert len(json.loads((out / "seconds.json").read_text())) == 6

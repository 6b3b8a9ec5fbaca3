"""Fine-tuning recipes end to end: a pretrained run, a task, a head, scores with controls, a page."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from simvlm_jax.cli import main as cli
from simvlm_jax.core.build import load_config
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.load import load_run
from simvlm_jax.train.init_from import initialiser
from tests.conftest import ROOT


def finetuned(task, finished_run, path, **overrides):
    from simvlm_jax import experiment

    config = load_config(f"{ROOT / 'configs' / 'finetune.py'}:{task}")
    data = config.data.parts.pairs.path
    small = {
        "data.parts.pairs.path": f"{data}-80_8_32_16",
        "train.steps": 2,
        "train.batch_size": 8,
        "eval.batch_size": 16,
        "log.every": 1,
        **overrides,
    }
    config.update_from_flattened_dict(small)
    config.seed = 5  # other fresh weights than the run it starts from
    starts = [
        {**s, "run": str(finished_run)} if isinstance(s, dict) else str(finished_run) for s in config.train.init_from
    ]
    with config.ignore_type():
        config.train.init_from = tuple(starts)
    experiment.run(config, str(path))
    return json.loads((path / "results.json").read_text())["entries"]


def test_vqa(finished_run, tmp_path, capsys):
    entries = finetuned("vqa", finished_run, tmp_path / "vqa")
    assert [(e["split"], e["control"]) for e in entries] == [
        ("test", None),
        ("test", "blind"),
        ("test", "constant"),
        ("compositional", None),
    ]
    assert {"accuracy", "accuracy_count", "accuracy_relation"} <= set(entries[0]["scores"])
    labels = json.loads((tmp_path / "vqa" / "labels.json").read_text())
    run = load_run(tmp_path / "vqa")
    assert run.labels == tuple(labels) and {"yes", "no"} <= set(labels)
    assert run.params["head_kernel"].shape == (128, len(labels))
    assert run.params["text_position"].shape == (32, 128)
    old = load_run(finished_run)
    assert run.tokenizer.sha256 == old.tokenizer.sha256
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        {k: v for k, v in old.params.items() if k != "text_position"},
        {k: v for k, v in run.params.items() if k in old.params and k != "text_position"},
    )
    assert max(jax.tree.leaves(moved)) < 0.02  # it did start there: other fresh weights are tenths away
    state = SimpleNamespace(params=jax.tree.map(jax.numpy.zeros_like, run.params), extra={})
    letters = RunDir(tmp_path / "vqa").letters()
    start = ({"run": str(tmp_path / "vqa")},)
    same = initialiser(run.model, run.tokenizer.sha256, run.labels, start, run.mesh)(state, letters).params
    np.testing.assert_array_equal(same["head_kernel"], run.params["head_kernel"])
    with pytest.raises(ValueError, match=r"other answers .*drop it with `map`"):  # as many, in another order
        initialiser(run.model, run.tokenizer.sha256, run.labels[::-1], start, run.mesh)(state, letters)
    capsys.readouterr()
    words = [
        "eval",
        str(tmp_path / "vqa"),
        "--suite",
        "classify",
        "--limit",
        "8",
        "--split",
        "test",
        "--no-controls",
        "--json",
    ]
    assert cli(words) == 0
    again = json.loads(capsys.readouterr().out)["entries"]
    assert len(again) == 1 and again[0]["provenance"]["weights"] == entries[0]["provenance"]["weights"]
    assert cli(["eval-diff", str(tmp_path / "vqa"), str(finished_run)]) == 1  # nothing in common
    page = (tmp_path / "vqa" / "report.html").read_text()
    assert "<h3>Accuracy by slice</h3>" in page and "<th>relation</th>" in page
    assert "class=confusion" in page and "The worst mistakes" in page and "class=asked" in page


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqa_open", "entail", "transfer", "pairs", "captions", "translate"])
def test_every_other_task(task, finished_run, tmp_path):
    entries = finetuned(task, finished_run, tmp_path / task)
    assert entries and all(np.isfinite(list(e["scores"].values())).all() for e in entries)
    suites = {e["suite"] for e in entries}
    expected = {
        "vqa_open": {"generate", "rank", "hallucination"},
        "transfer": {"read", "seen"},
        "captions": {"captions", "captions_beam"},
        "translate": {"translate"},
    }
    assert suites == expected.get(task, {"classify"})
    if task == "captions":
        page = (tmp_path / task / "report.html").read_text()
        lists = [part.partition("</ol>")[0].count("<li>") for part in page.split("<ol>")[1:]]
        assert lists and max(lists) == 3  # the three best of a beam


@pytest.mark.slow
@pytest.mark.parametrize("task", ["easy_vqa", "nlvr", "daquar"])
def test_real_sets(task, finished_run, tmp_path, shared):
    entries = finetuned(
        task, finished_run, tmp_path / task, **{"data.parts.pairs.path": str(shared(task)), "eval.examples": 32}
    )
    assert {e["control"] for e in entries} == {None, "blind", "constant"}

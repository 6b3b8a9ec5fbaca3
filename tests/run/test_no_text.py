"""A run that reads no text has no tokenizer, and nothing that needs one is asked of it in silence."""

import json

import pytest

from simvlm_jax import experiment
from simvlm_jax.core.build import load_config, spec
from simvlm_jax.core.trust import TRUSTED
from simvlm_jax.infer.engine import load_engine
from simvlm_jax.run.directory import RunDir, not_of_a_run
from tests.conftest import ROOT


@pytest.fixture
def config():
    made = load_config(f"{ROOT / 'configs' / 'clip.py'}:smoke")
    made.model = spec("tests.toy_classifier:ColourClassifier")
    made.data.parts.pairs.path = "scenes/classes-80_8_32_16"
    made.data.parts.pairs.transforms = (
        spec("simvlm_jax.data.transforms:Pixels", size=32),
        spec("simvlm_jax.data.transforms:Label"),
        spec("simvlm_jax.data.transforms:Keep", keys=("image", "label")),
    )
    made.data.labels.size = 50
    made.optimizer.decay = ()
    made.optimizer.bounds = ()
    made.train.steps = 2
    made.eval.suites = {}
    made.text = None
    return made


def test_a_run_without_text_trains_continues_and_loads(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(TRUSTED, "tests")
    path = tmp_path / "run"
    experiment.run(config, str(path))
    assert " pairs; compiling" in (said := capsys.readouterr().err) and "pieces" not in said, said
    assert not (path / "tokenizer").exists() and json.loads((path / "results.json").read_text())["trained"] == 2
    config.train.steps = 3
    experiment.run(config, str(path), mode="fit")
    rows = [r["step"] for r in RunDir(path).rows() if r["split"] == "train"]
    assert rows == [1, 2, 3] and "continuing" in capsys.readouterr().err
    engine, run = load_engine(path)
    assert run.step == 3 and run.params["kernel"].shape == (3, len(run.labels))
    with pytest.raises(ValueError, match=r"reads no text \(its config\.text is None\)"):
        engine.tokenizer.encode("a text")
    with pytest.raises(ValueError, match="is a file of the run"):
        not_of_a_run(path / "results.json")
    config.text = load_config(f"{ROOT / 'configs' / 'clip.py'}:smoke").text
    with pytest.raises(ValueError, match=r"text: None in the run, 'a tokenizer' now"):
        experiment.run(config, str(path))

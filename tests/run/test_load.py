"""Weights that are not those of the config beside them are refused by the names of their parameters."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simvlm_jax.core.build import load_config
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.data.shapes import StandIn, stand_in_labels
from simvlm_jax.run.load import build_model, check_shapes, load_run
from tests.conftest import ROOT

CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem not in ("parts", "__init__"))


def test_weights_of_another_model_in_a_checkpoint_that_does_not_tell(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for file in run.glob("checkpoints/*/_CHECKPOINT_METADATA"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "custom_metadata": {}}))
    assert load_run(run).step == 4
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "size": "small"}}))
    with pytest.raises(
        ValueError,
        match=r"weights of .*4 are not those of .* decoder/layer_0/attention/key: \[\d+, 2, 64\] in the checkpoint, "
        r"\[512, 8, 64\] in the model; .* put back the config\.json",
    ):
        load_run(run)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_shapes_of_every_model_are_known(path):
    config = load_config(str(path))
    tokenizer: Any = StandIn(Vocabulary(config.text.vocabulary, config.text.length or 32))
    model = build_model(config.model, config.data.image_size, tokenizer, stand_in_labels(config.data.labels.size))
    side = config.data.image_size
    with pytest.raises(ValueError, match=r"nothing in the checkpoint, \[.* in the model"):
        check_shapes({}, {}, model, (config.model.get("images", 1), side, side, 3), tokenizer.vocabulary.length, "here")


def test_state_beside_the_parameters_is_compared_too():
    model: Any = SimpleNamespace(init=lambda key, batch: ({}, {"queue": np.zeros((4, 2))}))
    check_shapes({}, {"queue": np.zeros((4, 2))}, model, (1, 8, 8, 3), 8, "here")
    with pytest.raises(ValueError, match=r"extra/queue: \[3, 2\] in the checkpoint, \[4, 2\] in the model"):
        check_shapes({}, {"queue": np.zeros((3, 2))}, model, (1, 8, 8, 3), 8, "here")

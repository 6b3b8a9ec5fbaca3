"""A run that the release before made, kept as it was (last_release.tar.xz): it loads, captions, and goes on training.

It is `configs/prefixlm.py:smoke` with the fields below, after 4 of 8 steps on the built-in scenes; its parameters began as
multiples of 1/16, so that they take little room, and its norms were trained.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from simvlm_jax.core.build import load_config
from tests.conftest import ROOT

FIELDS = {
    "model.decoder_only": True,
    "model.stem_stages": 0,
    "train.steps": 8,
    "train.trainable": (("norm", True), (".*", False)),
    "checkpoint.every": 4,
    "checkpoint.latest": 1,
    "optimizer.learning_rate": 0.05,
}
LOSSES = [6.531585216522217, 6.6382365226745605, 6.646249771118164, 6.322272777557373]  # of the steps it has done
REST = [6.497560501098633, 6.218396186828613, 6.079318046569824, 6.108031749725342]  # as that release went on
CAPTION = "c c c c c c c c c c c c c c c c c c c c c c c c"  # of docs/scenes.png


@pytest.fixture
def run(tmp_path):
    with tarfile.open(Path(__file__).with_name("last_release.tar.xz")) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path / "four"


def losses(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["split"] == "train"]


def test_it_goes_on_training(run):
    from simvlm_jax import experiment

    assert losses(run) == LOSSES
    config = load_config(str(ROOT / "configs" / "prefixlm.py") + ":smoke")
    config.update_from_flattened_dict(FIELDS)
    experiment.run(config, str(run), "smoke", "fit")
    found = losses(run)
    assert found[:4] == LOSSES
    np.testing.assert_allclose(
        found[4:], REST, rtol=2e-5
    )  # on other processors, eight devices and with other XLA flags


def test_it_captions(run):
    import simvlm_jax

    assert simvlm_jax.load(str(run)).caption(str(ROOT / "docs" / "scenes.png")) == CAPTION

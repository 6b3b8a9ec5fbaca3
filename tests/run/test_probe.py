"""The attentional probe as users run it: its config, from a run of a few steps, to scores; only the probe is learned."""

import json

import numpy as np

from simvlm_jax import experiment
from simvlm_jax.core.build import load_config
from simvlm_jax.run.load import load_run
from tests.conftest import ROOT


def test_a_probe_of_a_frozen_encoder(tmp_path):
    import jax

    first = load_config(f"{ROOT / 'configs' / 'coca.py'}:smoke")
    first.train.steps = 2
    first.eval.suites = {}
    experiment.run(first, str(tmp_path / "coca"), mode="fit")
    config = load_config(f"{ROOT / 'configs' / 'coca.py'}:probe")
    config.data.image_size = 32
    config.data.parts.pairs.path = config.data.eval.path = "scenes/classes-80_8_32_16"
    config.train.update(steps=2, batch_size=8, init_from=(str(tmp_path / "coca"),))
    config.eval.batch_size = 8
    experiment.run(config, str(tmp_path / "probe"))
    entries = json.loads((tmp_path / "probe" / "results.json").read_text())["entries"]
    assert [(e["suite"], e["split"], e["control"]) for e in entries] == [
        ("classify", "test", None),
        ("classify", "test", "blind"),
    ]
    assert all(0 <= e["scores"]["accuracy"] <= 1 for e in entries)
    before, after = load_run(tmp_path / "coca").params, load_run(tmp_path / "probe").params
    assert {*after} - {*before} == {"probe_pool", "probe_head"}
    for name in before:
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])

"""Each task of configs/blip.py begins from a run of BLIP: what the task has is taken over, and nothing else is in the way."""

import jax
import numpy as np
import pytest

from simvlm_jax.core.build import load_config
from simvlm_jax.parallel.mesh import make_mesh
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.load import build_model, load_run, tokenizer_hash
from simvlm_jax.train.init_from import initialiser
from simvlm_jax.train.optimizer import Optimizer
from simvlm_jax.train.state import prepare
from tests.conftest import ROOT, random_rows


@pytest.mark.parametrize("task", ["captions", "retrieval", "vqa", "nlvr"])
def test_a_task_begins_from_a_pre_trained_run(blip_run, task):
    run, mesh = load_run(blip_run), make_mesh(jax.devices()[:1])
    config = load_config(f"{ROOT / 'configs' / 'blip.py'}:{task}")
    labels = ("yes", "no") if config.data.labels.size else ()
    model = build_model(config.model, 32, run.tokenizer, labels)
    images = 2 if task == "nlvr" else 1
    rows = {**random_rows(4, run.model.vocabulary.length, 32, images=images), "id": np.arange(4)}
    rows["label"] = np.zeros(4, np.int32)
    rows["text"] = np.minimum(rows["text"], 40)
    ready = prepare(model, Optimizer(), {"pairs": rows}, mesh, seed=0, steps=1)
    (source,) = ({**dict(s), "run": str(blip_run)} for s in config.train.init_from)
    taken = initialiser(model, tokenizer_hash(RunDir(blip_run)), labels, [source], mesh)
    state = ready.start(taken)
    image = lambda tree: jax.tree.leaves(tree["image_tower"])  # noqa: E731
    for a, b in zip(image(state.params), image(run.params), strict=True):
        np.testing.assert_array_equal(a, b)
    if task == "nlvr":
        cross = run.params["encoder"]["layer_0"]["cross_attention"]["query"]
        for i in range(2):
            np.testing.assert_array_equal(state.params["layer_0"][f"cross_attention_{i}"]["query"], cross)
    elif task != "retrieval":
        whole = run.model.completed(run.params)["decoder"]
        jax.tree.map(np.testing.assert_array_equal, model.completed(state.params)["decoder"], whole)
    _, measured = ready.train_step()(state, {"pairs": rows})
    assert np.isfinite(measured["loss"])

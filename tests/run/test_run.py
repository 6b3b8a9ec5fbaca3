"""What a run leaves: files that read back, checkpoints kept by policy, weights loaded elsewhere."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.build import build
from simvlm_jax.parallel.mesh import make_mesh, replicated
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import Metrics, RunDir
from simvlm_jax.run.load import load_run


def test_a_run_directory(finished_run):
    results = json.loads((finished_run / "results.json").read_text())
    entry = next(e for e in results["entries"] if e["split"] == "test" and e["control"] is None)
    assert entry["suite"] == "captions"
    assert {"scene_accuracy", "hallucination", "coverage", "cider", "bleu4", "rouge_l"} <= set(entry["scores"])
    assert {"data", "prompt", "preprocessing", "decoding", "checkpoint", "versions"} <= set(entry["provenance"])
    controls = {(e["split"], e["control"]) for e in results["entries"]}
    assert {("test", "blind"), ("many", None), ("compositional", None)} <= controls
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["split"] == "train"] == [1, 2, 3, 4]
    page = (finished_run / "report.html").read_text()
    assert page.count("data:image/png;base64") > 10 and "http" not in page and "polyline" in page
    assert (finished_run / "tokenizer" / "contract.json").exists()


def test_weights_load_without_the_optimizer(finished_run):
    run = load_run(finished_run)
    assert run.step == 4 and sum(x.size for x in jax.tree.leaves(run.params)) > 1e6
    with pytest.raises(FileNotFoundError, match=r"no step 3; it has \[2, 4\]"):
        load_run(finished_run, step=3)


def test_init_from_another_run(tiny_config, finished_run, tmp_path):
    from simvlm_jax import main

    config = tiny_config(**{"train.steps": 1, "optimizer.learning_rate": 0.0, "eval.examples": 8})
    config.train.init_from = ({"run": str(finished_run)},)
    main.run(config, str(tmp_path / "next"))
    old, new = load_run(finished_run).params, load_run(tmp_path / "next").params
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_the_average_of_the_weights_is_what_loads(tiny_config, tmp_path):
    from simvlm_jax import main

    config = tiny_config(**{"train.steps": 2, "optimizer.ema": 0.5, "eval.examples": 8})
    main.run(config, str(tmp_path / "ema"))
    loaded = load_run(tmp_path / "ema").params
    plain = tiny_config(**{"train.steps": 2, "eval.examples": 8})
    main.run(plain, str(tmp_path / "plain"))
    raw = load_run(tmp_path / "plain").params
    difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), raw, loaded)
    assert difference["embedding"] > 0 and difference["embedding"] < 0.01  # the average lags by two steps' updates


def state(value):
    return {"params": {"w": jnp.full((8, 4), float(value))}, "extra": {}, "opt": {}}


def test_checkpoints_are_kept_by_policy(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", latest=1, every=4, best="cider")
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.3), (4, 0.2), (5, 0.4)):
        checkpoints.save(step, state(step), (state(step)["params"], {}), {"cider": score})
        checkpoints.wait()
    assert sorted(checkpoints._manager.all_steps()) == [2, 4, 5]
    assert checkpoints.best_step() == 2 and checkpoints.latest_step() == 5
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(make_mesh())), state(0)
    )
    assert float(checkpoints.restore(4, abstract)["params"]["w"][0, 0]) == 4
    params, _ = checkpoints.restore_weights(2, replicated(make_mesh(jax.devices()[:2])))
    assert float(params["w"].sum()) == 64


def test_metrics_drop_what_came_after_the_checkpoint(tmp_path):
    run = RunDir(tmp_path)
    metrics = Metrics(run, 0)
    for step in (1, 2, 3):
        metrics.write(step, "train", {"loss": float(step)})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 4, "spl')  # a line cut short by a crash
    Metrics(run, 2).close()
    assert [r["step"] for r in run.rows()] == [1, 2]


def test_a_non_finite_loss_goes_back_and_then_names_the_samples(tiny_config, tmp_path, monkeypatch):
    from simvlm_jax import main
    from simvlm_jax.train.loop import NonFiniteLoss

    config = tiny_config(
        **{"train.steps": 4, "train.retries": 1, "optimizer.learning_rate": 1e30, "optimizer.clip": 0.0}
    )
    config.optimizer.warmup = 0.0
    with pytest.raises(
        NonFiniteLoss, match=r"step \d is not finite, also after 1 retries; its samples: scenes/captions"
    ):
        main.run(config, str(tmp_path / "bad"))


def test_eval_mode_scores_a_finished_run_again(tiny_config, finished_run):
    from simvlm_jax import main

    before = json.loads((finished_run / "results.json").read_text())
    main.run(tiny_config(), str(finished_run), mode="eval")
    after = json.loads((finished_run / "results.json").read_text())
    assert [e["scores"] for e in before["entries"]] == [e["scores"] for e in after["entries"]]
    assert build(tiny_config().eval.sampler).temperature == 0

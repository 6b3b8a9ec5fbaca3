"""What a run leaves: files that read back, checkpoints kept by policy, weights loaded elsewhere."""

import json
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.parallel.mesh import make_mesh, replicated
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import Metrics, RunDir
from simvlm_jax.run.load import load_run
from simvlm_jax.text.tokenizer import Tokenizer
from simvlm_jax.train.init_from import initialiser, tokenizer_of
from tests.conftest import SCENES


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
    low, high = entry["intervals"]["cider"]
    assert f"<td>{entry['scores']['cider']:.3f}<small>{low:.3f}–{high:.3f}</small>" in page
    assert page.count("95 % intervals") == 1
    assert page.count("data:image/png;base64") > 10 and "http" not in page and "polyline" in page
    assert (finished_run / "tokenizer" / "contract.json").exists()


def test_weights_load_without_the_optimizer(finished_run):
    run = load_run(finished_run)
    assert run.step == 4 and sum(x.size for x in jax.tree.leaves(run.params)) > 1e6
    with pytest.raises(FileNotFoundError, match=r"no step 3; it has \[2, 4\]"):
        load_run(finished_run, step=3)


def test_a_run_of_an_older_release_is_still_a_run(finished_run, tiny_config, tmp_path):
    """Fields that came later are missing from its config; they are no change, and have what was then the only way."""
    old = tmp_path / "old"
    shutil.copytree(finished_run, old)
    config = json.loads((old / "config.json").read_text())
    del config["data"]["whole"], config["data"]["labels"], config["eval"]["suites"]
    del config["model"]["classes"], config["model"]["images"]
    for transform in config["data"]["parts"]["pairs"]["transforms"]:
        transform.pop("whole", None)
        transform.pop("field", None)
    (old / "config.json").write_text(json.dumps(config))
    assert load_run(old).step == 4
    RunDir(old).check(tiny_config(), "")
    with pytest.raises(ValueError, match=r"data\.image_size: 64 in the run, 32 now"):
        RunDir(old).check(tiny_config(**{"data.image_size": 32}), "")
    more = tiny_config()
    more.data.parts.pairs.transforms = (*more.data.parts.pairs.transforms, more.data.parts.pairs.transforms[-1])
    with pytest.raises(ValueError, match=r"transforms\.6\.target"):
        RunDir(old).check(more, "")


def test_a_suite_that_cannot_run_costs_no_other_its_scores(finished_run, tiny_config, tmp_path):
    from simvlm_jax import experiment
    from simvlm_jax.core.build import spec

    shutil.copytree(finished_run, tmp_path / "run")
    config = tiny_config(**{"eval.examples": 8})
    config.eval.suites.questions = spec("simvlm_jax.eval.answering:Ranking")
    config.eval.suites.elsewhere = spec("simvlm_jax.eval.captioning:Captioning", path=str(tmp_path / "nothing"))
    experiment.run(config, str(tmp_path / "run"), mode="eval")
    entries = json.loads((tmp_path / "run" / "results.json").read_text())["entries"]
    failed = [e for e in entries if "error" in e]
    assert {(e["suite"], e["split"]) for e in failed} == {
        *(("questions", s) for s in config.data.eval.splits),
        ("elsewhere", "test"),
    }
    assert "ranking needs answers" in next(e["error"] for e in failed if e["suite"] == "questions")
    assert "nothing" in next(e["error"] for e in failed if e["suite"] == "elsewhere")
    assert any(e["scores"] for e in entries if e["suite"] == "captions")
    assert "could not be run: ranking needs answers" in (tmp_path / "run" / "report.html").read_text()


def test_init_from_another_run(tiny_config, finished_run, tmp_path):
    from simvlm_jax import experiment

    still = {"train.steps": 1, "optimizer.learning_rate": 0.0, "optimizer.ema": 0.9}
    config = tiny_config(**still, **{"data.parts.pairs.path": f"{SCENES.replace('captions', 'captions-seed5')}"})
    config.train.init_from = ({"run": str(finished_run)},)
    experiment.run(config, str(tmp_path / "next"), mode="fit")
    old, new = load_run(finished_run), load_run(tmp_path / "next")
    jax.tree.map(np.testing.assert_array_equal, old.params, new.params)  # the average of the weights starts there too
    assert old.tokenizer.sha256 == new.tokenizer.sha256  # that of the run, not one of the new captions
    other = Tokenizer.train(["other words"] * 9, 20, old.tokenizer.vocabulary.length).sha256
    state, letters = SimpleNamespace(params=jax.tree.map(jnp.zeros_like, old.params), extra={}), {}
    with pytest.raises(ValueError, match=r"another tokenizer .*set config\.text\.model="):
        initialiser(old.model, other, (), ({"run": str(finished_run)},), old.mesh)(state, letters)
    without = ({"run": str(finished_run), "map": [("embedding|^encoder", None)]},)
    dropped = initialiser(old.model, other, (), without, old.mesh)(state, letters).params
    assert not np.asarray(dropped["embedding"]).any()
    assert not any(np.asarray(v).any() for v in jax.tree.leaves(dropped["encoder"]))
    jax.tree.map(np.testing.assert_array_equal, dropped["decoder"], old.params["decoder"])


def test_whose_tokenizer_comes_with_the_weights(tmp_path):
    """That of a run whose embedding is taken, wherever a model keeps it."""
    run = RunDir(tmp_path / "pairs")
    run.path.mkdir()
    (run.path / "config.json").write_text("{}")
    run.write_letters({"image_tower/norm/scale": ("D",), "text_tower/embedding": ("V", "D")})
    assert tokenizer_of((str(run.path),)) == run.tokenizer
    assert tokenizer_of(({"run": str(run.path), "map": (("text_tower", None),)},)) is None


def test_freezing_all_that_the_default_decay_names(tiny_config, tmp_path):
    from simvlm_jax import experiment

    config = tiny_config(**{"train.steps": 1})
    config.train.trainable = (("embedding", True), (".*", False))
    experiment.run(config, str(tmp_path / "frozen"), mode="fit")
    assert load_run(tmp_path / "frozen").step == 1


def test_a_stop_during_an_evaluation_loses_nothing(tiny_config, tmp_path, monkeypatch):
    from simvlm_jax import experiment
    from simvlm_jax.eval.captioning import Captioning
    from simvlm_jax.eval.suite import Outcome
    from simvlm_jax.train.loop import Interrupted

    def stop(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return Outcome({"cider": 0.0}, [])

    monkeypatch.setattr(Captioning, "outcome", stop)
    config = tiny_config(**{"train.steps": 9, "eval.every": 3, "checkpoint.every": 100})
    with pytest.raises(Interrupted, match="stopped at step 3"):
        experiment.run(config, str(tmp_path / "run"))
    assert [r["step"] for r in RunDir(tmp_path / "run").rows() if r["split"] == "train"] == [1, 2, 3]
    assert load_run(tmp_path / "run").step == 3


def test_a_metric_to_keep_by_gets_a_checkpoint_at_every_evaluation(tiny_config, tmp_path):
    from simvlm_jax import experiment

    every = {"train.steps": 5, "eval.every": 2, "eval.examples": 8, "checkpoint.every": 3, "checkpoint.latest": 9}
    experiment.run(tiny_config(**every, **{"checkpoint.best": "cider"}), str(tmp_path / "run"), mode="fit")
    assert Checkpoints(RunDir(tmp_path / "run").checkpoints)._manager.all_steps() == [2, 3, 4, 5]


def test_the_average_of_the_weights_is_what_loads(tiny_config, finished_run, tmp_path):
    from simvlm_jax import experiment

    experiment.run(tiny_config(**{"optimizer.ema": 0.5}), str(tmp_path / "ema"), mode="fit")
    loaded, raw = load_run(tmp_path / "ema").params, load_run(finished_run).params
    difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), raw, loaded)
    assert 0 < difference["embedding"] < 0.01  # the average lags by some steps' updates


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
    params, _ = checkpoints.restore_weights(2, lambda name, shape: replicated(make_mesh(jax.devices()[:2])))
    assert float(params["w"].sum()) == 64


def test_a_save_of_many_small_arrays_compiles_nothing(tmp_path):
    """Orbax would have each device cut its part from every array, by a program for every shape; of large arrays it may."""
    mesh, events = make_mesh(), []

    def heard(event, *_, **__):
        events.append(event)

    def programs_of_a_save(sizes):
        values = {f"w{size}": np.arange(size, dtype=np.float32) for size in sizes}
        placed = jax.device_put(values, replicated(mesh))
        checkpoints = Checkpoints(tmp_path / str(len(sizes)))
        events.clear()
        checkpoints.save(1, {"params": placed}, (placed, {}))
        found = sum(event.endswith("backend_compile_duration") for event in events)
        checkpoints.wait()
        params, _ = checkpoints.restore_weights(1, lambda name, shape: replicated(mesh))
        jax.tree.map(np.testing.assert_array_equal, params, values)
        return found

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        assert programs_of_a_save([8, 16, 24, 32, 40]) == 0
        assert programs_of_a_save([2**21 + 8]) > 0
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def test_a_save_under_way_keeps_its_bits_while_training_goes_on(tmp_path):
    """The steps after it take the memory of the state that is being written."""
    values = np.arange(64, dtype=np.float32)
    state = jax.device_put({"w": values, "rng": jax.random.key(3)}, replicated(make_mesh()))
    checkpoints = Checkpoints(tmp_path)
    step = jax.jit(lambda s: {**s, "w": s["w"] + 1}, donate_argnums=0)
    checkpoints.save(1, {"params": state}, (state, {}))
    for _ in range(20):
        state = step(state)
    checkpoints.wait()
    two = replicated(make_mesh(jax.devices()[:2]))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=two), state)
    found = checkpoints.restore(1, {"params": abstract})["params"]
    np.testing.assert_array_equal(found["w"], values)
    np.testing.assert_array_equal(*(jax.random.key_data(x) for x in (found["rng"], jax.random.key(3))))
    assert float(state["w"][0]) == 20


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
    from simvlm_jax import experiment
    from simvlm_jax.train.loop import NonFiniteLoss

    config = tiny_config(
        **{"train.steps": 4, "train.retries": 1, "optimizer.learning_rate": 1e30, "optimizer.clip": 0.0}
    )
    config.optimizer.warmup = 0.0
    with pytest.raises(
        NonFiniteLoss, match=r"step \d is not finite, also after 1 retries; its samples: scenes/captions"
    ):
        experiment.run(config, str(tmp_path / "bad"))


def test_eval_mode_scores_a_run_again_and_does_not_call_it_finished(tiny_config, finished_run, tmp_path, capsys):
    from simvlm_jax import experiment

    path = tmp_path / "run"
    shutil.copytree(finished_run, path)
    before = json.loads((path / "results.json").read_text())
    (path / "results.json").unlink()
    experiment.run(tiny_config(**{"train.steps": 6, "eval.batch_size": 12}), str(path), mode="eval")  # 12 becomes 16
    after = json.loads((path / "results.json").read_text())
    assert [e["scores"] for e in before["entries"]] == [e["scores"] for e in after["entries"]]
    assert (after["step"], after["trained"]) == (4, 4)
    experiment.run(tiny_config(**{"train.steps": 6}), str(path))
    assert "continuing" in capsys.readouterr().err
    assert json.loads((path / "results.json").read_text())["trained"] == 6
    with pytest.raises(ValueError, match=r"model\.objective: 'prefix_lm' in the run, 'lm' now"):
        experiment.run(tiny_config(**{"model.objective": "lm"}), str(path), mode="eval")
    with pytest.raises(FileNotFoundError, match="not a run directory"):
        experiment.run(tiny_config(), str(tmp_path / "typo"), mode="eval")
    assert not (tmp_path / "typo").exists()
    RunDir(tmp_path / "new").start(tiny_config(), "prefixlm:")
    with pytest.raises(FileNotFoundError, match="no checkpoint to evaluate"):
        experiment.run(tiny_config(), str(tmp_path / "new"), mode="eval")


def test_a_start_that_failed_blocks_nothing(tiny_config, tmp_path):
    run = RunDir(tmp_path / "run")
    run.start(tiny_config(), "prefixlm:")
    (run.tokenizer).mkdir()
    other = tiny_config(**{"train.batch_size": 16})
    run.check(other, "prefixlm:")
    run.start(other, "prefixlm:")
    assert run.config()["train"]["batch_size"] == 16 and not run.tokenizer.exists()
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"train\.batch_size: 16 in the run, 8 now"):
        run.check(tiny_config(), "prefixlm:")


def test_another_machine_is_named(tiny_config, tmp_path):
    run = RunDir(tmp_path)
    run.start(tiny_config(), "prefixlm:")
    assert run.moved() == []
    recorded = json.loads((tmp_path / "environment.json").read_text())
    assert recorded["devices"] == "8 x cpu"
    (tmp_path / "environment.json").write_text(json.dumps({**recorded, "jax": "0.1"}))
    assert run.moved() == [f"jax: 0.1 before, {jax.__version__} now"]


def test_metrics_on_a_full_disk_say_so(tmp_path):
    metrics = Metrics(RunDir(tmp_path), 0)
    metrics._file.close()
    metrics._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(
        OSError, match=r"metrics could not be written to .*metrics\.jsonl \(No space left.*the same command"
    ):
        metrics.write(1, "train", {"loss": 1.0})
    with pytest.raises(OSError, match="No space left"):
        metrics.close()
    metrics.close()


def test_scores_that_are_not_numbers_stay_out_of_the_metrics(tmp_path):
    metrics = Metrics(RunDir(tmp_path), 0)
    metrics.write(1, "validation", {"cider": 0.5, "accuracy_count": float("nan")})
    metrics.close()
    assert RunDir(tmp_path).rows() == [{"step": 1, "split": "validation", "cider": 0.5}]


def test_bad_pictures_are_left_out_of_an_evaluation(tiny_config, tmp_path):
    from simvlm_jax import experiment
    from simvlm_jax.data.sources import open_source

    scenes, lines = open_source(SCENES, "train"), []
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(scenes[i]["image"][: 40 if i % 20 == 7 else None])
        lines.append(json.dumps({"image": f"{i}.png", "captions": scenes[i]["captions"] if i % 20 else []}))
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    (tmp_path / "held").mkdir()
    for path in list(tmp_path.glob("*.*")):
        (tmp_path / "held" / path.name).write_bytes(path.read_bytes())
    changes = {"data.parts.pairs.path": str(tmp_path / "table.jsonl"), "data.eval.path": str(tmp_path / "held")}
    changes |= {"train.steps": 1, "log.every": 0}
    experiment.run(tiny_config(**changes, **{"data.quarantine": 0.5}), str(tmp_path / "run"))
    entries = {e["control"]: e for e in RunDir(tmp_path / "run").results()["entries"]}
    assert set(entries) == {None, "blind", "constant"} and entries[None]["provenance"]["data"]["examples"] == 36
    bad = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {(row["part"], row["key"]) for row in bad} >= {("test", f"{i}.png") for i in (0, 7, 20, 27)}
    assert [r["step"] for r in RunDir(tmp_path / "run").rows()] == [1]  # log.every 0 leaves the last step alone

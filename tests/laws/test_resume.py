"""Runs that are really killed and continue exactly: same parameters, same metrics, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from simvlm_jax.main import EXIT_INTERRUPTED
from tests.conftest import ROOT, SCENES

STEPS = 16


def command(workdir, *more):
    return [
        sys.executable, "-m", "simvlm_jax.main", "--config", str(ROOT / "configs" / "prefixlm.py"), "--workdir", str(workdir),
        f"--config.data.train.path={SCENES}", "--config.data.documents.path=scenes/text-24_8_8_8", f"--config.train.steps={STEPS}",
        "--config.train.batch_size=8", "--config.eval.batch_size=8", "--config.log.every=1", "--config.checkpoint.every=4",
        "--config.eval.examples=8", *more,
    ]  # fmt: skip


def start(workdir, *more):
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}  # compiled as users have it
    return subprocess.Popen(command(workdir, *more), cwd=workdir.parent, env=env, stderr=subprocess.PIPE, text=True)


def finish(workdir, *more):
    process = start(workdir, *more)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return err


def rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for(condition, process, seconds=300):
    began = time.time()
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.time() - began < seconds
        time.sleep(0.005)


def state_of(workdir):
    from simvlm_jax.run.load import load_run

    return load_run(workdir).params


def learning(workdir):
    """What must not depend on interruptions: everything but speeds."""
    return [{k: r[k] for k in ("step", "split", "loss", "grad_norm", "text_loss")} for r in rows(workdir)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("law") / "whole"
    finish(path)
    return path


def same_as(path, whole):
    assert learning(path) == learning(whole)
    jax.tree.map(np.testing.assert_array_equal, state_of(path), state_of(whole))
    scores = [[e["scores"] for e in json.loads((p / "results.json").read_text())["entries"]] for p in (path, whole)]
    assert scores[0] == scores[1]


def test_sigterm_saves_and_the_same_command_continues(tmp_path, uninterrupted):
    path = tmp_path / "run"
    process = start(path)
    wait_for(lambda: len(rows(path)) >= 5, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == EXIT_INTERRUPTED, err
    assert "the same command continues" in err
    kept = max(int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit())
    assert 5 <= kept < STEPS
    assert "continuing" in finish(path)
    same_as(path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["early", "mid_save", "late"])
def test_sigkill_at_any_moment(tmp_path, uninterrupted, moment):
    path = tmp_path / "run"
    process = start(path)
    saving = lambda: any("tmp" in p.name for p in (path / "checkpoints").glob("*"))  # noqa: E731
    moments = {
        "early": lambda: len(rows(path)) >= 2,
        "mid_save": lambda: (path / "checkpoints").exists() and saving(),
        "late": lambda: len(rows(path)) >= 11,
    }
    wait_for(moments[moment], process)
    process.kill()
    process.communicate()
    finish(path)
    same_as(path, uninterrupted)


def test_a_finished_run_changes_nothing(uninterrupted):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*") if p.is_file() and p.name != "config.json"}
    assert "is finished" in finish(uninterrupted)
    assert before == {p: p.stat().st_mtime_ns for p in before if Path(p).exists()}


def test_a_changed_config_is_an_error_that_names_the_field(uninterrupted):
    process = start(uninterrupted, "--config.optimizer.learning_rate=9.0")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "optimizer.learning_rate" in err and "9.0 now" in err, err

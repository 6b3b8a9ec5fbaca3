"""Runs that are really killed and continue exactly: same parameters, optimizer, random key and metrics, bit for bit."""

import json
import random
import subprocess
import sys

import pytest

from simvlm_jax.cli.verify_resume import BOUND, Drill
from simvlm_jax.cli.verify_resume import main as verify_resume
from simvlm_jax.core.build import load_config
from simvlm_jax.experiment import run
from simvlm_jax.run.compare import compare_rows, compare_states
from tests.conftest import ROOT

CONFIG, STEPS = f"{ROOT / 'configs' / 'prefixlm.py'}:smoke", 16


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """A folder with `whole`, `killed` and `moved` runs and their certificate."""
    folder = tmp_path_factory.mktemp("law") / "verified"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")  # compiled as users have it
        code = verify_resume(
            ["--config", CONFIG, "--kills", "1", "--mid-save", "--steps", str(STEPS), "--workdir", str(folder)]
        )
    assert code == 0, (folder / "certificate.md").read_text()
    return folder


def test_the_certificate_holds_and_says_what_was_done(certified):
    c = json.loads((certified / "certificate.json").read_text())
    assert c["holds"] and {r["what"] for r in c["rows"] if r["run"] == "killed"} >= {"params", "opt", "rng"}
    kills = [(k["run"], k["moment"], k["devices"]) for k in c["kills"]]
    assert kills == [("killed", "while saving", 4), ("moved", "after a checkpoint", 1)]
    assert all(k["kept"] for k in c["kills"] if k["run"] == "moved")
    assert "HOLDS" in (certified / "certificate.md").read_text()


def test_the_certificate_could_fail(certified):
    """The run that moved has other bits, and a run of another seed other samples and losses."""
    moved = compare_states(certified / "whole", certified / "moved", STEPS)
    assert moved["params"].differing and not moved["rng"].differing
    rows = compare_rows(certified / "whole", certified / "moved")
    assert rows.samples and not rows.equal and 0 < rows.loss_gap <= BOUND
    text = (certified / "whole" / "metrics.jsonl").read_text()
    (certified / "other").mkdir()
    row = json.loads(text.splitlines()[3])
    changed = {**row, "loss": row["loss"] * 1.01, "samples": row["samples"] + 1}
    (certified / "other" / "metrics.jsonl").write_text(text.replace(json.dumps(row), json.dumps(changed)))
    rows = compare_rows(certified / "whole", certified / "other")
    assert not rows.equal and not rows.samples and rows.loss_gap == pytest.approx(0.01)


def test_a_second_verification_does_not_write_over_the_first(certified):
    with pytest.raises(ValueError, match="holds an earlier verification"):
        verify_resume(["--config", CONFIG, "--workdir", str(certified)])


def test_sigterm_saves_and_the_same_command_continues(certified, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    fixed = [f"--config.train.steps={STEPS}", "--config.log.every=1", "--config.checkpoint.every=2"]
    drill = Drill(CONFIG, tmp_path / "run", fixed, 4)
    step = random.Random(0).randint(3, 8)
    assert drill.kill_at(lambda: drill.logged() >= step, "asked to stop", soft=True)
    assert "the same command continues" in (tmp_path / "run.log").read_text()
    assert step <= drill.kept() < STEPS  # it saved the step it was at
    drill.finish()
    assert "continuing" in (tmp_path / "run.log").read_text()
    same = compare_states(certified / "whole", drill.workdir, STEPS)
    assert not any(d.differing for d in same.values())
    assert compare_rows(certified / "whole", drill.workdir).equal


def command(workdir, *more):
    call = [
        sys.executable,
        "-m",
        "simvlm_jax.main",
        "--config",
        CONFIG,
        "--workdir",
        str(workdir),
        "--mode",
        "fit",
        *more,
    ]
    return subprocess.run(call, capture_output=True, text=True, timeout=300)


def test_a_trained_run_changes_nothing_and_a_changed_config_is_named(certified):
    whole, same = certified / "whole", [f"--config.train.steps={STEPS}", "--config.checkpoint.every=2"]
    before = (whole / "metrics.jsonl").read_text(), sorted((whole / "checkpoints").iterdir())
    done = command(whole, *same)
    assert done.returncode == 0 and f"trained to step {STEPS}" in done.stderr
    assert before == ((whole / "metrics.jsonl").read_text(), sorted((whole / "checkpoints").iterdir()))
    config = load_config(CONFIG)
    config.train.steps, config.checkpoint.every, config.optimizer.learning_rate = STEPS, 2, 9.0
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: .* in the run, 9\.0 now"):
        run(config, str(whole), "prefixlm:smoke", "fit")
    assert before == ((whole / "metrics.jsonl").read_text(), sorted((whole / "checkpoints").iterdir()))

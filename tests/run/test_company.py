"""Several processes at one place, runs that have lost something, and values that would not do what they say."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from simvlm_jax.core.lock import Taken, held, turn
from simvlm_jax.data.pipeline import Part, Pipeline
from simvlm_jax.experiment import run as train
from simvlm_jax.run.directory import RunDir
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from simvlm_jax.core.lock import held
with held(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""
WAIT = """
import sys, time
from pathlib import Path
from simvlm_jax.core.lock import turn
with turn(Path(sys.argv[1])):
    open(sys.argv[2], "a").write("in ")
    time.sleep(0.2)
    open(sys.argv[2], "a").write("out ")
"""
PARENT = """
import os, subprocess, sys
from simvlm_jax.core.children import with_parent
subprocess.run([sys.executable, "-c", sys.argv[1]], env={**os.environ, **with_parent()})
"""
CHILD = """
import os, time
from simvlm_jax.core.children import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""


def started(code, *words):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, text=True, env=env)


def test_the_second_training_in_a_folder_is_told_who_is_there(tmp_path, tiny_config):
    process = started(HOLD, tmp_path / "run")
    try:
        assert process.stdout.readline().strip() == "in"
        with pytest.raises(
            Taken, match=rf"process {process.pid} on .* trains in .*run; wait until it ends, stop it, or name another"
        ):
            train(tiny_config(), str(tmp_path / "run"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with held(tmp_path / "run"):  # the lock has ended with its process
        pass


def test_a_holder_on_another_machine_counts_while_it_lives(tmp_path, monkeypatch):
    from simvlm_jax.core import lock

    monkeypatch.setattr(lock, "BEAT", 0.05)
    record = {"host": "another", "pid": 7, "beat": 3, "ended": False}
    path = tmp_path / "running.lock"
    path.write_text(json.dumps(record))
    with held(tmp_path):  # it does not count any more
        pass
    path.write_text(json.dumps(record))
    monkeypatch.setattr(lock.time, "sleep", lambda s: path.write_text(json.dumps({**record, "beat": 4})))
    with pytest.raises(Taken, match="process 7 on another"), held(tmp_path):
        pass


def test_who_prepares_waits_for_a_turn(tmp_path):
    log = tmp_path / "log"
    processes = [started(WAIT, tmp_path / "x.lock", log) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0] and log.read_text() == "in out " * 3
    with turn(tmp_path / "x.lock"):
        pass


def test_three_prepare_at_once_and_what_a_kill_left_goes(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp_path)}
    left = tmp_path / "scenes" / "captions-32px-8_8_8_8" / "incomplete.ABC_1.2.0"
    left.mkdir(parents=True)
    code = "from simvlm_jax.cli import main; import sys; sys.exit(main(['data', 'prepare', 'captions-32px-8_8_8_8', '--json']))"
    words = [sys.executable, "-c", code]
    errors = [(tmp_path / f"{i}.err").open("w+") for i in range(3)]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=err, env=env, text=True) for err in errors]
    for process, err in zip(processes, errors, strict=True):
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, err.seek(0) or err.read()
        assert json.loads(out.splitlines()[-1])["splits"]["train"] == 8
    assert not left.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux alone")
def test_children_end_with_their_parent():
    parent = started(PARENT, CHILD)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().split()[2]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child lives on")


@pytest.fixture
def copy(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def test_fewer_steps_than_a_run_has_are_refused(copy, tiny_config):
    with pytest.raises(ValueError, match=r"is trained to step 4 already, and config.train.steps=2 is fewer"):
        train(tiny_config(**{"train.steps": 2}), str(copy))


def test_a_run_without_its_checkpoints_begins_anew_and_keeps_what_it_measured(copy, tiny_config, capsys):
    before = {name: (copy / name).read_text() for name in ("metrics.jsonl", "results.json")}
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    found = json.loads((copy / "environment.json").read_text())
    (copy / "environment.json").write_text(json.dumps({**found, "cpu": "another"}))
    train(tiny_config(), str(copy), mode="fit")
    assert (copy / "metrics-1.jsonl").read_text() == before["metrics.jsonl"]
    assert (copy / "results-1.json").read_text() == before["results.json"] and not (copy / "results.json").exists()
    told = capsys.readouterr().err
    assert (
        "no checkpoint is left of a run that came to step 4" in told
        and "is finished" not in told
        and "continuing" not in told
    )
    assert RunDir(copy).newest_step() == 4
    train(tiny_config(), str(copy), mode="fit")
    assert "no checkpoint is left" not in capsys.readouterr().err and not (copy / "metrics-2.jsonl").exists()


def test_what_is_set_aside_takes_no_others_place(tmp_path):
    run = RunDir(tmp_path)
    assert run.set_aside() == ""
    (tmp_path / "metrics.jsonl").touch()  # of an attempt that never began
    (tmp_path / "metrics-1.jsonl").write_text("of before")
    assert run.set_aside() == "" and (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "results.json").write_text('{"entries": [], "trained": 7}')
    assert "came to step 7: it begins anew; what it has measured is kept in" in run.set_aside()
    assert (tmp_path / "results-1.json").exists()
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "split": "train"}\n')
    assert "came to step 3" in run.set_aside() and (tmp_path / "metrics-2.jsonl").exists()
    assert (tmp_path / "metrics-1.jsonl").read_text() == "of before"


def test_what_changes_no_bit_may_change(copy, tiny_config, capsys):
    found = json.loads((copy / "environment.json").read_text())
    (copy / "environment.json").write_text(json.dumps({**found, "cpu": "\x1b[31mred"}))
    train(tiny_config(**{"train.steps": 5, "data.threads": 1, "checkpoint.every": 5}), str(copy), mode="fit")
    told = capsys.readouterr().err
    assert "cpu: \\x1b[31mred before" in told and "\x1b" not in told  # a terminal is told nothing by a file
    with pytest.raises(ValueError, match=r"train\.batch_size: 8 in the run, 16 now"):
        train(tiny_config(**{"train.steps": 6, "train.batch_size": 16}), str(copy))


def test_weights_are_tied_to_their_tokenizer(copy, tmp_path):
    from simvlm_jax.run.load import load_run
    from simvlm_jax.text.tokenizer import Tokenizer

    own = Tokenizer.load(copy / "tokenizer")
    other = Tokenizer.train(
        ["quite another text of words", "and more of them 1 2 3"] * 20, own.vocabulary.size, own.vocabulary.length
    )
    other.save(copy / "tokenizer")
    with pytest.raises(ValueError, match=r"belong to something else .*\n  tokenizer: "):
        load_run(copy)


def test_the_best_by_no_score_is_an_error_at_once(tiny_config, tmp_path):
    with pytest.raises(
        ValueError, match=r"checkpoint\.best='cider' keeps what scores best while training; set config.eval.every"
    ):
        train(tiny_config(**{"checkpoint.best": "cider"}), str(tmp_path / "a"))


class Pairs:
    """Two pictures a row, but for every fifth."""

    def __len__(self):
        return 50

    def key(self, index):
        return f"row {index}"

    def __getitem__(self, index):
        return {"key": self.key(index), "images": [0] * (1 if index % 5 == 0 else 2)}


def test_rows_of_another_number_of_pictures_are_quarantined_by_name():
    def pixels(example, rng):
        return {"key": example["key"], "image": np.zeros((len(example["images"]), 2, 2, 3), np.uint8)}

    from simvlm_jax.data.pipeline import Quarantine
    from simvlm_jax.data.transforms import Keep

    keep = Keep(("image",))
    told = []
    pipeline = Pipeline([Part("pairs", Pairs(), [pixels, keep], 8)], 0, Quarantine(0.5, told.append))
    batches = [pipeline.batch(step)["pairs"] for step in range(4)]
    assert all(b["image"].shape == (8, 2, 2, 2, 3) for b in batches)
    assert told and all(
        "it has 1 images, where others have 2" in t["error"] and int(t["key"][4:]) % 5 == 0 for t in told
    )
    again = Pipeline([Part("pairs", Pairs(), [pixels, keep], 8)], 0, Quarantine(0.5)).batch(3)["pairs"]
    np.testing.assert_array_equal(again["id"], batches[3]["id"])


def test_one_endless_caption_does_not_make_every_row_as_long(tiny_config):
    from simvlm_jax.data import assemble

    class Captions:
        def __len__(self):
            return 200

        def key(self, index):
            return str(index)

        def __getitem__(self, index):
            return {
                "key": str(index),
                "captions": ["word " * 3000 if index == 7 else "a red circle left of a blue square"],
            }

    told = []
    config = tiny_config()
    made = assemble.make_tokenizer(config.text, config.data.parts, {"pairs": Captions()}, log=told.append)
    assert (
        made.vocabulary.length <= 32
        and "1 of 200 texts lose their end" in told[0]
        and "config.text.length sets another" in told[0]
    )


def test_what_is_told_moves_no_cursor(capsys):
    """Names and records of a run directory may hold what a terminal obeys."""
    from simvlm_jax.run.progress import Progress

    Progress(1).log("continuing \x1b[2J")
    assert capsys.readouterr().err == "continuing \\x1b[2J\n"
    code = "import sys; from simvlm_jax.parallel.heartbeat import exit_at_once; exit_at_once(sys.argv[1], 1)"
    words = [sys.executable, "-c", code, "error: \x1b]0;x\x07\nand more"]
    process = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert (process.returncode, process.stderr) == (1, "error: \\x1b]0;x\\x07\nand more\n")

"""Several processes as one run: the same samples and losses whatever their number, and a lost one is named, not waited for."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from simvlm_jax.parallel.environment import EXIT_HOST_LOST
from simvlm_jax.run.compare import compare_rows
from tests.conftest import QUICK, ROOT

STEPS, PATIENCE = 60, 10.0


def launch(workdir, processes, devices, *more):
    """Starts `launch/local.py`, its output in a log beside the run."""
    command = [
        sys.executable,
        str(ROOT / "launch" / "local.py"),
        "--processes",
        str(processes),
        "--devices",
        str(devices),
        "--",
    ]
    command += ["--config", f"{ROOT / 'configs' / 'prefixlm.py'}:smoke", "--workdir", str(workdir), "--mode", "fit"]
    command += [f"--config.train.steps={STEPS}", f"--config.hosts.patience={PATIENCE}", *more]
    with workdir.with_suffix(".log").open("a") as log:
        env = {**os.environ, "XLA_FLAGS": QUICK}
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    launched.append(process)
    return process


launched = []


@pytest.fixture(scope="module", autouse=True)
def none_goes_on():
    """After a failure nothing of it goes on beside the tests that follow: the launcher hands SIGTERM to its processes."""
    yield
    for process in launched:
        if process.poll() is None:
            process.terminate()


def finish(workdir, processes, devices):
    process = launch(workdir, processes, devices)
    assert process.wait(timeout=600) == 0, workdir.with_suffix(".log").read_text()[-3000:]


def beats(workdir):
    return {i: json.loads((workdir / "hosts" / f"{i}.json").read_text()) for i in (0, 1)}


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process, no interruption."""
    path = tmp_path_factory.mktemp("hosts") / "whole"
    finish(path, 1, 4)
    return path


@pytest.fixture(scope="module")
def bereft(tmp_path_factory):
    """A run of two processes of which the second was killed, and how long the first went on: (folder, seconds, log)."""
    path = tmp_path_factory.mktemp("hosts") / "two"
    process = launch(path, 2, 2)
    until = time.monotonic() + 300
    while logged(path) < 7:
        assert process.poll() is None and time.monotonic() < until, path.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.01)
    os.kill(beats(path)[1]["pid"], signal.SIGKILL)
    began = time.monotonic()
    process.wait(timeout=120)
    return path, time.monotonic() - began, path.with_suffix(".log").read_text()


def test_a_lost_process_is_named_within_the_time_set(bereft):
    _, seconds, log = bereft
    assert seconds < PATIENCE + 10
    assert re.search(
        r"\[0\] error: process 1 on .* in stage '\w+' of step \d+ has not been heard of for 1\d s; the same", log
    )
    assert "[launch] process 1" in log and "was ended by SIGKILL" in log
    assert f"has ended with exit code {EXIT_HOST_LOST}" in log


@pytest.mark.parametrize(
    ("processes", "devices"),
    [(1, 4), pytest.param(4, 1, marks=pytest.mark.slow), pytest.param(2, 2, marks=pytest.mark.slow)],
)
def test_any_number_of_processes_goes_on_with_the_same_samples(bereft, whole, tmp_path, processes, devices):
    import shutil

    path = tmp_path / "next"
    shutil.copytree(bereft[0], path)
    finish(path, processes, devices)
    rows = compare_rows(whole, path)
    assert rows.steps == STEPS and rows.samples
    assert 0 < rows.loss_gap <= 1e-4  # the first steps were those of two processes, so the bits differ


@pytest.mark.slow
def test_shards_over_processes_and_their_scores(tmp_path):
    """Parameters split over processes (fsdp 4, then tensor 2): same samples, losses and answers as in one process."""
    found = []
    for name, processes, mesh in (
        ("one", 1, ("fsdp=1",)),
        ("two", 2, ("fsdp=4",)),
        ("both", 2, ("fsdp=2", "tensor=2")),
    ):
        path = tmp_path / name
        more = ["--mode", "train", "--config.train.steps=8", "--config.train.batch_size=8"]
        process = launch(path, processes, 4 // processes, *more, *(f"--config.mesh.{m}" for m in mesh))
        assert process.wait(timeout=600) == 0, path.with_suffix(".log").read_text()[-3000:]
        entries = json.loads((path / "results.json").read_text())["entries"]
        found.append([(e["suite"], e["split"], e["control"], e["scores"]) for e in entries])
    for path in (tmp_path / "two", tmp_path / "both"):
        rows = compare_rows(tmp_path / "one", path)
        assert rows.samples and rows.loss_gap <= 1e-4
    assert found[0] and found[0] == found[1] == found[2]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM to one process", "Ctrl-C at the launcher"])
def test_a_stop_is_agreed_on(tmp_path, whole, how):
    """Both processes stop at the same step, and the run continues with the same samples."""
    path = tmp_path / "stopped"
    process = launch(path, 2, 2)
    until = time.monotonic() + 300
    while logged(path) < 5:
        assert process.poll() is None and time.monotonic() < until, path.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.01)
    if how == "SIGTERM to one process":
        os.kill(beats(path)[1]["pid"], signal.SIGTERM)
    else:  # a terminal sends it to the whole group
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 75
    assert path.with_suffix(".log").read_text().count("stopped at step") == 2
    finish(path, 2, 2)
    assert compare_rows(whole, path).samples


LATE = """
import sys, time
from simvlm_jax.parallel.hosts import join_cluster, main_process_first, warm_up_collectives
join_cluster(60)
import jax, numpy as np
from simvlm_jax.parallel.mesh import by_row, make_mesh, replicated
mesh = make_mesh(None, 2, 2, 1)
warm_up_collectives(mesh)
with main_process_first("something"):
    time.sleep(35 * (jax.process_index() == 0))
x = jax.make_array_from_callback((4,), by_row(mesh), lambda index: np.arange(4.0, dtype=np.float32)[index])
time.sleep(35 * (jax.process_index() == 1))
print("sum", float(jax.jit(lambda x: (2 * x).sum(), out_shardings=replicated(mesh))(x)))
"""


@pytest.mark.slow
def test_a_process_may_prepare_or_compile_for_longer_than_gloo_waits():
    """Gloo's first meeting of devices fails after 30 seconds; here one process is late by more, once each."""
    reserved = socket.socket()  # as launch/local.py does
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{reserved.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LATE],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_COORDINATOR_ADDRESS": address}
            | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0 and "sum 12.0" in said, said
    finally:
        for process in processes:
            process.kill()
        reserved.close()


def test_what_would_be_started(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "launch" / "local.py"),
        "--processes",
        "2",
        "--gpus-each",
        "4",
        "--dry-run",
        "--",
        "--x",
    ]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 2 and all("JAX_NUM_PROCESSES=2" in line and line.endswith("--x") for line in lines)
    assert "JAX_PROCESS_ID=1" in lines[1] and "CUDA_VISIBLE_DEVICES=4,5,6,7" in lines[1]

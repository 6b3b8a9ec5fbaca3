"""Launchers: shell-checked, dry runs that print what they would do, and processes that find their cluster."""

import os
import shlex
import shutil
import subprocess

import pytest
import yaml

from simvlm_jax.parallel.hosts import cluster_arguments
from tests.conftest import ROOT

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda p: p.name)
def test_shell_check(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    found = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def run(*words, **env):
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env})


def test_slurm_prints_what_it_would_run():
    dry = run("launch/slurm.sh", "--config", "a b", DRY_RUN="1", VENV="/v")
    assert dry.stdout.splitlines() == [
        "source /v/bin/activate",
        r"srun --kill-on-bad-exit=0 --label python -m simvlm_jax.main --config a\ b ",
    ]
    outside = run("launch/slurm.sh", "--config", "a")
    assert outside.returncode == 1 and "not inside a SLURM job" in outside.stderr


def test_tpu_vm_prints_what_it_would_run():
    where = ("launch/tpu_vm.sh", "--name", "n", "--zone", "z", "--dry-run")
    whole = run(
        *where, "--type", "v5litepod-16", "--version", "x", "--spot", "--", "--config", "configs/prefixlm.py:base"
    )
    lines = whole.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["gcloud", "git", "gcloud", "gcloud", "gcloud"]
    assert "queued-resources create n" in lines[0] and lines[0].endswith("--spot ")
    sent = shlex.split(lines[1])[-2]
    assert sent.endswith("simvlm_jax.tar.gz") and f"scp {sent} n: " in lines[2] and "--worker=all" in lines[2]
    assert "--worker=all" in lines[4] and "simvlm_jax.main" in lines[4] and "prefixlm.py:base" in lines[4]
    installed = shlex.split(lines[3])[-1]
    assert subprocess.run(["bash", "-n", "-c", installed]).returncode == 0 and "-e '.[tpu]'" in installed
    stop = shlex.split(run(*where, "--only", "stop").stdout)
    assert stop[-1] == "pkill -TERM -f '[s]imvlm_jax.main' || true"
    only = run(*where, "--only", "delete").stdout.splitlines()
    assert len(only) == 1 and "delete n" in only[0]
    for words, said in (
        ((*where, "--only", "start"), "--only start is not"),
        (("launch/tpu_vm.sh", "--name", "n"), "--name and --zone are needed"),
        ((*where, "--only", "run"), "nothing to run"),
        ((*where, "--only", "create"), "--type and --version are needed"),
        (("launch/tpu_vm.sh", "--tpu"), "unknown option --tpu"),
    ):
        failed = run(*words)
        assert failed.returncode == 2 and said in failed.stderr, (words, failed)


def test_the_job_set_is_whole():
    parts = list(yaml.safe_load_all((ROOT / "launch" / "k8s.yaml").read_text()))
    assert [p["kind"] for p in parts] == ["ServiceAccount", "Role", "RoleBinding", "JobSet"]
    job = parts[3]["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    chips = 1
    for n in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(n)
    assert chips == job["parallelism"] * pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert pod["containers"][0]["command"] == ["python", "-m", "simvlm_jax.main"]
    assert pod["serviceAccountName"] == parts[0]["metadata"]["name"]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, {}),
        ({"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "3"}, {}),
        ({"KUBERNETES_SERVICE_HOST": "h"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 0},
        ),
    ],
)
def test_the_cluster_is_detected(env, expected, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "KUBERNETES_", "TPU_", "JAX_COORD", "JAX_NUM", "JAX_PROCESS_ID", "JOB_")):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cluster_arguments() == expected

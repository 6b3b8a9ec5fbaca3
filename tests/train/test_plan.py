"""Plans: what they add up to, what is proposed where nothing fits, and TPUs described by their own library."""

import json

import jax
import pytest

from simvlm_jax.cli.plan import main as plan_command
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.parallel.devices import known_device
from simvlm_jax.parallel.targets import TPUS, parse_target
from simvlm_jax.train.advise import candidates, flags, try_changes
from simvlm_jax.train.optimizer import Optimizer
from simvlm_jax.train.plan import Plan, _out_of_memory, draft
from tests.conftest import ROOT
from tests.parallel.test_sharding import Wide


def rows(n=64, width=512):
    return {"pairs": {"x": jax.ShapeDtypeStruct((n, width), "float32")}}


def test_a_plan_adds_up():
    mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    plan = draft(Wide(), Optimizer(), rows(), parse_target("cpux8"), mesh, steps=9).plan()
    matrix = 512 * 512 * 4 / 8
    assert plan.fits and plan.memory["parameters"] == matrix
    assert plan.memory["optimizer"] == pytest.approx(2 * matrix, abs=64)
    assert plan.memory["batch"] == 64 * 512 * 4 / 8
    assert sum(plan.memory.values()) == pytest.approx(plan.bytes_per_device)
    assert plan.model_flops_per_device == 4.0 * 64 * 512**2 / 8  # no gradient goes to the input
    assert plan.flops_per_device == pytest.approx(plan.model_flops_per_device)
    kinds = {c["kind"] for c in plan.collectives or ()}
    assert "all-gather" in kinds and kinds & {"reduce-scatter", "all-reduce"}
    assert plan.step_time_estimate_s == max((plan.seconds or {}).values()) and plan.bound_by in (plan.seconds or {})


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="60 rows do not divide over 8 shards x 1 micro-batches"):
        draft(Wide(), Optimizer(), rows(60), parse_target("cpux8"), {"data": 8}, steps=9)


def test_work_that_tensor_does_not_divide_is_named():
    def undivided(width, **sizes):
        made = draft(Wide(width), Optimizer(), rows(64, width), parse_target("cpux8"), sizes, steps=9)
        return made.undivided()

    assert undivided(1028, data=1, tensor=8) == ["F of 1028"]
    assert undivided(1024, data=1, tensor=8) == undivided(1028, data=8) == []


def too_big(**fields):
    memory = {"parameters": 4.0e9, "optimizer": 8.0e9, "activations": 9.0e9, "temporaries": 1e9}
    given = dict(target="v5e:4x4", mesh={"data": 16, "fsdp": 1, "tensor": 1}, accumulate=1, remat="none", fits=False,
                 bytes_per_device=22e9, hbm_bytes=16e9, memory=memory, flops_per_device=1.0, model_flops_per_device=1.0,
                 bytes_accessed_per_device=None, collectives=None, seconds=None, step_time_estimate_s=None, bound_by=None,
                 compile_s=1.0, compiled_as="tpu", error="out")  # fmt: skip
    return Plan(**{**given, **fields})


def test_a_model_that_mixes_rows_is_not_accumulated_to_fit():
    changes = list(candidates(too_big(mixes_rows=True)))
    assert {"mesh.data": -1, "mesh.fsdp": 2} in changes and any("mesh.tensor" in c for c in changes)
    assert not any("train.accumulate" in c for c in changes)


def test_the_cheapest_change_comes_first_and_what_is_hopeless_is_not_compiled():
    plan, compiled = too_big(), []
    order = list(candidates(plan))
    assert order[0] == {"mesh.data": -1, "mesh.fsdp": 2}
    assert order.index({"model.compute.remat": "full"}) < order.index({"train.accumulate": 2})
    assert max(c.get("mesh.fsdp", 1) for c in order) == 8  # then the state is below a tenth of the memory

    def kept(changes):  # the state alone
        return 25e9 / changes.get("mesh.fsdp", 1)

    def attempt(changes):
        compiled.append(changes)
        share = {"none": 1.0, "dots": 0.5, "full": 0.1}[changes.get("model.compute.remat", "none")]
        needed = kept(changes) + 14e9 * share / changes.get("train.accumulate", 1)
        return too_big(fits=needed < 16e9, step_time_estimate_s=1.0)

    tried = try_changes(plan, attempt, kept, False, lambda text: None)
    assert [t.changes for t in tried if t.plan is None] == [{"model.compute.remat": "dots"}]  # with a state of 25 GB
    assert tried[-1].plan is not None and tried[-1].plan.fits and tried[-1].changes == compiled[-1]
    assert flags(compiled[-1]) == "--config.mesh.data=-1 --config.mesh.fsdp=4 --config.model.compute.remat=dots"
    assert [flags(c) for c in compiled[:3]] == [f"--config.mesh.data=-1 --config.mesh.fsdp={n}" for n in (2, 4, 8)]

    def heavier(changes):
        return 8 * kept(changes)

    compiled.clear()
    try_changes(plan, attempt, heavier, False, lambda text: None)
    assert not compiled  # nothing that the state alone rules out


@pytest.mark.parametrize(
    ("message", "held", "expected"),
    [
        ("required for HLO temporaries (20.5G) exceeds available HBM (15.75G).", 1e9, (20.5 * 2**30, 15.75 * 2**30)),
        (
            "Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm. Exceeded",
            2**30,
            (19 * 2**30, 15.75 * 2**30),
        ),
        ("no numbers", 1, (0.0, 0.0)),
    ],
)
def test_the_compilers_own_words_are_read(message, held, expected):
    assert _out_of_memory(message, held) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["v5e", "v7:4x4", "h200", "x8", "v5e:4", "cpux0", "tpux8"])
def test_targets_that_do_not_exist_name_those_that_do(name):
    with pytest.raises(ValueError, match=r"is not one of: a TPU and its topology \(v3, v4"):
        parse_target(name)


def test_targets_and_their_figures():
    assert parse_target("v5p:4x4x4").platform == "tpu" and parse_target("h200x8").platform == "gpu"
    assert known_device("TPU v5 lite").hbm == 16 * 2**30 and known_device("TPU v5").hbm == 95 * 2**30
    assert known_device("cpu") is None
    kinds = {
        "v3": "TPU v3",
        "v4": "TPU v4",
        "v5e": "TPU v5 lite",
        "v5p": "TPU v5p",
        "v6e": "TPU v6 lite",
        "tpu7x": "TPU7x",
    }
    assert set(kinds) == set(TPUS) and all(known_device(k) for k in kinds.values())
    assert "device_count=8" in parse_target("cpux8").environment()["XLA_FLAGS"]


def test_the_command_plans_a_config(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    words = ["--config", f"{ROOT / 'configs' / 'prefixlm.py'}:smoke", "--target", "cpux8", "--config.mesh.fsdp=4"]
    assert plan_command([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {"fits", "bytes_per_device", "hbm_bytes", "flops_per_device", "collectives", "step_time_estimate_s"} <= set(
        record
    )
    assert record["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1} and record["fits"] and record["suggestion"] is None
    assert {"bound_by", "compile_s"} <= set(record)
    assert plan_command(words) == 0
    said = capsys.readouterr().out
    assert "FITS" in said and "all-gather" in said and "bound by" in said


def test_a_compiler_that_crashes_is_an_error(capsys, monkeypatch):
    import importlib.metadata
    import signal
    import subprocess

    from simvlm_jax.cli import main

    gone = subprocess.CompletedProcess([], -signal.SIGSEGV)
    monkeypatch.setattr(subprocess, "run", lambda *_, **how: gone if how["env"]["SIMVLM_PLAN_CHILD"] else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1")
    assert main(["plan", "--config", "configs/prefixlm.py", "--target", "tpu7x:4x4x8"]) == 1
    said = capsys.readouterr().err
    assert "error: the compiler for tpu7x:4x4x8 was ended by SIGSEGV; that is a fault of libtpu 0.1" in said


@pytest.mark.slow
def test_a_tpu_program_is_compiled_without_a_tpu(tmp_path):
    """Through libtpu, in a process of its own: a fitting plan, and one that does not fit with what would."""
    import subprocess
    import sys

    pytest.importorskip("libtpu")
    call = "import sys; from simvlm_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [
        "plan",
        "--config",
        str(ROOT / "configs" / "prefixlm.py") + ":base",
        "--target",
        "v5e:2x4",
        "--json",
        "--effort=low",
    ]
    small = ["--config.train.batch_size=64", "--config.data.parts.documents.rows=8", "--config.model.stem_stages=0"]
    done = subprocess.run([sys.executable, "-c", call, *words, *small], cwd=ROOT, capture_output=True, text=True)
    record = json.loads(done.stdout)
    assert done.returncode == 0 and record["fits"] and record["compiled_as"] == "tpu", done.stderr
    assert record["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1} and record["hbm_bytes"] == 16 * 2**30
    big = [
        "--config.train.batch_size=768",
        "--config.data.parts.documents.rows=96",
        "--config.model.compute.remat=none",
    ]
    done = subprocess.run([sys.executable, "-c", call, *words, *small, *big], cwd=ROOT, capture_output=True, text=True)
    record = json.loads(done.stdout)
    assert done.returncode == 1 and not record["fits"] and "--config." in record["suggestion"], done.stderr


def test_vocabulary_of_a_stand_in():
    from simvlm_jax.core.build import load_config
    from simvlm_jax.data.shapes import abstract_batch, stand_in_labels, stand_in_tokenizer

    config = load_config(f"{ROOT / 'configs' / 'prefixlm.py'}:huge")
    tokenizer = stand_in_tokenizer(config.text, config.data)
    assert tokenizer.vocabulary == Vocabulary(32_000, 256)
    batch = abstract_batch(
        config.data, tokenizer, stand_in_labels(config.data.labels.size), batch_size=config.train.batch_size
    )
    assert batch["pairs"]["image"].shape == (4096, 1, 224, 224, 3) and batch["documents"]["text"].shape == (512, 256)
    slots = dict(transfer=64)  # a premise read from slots before the text
    for task in ("vqa", "pairs", "transfer", "captions", "entail"):
        config = load_config(f"{ROOT / 'configs' / 'finetune.py'}:{task}-base")
        config.text.length = 64  # without data to take it from
        found = abstract_batch(
            config.data,
            stand_in_tokenizer(config.text, config.data),
            stand_in_labels(config.data.labels.size),
            batch_size=config.train.batch_size,
        )["pairs"]
        assert found["text"].shape == (config.train.batch_size, 64 + slots.get(task, 0))
        assert ("label" in found) == bool(config.data.labels.size)

"""A run directory from somebody else runs nothing: what its config names is looked up in source text before anything is imported."""

import builtins
import copy
import functools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from simvlm_jax import api
from simvlm_jax.cli import main
from simvlm_jax.core.build import load_config
from simvlm_jax.core.trust import TRUSTED, NotAllowed, buildable, check_targets
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.load import load_run
from tests.conftest import ROOT

TARGETS = ("os:system", "builtins:eval", "subprocess:run", "simvlm_jax.main:os", "simvlm_jax.core.build:importlib")
DEPTHS = {
    "the model": ("model",),
    "a field of the model": ("model", "objective"),
    "what the model is computed with": ("model", "compute"),
    "the optimizer": ("optimizer",),
    "a transform": ("data", "parts", "pairs", "transforms", 0),
    "a field of a transform": ("data", "parts", "pairs", "transforms", 0, "size"),
    "a suite": ("eval", "suites", "captions"),
    "how a suite decodes": ("eval", "suites", "captions", "how"),
    "how it samples": ("eval", "suites", "captions", "how", "sampler"),
    "a section": ("text",),
    "a list in a list": ("data", "parts", "pairs", "transforms", -1, "keys", 0),
    "a field nobody reads": ("data", "nobody"),
}


@pytest.fixture
def called(monkeypatch):
    """What was run of that which the configs name."""
    found = []
    real = builtins.eval

    def watched(*a, name, **k):
        if name == "eval" and str(a[0]).startswith("lambda _cls"):  # how Python itself makes a NamedTuple
            return real(*a, **k)
        return found.append((name, a, k))

    for module, name in ((os, "system"), (builtins, "eval"), (subprocess, "run")):
        monkeypatch.setattr(module, name, functools.partial(watched, name=name))
    monkeypatch.delenv(TRUSTED, raising=False)
    return found


@pytest.fixture
def evil(finished_run, tmp_path):
    """`evil(target, where)`: a copy of a run whose config names a target somewhere; its weights are those of the run."""

    def make(target, where):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        for item in finished_run.iterdir():
            if item.name != "running.lock":  # which may be no link
                (run / item.name).symlink_to(item)
        config = json.loads((finished_run / "config.json").read_text())
        place = config
        for part in where[:-1]:
            place = place[part]
        place[where[-1]] = {
            "target": target,
            "command": f"touch {tmp_path / 'ran'}",
            "cmd": "echo prefix_lm",
            "args": ["true"],
        }
        (run / "config.json").unlink()
        (run / "config.json").write_text(json.dumps(config))
        return run

    return make


def commands(run, tmp_path):
    """Everything that reads a run directory, by command and in Python."""
    picture, index = str(ROOT / "docs" / "scenes.png"), tmp_path / "x.npz"
    about = np.asarray(json.dumps({"of": "images", "weights": "x"}))
    np.savez(index, embeddings=np.ones((1, 4), np.float32), keys=np.asarray(["a"]), about=about)
    (tmp_path / "texts.txt").write_text("a\n")
    return {
        "caption": lambda: main(["caption", str(run), picture]),
        "classify": lambda: main(["classify", str(run), picture, "--labels", "a,b"]),
        "embed": lambda: main(["embed", str(run), picture, "--out", str(tmp_path / "y.npz")]),
        "embed texts": lambda: main(
            ["embed", str(run), "--texts", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "z.npz")]
        ),
        "search": lambda: main(["search", str(run), "a", "--index", str(index)]),
        "eval": lambda: main(["eval", str(run), "--suite", "captions"]),
        "data inspect": lambda: main(["data", "inspect", str(run)]),
        "load": lambda: api.load(run),
        "load_run": lambda: load_run(run),
    }


@pytest.mark.parametrize("where", DEPTHS.values(), ids=[*DEPTHS])
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_that_a_config_names_is_run(evil, called, target, where, capsys):
    with pytest.raises(NotAllowed, match=r"names|not the name of a class"):
        RunDir(evil(target, where)).config()
    assert not called


@pytest.mark.parametrize(
    "where", [DEPTHS["the model"], DEPTHS["a field of the model"], DEPTHS["how it samples"]], ids=str
)
def test_every_reader_of_a_run_refuses_it(evil, called, tmp_path, where, capsys):
    run = evil("os:system", where)
    for name, command in commands(run, tmp_path).items():
        before = set(sys.modules)
        try:
            code = command()
        except NotAllowed:
            code = 1
        assert code == 1, name
        assert not called and not (tmp_path / "ran").exists(), name
        assert not {m for m in set(sys.modules) - before if m.startswith("simvlm_jax.models")}, name
    error = capsys.readouterr().err
    assert "--trust os" in error and 'entry point of the group "simvlm_jax"' in error


def test_what_only_compares_a_run_runs_nothing(evil, called, tmp_path, tiny_config, capsys):
    from simvlm_jax.experiment import run as train

    run = evil("os:system", DEPTHS["the model"])
    assert main(["eval-diff", str(run), str(run)]) == 0
    with pytest.raises(ValueError, match="holds a run with another config"):
        train(tiny_config(), str(run))
    with pytest.raises(ValueError, match="holds a run with another config"):
        train(tiny_config(), str(run), mode="eval")
    with pytest.raises(ValueError, match="do not fit"):  # weights alone are taken, and nothing is built
        train(tiny_config(**{"train.init_from": (str(run),), "model.decoder_only": True}), str(tmp_path / "new"))
    assert not called


def test_classes_are_for_the_fields_they_declare(finished_run):
    config = RunDir(finished_run).config()
    for where, target in (
        (("model",), "simvlm_jax.data.transforms:Pixels"),
        (("optimizer",), "simvlm_jax.models.simvlm:SimVLM"),
        (("eval", "suites", "captions"), "simvlm_jax.decode.decoding:Decoding"),
    ):
        wrong = copy.deepcopy(config)
        place = wrong
        for part in where[:-1]:
            place = place[part]
        place[where[-1]]["target"] = target
        with pytest.raises(NotAllowed, match=r"which is for .* and not for"):
            check_targets(wrong, "x")


@pytest.mark.parametrize(
    "target",
    [None, 3, ["os:system"], "", "os", "os:", ":system", "os:system:x", "../x:Y", "os.path:os;x", "ｏｓ:system"],
)
def test_targets_that_are_no_names(target):
    with pytest.raises(NotAllowed):
        check_targets({"model": {"target": target}}, "x")


def test_packages_that_a_person_trusts(tmp_path, monkeypatch, capsys):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "lab" / "models.py").write_text("import os\nclass Mine: pass\nfrom x import Other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(TRUSTED, "")
    config = {"model": {"target": "lab.models:Mine"}}
    with pytest.raises(NotAllowed, match="pass --trust lab, or install it"):
        check_targets(config, "x")
    assert main(["eval", "nowhere", "--suite", "x", "--trust", "lab"]) == 1
    check_targets(config, "x")  # and nothing has been imported
    for name in ("os", "Other", "Missing"):
        with pytest.raises(NotAllowed, match="no class that declares itself"):
            check_targets({"model": {"target": f"lab.models:{name}"}}, "x")
    assert "lab" not in sys.modules


def test_a_package_with_an_entry_point_is_admitted(tmp_path, monkeypatch):
    (tmp_path / "zoo.py").write_text("class Mine: pass\n")
    (tmp_path / "zoo-1.dist-info").mkdir()
    (tmp_path / "zoo-1.dist-info" / "METADATA").write_text("Name: zoo\nVersion: 1\n")
    (tmp_path / "zoo-1.dist-info" / "entry_points.txt").write_text("[simvlm_jax]\nmodels = zoo\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(TRUSTED, "")
    check_targets({"model": {"target": "zoo:Mine"}}, "x")


def test_a_config_that_is_named_is_its_users_code(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(v=''):\n    return ConfigDict({'target': 'os:system'})\n"
    )
    assert load_config(str(tmp_path / "mine.py")).target == "os:system"


def test_a_folder_of_a_config_that_was_named_can_be_trusted_without_an_init_file(tmp_path, monkeypatch):
    (tmp_path / "annex").mkdir()
    (tmp_path / "annex" / "mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(v=''):\n    return ConfigDict({'model': {'target': 'annex.nets:Mine'}})\n"
    )
    (tmp_path / "annex" / "nets.py").write_text("class Mine: pass\n")
    monkeypatch.setenv(TRUSTED, "")
    monkeypatch.delitem(sys.modules, "annex", raising=False)
    config = load_config(str(tmp_path / "annex" / "mine.py")).to_dict()
    with pytest.raises(NotAllowed, match="pass --trust annex"):
        check_targets(config, "x")
    monkeypatch.setenv(TRUSTED, "annex")
    check_targets(config, "x")
    assert "annex.nets" not in sys.modules


def test_a_declaration_keeps_a_class_what_it_is():
    @buildable("model")
    class Thing:
        def __init__(self, size: int = 3):
            self.size = size

    assert Thing().size == 3 and Thing.__name__ == "Thing"
    with pytest.raises(ValueError, match=r"Thing\.size is 'x': expected int"):
        Thing("x")


def test_modules_that_lie_in_the_current_folder_are_not_read(tmp_path):
    for name in ("scipy", "yaml", "evil_hook", "tqdm"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = ROOT / "configs" / "prefixlm.py"
    words = [sys.executable, "-m", "simvlm_jax.main", "--config", f"{config}:smoke", "--config.train.steps=0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 1 and "config.train.steps is 0" in done.stderr and not (tmp_path / "ran").exists()


def test_a_suite_that_is_named_like_a_field_is_a_suite(finished_run):
    config = RunDir(finished_run).config()
    config["eval"]["suites"] = {"how": config["eval"]["suites"]["captions"]}
    check_targets(config, "x")

"""Notebooks execute top to bottom in a kernel of their own, on CPU, and leave what they promise."""

import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import QUICK, ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))


FEWER = {f"scenes/{name}": f"scenes/{name}-80_8_64_16" for name in ("captions", "classes")}


def with_fewer_scenes(notebook):
    """The same cells, and their config, on 80 scenes to learn from and 64 to test on, not on thousands."""
    found = False
    for cell in notebook.cells:
        for whole, fewer in FEWER.items():
            cell.source = cell.source.replace(f'"{whole}"', f'"{fewer}"')
        if "config = load_config(" in cell.source:
            found = True
            cell.source += f"""
from simvlm_jax.run.directory import flat
config.update_from_flattened_dict({{k: {FEWER}[v] for k, v in flat(config.to_dict()).items() if v in {[*FEWER]}}})"""
    assert found, "no cell loads a config"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SIMVLM_STEPS", "4")
    monkeypatch.setenv("SIMVLM_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("XLA_FLAGS", QUICK)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    nbformat.validate(notebook)
    assert not any(c.get("outputs") for c in notebook.cells), f"{name} is committed with outputs"
    with_fewer_scenes(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    assert "cpu" in "".join(
        o.get("text", "") for o in notebook.cells[1].outputs
    )  # the path taken is that of what is there
    assert json.loads((tmp_path / "run" / "results.json").read_text())["trained"] == 4
    last = [c for c in notebook.cells if c.cell_type == "code"][-1]
    assert any("image/png" in o.get("data", {}) for o in last.outputs)
    assert "says:" in "".join(o.get("text", "") for o in last.outputs)
    assert os.environ["SIMVLM_STEPS"] == "4"


@pytest.mark.parametrize(
    ("nodes", "driver", "installed", "expected"),
    [
        (["accel0"], False, False, ".[tpu]"),
        (["vfio/0", "vfio/vfio"], False, False, ".[tpu]"),
        (["vfio/vfio"], True, False, ".[cuda]"),
        ([], False, False, "."),
        (["accel0"], False, True, None),
    ],
)
def test_the_extra_is_that_of_the_hardware(nodes, driver, installed, expected, tmp_path, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "simvlm_jax" and not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    ran = []
    for node in nodes:
        (tmp_path / node).parent.mkdir(exist_ok=True)
        (tmp_path / node).touch()
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/smi" if driver else None)
    monkeypatch.setattr(subprocess, "run", lambda words, check: ran.append(words))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT / "notebooks")
    notebook = nbformat.read(ROOT / "notebooks" / "train_simvlm_tpu.ipynb", as_version=4)
    source = notebook.cells[1].source
    assert 'Path("/dev")' in source
    exec(source.replace('Path("/dev")', f"Path({str(tmp_path)!r})"), {})
    assert [words[-1] for words in ran] == ([expected] if expected else [])


def setup_cell(name):
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    return notebook.cells[1].source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_from_a_badge_the_first_cell_clones(name, tmp_path, monkeypatch):
    """Outside of a clone: the address that is set, else the one that Colab's server tells, else a plain error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1")
    ran = []

    def run(words, check):
        ran.append(words)
        (tmp_path / "simvlm_jax" / "configs").mkdir(parents=True)
        (tmp_path / "simvlm_jax" / "configs" / "prefixlm.py").touch()

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1:1")  # nobody is there
    source = setup_cell(name)
    with pytest.raises(FileNotFoundError, match="set REPOSITORY above"):
        exec(source, {})
    exec(source.replace('REPOSITORY = ""', 'REPOSITORY = "https://example.org/x.git"'), {})
    assert ran[0][:2] == ["git", "clone"] and ran[0][-2:] == ["https://example.org/x.git", str(tmp_path / "simvlm_jax")]
    assert os.getcwd() == str(tmp_path / "simvlm_jax")

    opened = [{"path": "fileId=https%3A%2F%2Fgithub.com%2Fsomebody%2Fa_fork%2Fblob%2Fmain%2Fnotebooks%2Fx.ipynb"}]
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.StringIO(json.dumps(opened)))
    names = {}
    exec(source, names)
    assert names["opened_from"]() == "https://github.com/somebody/a_fork"

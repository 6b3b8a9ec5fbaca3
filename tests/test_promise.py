"""The promise: a folder outside the package trains, resumes and is scored by `--config`, with no edit to the package."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
from PIL import Image

from simvlm_jax.parallel.mesh import make_mesh, placement
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import RunDir
from tests.conftest import ROOT

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}


def write_data(folder, split, rows):
    """Pictures of one colour each, and a table of them with captions."""
    rng, lines = np.random.default_rng(len(split)), []
    for i in range(rows):
        name, colour = list(COLOURS.items())[i % len(COLOURS)]
        pixels = np.clip(np.asarray(colour) + rng.integers(-20, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{split}-{i}.png")
        lines.append(
            json.dumps({"image": f"{split}-{i}.png", "captions": [f"a {name} wall", f"all {name} number {i}"]})
        )
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def run(home, *words):
    """A process of the public command in another folder, as anybody starts it; what it says on stderr."""
    command = [
        sys.executable,
        "-m",
        "simvlm_jax.main",
        "--config",
        "outside/configs/drift.py",
        "--workdir",
        "run",
        *words,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_folder_outside_trains_resumes_and_is_scored(tmp_path):
    outside = tmp_path / "outside"
    shutil.copytree(ROOT / "tests" / "elsewhere", outside, ignore=shutil.ignore_patterns("__pycache__"))
    (outside / "data").mkdir()
    write_data(outside / "data", "train", 24)
    write_data(outside / "data", "test", 8)
    run(tmp_path, "--config.train.steps=2", "--mode=fit")
    assert "continuing run from step 2" in run(tmp_path)
    directory = RunDir(tmp_path / "run")
    rows = [r for r in directory.rows() if r["split"] == "train"]
    assert [r["step"] for r in rows] == [1, 2, 3, 4] and rows[-1]["images_per_s"] > 0
    entries = directory.results()["entries"]
    assert {e["suite"] for e in entries} == {"retrieval"}
    assert all(np.isfinite(list(e["scores"].values())).all() and not e.get("error") for e in entries)
    place = placement(make_mesh(jax.devices()[:1]), directory.letters())
    params, extra = Checkpoints(directory.checkpoints, read_only=True).restore_weights(4, place)
    assert extra["pushed"] == 4 * 8  # state beside the parameters went on over the stop
    assert np.abs(extra["slow"]["image"]["kernel"] - params["image"]["kernel"]).max() > 0

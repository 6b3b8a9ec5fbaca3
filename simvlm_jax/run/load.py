"""A run, ready for use: its config, tokenizer, model and weights, from the run directory alone."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from simvlm_jax.core.build import build
from simvlm_jax.core.types import Model
from simvlm_jax.parallel.mesh import make_mesh, placement
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import RunDir
from simvlm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model and what belongs to it."""

    config: ConfigDict
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    model: Model
    params: Any
    extra: Any
    step: int
    mesh: jax.sharding.Mesh


def recorded_config(run: RunDir) -> ConfigDict:
    """A run's config; fields that came into being after the run was made have what was then the only way."""
    config = run.config()
    config["data"] = {"whole": False, "labels": {"size": 0, "at_least": 1}, **config["data"]}
    config["eval"] = {"suites": {}, **config["eval"]}
    config["mesh"] = {"data": -1, "fsdp": 1, "tensor": 1, **config.get("mesh", {})}
    return ConfigDict(config)


def build_model(config: ConfigDict, tokenizer: Tokenizer, labels: tuple[str, ...] = ()) -> Model:
    """The model of a config, for a tokenizer's vocabulary, the config's image size and the run's answers."""
    known = dict(vocabulary=tokenizer.vocabulary, image_size=config.data.image_size, classes=len(labels))
    return build({k: v for k, v in config.model.items() if k not in known}, **known)


def load_run(path: str | Path, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Loaded:
    """The best checkpoint of a run (by its metric, else the newest), or that of a step, on a mesh (by default all devices).

    Raises:
      FileNotFoundError: no run directory, or no checkpoint in it.
    """
    run = RunDir(path)
    config = recorded_config(run)
    tokenizer = Tokenizer.load(run.tokenizer)
    if not run.checkpoints.is_dir():
        raise FileNotFoundError(f"{run.path} has no checkpoint yet")
    checkpoints = Checkpoints(run.checkpoints, best=config.checkpoint.best, read_only=True)
    chosen = checkpoints.best_step() if step is None else step
    if chosen is None:
        raise FileNotFoundError(f"{run.path} has no checkpoint yet")
    mesh = mesh or make_mesh()
    params, extra = checkpoints.restore_weights(chosen, placement(mesh, run.letters()))
    checkpoints.close()
    labels = run.labels()
    return Loaded(config, tokenizer, labels, build_model(config, tokenizer, labels), params, extra, chosen, mesh)

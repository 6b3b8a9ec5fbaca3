"""A run, ready for use: its config, tokenizer, model and weights, from the run directory alone."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from simvlm_jax.core.build import Fact, build
from simvlm_jax.core.parts import PAIRS
from simvlm_jax.core.trees import path_name
from simvlm_jax.core.types import Model, sides_of
from simvlm_jax.parallel.mesh import make_mesh, placement
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import RunDir, flat, plain
from simvlm_jax.text.tokenizer import NoTokenizer, Tokenizer


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
    config["data"] = {
        "whole": False,
        "fit": None,
        "quarantine": 0.05,
        "labels": {"size": 0, "at_least": 1},
        **config["data"],
    }
    config["eval"] = {"suites": {}, "batch_size": 100, "examples": 0, **config["eval"]}
    config["checkpoint"] = {"best": None, **config["checkpoint"]}
    config["seed"] = config.get("seed", 0)
    evaluated = {"path": None, "split": "validation", "splits": {}}
    config["data"]["eval"] = {**evaluated, **(config["data"].get("eval") or {})}
    config["mesh"] = {"data": -1, "fsdp": 1, "tensor": 1, **config.get("mesh", {})}
    return ConfigDict(config)


def belongs_to(
    model: ConfigDict, image_size: Any, whole: bool, tokenizer: Tokenizer, labels: tuple[str, ...]
) -> dict[str, Any]:
    """What weights belong to, as checkpoints record it: hashes of tokenizer and answers, and every field of the model.

    model: config.model. image_size, whole: how pictures are made ready (config.data).
    """
    listed = hashlib.sha256("\n".join(labels).encode("utf-8", "surrogatepass")).hexdigest()
    fields = {f"model.{k}": v for k, v in flat(plain(model)).items()}
    side = image_size if isinstance(image_size, int) else list(image_size)
    pixels = {"data.image_size": side, "data.whole": whole}
    text = {} if isinstance(tokenizer, NoTokenizer) else {"text.length": tokenizer.vocabulary.length}
    return {"tokenizer": tokenizer.sha256, **text, "labels": listed, **pixels, **fields}


def load_tokenizer(run: RunDir, reads_text: bool) -> Tokenizer:
    """Loads a run's tokenizer, checked against its contract; of a run that reads no text, what says so when it is used."""
    return Tokenizer.load(run.tokenizer) if reads_text else NoTokenizer()


def tokenizer_hash(run: RunDir) -> str:
    """The sha256 of a run's tokenizer, checked against its contract."""
    return Tokenizer.load(run.tokenizer).sha256


def build_model(model: Any, image_size: Any, tokenizer: Tokenizer, labels: tuple[str, ...] = ()) -> Model:
    """Builds config.model for an image size, a tokenizer's vocabulary (if there is one) and the run's answers."""
    image_size = image_size if isinstance(image_size, int) else tuple(image_size)
    known = {
        "image_size": Fact(image_size, "config.data.image_size"),
        "classes": Fact(len(labels), "the number of the run's answers (config.data.labels)"),
    }
    if not isinstance(tokenizer, NoTokenizer):
        known["vocabulary"] = Fact(tokenizer.vocabulary, "that of the run's tokenizer")
    return build(model, "config.model", **known)


def check_shapes(params: Any, extra: Any, model: Model, image: tuple[int, ...], length: int, where: str) -> None:
    """Compares restored parameters and extra with those of a model whose rows have images [M,Y,X,C] and `length` pieces.

    Raises:
      ValueError: one has another shape, or is not there.
    """
    text = np.zeros((1, length), np.int32)
    one = np.zeros(1, np.int32)
    pixels = np.zeros((1, *image), np.uint8)
    rows = {"image": pixels, "text": text, "text_mask": text == 0, "prefix_length": one, "id": one, "label": one}
    try:
        made = nn.unbox(jax.eval_shape(lambda key: model.init(key, {PAIRS: rows}), jax.random.key(0)))
        wanted = _shapes(made[0]) | _shapes({"extra": made[1]})
    except Exception:  # a class of another package may take other batches
        return
    found = _shapes(params) | _shapes({"extra": extra})
    wrong = [
        f"{name}: {list(found[name]) if name in found else 'nothing'} in the checkpoint, {list(shape)} in the model"
        for name, shape in wanted.items()
        if found.get(name) != shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} others)" if len(wrong) > 3 else ""
        raise ValueError(
            f"the weights of {where} are not those of the model that config.json names: {'; '.join(wrong[:3])}{more}; put "
            "back the config.json and the tokenizer of the run"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def load_run(path: str | Path, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Loaded:
    """The best checkpoint of a run (by its metric, else the newest), or that of a step, on a mesh (by default all devices).

    Raises:
      FileNotFoundError: no run directory, or no checkpoint in it. ValueError: weights of another model than the config's.
    """
    run = RunDir(path)
    config = recorded_config(run)
    tokenizer = load_tokenizer(run, config.get("text", {}) is not None)
    if not run.checkpoints.is_dir():
        raise FileNotFoundError(f"{run.path} has no checkpoint yet")
    labels = run.labels()
    spec, side = cast(ConfigDict, config.model), config.data.image_size
    about = belongs_to(spec, side, bool(config.data.whole), tokenizer, labels)
    checkpoints = Checkpoints(run.checkpoints, best=config.checkpoint.best, read_only=True, about=about)
    chosen = checkpoints.best_step() if step is None else step
    if chosen is None:
        raise FileNotFoundError(f"{run.path} has no checkpoint yet")
    mesh = mesh or make_mesh()
    model = build_model(spec, side, tokenizer, labels)
    params, extra = checkpoints.restore_weights(chosen, placement(mesh, run.letters()))
    checkpoints.close()
    length = 1 if isinstance(tokenizer, NoTokenizer) else tokenizer.vocabulary.length
    images: Any = spec.get("images", 1)
    check_shapes(params, extra, model, (images, *sides_of(side), 3), length, str(run.checkpoints / str(chosen)))
    return Loaded(config, tokenizer, labels, model, params, extra, chosen, mesh)

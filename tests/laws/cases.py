"""The models that laws are held against, found through the configs: a new config brings its own, and nobody lists it.

Of a config this is its smallest built-in variant (`smoke`, or else the first), and every other kind of model that its variants
build at the same size. Models and batches are shrunken further: 50 pieces, texts of 12.
Every text has a row of its own; test_packed.py has the others.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from simvlm_jax.core.build import load_config, variants_of
from simvlm_jax.core.types import Batch, Model, Rows, Vocabulary
from simvlm_jax.nn.sizes import Compute
from simvlm_jax.run.directory import flat
from simvlm_jax.run.load import build_model
from tests.conftest import CONFIGS, ROOT, random_rows

V = Vocabulary(size=50, length=12)
ANSWERS = ("yes", "no", "red")
EXACT = Compute("float64", scan=False)


@dataclasses.dataclass(frozen=True)
class _Tokenizer:
    vocabulary: Vocabulary


@functools.cache
def config_of(variant: str) -> Any:
    return load_config(str(ROOT / "configs" / variant))


def smallest(file: Any) -> str:
    """The variant of a config that a machine is tried with."""
    variants = variants_of(str(file))
    chosen = "smoke" if "smoke" in variants else variants[0]
    return f"{file.name}:{chosen}" if chosen else file.name


def answers_of(variant: str) -> tuple[str, ...]:
    return ANSWERS if config_of(variant).data.labels.size else ()


def trainable_of(variant: str) -> tuple[tuple[str, bool], ...]:
    return tuple(tuple(rule) for rule in config_of(variant).train.trainable)


def parts_read(variant: str) -> dict[str, Any]:
    """The parts of a config's batches that have rows."""
    return {name: part for name, part in config_of(variant).data.parts.items() if part.rows != 0}


def kind(variant: str) -> tuple:
    """What makes a model another one: its fields but for rates and weights, the parts it reads, its answers, what is frozen."""
    model = {k: v for k, v in flat(config_of(variant).model.to_dict()).items() if not isinstance(v, float)}
    fields = tuple(sorted((k, str(v)) for k, v in model.items()))
    return fields, tuple(parts_read(variant)), bool(answers_of(variant)), trainable_of(variant)


def _found() -> tuple[list[str], list[str]]:
    """(the smallest variant of each config, these and the first variant of each other kind of their sizes)."""
    first = {file: smallest(file) for file in CONFIGS}
    kinds = {}
    for variant in reversed(first.values()):
        kinds[kind(variant)] = variant
    kinds = dict(reversed(kinds.items()))
    for file, small in first.items():
        size = config_of(small).model.get("size")
        for name in variants_of(str(file)):
            variant = f"{file.name}:{name}" if name else file.name
            if config_of(variant).model.get("size") == size:
                kinds.setdefault(kind(variant), variant)
    return list(first.values()), list(kinds.values())


SMALLEST, KINDS = _found()


@functools.cache
def model_of(variant: str, compute: Compute = EXACT, enlarge: int = 1, length: int = V.length) -> Model:
    """The model of a variant, its texts `length` pieces and its images `enlarge` times as wide as in its config's smallest."""
    config = load_config(str(ROOT / "configs" / variant))
    config.data.image_size = enlarge * side_of(variant)
    tokenizer: Any = _Tokenizer(dataclasses.replace(V, length=length))
    model: Any = build_model(config.model, config.data.image_size, tokenizer, answers_of(variant))
    return dataclasses.replace(model, compute=compute) if hasattr(model, "compute") else model


def side_of(variant: str) -> int:
    """Pixels a side."""
    return config_of(smallest(ROOT / "configs" / variant.partition(":")[0])).data.image_size


@functools.cache
def batch_of(variant: str, rows: int = 8) -> Batch:
    """Random rows with the keys that the config's transforms keep; parts with a number of rows of their own have half as many."""
    return {
        name: _part(variant, part.transforms[-1]["keys"], rows if part.rows is None else rows // 2, seed)
        for seed, (name, part) in enumerate(parts_read(variant).items())
    }


def _part(variant: str, keys: tuple[str, ...], rows: int, seed: int) -> Rows:
    images = config_of(variant).model.get("images", 1) if "image" in keys else 0
    made = random_rows(rows, V.length, side_of(variant), seed, images)
    made |= {
        "id": np.arange(rows),
        "label": np.arange(rows, dtype=np.int32) % len(ANSWERS),
    }
    return {k: made[k] for k in ("id", "weight", *keys)}

"""Parameters of every config and variant as text in tests/golden/, so that a change of paths, shapes or letters shows in a diff.

A file a config; a variant is written as what it has more (+) and less (-) than an earlier one. New configs are found, and
REGOLD=1 python -m pytest -n 0 tests/test_golden.py writes their files.
"""

import functools
import os
from typing import Any

import jax
import numpy as np
import pytest

from simvlm_jax.core.build import load_config
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.run.load import build_model
from tests.conftest import CONFIGS, ROOT, VARIANTS

GOLDEN = ROOT / "tests" / "golden"


class _Tokenizer:
    vocabulary = Vocabulary(1000, 16)


def parameters(variant: str) -> list[str]:
    """A line for each parameter: path, shape, letters."""
    config = load_config(str(ROOT / "configs" / variant))
    labels = ("yes", "no", "red") if config.data.labels.size else ()
    side = config.data.image_size
    return lines_of(build_model(config.model, side, _Tokenizer(), labels), side)


@functools.cache
def lines_of(model: Any, side: int) -> list[str]:
    """Those of a model, which several variants may have."""
    batch = {"image": np.zeros((1, 1, side, side, 3), np.uint8), "text": np.zeros((1, 16), np.int32)}
    batch |= {"text_mask": np.ones((1, 16), bool), "prefix_length": np.zeros(1, np.int32)}
    boxed, _ = jax.eval_shape(model.init, jax.random.key(0), {"pairs": batch})
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: hasattr(x, "names")):
        leaf_name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        assert hasattr(leaf, "names"), f"{leaf_name} has no letters"
        lines.append(f"{leaf_name} {list(leaf.value.shape)} {' '.join(letter or '-' for letter in leaf.names)}")
    return sorted(lines)


def written(known: dict[str, list[str]], variant: str, lines: list[str]) -> list[str]:
    """The section of a variant: all its lines, or what differs from an earlier variant where that is shorter."""
    sections = [[f"[{variant}]", *(f"+ {line}" for line in lines)]]
    for other, theirs in known.items():
        less, more = [x for x in theirs if x not in lines], [x for x in lines if x not in theirs]
        sections.append([f"[{variant}] as [{other}]", *(f"- {x}" for x in less), *(f"+ {x}" for x in more)])
    return min(sections, key=len)


def read(text: str) -> dict[str, list[str]]:
    """The lines of every variant."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            variant, _, other = line.partition(" as ")
            here = found.setdefault(variant.strip("[]"), list(found.get(other.strip("[]"), [])))
        elif line.startswith("- "):
            here.remove(line[2:])
        else:
            here.append(line[2:])
    return {variant: sorted(lines) for variant, lines in found.items()}


@pytest.mark.parametrize("config", [p.name for p in CONFIGS])
def test_parameters(config):
    made = {v: parameters(v) for v in VARIANTS if v.partition(":")[0] == config}
    golden = GOLDEN / f"{config.removesuffix('.py')}.txt"
    if os.environ.get("REGOLD"):
        known = list(made.items())
        sections = [written(dict(known[:i]), *known[i]) for i in range(len(known))]
        golden.write_text("".join("\n".join(section) + "\n" for section in sections))
    found = read(golden.read_text())
    assert list(found) == list(made)
    for variant, lines in made.items():
        assert lines == found[variant], variant


def test_every_file_is_of_a_config():
    assert {p.stem for p in GOLDEN.glob("*.txt")} == {p.stem for p in CONFIGS}

"""Parameters by name, as text in tests/golden/, so that a change of paths, shapes or letters shows in a diff.

REGOLD=1 python -m pytest tests/test_golden.py writes them anew.
"""

import os

import jax
import numpy as np
import pytest

from simvlm_jax.core.build import load_config
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.run.load import build_model
from tests.conftest import ROOT


class _Tokenizer:
    vocabulary = Vocabulary(1000, 16)


@pytest.mark.parametrize(
    "name",
    [
        "prefixlm",
        *(f"prefixlm-{variant}" for variant in ("decoder_only", "patches", "photos", "base")),
        *(f"finetune-{task}" for task in ("vqa", "pairs")),
        *(
            "clip",
            "clip-B/32",
            "clip-RN50",
            "siglip",
            "siglip-So400m/14",
            "llip",
            "llip-L/14",
            "coca",
            "coca-2b",
            "coca-probe",
        ),
    ],
)
def test_parameters(name):
    file, _, variant = name.partition("-")
    config = load_config(f"{ROOT / 'configs' / file}.py{':' + variant if variant else ''}")
    labels = ("yes", "no", "red") if config.data.labels.size else ()
    side = config.data.image_size
    batch = {"image": np.zeros((1, 1, side, side, 3), np.uint8), "text": np.zeros((1, 16), np.int32)}
    batch |= {"text_mask": np.ones((1, 16), bool), "prefix_length": np.zeros(1, np.int32)}
    boxed, _ = jax.eval_shape(build_model(config, _Tokenizer(), labels).init, jax.random.key(0), {"pairs": batch})
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: hasattr(x, "names")):
        name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        assert hasattr(leaf, "names"), f"{name} has no letters"
        lines.append(f"{name} {list(leaf.value.shape)} {' '.join(letter or '-' for letter in leaf.names)}")
    text = "\n".join(lines) + "\n"
    golden = ROOT / "tests" / "golden" / f"{file}-{(variant or 'default').replace('/', '')}.txt"
    if os.environ.get("REGOLD"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()

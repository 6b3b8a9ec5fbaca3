"""Laws of networks that no config has, for their weights come from elsewhere: any mesh, micro-batches and scanned layers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from simvlm_jax.models.bert import BERT
from simvlm_jax.models.coca_open_clip import OpenCoCa
from simvlm_jax.models.efficientnet import EfficientNet
from simvlm_jax.models.efficientnet import Sizes as EfficientNetSizes
from simvlm_jax.models.t5 import T5
from simvlm_jax.models.vision_transformer import SIZES, VisionTransformer
from simvlm_jax.nn.sizes import Compute, Style
from tests.conftest import random_rows
from tests.laws.cases import EXACT, V
from tests.laws.steps import one_step, same, stacked, started

pytestmark = pytest.mark.usefixtures("float64")
TINY = SIZES["tiny"]
BEIT = dataclasses.replace(
    TINY,
    stem=None,
    positions=False,
    relative=True,
    pool="mean",
    norm="after",
    style=dataclasses.replace(Style(), key_bias=False, layer_scale=0.1),
)
STAGES = ((3, 1, 1, 8, 1), (5, 2, 6, 12, 2))
MODELS = {
    "bert": lambda compute: BERT(V, compute=compute),
    "t5": lambda compute: T5(V, compute=compute),
    "vit": lambda compute: VisionTransformer(image_size=32, classes=3, compute=compute),
    "beit": lambda compute: VisionTransformer(image_size=32, classes=3, size=BEIT, compute=compute),
    "efficientnet": lambda compute: EfficientNet(
        image_size=32, classes=3, size=EfficientNetSizes(STAGES, stem=8, head=16), compute=compute
    ),
    "coca_open_clip": lambda compute: OpenCoCa(V, image_size=32, compute=compute),
}
SCANNED = [name for name in MODELS if name != "efficientnet"]
SEES = ("vit", "beit", "efficientnet")


def model(name, compute=EXACT):
    return MODELS[name](compute)


def batch(name, seed=0):
    rows = random_rows(8, V.length, 32, seed)
    kept = {"vit": ("image",), "bert": ("text", "text_mask", "seed"), "t5": ("text", "text_mask", "prefix_length")}
    kept["coca_open_clip"] = ("image", "text", "text_mask")
    made = {k: rows[k] for k in kept["vit" if name in SEES else name]}
    made |= {"label": np.arange(8, dtype=np.int32) % 3} if name in SEES else {}
    return {"pairs": {**made, "weight": rows["weight"], "id": np.arange(8)}}


@functools.cache
def state(name):
    return started(model(name), batch(name))


@functools.cache
def whole(name):
    return one_step(model(name), state(name), batch(name))


@pytest.mark.parametrize("name", MODELS)
def test_any_mesh_is_one_device(name):
    """On 2 x 2 x 2 devices, in two micro-batches."""
    assert np.isfinite(whole(name).measured["loss"])
    same(one_step(model(name), state(name), batch(name), mesh=(2, 2, 2), accumulate=2), whole(name))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name):
    unseen = ("key_bias", "type")  # biases that no softmax sees; of types the first alone is used
    for path, g in jax.tree_util.tree_leaves_with_path(whole(name).gradients):
        assert np.abs(g).max() > 1e-12 or path[-1].key in unseen, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", SCANNED)
def test_scanned_is_unrolled(name):
    scanned = model(name, Compute("float64"))
    params, extra = state(name)
    found = one_step(scanned, (stacked(params), extra), batch(name))
    same(found, whole(name)._replace(gradients=stacked(whole(name).gradients)))


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_weight_zero_are_nothing(name):
    """Padding rows may hold anything."""

    def padded(seed):
        rows, other = batch(name)["pairs"], batch(name, seed)["pairs"]
        held = np.arange(8) < 5
        made = {k: np.where(held.reshape(-1, *[1] * (x.ndim - 1)), x, other[k]) for k, x in rows.items()}
        return {"pairs": {**made, "weight": held.astype(np.float32), "id": rows["id"]}}

    same(*(one_step(model(name), state(name), padded(seed)) for seed in (1, 2)))


def test_remat_changes_nothing():
    """In the half of open_clip's CoCa whose blocks are no stack."""
    remat = model("coca_open_clip", Compute("float64", remat="full", scan=False))
    same(one_step(remat, state("coca_open_clip"), batch("coca_open_clip")), whole("coca_open_clip"))

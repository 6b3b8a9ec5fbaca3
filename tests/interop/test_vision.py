"""Classifiers of images: transformers' models become runs that see, learn and are written the same."""

import json

import jax
import numpy as np
import pytest

from simvlm_jax.interop.reference import random_images, tensor
from tests.interop import harness
from tests.interop.harness import Case

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = dict(hidden_size=24, num_hidden_layers=5, num_attention_heads=3, intermediate_size=40, patch_size=8)
FLAT = {**SHAPE, "image_size": (16, 24), "num_labels": 4}
DECODER = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
MODELS = {  # name: (family, class, config)
    "vit": ("vit", "ViTForImageClassification", FLAT),
    "vit-no-bias": ("vit", "ViTForImageClassification", {**FLAT, "qkv_bias": False, "hidden_act": "gelu_new"}),
    "vit-no-head": ("vit", "ViTModel", {**SHAPE, "image_size": 20}),
    "deit": ("deit", "DeiTForImageClassification", FLAT),
    "deit-distilled": ("deit", "DeiTForImageClassificationWithTeacher", FLAT),
    # squares, for of other shapes transformers 5 confuses rows and columns of the relative tables, and cannot place the positions
    "beit": ("beit", "BeitForImageClassification", {**FLAT, "image_size": 24, "use_relative_position_bias": True}),
    "beit-positions": (
        "beit",
        "BeitForImageClassification",
        {**FLAT, "image_size": 24, "use_absolute_position_embeddings": True},
    ),
    "mae": ("mae", "ViTMAEForPreTraining", {**SHAPE, **DECODER, "decoder_intermediate_size": 16, "image_size": 16}),
}


def loss(module, model, extra, rows):
    label = np.arange(len(rows["image"]), dtype=np.int32) % model.classes
    logits = module(pixel_values=tensor(rows["pixels"])).logits
    batch = {"pairs": {"image": rows["image"], "label": label, "weight": np.ones(len(label), np.float32)}}

    def ours(params):
        _, terms, _ = model.per_example(params, extra, batch, rngs=jax.random.key(0), step=0, train=False)
        return terms["classify"].sum / terms["classify"].count

    return torch.nn.functional.cross_entropy(logits, tensor(label)), ours


def case(name):
    family, kind, fields = MODELS[name]

    def build():
        made = getattr(transformers, kind)
        options = {} if "For" in kind else {"add_pooling_layer": False}
        return made(made.config_class(attn_implementation="eager", **fields), **options)

    return Case(family, build, lambda module, folder: module.save_pretrained(folder), loss=loss)


@pytest.fixture(params=MODELS, scope="module")
def made(request, tmp_path_factory):
    own, tmp = case(request.param), tmp_path_factory.mktemp("interop")
    return request.param, own, *harness.imported(own, tmp), tmp


def test_outputs_are_theirs(made):
    name, own, module, run, report, _ = made
    assert report["compared"] == {"weights": 0.0}
    if name == "mae":
        assert "decoder.mask_token" in next(iter(report["left_out"].values()))
    found = harness.outputs(own, module, run, "hf")
    assert set(found) == {"states", *(["logits"] if run.labels else [])} and max(found.values()) <= 1e-5, found


def test_losses_and_gradients_are_theirs(made):
    _, own, module, run, _, tmp = made
    if not run.labels:
        pytest.skip("it has no head to learn with")
    reference = harness.families()[own.family].reference["hf"]
    loss, gradient = harness.gradients(own, module, run, tmp / "theirs", reference.rows(run.model))
    assert loss <= 1e-5 and gradient <= 1e-4, (loss, gradient)


def test_what_is_exported_is_theirs(made):
    name, own, module, run, _, tmp = made
    if name == "mae":
        pytest.skip("what is left of an MAE is exported as a ViT")

    def load(folder):
        options = {} if "For" in type(module).__name__ else {"add_pooling_layer": False}
        return type(module).from_pretrained(folder, **options)

    harness.round_trip(own, module, run, tmp, load)


def test_an_imported_classifier_names_pictures(made):
    from simvlm_jax.infer.engine import Engine

    _, _, _, run, _, _ = made
    engine = Engine(run.model, run.tokenizer, run.mesh, run.params, run.extra, run.labels, batch_size=8)
    images = random_images(
        run.model.image_size if isinstance(run.model.image_size, tuple) else (run.model.image_size,) * 2
    )
    vectors = engine.embed_images(images["image"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors.shape[1:] == engine.vector_shape(run.config.data.image_size)


def test_outputs_are_compared_by_command(tmp_path, capsys):
    """--compare puts the largest differences from the reference implementation into parity.json, both ways."""
    from simvlm_jax.cli import main

    own = case("vit")
    own.save(harness.moved(own.build()), tmp_path / "theirs")
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    for words in (
        ["import", str(tmp_path / "theirs"), "--out", run, "--compare"],
        ["export", run, "--family", "vit", "--format", "hf", "--out", out, "--compare"],
    ):
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        compared = json.loads(capsys.readouterr().out)["compared"]
        assert compared["weights"] == 0 and set(compared) == {"weights", "states", "logits"}
        assert 0 < max(compared.values()) <= 1e-5
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["compared"] == compared

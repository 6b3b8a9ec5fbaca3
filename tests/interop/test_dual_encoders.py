"""CLIP and SigLIP: models of transformers and of open_clip become runs that see, read, learn and are written the same."""

import json

import jax
import numpy as np
import pytest

from simvlm_jax.interop.reference import tensor
from tests.interop import harness
from tests.interop.harness import PIECES, Case

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = dict(hidden_size=24, num_hidden_layers=5, num_attention_heads=3, intermediate_size=40)
OTHER = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
WORDS = dict(vocab_size=PIECES, max_position_embeddings=13, bos_token_id=256, eos_token_id=257, pad_token_id=258)
SIDES = dict(image_size=20, patch_size=8)  # 20 = 2 x 8 + 4: pixels that no patch holds
PLAIN = dict(image_size=24, width=24, layers=3, head_width=8, patch_size=8)
TEXT = dict(context_length=13, vocab_size=PIECES, width=32, heads=4, layers=2)


def hf_clip(**more):
    made = transformers.CLIPConfig(
        text_config={**OTHER, **WORDS, **more}, vision_config={**SHAPE, **SIDES, **more}, projection_dim=20
    )
    made._attn_implementation = "eager"
    return transformers.CLIPModel(made)


def hf_siglip(text=SHAPE, **more):
    words = {**text, **WORDS, "projection_size": 24}
    made = transformers.SiglipConfig(text_config=words, vision_config={**SHAPE, **SIDES})
    made._attn_implementation = "eager"
    return transformers.SiglipModel(made)


def open_clip(quick_gelu=True, **vision):
    own = pytest.importorskip("open_clip")
    made = own.CLIP(embed_dim=20, vision_cfg={**PLAIN, **vision}, text_cfg=TEXT, quick_gelu=quick_gelu)
    torch.manual_seed(1)
    for name, x in made.named_buffers():
        if name.endswith("running_mean"):
            x.add_(0.1 * torch.randn_like(x))
        elif name.endswith("running_var"):
            x.mul_(torch.rand_like(x) + 0.5)
    made.config = dict(quick_gelu=quick_gelu, vision_cfg={**PLAIN, **vision}, text_cfg=TEXT, embed_dim=20)
    return made


RESNET = dict(layers=[1, 2, 1, 1], width=16, head_width=32, image_size=64)
MODELS = {  # name: (family, layout, module)
    "clip": ("clip", "hf", hf_clip),
    "clip-gelu": ("clip", "hf", lambda: hf_clip(hidden_act="gelu", layer_norm_eps=1e-6)),
    "clip-open_clip": ("clip", "open_clip", open_clip),
    "clip-open_clip-not-square": ("clip", "open_clip", lambda: open_clip(False, image_size=(16, 24))),
    "clip-resnet": ("clip", "open_clip", lambda: open_clip(**RESNET)),
    "siglip": ("siglip", "hf", hf_siglip),
    "siglip-two-widths": ("siglip2", "hf", lambda: hf_siglip(OTHER)),
}


def save(module, folder):
    if hasattr(module, "save_pretrained"):
        module.save_pretrained(folder)
    else:
        from safetensors.torch import save_file

        folder.mkdir()
        save_file(module.state_dict(), folder / "open_clip_model.safetensors")
        config = {"model_cfg": module.config, "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "shortest"}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    harness.byte_tokenizer(folder)


def loss(module, model, extra, rows):
    if hasattr(module, "save_pretrained"):
        theirs = module(input_ids=tensor(rows["tokens"]), pixel_values=tensor(rows["pixels"]), return_loss=True).loss
    else:
        image, text, scale = module(tensor(rows["pixels"]), tensor(rows["tokens"]))[:3]
        logits, place = scale * image @ text.T, torch.arange(len(rows["image"]))
        theirs = sum(torch.nn.functional.cross_entropy(x, place) for x in (logits, logits.T)) / 2
    batch = {"pairs": {**rows, "weight": np.ones(len(rows["image"]), np.float32)}}

    def ours(params):
        given = dict(rngs=jax.random.key(0), step=0, train=False)
        features, _, _ = model.per_example(params, extra, batch, **given)
        terms, _ = model.across_batch(params, extra, features, step=0, train=False)
        term = terms["contrastive"]
        return term.weight * term.sum / term.count

    return theirs, ours


def case(name):
    family, layout, build = MODELS[name]
    return Case(family, build, save, loss=loss, layout=layout)


@pytest.fixture(params=MODELS, scope="module")
def made(request, tmp_path_factory):
    """(case, layout, module, run, report, folder)."""
    own, tmp = case(request.param), tmp_path_factory.mktemp("interop")
    return own, own.layout, *harness.imported(own, tmp), tmp


def test_outputs_are_theirs(made):
    own, layout, module, run, report, _ = made
    assert report["compared"] == {"weights": 0.0}
    found = harness.outputs(own, module, run, layout)
    assert {"image_embeds", "text_embeds", "logits"} <= set(found) and max(found.values()) <= 1e-5, found


def test_losses_and_gradients_are_theirs(made):
    own, layout, module, run, _, tmp = made
    rows = harness.families()[own.family].reference[layout].rows(run.model)
    found, gradient = harness.gradients(own, module, run, tmp / "theirs", rows)
    assert found <= 1e-5 and gradient <= 1e-4, (found, gradient)


def test_what_is_exported_is_theirs(made):
    own, layout, module, run, _, tmp = made

    def load(folder):
        return harness.families()[own.family].reference[layout].load(folder)

    harness.round_trip(own, module, run, tmp, load, format=layout)


def test_it_serves_like_any_run(made, tmp_path):
    """Vectors, names of classes and zero-shot evaluation, by the commands of any run."""
    from PIL import Image

    from simvlm_jax.cli import main

    *_, tmp = made
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    run, picture, out = str(tmp / "run"), str(tmp_path / "a.png"), str(tmp_path / "x.npz")
    assert main(["embed", run, picture, "--out", out]) == 0
    assert main(["search", run, "--index", out, "a dog"]) == 0
    assert main(["classify", run, picture, "--labels", "cat,dog"]) == 0

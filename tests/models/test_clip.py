"""CLIP: the paper's parameter counts, and the authors' network by transformers and open_clip."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import Vocabulary
from simvlm_jax.models import clip
from simvlm_jax.models.clip import CLIP
from simvlm_jax.nn.resnet import AttentionResNet, ResNetSize
from simvlm_jax.nn.sizes import Compute, Size
from tests.laws.cases import V
from tests.laws.steps import count, make, one_step, same, started
from tests.models import from_torch


def test_accumulated_at_64_on_a_mesh(float64, text_batch, monkeypatch):
    """8 x 8 of smoothed targets, with rows that are padding, and classes whose rows are each other's positives."""
    monkeypatch.setitem(clip.SIZES, "narrow", clip.Sizes(Size(16, 2, 2, 32), 16, Size(16, 2, 2, 32), 16))
    rows = text_batch(64)
    rows["weight"][5:9] = 0
    rows["label"] = np.random.default_rng(0).integers(-1, 9, 64).astype(np.int32)
    rows["id"] = np.arange(64)
    model, params = make(CLIP(V, 32, size="narrow", positives="label", smoothing=0.1), rows)
    step = functools.partial(one_step, model, (params, {}), {"pairs": rows})
    same(step(accumulate=8, looped=True, mesh=(2, 2, 2)), step())


@pytest.mark.parametrize(
    ("size", "pixels", "parameters"),
    [
        ("B/32", 224, 151_277_313),
        ("B/16", 224, 149_620_737),
        ("L/14", 224, 427_616_513),
        ("L/14", 336, 427_944_193),
        ("RN50", 224, 102_007_137),
        ("RN101", 224, 119_688_033),
        ("RN50x4", 288, 178_300_601),
        ("RN50x16", 384, 290_979_217),
        ("RN50x64", 448, 623_258_305),
    ],
)
def test_parameter_counts_are_the_released_ones(size, pixels, parameters):
    assert count(CLIP(Vocabulary(49_408, 76), pixels, size=size)) == parameters


def test_it_is_the_network_of_transformers(monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    heads, depth, width, pixels = 4, 3, 32, 24
    shape = dict(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth, num_attention_heads=heads)
    special = dict(bos_token_id=48, eos_token_id=49, pad_token_id=0)
    theirs = from_torch.perturbed(
        transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=dict(**shape, **special, vocab_size=50, max_position_embeddings=13),
                vision_config=dict(**shape, image_size=pixels, patch_size=8),
                projection_dim=20,
            )
        )
    )
    size = Size(width, depth, heads, 2 * width)
    monkeypatch.setitem(clip.SIZES, "test", clip.Sizes(size, 8, size, 20))
    model = CLIP(Vocabulary(50, 12, bos=48, eos=49), pixels, size="test", compute=Compute("float32", scan=False))
    state = from_torch.numpy_state(theirs)
    vision, text = "vision_model", "text_model"
    params = {
        "image_tower": {
            "patches": {"kernel": from_torch.patches(state[f"{vision}.embeddings.patch_embedding.weight"])},
            "class_token": {"tokens": state[f"{vision}.embeddings.class_embedding"][None]},
            "position": state[f"{vision}.embeddings.position_embedding.weight"],
            "norm_before": from_torch.norm(state, f"{vision}.pre_layrnorm"),
            "stack": from_torch.stack(state, f"{vision}.encoder.layers", depth, heads),
            "norm": from_torch.norm(state, f"{vision}.post_layernorm"),
        },
        "text_tower": {
            "embedding": state[f"{text}.embeddings.token_embedding.weight"],
            "position": state[f"{text}.embeddings.position_embedding.weight"],
            "stack": from_torch.stack(state, f"{text}.encoder.layers", depth, heads),
            "norm": from_torch.norm(state, f"{text}.final_layer_norm"),
        },
        "image_projection": from_torch.linear(state, "visual_projection"),
        "text_projection": from_torch.linear(state, "text_projection"),
        "logit_scale": {"log": state["logit_scale"]},
    }
    made, _ = jax.eval_shape(lambda key: model.init(key, {}), jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(jnp.shape, nn.unbox(made))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 1, pixels, pixels, 3), dtype=np.uint8)
    tokens = np.zeros((5, 12), np.int32)
    for row, n in zip(tokens, (3, 11, 7, 5, 2), strict=True):
        row[:n], row[n] = rng.integers(1, 48, n), 49
    mask = np.cumsum(tokens == 49, axis=1) - (tokens == 49) == 0
    mean, deviation = (np.asarray(x, np.float32) for x in clip.PIXELS)
    pixels_in = ((image[:, 0] / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(np.pad(tokens, ((0, 0), (1, 0)), constant_values=48)).long(),
            pixel_values=torch.tensor(pixels_in),
        )
    batch = {"image": image, "text": tokens, "text_mask": mask}
    ours = [np.asarray(model.capabilities()[k](params, {}, batch)) for k in ("embed_image", "embed_text")]
    np.testing.assert_allclose(ours[0], out.image_embeds, atol=1e-5)
    np.testing.assert_allclose(ours[1], out.text_embeds, atol=1e-5)
    logits = np.exp(state["logit_scale"]) * model.similarity(params, {}, *ours)
    np.testing.assert_allclose(logits, out.logits_per_image, atol=1e-4)
    batch["weight"] = np.ones(5, np.float32)
    features, _, _ = model.per_example(params, {}, {"pairs": batch}, rngs=jax.random.key(0), step=0, train=True)
    term = model.across_batch(params, {}, features, step=0, train=True)[0]["contrastive"]
    both = [torch.nn.functional.cross_entropy(x, torch.arange(5)) for x in (out.logits_per_image, out.logits_per_text)]
    assert float(term.weight * term.sum / term.count) == pytest.approx(float(sum(both)) / 2, rel=1e-5)


def test_the_resnet_is_that_of_open_clip():
    """With group for batch normalisation on their side too; all else is theirs."""
    torch = pytest.importorskip("torch")
    modified = pytest.importorskip("open_clip.modified_resnet")
    size, pixels = ResNetSize(32, (2, 1, 2, 1), 8), 64
    theirs = modified.ModifiedResNet(size.depths, 24, size.heads, image_size=pixels, width=size.width)
    for module in list(theirs.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d):
                channels = child.num_features
                setattr(module, name, torch.nn.GroupNorm(max(channels // 16, 1), channels, eps=1e-6))
    theirs = from_torch.perturbed(theirs)
    state = from_torch.numpy_state(theirs)

    def conv(name):
        return {"kernel": state[f"{name}.weight"].transpose(2, 3, 1, 0)}

    params = {f"root_{i}": conv(f"conv{i + 1}") for i in range(3)}
    params |= {f"root_norm_{i}": from_torch.norm(state, f"bn{i + 1}") for i in range(3)}
    for i, depth in enumerate(size.depths):
        for j in range(depth):
            name = f"layer{i + 1}.{j}"
            own = {f"conv_{k}": conv(f"{name}.conv{k + 1}") for k in range(3)}
            own |= {f"norm_{k}": from_torch.norm(state, f"{name}.bn{k + 1}") for k in range(3)}
            if j == 0:
                own["conv_shortcut"] = conv(f"{name}.downsample.0")
                own["norm_shortcut"] = from_torch.norm(state, f"{name}.downsample.1")
            params[f"stage_{i}_block_{j}"] = own
    params["position"] = state["attnpool.positional_embedding"]
    params["attention"] = from_torch.attention(state, "attnpool", size.heads, ("q_proj", "k_proj", "v_proj", "c_proj"))
    image = np.random.default_rng(0).normal(size=(3, pixels, pixels, 3)).astype(np.float32)
    ours = AttentionResNet(size, pixels, 24, Compute("float32")).apply({"params": params}, image)
    with torch.no_grad():
        reference = theirs(torch.tensor(image.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(ours, reference, atol=1e-4 * float(reference.abs().max()))


def test_bad_fields_are_named(text_batch):
    model, batch = CLIP(V, 32, positives="label"), {"pairs": text_batch(2)}
    step = functools.partial(model.per_example, rngs=jax.random.key(0), step=0, train=True)
    with pytest.raises(ValueError, match=r"needs rows with a label: add transforms\.Label"):
        jax.eval_shape(step, started(model, batch, "float32")[0], {}, batch)
    with pytest.raises(ValueError, match="size 'B/31' is not one of tiny, B/32"):
        CLIP(V, 32, size="B/31")
    with pytest.raises(ValueError, match="positives 'captions'"):
        CLIP(V, 32, positives="captions")

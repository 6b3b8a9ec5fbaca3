"""SigLIP: parameter counts, and the authors' network and loss by transformers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import Vocabulary
from simvlm_jax.models import siglip
from simvlm_jax.models.siglip import SigLIP
from simvlm_jax.nn.sizes import Compute, Size
from tests.laws.cases import V
from tests.laws.steps import count
from tests.models import from_torch


@pytest.mark.parametrize(
    ("size", "pixels", "parameters"),
    [("B/16", 224, 203_155_970), ("L/16", 256, 652_150_786), ("So400m/14", 384, 877_960_498)],
)
def test_parameter_counts_are_the_released_ones(size, pixels, parameters):
    assert count(SigLIP(Vocabulary(32_000, 64), pixels, size=size)) == parameters


def test_without_a_bias_there_is_none():
    params, _ = jax.eval_shape(lambda key: SigLIP(V, 32, use_bias=False).init(key, {}), jax.random.key(0))
    assert set(params["logit_scale"]) == {"log"}


def test_it_is_the_network_of_transformers(monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    heads, depth, width, pixels = 4, 3, 32, 28  # 28 = 3 x 8 + 4: pixels that no patch holds
    shape = dict(hidden_size=width, intermediate_size=48, num_hidden_layers=depth, num_attention_heads=heads)
    theirs = from_torch.perturbed(
        transformers.SiglipModel(
            transformers.SiglipConfig(
                text_config=dict(**shape, vocab_size=50, max_position_embeddings=12, projection_size=width),
                vision_config=dict(**shape, image_size=pixels, patch_size=8),
            )
        )
    )
    monkeypatch.setitem(siglip.SIZES, "test", siglip.Sizes(Size(width, depth, heads, 48), 8))
    model = SigLIP(V, pixels, size="test", compute=Compute("float32", scan=False))
    state = from_torch.numpy_state(theirs)
    vision, text, head = "vision_model", "text_model", "vision_model.head"
    patch = f"{vision}.embeddings.patch_embedding"
    params = {
        "image_tower": {
            "patches": {"kernel": from_torch.patches(state[f"{patch}.weight"]), "bias": state[f"{patch}.bias"]},
            "position": state[f"{vision}.embeddings.position_embedding.weight"],
            "stack": from_torch.stack(state, f"{vision}.encoder.layers", depth, heads),
            "norm": from_torch.norm(state, f"{vision}.post_layernorm"),
            "head": {
                "probe": {"tokens": state[f"{head}.probe"][0]},
                "attention": from_torch.packed_attention(state, f"{head}.attention", heads),
                "norm": from_torch.norm(state, f"{head}.layernorm"),
                "mlp": from_torch.mlp(state, f"{head}.mlp"),
            },
        },
        "text_tower": {
            "embedding": state[f"{text}.embeddings.token_embedding.weight"],
            "position": state[f"{text}.embeddings.position_embedding.weight"],
            "stack": from_torch.stack(state, f"{text}.encoder.layers", depth, heads),
            "norm": from_torch.norm(state, f"{text}.final_layer_norm"),
        },
        "text_projection": from_torch.linear(state, f"{text}.head"),
        "logit_scale": {"log": state["logit_scale"].reshape(()), "bias": state["logit_bias"].reshape(())},
    }
    made, _ = jax.eval_shape(lambda key: model.init(key, {}), jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(jnp.shape, nn.unbox(made))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 1, pixels, pixels, 3), dtype=np.uint8)
    tokens = np.zeros((5, 12), np.int32)
    for row, n in zip(tokens, (3, 12, 7, 5, 2), strict=True):
        row[:n] = rng.integers(3, 50, n)
    tokens[1, -1] = model.vocabulary.eos  # as texts end that fill every slot
    pixels_in = (image[:, 0] / np.float32(127.5) - 1).transpose(0, 3, 1, 2)
    with torch.no_grad():
        out = theirs(input_ids=torch.tensor(tokens).long(), pixel_values=torch.tensor(pixels_in), return_loss=True)
    batch = {"image": image, "text": tokens[:, :12], "text_mask": tokens > 0}
    ours = [np.asarray(model.capabilities()[k](params, {}, batch)) for k in ("embed_image", "embed_text")]
    np.testing.assert_allclose(ours[0], out.image_embeds, atol=1e-5)
    np.testing.assert_allclose(ours[1], out.text_embeds, atol=1e-5)
    batch["weight"] = np.ones(5, np.float32)
    features, _, _ = model.per_example(params, {}, {"pairs": batch}, rngs=jax.random.key(0), step=0, train=True)
    term = model.across_batch(params, {}, features, step=0, train=True)[0]["contrastive"]
    assert float(term.sum / term.count) == pytest.approx(float(out.loss), rel=1e-5)


def test_a_text_that_was_cut_ends_in_eos(text_batch):
    text, valid = np.arange(4, 28).reshape(2, 12), np.arange(12) < np.asarray([[12], [5]])
    found, seen = SigLIP(V, 32).lay_out(text, valid)
    expected = np.where(valid, text, V.pad)
    expected[0, -1] = V.eos
    np.testing.assert_array_equal(found, expected)
    assert np.asarray(seen).all()


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="size 'XL' is not one of tiny, B/16"):
        SigLIP(V, 32, size="XL")
    with pytest.raises(ValueError, match=r"SigLIP.start_scale is 0: expected float > 0\.0"):
        SigLIP(V, 32, start_scale=0)

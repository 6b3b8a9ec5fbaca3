"""SimVLM: its ablations, prefixes, spans and padding, other resolutions, and the paper's sizes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.trees import leaf_names
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.families.text_layout import prefix_layout, span_layout
from simvlm_jax.models import simvlm
from simvlm_jax.models.simvlm import SimVLM
from simvlm_jax.nn.sizes import Compute
from tests.laws import language, traces
from tests.laws.cases import V
from tests.laws.steps import make as exact
from tests.laws.steps import one_step, same, stacked, started

VARIANTS = {
    "default": {},
    "decoder_only": {"decoder_only": True},
    "lm": {"objective": "lm"},
    "lm_decoder_only": {"objective": "lm", "decoder_only": True},
    "span": {"objective": "span_corruption"},
    "span_decoder_only": {"objective": "span_corruption", "decoder_only": True},
}


def make(text_batch, rows=4, **kwargs):
    model = SimVLM(V, image_size=32, **kwargs)
    batch = text_batch(rows)
    return model, started(model, {"pairs": batch}, "float32")[0], batch


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def terms_of(model, params, batch, seed=1, train=False, **parts):
    rows = {"pairs": batch, **parts}
    return model.per_example(params, {}, rows, rngs=jax.random.key(seed), step=0, train=train)[1]


def loss_of(model, params, batch, **parts):
    term = terms_of(model, params, batch, **parts)["lm"]
    return term.sum / term.count


@pytest.mark.parametrize("variant", ["lm_decoder_only", "span_decoder_only"])
def test_ablations_of_which_no_config_makes_a_model_reach_every_parameter(text_batch, float64, variant):
    batch = {"pairs": text_batch(4), "documents": text_batch(2, image=0, seed=5)}
    model = SimVLM(V, image_size=32, compute=Compute("float64"), **VARIANTS[variant])
    found = one_step(model, started(model, batch), batch)
    assert np.isfinite(found.measured["loss"])
    assert not [
        k for k, g in zip(leaf_names(found.gradients), jax.tree.leaves(found.gradients), strict=True) if not g.any()
    ]


@pytest.mark.parametrize("variant", ["decoder_only", "lm", "lm_decoder_only"])
def test_cached_decoding_of_ablations_is_uncached(text_batch, float64, variant):
    model, params = exact(SimVLM(V, image_size=32, **VARIANTS[variant]), text_batch(4))
    language.cached_is_uncached(model, params, {}, text_batch(4), 1e-12)


@pytest.mark.parametrize("variant", ["decoder_only", "span"])
def test_ablations_write_a_text_for_its_own_row(text_batch, float64, variant):
    model, params = exact(SimVLM(V, image_size=32, **VARIANTS[variant]), text_batch(6))
    language.a_text_is_written_for_its_own_row(model, params, {}, text_batch(6), language.SAMPLED, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_are_of_the_kinds_they_say(text_batch, monkeypatch, variant):
    """Of images with text and documents, and where some have no image."""
    batch = {"pairs": text_batch(4)}
    batches = [{**batch, "documents": text_batch(4, image=0, seed=5)}, traces.without_some_images(batch)]
    model = SimVLM(V, image_size=32, compute=Compute(scan=False), **VARIANTS[variant])
    traces.masks_are_of_their_kinds(model, batches, monkeypatch)


def test_plain_patches_sum_nothing_in_bfloat16(text_batch):
    model = SimVLM(V, image_size=32, stem_stages=0, compute=Compute("bfloat16", scan=False))
    traces.gradient_sums_nothing_in_bfloat16(model, {"pairs": text_batch(4)})


def test_prefix_length_zero_is_a_causal_lm(text_batch):
    """With nothing in the prefix, a logit depends on earlier pieces only; with a prefix, on all of it."""
    model, params, batch = make(text_batch)
    changed = batch["text"].copy()
    changed[:, 5] = (changed[:, 5] + 7) % 40 + 4
    mask = np.ones((4, 12), bool)

    @jax.jit
    def logits(text, prefix):
        layout = prefix_layout(jnp.asarray(text), jnp.asarray(mask), jnp.full((4,), prefix), V.bos)
        return model.network.apply({"params": params}, {"image": batch["image"]}, layout, method="teacher_forced")

    a, b = logits(batch["text"], 0), logits(changed, 0)
    np.testing.assert_allclose(a[:, :6], b[:, :6], atol=1e-6)
    assert np.abs(a[:, 6:] - b[:, 6:]).max() > 1e-3
    assert np.abs(logits(batch["text"], 8)[:, 8] - logits(changed, 8)[:, 8]).max() > 1e-3


def test_padding_rows_and_masked_images_are_safe(text_batch):
    model, params, batch = make(text_batch)
    batch["weight"][2:] = 0
    short = {k: v[:2] for k, v in batch.items()}
    np.testing.assert_allclose(loss_of(model, params, batch), loss_of(model, params, short), rtol=1e-6)
    nothing = terms_of(model, params, {**batch, "weight": np.zeros(4, np.float32)})["lm"]
    assert nothing.sum == 0 and nothing.count == 0
    blind = {**batch, "image_mask": np.zeros((4, 1), bool)}
    other = {**blind, "image": 255 - batch["image"]}
    np.testing.assert_allclose(loss_of(model, params, blind), loss_of(model, params, other), rtol=1e-6)


def test_documents_never_touch_the_conv_stem(text_batch):
    model, params, _ = make(text_batch)
    documents = text_batch(4, image=0)
    grads = jax.jit(jax.grad(functools.partial(loss_of, model)))(params, documents)
    assert all(not g.any() for g in jax.tree.leaves(grads["stem"]))
    assert not grads["image_position"].any() and grads["text_position"].any()


def test_scan_and_remat_change_nothing(text_batch, float64):
    """Each for itself; tests/laws has both together."""
    batch = {"pairs": text_batch(4)}
    model, params = exact(SimVLM(V, image_size=32, stem_stages=0), batch["pairs"])  # the stem knows of neither
    expected = one_step(model, (params, {}), batch)
    scanned = one_step(dataclasses.replace(model, compute=Compute("float64")), (stacked(params), {}), batch)
    same(scanned, expected._replace(gradients=stacked(expected.gradients)))
    for remat in ("full", "dots"):
        other = dataclasses.replace(model, compute=Compute("float64", remat, False))
        same(one_step(other, (params, {}), batch), expected)


def test_span_corruption_gives_back_every_piece(text_batch):
    batch = text_batch(64)
    layout = span_layout(batch["text"], batch["text_mask"], jnp.asarray(batch["seed"]), V)
    for r in range(64):
        real = batch["text"][r][batch["text_mask"][r]].tolist()
        left = np.asarray(layout.tokens[r])[np.asarray(layout.given[r])].tolist()
        told = np.asarray(layout.targets[r])[np.asarray(layout.predicted[r])].tolist()
        spans, current = {}, None
        for token in told[:-1]:
            if token >= V.size:
                current = spans.setdefault(token, [])
            else:
                current.append(token)
        rebuilt = [t for token in left for t in (spans[token] if token >= V.size else [token])]
        # EOS is no part of any span: it ends the targets
        assert told[-1] == V.eos and rebuilt == real[:-1] and spans, (real, left, told)


def test_another_resolution_resizes_both_tables(text_batch):
    model, params, _ = make(text_batch)
    same = model.adapt(params, params)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    larger = dataclasses.replace(model, image_size=64)
    big = text_batch(2, image=64)
    fresh, _ = started(larger, {"pairs": big}, "float32")
    adapted = larger.adapt(params, fresh)
    assert jax.tree.map(jnp.shape, adapted) == jax.tree.map(jnp.shape, fresh)
    np.testing.assert_allclose(adapted["image_position"].mean(0), params["image_position"].mean(0), atol=1e-6)
    table, old = (p["encoder"]["layers"]["relative"]["table"] for p in (adapted, params))
    np.testing.assert_allclose(table[..., 3, 3], old[..., 1, 1], atol=1e-6)  # offset (0, 0) stays in the centre
    assert np.isfinite(loss_of(larger, adapted, big))


def test_dropout_and_stochastic_depth_act_only_while_training(text_batch):
    model, params, batch = make(text_batch, dropout=0.3, drop_path=0.3)

    def run(seed, train):
        return terms_of(model, params, batch, seed=seed, train=train)["lm"].sum

    assert run(0, True) != run(1, True) and run(0, True) == run(0, True) and run(0, False) == run(1, False)


def test_attention_of_words_is_a_share_of_the_image(text_batch):
    for kwargs in ({}, {"decoder_only": True}, {"compute": Compute(scan=False)}):
        model, params, batch = make(text_batch, **kwargs)
        weights = np.asarray(jax.jit(model.attention)(params, {}, batch))
        assert weights.shape == (4, 12, 4) and (weights >= 0).all() and (weights.sum(-1) <= 1 + 1e-5).all()
        assert (weights[batch["text_mask"]].sum(-1) > 0).all()


@pytest.mark.parametrize(("size", "millions"), [("base", (245, 265)), ("large", (770, 800))])
def test_paper_sizes(size, millions):
    """papers.md section 1.1 derives about 250M and 781M with decoder depth = encoder depth."""
    model = SimVLM(Vocabulary(32_000, 256), size=size, image_size=224)
    batch = {
        "image": jnp.zeros((1, 1, 224, 224, 3), jnp.uint8),
        "text": jnp.zeros((1, 256), jnp.int32),
        "text_mask": jnp.ones((1, 256), bool),
        "prefix_length": jnp.zeros((1,), jnp.int32),
    }
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), {"pairs": batch})[0])
    count = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
    assert millions[0] < count < millions[1], count
    assert shapes["image_position"].shape == (196, model.sizes[0].width)


def test_unknown_sizes_and_images_are_named(text_batch):
    with pytest.raises(ValueError, match="size 'giant'"):
        SimVLM(V, image_size=32, size="giant")
    with pytest.raises(ValueError, match="not a multiple of patch"):
        SimVLM(V, image_size=50)
    model, params, batch = make(text_batch)
    with pytest.raises(ValueError, match="one image of 32 px"):
        loss_of(model, params, text_batch(2, image=64))
    with pytest.raises(ValueError, match="leaves room for 8"):
        model.prefill(params, {}, {**batch, "text": batch["text"][:, :4], "text_mask": batch["text_mask"][:, :4]}, 9)
    assert simvlm.SIZES["tiny"]

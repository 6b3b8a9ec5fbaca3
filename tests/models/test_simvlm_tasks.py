"""What SimVLM is fine-tuned to do: heads over one image, two, or none; text likelihoods; features; searching with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.decode.rank import likelihoods
from simvlm_jax.families.text_layout import prefix_layout
from simvlm_jax.objectives.cross_entropy import soft_cross_entropy
from tests.models.test_simvlm import VARIANTS, V, make

ROWS = ("image", "text", "text_mask", "prefix_length")


def jitted(model, name):
    """A capability, compiled: op by op it takes many times as long."""
    return jax.jit(model.capabilities()[name])


def labelled(batch, images=1, classes=5):
    """A batch for classification with `images` a row."""
    n = len(batch["text"])
    pictures = np.random.default_rng(3).integers(0, 256, (n, images, 32, 32, 3), dtype=np.uint8)
    return {**batch, "image": pictures, "label": np.arange(n, dtype=np.int32) % classes}


@pytest.mark.parametrize("variant", ["default", "decoder_only"])
def test_a_head_trains_every_parameter_it_stands_on(text_batch, variant):
    model, params, batch = make(text_batch, classes=5, **VARIANTS[variant])
    batch = labelled(batch)
    batch["label"][1] = -1

    def loss(params, batch):
        _, terms, aux = model.per_example(params, {}, {"pairs": batch}, rngs=jax.random.key(0), step=0, train=True)
        return terms["classify"].sum / terms["classify"].count, (terms, aux)

    (value, (terms, _)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    assert np.isfinite(value) and terms["classify"].count == 3 and set(terms) == {"classify"}
    still = [jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_leaves_with_path(grads) if not np.abs(g).max() > 0]
    assert not still, still
    rows = {k: batch[k] for k in ROWS}
    expected = -jax.nn.log_softmax(jitted(model, "classify")(params, {}, rows))[
        np.asarray([0, 2, 3]), batch["label"][[0, 2, 3]]
    ]
    np.testing.assert_allclose(value, expected.mean(), rtol=2e-6)


def test_two_images_are_two_passes(text_batch):
    model, params, batch = make(text_batch, classes=2, images=2)
    batch = labelled(batch, 2, 2)
    classify = jitted(model, "classify")
    logits = classify(params, {}, {k: batch[k] for k in ROWS})
    assert logits.shape == (4, 2) and params["head_kernel"].shape == (256, 2)
    # the head applied to what one-image passes put out, in order
    layout = prefix_layout(batch["text"], batch["text_mask"], batch["prefix_length"], V.bos)
    sizes = batch["text_mask"].sum(1) - 1

    @jax.jit
    def decode(params, image):
        x = model.network.apply({"params": params}, {"image": image}, layout, method="decode")
        return model.network.bind({"params": params}).decoder_norm(x)

    halves = []
    for i in range(2):
        halves.append(decode(params, batch["image"][:, i : i + 1])[np.arange(4), sizes])
    expected = jnp.concatenate(halves, -1) @ params["head_kernel"] + params["head_bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    swapped = classify(params, {}, {**{k: batch[k] for k in ROWS}, "image": batch["image"][:, ::-1]})
    assert np.abs(swapped - logits).max() > 1e-4
    with pytest.raises(ValueError, match="classifies 2 images per row"):
        model.classify(params, {}, {**{k: batch[k] for k in ROWS}, "image": batch["image"][:, :1]})


def test_a_row_is_classified_by_itself(text_batch):
    model, params, batch = make(text_batch, rows=6, classes=5)
    batch = labelled(batch)
    classify = jitted(model, "classify")
    together = classify(params, {}, {k: batch[k] for k in ROWS})
    alone = classify(params, {}, {k: batch[k][3:4] for k in ROWS})
    np.testing.assert_allclose(together[3], alone[0], atol=1e-5)
    other = dict(batch, text=np.where(batch["text_mask"], batch["text"], 9))  # what padding holds does not matter
    np.testing.assert_allclose(classify(params, {}, {k: other[k] for k in ROWS}), together, atol=1e-5)


def test_a_text_without_image_is_classified_too(text_batch):
    model, params, batch = make(text_batch, classes=3)
    rows = {k: batch[k] for k in ("text", "text_mask", "prefix_length")}
    assert np.isfinite(jitted(model, "classify")(params, {}, rows)).all()
    fresh, _ = jax.eval_shape(model.init, jax.random.key(0), {"pairs": rows})  # and a model can be made from such rows
    assert jax.tree.structure(fresh) == jax.tree.structure(
        jax.eval_shape(model.init, jax.random.key(0), {"pairs": batch})[0]
    )


def test_without_a_head_the_mend_is_named(text_batch):
    model, params, batch = make(text_batch)
    assert "classify" not in model.capabilities()
    with pytest.raises(ValueError, match=r"set config\.data\.labels\.size"):
        model.per_example(params, {}, {"pairs": labelled(batch)}, rngs=jax.random.key(0), step=0, train=False)


def test_features_are_of_the_image_alone(text_batch):
    for variant in ("default", "decoder_only"):
        model, params, batch = make(text_batch, **VARIANTS[variant])
        look = jitted(model, "features")
        features = look(params, {}, batch)
        assert features.shape == (4, 128) and features.dtype == jnp.float32
        other = look(params, {}, {**batch, "text": batch["text"] + 1})
        np.testing.assert_array_equal(features, other)
        assert np.abs(features[0] - features[1]).max() > 1e-3


@pytest.mark.parametrize("variant", ["default", "decoder_only", "lm"])
def test_cached_likelihoods_are_uncached_ones(text_batch, variant):
    model, params, batch = make(text_batch, **VARIANTS[variant])
    prompt = {"image": batch["image"], "text": batch["text"][:, :2], "text_mask": np.ones((4, 2), bool)}
    candidates = np.asarray([[7, 8, 2, 0], [9, 2, 0, 0], [11, 12, 13, 2]], np.int32)
    real = np.asarray([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    able = model.capabilities()
    scores = jax.jit(lambda p, b: likelihoods(able, p, {}, b, candidates, real))(params, prompt)
    score_text = jitted(model, "score_text")
    for k in range(3):
        text = np.zeros((4, 12), np.int32)
        text[:, :2], text[:, 2:6] = batch["text"][:, :2], candidates[k]
        mask = np.zeros((4, 12), bool)
        mask[:, :2], mask[:, 2:6] = True, real[k]
        rows = {"image": batch["image"], "text": text, "text_mask": mask, "prefix_length": np.full(4, 2, np.int32)}
        whole = score_text(params, {}, rows)
        np.testing.assert_allclose(scores[:, k], whole, atol=3e-5)
    if variant != "default":
        return
    short = jax.jit(lambda p, b: likelihoods(able, p, {}, b, candidates, real, shortlist=2))(params, prompt)
    assert np.isinf(short).sum(1).tolist() == [1] * 4
    np.testing.assert_allclose(np.where(np.isinf(short), scores, short), scores, atol=1e-5)


def test_beam_search_with_a_cache_is_beam_search_without(text_batch):
    model, params, batch = make(text_batch)
    params = jax.tree.map(lambda x: x * 1.5, params)  # sharper logits, so that hypotheses differ
    prompt = {"image": batch["image"], "text": batch["text"][:, :2], "text_mask": np.ones((4, 2), bool)}

    def slow_prefill(params, extra, batch, length):
        said = jnp.zeros((len(batch["text"]), 12), jnp.int32).at[:, :2].set(batch["text"])
        cache = {"image": jnp.asarray(batch["image"]), "said": said, "n": jnp.full((len(said),), 2)}
        return slow_logits(params, cache), cache

    def slow_logits(params, cache):
        rows, mask = jnp.arange(len(cache["n"])), jnp.arange(12) <= cache["n"][:, None]
        layout = prefix_layout(cache["said"], mask, jnp.full_like(cache["n"], 2), V.bos)
        logits = model.network.apply({"params": params}, {"image": cache["image"]}, layout, method="teacher_forced")
        return logits[rows, cache["n"]]

    def slow_extend(params, extra, cache, tokens):
        rows = jnp.arange(len(tokens))
        cache = {**cache, "said": cache["said"].at[rows, cache["n"]].set(tokens[:, 0]), "n": cache["n"] + 1}
        return slow_logits(params, cache)[:, None], cache

    how = Decoding(max_length=6, beams=3, n_best=3, min_length=2)
    made = [
        jax.jit(lambda p, b, able=able: generate(able, p, {}, b, vocabulary=V, decoding=how))(params, prompt)
        for able in (model.capabilities(), {"prefill": slow_prefill, "extend": slow_extend})
    ]
    assert made[0].tokens.tolist() == made[1].tokens.tolist()
    np.testing.assert_allclose(made[0].score, made[1].score, atol=1e-4)


def test_a_longer_text_keeps_the_positions_learned(text_batch):
    import dataclasses

    model, params, _ = make(text_batch)
    for length in (20, 8):
        other = dataclasses.replace(model, vocabulary=dataclasses.replace(V, length=length))
        fresh = {**params, "text_position": np.full((length, 128), 7.0, np.float32)}
        adapted = other.adapt(params, fresh)["text_position"]
        kept = min(length, 12)
        np.testing.assert_array_equal(adapted[:kept], params["text_position"][:kept])
        assert (adapted[kept:] == 7).all() and adapted.shape == (length, 128)


def test_soft_scores():
    logits, scores = jnp.asarray([[2.0, -1.0], [0.0, 3.0]]), jnp.asarray([[0.6, 0.0], [0.9, 0.3]])
    loss, rows, right = soft_cross_entropy(logits, scores, jnp.asarray([1.0, 0.0]))
    p = 1 / (1 + np.exp(-np.asarray([2.0, -1.0])))
    expected = -(0.6 * np.log(p[0]) + 0.4 * np.log(1 - p[0]) + np.log(1 - p[1]))
    assert float(loss) == pytest.approx(expected, rel=1e-6) and float(rows) == 1 and float(right) == pytest.approx(0.6)

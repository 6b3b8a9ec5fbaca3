"""CoCa: the paper's parameter counts, its two losses, what CLS sees, and what a model claims."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from simvlm_jax.core.trees import partition
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.models.coca import CoCa
from tests.laws.cases import V
from tests.laws.steps import make


@functools.partial(jax.jit, static_argnums=0)
def learned(model, params, batch):
    """(features, terms) of a batch of pairs."""
    return model.per_example(params, {}, {"pairs": batch}, rngs=jax.random.key(0), step=0, train=True)[:2]


def test_parameter_counts_are_the_papers():
    """Table 1, in millions: encoder 86, 303 and 1B; decoder (both halves, embedding and softmax) 297, 484 and 1.1B."""
    for size, encoder, decoder in (("base", 86, 297), ("large", 303, 484), ("2b", 1012, 1090)):
        params, _ = jax.eval_shape(
            lambda key, size=size: CoCa(Vocabulary(64_000, 64), 288, size=size).init(key, {}), jax.random.key(0)
        )
        parts = {k: sum(np.prod(x.shape) for x in jax.tree.leaves(v)) / 1e6 for k, v in nn.unbox(params).items()}
        made = sum(parts.get(k, 0) for k in ("lower", "upper", "embedding", "softmax"))
        assert parts["image_tower"] == pytest.approx(encoder, abs=1)
        assert made == pytest.approx(decoder, abs=1)


def test_losses_are_weighted_one_to_two_and_written_out(float64, text_batch):
    batch = text_batch(6)
    batch["weight"][2] = 0
    model, params = make(CoCa(V, 32), batch)
    features, terms = learned(model, params, batch)
    more, _ = model.across_batch(params, {}, features, step=0, train=True)
    assert (terms["caption"].weight, more["contrastive"].weight) == (2.0, 1.0)
    real = np.flatnonzero(batch["weight"])
    x, y = (np.asarray(features[k]["features"])[real] for k in ("image", "text"))
    logits = x @ y.T * np.exp(params["logit_scale"]["log"])
    by_hand = -sum(np.log(np.exp(z.diagonal()) / np.exp(z).sum(1)).sum() for z in (logits, logits.T))
    assert float(more["contrastive"].sum) == pytest.approx(by_hand, rel=1e-10)
    scores = jax.jit(model.score_text)(params, {}, {**batch, "prefix_length": np.zeros(6, np.int32)})
    assert float(terms["caption"].sum) == pytest.approx(-float(scores[real].sum()), rel=1e-10)
    assert int(terms["caption"].count) == batch["text_mask"][real].sum()  # pieces and EOS; neither CLS nor padding


def test_a_loss_of_weight_zero_is_not_made(float64, text_batch):
    batch = text_batch(4)
    model, params = make(CoCa(V, 32), batch)
    both = learned(model, params, batch)
    pairs = dataclasses.replace(model, caption_weight=0.0)
    features, terms = learned(pairs, params, batch)
    assert terms == {}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), features, both[0])
    alone = dataclasses.replace(model, contrastive_weight=0.0)
    features, terms = learned(alone, params, batch)
    assert features == {} and float(terms["caption"].sum) == pytest.approx(float(both[1]["caption"].sum), rel=1e-12)
    assert alone.across_batch(params, {}, features, step=0, train=True) == ({}, {})
    costs = [m.train_flops({"pairs": batch}) for m in (model, pairs, alone)]
    assert costs[0] > max(costs[1:])


def test_cls_sees_pieces_alone_and_nothing_sees_it(float64, text_batch):
    batch = text_batch(4)
    model, params = make(CoCa(V, 32), batch)
    inputs, valid = model.lay_out(batch["text"], batch["text_mask"])
    states, text = model.apply(params, "read", inputs, valid)
    elsewhere = {**params, "cls": {"tokens": params["cls"]["tokens"][:, ::-1]}}
    other_states, other_text = model.apply(elsewhere, "read", inputs, valid)
    np.testing.assert_array_equal(states, other_states)
    assert np.abs(np.asarray(text - other_text)).max() > 1e-3
    row = int(np.argmin(valid.sum(1)))
    end = int(valid[row].sum())
    assert end < valid.shape[1]
    padded = inputs.at[row, end:].set(7)  # what stands in the padding
    np.testing.assert_allclose(model.apply(params, "read", padded, valid)[1], text, atol=1e-14)
    last = inputs.at[row, end - 1].set(7)  # the last piece
    assert np.abs(np.asarray(model.apply(params, "read", last, valid)[1] - text))[row].max() > 1e-6


def test_the_probe_learns_alone(float64, text_batch):
    """With a label nothing but the classifier is learned, and with the rest frozen only the probe moves."""
    from simvlm_jax.core.trees import match

    batch = {**text_batch(8), "label": np.asarray([0, 1, 2, -1, 0, 1, 2, 0], np.int32)}
    model, params = make(CoCa(V, 32, classes=3), batch)
    features, terms = learned(model, params, batch)
    assert features == {} and set(terms) == {"classify"} and int(terms["classify"].count) == 7
    logits = np.asarray(model.capabilities()["classify"](params, {}, {"image": batch["image"]}))
    assert logits.shape == (8, 3) and np.abs(logits[0] - logits[1]).max() > 1e-6
    flags = match(params, (("probe_", True),), False)
    assert set(partition(params, flags)[0]) == {"probe_pool", "probe_head"}
    with pytest.raises(ValueError, match="no head to classify with"):
        dataclasses.replace(model, classes=0).per_example(
            params, {}, {"pairs": batch}, rngs=jax.random.key(0), step=0, train=True
        )


def test_it_claims_what_it_was_trained_for(float64, text_batch):
    captions = {"prefill", "extend", "score_text", "attention"}
    pairs = {"embed_image", "embed_text", "similarity", "logit_scale"}

    def able(**weights):
        return set(CoCa(V, 32, **weights).capabilities())

    assert captions | pairs <= able()
    assert not able(caption_weight=0.0) & captions and pairs <= able(caption_weight=0.0)
    assert not able(contrastive_weight=0.0) & pairs and captions <= able(contrastive_weight=0.0)
    batch = text_batch(2)
    model, params = make(CoCa(V, 32, caption_weight=0.0), batch)
    image, text = (jax.jit(getattr(model, f"embed_{k}"))(params, {}, batch) for k in ("image", "text"))
    expected = np.concatenate([image, text, image * text], axis=1)  # of what was learned alone
    found = jax.jit(model.pair_features)(params, {}, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # float64: another program rounds sums elsewhere


def test_where_words_look(float64, text_batch):
    batch = text_batch(3)
    model, params = make(CoCa(V, 32), batch)
    weights = np.asarray(jax.jit(model.attention)(params, {}, batch))
    assert weights.shape == (3, 12, 4)
    np.testing.assert_allclose(weights.sum(-1)[batch["text_mask"]], 1, atol=1e-10)


def test_bad_input_is_named(text_batch):
    with pytest.raises(ValueError, match="size 'huge' is not one of tiny, base, large, 2b"):
        CoCa(V, 32, size="huge")
    batch = text_batch(2, image=0)
    with pytest.raises(ValueError, match="these rows have no image"):
        CoCa(V, 32).per_example({}, {}, {"pairs": batch}, rngs=jax.random.key(0), step=0, train=True)
    with pytest.raises(ValueError, match="leaves room for 8 of 12, not 9"):
        CoCa(V, 32).prefill({}, {}, {"text": np.zeros((1, 4)), "text_mask": np.zeros((1, 4), bool)}, 9)

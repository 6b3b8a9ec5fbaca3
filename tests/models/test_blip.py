"""BLIP: the paper's parameter counts, what the modes share, its three losses written out, momentum and queues, questions, frames."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import Vocabulary
from simvlm_jax.models import blip as blip_model
from simvlm_jax.models.blip import BLIP, DEC, ENC, SHARING
from simvlm_jax.objectives.cross_entropy import linear_cross_entropy
from simvlm_jax.objectives.matching import FLOOR, hard_negatives
from tests.laws import language
from tests.laws.cases import V
from tests.laws.steps import count, make, started, steps
from tests.train.test_extra import same as same_trees

QUEUE = 16
PIXELS = 1e-6
"""Pixels are normalised in float32, whose last bit depends on what a program fuses them with; the rest is float64."""


def blip(**fields):
    return BLIP(V, 32, queue=QUEUE, **fields)


@functools.partial(jax.jit, static_argnums=0)
def halves(model, params, extra, batch, step=0):
    """(features, terms of both halves) of a batch of pairs."""
    how = dict(step=step, train=True)
    features, terms, _ = model.per_example(params, extra, {"pairs": batch}, rngs=jax.random.key(0), **how)
    return features, {**terms, **model.across_batch(params, extra, features, **how)[0]}


def state(batch, **fields):
    """(model, params, extra) with momentum encoders that are elsewhere."""
    model = dataclasses.replace(blip(**fields), compute=make(blip(), batch)[0].compute)
    params, extra = started(model, {"pairs": batch})
    if extra:
        rng = np.random.default_rng(3)
        move = lambda x: np.asarray(x) + 0.05 * rng.normal(size=x.shape)  # noqa: E731
        extra = {**extra, "momentum": jax.tree.map(move, extra["momentum"])}
    return model, params, extra


@pytest.fixture
def batch(text_batch):
    made = text_batch(6)
    made["weight"][2] = 0
    made["id"] = np.asarray([0, 1, 2, 3, 4, 1])
    return {k: v for k, v in made.items() if k != "prefix_length"}


def test_parameter_counts_are_the_papers():
    """Table 3, in millions, of ViT-B."""
    for sharing, millions in (("all", 224), ("all_but_cross", 252), ("all_but_self", 252), ("none", 361)):
        model = BLIP(Vocabulary(30_522, 29, 0, 101, 102), 224, size="base", sharing=sharing)
        assert count(model) / 1e6 == pytest.approx(millions, abs=0.5), sharing


@pytest.mark.parametrize("sharing", SHARING)
def test_what_is_shared_is_one_and_the_rest_is_two(float64, batch, sharing):
    """Moving a parameter of the encoder moves the decoder just where the two share it."""
    model, params, _ = state(batch, sharing=sharing)
    own = set(params.get("decoder", {}).get("layer_0", {}))
    assert own == set(SHARING[sharing]) and ("decoder_inputs" in params) == (sharing == "none")
    score = jax.jit(model.score_text)
    rows = {**batch, "prefix_length": np.zeros(6, np.int32)}
    before = np.asarray(score(params, {}, rows))
    for part in SHARING["none"]:
        layers = dict(params["encoder"])
        layers["layer_1"] = {**layers["layer_1"], part: jax.tree.map(lambda x: 1.1 * x, layers["layer_1"][part])}
        moved = np.abs(np.asarray(score({**params, "encoder": layers}, {}, rows)) - before).max() > 1e-9
        assert moved == (part not in SHARING[sharing]), part
    stored = model.stored(dict(model.completed(params)))
    jax.tree.map(np.testing.assert_array_equal, stored, params)


def found(model, name, *args):
    """A method of a model, compiled, for pixels are normalised in float32, and a program of its own rounds elsewhere."""
    return jax.tree.map(np.asarray, jax.jit(getattr(model, name))(*args))


def test_the_contrast_is_written_out(float64, batch):
    """Soft targets of the momentum encoders over batch and queue; a share that grows with the steps; both directions."""
    model, params, extra = state(batch, ramp=4, matching_weight=0.0, caption_weight=0.0)
    real, scale = batch["weight"] > 0, 1 / float(params["temperature"]["divisor"])
    online = [found(model, f"embed_{k}", params, extra, batch) for k in ("image", "text")]
    slow = {**params, **extra["momentum"]}
    slow["encoder"] = {k: {**params["encoder"][k], **v} for k, v in extra["momentum"]["encoder"].items()}
    momentum = [found(model, f"embed_{k}", slow, extra, batch) for k in ("image", "text")]
    queues = [np.asarray(extra["queue"][k]) for k in ("image", "text")]
    for step, share in ((0, 0.0), (1, 0.1), (4, 0.4), (9, 0.4)):
        loss = 0.0
        for a, b in ((0, 1), (1, 0)):
            columns = np.concatenate([momentum[b][real], queues[b]])
            target = np.eye(real.sum(), len(columns)) * (1 - share)
            wanted = np.exp(scale * momentum[a][real] @ columns.T)
            target += share * wanted / wanted.sum(1, keepdims=True)
            logits = scale * online[a][real] @ columns.T
            loss -= (target * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum() / 2
        _, terms = halves(model, params, extra, batch, step)
        term = terms["contrastive"]
        assert float(term.weight * term.sum) == pytest.approx(loss, rel=PIXELS) and float(term.count) == real.sum()


def test_texts_of_one_image_are_all_its_own_where_ids_say_so(float64, batch):
    """Retrieval fine-tuning: rows 1 and 5 are of one image, and so is one of the queue."""
    model, params, extra = state(batch, same_image=True, soft=0.0, matching_weight=0.0, caption_weight=0.0)
    extra["queue"] = {**extra["queue"], "id": np.asarray(extra["queue"]["id"]).copy()}
    extra["queue"]["id"][3] = 4
    features, terms = halves(model, params, extra, batch)
    real, scale = batch["weight"] > 0, 1 / float(params["temperature"]["divisor"])
    ids, loss = batch["id"][real], 0.0
    for a, b in (("image", "text"), ("text", "image")):
        columns = np.concatenate([np.asarray(features[b]["momentum"])[real], np.asarray(extra["queue"][b])])
        positive = ids[:, None] == np.concatenate([ids, extra["queue"]["id"]])[None]
        logits = scale * np.asarray(features[a]["online"])[real] @ columns.T
        likely = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        loss -= (likely * positive / positive.sum(1, keepdims=True)).sum() / 2
    assert positive.sum(1).tolist() == [1, 2, 1, 2, 2]
    assert float(terms["contrastive"].weight * terms["contrastive"].sum) == pytest.approx(loss, rel=PIXELS)


def test_hard_negatives_are_drawn_by_how_alike_they_are():
    logits = jnp.asarray([[0.0, 1.0, 2.0, 3.0]] * 20_000)
    allowed = jnp.asarray([[False, True, True, False]] * 20_000)
    drawn, there = hard_negatives(logits, allowed, np.arange(20_000, dtype=np.uint32))
    p = np.exp([1.0, 2.0]) / np.exp(np.arange(4.0)).sum() + FLOOR
    assert np.bincount(np.asarray(drawn), minlength=4) / 20_000 == pytest.approx([0, *(p / p.sum()), 0], abs=0.01)
    assert there.all() and not hard_negatives(logits[:2], allowed[:2] & False, np.arange(2, dtype=np.uint32))[1].any()
    again, _ = hard_negatives(logits, allowed, np.arange(20_000, dtype=np.uint32), 1)
    assert (np.asarray(drawn) != np.asarray(again)).mean() > 0.3  # another draw from the same seeds


def test_matching_is_asked_of_pairs_and_of_hard_negatives_of_other_images(float64, batch):
    """3 B pairs, a third of which match; never padding, and never a text or an image of the same id."""
    model, params, extra = state(batch, caption_weight=0.0)
    features, terms = halves(model, params, extra, batch)
    real = batch["weight"] > 0
    allowed = (batch["id"][:, None] != batch["id"][None]) & real[None]
    alike = [np.asarray(model.alike(params, features, *k)) for k in (("text", "image"), ("image", "text"))]
    (image, a), (text, b) = (hard_negatives(x, jnp.asarray(allowed), batch["seed"], i) for i, x in enumerate(alike))
    assert np.asarray(a).all() and np.asarray(b).all()
    own = np.arange(6)
    loss = 0.0
    for images, texts, match in ((own, own, 1), (np.asarray(image), own, 0), (own, np.asarray(text), 0)):
        rows = {"image": batch["image"][images], **{k: batch[k][texts] for k in ("text", "text_mask")}}
        odds = np.asarray(jax.jit(model.score_pair)(params, extra, rows))[real]
        loss += np.log1p(np.exp(-odds if match else odds)).sum()
        assert match or (batch["id"][images][real] != batch["id"][texts][real]).all()
        assert real[images[real]].all() and real[texts[real]].all()
    assert float(terms["matching"].sum) == pytest.approx(loss, rel=PIXELS)
    assert float(terms["matching"].count) == 3 * real.sum()


def test_negatives_may_be_sought_in_the_queue_and_below_a_bound(float64, batch):
    """Texts that were seen before, but those of the row's own image, equal ones, and those that are nearly as alike as its own."""
    model, params, extra = state(batch, caption_weight=0.0, queued_texts=True, momentum=0.0)
    features, first = halves(model, params, extra, batch)
    assert not np.asarray(extra["queue"]["valid"]).any()  # nothing is there to be drawn
    plain = dataclasses.replace(model, queued_texts=False)
    assert float(first["matching"].sum) == pytest.approx(
        float(halves(plain, params, extra, batch)[1]["matching"].sum), rel=PIXELS
    )
    extra = jax.jit(model.after_update)(params, extra, features, step=0, rng=None)
    assert np.asarray(extra["queue"]["pieces"])[0, 1:].tolist() == batch["text"][0].tolist()
    other = {**batch, "id": np.asarray([10, 1, 12, 3, 14, 15])}  # row 0's text stands in the queue under another id
    features = halves(model, params, extra, other)[0]

    def drawn(model):
        with mock.patch.object(blip_model, "hard_negatives", wraps=hard_negatives) as spy:
            model._matching(params, extra, features, False)
        return [(np.asarray(c.args[0]), np.asarray(c.args[1])) for c in spy.call_args_list]

    (_, images), (alike, texts) = drawn(model)
    assert images.shape == (6, 6) and texts.shape == (6, 6 + QUEUE)
    assert not texts[:, 6 + 5 :].any()  # five were put there, for one row is padding
    assert not texts[1, 6 + 1] and not texts[3, 6 + 2] and not texts[0, 6]  # of its own image, and its own text again
    assert texts[0, 6 + 1] and not texts[0, 0] and not texts[:, 2].any()
    bounded = dataclasses.replace(model, below=0.5)
    for (alike, allowed), (_, before) in zip(drawn(bounded), drawn(model), strict=True):
        own = alike.diagonal()[:, None]
        np.testing.assert_array_equal(allowed, before & (alike < np.minimum(0.5 * own, own)))


def test_captions_are_learned_with_smoothed_labels_and_without_their_prompt(float64, batch):
    model, params, extra = state(batch)
    _, terms = halves(model, params, extra, batch)
    _, prompted = halves(model, params, extra, {**batch, "prefix_length": np.minimum(2, batch["text_mask"].sum(1) - 1)})
    real = batch["weight"] > 0
    told = found(model, "teacher_forced", params, batch)
    logits = told.states @ told.table.T
    assert logits.shape[-1] == V.size  # neither [DEC] nor [ENC] is ever written
    likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(likely, batch["text"][..., None], axis=-1)[..., 0]
    each = -(0.9 * chosen + 0.1 * likely.mean(-1)) * batch["text_mask"]
    assert float(terms["caption"].sum) == pytest.approx(each[real].sum(), rel=PIXELS)
    assert float(prompted["caption"].sum) == pytest.approx(each[real][:, 2:].sum(), rel=PIXELS)
    assert int(prompted["caption"].count) == batch["text_mask"][real][:, 2:].sum()


@pytest.mark.parametrize("chunk", [8, 64])
def test_smoothing_needs_no_logits(float64, chunk):
    rng = np.random.default_rng(0)
    x, table, targets = rng.normal(size=(2, 3, 4)), rng.normal(size=(20, 4)), rng.integers(0, 20, (2, 3))
    loss, number, _ = linear_cross_entropy(x, table, targets, np.ones((2, 3)), chunk, smoothing=0.1)
    logits = x @ table.T
    likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    by_hand = 0.9 * np.take_along_axis(likely, targets[..., None], -1).sum() + 0.1 * likely.mean(-1).sum()
    assert float(loss) == pytest.approx(-by_hand, rel=1e-12) and number == 6


@pytest.mark.parametrize(("accumulate", "mesh"), [(2, (1, 1, 1)), (1, (2, 2, 2))], ids=["accumulated", "2x2x2"])
def test_momentum_and_queues_are_those_of_one_device(float64, batch, accumulate, mesh):
    model, params, extra = state(batch)
    rows = {k: np.concatenate([v, v[:2]]) for k, v in batch.items()}
    rows["id"] = np.arange(8)

    def after(accumulate, mesh):
        return steps(model, (params, extra), {"pairs": rows}, 3, accumulate=accumulate, mesh=mesh)

    whole = after(1, (1, 1, 1))
    same_trees(after(accumulate, mesh), whole)
    moved, beside = whole
    assert beside["next"] == 3 * 7 % QUEUE  # padding takes no place
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), beside["momentum"], model.followed(moved))
    assert max(jax.tree.leaves(gaps)) > 1e-8 and "cross_attention" not in beside["momentum"]["encoder"]["layer_0"]


def test_a_batch_larger_than_its_queue_is_refused(float64, batch):
    model, params, extra = state(batch)
    features, _ = halves(model, params, extra, batch)
    small = {**extra, "queue": {k: v[:4] for k, v in extra["queue"].items()}}
    with pytest.raises(ValueError, match="a batch of 6 rows does not fit a queue of 4"):
        model.after_update(params, small, features, step=0, rng=None)


def test_without_a_queue_it_is_contrast_within_the_batch(float64, batch):
    model, params, extra = state(batch, caption_weight=0.0)
    alone = dataclasses.replace(model, queue=0)
    assert alone.init(jax.random.key(0), {})[1] == {} and extra
    features, terms = halves(alone, params, {}, batch)
    real, scale = batch["weight"] > 0, 1 / float(params["temperature"]["divisor"])
    x, y = (np.asarray(features[k]["online"])[real] for k in ("image", "text"))
    logits = scale * x @ y.T
    by_hand = -sum(np.log(np.exp(z.diagonal()) / np.exp(z).sum(1)).sum() for z in (logits, logits.T)) / 2
    assert float(terms["contrastive"].weight * terms["contrastive"].sum) == pytest.approx(by_hand, rel=PIXELS)
    assert alone.after_update(params, {}, features, step=0, rng=None) == {}


QUESTION = dict(question=True, contrastive_weight=0.0, matching_weight=0.0)


def test_questions_are_answered_by_a_decoder_that_looks_at_them(float64, text_batch):
    batch = {k: v for k, v in text_batch(6).items() if k not in ("id",)}
    model, params, extra = state(batch, **QUESTION)
    assert extra == {} and "attention" not in model.capabilities()
    language.cached_is_uncached(model, params, extra, {k: x[:4] for k, x in batch.items()}, 1e-12)
    _, terms = halves(model, params, extra, batch)
    answer = batch["text_mask"] & (np.arange(12) >= batch["prefix_length"][:, None])
    assert int(terms["caption"].count) == answer.sum()
    score = jax.jit(model.score_text)
    before, other = np.asarray(score(params, extra, batch)), {**batch, "text": batch["text"].copy()}
    row = int(np.argmax(batch["prefix_length"]))
    other["text"][row, 0] = other["text"][row, 0] % 40 + 5  # another question
    moved = np.abs(np.asarray(score(params, extra, other)) - before) > 1e-9
    assert moved.tolist() == [i == row for i in range(6)]
    tokens, valid = model._asked(jnp.asarray([[7, 8, 9]]), jnp.asarray([[True, True, False]]))
    assert tokens.tolist()[0][:4] == [V.size + ENC, 7, 8, V.eos] and valid.tolist() == [[True] * 4 + [False]]
    first = model._writing(batch).inputs
    assert (np.asarray(first[:, 0]) == V.size + DEC).all()


def test_frames_are_read_one_after_another(float64, text_batch):
    """A row of several images: their tokens in a row, the mean of their vectors; a frame that is masked is not there."""
    batch = text_batch(4)
    frames = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32, 3), dtype=np.uint8)
    rows = {**batch, "image": frames, "prefix_length": np.zeros(4, np.int32)}
    model, params, extra = state(batch)
    two = {**rows, "image": frames[:, :2]}
    masked = {**rows, "image_mask": np.asarray([[True, True, False]] * 4)}
    for able in ("embed_image", "score_pair", "score_text"):
        all_three, first_two, hidden = (found(model, able, params, extra, x) for x in (rows, two, masked))
        np.testing.assert_allclose(hidden, first_two, atol=10 * PIXELS)
        assert np.abs(all_three - first_two).max() > 1e-4
    one = [found(model, "embed_image", params, extra, {**rows, "image": frames[:, i : i + 1]}) for i in range(3)]
    assert (found(model, "embed_image", params, extra, rows) * np.sum(one, axis=0)).sum(-1).min() > 0.5
    states = found(model, "image_states", params, extra, rows)
    given = {k: v for k, v in rows.items() if k != "image"} | {"image_states": states}
    expected = found(model, "score_pair", params, extra, rows)
    np.testing.assert_allclose(found(model, "score_pair", params, extra, given), expected, atol=10 * PIXELS)


def test_it_starts_from_one_that_shares_more(float64, batch):
    """A captioner, and one whose halves share nothing, begin with what a pre-trained one shares."""
    model, params, _ = state(batch)
    rows = {**batch, "prefix_length": np.zeros(6, np.int32)}
    wanted = found(model, "score_text", params, {}, rows)
    for fields in (dict(sharing="none"), dict(contrastive_weight=0.0, matching_weight=0.0)):
        other = dataclasses.replace(model, **fields)
        target, _ = started(other, {"pairs": batch})
        taken = other.adapt(dict(params), target)
        taken = {k: v for k, v in taken.items() if k in target}
        assert jax.tree.map(np.shape, taken) == jax.tree.map(np.shape, target)
        np.testing.assert_allclose(found(other, "score_text", taken, {}, rows), wanted, rtol=PIXELS)


def test_it_claims_what_it_was_trained_for():
    writes, contrasts = {"prefill", "extend", "score_text", "attention"}, {"embed_image", "embed_text", "similarity"}
    able = lambda **f: set(blip(**f).capabilities())  # noqa: E731
    assert writes | contrasts | {"score_pair", "image_states"} <= able()
    assert not able(caption_weight=0.0) & writes
    assert not able(contrastive_weight=0.0, matching_weight=0.0) & (contrasts | {"score_pair"})


def test_bad_input_is_named(float64, batch):
    with pytest.raises(ValueError, match="sharing 'some' is not one of all, all_but_cross"):
        blip(sharing="some")
    with pytest.raises(ValueError, match="give contrastive_weight too"):
        blip(contrastive_weight=0.0)
    with pytest.raises(ValueError, match="set contrastive_weight=0, matching_weight=0"):
        blip(question=True)
    with pytest.raises(ValueError, match="do not fit 512 positions"):
        BLIP(Vocabulary(100, 600), 224, size="base")
    model, params, extra = state(batch)
    with pytest.raises(ValueError, match=r"add transforms\.DrawSeed"):
        halves(model, params, extra, {k: v for k, v in batch.items() if k != "seed"})
    with pytest.raises(ValueError, match="needs rows with a prefix_length"):
        halves(*state(batch, **QUESTION), batch)


def test_two_images_begin_as_their_mean(float64, text_batch):
    """From a pre-trained BLIP with the same image twice, the states are those of its image-grounded encoder."""
    from simvlm_jax.families.med import looked_at
    from simvlm_jax.models.blip_nlvr import BLIPPairs

    batch = text_batch(4)
    model, params, extra = state(batch)
    pairs = BLIPPairs(V, 32, compute=model.compute)
    target, _ = started(pairs, {"pairs": {**batch, "image": np.repeat(batch["image"], 2, axis=1)}})
    eye = np.concatenate([np.eye(128), np.eye(128)]) / 2
    target["layer_1"] = {**target["layer_1"], "merge": eye, "merge_bias": np.zeros(128)}
    taken = pairs.adapt(dict(params), target)
    ready = {k: {**target[k], **v} for k, v in taken.items()} | {k: target[k] for k in ("hidden", "head")}
    assert jax.tree.map(np.shape, ready) == jax.tree.map(np.shape, target)
    rows = {**batch, "image": np.repeat(batch["image"], 2, axis=1)}
    tokens, valid = pairs.lay_out(batch["text"], batch["text_mask"])
    states = model.image_states(params, extra, batch)
    first = model.apply(params, "grounded", tokens, valid, looked_at(states))[:, 0]
    hidden = np.maximum(np.asarray(first) @ ready["hidden"]["kernel"] + ready["hidden"]["bias"], 0)
    expected = hidden @ ready["head"]["kernel"] + ready["head"]["bias"]
    np.testing.assert_allclose(found(pairs, "classify", ready, {}, rows), expected, atol=100 * PIXELS)
    other = {**rows, "image": rows["image"].copy()}
    other["image"][:, 1] = 255 - other["image"][:, 1]
    assert np.abs(found(pairs, "classify", ready, {}, other) - expected).max() > 1e-3
    with pytest.raises(ValueError, match="takes 2 images a row"):
        pairs.classify(ready, {}, batch)

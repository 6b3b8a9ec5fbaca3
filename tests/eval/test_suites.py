"""Evaluators against models that know the answer: exact denominators, slices, controls, and what a model lacks."""

import jax
import numpy as np
import pytest

from simvlm_jax.core.types import BaseModel
from simvlm_jax.data.pipeline import TooManyBadExamples
from simvlm_jax.data.transforms import FixPrefix, Pixels, Tokenize
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.eval.answering import Classification, Generation, Ranking
from simvlm_jax.eval.captioning import Captioning
from simvlm_jax.eval.engine import MissingCapability
from simvlm_jax.eval.final import evaluate, make_examples
from simvlm_jax.eval.likelihood import GenerativeClassifier
from simvlm_jax.eval.metrics.logistic import best_c, fit
from simvlm_jax.eval.provenance import differences, fingerprint
from simvlm_jax.eval.suite import Examples
from simvlm_jax.eval.translation import Translation
from tests.eval.stub import ListSource, Stub, engine, tokenizer

LABELS = ("yes", "no", "red")


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


def examples(suite, rows, **how):
    return make_examples(suite, "test", ListSource(rows), Pixels(8), 0, 0.05, None, **how)


def classification(tok):
    return Classification(transforms=(Tokenize(tok, "question"), FixPrefix(True)))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("count", "batch_size"), [(13, 4), (3, 8), (8, 8), (1, 5)])
def test_the_last_batch_counts_each_row_once(tok, devices, count, batch_size):
    rows = [{"first": i % 3, "question": "is it red?", "answer": LABELS[0], "kind": "ab"[i % 2]} for i in range(count)]
    suite = classification(tok)
    asked = engine(Stub(tok, 3), tok, LABELS, batch_size, jax.devices()[:devices])
    answered = suite.answers(asked, examples(suite, rows))
    assert [a.text for _, a in answered] == [LABELS[i % 3] for i in range(count)]
    outcome = suite.outcome(asked, answered)
    assert outcome.scores["accuracy"] == pytest.approx(len(range(0, count, 3)) / count)
    assert sum(outcome.confusion.values()) == count and outcome.confusion["yes", "yes"] == len(range(0, count, 3))
    even = [i % 3 == 0 for i in range(0, count, 2)]
    assert outcome.scores["accuracy_a"] == pytest.approx(np.mean(even))


def test_answers_outside_the_list_are_wrong_and_counted_apart(tok):
    rows = [
        {"first": i % 2, "question": "what colour?", "answer": a} for i, a in enumerate(("yes", "no", "blue", "blue"))
    ]
    suite, asked = classification(tok), engine(Stub(tok, 3), tok, LABELS)
    scores = suite.outcome(asked, suite.answers(asked, examples(suite, rows))).scores
    assert scores == {"accuracy": 0.5, "accuracy_in_list": 1.0, "accuracy_out_of_list": 0.0}


def test_ten_people_are_scored_as_vqa_scores_them(tok):
    people = ["yes"] * 2 + ["no"] * 8
    rows = [{"first": 0, "question": "is it red?", "answers": people}, {"first": 1, "question": "?", "answers": people}]
    suite, asked = classification(tok), engine(Stub(tok, 3), tok, LABELS)
    assert suite.outcome(asked, suite.answers(asked, examples(suite, rows))).scores["accuracy"] == pytest.approx(0.8)


def test_generated_and_ranked_answers(tok):
    says = ("yes", "a red dog", "blue")
    rows = [{"first": i, "question": "what colour?" * (1 + 9 * i), "answer": a} for i, a in enumerate(says)]
    asked = engine(Stub(tok, says=says), tok, ("yes", "blue", "a red dog"), 2)
    for suite in (Generation(how=Decoding(max_length=10)), Ranking(), Ranking(shortlist=2), Ranking(per_piece=True)):
        answered = suite.answers(asked, examples(suite, rows))
        assert [a.text for _, a in answered] == list(says), suite
        assert suite.outcome(asked, answered).scores["accuracy"] == 1
    scores = asked.likelihoods(np.zeros((1, 1, 8, 8, 3), np.uint8), ["is it red?"], ["yes", "blue"])[0]
    ids = [*tok.encode("yes"), tok.vocabulary.eos]
    normaliser = np.log(np.exp(4) + tok.vocabulary.size - 1)
    assert scores[0] == pytest.approx(4 * len(ids) - len(ids) * normaliser, rel=1e-5)
    wrong = [*tok.encode("blue"), tok.vocabulary.eos]
    hits = sum(a == b for a, b in zip(wrong, [*ids, *[tok.vocabulary.eos] * 9], strict=False))
    assert scores[1] == pytest.approx(4 * hits - len(wrong) * normaliser, rel=1e-5)


def test_a_generative_classifier_divides_by_what_is_likely_anyway(tok):
    """The grey image (127) makes the model say "yes" as well, so that only the gain over it tells classes apart."""
    rows = [{"first": 1, "label": "red"}, {"first": 1, "label": "red"}, {"first": 2, "label": "yes"}]
    asked = engine(Stub(tok, says=("blue", "red", "blue")), tok)  # 127 % 3 = 1: grey says "red" too
    plain = GenerativeClassifier(template="{name}", prior="none", classes=("yes", "red"))
    made = [a.text for _, a in plain.answers(asked, examples(plain, rows))]
    assert made[:2] == ["red", "red"]
    gain = GenerativeClassifier(template="{name}", classes=("yes", "red"))
    answered = gain.answers(asked, examples(gain, rows))
    assert answered[0][1].n_best[0][1] == pytest.approx(0, abs=1e-4)  # the image says what grey says: no gain
    with pytest.raises(ValueError, match="not none or blank"):
        GenerativeClassifier(prior="other")


def test_captions_and_their_controls(tok):
    says = ("a red dog", "a blue cat")
    rows = [
        {"first": i % 2, "captions": [says[i % 2], "a dog"], "domain": ("in-domain", "out-domain")[i % 2]}
        for i in range(6)
    ]
    suite, asked = Captioning(how=Decoding(max_length=12)), engine(Stub(tok, says=says), tok)
    lines = []
    made, outcome = evaluate(
        asked, "captions", suite, examples(suite, rows), 7, texts=lambda: ["a dog", "a red dog"], say=lines.append
    )
    plain, blind, constant = made
    assert [e["control"] for e in made] == [None, "blind", "constant"] and len(lines) == 3
    assert plain["scores"]["bleu1"] == pytest.approx(1) and blind["scores"]["bleu1"] < 1
    assert constant["provenance"]["decoding"] == {"constant": "a red dog"}
    assert {"cider_in", "cider_out"} <= set(plain["scores"])
    mean = np.mean([plain["scores"]["cider_in"], plain["scores"]["cider_out"]])
    assert plain["scores"]["cider"] == pytest.approx(mean)  # as many of each
    assert plain["provenance"]["checkpoint"] == 7 and blind["provenance"]["preprocessing"]["blind"]
    assert len(outcome.items) == 6


def test_a_prompt_begins_every_caption_and_a_forced_start_too(tok):
    rows = [{"first": 0, "captions": ["x"]}]
    asked = engine(Stub(tok, says=("blue",)), tok)
    prompted = Captioning(prompt="a red", how=Decoding(max_length=6))
    assert prompted.answers(asked, examples(prompted, rows))[0][1].text == "a red blue"
    forced = Captioning(forced="a red", how=Decoding(max_length=12))
    assert forced.answers(asked, examples(forced, rows))[0][1].text.startswith("a red")
    with pytest.raises(ValueError, match="leaves room for"):
        long = Captioning(prompt="a red", how=Decoding(max_length=99))
        long.answers(asked, examples(long, rows))


def test_translation(tok):
    rows = [{"first": i, "source": "a red dog", "target": t} for i, t in enumerate(("a red dog", "a blue cat"))]
    suite, asked = Translation(how=Decoding(max_length=12)), engine(Stub(tok, says=("a red dog", "a red cat")), tok)
    assert suite.outcome(asked, suite.answers(asked, examples(suite, rows))).scores["exact"] == 0.5


def test_a_missing_capability_is_named(tok):
    asked = engine(Stub(tok, able=("classify",)), tok)
    suite = Captioning()
    with pytest.raises(MissingCapability, match="generation needs prefill, extend, which Stub lacks"):
        suite.answers(asked, examples(suite, [{"first": 0, "captions": ["x"]}]))
    with pytest.raises(MissingCapability, match="classification needs classify, which BaseModel lacks"):
        classification(tok).answers(engine(BaseModel(), tok), examples(classification(tok), []))


def test_bad_examples_are_left_out_told_and_fatal_in_numbers(tok):
    rows = [{"first": 0, "captions": ["a dog"]} for _ in range(10)]
    rows[3] = {"first": 0, "captions": []}
    told = []
    how = dict(fields=("image", "captions"), record=told.append)
    found = Examples("test", ListSource(rows), Pixels(8), bad=0.1, **how)
    assert sum(len(chunk) for chunk, _ in found.chunks(4)) == 9
    assert told[0]["key"] == "row-3" and "no captions" in told[0]["error"]
    with pytest.raises(TooManyBadExamples, match="1 of 10 examples of 'test' are bad"):
        list(Examples("test", ListSource(rows), Pixels(8), bad=0.05, **how).chunks(4))


def test_a_fingerprint_follows_the_content():
    rows = [{"first": i, "captions": ["a dog"]} for i in range(100)]
    base = fingerprint(Examples("test", ListSource(rows), Pixels(8)))
    assert base == fingerprint(Examples("other name", ListSource(rows), Pixels(8)))
    changed = [*rows[:-1], {"first": 99, "captions": ["a cat"]}]
    others = [fingerprint(Examples("test", ListSource(changed), Pixels(8)))]
    others += [fingerprint(Examples("test", ListSource(rows), Pixels(8), limit=n)) for n in (50, 99)]
    assert len({base, *others[1:]}) == 3


def test_differences_of_provenance():
    a = {"seed": 0, "versions": {"jax": "1", "numpy": "2"}, "data": {"examples": 3}}
    b = {"seed": 0, "versions": {"jax": "2", "numpy": "2"}, "data": {"examples": 3}, "prompt": "a"}
    assert differences(a, b) == [("prompt", None, "a"), ("versions.jax", "1", "2")]


def test_logistic_regression_finds_the_minimum():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = (x @ rng.normal(size=(5, 3)) + rng.normal(size=(200, 3))).argmax(1)
    for c in (1e-3, 1.0, 100.0):
        found = fit(x, y, 3, c)
        p = np.exp(found(x))
        p /= p.sum(1, keepdims=True)
        residual = p - np.eye(3)[y]
        np.testing.assert_allclose(c * x.T @ residual + found.weights, 0, atol=2e-3 * max(c, 1))  # the gradient is zero
        np.testing.assert_allclose(residual.sum(0), 0, atol=1e-3)
        far = fit(x, y, 3, c, fit(x, y, 3, 50.0))
        np.testing.assert_allclose(far.weights, found.weights, atol=1e-4)


def test_logistic_regression_by_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model", reason="parity of probes needs the [parity] extra")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(150, 6))
    y = (x @ rng.normal(size=(6, 4))).argmax(1)
    for c in (0.01, 1.0, 30.0):
        theirs = linear.LogisticRegression(C=c, max_iter=2000, tol=1e-10).fit(x, y)
        ours = fit(x, y, 4, c)
        np.testing.assert_allclose(
            ours(x) - ours(x).mean(1, keepdims=True), theirs.decision_function(x), atol=2e-4 * max(1, c)
        )


def test_the_search_for_c_ends_at_eight_steps_a_decade():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 20))
    y = (x[:, 0] + 2 * rng.normal(size=60) > 0).astype(int)
    c, tried = best_c(x[:30], y[:30], x[30:], y[30:], 2)
    assert tried[c] == max(tried.values()) and {1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6} <= set(tried)
    assert np.log10(c) * 8 == pytest.approx(round(np.log10(c) * 8))

"""Evaluators against models that know the answer: exact denominators, slices, controls, and what a model lacks."""

import json

import jax
import numpy as np
import pytest

from simvlm_jax.cli.eval_diff import compare
from simvlm_jax.core.types import BaseModel
from simvlm_jax.data.pipeline import TooManyBadExamples
from simvlm_jax.data.scenes.examples import make_example
from simvlm_jax.data.scenes.graph import Scene
from simvlm_jax.data.splits import NoSuchSplit
from simvlm_jax.data.transforms import BadTransforms, FixPrefix, Keep, Pixels, Tokenize
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.eval.answering import Classification, Generation, Ranking
from simvlm_jax.eval.captioning import Captioning
from simvlm_jax.eval.final import evaluate, make_examples
from simvlm_jax.eval.hallucination import KINDS, Hallucination
from simvlm_jax.eval.likelihood import GenerativeClassifier
from simvlm_jax.eval.metrics.logistic import best_c, fit
from simvlm_jax.eval.probe import LinearProbe
from simvlm_jax.eval.provenance import differences
from simvlm_jax.eval.suite import Answer, Examples
from simvlm_jax.eval.translation import Translation
from simvlm_jax.infer.engine import MissingCapability
from tests.eval.stub import ListSource, Stub, engine, tokenizer

LABELS = ("yes", "no", "red")
KEEP = Keep(("image", "text", "text_mask", "prefix_length"))


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


def examples(suite, rows, **how):
    return make_examples(suite, "test", ListSource(rows), Pixels(8), 0, 0.05, None, **how)


def classification(tok):
    return Classification(transforms=(Tokenize(tok, "question"), FixPrefix(True), KEEP))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("count", "batch_size"), [(13, 4), (3, 8), (8, 8), (1, 5)])
def test_the_last_batch_counts_each_row_once(tok, devices, count, batch_size):
    rows = [{"first": i % 3, "question": "is it red?", "answer": LABELS[0], "kind": "ab"[i % 2]} for i in range(count)]
    suite = classification(tok)
    asked = engine(Stub(tok, 3), tok, LABELS, batch_size, jax.devices()[:devices])
    answered = suite.answers(asked, examples(suite, rows)).values
    assert [a.text for _, a in answered] == [LABELS[i % 3] for i in range(count)]
    outcome = suite.outcome(asked, answered)
    assert outcome.scores["accuracy"] == pytest.approx(len(range(0, count, 3)) / count)
    assert sum(outcome.confusion.values()) == count and outcome.confusion["yes", "yes"] == len(range(0, count, 3))
    even = [i % 3 == 0 for i in range(0, count, 2)]
    assert outcome.scores["accuracy_a"] == pytest.approx(np.mean(even))


def test_questions_about_a_picture_are_drawn_together(tok):
    """Of two pictures with ten questions each, one is all right; of one picture alone nothing is known."""
    rows = [{"first": i // 10, "question": "is it red?", "answer": "yes", "kind": str(i // 10)} for i in range(20)]
    suite, asked = classification(tok), engine(Stub(tok, 3), tok, LABELS, 8)
    entries, outcome = evaluate(asked, "questions", suite, examples(suite, rows), 0, controls=False)
    assert outcome.scores["accuracy"] == 0.5 and entries[0]["intervals"] == {"accuracy": [0, 1]}
    assert entries[0]["pictures"] == [0] * 10 + [1] * 10 and len(entries[0]["samples"]["accuracy"]) == 20
    better = {**entries[0], "samples": {"accuracy": [1.0] * 20}}
    assert compare(("questions", "test", None), entries[0], better, 0)["intervals"] == {"accuracy": [0, 1]}
    rows = [{**row, "first": i} for i, row in enumerate(rows)]
    (entry,), _ = evaluate(asked, "questions", suite, examples(suite, rows), 0, controls=False)
    assert "pictures" not in entry


def test_few_rows_are_not_filled_up_to_a_large_batch(tok):
    seen = []

    def twice(params, extra, batch):  # is traced once a compilation
        seen.append(len(batch["x"]))
        return 2 * batch["x"]

    def calls(batch_size, *counts):
        seen.clear()
        asked = engine(Stub(tok), tok, (), batch_size, jax.devices()[:2])
        for n in counts:
            assert asked.over(twice, {"x": np.arange(n)}).tolist() == list(range(0, 2 * n, 2))
        return seen

    assert calls(60_000, 1) == [2] and calls(60_000, 5, 1, 8, 3) == [8]
    assert calls(12, 9) == [12]  # no power of two beyond the batch
    assert calls(4, 13, 4, 1, 2) == [4]  # the last batch of many is filled up


def test_answers_outside_the_list_are_wrong_and_counted_apart(tok):
    rows = [
        {"first": i % 2, "question": "what colour?", "answer": a} for i, a in enumerate(("yes", "no", "blue", "blue"))
    ]
    suite, asked = classification(tok), engine(Stub(tok, 3), tok, LABELS)
    scores = suite.outcome(asked, suite.answers(asked, examples(suite, rows)).values).scores
    assert scores == {"accuracy": 0.5, "accuracy_in_list": 1.0, "accuracy_out_of_list": 0.0}


def test_ten_people_are_scored_as_vqa_scores_them(tok):
    people = ["yes"] * 2 + ["no"] * 8
    rows = [{"first": 0, "question": "is it red?", "answers": people}, {"first": 1, "question": "?", "answers": people}]
    suite, asked = classification(tok), engine(Stub(tok, 3), tok, LABELS)
    assert suite.outcome(asked, suite.answers(asked, examples(suite, rows)).values).scores["accuracy"] == pytest.approx(
        0.8
    )


@pytest.mark.parametrize(
    ("people", "worth"),
    [
        (["no", "Yes", "yes"], 1),
        (["no", "yes", "yes"], 1),
        (["no", "no", "yes"], 0),
        (["yes"] * 4, 1),
        (["Yes"] * 9, 1),
    ],
)
def test_few_people_are_no_ten(tok, people, worth):
    """Leaving one out of three, even what all say would be worth 2/3. A class stands for all its spellings."""
    suite, asked = classification(tok), engine(Stub(tok, 3), tok, LABELS)
    rows = [{"first": 0, "question": "is it red?", "answers": people}]
    assert suite.outcome(asked, suite.answers(asked, examples(suite, rows)).values).scores["accuracy"] == worth


def test_generated_and_ranked_answers(tok):
    says = ("yes", "a red dog", "blue")
    rows = [{"first": i, "question": "what colour?" * (1 + 9 * i), "answer": a} for i, a in enumerate(says)]
    asked = engine(Stub(tok, says=says), tok, ("yes", "blue", "a red dog"), 2)
    for suite in (Generation(how=Decoding(max_length=10)), Ranking(), Ranking(shortlist=2), Ranking(per_piece=True)):
        answered = suite.answers(asked, examples(suite, rows)).values
        assert [a.text for _, a in answered] == list(says), suite
        assert suite.outcome(asked, answered).scores["accuracy"] == 1
    scores = asked.likelihoods(np.zeros((1, 1, 8, 8, 3), np.uint8), ["is it red?"], ["yes", "blue"]).values[0]
    ids = [*tok.encode("yes"), tok.vocabulary.eos]
    normaliser = np.log(np.exp(4) + tok.vocabulary.size - 1)
    assert scores[0] == pytest.approx(4 * len(ids) - len(ids) * normaliser, rel=1e-5)
    wrong = [*tok.encode("blue"), tok.vocabulary.eos]
    hits = sum(a == b for a, b in zip(wrong, [*ids, *[tok.vocabulary.eos] * 9], strict=False))
    assert scores[1] == pytest.approx(4 * hits - len(wrong) * normaliser, rel=1e-5)


def test_a_generative_classifier_divides_by_what_is_likely_anyway(tok):
    """A grey image (127) makes the model say "red": of an image that says nothing of either, red is the less likely then."""
    rows = [{"first": 1, "label": "red"}, {"first": 2, "label": "yes"}]
    asked = engine(Stub(tok, says=("yes", "red", "a blue cat")), tok)  # 127 % 3 = 1: grey says what 1 says
    classes = ("yes", "red")
    plain = GenerativeClassifier(template="{name}", prior="none", classes=classes)
    gain = GenerativeClassifier(template="{name}", classes=classes)
    scores = [dict(a.n_best) for _, a in gain.answers(asked, examples(gain, rows)).values]
    raw = [dict(a.n_best) for _, a in plain.answers(asked, examples(plain, rows)).values]
    assert scores[0] == pytest.approx({"yes": 0, "red": 0}, abs=1e-4)  # the image says what grey says: no gain
    assert scores[1]["yes"] > scores[1]["red"]
    assert scores[1]["red"] == pytest.approx(raw[1]["red"] - raw[0]["red"], abs=1e-4)
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
        asked, "captions", suite, examples(suite, rows), 7, texts=lambda: ["a dog", "a red dog"], log=lines.append
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


def test_a_caption_is_what_follows_the_prompt_and_a_forced_start_is_part_of_it(tok):
    rows = [{"first": 0, "captions": ["x"]}]
    asked = engine(Stub(tok, says=("blue",)), tok)
    prompted = Captioning(prompt="a red", how=Decoding(max_length=6))
    assert prompted.answers(asked, examples(prompted, rows)).values[0][1].text == "blue"
    forced = Captioning(forced="a red", how=Decoding(max_length=12))
    assert forced.answers(asked, examples(forced, rows)).values[0][1].text.startswith("a red")
    with pytest.raises(ValueError, match="leaves room for"):
        long = Captioning(prompt="a red", how=Decoding(max_length=99))
        long.answers(asked, examples(long, rows))


def test_translation(tok):
    rows = [{"first": i, "source": "a red dog", "target": t} for i, t in enumerate(("a red dog", "a blue cat"))]
    suite, asked = Translation(how=Decoding(max_length=12)), engine(Stub(tok, says=("a red dog", "a red cat")), tok)
    assert suite.outcome(asked, suite.answers(asked, examples(suite, rows)).values).scores["exact"] == 0.5


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
    def fingerprint(rows, split="test", **how):
        found = Examples(split, ListSource(rows), Pixels(8), **how)
        assert sum(len(chunk) for chunk, _ in found.chunks(7)) == len(found.indices)
        return found.fingerprint

    rows = [{"first": i, "captions": ["a dog", "b"]} for i in range(100)]
    base = fingerprint(rows)
    assert base == fingerprint(rows, "other name") == fingerprint(rows, blind=True)
    others = [
        fingerprint([*rows[:41], {**rows[41], **change}, *rows[42:]])
        for change in ({"captions": ["a", "dogb"]}, {"first": 0})
    ]
    others += [fingerprint(rows, limit=n) for n in (50, 99)]
    assert len({base, *others}) == 5


def test_provenance_tells_weights_and_transforms_apart(tok):
    rows = [{"first": 0, "question": "is it red?", "answer": "yes"}]

    def why(whole=True, params=None):
        suite = Classification(transforms=(Tokenize(tok, "question"), FixPrefix(whole), KEEP))
        asked = engine(Stub(tok, 3), tok, LABELS).with_weights(params or {}, {})
        return evaluate(asked, "vqa", suite, examples(suite, rows), 7, controls=False, log=lambda _: None)[0][0][
            "provenance"
        ]

    changed = [d[0] for d in differences(why(), why(whole=False))]
    assert changed == ["suite.transforms"]
    a, b = why(params={"w": np.zeros(3)}), why(params={"w": np.asarray([0, 0, 1.0])})
    assert [d[0] for d in differences(a, b)] == ["weights"]


def test_a_classifier_gets_the_keys_that_its_transforms_keep(tok):
    rows = [{"first": 1, "question": "is it red?", "answer": "no"}]
    steps = (Tokenize(tok, "question"), FixPrefix(True))
    with pytest.raises(BadTransforms, match=r"'Classification' end with FixPrefix.*end them with Keep"):
        Classification(transforms=steps)
    seen = []
    for keep in (KEEP, Keep(KEEP.keys[1:])):
        suite = Classification(transforms=(*steps, keep))
        asked = engine(Stub(tok, 3), tok, LABELS)
        batches = lambda _, name, batch: seen.append(sorted(batch)) or np.zeros((1, 3))  # noqa: E731
        object.__setattr__(asked, "apply", batches)
        suite.answers(asked, examples(suite, rows))
    assert seen == [sorted(KEEP.keys), sorted(KEEP.keys[1:])]
    suite = Classification(transforms=(*steps, Keep((*KEEP.keys, "seed"))))
    with pytest.raises(BadTransforms, match="'seed', which no transform before it makes"):
        suite.answers(engine(Stub(tok, 3), tok, LABELS), examples(suite, rows))


def test_every_suite_has_the_controls_it_names(tok):
    assert Translation().controls == GenerativeClassifier().controls == LinearProbe().controls == ("blind",)
    assert Captioning().controls == Generation().controls == Hallucination().controls == ("blind", "constant")


def test_answers_are_scored_as_people_wrote_them(tok):
    """Where all ten agree nothing is normalised, so that capitals count."""
    rows = [{"first": 0, "question": "?", "answers": ["New York"] * 10}]
    suite, asked = Generation(), engine(Stub(tok), tok)
    example = {**rows[0], "key": "a", "index": 0}
    assert suite.outcome(asked, [(example, Answer("New York"))]).scores["accuracy"] == 1
    assert suite.outcome(asked, [(example, Answer("new york"))]).scores["accuracy"] == 0


def test_prompts_that_are_cut_are_counted(tok):
    rows = [{"first": 0, "question": "what colour? " * n, "answer": "yes"} for n in (1, 9)]
    suite, asked = Generation(how=Decoding(max_length=10)), engine(Stub(tok), tok)
    made, _ = evaluate(asked, "vqa", suite, examples(suite, rows), 0, controls=False, log=lambda _: None)
    assert made[0]["provenance"]["notes"] == {"prompts_cut": 1}
    assert made[0]["remarks"] == ["prompts that lost their beginning, for want of room before the answer: 1"]
    with pytest.raises(ValueError, match="an answer of 24 pieces leaves no room for a question"):
        Generation(how=Decoding(max_length=24)).answers(asked, examples(suite, rows))
    for free in (Generation(how=Decoding()), Translation(source="question", reference="answer", how=Decoding())):
        with pytest.raises(ValueError, match=r"max_length 0: .* set how\.max_length"):  # the batch would decide it
            free.answers(asked, examples(free, rows))


def test_what_is_cut_or_left_out_is_told_beside_the_score(tok):
    rows = [{"first": i % 2, "question": "what colour? " * (9 * i + 1), "answer": "yes"} for i in range(2)]
    told = []

    def remarks(suite, rows, **how):
        asked = engine(Stub(tok, 3, says=("yes", "a red dog")), tok, LABELS)
        made, _ = evaluate(asked, "x", suite, examples(suite, rows), 0, log=told.append, **how)
        assert all("remarks" not in e for e in made[1:]) and "left_out" not in made[0]["provenance"]["data"]
        assert json.loads(json.dumps(made)) == made  # as results.json has it
        assert "answers_cut" not in made[0]["provenance"]["notes"]  # an outcome, which explains no score
        return made[0]["remarks"]

    assert remarks(classification(tok), rows) == ["texts that lost their end, being longer than config.text.length: 1"]
    assert remarks(Generation(how=Decoding(max_length=3)), [{**r, "question": "?"} for r in rows]) == [
        "answers that max_length ended: 1"
    ]
    rows = [{"first": 0, "question": "?", "answer": "yes"}] * 2 + [{"first": 0, "question": "?"}]
    with pytest.raises(TooManyBadExamples):
        remarks(Generation(), rows)
    suite = Generation()
    found = make_examples(suite, "test", ListSource(rows), Pixels(8), 0, 0.5, told.append)
    made, _ = evaluate(engine(Stub(tok, 3), tok, LABELS), "x", suite, found, 0, log=told.append)
    assert made[0]["remarks"] == ["left out, for they cannot be read or lack a field: 1"]
    assert made[0]["provenance"]["data"]["left_out"] == 1
    assert any("left out" in line for line in told if isinstance(line, str))


def test_a_diverged_run_is_named(tok):
    class Broken(Stub):
        def _logits(self, which, step):
            return super()._logits(which, step) * np.nan

    asked = engine(Broken(tok), tok)
    for how in (Decoding(max_length=4), Decoding(max_length=4, beams=2)):
        with pytest.raises(ValueError, match="1 of 1 answers have likelihoods that are not finite"):
            asked.generate(np.zeros((1, 1, 8, 8, 3), np.uint8), [""], np.zeros(1, int), how)


def test_a_bad_row_costs_no_suite_its_evaluation(tok):
    good = [{"first": 0, "question": "is it red?", "answer": "yes", "label": "red", "source": "a", "target": "b"}] * 30
    asked = engine(Stub(tok, 3), tok, LABELS)
    for suite, bad in (
        (classification(tok), {"first": 0, "question": " ", "answer": "yes"}),
        (Generation(), {"first": 0, "question": "is it red?"}),
        (Translation(how=Decoding(max_length=12)), {"first": 0, "source": "a"}),
        (GenerativeClassifier(template="{name}"), {"first": 0, "question": "x"}),
    ):
        assert len(suite.answers(asked, examples(suite, [*good, bad])).values) == 30, suite


def test_classes_are_those_of_the_whole_source(tok):
    rows = [{"first": 0, "label": name} for name in ("red", "blue", "yes")]
    suite, asked = GenerativeClassifier(template="{name}"), engine(Stub(tok), tok)
    answered, notes = suite.answers(asked, make_examples(suite, "test", ListSource(rows), Pixels(8), 1, 0.05, None))
    assert len(answered) == 1 and notes["classes"]["count"] == 3


def test_hallucination_by_hand(tok):
    """Questions: as many yes as no. Scores: two hits, one false alarm, one miss, two rejections."""
    scene = make_example("captions", "train", 0, 8, 32, 0)
    asked = list(Hallucination(each=3).expand({"key": "a", "scene": scene["scene"]}))
    truth = {(o.colour, o.shape) for o in Scene.from_json(scene["scene"]).objects}
    assert [a["answer"] for a in asked].count("yes") == [a["answer"] for a in asked].count("no") == 3 * len(truth)
    for row in asked:
        there = any(f"{c} {s}?" in row["question"] for c, s in truth)
        assert there == (row["answer"] == "yes")
    said = [("yes", "yes"), ("yes", "yes"), ("no", "yes"), ("yes", "no"), ("no", "no"), ("no", "no")]
    answered = [
        ({"key": str(i), "index": 0, "question": "?", "answer": t, "kind": KINDS[i % 3]}, Answer(a))
        for i, (t, a) in enumerate(said)
    ]
    scores = Hallucination().outcome(engine(Stub(tok), tok), answered).scores
    assert scores["accuracy"] == pytest.approx(4 / 6) and scores["yes_ratio"] == 0.5
    assert scores["precision"] == scores["recall"] == scores["f1"] == pytest.approx(2 / 3)
    assert (
        scores["accuracy_random"] == 0.5 and scores["accuracy_popular"] == 1.0 and scores["accuracy_adversarial"] == 0.5
    )


@pytest.mark.parametrize("kind", ["three splits", "no validation", "overlap"])
def test_a_linear_probe_learns_from_other_examples_than_it_is_asked_about(tok, monkeypatch, kind):
    """The features are the first three pixels; the class is the largest of them."""
    rng = np.random.default_rng(0)

    def rows(n):
        first = rng.integers(0, 256, (n, 3))
        return [{"first": f, "label": "abc"[f.argmax()]} for f in first]

    class Named(ListSource):
        def __init__(self, name, rows):
            super().__init__(rows)
            self.name = name

        def key(self, index):
            return f"{self.name}/{index}"

    sources = {
        name: Named("all" if kind == "overlap" else name, rows(n))
        for name, n in (("train", 200), ("validation", 60), ("test", 60))
    }

    def opened(path, split):
        if kind == "no validation" and split == "validation":
            raise NoSuchSplit("no such split")
        return sources[split]

    monkeypatch.setattr("simvlm_jax.eval.probe.open_source", opened)
    suite, asked = LinearProbe(path="somewhere"), engine(Stub(tok), tok, LABELS)
    found = make_examples(suite, "test", sources["test"], Pixels(8), 0, 0.05, None)
    if kind == "overlap":
        with pytest.raises(ValueError, match="asked about what it has learned from"):
            suite.answers(asked, found)
        return
    answered, notes = suite.answers(asked, found)
    outcome = suite.outcome(asked, answered)
    assert outcome.scores["accuracy"] > 0.93 and set(outcome.scores) == {"accuracy"}
    learned = {"train"} if kind == "no validation" else {"train", "validation"}
    assert notes["probe"]["classes"] == 3 and set(notes["probe"]["learned_from"]) == learned


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
        np.testing.assert_allclose(
            c * x.T @ residual + found.weights, 0, atol=2e-4 * max(c, 1) + 1e-3
        )  # the gradient is zero
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

"""Scenes: captions mean what they say, the judge finds what is false, examples are pure functions of their index."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from simvlm_jax.data.scenes import builder, examples, graph, judge, language, render, tasks, translation


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [graph.sample_scene(rng, 1 + i % 5, i % 7 == 0) for i in range(count)]


def test_captions_read_back_as_they_were_meant():
    rng = np.random.default_rng(1)
    for scene in scenes(300):
        statement = language.plan(scene, rng)
        assert language.parse(language.english(statement, rng)) == statement


def test_references_are_true_complete_and_different():
    rng = np.random.default_rng(2)
    for scene in scenes(150):
        captions = language.references(scene, rng)
        assert len(set(captions)) == 5
        for caption in captions:
            verdict = judge.judge(scene, caption)
            assert verdict.accurate and verdict.covered == len(scene.objects), (caption, scene)


def test_wrong_captions_are_found_out():
    rng = np.random.default_rng(3)
    for a, b in zip(scenes(60), scenes(60, seed=9), strict=True):
        other = language.english(language.plan(b, rng), rng)
        told = {(o.colour, o.shape) for o in b.objects}
        if not told & {(o.colour, o.shape) for o in a.objects} and "shapes" not in other:
            assert judge.judge(a, other).true < judge.judge(a, other).total


def object_(shape, colour, x, y, size="large", texture="plain"):
    return graph.Object(shape, colour, size, texture, x, y)


@pytest.mark.parametrize(
    ("caption", "accurate", "covered"),
    [
        ("a red circle left of a blue star", True, 2),
        ("a blue star right of a red circle", True, 2),
        ("a blue star left of a red circle", False, 2),
        ("a red circle and a green star", False, 1),
        ("a red circle with a blue star to its right", True, 2),
        ("two shapes", True, 2),
        ("three shapes", False, 0),
        ("two red shapes", False, 0),
        ("a red circle on the left", True, 1),
        ("a red circle in the top left", False, 1),
        ("the red circle left of one blue star", True, 2),
        ("a red circle and", False, 1),
        ("a red circle is", False, 1),
        ("a red circle, with.", False, 1),
        ("a shape", True, 0),
        ("a striped red circle", False, 0),
        ("a red circle dancing", False, 1),
        ("", False, 0),
        ("left of", False, 0),
    ],
)
def test_judge(caption, accurate, covered):
    scene = graph.Scene(
        (object_("circle", "red", 0.17, 0.5), object_("star", "blue", 0.83, 0.5)), "plain", (90,) * 3, 0
    )
    verdict = judge.judge(scene, caption)
    assert (verdict.accurate, verdict.covered) == (accurate, covered)


def test_places_of_rows_and_columns():
    corner = object_("circle", "red", 0.17, 0.17)
    true = [words for row in graph.PLACES for words in row if graph.lies(corner, words)]
    assert true == ["in the top left", "at the top", "on the left"] and graph.place(corner) == "in the top left"


def test_two_means_exactly_two():
    three = [object_("circle", "red", x, 0.5) for x in (0.17, 0.5, 0.83)]
    scene = graph.Scene(tuple(three), "plain", (90,) * 3, 0)
    assert not judge.judge(scene, "two red circles").accurate
    assert judge.judge(scene, "three red circles").accurate
    striped = graph.Scene((dataclasses.replace(three[0], texture="striped"), *three[1:]), "plain", (90,) * 3, 0)
    assert judge.judge(striped, "two red circles and a striped red circle").accurate


def test_scores_of_nothing_said():
    scores = judge.scores(scenes(4), [""] * 4)
    assert scores["scene_accuracy"] == 0 and scores["coverage"] == 0 and scores["hallucination"] == 0


def test_held_out_pairs_only_in_compositional():
    rng = np.random.default_rng(4)
    pairs = lambda scene: {(o.colour, o.shape) for o in scene.objects}  # noqa: E731
    for i in range(200):
        assert not pairs(graph.sample_scene(rng, 1 + i % 5)) & graph.HELD_OUT
        assert pairs(graph.sample_scene(rng, 1 + i % 5, compositional=True)) & graph.HELD_OUT
    assert len(graph.CLASSES) >= 50 and len(graph.HELD_OUT) == 8


@pytest.mark.parametrize("size", [32, 64, 224])
def test_render_is_deterministic_at_any_size(size):
    scene = scenes(5)[4]
    picture = render.render(scene, size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert (picture == render.render(graph.Scene.from_json(scene.to_json()), size)).all()
    assert (picture.reshape(-1, 3).std(0) > 1).all()


@pytest.mark.parametrize("task", builder.TASKS)
def test_every_task_makes_true_examples(task):
    for index in range(0, 50, 7):
        example = examples.make_example(task, "test", index, 50, 64, 0)
        again = examples.make_example(task, "test", index, 50, 64, 0)
        assert example == again
        found = tasks.scenes_of(example)
        if task == "captions":
            assert len(found[0].objects) == examples.object_count("test", index, 50)
        if task == "vqa":
            assert check_answer(found[0], example)
        if task == "entail":
            assert example["label"] == what_can_be_seen(found[0], example)
        if task == "pairs":
            assert example["label"] == truth_of_pair(*found, example["sentence"])
        if task == "text":
            said = [language.parse(sentence) for sentence in example["text"].removesuffix(".").split(". ")]
            assert 2 <= len(said) <= 4 and not any(s.unread for s in said)
        if task == "video":
            moves = what_moves(found)
            assert len(found) == len(example["images"]) == 4
            assert moves == [(m["object"], m["way"]) for m in json.loads(example["moves"])]
            assert {said_to_move(caption) for caption in example["captions"]} == {tuple(moves)}
            assert check_video_answer(moves, example)
        if task == "translate":
            statement = language.parse(example["source"])
            assert judge.judge(found[0], statement).accurate and translation.sulari(statement) == example["target"]
        if task == "classes":
            assert example["label"] == f"{found[0].objects[0].colour} {found[0].objects[0].shape}"
        if task == "interleaved":
            *sentences, last = example["text"].removesuffix(".").split(". ")
            for scene, sentence in zip(found, sentences, strict=True):
                assert judge.judge(scene, sentence.removeprefix("<image> ")).accurate
            ordinal, noun = re.fullmatch(r"the (\w+) picture shows (.+)", last).groups()
            assert judge.judge(found[["first", "second", "third", "fourth"].index(ordinal)], noun).accurate
        if task == "noisy" and example["truth"] == "exact":
            caption = (
                example["caption"].removeprefix("stock image: ").removesuffix(" clip art").removesuffix(" | pictures")
            )
            assert judge.judge(found[0], caption).accurate


def what_moves(frames):
    """[(object, way)] in the order of time, from the frames alone."""
    found = []
    for before, after in itertools.pairwise(frames):
        for a, b in zip(before.objects, after.objects, strict=True):
            dx, dy = b.x - a.x, b.y - a.y
            if max(abs(dx), abs(dy)) > 0.1:
                way = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
                found.append((f"{a.colour} {a.shape}", way))
    assert found[0] == found[1] and len(found) == 3  # the first takes two frames
    return found[1:]


def said_to_move(caption):
    """((object, way), (object, way)) in the order of time that a caption tells."""
    told = re.findall(r"the (\w+ \w+) (?:moves|goes) (\w+)", caption)
    return tuple(reversed(told)) if " after " in caption else tuple(told)


def check_video_answer(moves, example):
    words = example["question"].rstrip("?").split()
    if example["kind"] == "way":
        return (" ".join(words[4:6]), example["answer"]) in moves
    if example["kind"] == "first":
        return example["answer"] == moves[0][0]
    first = " ".join(words[2:4]) == moves[0][0]
    return {" ".join(words[2:4]), " ".join(words[-2:])} == {m[0] for m in moves} and example["answer"] == (
        "yes" if first else "no"
    )


def what_can_be_seen(scene, example):
    """An independent label for a hypothesis about a place that may be behind a curtain."""
    (phrase,), (place,) = (lambda s: (s.phrases, s.places))(
        language.parse(example["hypothesis"].removeprefix("there is "))
    )
    cell = next((r, c) for r, row in enumerate(graph.PLACES) for c, name in enumerate(row) if name == place.where)
    if cell in tasks.CURTAINS[example["curtain"]]:
        return "neutral"
    return "entailment" if any(o.cell == cell and phrase.fits(o) for o in scene.objects) else "contradiction"


def truth_of_pair(left, right, sentence):
    """An independent answer to a sentence about two pictures."""
    if sentence.startswith("the left"):
        return len(left.objects) > len(right.objects)
    (phrase,) = language.parse(sentence.partition(" show")[2].removeprefix("s").strip()).phrases
    seen = [any(phrase.fits(o) for o in s.objects) for s in (left, right)]
    return all(seen) if sentence.startswith("both") else seen[0] != seen[1]


def check_answer(scene, example):
    """An independent answer to a question about a scene."""
    words = example["question"].rstrip("?").split()

    def singular(w):
        return next(s for s in (w, w.removesuffix("es"), w.removesuffix("s")) if s in graph.SHAPES)

    count = lambda shape: sum(o.shape == singular(shape) for o in scene.objects)  # noqa: E731
    if example["kind"] == "existence":
        seen = any((o.colour, o.shape) == (words[-2], words[-1]) for o in scene.objects)
        return example["answer"] == ("yes" if seen else "no")
    if example["kind"] == "count":
        return example["answer"] == str(count(words[2]))
    if example["kind"] == "attribute":
        return [o.colour for o in scene.objects if o.shape == words[-1]] == [example["answer"]]
    if example["kind"] == "comparison":
        return example["answer"] == ("yes" if count(words[3]) > count(words[-1]) else "no")
    find = lambda colour, shape: next(o for o in scene.objects if (o.colour, o.shape) == (colour, shape))  # noqa: E731
    a, b = find(words[2], words[3]), find(words[-2], words[-1])
    return example["answer"] == ("yes" if graph.holds(words[4], a, b) else "no")


def guess(pairs):
    """Accuracy of the majority answer to each question of [(question, answer)], told on one half, tried on the other."""
    told, asked = pairs[::2], pairs[1::2]
    answers = {}
    for question, answer in told:
        answers.setdefault(question, []).append(answer)
    best = {q: max(sorted(set(a)), key=a.count) for q, a in answers.items()}
    return np.mean([best.get(question) == answer for question, answer in asked])


@pytest.mark.parametrize("split", ["train", "compositional"])
def test_text_alone_tells_nothing(split):
    """What the held-out pair, the shape or the template says of the answer is what chance says."""

    def kind_of(e):
        words = e["question"].rstrip("?").split()
        if e["kind"] == "existence":
            return "existence", (words[-2], words[-1]) in graph.HELD_OUT
        return e["kind"], words[-1] if e["kind"] == "attribute" else ""

    make = lambda task, n: [examples.make_example(task, split, i, n, 16, 0) for i in range(n)]  # noqa: E731
    questions = make("vqa", 1600)
    if split == "train":
        asked = {tuple(e["question"].rstrip("?").split()[-2:]) for e in questions if e["kind"] == "existence"}
        assert not asked & graph.HELD_OUT
    # tolerances: three standard errors of 800 (400 for the others) answers
    assert guess([(kind_of(e), e["answer"]) for e in questions]) == pytest.approx(tasks.BLIND_VQA_ACCURACY, abs=0.052)
    pairs = make("pairs", 800)
    assert guess([(e["sentence"].split()[0], e["label"]) for e in pairs]) == pytest.approx(1 / 2, abs=0.075)
    entail = make("entail", 800)
    assert guess([(len(e["hypothesis"].split()), e["label"]) for e in entail]) == pytest.approx(1 / 3, abs=0.071)
    videos = make("video", 1600)
    for kind, chance in (("way", 1 / 4), ("before", 1 / 2)):
        asked = [("", e["answer"]) for e in videos if e["kind"] == kind]
        assert guess(asked) == pytest.approx(chance, abs=0.1)  # of 250


def test_a_curtain_hides_its_cells_and_nothing_else():
    scene = scenes(5)[4]
    for cells in tasks.CURTAINS.values():
        bare, hidden = render.render(scene, 96), render.render(scene, 96, cells)
        covered = np.zeros((3, 3), bool)
        covered[tuple(zip(*cells, strict=True))] = True
        covered = np.kron(covered, np.ones((32, 32), bool))
        assert (bare == hidden)[~covered].all()
        without = dataclasses.replace(scene, objects=tuple(o for o in scene.objects if o.cell not in cells))
        assert (render.render(without, 96, cells) == hidden).all()


def test_processes_change_nothing():
    alone, together = (list(examples.make_examples("captions", "train", 40, 32, 3, processes=n)) for n in (1, 3))
    assert alone == together and len(alone) == 40
    some = examples.make_examples("captions", "train", 4000, 32, 3, processes=2)
    assert next(some)["key"] == "train-000000"
    some.close()  # the processes end with the reader
    with pytest.raises(ChildProcessError, match="ended early"):
        list(examples.make_examples("films", "train", 40, 32, 3, processes=2))


def test_translation_has_one_truth():
    s = language.parse("a small red circle above a blue star")
    assert translation.sulari(s) == "oru rubi tini un asti azu un upa"


def test_builder_names():
    made = builder.builder("captions-32px-seed3-16_8_8_8")
    assert made.builder_config.size == 32 and made.builder_config.seed == 3 and made.builder_config.sizes["train"] == 16
    with pytest.raises(ValueError, match="no 'films'"):
        builder.builder("films")
    with pytest.raises(ValueError, match="multiples of 8"):
        builder.builder("captions-7_5_5_5")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("captions-99999999px", "a picture's side in pixels is 99999999; it must be between 8 and 1,024"),
        ("captions-7px", "a picture's side in pixels is 7; it must be between 8"),
        ("captions-0px", "a picture's side in pixels is 0"),
        (f"captions-{'9' * 5000}px", "a picture's side in pixels is 999"),
        ("vqa-seed4294967296", "a seed is 4294967296; it must be between 0 and 4,294,967,295"),
        (f"vqa-seed{'9' * 5000}", "a seed is 999"),
        ("text-99999999_8_8_8", "a split's number of examples is 99999999; it must be between 0 and 16,777,216"),
        ("captions-٣٢px", "scenes has no"),
    ],
)
def test_numbers_of_builder_names_have_limits(name, what):
    with pytest.raises(ValueError, match=what):
        builder.builder(name)


def test_prepared_without_tensorflow():
    import sys

    made = builder.prepare("captions-32_8_16_8")
    source = made.as_data_source("train[:75%]")
    assert len(source) == 24 and "tensorflow" not in sys.modules
    counts = [len(graph.Scene.from_json(source[i]["scene"]).objects) for i in range(24)]
    assert counts == sorted(counts) and set(counts) == {1, 2, 3}

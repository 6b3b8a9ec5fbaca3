"""Zero-shot, retrieval, neighbours and compositional probes against models whose answers are known, and official counts."""

import io
import json
import shutil
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from simvlm_jax.data.readers.classes import class_archive, class_folders
from simvlm_jax.data.scenes.examples import make_example
from simvlm_jax.data.scenes.graph import HELD_OUT, SHAPES, Scene
from simvlm_jax.data.scenes.judge import judge
from simvlm_jax.data.scenes.twins import KINDS, twins
from simvlm_jax.data.source import origin
from simvlm_jax.data.sources import open_source
from simvlm_jax.data.splits import NoSuchSplit
from simvlm_jax.data.transforms import Pixels
from simvlm_jax.eval.compositional import Compositional
from simvlm_jax.eval.final import evaluate, make_examples
from simvlm_jax.eval.likelihood import GenerativeClassifier
from simvlm_jax.eval.neighbours import NearestNeighbours
from simvlm_jax.eval.probe import LinearProbe
from simvlm_jax.eval.retrieval import Retrieval, _hit_by_chance, in_front, ranks
from simvlm_jax.eval.zero_shot import ZeroShot, class_vectors, read_prompts
from simvlm_jax.infer.engine import MissingCapability
from tests.eval.stub import WORDS, Judge, ListSource, Stub, engine, tokenizer


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


class Knows(Judge):
    """An image's vector names the words of its first pixels; a text's the words in it."""

    def capabilities(self):
        able = {"embed_image": self.embed_image, "embed_text": self.embed_text, "similarity": self.similarity}
        return {**able, "logit_scale": lambda params, extra: 5.0}

    def embed_image(self, params, extra, batch):
        return self.seen(batch).astype(jnp.float32)

    def embed_text(self, params, extra, batch):
        return self.named(batch).astype(jnp.float32)

    def similarity(self, params, extra, images, texts):
        return images @ texts.T


def examples(suite, rows, **how):
    return make_examples(suite, "test", ListSource(rows), Pixels(8), 0, 0.05, None, **how)


def scores(suite, model, tok, rows, batch_size=4, devices=None):
    asked = engine(model, tok, (), batch_size, devices)
    answered, notes = suite.answers(asked, examples(suite, rows))
    return suite.outcome(asked, answered), answered, notes


@pytest.mark.parametrize("devices", [1, 8])
def test_zero_shot_finds_what_is_there(tok, devices):
    rows = [{"first": (c, s), "label": f"{WORDS[c]} {WORDS[s]}"} for c in (0, 1) for s in (2, 3) for _ in range(3)]
    rows[0]["label"] = "blue dog"  # which it is not
    outcome, answered, notes = scores(ZeroShot(), Knows(tok), tok, rows, devices=jax.devices()[:devices])
    assert outcome.scores["accuracy"] == pytest.approx(11 / 12) and outcome.scores["chance"] == 0.25
    assert outcome.scores["top5"] == 1.0 and notes["classes"]["count"] == 4
    assert next(t for t, _ in answered[0][1].n_best) == "red cat"


def test_prompts_are_averaged_at_length_one(tok):
    asked = engine(Knows(tok), tok)
    templates = ("{a} {name}", "{} dog", "is it {}?")
    vectors, _ = class_vectors(asked, ("red", "blue cat"), templates)
    one = np.asarray([[1, 0, 0, 0], [2**-0.5, 0, 0, 2**-0.5], [1, 0, 0, 0]]).mean(0)
    np.testing.assert_allclose(vectors[0], one / np.linalg.norm(one), atol=1e-6)


def test_the_published_prompts_are_read(tok, tmp_path, shared):
    classes, templates = read_prompts(shared("clip_ref") / "imagenet_classes_templates.json", ())
    assert (len(classes), len(templates)) == (1000, 80) and templates[0].format(classes[0]) == "a bad photo of a tench."
    (tmp_path / "mine.txt").write_text("a photo of {}\n\na drawing of {a} {name}\n")
    assert read_prompts(tmp_path / "mine.txt", ("x",)) == (("x",), ("a photo of {}", "a drawing of {a} {name}"))
    for odd in ("[]", "{", '{"classes": "abc", "templates": ["{}"]}', '{"templates": [1]}', '{"classes": ["a"]}'):
        (tmp_path / "odd.json").write_text(odd)
        with pytest.raises(ValueError, match=r"odd\.json' must hold"):
            read_prompts(tmp_path / "odd.json", ())
    with pytest.raises(FileNotFoundError, match=r"none\.json' does not exist"):
        ZeroShot(prompts="none.json").decoding()


def test_retrieval_of_the_whole_set(tok):
    rows = [
        {"first": (0, 2), "captions": ["a red cat", "is it a cat?"]},
        {"first": (1, 3), "captions": ["a blue dog"]},
        {"first": (1, 2), "captions": ["a red dog", "a dog"]},  # wrong ones: it shows a blue cat
    ]
    outcome, answered, _ = scores(Retrieval(), Knows(tok), tok, rows, batch_size=2)
    assert outcome.scores["image_to_text_r1"] == pytest.approx(2 / 3)
    # of five texts: "a red cat" and "a blue dog" find theirs; "is it a cat?" ties with the third image, which is lost
    assert outcome.scores["text_to_image_r1"] == pytest.approx(2 / 5)
    assert outcome.scores["chance_r1"] == pytest.approx(1 / 3) and outcome.scores["chance_r5"] == 1
    assert _hit_by_chance(np.asarray([2, 1, 2]), 2) == pytest.approx(
        [1 - 3 / 10, 1 - 6 / 10, 1 - 3 / 10]
    )  # of 10 draws
    assert [e["ranks"]["to_text"] == 0 for e, _ in answered] == [True, True, False]
    first = Retrieval(captions=1)
    assert len(scores(first, Knows(tok), tok, rows)[1][0][0]["ranks"]["to_image"]) == 1


class Colours(Knows):
    """Its vectors know colours alone; `score_pair` looks at the image and the text together."""

    def capabilities(self):
        return {**super().capabilities(), "score_pair": self.score_pair}

    def embed_text(self, params, extra, batch):
        return super().embed_text(params, extra, batch) * (jnp.arange(len(WORDS)) < 2)


def test_the_most_similar_are_ranked_again_by_matching(tok):
    rows = [{"first": (c, s), "captions": [f"a {WORDS[c]} {WORDS[s]}"]} for c in (0, 1) for s in (2, 3)]
    for rerank, right in ((0, 0.0), (1, 0.25), (2, 1.0), (100, 1.0)):
        suite = Retrieval(rerank=rerank)
        outcome, answered, notes = scores(suite, Colours(tok), tok, rows, batch_size=3)
        # of two that share a colour and tie, the first alone is scored where one is ranked again, and comes before the other
        found = {k: v for k, v in outcome.scores.items() if k.endswith("_r1") and not k.startswith("similarity")}
        assert found["image_to_text_r1"] == found["text_to_image_r1"] == (0.5 if rerank == 1 else right)
        assert notes.get("rerank", 0) == rerank
        before = {outcome.scores.get(f"similarity_{k}_r1") for k in ("image_to_text", "text_to_image")}
        assert before == ({0.0} if rerank else {None})
    assert [a.text for _, a in answered] == [r["captions"][0] for r in rows]
    asked = engine(Colours(tok), tok)
    (entry, _), _ = evaluate(asked, "retrieval", Retrieval(), examples(Retrieval(), rows), 1, log=lambda _: None)
    assert entry["remarks"] == ["the most similar, ranked again by score_pair: 16"]
    assert entry["provenance"]["notes"] == {} and entry["provenance"]["rerank"] == 16
    assert "rerank" not in scores(Retrieval(), Knows(tok), tok, rows)[2]  # which has no score of pairs


def test_chosen_pairs_come_before_all_others():
    alike = np.asarray([[0.9, 0.8, 0.1], [0.2, 0.7, 0.6]], np.float32)
    chosen = np.asarray([[True, True, False], [False, True, True]])
    found = in_front(alike, np.asarray([[-5, -3, 9], [9, 1, 1]], np.float32), chosen)
    assert np.argsort(-found, axis=1, kind="stable").tolist() == [[1, 0, 2], [1, 2, 0]]
    assert found[1, 1] == found[1, 2] and found[1, 0] == np.float64(alike[1, 0])  # ties stay ties
    np.testing.assert_array_equal(in_front(alike, alike, np.zeros((2, 3), bool)), alike)


def test_a_generative_classifier_by_images_or_texts(tok):
    """Of a red cat: by texts alone the longer name loses, by images the right one wins."""
    rows = [{"first": (0, 2), "label": "red cat"}, {"first": (1, 3), "label": "blue dog"}]
    suite = GenerativeClassifier(by="image", samples=64, template="{name}")
    outcome, answered, notes = scores(suite, Judge(tok, noise=0.5), tok, rows)
    assert outcome.scores["accuracy"] == 1 and notes["by"] == "score_image" and notes["classes"]["count"] == 2
    best = dict(answered[0][1].n_best)
    assert best["red cat"] - best["blue dog"] == pytest.approx(4, abs=1e-3)  # the draws are those of the image
    outcome, _, notes = scores(GenerativeClassifier(template="{name}"), Judge(tok, 0.5), tok, rows)
    assert outcome.scores["accuracy"] == 1 and notes["by"] == "score_text"
    only = Judge(tok, 0.5, able=("score_image",))
    assert scores(GenerativeClassifier(template="{name}"), only, tok, rows)[2]["by"] == "score_image"
    with pytest.raises(MissingCapability, match="needs score_image, which Stub lacks"):
        scores(suite, Stub(tok), tok, rows)
    with pytest.raises(ValueError, match="by text or image, not 'sound'"):
        GenerativeClassifier(by="sound")


def test_ranks_by_sorting():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    alike = rng.normal(size=(30, len(owner)))
    to_text, to_image = ranks(alike, owner)
    for i in range(30):
        order = np.argsort(-alike[i])
        assert to_text[i] == min(np.flatnonzero(owner[order] == i))
    for j, i in enumerate(owner):
        assert to_image[j] == list(np.argsort(-alike[:, j])).index(i)


def test_neighbours_vote(tok, tmp_path, monkeypatch):
    """By the cosine of the first pixels; three of one class outvote a nearer one only where temperature lets them."""
    near = {"first": (200, 10), "label": "a"}
    far = [{"first": (200, 60), "label": "b"} for _ in range(3)]
    sources = {"train": ListSource([near, *far]), "test": ListSource([{"first": (200, 0), "label": "a"}])}
    sources["test"].key = lambda index: f"test-{index}"
    monkeypatch.setattr("simvlm_jax.eval.probe.open_source", lambda path, split: sources[split])

    def answer(**how):
        suite = NearestNeighbours(path="somewhere", **how)
        asked = engine(Stub(tok, 3), tok)
        return (
            suite.answers(asked, make_examples(suite, "test", sources["test"], Pixels(8), 0, 0.05, None))
            .values[0][1]
            .text
        )

    assert answer(neighbours=1) == "a" and answer(temperature=10.0) == "b" and answer(temperature=0.005) == "a"
    sources["test"].key = lambda index: "row-0"
    with pytest.raises(ValueError, match="asked about what it has learned from"):
        answer()


SINGULAR = {shape + ending: shape for shape in SHAPES for ending in ("s", "es")} | {"an": "a"}


@pytest.mark.parametrize("split", ["test", "compositional"])
def test_twins_are_wrong_and_alike(split):
    found: dict[str, list] = {kind: [] for kind in KINDS}
    for i in range(1200):
        scene = Scene.from_json(make_example("captions", split, i, 1600, 16, 0)["scene"])
        for kind, true, false in twins(scene, np.random.default_rng(i)):
            assert judge(scene, true).accurate and not judge(scene, false).accurate
            words = [sorted(SINGULAR.get(w, w) for w in text.split()) for text in (true, false)]
            assert words[0] == words[1] or kind == "relation"
            found[kind].append((true, false))
    assert min(map(len, found.values())) > 30
    seen = {f"{colour} {shape}" for colour, shape in HELD_OUT}
    rules = {  # what can be said of a text alone, which must be of no use
        "unseen pairs": lambda t: sum(name in t for name in seen),
        "length": len,
        "larger number first": lambda t: t.startswith("two"),
        "alphabet": lambda t: t,
        "left or above": lambda t: "left" in t or "above" in t,
    }
    for kind, pairs in found.items():
        for name, rule in rules.items():
            right, wrong = (
                sum((rule(t) > rule(f)) == way and rule(t) != rule(f) for t, f in pairs) for way in (True, False)
            )
            # three standard deviations of a fair coin
            assert abs(right - wrong) <= 3 * max(right + wrong, 1) ** 0.5, (kind, name, right, wrong)


class Believes(Knows):
    """Likes texts by their length, whatever the image."""

    def embed_text(self, params, extra, batch):
        return batch["text_mask"].sum(1, keepdims=True) * jnp.ones((1, len(WORDS)))

    def embed_image(self, params, extra, batch):
        return jnp.ones((len(batch["image"]), len(WORDS)))

    def score_text(self, params, extra, batch):
        return -batch["text_mask"].sum(1).astype(jnp.float32)


def test_compositional_probes_by_either_score(tok):
    rows = [make_example("captions", "test", i, 32, 16, 0) for i in range(32)]
    rows = [{"first": 0, "scene": r["scene"], "captions": r["captions"]} for r in rows]
    outcome, answered, notes = scores(Compositional(), Believes(tok), tok, rows)
    assert notes["by"] == "similarity" and {e["kind"] for e, _ in answered} == set(KINDS)
    assert outcome.scores["accuracy_attribute"] < 0.5  # as many words: a tie, or as many pieces
    model = Believes(tok)
    able = {**model.capabilities(), "score_text": model.score_text}
    model.capabilities = lambda: able
    other, _, notes = scores(Compositional(by="likelihood"), model, tok, rows)
    assert notes["by"] == "likelihood"
    right = {i.example["key"] + i.example["kind"]: i.right for i in outcome.items}
    told = {i.example["key"] + i.example["kind"]: i.right for i in other.items}
    assert not any(right[k] and told[k] for k in right)  # one likes long texts, one short ones, and ties are wrong
    able = {**able, "score_pair": model.score_pair}
    assert scores(Compositional(), model, tok, rows)[2]["by"] == "matching"
    with pytest.raises(ValueError, match="not 'taste'"):
        Compositional(by="taste")


def test_what_a_model_lacks_is_said(tok):
    row = [{"first": 0, "label": "red", "captions": ["red"]}]
    for suite in (ZeroShot(classes=("red",)), Retrieval()):
        with pytest.raises(MissingCapability, match="which Stub lacks"):
            scores(suite, Stub(tok, 3), tok, row)


def test_pictures_in_a_folder_a_class(tmp_path):
    def png(colour):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
        return buffer.getvalue()

    for split, classes in (("train", ("cat", "dog")), ("test", ("dog",))):
        for name in classes:
            (tmp_path / "folders" / split / name).mkdir(parents=True)
            (tmp_path / "folders" / split / name / "1.png").write_bytes(png("red"))
    assert [open_source(str(tmp_path / "folders"), "train")[i]["label"] for i in (0, 1)] == ["cat", "dog"]
    assert open_source(str(tmp_path / "folders"), "test")[0]["image"] == png("red")
    assert len(class_folders(tmp_path / "folders" / "train", "all")) == 2
    with tarfile.open(tmp_path / "test.tar.gz", "w:gz") as tar:
        for name in ("cat/1.png", "dog/1.png"):  # one file name, two classes
            member = tarfile.TarInfo(name)
            data = png((name.split("/")[0] == "cat" and "red") or "blue")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    rows = class_archive(tmp_path, "test")
    assert [(r["label"], r["image"] == png("red")) for r in (rows[0], rows[1])] == [("cat", True), ("dog", False)]
    with pytest.raises(NoSuchSplit, match="no split 'train'"):
        class_archive(tmp_path, "train")
    with pytest.raises(NoSuchSplit, match="has no split 'validation'; it has test, train"):
        open_source(str(tmp_path / "folders"), "validation")
    (tmp_path / "folders" / "test").rename(tmp_path / "folders" / "novel")  # a split by a name of its own
    assert open_source(str(tmp_path / "folders"), "novel").key(0) == "novel/dog/1.png"
    with pytest.raises(FileNotFoundError, match="FOLDER/SPLIT/CLASS/picture"):
        class_folders(tmp_path / "folders" / "train" / "cat", "train")
    for name in ("train", "bus"):  # a class of that name
        (tmp_path / "places" / name).mkdir(parents=True)
        (tmp_path / "places" / name / "1.png").write_bytes(png("red"))
    assert open_source(str(tmp_path / "places"), "test")[1]["label"] == "train"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(png("red"))
    (tmp_path / "mine" / "labels.csv").write_text("image,label\na.png,red\n")  # a table of one's own, by a known name
    assert open_source(str(tmp_path / "mine"), "test")[0]["label"] == "red"
    (tmp_path / "test.tar.gz").rename(tmp_path / "mine" / "test.tar.gz")  # the table is still what tells
    assert len(open_source(str(tmp_path / "mine"), "test")) == 1


def test_a_slice_of_what_was_learned_from_is_not_asked(tok):
    path = "scenes/classes-8_8_8_8"
    both = open_source(path, "test[6:]+train[:2]")
    assert [origin(both, i).removeprefix(path) for i in range(4)] == ["/test/6", "/test/7", "/train/0", "/train/1"]

    def answer(split, **how):
        probe = LinearProbe(path=path, **how)
        return probe.answers(
            engine(Stub(tok, 3), tok), make_examples(probe, "test", open_source(path, split), Pixels(8), 0, 0.05, None)
        ).values

    for split in ("validation[:50%]", "validation[50%:]", "train[4:]"):
        with pytest.raises(ValueError, match="asked about what it has learned from"):
            answer(split)
    assert len(answer("train[6:]", train="train[:6]")) == 2


def test_vectors_that_are_not_finite_are_refused(tok):
    class Diverged(Knows):
        def embed_image(self, params, extra, batch):
            return super().embed_image(params, extra, batch) * jnp.nan

    with pytest.raises(ValueError, match="1 of 1 pictures have vectors that are not finite"):
        scores(Retrieval(), Diverged(tok), tok, [{"first": 0, "captions": ["red"]}])


def test_names_that_the_data_does_not_use_are_told(tok):
    rows = [{"first": (0, 2), "label": "n0123"}, {"first": (1, 3), "label": "blue dog"}]
    suite = ZeroShot(classes=("red cat", "blue dog"))
    asked = engine(Knows(tok), tok)
    (entry,), outcome = evaluate(
        asked, "zero_shot", suite, examples(suite, rows), 1, controls=False, log=lambda _: None
    )
    assert outcome.scores["accuracy"] == 0.5 and entry["provenance"]["notes"]["truths_not_among_classes"] == 1


def test_a_suite_with_data_of_its_own_is_validated_on_it(tmp_path):
    from simvlm_jax.eval.final import own_validation

    assert repr(own_validation(ZeroShot(path="scenes/classes-8_8_8_8"))).endswith(":validation")
    half = ZeroShot(path="scenes/classes-8_8_8_8", splits={"test": "validation[:50%]"})
    assert own_validation(half) is None
    (tmp_path / "labels.csv").write_text("image,label\na.png,red\n")  # without splits it is what is reported
    assert own_validation(ZeroShot(path=str(tmp_path))) is None
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "validation.csv").write_bytes(b"image,label\n\xff.png,red\n")
    (tmp_path / "damaged" / "test.csv").write_text("image,label\na.png,red\n")
    with pytest.raises(ValueError, match="is not UTF-8"):
        own_validation(ZeroShot(path=str(tmp_path / "damaged")))


def test_a_split_of_several_names_is_one_split(tok, tmp_path):
    """`val` is found by "validation" too: then it is neither chosen by nor learned from where it is reported."""
    from simvlm_jax.eval.final import own_validation

    picture = Image.new("RGB", (8, 8), "red")
    for form in ("folders", "archives"):
        here = tmp_path / form
        for split in ("train", "val"):
            for i, name in enumerate(("cat", "dog")):
                place = here / split / name
                place.mkdir(parents=True)
                picture.save(place / f"{i}.png")
            if form == "archives":
                with tarfile.open(here / f"{split}.tar.gz", "w:gz") as tar:
                    tar.add(here / split, ".")
                shutil.rmtree(here / split)
        val, validation = (open_source(str(here), split) for split in ("val", "validation"))
        assert [val.key(i) for i in (0, 1)] == [validation.key(i) for i in (0, 1)] and repr(val) == repr(validation)
        assert own_validation(ZeroShot(path=str(here), splits={"test": "val"})) is None
        assert own_validation(ZeroShot(path=str(here), splits={"test": "train"})) is not None
        probe = LinearProbe(path=str(here))
        asked = engine(Stub(tok, 3), tok)
        notes = probe.answers(asked, make_examples(probe, "val", val, Pixels(8), 0, 0.05, None)).notes
        assert list(notes["probe"]["learned_from"]) == ["train"]


def test_real_labelled_pictures(shared):
    cifar = open_source(str(shared("cifar10_jpeg")), "test")
    assert len(cifar) == 10_000 and {cifar.text(i)["label"] for i in range(0, 10_000, 500)} >= {"airplane", "truck"}
    samples = open_source(str(shared("imagenet1k_samples")), "test")
    names = json.loads((shared("clip_ref") / "imagenet_classes_templates.json").read_text())["classes"]
    assert len(samples) == 1000 and {samples.text(i)["label"] for i in range(1000)} == set(names)
    assert Pixels(32)(samples[0], None)["image"].shape == (1, 32, 32, 3)


def test_templates_hold_names_and_nothing_more():
    from simvlm_jax.eval.suite import filled_in
    from simvlm_jax.eval.zero_shot import check_templates

    assert filled_in("{a} photo of {name}, {} {{x}}", "dog", name="dog", a="a") == "a photo of dog, dog {x}"
    for template in ("{x}", "{name:300000000}", "{0.__class__}", "{name!r}", "no place"):
        with pytest.raises(ValueError, match=r"must have one place|must be one of"):
            check_templates([template])

"""Questions about pictures: the sets as their authors publish them, tables of one's own, and rows made of them."""

import io
import itertools
import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from simvlm_jax.data.assemble import make_labels
from simvlm_jax.data.images import decode
from simvlm_jax.data.readers.published import arrange_boxes, unpacked
from simvlm_jax.data.sources import open_source
from simvlm_jax.data.transforms import (
    BadExample,
    FixPrefix,
    Label,
    Pixels,
    Tokenize,
    TokenizeAfter,
    TokenizePair,
    answers_of,
    most_frequent,
)
from simvlm_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["is it red?", "what colour is the dog?", "yes", "no", "a b c d e f g h"] * 9, 130, 16)


def png(colour, size=(8, 8)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format="PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "split", "count", "answer"),
    [
        ("easy_vqa", "train", 38575, "rectangle"),
        ("easy_vqa", "test", 9673, None),
        ("daquar", "train", 6795, None),
        ("daquar", "test", 5673, None),
        ("nlvr", "test", 990, None),
        ("nlvr", "hidden-permuted", 6 * 985, None),
    ],
)
def test_published_sets(shared, name, split, count, answer):
    source = open_source(str(shared(name)), split)
    assert len(source) == count and source.key(3) != source.key(4)
    example = source[0]
    assert decode(example["image"]).size[0] >= 64 and answers_of(example)
    assert answer is None or answers_of(example) == [answer]
    assert set(source.text(0)) & {"question", "sentence"} and "image" not in source.text(0)
    with pytest.raises(FileNotFoundError, match="has no split 'holiday'"):
        open_source(str(shared(name)), "holiday")


def test_daquar_split_is_by_image(shared):
    train, test = (open_source(str(shared("daquar")), split) for split in ("train", "test"))
    images = [{row["image"] for row in s._rows} for s in (train, test)]
    assert not images[0] & images[1] and [len(i) for i in images] == [794, 653]  # nobody asked about one
    asked = [s.text(i)["question"] for s in (train, test) for i in range(len(s))]
    assert not [q for q in asked if re.search(r"image\s?\d+", q) or not q.endswith("?") or q.endswith(" ?")]
    assert "what is in the corner?" in asked and min(len(q.split()) for q in asked) > 2


def test_permuted_boxes_are_those_the_authors_drew(shared):
    """Where no shape crosses a box's edge, their second picture is one of the six orders of the first."""
    files = unpacked(shared("nlvr") / "test_images_perm0-1.tar.gz")
    same = 0
    for name in [n for n in sorted(files) if n.endswith("-0.png")][:30]:
        other = np.asarray(decode(arrange_boxes(files[name.replace("-0.png", "-1.png")], [0, 1, 2])))
        orders = itertools.permutations(range(3))
        same += any(np.array_equal(np.asarray(decode(arrange_boxes(files[name], list(o)))), other) for o in orders)
    assert same >= 20


def test_a_table_of_questions(tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "b.png").write_bytes(png("blue"))
    rows = [
        {"image": "a.png", "question": "is it red?", "answer": "yes"},
        {"image": "a.png", "question": "what colour is it?", "answers": ["red", "red", "crimson"]},
        {"images": ["a.png", "b.png"], "question": "are they alike?", "label": False},
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(tmp_path))
    assert len(source) == 3 and [answers_of(source[i])[0] for i in range(3)] == ["yes", "red", "false"]
    assert Pixels(4)(source[2], None)["image"].shape == (2, 4, 4, 3)
    assert Pixels(4)(source[0], None)["image"][0, 0, 0].tolist() == [255, 0, 0]
    assert most_frequent(answers_of(source[1])) == "red"
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 'b\.png' is in the table but not in"):
        source[2]


def test_vqa_v2_as_downloaded(tmp_path):
    name = "COCO_val2014_000000000042.jpg"
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val2014" / name)
    questions = {"questions": [{"image_id": 42, "question": "is it?", "question_id": 420}]}
    notes = [{"question_id": 420, "answer_type": "yes/no", "answers": [{"answer": "yes"}] * 10}]
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(questions))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": notes}))
    example = open_source(str(tmp_path), "val")[0]
    assert example["answers"] == ["yes"] * 10 and example["key"] == "420" and example["kind"] == "yes/no"


def test_whole_pictures_are_squeezed_not_cropped():
    wide = Image.new("RGB", (30, 10), "white")
    wide.paste((255, 0, 0), (0, 0, 10, 10))
    out = io.BytesIO()
    wide.save(out, format="PNG")
    assert Pixels(9)({"image": out.getvalue()}, None)["image"][0, 4, 0, 1] > 240
    assert Pixels(9, whole=True)({"image": out.getvalue()}, None)["image"][0, 4, 0, 1] < 15
    with pytest.raises(ValueError, match="whole or cropped"):
        Pixels(9, smallest=0.5, whole=True)


def test_prompt_and_target_keep_their_border(tok):
    row = TokenizePair(tok)({"question": "is it red?", "answer": "yes"}, None)
    n = int(row["prefix_length"])
    assert tok.decode(row["text"][:n]) == "is it red?" and tok.decode(row["text"][n:]) == "yes"
    long = TokenizePair(tok)({"question": "what colour is the dog? " * 9, "answer": "yes"}, None)
    assert long["text_mask"].all() and long["text"][-1] == tok.vocabulary.eos  # the prompt is cut, the target is whole
    assert tok.decode(long["text"][long["prefix_length"] :]) == "yes" and long["cut"] > 0
    with pytest.raises(BadExample, match="more than the text length of 16"):
        TokenizePair(tok)({"question": "is it", "answer": "what colour is the dog?" * 9}, None)
    with pytest.raises(BadExample, match="no 'answer'"):
        TokenizePair(tok)({"question": "is it"}, None)


def test_a_prefix_is_none_or_all_but_the_end(tok):
    row = Tokenize(tok, "question")({"question": "is it red?"}, None)
    assert FixPrefix()(row, None)["prefix_length"] == 0
    whole = FixPrefix(whole=True)(row, None)["prefix_length"]
    assert whole == row["text_mask"].sum() - 1 and row["text"][whole] == tok.vocabulary.eos


def test_a_read_premise_and_a_seen_one_leave_the_hypothesis_in_its_place(tok):
    from simvlm_jax.data.scenes.examples import make_example

    example = make_example("entail", "train", 0, 8, 32, 0)
    big = Tokenizer(tok.model, 96)
    read, seen = (TokenizeAfter(big, 64, read=flag)(example, None) for flag in (True, False))
    np.testing.assert_array_equal(read["text"][64:], seen["text"][64:])
    assert read["text_mask"][:64].any() and not seen["text_mask"][:64].any()
    assert read["prefix_length"] == seen["prefix_length"] == 64
    assert tok.decode(seen["text"][64:]) == example["hypothesis"] and seen["cut"] == 0
    lost = len(tok.encode(example["hypothesis"])) + 1 - 5
    assert TokenizeAfter(Tokenizer(tok.model, 69), 64, read=False)(example, None)["cut"] == lost > 0
    with pytest.raises(BadExample, match="the 3 it has room in"):
        TokenizeAfter(big, 3)(example, None)


def test_labels():
    label = Label(("yes", "no", "red"), soft=True)
    assert label({"answer": "No"}, None)["label"] == 1
    assert Label(("New York",))({"answer": "new york"}, None)["label"] == 0
    assert label({"label": True}, None)["label"] == -1 and not label({"label": True}, None)["scores"].any()
    people = ["red"] * 3 + ["yes"] * 2 + ["blue"] * 5
    row = label({"answers": people}, None)
    assert row["label"] == -1  # most say blue
    np.testing.assert_allclose(row["scores"], [0.6, 0.0, 0.9])
    assert label({"answers": ["red"] * 9 + ["no"]}, None)["scores"].tolist() == pytest.approx([0, 0.3, 1])
    with pytest.raises(BadExample, match="no answer"):
        label({"question": "?"}, None)


def test_the_answer_list_is_spelt_as_people_mostly_spell():
    answers = ["red", "New York", "Red", "red", "new york", "New York", "New York", "blue"]
    source = [{"answer": a} for a in answers]
    config = ConfigDict({"data": {"labels": {"size": 2, "at_least": 1}, "parts": {"pairs": {"path": "x"}}}})
    assert make_labels(config.data, {"pairs": source}) == ("New York", "red")
    config.data.labels.update(size=9, at_least=2)
    assert make_labels(config.data, {"pairs": source}) == ("New York", "red")


def test_held_out_examples_share_no_picture(tmp_path):
    from simvlm_jax.data.source import HashSplit

    rows = [{"image": f"{i % 20}.png", "question": f"what is {i}?", "answer": "x"} for i in range(200)]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(tmp_path))
    parts = [HashSplit(source, 0.3, held_out) for held_out in (True, False)]
    pictures = [{part.text(i)["question"] for i in range(len(part))} for part in parts]
    numbers = [{int(q[8:-1]) % 20 for q in questions} for questions in pictures]
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 20 and sum(map(len, parts)) == 200


def test_a_folder_with_files_named_by_splits(tmp_path):
    for split, n in (("train", 3), ("dev", 2)):
        rows = [{"image": "a.png", "question": f"{split} {i}?", "answer": "x"} for i in range(n)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(open_source(str(tmp_path), "train")) == 3 and len(open_source(str(tmp_path), "validation")) == 2
    with pytest.raises(FileNotFoundError, match="no split 'test'; it has train, validation"):
        open_source(str(tmp_path), "test")


def test_a_table_of_captions_with_labels_is_one_of_captions(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,caption,label\na.png,a dog,dog\na.png,an animal,dog\n")
    source = open_source(str(tmp_path))
    assert len(source) == 1 and source.text(0)["captions"] == ["a dog", "an animal"]
    assert source.text(0)["label"] == "dog"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,question,answers\na.png,is it?,yes\n", r"line 2: `answers` must be a list .* not 'yes'"),
        ("question,answer\nis it?,yes\n", "line 2: needs an image"),
    ],
)
def test_bad_tables_of_questions(tmp_path, table, message):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path))


def test_a_column_that_no_transform_made_stays_out_of_the_batch(tmp_path, tok):
    from simvlm_jax.data.pipeline import Part, Pipeline
    from simvlm_jax.data.source import Cached
    from simvlm_jax.data.transforms import Keep

    keep = Keep(("image", "text", "text_mask", "prefix_length"))

    (tmp_path / "a.png").write_bytes(png("red"))
    row = {"image": "a.png", "question": "is it red?", "answer": "yes", "label": "colour", "seed": 3}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    source = open_source(str(tmp_path))
    batch = Pipeline([Part("p", source, [Pixels(4), TokenizePair(tok), keep], 2)], 0).batch(0)["p"]
    assert set(batch) == {"image", "text", "text_mask", "prefix_length", "id", "weight"}
    cached = Pipeline([Part("p", Cached(source, [Pixels(4)]), [TokenizePair(tok), keep], 2)], 0).batch(0)["p"]
    assert batch["image"].tolist() == cached["image"].tolist()

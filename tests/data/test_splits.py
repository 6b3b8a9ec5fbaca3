"""Which rows a split has, and folders that could be read in two ways: what is not plain is refused, in words that help."""

import json

import pytest

from simvlm_jax.cli import main
from simvlm_jax.core.build import load_config
from simvlm_jax.data import assemble
from simvlm_jax.data.folders import walk
from simvlm_jax.data.sources import open_one_split, open_source, open_split
from simvlm_jax.data.splits import NoSuchSplit, Refused
from tests.data.test_layouts import coco, pic, put, write_tar

ROW = "image,caption\n"


def keys(source):
    return [source.key(i) for i in range(len(source))]


def captions(source):
    return [source.text(i).get("captions") for i in range(len(source))]


def table(folder, name, *images):
    put(folder, name, ROW + "".join(f"{i},of {i}\n" for i in images))
    for i in images:
        put(folder, i, pic(sum(map(ord, i))))


# ---- a split that somebody names --------------------------------------------------------------------------------------


def test_rows_that_nothing_parts_are_no_split(tmp_path, capsys):
    table(tmp_path, "t.csv", "0.png", "1.png")
    assert len(open_split(str(tmp_path), "train")) == len(open_one_split(str(tmp_path), None)) == 2
    with pytest.raises(
        NoSuchSplit, match="no split 'val': nothing tells splits apart in its 2 rows; leave the split out"
    ):
        open_split(str(tmp_path), "val")
    assert main(["data", "show", str(tmp_path), "--split", "val"]) == 1
    assert "nothing tells splits apart" in capsys.readouterr().err


def test_a_file_is_of_the_split_that_its_name_tells(tmp_path):
    table(tmp_path, "my_val.csv", "0.png")
    source = open_source(str(tmp_path / "my_val.csv"), "train")
    assert source.split == source.understood.split == "validation"
    assert len(open_split(str(tmp_path / "my_val.csv"), "dev")) == 1
    with pytest.raises(NoSuchSplit, match="no split 'train'; by its name it is validation"):
        open_split(str(tmp_path / "my_val.csv"), "train")
    with pytest.raises(NoSuchSplit, match="it has validation"):
        open_source(str(tmp_path), "train")


def test_a_pattern_is_read_by_split(tmp_path):
    for i, name in enumerate(("train-0.tar", "train-1.tar", "val-0.tar")):
        write_tar(tmp_path / name, [(f"{i}.png", pic(i)), (f"{i}.txt", b"x")])
    pattern = str(tmp_path / "*.tar")
    assert keys(open_source(pattern, "train")) == ["0", "1"]
    assert keys(open_source(pattern, "validation")) == ["2"]
    with pytest.raises(NoSuchSplit, match="has no split 'test'"):
        open_source(pattern, "test")
    assert keys(open_source(str(tmp_path / "val-*.tar"), "train")) == ["2"]


@pytest.mark.parametrize("names", [("captionsTrain", "captionsVal"), ("train1", "val1"), ("TEXT_TRAIN", "text.dev")])
def test_splits_in_names_of_files(tmp_path, names):
    for i, name in enumerate(names):
        table(tmp_path, f"{name}.csv", f"{i}.png")
    assert [keys(open_source(str(tmp_path), s)) for s in ("train", "val")] == [["0.png"], ["1.png"]]


def test_a_column_tells_the_split(tmp_path):
    rows = ["0.png,a,train", "1.png,b,restval", "2.png,c,val", "3.png,d,test"]
    put(tmp_path, "all_test.csv", "image,caption,split\n" + "\n".join(rows))
    for split, found in {"train": ["0.png", "1.png"], "dev": ["2.png"], "test": ["3.png"]}.items():
        source = open_source(str(tmp_path), split)
        assert keys(source) == found
        assert source.split in ("train", "validation", "test")
    put(tmp_path, "all_test.csv", "image,caption,split\n0.png,a,left\n1.png,b,train\n")  # another thing of that name
    assert keys(open_source(str(tmp_path / "all_test.csv"))) == ["0.png", "1.png"]


def test_folders_of_pictures_tell_the_split(tmp_path):
    put(tmp_path, "metadata.csv", "file_name,text\ntrain/0.png,a\ntest/1.png,b\n")
    assert keys(open_source(str(tmp_path), "train")) == ["train/0.png"]
    assert keys(open_source(str(tmp_path), "test")) == ["test/1.png"]
    with pytest.raises(NoSuchSplit, match="its rows are of test, train"):
        open_source(str(tmp_path), "validation")
    put(
        tmp_path, "metadata.csv", "file_name,text\ntrain2014/0.png,a\nval2014/1.png,b\n"
    )  # as Karpathy's train split is
    assert len(open_source(str(tmp_path))) == 2


def test_texts_beside_pictures_in_folders_of_splits(tmp_path):
    for name in ("data/train/a", "data/train/b", "data/val/c", "data/more/d"):
        put(tmp_path, f"{name}.png", pic())
        put(tmp_path, f"{name}.txt", f"of {name}")
    source = open_source(str(tmp_path), "train")
    assert keys(source) == ["data/train/a.png", "data/train/b.png"]
    assert source.understood.left_out == {"pictures in folders that no split names": 1}
    assert keys(open_source(str(tmp_path), "val")) == ["data/val/c.png"]
    with pytest.raises(NoSuchSplit):
        open_source(str(tmp_path), "test")


def test_two_years_of_coco_are_not_one_split(tmp_path):
    coco(tmp_path, "val", [1, 2])
    old = json.loads((tmp_path / "annotations/captions_val2017.json").read_text())
    put(tmp_path, "annotations/captions_val2014.json", json.dumps({**old, "annotations": old["annotations"][:2]}))
    for i in (1, 2):
        put(tmp_path, f"val2014/{i:012d}.png", pic(100 + i))
    with pytest.raises(Refused, match=r"several sets of 'val' \(val2014, val2017\); ask for one of these"):
        open_source(str(tmp_path), "val")
    new, before = open_split(str(tmp_path), "val2017"), open_split(str(tmp_path), "val2014")
    assert (len(new), len(before)) == (2, 1)
    assert (new[0]["image"], before[0]["image"]) == (pic(1), pic(101))


def test_a_record_in_two_files_is_refused(tmp_path):
    one = {"q1": {"imageId": "1", "question": "what?", "answer": "this"}}
    put(tmp_path, "val_all_questions.json", json.dumps({**one, "q2": one["q1"]}))
    put(tmp_path, "val_balanced_questions.json", json.dumps(one))
    put(tmp_path, "testdev_all_questions.json", json.dumps(one))
    put(tmp_path, "test_all_questions.json", json.dumps({"q3": one["q1"], "q4": one["q1"]}))
    with pytest.raises(Refused, match=r"'q1' stands in val_all_questions\.json and in val_balanced_questions\.json"):
        open_source(str(tmp_path), "val")
    assert (len(open_split(str(tmp_path), "testdev")), len(open_split(str(tmp_path), "test"))) == (1, 2)


def test_what_is_evaluated_is_not_what_was_learned(tmp_path):
    table(tmp_path, "t.csv", *(f"{i}.png" for i in range(200)))
    config = load_config("configs/prefixlm.py:smoke")
    config.data.parts.pairs.path = str(tmp_path)
    config.data.eval.path = str(tmp_path / "t.csv")
    with pytest.raises(Refused, match=r"holds the rows of config\.data\.parts\.pairs\.path again"):
        assemble.eval_sources(config.data)
    config.data.eval.path = None
    held = set(keys(next(iter(assemble.eval_sources(config.data).values()))))
    assert held and not held & set(keys(assemble.part_sources(config.data)["pairs"]))
    table(tmp_path / "other", "t.csv", "x.png")
    config.data.eval.path = str(tmp_path / "other")
    assert keys(assemble.eval_sources(config.data)["test"]) == ["x.png"]
    config.data.eval.split = "test"  # which is not what a config has if nobody names one
    with pytest.raises(NoSuchSplit, match="nothing tells splits apart"):
        assemble.eval_sources(config.data)


def test_no_picture_comes_from_another_split(tmp_path):
    for i, split in enumerate(("train", "val")):
        put(tmp_path, f"{split}/same.png", pic(i))
        put(tmp_path, f"{split}.csv", ROW + "same.png,x\nonly.png,y\n")
    put(tmp_path, "train/only.png", pic(7))
    train, val = (open_source(str(tmp_path), s) for s in ("train", "val"))
    assert [train[0]["image"], train[1]["image"], val[0]["image"]] == [pic(0), pic(7), pic(1)]
    with pytest.raises(FileNotFoundError, match=r"'only\.png' is only in .*train, of another split"):
        val[1]


# ---- two layouts in one folder ----------------------------------------------------------------------------------------

KARPATHY = json.dumps({"images": [{"filename": "0.png", "split": "test", "sentences": [{"raw": "a"}]}]})
COCO = json.dumps({"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "caption": "a"}]})
VQA = json.dumps({"questions": [{"question_id": 1, "image_id": 1, "question": "q"}]})
LIST = json.dumps([{"image": "0.png", "caption": "a"}])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"captions.txt": "image,caption\n0.png,a", "dataset_flickr8k.json": KARPATHY}, r"captions\.txt.* and .*dataset_flickr8k"),
        ({"0.txt": "tags", "metadata.csv": ROW + "0.png,a\n"}, r"tables \(metadata\.csv\) and pictures with texts"),
        ({"0.txt": "tags", "captions.json": LIST}, r"texts beside them \(0\.png\) and annotations"),
        ({"captions.json": COCO, "stats.csv": ROW + "0.png,a\n"}, r"tables \(stats\.csv\) and annotations"),
        ({"captions_train2014.json": COCO, "v2_train2014_questions.json": VQA}, r"name the file"),
        ({"a.csv": ROW + "0.png,a\n", "b.csv": "image,question,answer\n0.png,q,a\n"}, r"\(a\.csv\) and questions or labels"),
        ({"a.csv": ROW + "0.png,a\n", "a.jsonl": '{"image": "0.png", "caption": "a"}\n'}, r"a\.jsonl holds rows of a\.csv again"),
        ({"t (1).csv": ROW + "0.png,a\n", "t.csv": ROW + "0.png,a\n"}, r"t\.csv holds rows of t \(1\)\.csv again"),
        ({"x_meta.json": LIST, "x.json": json.dumps([{"image": "0.png", "conversations": []}])}, "and questions or labels"),
        ({"images.tar": None, "captions.json": LIST}, r"tars \(images\.tar\) and annotations in JSON"),
    ],
)  # fmt: skip
def test_two_layouts_are_refused(tmp_path, files, message):
    put(tmp_path, "0.png", pic())
    for name, text in files.items():
        write_tar(tmp_path / name, [("0.png", pic())]) if text is None else put(tmp_path, name, text)
    with pytest.raises(Refused, match=message):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "files",
    [
        ["train2017/1.png", "val2017/2.png"],
        ["train/1.png", "test/2.png"],
        ["images/1.png", "masks/1.png"],
        ["00000/1.png", "00001/2.png"],
        ["train_images/1.png", "test_images/2.png"],
        ["train/cat/0.png", "train/dog/0.png", "train/cat/metadata.csv"],
    ],
)
def test_folders_that_are_no_classes(tmp_path, files):
    for name in files:
        put(tmp_path, name, pic() if name.endswith(".png") else "file_name,text\n0.png,x\n")
    with pytest.raises(Refused, match=r"hardly a class|no reader understands"):
        open_source(str(tmp_path))


def test_a_table_in_a_folder_of_many_pictures_is_found(tmp_path):
    """Whatever the order in which a folder is listed."""
    for i in range(300):
        put(tmp_path, f"train/{i}.png", b"")
    put(tmp_path, "train/captions.csv", ROW + "0.png,a\n")
    put(tmp_path, "test/captions.csv", ROW + "1.png,b\n")
    assert captions(open_source(str(tmp_path), "train")) == [["a"]]


def test_hidden_files_and_linked_folders(tmp_path):
    put(tmp_path, "far/1.png", pic(1))
    put(tmp_path, "far/1.txt", "linked")
    root = tmp_path / "data"
    put(root, "0.png", pic(0))
    put(root, "0.txt", "here")
    (root / "more").symlink_to(tmp_path / "far")
    (tmp_path / "far/back").symlink_to(root)  # a circle
    put(root, ".ipynb_checkpoints/0.png", pic())
    put(root, "__MACOSX/._0.png", pic())
    put(root, "._train.json", b"\x00\x05\x16\x07")
    put(root, "Thumbs.db", b"x")
    assert keys(open_source(str(root))) == ["0.png", "more/1.png"]
    assert [str(p.relative_to(root)) for p, _ in walk(root)] == [".", "more"]


def test_classes_behind_links_are_counted_right(tmp_path):
    put(tmp_path, "far/1.png", pic())
    put(tmp_path, "data/Train/cat/2.png", pic())
    (tmp_path / "data/Train/dog").symlink_to(tmp_path / "far")
    source = open_source(str(tmp_path / "data"), "train")
    assert [source[i]["label"] for i in range(2)] == ["cat", "dog"]
    assert not source.understood.left_out


# ---- what a record says -----------------------------------------------------------------------------------------------


def talk(folder, *turns, image="0.png"):
    put(
        folder,
        "t.json",
        json.dumps([{"id": 1, "image": image, "conversations": [{"from": w, "value": v} for w, v in turns]}]),
    )
    return open_source(str(folder))


def test_conversations_are_read_by_speaker(tmp_path):
    put(tmp_path, "0.png", pic())
    row = talk(
        tmp_path, ("system", "You are"), ("human", "<image>\nq"), ("gpt", "a"), ("human", "r"), ("gpt", "b")
    ).text(0)
    assert (row["question"], row["answer"], row["texts"]) == ("q", "a", ["q", "a", "r", "b"])
    row = talk(tmp_path, ("gpt", "hello"), ("user", "q"), ("assistant", "a")).text(0)
    assert (row["question"], row["answer"]) == ("q", "a")
    with pytest.raises(ValueError, match="no turn of a person that a model answers"):
        talk(tmp_path, ("gpt", "a"), ("human", "q"))
    with pytest.raises(ValueError, match="a speaker 'nobody'"):
        talk(tmp_path, ("nobody", "a"), ("human", "q"))
    with pytest.raises(ValueError, match="1 conversations without a picture"):
        talk(tmp_path, ("human", "q"), ("gpt", "a"), image=None)


def test_empty_captions_are_none(tmp_path, capsys):
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
    notes = [{"image_id": i, "caption": c, "id": n} for n, (i, c) in enumerate([(0, ""), (1, " "), (1, "a"), (2, "b")])]
    put(tmp_path / "coco", "captions_val2014.json", json.dumps({"images": images, "annotations": notes}))
    source = open_source(str(tmp_path / "coco"), "val")
    assert captions(source) == [["a"], ["b"]]
    assert source.understood.left_out == {"empty captions": 2, "pictures without a caption": 1}
    listed = [
        {"filename": f"{i}.png", "split": "val", "sentences": [{"raw": c}, {"raw": ""}]}
        for i, c in enumerate(["a", ""])
    ]
    put(tmp_path / "karpathy", "dataset_coco.json", json.dumps({"images": listed}))
    source = open_source(str(tmp_path / "karpathy"), "val")
    assert captions(source) == [["a"]]
    assert source.understood.left_out == {"empty captions": 3, "pictures without a caption": 1}
    assert main(["data", "show", str(tmp_path / "karpathy"), "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().err)["left_out"] == {"empty captions": 3, "pictures without a caption": 1}


def test_a_second_label_of_a_picture_is_told(tmp_path):
    put(tmp_path, "t.csv", "image,caption,label\n0.png,a,dog\n0.png,b,cat\n0.png,c,dog\n")
    source = open_source(str(tmp_path))
    assert source.text(0)["captions"] == ["a", "c"]
    assert "has the label 'cat', and 'dog' in an earlier row" in source.understood.line()


def test_questions_named_as_those_of_easy_vqa(tmp_path):
    put(tmp_path, "0.png", pic())
    put(tmp_path, "train_questions.json", json.dumps([{"image": "0.png", "question": "q", "answer": "a"}]))
    assert open_source(str(tmp_path)).text(0)["question"] == "q"


def test_complementary_pairs_are_left_out_and_said(tmp_path):
    put(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", VQA)
    put(tmp_path, "v2_mscoco_val2014_complementary_pairs.json", "[[1, 2], [3, 4]]")
    source = open_source(str(tmp_path), "val")
    assert len(source) == 1
    assert source.understood.left_out == {"files of complementary pairs": 1}


@pytest.mark.parametrize("kind", ["tar", "karpathy", "txt", "table"])
def test_a_tokenizer_of_any_layout(tmp_path, kind, capsys):
    texts = [f"a picture of number {i} and more" for i in range(60)]
    if kind == "tar":
        path = tmp_path / "d.tar"
        write_tar(path, [m for i, t in enumerate(texts) for m in ((f"{i}.png", pic(i)), (f"{i}.txt", t.encode()))])
    elif kind == "txt":
        path = put(tmp_path, "d.txt", "\n".join(texts))
    elif kind == "table":
        path = put(tmp_path, "d.csv", "text\n" + "\n".join(texts))
    else:
        images = [{"filename": f"{i}.png", "split": "train", "sentences": [{"raw": t}]} for i, t in enumerate(texts)]
        path = put(tmp_path, "dataset_coco.json", json.dumps({"images": images}))
    assert main(["data", "tokenizer", str(path), "--out", str(tmp_path / "out"), "--vocabulary", "300"]) == 0
    assert "from 60 texts" in capsys.readouterr().out

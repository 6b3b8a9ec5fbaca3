"""The layouts that people have, built as their tools write them, through `simvlm data show`; and those that are refused."""

import io
import json
import os
import tarfile
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from simvlm_jax.cli import main
from simvlm_jax.data.readers.tars import CUT, index_tar
from simvlm_jax.data.sources import open_source
from simvlm_jax.data.splits import NoSuchSplit, Refused, split_of


def pic(i=0, fmt="PNG"):
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(out, fmt)
    return out.getvalue()


def put(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def write_tar(path, members):
    """members: (name, bytes, or a kind of link and where it leads)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type, info.linkname = data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shown(capsys):
    """`shown(path, *options)`: (rows by key, what was understood)."""

    def show(path, *options):
        assert main(["data", "show", str(path), *options]) == 0
        out, err = capsys.readouterr()
        rows = [json.loads(line) for line in out.splitlines()]
        assert len({r["key"] for r in rows}) == len(rows)
        source = open_source(str(path), *([options[1]] if options[:1] == ("--split",) else []))
        assert all(isinstance(source[i].get("image", b""), bytes) for i in range(len(source)))  # pictures are found
        return {r["key"]: r for r in rows}, err

    return show


def coco(folder, split, ids):
    images = [{"id": i, "file_name": f"{i:012d}.png", "width": 8, "height": 8} for i in ids]
    for i in images:
        put(folder, f"{split}2017/{i['file_name']}", pic(i["id"]))
    notes = [{"image_id": i, "id": 10 * i + n, "caption": f"caption {n} of {i}\n"} for i in ids for n in range(2)]
    put(
        folder,
        f"annotations/captions_{split}2017.json",
        json.dumps({"info": {}, "images": images, "annotations": notes}),
    )
    return images


def test_coco(tmp_path, shown):
    coco(tmp_path, "train", [1, 2])
    images = coco(tmp_path, "val", [3, 4, 5])
    boxes = [{"id": 1, "image_id": 3, "category_id": 18, "bbox": [0, 0, 1, 1]}]
    boxes += [{"id": 2, "image_id": 4, "category_id": c, "bbox": [0, 0, 1, 1]} for c in (18, 1, 18)]
    names = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    instances = json.dumps({"images": images, "annotations": boxes, "categories": names})
    put(tmp_path, "annotations/instances_val2017.json", instances)
    put(tmp_path, "annotations/person_keypoints_val2017.json", "{}")
    rows, told = shown(tmp_path)
    assert {k: r["captions"] for k, r in rows.items()} == {
        f"{i:012d}.png": [f"caption 0 of {i}", f"caption 1 of {i}"] for i in (1, 2)
    }
    assert "COCO captions" in told and "2 rows" in told and "split train" in told
    rows, told = shown(tmp_path, "--split", "val")
    assert rows["000000000003.png"]["label"] == "dog" and rows["000000000004.png"]["labels"] == ["dog", "person"]
    assert "label" not in rows["000000000004.png"] and "captions and instances" in told
    assert len(shown(tmp_path / "annotations" / "captions_val2017.json")[0]) == 3
    put(tmp_path / "more", "instances_val2017.json", instances)
    put(tmp_path / "more", "val2017/x.png", pic())
    assert open_source(str(tmp_path / "more"), "validation").text(0)["label"] == "dog"
    with pytest.raises(NoSuchSplit, match="no split 'test'; it has train, validation"):
        open_source(str(tmp_path), "test")


@pytest.mark.parametrize("of", ["flickr8k", "coco"])
def test_karpathy(tmp_path, shown, of):
    images = []
    for i, split in enumerate(["train", "restval", "val", "test"]):
        image = {"filename": f"{i}.png", "split": split, "imgid": i, "sentids": [i]}
        image["sentences"] = [{"raw": f"A dog {i}.", "tokens": ["a", "dog"], "imgid": i, "sentid": i}]
        images.append(image | ({"filepath": "val2014", "cocoid": i} if of == "coco" else {}))
        put(tmp_path, f"{'val2014' if of == 'coco' else 'images'}/{i}.png", pic(i))
    put(tmp_path, f"dataset_{of}.json", json.dumps({"images": images, "dataset": of}))
    rows, told = shown(tmp_path)
    assert [r["captions"] for r in rows.values()] == [["A dog 0."], ["A dog 1."]] and "Karpathy" in told
    assert [r["captions"] for r in shown(tmp_path, "--split", "validation")[0].values()] == [["A dog 2."]]


def test_flickr8k_tokens_and_their_lists_of_splits(tmp_path, shown):
    lines = [f"{i}.png#{n}\tA dog , number {i} , runs ." for i in range(3) for n in range(5)]
    put(tmp_path, "Flickr8k_text/Flickr8k.token.txt", "\n".join(lines) + "\n")
    put(tmp_path, "Flickr8k_text/Flickr8k.lemma.token.txt", "\n".join(lines) + "\n")
    put(tmp_path, "Flickr8k_text/Flickr_8k.trainImages.txt", "0.png\n1.png\nlost.png\n")
    put(tmp_path, "Flickr8k_text/Flickr_8k.devImages.txt", "2.png\n")
    for i in range(3):
        put(tmp_path, f"Flicker8k_Dataset/{i}.png", pic(i))
    rows, told = shown(tmp_path / "Flickr8k_text")
    assert list(rows) == ["0.png", "1.png"] and rows["1.png"]["captions"] == ["A dog , number 1 , runs ."] * 5
    assert "Flickr tokens" in told and "1 pictures of the list without a caption, such as lost.png" in told
    assert list(shown(tmp_path / "Flickr8k_text", "--split", "dev")[0]) == ["2.png"]


def test_flickr8k_captions_txt(tmp_path, shown):
    put(
        tmp_path,
        "captions.txt",
        'image,caption\n0.png,A dog , running .\n0.png,"A ""big"" dog, too"\n1.png,"Hi" says a dog .\n',
    )
    for i in range(2):
        put(tmp_path, f"Images/{i}.png", pic(i))
    rows, _ = shown(tmp_path)
    assert rows["0.png"]["captions"] == ["A dog , running .", 'A "big" dog, too']
    assert rows["1.png"]["captions"] == ['"Hi" says a dog .']
    assert list(shown(tmp_path / "captions.txt")[0]) == ["0.png", "1.png"]


def test_flickr30k(tmp_path, shown):
    put(tmp_path / "a", "results_20130124.token", "0.png#0\tTwo men .\n0.png#1\tA pair .\n")
    put(tmp_path / "a", "flickr30k-images/0.png", pic())
    assert shown(tmp_path / "a")[0]["0.png"]["captions"] == ["Two men .", "A pair ."]
    piped = "image_name| comment_number| comment\n0.png| 0| Two men , old .\n0.png| 4   A dog runs .\n"
    put(tmp_path / "b", "results.csv", piped)  # the published file lacks one mark
    put(tmp_path / "b", "flickr30k_images/0.png", pic())
    rows, told = shown(tmp_path / "b")
    assert rows["0.png"]["captions"] == ["Two men , old .", "A dog runs ."] and "Flickr30k CSV" in told


def img2dataset(folder, form, n=4):
    keys = [f"{i:09d}" for i in range(n)]
    metas = [{"url": f"http://x/{k}.jpg", "caption": f"thing {k}", "key": k, "status": "success"} for k in keys]
    failed = {"url": "http://x/9.jpg", "caption": "gone", "key": f"{n:09d}", "status": "failed_to_download"}
    put(folder, "00000_stats.json", json.dumps({"count": n + 1, "successes": n, "failed_to_download": 1}))
    rows = [*metas, failed]
    if form == "parquet":
        rows = [{**m, "jpg": pic(i, "JPEG")} for i, m in enumerate(metas)] + [{**failed, "jpg": None}]
    pq.write_table(pa.Table.from_pylist(rows), put(folder, "00000.parquet", b""))
    files = [
        (f"{k}.{e}", b)
        for i, (k, m) in enumerate(zip(keys, metas, strict=True))
        for e, b in (("jpg", pic(i, "JPEG")), ("json", json.dumps(m).encode()), ("txt", m["caption"].encode()))
    ]
    if form == "webdataset":
        write_tar(folder / "00000.tar", files)
    if form == "files":
        for name, data in files:
            put(folder, f"00000/{name}", data)


@pytest.mark.parametrize("form", ["webdataset", "parquet", "files"])
def test_img2dataset(tmp_path, shown, form):
    img2dataset(tmp_path, form)
    rows, told = shown(tmp_path)
    assert [r["captions"] for r in rows.values()] == [[f"thing {i:09d}"] for i in range(4)]
    assert all("label" not in r for r in rows.values())
    assert "img2dataset" in told and "1 of status failed_to_download" in told


@pytest.mark.parametrize(("mark", "name"), [("\t", "train.csv"), (",", "train.csv"), ("\t", "train.tsv")])
def test_open_clips_csv(tmp_path, shown, mark, name):
    put(tmp_path, "0.png", pic())
    put(tmp_path, name, f"filepath{mark}title\n{tmp_path / '0.png'}{mark}a dog\n")
    assert [r["captions"] for r in shown(tmp_path)[0].values()] == [["a dog"]]


@pytest.mark.parametrize("kind", ["struct", "bytes"])
def test_hugging_faces_parquet(tmp_path, shown, kind):
    for split, n in (("train", 3), ("test", 2)):
        images = [{"bytes": pic(i), "path": f"{i}.png"} if kind == "struct" else pic(i) for i in range(n)]
        table = pa.table({"image": images, "text": [f"a picture of {i}" for i in range(n)]})
        path = put(tmp_path, f"data/{split}-00000-of-00001.parquet", b"")
        pq.write_table(table, path, row_group_size=2)
    put(tmp_path, "README.md", "---")
    rows, told = shown(tmp_path)
    assert [r["captions"] for r in rows.values()] == [[f"a picture of {i}"] for i in range(3)] and "split train" in told
    assert len(shown(tmp_path, "--split", "test")[0]) == 2
    source = open_source(str(tmp_path))
    assert [source[i]["image"] for i in (2, 0, 1)] == [pic(2), pic(0), pic(1)]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_hugging_faces_imagefolder(tmp_path, shown, kind):
    for split in ("train", "validation"):
        for i in range(2):
            put(tmp_path, f"{split}/{i}.png", pic(i))
        rows = [{"file_name": f"{i}.png", "text": f"{split} {i}"} for i in range(2)]
        table = (
            "\n".join(map(json.dumps, rows))
            if kind == "jsonl"
            else "\n".join(["file_name,text", *(f"{r['file_name']},{r['text']}" for r in rows)])
        )
        put(tmp_path, f"{split}/metadata.{kind}", table)
    rows, told = shown(tmp_path)
    assert {k: r["captions"] for k, r in rows.items()} == {f"{i}.png": [f"train {i}"] for i in range(2)}
    assert "split train" in told
    assert shown(tmp_path, "--split", "val")[0]["1.png"]["captions"] == ["validation 1"]


def test_lavis_and_blip_lists(tmp_path, shown):
    put(tmp_path, "images/val2014/a.png", pic())
    train = [{"caption": f"a dog {n}", "image": "val2014/a.png", "image_id": "coco_1"} for n in range(2)]
    put(tmp_path, "annotations/coco_karpathy_train.json", json.dumps(train))
    test = [{"image": "val2014/a.png", "caption": ["one", "two"]}]
    put(tmp_path, "annotations/coco_karpathy_test.json", json.dumps(test))
    assert shown(tmp_path)[0]["val2014/a.png"]["captions"] == ["a dog 0", "a dog 1"]
    assert shown(tmp_path, "--split", "test")[0]["val2014/a.png"]["captions"] == ["one", "two"]
    asked = [
        {
            "question_id": 7,
            "question": "is it?",
            "answer": ["yes", "yes", "no"],
            "image": "val2014/a.png",
            "dataset": "vqa",
        }
    ]
    put(tmp_path / "vqa", "vqa_train.json", json.dumps(asked))
    put(tmp_path / "vqa", "val2014/a.png", pic())
    assert shown(tmp_path / "vqa")[0]["7"]["answers"] == ["yes", "yes", "no"]


def test_llava(tmp_path, shown):
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "A dog."), ("human", "Which colour?"), ("gpt", "Brown.")]
    talk = [{"from": who, "value": said} for who, said in turns]
    put(tmp_path, "coco/train2017/a.png", pic())
    put(tmp_path, "llava.json", json.dumps([{"id": "a1", "image": "coco/train2017/a.png", "conversations": talk}]))
    (row,), told = (list(shown(tmp_path)[0].values()), shown(tmp_path)[1])
    assert (row["question"], row["answer"]) == ("What is it?", "A dog.") and "LLaVA" in told
    assert row["texts"] == ["What is it?", "A dog.", "Which colour?", "Brown."]


@pytest.mark.parametrize("version", ["v2_", ""])
def test_vqa_and_ok_vqa(tmp_path, shown, version):
    put(tmp_path, "train2014/COCO_train2014_000000000042.png", pic())
    asked = {"data_subtype": "train2014", "questions": [{"image_id": 42, "question": "is it?", "question_id": 420}]}
    put(tmp_path, f"{version}OpenEnded_mscoco_train2014_questions.json", json.dumps(asked))
    notes = [
        {
            "question_id": 420,
            "image_id": 42,
            "answer_type": "other",
            "answers": [{"answer": "yes", "answer_id": 1}] * 10,
        }
    ]
    put(tmp_path, f"{version}mscoco_train2014_annotations.json", json.dumps({"annotations": notes}))
    row = shown(tmp_path)[0]["420"]
    assert row["question"] == "is it?" and row["answers"] == ["yes"] * 10


def test_gqa(tmp_path, shown):
    put(tmp_path, "images/n1.png", pic())
    asked = {"02": {"imageId": "n1", "question": "Is it red?", "answer": "no", "fullAnswer": "No, it is blue."}}
    put(tmp_path, "train_balanced_questions.json", json.dumps(asked))
    row = shown(tmp_path)[0]["02"]
    assert (row["question"], row["answer"]) == ("Is it red?", "no")


def test_tars_of_numbered_classes(tmp_path, shown):
    """clip_benchmark's layout."""
    write_tar(
        tmp_path / "test" / "0.tar",
        [(f"s{i}.{e}", b) for i in range(3) for e, b in (("png", pic(i)), ("cls", str(i % 2).encode()))],
    )
    put(tmp_path, "test/nshards.txt", "1")
    put(tmp_path, "classnames.txt", "dog\nC++\n")
    put(tmp_path, "zeroshot_classification_templates.txt", "a photo of a {c}.\n")
    rows, told = shown(tmp_path, "--split", "test")
    assert [r["label"] for r in rows.values()] == ["dog", "C++", "dog"] and "numbered classes" in told
    source = open_source(str(tmp_path), "test")
    assert source.classes == ("dog", "C++") and source.templates == ("a photo of a {name}.",)


def test_texts_of_tars(tmp_path, shown):
    five = "\n".join(["a dog runs", "the dog", "a brown dog", "dog in a park", "it runs"])
    kinds = [
        ("txt", five.encode(), five.split("\n")),
        ("txt", b"\xef\xbb\xbfa dog", ["a dog"]),
        ("txt", "a dog".encode("utf-16"), ["a dog"]),
        ("txt", "a\u2028dog\r\na\x85b\x0bc\x0cd\x1ce\rf\n".encode(), ["a dog", "a b c d e", "f"]),
        ("json", b'{"captions": [], "caption": "a dog"}', ["a dog"]),
        ("json", b'{"text": "a dog"}', ["a dog"]),
        ("json", b'{"captions": [{"raw": "a dog"}, {"text": "a cat"}]}', ["a dog", "a cat"]),
    ]
    for n, (suffix, data, _) in enumerate(kinds):
        write_tar(tmp_path / f"{n}.tar", [("0.jpg", pic(0, "JPEG")), (f"0.{suffix}", data)])
        assert shown(tmp_path / f"{n}.tar")[0]["0"]["captions"] == kinds[n][2]
    for bad in ("un café".encode("latin-1"), None):
        data = ("0.txt", bad) if bad else ("0.json", b'{"text": {"text": {"text": 1}}}')
        write_tar(tmp_path / "bad.tar", [("0.jpg", pic(0, "JPEG")), data])
        with pytest.raises(ValueError, match="is not UTF-8" if bad else "a caption must be text"):
            open_source(str(tmp_path / "bad.tar"))[0]


def test_names_and_links_in_tars(tmp_path, shown):
    def both(i, name, data):
        return [(name, data), (name.rpartition(".")[0] + ".txt", b"a caption")]

    cases = {
        "dots": lambda i: both(i, f"IMG_{i}.v1.jpg" if i % 2 else f"IMG_{i}.jpg", pic(i, "JPEG")),
        "suffixes": lambda i: both(i, f"{i:04d}.{('jpg', 'jfif', 'tif', 'JPE', 'bmp')[i % 5]}", pic(i)),
        "hard": lambda i: both(i, f"{i:04d}.jpg", pic(0) if i == 0 else (tarfile.LNKTYPE, "0000.jpg")),
        "soft": lambda i: both(i, f"d/{i:04d}.jpg", pic(0) if i == 0 else (tarfile.SYMTYPE, "0000.jpg")),
    }
    for name, members in cases.items():
        write_tar(tmp_path / f"{name}.tar", [m for i in range(20) for m in members(i)])
        rows, _ = shown(tmp_path / f"{name}.tar")
        assert len(rows) == 20 and all(r["captions"] == ["a caption"] for r in rows.values())
    extra = [
        ("a.jpg", pic()),
        ("a.txt", b"x"),
        ("a.seg.png", pic()),
        ("a.mp3", b""),
        ("b.txt", b"y"),
        ("c.jpg", (tarfile.SYMTYPE, "z")),
    ]
    write_tar(tmp_path / "extra.tar", extra)
    rows, told = shown(tmp_path / "extra.tar")
    assert list(rows) == ["a"]
    for reason in (
        "1 further members such as .seg.png",
        "1 members .mp3",
        "1 samples without a picture",
        "1 links that lead to no file",
    ):
        assert reason in told


def test_a_tar_that_was_cut_anywhere_is_an_error_unless_allowed(tmp_path):
    write_tar(tmp_path / "whole.tar", [(f"{i}.{e}", b) for i in range(4) for e, b in (("jpg", pic(i)), ("txt", b"a"))])
    data = (tmp_path / "whole.tar").read_bytes()
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    for cut in range(512, end + 1, 512):
        put(tmp_path, f"{cut}.tar", data[:cut])
        with pytest.raises(ValueError, match="not a whole, uncompressed tar"):
            open_source(str(tmp_path / f"{cut}.tar"))
    negative = bytearray(data)
    negative[124:136] = b"\xff" * 11 + b"\x00"
    negative[148:156] = b" " * 8
    negative[148:156] = f"{sum(negative[:512]):06o}\0 ".encode()
    with pytest.raises(ValueError, match="not a whole, uncompressed tar"):
        open_source(str(put(tmp_path, "negative.tar", bytes(negative))))


@pytest.mark.parametrize("name", ["{}", "é" * 120 + "{}"], ids=["short", "pax"])
def test_what_was_whole_before_a_cut_is_read(tmp_path, name):
    files = [
        (f"{name.format(i)}.{e}", b) for i in range(3) for e, b in (("jpg", b"x" * (500 + 200 * i)), ("txt", b"a"))
    ]
    write_tar(tmp_path / "whole.tar", files)
    data = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        places = [(m.offset, m.offset_data + m.size) for m in tar]
    last = -(-places[-1][1] // 512) * 512
    for cut in range(0, last + 1024, 64):
        path = put(tmp_path, f"{cut}.tar", data[:cut])
        rows, gone = index_tar(path, truncated=True)
        assert sum(".jpg" in found for _, found in rows) == sum(end <= cut for _, end in places[::2])
        assert sum(".txt" in found for _, found in rows) == sum(end <= cut for _, end in places[1::2])
        assert gone == Counter({CUT: n} if (n := sum(start < cut < end for start, end in places)) else {})
        if cut < last + 512:
            with pytest.raises(ValueError, match="not a whole, uncompressed tar"):
                index_tar(path)
    with pytest.raises(ValueError, match=r"no images in .*left out: 1 members cut at the end of a tar"):
        open_source(str(put(tmp_path, "none.tar", data[: places[0][1] - 1])), truncated=True)
    for start, _ in places[1:]:  # a block that is no header, while the file goes on
        bad = data[:start] + b"?" * 512 + data[start + 512 :]
        for told in (False, True):
            with pytest.raises(ValueError, match=f"there is no header at byte {start}"):
                index_tar(put(tmp_path, f"bad{start}{told}.tar", bad), truncated=told)


def test_an_empty_line_among_names_of_classes(tmp_path):
    write_tar(tmp_path / "test" / "0.tar", [("0.png", pic()), ("0.cls", b"1")])
    put(tmp_path, "zeroshot_classification_templates.txt", "a {c}\n\nthe {c}\n\n")
    put(tmp_path, "classnames.txt", "dog\r\nC++\u2028 \r\n\r\n \r\n")
    source = open_source(str(tmp_path), "test")
    assert source.classes == ("dog", "C++") and source.templates == ("a {name}", "the {name}")
    put(tmp_path, "classnames.txt", "dog\n\nC++\n")
    with pytest.raises(ValueError, match=r"classnames\.txt': line 2 is empty"):
        open_source(str(tmp_path), "test")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("first", ["", "sep=;\n"])
def test_encodings_and_marks_of_tables(tmp_path, shown, encoding, first):
    put(tmp_path, "é 1.png", pic())
    table = f"{first}image{';' if first else ','}caption\né 1.png{';' if first else ','}café\n"
    put(tmp_path, "t.csv", table.encode(encoding))
    assert shown(tmp_path)[0]["é 1.png"]["captions"] == ["café"]


def test_captions_in_several_columns_and_as_lists(tmp_path, shown):
    put(tmp_path, "0.png", pic())
    for text, wanted in (
        ("image,caption_1,caption_2\n0.png,one,two\n", ["one", "two"]),
        ('image,captions\n0.png,"[\'one\', ""it\'s""]"\n', ["one", "it's"]),
        ("image,caption\n0.png,\"['one', 'two']\"\n", ["one", "two"]),
    ):
        put(tmp_path, "t.csv", text)
        assert shown(tmp_path)[0]["0.png"]["captions"] == wanted


def test_columns_can_be_named(tmp_path, capsys):
    put(tmp_path, "0.png", pic())
    put(tmp_path, "t.csv", "picture,words,caption\n0.png,mine,not mine\n")
    source = open_source(str(tmp_path), columns="image=picture,captions=words")
    assert source[0]["captions"] == ["mine"] and source.key(0) == "0.png"
    with pytest.raises(ValueError, match="has no column 'wrds'; it has picture, words, caption"):
        open_source(str(tmp_path), columns="image=picture,caption=wrds")
    with pytest.raises(ValueError, match="image=filepath"):
        open_source(str(tmp_path), columns="picture")


def test_names_of_pictures_as_other_systems_write_them(tmp_path):
    put(tmp_path, "sub/" + unicodedata.normalize("NFD", "강아지 1.png"), pic(1))
    put(tmp_path, "sub/b.JPG", pic(2))
    put(tmp_path, "one/c.png", pic(3))
    put(tmp_path, "two/c.png", pic(4))
    names = {"sub/강아지 1.png": 1, "sub\\b.jpg": 2, "b": 2, "one/c": 3}
    put(tmp_path, "t.jsonl", "\n".join(json.dumps({"image": n, "caption": "x"}) for n in [*names, "c.png", "d.png"]))
    source = open_source(str(tmp_path))
    assert [source[i]["image"] for i in range(len(names))] == [pic(i) for i in names.values()]
    with pytest.raises(FileNotFoundError, match=r"'c\.png' may be .*one/c\.png or .*two/c\.png"):
        source[len(names)]
    with pytest.raises(FileNotFoundError, match=r"'d\.png' is in the table but not in"):
        source[len(names) + 1]


def test_no_file_is_taken_for_two_pictures(tmp_path):
    """Folders may be missing in front of a name, but not of two names that then are one."""
    put(tmp_path, "1.jpg", pic(1))
    put(tmp_path, "c/2.jpg", pic(2))
    rows = ["a\\b\\1.jpg", "data/c/2.jpg"]
    put(tmp_path, "t.jsonl", "\n".join(json.dumps({"image": n, "caption": "x"}) for n in rows))
    source = open_source(str(tmp_path))
    assert [source[i]["image"] for i in range(2)] == [pic(1), pic(2)]
    put(tmp_path, "t.jsonl", "\n".join(json.dumps({"image": n, "caption": "x"}) for n in [*rows, "d/1.jpg", "c/2.jpg"]))
    source = open_source(str(tmp_path))
    for i in range(3):
        with pytest.raises(FileNotFoundError, match="may be another of the table that ends in"):
            source[i]
    assert source[3]["image"] == pic(2)


def test_quotes_of_a_tsv_never_swallow_rows(tmp_path, shown):
    rows = [f"{i}.png\t{chr(34) if i % 3 == 0 else ''}a dog {i}{chr(34) if i % 3 == 2 else ''}" for i in range(60)]
    put(tmp_path, "t.tsv", "image\tcaption\n" + "\n".join(rows))
    for i in range(60):
        put(tmp_path, f"{i}.png", pic(i))
    assert len(shown(tmp_path)[0]) == 60
    put(tmp_path / "c", "t.csv", 'image,caption\n0.png,"a dog\n1.png,a cat\n2.png,a cow"\n')
    with pytest.raises(ValueError, match="line 2: a quote is opened and not closed before line 4"):
        open_source(str(tmp_path / "c"))


@pytest.mark.parametrize(
    "bad",
    [
        '{"image": "3.png", "caption": 2024}',
        '{"image": "3.png", "caption": NaN}',
        '{"caption": "a"}',
        '{"image": "3',
        "[]",
    ],
)
def test_one_bad_row_is_one_bad_row(tmp_path, bad):
    lines = [json.dumps({"image": f"{i}.png", "caption": "a dog"}) for i in range(100)]
    put(tmp_path, "c.jsonl", "\n".join([*lines[:3], bad, *lines[4:]]))
    source = open_source(str(tmp_path))
    assert len(source) == 100 and source.understood.rows == 99 and "line 4" in source.understood.line()
    wrong = [i for i in range(100) if source.key(i) == "c.jsonl:4"]
    with pytest.raises(ValueError, match="line 4"):
        source.text(wrong[0])


def test_files_named_by_splits_are_kept_apart(tmp_path):
    for split in ("train", "val"):
        put(tmp_path, f"captions_{split}.jsonl", json.dumps({"image": f"{split}.png", "caption": split}))
    assert open_source(str(tmp_path), "train").key(0) == "train.png"
    assert open_source(str(tmp_path), "validation").key(0) == "val.png"
    with pytest.raises(Refused, match="names several splits"):
        split_of("train_val")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"annotations/captions.json": '{"a": 1}', "images/0.png": pic()}, "is of no kind that is known"),
        ({"labels.xml": "<a/>", "a/0.png": pic(), "b/0.png": pic()}, r"labels\.xml, which no reader understands") ,
        ({"boxes.txt": "1 2", "a/0.png": pic(), "b/0.png": pic()}, r"boxes\.txt, which no reader understands"),
        ({"images/0.png": pic(), "images/1.png": pic()}, "holds folders of pictures such as 'images'"),
        ({"x.tar": b"", "y.csv": "image,caption\n"}, r"holds tars \(x.tar\) and tables"),
        ({"a.json": "[]"}, "is of no kind that is known"),
        ({"a_val.json": '[{"image": "a", "caption": "b"}]', "b_val.json": '{"images": [], "annotations": [{"caption": "a"}]}'},
         "name the file that is meant"),
        ({"readme.md": "nothing"}, "nor any other layout"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(tmp_path, files, message):
    for name, data in files.items():
        put(tmp_path, name, data)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path), "val")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(ValueError, match="neither a regular file nor a folder"):
        open_source(str(tmp_path / "pipe.tar"))
    put(tmp_path, "t.csv", "image,caption\n/dev/zero,a\npipe.png,b\n")
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(str(tmp_path / "t.csv"))
    for i in range(2):
        with pytest.raises((ValueError, FileNotFoundError)):
            source[i]
    with pytest.raises(ValueError, match=r"stands for 100,000,000 files"):
        open_source("{0..99999999}.tar")


def test_a_tfds_folder_may_name_no_classes_but_tfdss_own(tmp_path, monkeypatch):
    put(tmp_path, "dataset_info.json", json.dumps({"name": "x", "version": "1.0.0", "fileFormat": "array_record"}))
    put(tmp_path, "evil.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for key in ("pythonClassName", "python_class_name", "type"):
        inner = {key: "evil.Feature", "content": ""}
        for tree in (
            inner,
            {
                "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
                "featuresDict": {"features": {"a": inner}},
            },
        ):
            put(tmp_path, "features.json", json.dumps(tree))
            with pytest.raises(ValueError, match=r"evil\.Feature'; only those of tensorflow_datasets"):
                open_source(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_no_other_picture_takes_the_place_of_a_missing_one(tmp_path):
    put(tmp_path, "images/val/dog/0001.jpg", pic(1))
    put(tmp_path, "IMG_1.jpg", pic(2))
    put(tmp_path, "IMG_1.v1.jpg", pic(3))
    put(tmp_path, "images/val2014/x.jpg", pic(4))
    names = ["train/cat/0001.jpg", "IMG_1.v1", "coco/images/val2014/x.jpg"]
    put(tmp_path, "t.jsonl", "\n".join(json.dumps({"image": n, "caption": "a"}) for n in names))
    source = open_source(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is in the table but not in"):
        source[0]
    assert source[1]["image"] == pic(3) and source[2]["image"] == pic(4)


def test_what_no_split_names_is_counted(tmp_path):
    for name in ("train-000", "extra-000"):
        write_tar(tmp_path / "tars" / f"{name}.tar", [("a.jpg", pic()), ("a.txt", b"x")])
    assert "1 tars that no split names (extra-000.tar)" in open_source(str(tmp_path / "tars")).understood.line()
    for folder in ("beach", "forest", "train_station"):
        put(tmp_path, f"places/{folder}/0.jpg", pic())
        put(tmp_path, f"places/{folder}/0.txt", "a place")
    assert len(open_source(str(tmp_path / "places"))) == 3
    for name in ("dog/1.png", "cat/1.png", "loose.png", "dog/more/2.png"):
        put(tmp_path / "classes", name, pic())
    source = open_source(str(tmp_path / "classes"))
    assert len(source) == 2 and "2 pictures that lie in no folder of a class, or deeper" in source.understood.line()


def test_several_tars_in_one_file(tmp_path):
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", pic()), (f"{name}.txt", b"x")])
    both = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    with pytest.raises(ValueError, match="it goes on after its end mark"):
        open_source(str(put(tmp_path / "c", "both.tar", both)))


def test_tables_of_spreadsheets(tmp_path):
    rows = 'image,caption,,\n0.png,"a dog, and\na cat, there",,\n1.png,"a "red" ball",,\n2.png,a cow,,\n'
    put(tmp_path, "t.csv", rows)
    source = open_source(str(tmp_path))
    texts = {source.key(i): source.text(i)["captions"] for i in range(len(source)) if source.key(i).endswith("png")}
    assert texts == {"0.png": ["a dog, and a cat, there"], "2.png": ["a cow"]} and source.understood.rows == 2
    put(
        tmp_path / "tsv",
        "t.tsv",
        'image\tcaption\na.jpg\t"hello\n' + "".join(f"{i}.jpg\tx {i}\n" for i in range(30)) + 'foo\nd.jpg\tbar"\n',
    )
    source = open_source(str(tmp_path / "tsv"))
    assert source.understood.rows == 32 and len(source) == 33


def test_caption_columns_beside_others(tmp_path, shown):
    put(tmp_path, "0.png", pic())
    for text, wanted in (
        ("image,caption,caption_2,caption_3\n0.png,a,b,c\n", ["a", "b", "c"]),
        ("image,caption_1,caption_2,label\n0.png,a,b,dog\n", ["a", "b"]),
        ("filepath,title,label\n0.png,a,dog\n", ["a"]),
    ):
        put(tmp_path, "t.csv", text)
        assert shown(tmp_path)[0]["0.png"]["captions"] == wanted


def test_a_column_of_pictures_may_have_any_name(tmp_path):
    for image in ({"bytes": pic(1), "path": "a.png"}, pic(1)):
        pq.write_table(pa.table({"photo": [image], "words": ["a dog"]}), put(tmp_path, "t.parquet", b""))
        source = open_source(str(tmp_path), columns="image=photo,caption=words")
        assert source[0]["image"] == pic(1) and source[0]["captions"] == ["a dog"]
    bomb = pa.table(
        {
            "image": pa.array(["a"] * 2_000_000).dictionary_encode(),
            "caption": pa.array(["a"] * 2_000_000).dictionary_encode(),
        }
    )
    pq.write_table(bomb, put(tmp_path, "t.parquet", b""))
    with pytest.raises(ValueError, match=r"claims 2,000,000 rows in [\d,]+ bytes"):
        open_source(str(tmp_path))


def test_keys_that_are_not_utf_8(tmp_path):
    from simvlm_jax.data.source import HashSplit

    for i in range(40):
        put(tmp_path, f"{'ab'[i % 2]}/{i}" + os.fsdecode(b"\xe9.png"), pic(i))
    source = open_source(str(tmp_path))
    assert len(HashSplit(source, 0.3, True)) + len(HashSplit(source, 0.3, False)) == 40

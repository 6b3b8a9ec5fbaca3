"""Every way to name data: tars, folders with tables, TFDS; and what goes wrong, said plainly."""

import gzip
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from simvlm_jax.core.files import BadFile, decoded
from simvlm_jax.data.images import BadImage, decode, resize
from simvlm_jax.data.scenes.builder import TASKS, make_examples
from simvlm_jax.data.sources import open_source
from simvlm_jax.data.table_files import read_table
from simvlm_jax.data.tables import captions_of as captions_in
from simvlm_jax.data.tables import listed


def picture(mode="RGB", size=(40, 30), fmt="PNG", **save):
    rng = np.random.default_rng(0)
    shape = size[::-1] + ((len(mode),) if mode in ("RGB", "RGBA", "LA") else ())
    image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode if mode != "P" else "L")
    buffer = io.BytesIO()
    (image.convert("P") if mode == "P" else image).save(buffer, fmt, **save)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(picture())
    return tmp_path


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_webdataset(tmp_path):
    for shard in range(2):
        files = {}
        for i in range(3):
            files[f"a{shard}{i}.jpg"] = picture(fmt="JPEG")
            files[f"a{shard}{i}.json"] = json.dumps({"captions": [f"one {i}", f" two\n{i} "]}).encode()
        files["note.txt"] = b"no picture"
        write_tar(tmp_path / f"train-{shard:04d}.tar", files)
    for path in (tmp_path, tmp_path / "train-*.tar", tmp_path / "train-0000.tar"):
        source = open_source(str(path))
        assert len(source) == (3 if "0000" in str(path) else 6)
        assert source[1]["captions"] == ["one 1", "two 1"] and source.key(0) == "a00"
        assert decode(source[len(source) - 1]["image"]).size == (40, 30)
    write_tar(tmp_path / "text.tar", {"x.jpg": picture(fmt="JPEG"), "x.txt": b"a dog"})
    assert open_source(str(tmp_path / "text.tar"))[0]["captions"] == ["a dog"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_folder_with_a_table(folder, kind):
    rows = [("0.png", "first"), ("0.png", "first, again"), ("1.png", "second"), ("2.png", "third")]
    if kind == "jsonl":
        text = "\n".join(json.dumps({"file_name": n, "captions": [c]}) for n, c in rows)
        (folder / "t.jsonl").write_text(text)
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"image": [n for n, _ in rows], "caption": [c for _, c in rows]})
        pyarrow.parquet.write_table(table, folder / "t.parquet")
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        lines = [f"image{mark}caption"] + [f'{n}{mark}"{c}"' for n, c in rows]
        (folder / f"t.{kind}").write_text("\n".join(lines))
    for path in (folder, folder / f"t.{kind}"):
        source = open_source(str(path))
        assert len(source) == 3 and source[0]["captions"] == ["first", "first, again"]
        assert decode(source[2]["image"]).size == (40, 30)
    (folder / "images" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"'1\.png' is in the table but not in"):
        source[1]


def captions_of(path):
    source = open_source(str(path))
    return {source.key(i): source[i]["captions"] for i in range(len(source))}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", '\ufeffImage, Caption\r\n0.png, "a dog, running"\r\n1.png,[so] it is\r\n\r\n2.png,\r\n'),
        ("t.csv", 'image;caption\n0.png;a dog, running\n1.png;[so] it is\n2.png;\n'),
        ("t.tsv", 'file\tcaptions\n0.png\t["a dog, running"]\n1.png\t["[so] it is"]\n2.png\t[]\n'),
        ("t.tsv", 'file\tcaptions\tcaption\n0.png\t\ta dog, running\n1.png\t[]\t[so] it is\n2.png\t\t\n'),
        ("t.jsonl", '{"path": "0.png", "text": "a dog, running"}\n{"path": "1.png", "caption": "[so]\u2028it is"}\n\n'
                    '{"path": "2.png", "caption": null}'),
    ],
)  # fmt: skip
def test_tables_as_people_write_them(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8", newline="")
    assert captions_of(folder) == {"0.png": ["a dog, running"], "1.png": ["[so] it is"], "2.png": []}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.csv",
            "image,caption\n0.png,a dog\n1.png,a dog, running\n",
            r"line 3: has more fields .*put captions with ','",
        ),
        ("t.csv", 'image,caption\n0.png,"a "big" dog"\n', r"line 2: .*quote inside a quoted field is written twice"),
        ("t.csv", "image,caption\n,a dog\n", "line 2: needs an image"),
        ("t.csv", "image,captions\n0.png,[a]\n", r'line 2: `captions` must be a list such as \["one'),
        ("t.csv", "image,caption,Caption\n0.png,a,b\n", "has the column 'caption' more than once"),
        ("t.csv", "image,caption,caption\n0.png,a,b\n", "has the column 'caption' more than once"),
        ("t.jsonl", '{"image": "0.png", "caption": "a"}\nso\n', "line 2: not JSON"),
        ("t.jsonl", '{"image": "0.png", "caption": 7}\n', "line 1: a caption must be text, not 7"),
        ("t.jsonl", "[1]\n", r"line 1: must be an object, not \[1\]"),
    ],
)
def test_tables_that_cannot_be_meant(folder, name, text, message):
    """What is wrong with a row is heard where it is read; with all rows, or with the table, at once."""
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        source = open_source(str(folder))
        assert "cannot be read" in source.understood.line()
        for i in range(len(source)):
            source[i]


def test_a_table_in_latin_1(folder):
    (folder / "t.csv").write_bytes("image,caption\n0.png,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv' is not UTF-8 \(byte 23\)"):
        open_source(str(folder))


def test_unpaired_quotes_in_a_tsv_are_text(folder):
    (folder / "t.tsv").write_text('image\tcaption\n0.png\t"I love you" balloon\n1.png\t"a dog\n2.png\ta cat\n')
    assert captions_of(folder) == {"0.png": ['"I love you" balloon'], "1.png": ['"a dog'], "2.png": ["a cat"]}


def _open_quote(header, row, opened, closed):
    """60 rows of a table, of which the one opens a quote and the other, 39 rows on, closes it."""
    rows = [row(i, opened if i == 5 else "", closed if i == 44 else "") for i in range(60)]
    return "\n".join([header, *rows, ""])


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image,caption,label", lambda i, o, c: f"{i}.jpg,{o}cap {i}{c},dog"),
        ("image,caption,label,,", lambda i, o, c: f"{i}.jpg,{o}cap {i}{c},dog,,"),
        ("caption;image", lambda i, o, c: f"{o}cap {i}{c};{i}.jpg"),
        ("image,caption", lambda i, o, c: f"{i},{o}cap {i}{c}"),
        ("image,caption", lambda i, o, c: f"a-{i},{o}cap {i}{c}"),
        ("image,caption", lambda i, o, c: f"https://x.org/{i % 7}?b={i},{o}cap {i}{c}"),
        ("picture,words", lambda i, o, c: f"{i}.jpg,{o}cap {i}{c}"),
        ("name,words", lambda i, o, c: f"x{i},{o}cap {i}{c}"),
        ("image, caption", lambda i, o, c: f"{i}.jpg, {o}cap {i}{c}"),
    ],
)
def test_a_quote_that_swallows_rows_is_refused(tmp_path, header, row):
    (tmp_path / "t.csv").write_text(_open_quote(header, row, '"', '"'))
    with pytest.raises(ValueError, match="line 7: a quote is opened and not closed before line 46: 'cap 5"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(_open_quote(header, row, '"', "").replace("cap 44", '"cap 44'))
    with pytest.raises(ValueError, match="line 7: a quote is opened and not closed before line 46"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(_open_quote(header, row, '"', ""))
    with pytest.raises(ValueError, match="line 7: a quote is opened and not closed before the end"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("rows", ['5.png,"a\n6.png,b"', '"a",5.png\n"a;5.png\nb";6.png'])
def test_a_single_swallowed_row(tmp_path, rows):
    (tmp_path / "t.csv").write_text(("image,caption\n" if rows[0] == "5" else "caption;image\n") + rows)
    with pytest.raises(ValueError, match="a quote is opened and not closed before line"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["0.png", "0", "dog", "https://x.org/1"])
@pytest.mark.parametrize(
    "caption",
    [
        "Hello\nThere, friend",
        "12 High Street,\nFlat 3, Springfield\n62701, Illinois",
        "Main Street\n12, Baker's house",
        "Visit us at\nwww.shop.com, open daily",
        "Rated\n4.5, great",
        "Roses are red,\nViolets are blue,\nSugar is sweet,\nAnd so are you,\nSo is the sea,\nSo is the sky,\nbye",
        "Roses, red\nViolets, blue\nSugar, sweet\nAnd you, too\nThe sea, green\nThe sky, wide\nbye, all",
        "one\n\ntwo\n\nthree\n",
        "你好，朋友\n再见，朋友\n你好，朋友\n再见，朋友\n你好，朋友\n再见，朋友\n再见",
    ],
)
def test_captions_with_line_breaks_are_read(tmp_path, name, caption):
    for table in (f'image,caption\n{name},"{caption}"\nx,y\n', f'caption,image\n"{caption}",{name}\ny,x\n'):
        (tmp_path / "t.csv").write_text(table)
        rows = [row for _, row in read_table(tmp_path / "t.csv").rows]
        assert rows == [{"image": name, "caption": caption}, {"image": "x", "caption": "y"}]


@pytest.mark.parametrize("name", ["0.png", "0", "https://x.org/1"])
def test_lines_with_as_many_marks_as_rows_are_text_where_they_name_no_such_picture(tmp_path, name):
    poem = "\n".join(["你好,朋友", "再见,朋友"] * 5 + ["再见"])
    (tmp_path / "t.csv").write_text(f'caption,image\n"{poem}",{name}\n')
    assert read_table(tmp_path / "t.csv").good == [(12, {"caption": poem, "image": name})]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('a\tb\n0\t"one\ntwo"\n1\t"tab\there"\n2\t"say ""x""\nnext"\n', ["one\ntwo", "tab\there", 'say "x"\nnext']),
        ("a\tb\t\n0\tone\t\n1\ttwo\t\t\n\t\t\n", ["one", "two"]),
        ("a\tb\n0\tone\t\n1\ttwo\t\n", ["one", "two"]),
        ('a\tb\n0\t"one\t\n1\ttwo" it is\t\n', ['"one', 'two" it is']),
        ("a\tb\tc\n0\tone\n1\ttwo\tx\n2\n", ["one", "two", ""]),
        ('a\tb\tc\n0\tone\n1\t"two\tx\n2\tthree"\n', ["one", '"two', 'three"']),
    ],
)
def test_tsvs_of_writers_and_of_lines(tmp_path, text, wanted):
    """What csv.writer quotes, marks at the ends of lines, and lines whose empty last fields were left out."""
    (tmp_path / "t.tsv").write_text(text)
    table = read_table(tmp_path / "t.tsv")
    assert [row["b"] for _, row in table.good] == wanted and len(table.good) == len(table.rows)
    assert [row["a"] for _, row in table.good] == [str(i) for i in range(len(wanted))]
    assert table.columns == ["a", "b", "c"][: len(table.columns)]


def test_lists_in_numpys_spelling():
    for text in ("['a' 'b']", "['a'\n 'b']", "[ 'a''b' ]", "[\"a\" 'b']"):
        assert listed(text, "captions") == listed(text, "caption", strict=False) == ["a", "b"]
    assert listed("['it\\'s, so' \"it's ... [b]\"]", "captions") == ["it's, so", "it's ... [b]"]
    assert listed("[b'a' b'b']", "captions") == [b"a", b"b"]
    assert listed("['a', \"it's\"]", "captions") == ["a", "it's"]
    for text in ("['a' ... 'b']", "['a'\n 'b'\n ...\n 'c']", "['a', ..., 'b']"):
        with pytest.raises(ValueError, match=r"`caption` is a list that was cut where it was written"):
            listed(text, "caption", strict=False)
    with pytest.raises(ValueError, match=r"`captions` has commas between some of its texts only"):
        listed("['a' 'b', 'c']", "captions")
    for text in ("[...]", "[so] it is", "[a 'b' 'c']", "['a' 'b'] there"):
        assert listed(text, "caption", strict=False) == text


def test_a_named_column_takes_the_place_of_another(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption,alt\n0.png,a,b\n")
    table = read_table(tmp_path / "t.csv", "caption=alt")
    assert table.columns == ["image", "caption"] and table.good == [(2, {"image": "0.png", "caption": "b"})]
    swapped = read_table(tmp_path / "t.csv", "caption=alt,alt=caption")
    assert swapped.good == [(2, {"image": "0.png", "caption": "b", "alt": "a"})]
    (tmp_path / "t.jsonl").write_text('{"image": "0.png", "captions": ["a"], "alt": "b"}\n')
    assert captions_in(read_table(tmp_path / "t.jsonl", "caption=alt").good[0][1]) == ["b"]
    (tmp_path / "t.csv").write_text("image,alt,Alt\n0.png,a,b\n")
    with pytest.raises(ValueError, match="has the column 'caption' more than once"):
        read_table(tmp_path / "t.csv", "caption=alt")


def write_parquet(path, columns, about=None):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns).replace_schema_metadata(about), path)
    return path


def test_the_column_of_pictures_among_several(tmp_path):
    mask, image = ({"bytes": b, "path": None} for b in (b"mask", b"image"))
    path = write_parquet(tmp_path / "t.parquet", {"annotation_mask": [mask], "image": [image], "file": ["a.png"]})
    for columns, column in (("", "image"), ("image=annotation_mask", "annotation_mask"), ("image=image", "image")):
        pictures = read_table(path, columns).pictures
        assert pictures and pictures.column == column and pictures(0) == (b"mask" if "mask" in column else b"image")
    named = read_table(path, "image=file")
    assert named.pictures is None and named.good == [(1, {"image": "a.png"})]
    pictures = read_table(write_parquet(path, {"Mask": [mask], "webp": [b"image"]})).pictures
    assert pictures and pictures.column == "webp"
    write_parquet(path, {"before": [mask], "after": [image]})
    with pytest.raises(
        ValueError, match="pictures in the columns 'before', 'after'; name one with columns=\"image=before\""
    ):
        read_table(path)
    pictures = read_table(path, "image=after").pictures
    assert pictures and pictures.column == "after"


def test_names_of_classes_in_parquet(tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "n": {"dtype": "int64", "_type": "Value"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {"label": [0, 1, -1, None, 2], "n": [0, 1, 2, 3, 4]}
    table = read_table(write_parquet(tmp_path / "t.parquet", columns, about), "class=label")
    assert [row["class"] for _, row in table.good] == ["cat", "dog", None, None]
    assert [row["n"] for _, row in table.good] == [0, 1, 2, 3]
    assert "line 5: 'label' is 2, and the file names 2 classes (0 to 1)" in str(table.rows[4][1])
    for other in (
        "{",
        "[" * 100,
        "[1]",
        '{"info": 3}',
        '{"info": {"features": {"label": {"_type": "ClassLabel", "names": 2}}}}',
    ):
        write_parquet(tmp_path / "t.parquet", columns, {"huggingface": other})
        assert [row["label"] for _, row in read_table(tmp_path / "t.parquet").good] == [0, 1, -1, None, 2]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_byte_order_mark(folder, encoding):
    (folder / "t.csv").write_bytes("image,caption\r\n0.png,a café\r\n".encode(encoding))
    assert captions_of(folder) == {"0.png": ["a café"]}
    with pytest.raises(BadFile, match="x begins as UTF-16 and is not"):
        decoded("a dog".encode(encoding) + b"\n", "x")


@pytest.mark.parametrize("text", ["a\0b\0c d", "\0\0\0\0", "a\0", "", "a", "nul \0 here", "a\0b\0c\0" + "text" * 20])
def test_text_that_holds_nuls_stays(text):
    assert decoded(text.encode(), "x") == text


def test_documents(tmp_path):
    (tmp_path / "d.txt").write_text("one document\n\n another\u00a0one \n")
    (tmp_path / "d.jsonl").write_text('{"text": "one document"}\n{"text": "another one"}\n{"text": null}\n')
    for name in ("d.txt", "d.jsonl"):
        source = open_source(str(tmp_path / name), images=False)
        assert [source[i]["text"] for i in range(len(source))] == ["one document", "another one"]
        assert source.key(1) == f"{name}/1"
    (tmp_path / "d.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        open_source(str(tmp_path / "d.txt"), images=False)
    with pytest.raises(ValueError, match=r"neither a \.tar nor a table"):
        open_source(str(tmp_path / "d.txt"))


def test_odd_members_of_a_webdataset(tmp_path, monkeypatch):
    from simvlm_jax.data.readers import tars

    monkeypatch.setattr(tars, "_OPEN_SHARDS", 1)  # the others are opened for every read
    jpeg = picture(fmt="JPEG")
    metas = {"a": b'{"caption": null}', "b": b'{"width": 3}', "c": b'{"caption": 5}', "d": b"[]", "e": b"{"}
    for i, (key, meta) in enumerate(metas.items()):
        write_tar(tmp_path / f"x-{i:02d}.TAR", {f"{key}.JPG": jpeg, f"{key}.json": meta, f"{key}.txt": b"words"})
    for path in tmp_path.iterdir():
        path.rename(path.with_suffix(".tar"))
    source = open_source(str(tmp_path / "x-{00..04}.tar"))
    assert [source[i]["captions"] for i in (0, 1)] == [["words"], ["words"]]
    for i, message in ((2, "must be text, not 5"), (3, "must hold an object"), (4, "e.json is not JSON")):
        with pytest.raises(ValueError, match=message):
            source[i]
    whole = (tmp_path / "x-00.tar").read_bytes()
    for name, data in (("cut", whole[: len(jpeg)]), ("page", b"<html>" * 200), ("gz", gzip.compress(whole))):
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.tar' is not a whole, uncompressed tar file"):
            open_source(str(tmp_path / f"{name}.tar"))


def test_tfds_by_name_needs_no_code(tmp_path, monkeypatch):
    """A data set whose code would load TensorFlow, as its files on disk."""
    import sys

    import tensorflow_datasets as tfds

    from simvlm_jax.data.scenes import builder

    made = builder.builder("captions-32px-8_8_8_8", data_dir=str(tmp_path / "made"))
    made.download_and_prepare()
    target = tmp_path / "coco_captions" / "2014" / "1.1.0"
    target.parent.mkdir(parents=True)
    shutil.copytree(made.data_path, target)
    for file in target.iterdir():
        file.rename(file.with_name(file.name.replace("scenes-", "coco_captions-")))
    info = target / "dataset_info.json"
    fields = json.loads(info.read_text())
    info.write_text(json.dumps({**fields, "name": "coco_captions", "configName": "2014", "version": "1.1.0"}))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    for name in ("coco_captions", "coco_captions/2014", "coco_captions/2014:1.1.0"):
        source = open_source(name, "train")
        assert len(source) == 8 and len(source[3]["captions"]) == 5
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("task", TASKS)
def test_tfds_gives_what_the_scenes_drew(task):
    """One picture or several in an example: encoded, for the package alone decodes them."""
    source = open_source(f"scenes/{task}-32px-8_8_8_8", "test")
    drawn = list(make_examples(task, "test", 8, 32, 0))
    assert len(source) == 8
    for i, made in enumerate(drawn):
        read = source[i]
        for name in {"image", "images"} & set(made):
            assert read[name] == made[name]
        for name, value in made.items():
            if isinstance(value, str):
                assert str(read[name]) == value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/x-*.tar", "matches no .tar"),
        ("/nowhere", "does not exist"),
        ("scenes/films", "no 'films'"),
        ("coco_captions", "neither a file or folder here nor a TFDS data set prepared in"),
        ("photos/train-{0000..0002}.tar", r"3 of 3 shards .* are missing, such as 'photos/train-0000.tar'"),
    ],
)
def test_paths_that_name_nothing(name, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_source(name)


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"neither \.tar shards, nor a table of captions, nor a folder for each class"):
        open_source(str(tmp_path))
    (tmp_path / "t.csv").write_text("picture,words\n1,2\n")
    with pytest.raises(ValueError, match=r"t\.csv', line 2: needs an image \(image, file_name"):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"holds no text in a column captions, caption"):
        open_source(str(tmp_path / "t.csv"), images=False)
    write_tar(tmp_path / "e.tar", {"a.txt": b"x"})
    with pytest.raises(ValueError, match="no images in"):
        open_source(str(tmp_path / "e.tar"))


def test_a_tfds_split_that_is_not_there():
    from tests.conftest import SCENES

    with pytest.raises(ValueError, match="no split 'dev'"):
        open_source(SCENES, "dev")
    example = open_source(SCENES, "test")[0]
    assert len(example["captions"]) == 5 and isinstance(example["image"], bytes) and "objects" in example["scene"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_mode_becomes_rgb(mode):
    data = picture("L" if mode == "1" else mode)
    if mode == "1":
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("1").save(buffer, "PNG")
        data = buffer.getvalue()
    assert resize(decode(data), (16, 16)).shape == (16, 16, 3)


def test_sixteen_bit_is_scaled_not_clipped():
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)).save(buffer, "PNG")
    values = np.asarray(decode(buffer.getvalue()))[0, :, 0]
    np.testing.assert_allclose(values, np.arange(256), atol=1)


def test_transparency_lies_on_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(buffer, "PNG")
    assert (np.asarray(decode(buffer.getvalue())) == 255).all()


def test_exif_rotation_is_undone():
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    upright = decode(buffer.getvalue())
    assert upright.size == (20, 40)
    assert np.asarray(upright)[5, 10, 0] > 200 and np.asarray(upright)[35, 10, 2] > 200


def test_gif_gives_its_first_frame_and_webp_reads():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode(buffer.getvalue()))[0, 0].tolist() == [255, 0, 0]
    assert decode(picture(fmt="WEBP")).size == (40, 30)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, I am text", "not an image"),
        (picture(fmt="JPEG", size=(200, 200))[:3000], "cannot be decoded"),
        (picture(size=(200, 200))[:3000], "cannot be decoded"),
    ],
)
def test_broken_images(data, message):
    with pytest.raises(BadImage, match=message):
        decode(data)


def test_bombs_are_refused_before_they_are_decoded():
    with pytest.raises(BadImage, match="40 x 30 pixels are more than the limit of 1000"):
        decode(picture(), max_pixels=1000)


def test_crops():
    image = Image.new("RGB", (300, 100), "blue")
    image.paste("red", (100, 0, 200, 100))
    assert (resize(image, (20, 20))[:, 2:-2] == [255, 0, 0]).all()


@pytest.mark.parametrize("how", ["eps", "inside"])
def test_postscript_never_reaches_a_program(how, monkeypatch):
    import struct

    from PIL import EpsImagePlugin

    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: called.append(a))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n"
    if how == "inside":  # of an IPTC record, which Pillow would open by its content
        field = lambda tag, data: b"\x1c" + bytes(tag) + struct.pack(">H", len(data)) + data  # noqa: E731
        tags = [((3, 60), b"\x01\x00"), ((3, 20), b"\0\x09"), ((3, 30), b"\0\x09"), ((3, 120), b"\x05"), ((8, 10), eps)]
        eps = b"".join(field(tag, data) for tag, data in tags)
    with pytest.raises(BadImage):
        decode(eps)
    assert not called

"""Data sets of questions about pictures, as their authors publish them, and tables of one's own.

Each is found by a file it cannot do without: name the folder, and the split its authors give.
"""

import functools
import io
import itertools
import json
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simvlm_jax.data.files import IMAGE_COLUMNS, IMAGE_SUFFIXES, NoSuchSplit, Table, texts

Row = dict[str, Any]


def asks(columns: set[str]) -> bool:
    """Whether a table is read row by row, a row being an example and not one more caption of its image.

    It is when it has a question or hypothesis, or a label or answer and no captions.
    """
    captions = {"caption", "captions", "text"}
    return bool(
        columns & {"question", "hypothesis"} or (columns & {"label", "answer", "answers"} and not columns & captions)
    )


class Questions:
    """Rows that name pictures; `read(name)` gives a picture's bytes."""

    def __init__(self, name: str, rows: list[Row], read: Callable[[str], bytes], split: str = ""):
        if not rows:
            raise ValueError(f"{name} holds no questions")
        self.split = split
        self._name, self._rows, self._read = name, rows, read
        texts = "\n".join(json.dumps(row, sort_keys=True, default=str) for row in rows)
        self.fingerprint = f"{zlib.crc32(texts.encode()):08x}"

    def __len__(self):
        return len(self._rows)

    def key(self, index: int) -> str:
        return str(self._rows[index].get("key", f"{self._name}/{index}"))

    def group(self, index: int) -> str:
        """The picture (or pictures) that an example is about."""
        row = self._rows[index]
        return str(row.get("group", row.get("images", row.get("image", self.key(index)))))

    def __getitem__(self, index: int) -> Row:
        row = {"key": self.key(index), **self._rows[index]}
        if isinstance(row.get("images"), list):
            row["images"] = [self._read(str(name)) for name in row["images"]]
        elif "image" in row:
            row["image"] = self._read(str(row["image"]))
        return row

    def text(self, index: int) -> Row:
        """An example without its pictures."""
        return {k: v for k, v in self._rows[index].items() if k not in ("image", "images")}

    def __repr__(self):
        return f"{self._name}:{self.fingerprint}:{len(self)}"


def easy_vqa(folder: Path, split: str) -> Questions:
    """easy-VQA (Zhou 2019): 64 x 64 shapes, splits train and test."""
    questions = json.loads(needed(folder / f"{split}_questions.json", split).read_text())
    rows = [
        {"question": q, "answer": a, "image": f"{i}.png", "key": f"{split}-{n}"}
        for n, (q, a, i) in enumerate(questions)
    ]
    return Questions(f"easy_vqa/{split}", rows, _archive(folder / f"{split}_images.tar.gz"), split)


_AT_END = re.compile(r"\s*(\b(in|on|of|at|from)\s+)?(\b(the|this)\s+)?\bimage\s?\d+\s*\?*\s*$", re.IGNORECASE)
"""How DAQUAR's questions end: "in the image1 ?"."""
_IMAGE_NUMBER = re.compile(r"\bimage\s?\d+", re.IGNORECASE)


def daquar(folder: Path, split: str) -> Questions:
    """DAQUAR (Malinowski & Fritz 2014), splits train and test by the authors' lists of images."""
    wanted = set(needed(folder / f"{split}_images_list.txt", split).read_text().split())
    lines = (folder / "all_qa_pairs.txt").read_text().splitlines()
    rows = []
    for n, (question, answer) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        image = next((w for w in reversed(question.split()) if w.startswith("image") and w[5:].isdigit()), None)
        if image in wanted:
            asked = _IMAGE_NUMBER.sub("image", _AT_END.sub("", question)).rstrip(" ?")
            rows.append(
                {
                    "question": f"{asked.strip()}?",
                    "answer": answer.strip(),
                    "image": f"{image}.jpg",
                    "key": f"{split}-{n}",
                }
            )
    return Questions(f"daquar/{split}", rows, _archive(folder / "images.tar"), split)


def nlvr(folder: Path, split: str) -> Questions:
    """NLVR (Suhr et al., ACL 2017): a sentence about three boxes, true or false.

    The boxes of a picture are put on a square of 2 x 2 places, the last one empty. A split named `hidden-permuted` holds
    every picture in the six orders of its boxes, which is how the authors draw new pictures from old ones.
    """
    name = split.removesuffix("-permuted")
    orders = list(itertools.permutations(range(3))) if split != name else [(0, 1, 2)]
    lines = needed(folder / f"{name}.json", name).read_text().splitlines()
    read = _archive(folder / f"{name}_images_perm0-1.tar.gz")
    rows = []
    for example in map(json.loads, lines):
        for order in orders:
            file = f"{name}-{example['identifier']}-0.png"
            rows.append(
                {
                    "sentence": example["sentence"],
                    "label": example["label"],
                    "image": f"{file}|{''.join(map(str, order))}",
                    "key": f"{name}-{example['identifier']}-{''.join(map(str, order))}",
                    "group": example["identifier"].partition("-")[0],  # four pictures were shown together
                }
            )

    def arranged(which: str) -> bytes:
        file, _, order = which.partition("|")
        return arrange_boxes(read(file), [int(i) for i in order])

    return Questions(f"nlvr/{split}", rows, arranged, split)


_BOX, _GAP = 100, 50
_SEAM = 8


def arrange_boxes(png: bytes, order: list[int]) -> bytes:
    """The three boxes of an NLVR picture (100 px, 50 px apart), in an order, on a square of 2 x 2 places, 8 px apart."""
    with Image.open(io.BytesIO(png)) as image:
        row = np.asarray(image.convert("RGB"))
    square = np.full((2 * _BOX + _SEAM, 2 * _BOX + _SEAM, 3), row[0, _BOX + _GAP // 2], np.uint8)
    for i, (y, x) in zip(order, ((0, 0), (0, 1), (1, 0)), strict=True):
        box = row[:_BOX, i * (_BOX + _GAP) : i * (_BOX + _GAP) + _BOX]
        top, left = y * (_BOX + _SEAM), x * (_BOX + _SEAM)
        square[top : top + _BOX, left : left + _BOX] = box
    out = io.BytesIO()
    Image.fromarray(square).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def vqa_v2(folder: Path, split: str) -> Questions:
    """VQAv2 (Goyal et al., CVPR 2017) as downloaded: questions, annotations, and the pictures in a folder `{split}2014`.

    Splits train and val are of 2014, test and test-dev of 2015, whose questions come without answers.
    """
    of = f"{split}2014" if split in ("train", "val") else f"{split}2015"
    pictures = of.replace("test-dev", "test")
    file = needed(folder / f"v2_OpenEnded_mscoco_{of}_questions.json", split)
    questions = json.loads(file.read_text())["questions"]
    given = folder / f"v2_mscoco_{of}_annotations.json"
    notes = {a["question_id"]: a for a in json.loads(given.read_text())["annotations"]} if given.exists() else {}
    rows = []
    for q in questions:
        row = {"question": q["question"], "question_id": q["question_id"], "key": str(q["question_id"])}
        row["image"] = f"COCO_{pictures}_{q['image_id']:012d}.jpg"
        if note := notes.get(q["question_id"]):
            row |= {"answers": [a["answer"] for a in note["answers"]], "kind": note["answer_type"]}
        rows.append(row)
    return Questions(f"vqa_v2/{split}", rows, _folder(folder / pictures), split)


def from_tables(folder: Path, tables: list[Table]) -> Questions:
    """Tables with an image (a column of files.IMAGE_COLUMNS, or `images`); every column is a field of the example."""
    rows = []
    for table in tables:
        for line, row in table.rows:
            row = {k: v for k, v in row.items() if v not in (None, "")}
            for name in {"images", "answers"} & set(row):
                row[name] = _list(table, line, name, row[name])
            if "images" not in row:
                image = next((row[k] for k in IMAGE_COLUMNS if k in row), None)
                if image is None:
                    raise table.error(line, f"needs an image ({', '.join(IMAGE_COLUMNS)}, or images); it has {row}")
                row["image"] = str(image)
            if captions := row.get("captions", row.get("caption")):
                row["captions"] = texts(captions)
            rows.append(row)
    return Questions(f"table/{folder.name}", rows, _folder(folder))


def _list(table: Table, line: int, name: str, value: Any) -> list[Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list):
        raise table.error(line, f'`{name}` must be a JSON list such as ["one", "two"], not {value!r}')
    return found


KNOWN: dict[str, Callable[[Path, str], Questions]] = {
    "all_qa_pairs.txt": daquar,
    "train_questions.json": easy_vqa,
    "hidden_images_perm0-1.tar.gz": nlvr,
    "v2_OpenEnded_mscoco_train2014_questions.json": vqa_v2,
    "v2_OpenEnded_mscoco_val2014_questions.json": vqa_v2,
    "v2_OpenEnded_mscoco_test2015_questions.json": vqa_v2,
}
"""Data sets by a file of theirs."""


def needed(path: Path, split: str) -> Path:
    """A file of a split.

    Raises:
      NoSuchSplit: it is not there.
    """
    if not path.is_file():
        raise NoSuchSplit(f"{str(path.parent)!r} has no split {split!r} ({path.name} is missing)")
    return path


def _folder(folder: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        for candidate in (folder / name, folder / "images" / name):
            if candidate.is_file():
                return candidate.read_bytes()
        raise FileNotFoundError(f"image {name!r} is not in {folder}")

    return read


def _archive(path: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        files = unpacked(path)
        if name not in files:
            raise FileNotFoundError(f"image {name!r} is not in {path}")
        return files[name]

    return read


@functools.cache
def unpacked(path: Path, whole: bool = False) -> dict[str, bytes]:
    """The pictures of a small archive by their file names, or with `whole` by their names in the archive, folders and all."""
    with tarfile.open(path) as tar:
        members = [m for m in tar if m.isfile() and m.name.lower().endswith(IMAGE_SUFFIXES)]
        return {m.name if whole else m.name.rpartition("/")[2]: tar.extractfile(m).read() for m in members}  # pyright: ignore

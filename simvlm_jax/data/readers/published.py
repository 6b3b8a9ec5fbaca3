"""DAQUAR, easy-VQA and NLVR as their authors publish them, each found by a file it cannot do without."""

import functools
import gzip
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

from simvlm_jax.core.files import MOST_BYTES, MOST_UNPACKED, BadFile, open_regular, read_json, read_text
from simvlm_jax.data.folders import PICTURES
from simvlm_jax.data.images import decode
from simvlm_jax.data.reader import How
from simvlm_jax.data.readers.tar_headers import check_headers
from simvlm_jax.data.rows import Rows, Understood
from simvlm_jax.data.splits import needed


def easy_vqa(folder: Path, split: str) -> Rows:
    """easy-VQA (Zhou 2019): 64 x 64 shapes, splits train and test."""
    path = needed(folder / f"{split}_questions.json", split)
    questions = read_json(path)
    if not isinstance(questions, list) or not all(isinstance(q, list) and len(q) == 3 for q in questions):
        raise BadFile(f"{str(path)!r} is not easy-VQA's, a list of [question, answer, number of the picture]")
    rows = [
        {"question": q, "answer": a, "image": f"{i}.png", "key": f"{split}-{n}"}
        for n, (q, a, i) in enumerate(questions)
    ]
    return Rows(
        f"easy_vqa/{split}",
        rows,
        _archive(folder / f"{split}_images.tar.gz"),
        _of("easy-VQA", f"{split}_questions.json", split),
    )


_AT_END = re.compile(r"\s*(\b(in|on|of|at|from)\s+)?(\b(the|this)\s+)?\bimage\s?\d+\s*\?*\s*$", re.IGNORECASE)
"""How DAQUAR's questions end: "in the image1 ?"."""
_IMAGE_NUMBER = re.compile(r"\bimage\s?\d+", re.IGNORECASE)


def daquar(folder: Path, split: str) -> Rows:
    """DAQUAR (Malinowski & Fritz 2014), splits train and test by the authors' lists of images."""
    wanted = set(read_text(needed(folder / f"{split}_images_list.txt", split)).split())
    lines = read_text(folder / "all_qa_pairs.txt").splitlines()
    rows = []
    for n, (question, answer) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        image = next((w for w in reversed(question.split()) if w.startswith("image") and w[5:].isdigit()), None)
        if image in wanted:
            text = _IMAGE_NUMBER.sub("image", _AT_END.sub("", question)).rstrip(" ?")
            rows.append(
                {
                    "question": f"{text.strip()}?",
                    "answer": answer.strip(),
                    "image": f"{image}.jpg",
                    "key": f"{split}-{n}",
                }
            )
    return Rows(f"daquar/{split}", rows, _archive(folder / "images.tar"), _of("DAQUAR", "all_qa_pairs.txt", split))


def nlvr(folder: Path, split: str) -> Rows:
    """NLVR (Suhr et al., ACL 2017): a sentence about three boxes, true or false.

    The boxes of a picture are put on a square of 2 x 2 places, the last one empty. A split named `hidden-permuted` holds
    every picture in the six orders of its boxes, which is how the authors draw new pictures from old ones.
    """
    name = split.removesuffix("-permuted")
    orders = list(itertools.permutations(range(3))) if split != name else [(0, 1, 2)]
    lines = read_text(needed(folder / f"{name}.json", name)).splitlines()
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

    return Rows(f"nlvr/{split}", rows, arranged, _of("NLVR", f"{name}.json", split))


_BOX, _GAP = 100, 50
_SEAM = 8


def arrange_boxes(png: bytes, order: list[int]) -> bytes:
    """The three boxes of an NLVR picture (100 px, 50 px apart), in an order, on a square of 2 x 2 places, 8 px apart."""
    row = np.asarray(decode(png))
    square = np.full((2 * _BOX + _SEAM, 2 * _BOX + _SEAM, 3), row[0, _BOX + _GAP // 2], np.uint8)
    for i, (y, x) in zip(order, ((0, 0), (0, 1), (1, 0)), strict=True):
        box = row[:_BOX, i * (_BOX + _GAP) : i * (_BOX + _GAP) + _BOX]
        top, left = y * (_BOX + _SEAM), x * (_BOX + _SEAM)
        square[top : top + _BOX, left : left + _BOX] = box
    out = io.BytesIO()
    Image.fromarray(square).save(out, format="PNG", compress_level=1)
    return out.getvalue()


KNOWN: dict[str, Callable[[Path, str], Rows]] = {
    "all_qa_pairs.txt": daquar,
    "train_questions.json": easy_vqa,
    "hidden_images_perm0-1.tar.gz": nlvr,
}
"""Data sets by a file of theirs."""


def known(folder: Path) -> Callable[[Path, str], Rows] | None:
    """The reader of a folder that holds one of these data sets, None of another."""
    found = next((make for marker, make in KNOWN.items() if (folder / marker).exists()), None)
    if found is easy_vqa and not (folder / "train_images.tar.gz").exists():
        return None  # others name their questions so too
    return found


def accepts(path: Path, how: How) -> str:
    """The file by which a folder is known to hold one of these data sets, else ""."""
    return next((marker for marker in KNOWN if (path / marker).exists()), "") if path.is_dir() and known(path) else ""


def read(path: Path, how: How) -> Rows:
    """The split of such a data set."""
    make = known(path)
    assert make is not None  # the folder has been accepted
    return make(path, how.split)


def _archive(path: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        files = unpacked(path)
        if name not in files:
            raise FileNotFoundError(f"image {name!r} is not in {path}")
        return files[name]

    return read


def _of(reader: str, file: str, split: str) -> Understood:
    return Understood(reader, [file], split=split)


@functools.cache
def unpacked(path: Path, whole: bool = False) -> dict[str, bytes]:
    """The pictures of a small archive by their file names, or with `whole` by their names in the archive, folders and all.

    Raises:
      BadFile: it is no tar, or unpacks to more than MOST_UNPACKED bytes.
    """
    found: dict[str, bytes] = {}
    total = 0
    try:
        with open_regular(path, MOST_UNPACKED) as file:
            check_headers(_Bounded(file), repr(str(path)))
        with open_regular(path, MOST_UNPACKED) as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:  # pyright: ignore
            for m in tar:
                if m.size < 0:
                    raise tarfile.ReadError(f"{m.name} claims {m.size} bytes")
                total += m.size
                if total > MOST_UNPACKED:
                    raise BadFile(f"{str(path)!r} unpacks to more than the limit of {MOST_UNPACKED:,} bytes")
                if m.isfile() and m.name.lower().endswith(PICTURES):
                    found[m.name if whole else m.name.rpartition("/")[2]] = tar.extractfile(m).read()  # pyright: ignore
    except (tarfile.TarError, EOFError, zlib.error) as e:
        raise BadFile(f"{str(path)!r} is not a whole tar archive: {e}") from e
    if not found:
        raise BadFile(f"{str(path)!r} holds no pictures")
    return found


class _Bounded:
    """A file, unpacked if it is gzip, of which no more than MOST_UNPACKED bytes are read: headers may be as long as they say."""

    def __init__(self, file: Any):
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._file = gzip.GzipFile(fileobj=file) if packed else file

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MOST_BYTES or self._file.tell() + size > MOST_UNPACKED:
            raise BadFile(f"an archive claims {size:,} bytes in one piece, or unpacks to more than {MOST_UNPACKED:,}")
        return self._file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        if place > MOST_UNPACKED:
            raise BadFile(f"an archive unpacks to more than {MOST_UNPACKED:,} bytes")
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

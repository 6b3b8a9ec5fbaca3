"""Rows of data sets: what was understood of a path, which split is asked for, where pictures lie, and a source over all that."""

import dataclasses
import json
import os
import re
import threading
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import printable, read_bytes

Row = dict[str, Any]
"""`image` or `images` name pictures; `key`, `captions`, `question`, `answer` or `answers`, `label` and the rest are as read."""

PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    *(".jp2", ".ppm", ".pgm"),
)
"""Suffixes of files that are taken for pictures, in lower case; what they hold is told by their content."""
SPLITS = {
    "train": ("train", "training", "train2014", "train2017", "restval"),
    "validation": ("validation", "val", "valid", "dev", "val2014", "val2017"),
    "test": ("test", "testing", "test2014", "test2015", "test2017"),
}
"""How splits are named by people."""


class NoSuchSplit(FileNotFoundError, ValueError):
    """The data is there, but not the split that was asked for."""


class Refused(ValueError):
    """What lies at a path is no layout that is known, or could be two of them."""


@dataclasses.dataclass
class Understood:
    """What a path was taken for: said in a line at the start of a run, and by `simvlm data show`.

    left_out: {reason: how many} of samples and members that are in the files and not among the rows.
    """

    reader: str
    files: list[str]
    rows: int = 0
    columns: list[str] = dataclasses.field(default_factory=list)
    split: str = ""
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)

    def line(self) -> str:
        """One line for people."""
        few = self.files if len(self.files) <= 3 else [self.files[0], "...", self.files[-1]]
        of = f" ({', '.join(few)}{f': {len(self.files)} files' if len(self.files) > 3 else ''})" if few else ""
        columns = f", columns {', '.join(self.columns)}" if self.columns else ""
        split = f", split {self.split}" if self.split else ""
        gone = ", ".join(f"{n:,} {why}" for why, n in self.left_out.most_common())
        return printable(
            f"{self.reader}{of}: {self.rows:,} rows{columns}{split}{f'; left out: {gone}' if gone else ''}"
        )


def names_of(split: str) -> tuple[str, ...]:
    """All names of a split, that which was asked for first."""
    for name, others in SPLITS.items():
        if split == name or split in others:
            return tuple(dict.fromkeys((split, name, *others)))
    return (split,)


def split_of(name: str) -> str | None:
    """The split that a file's or folder's name tells: "train-00000-of-00001.parquet", "captions_val2017.json", "dev".

    Raises:
      Refused: it tells two.
    """
    words = re.split(r"[-_. ]+", name.lower())
    found = {s for word in words for s, names in SPLITS.items() if word in names or word == s}
    if len(found) > 1:
        raise Refused(f"{name!r} names several splits ({', '.join(sorted(found))}); rename it, or name the file itself")
    return next(iter(found), None)


def of_split(files: Sequence[Path], split: str, where: Path) -> tuple[list[Path], str, list[str]]:
    """(those of the files that belong to a split, its name, names of those that no split names).

    Where no file is named by a split, all of them are taken, and the split has no name.

    Raises:
      NoSuchSplit: there are splits, and not that one.
    """
    told = {p: split_of(p.stem) if p.is_file() else _split_named(p.name) for p in files}
    if not any(told.values()):
        return list(files), "", []
    wanted = [p for p, s in told.items() if s is not None and (s == split or s in names_of(split))]
    if not wanted:
        there = sorted({s for s in told.values() if s})
        raise NoSuchSplit(
            f"{str(where)!r} has no split {split!r}; it has {', '.join(there)} (by the names of {files[0].name} and others)"
        )
    rest = [p.name for p, s in told.items() if s is None]
    return wanted, next(s for s in told.values() if s and s in names_of(split)), rest


def _split_named(folder: str) -> str | None:
    """The split whose name a folder has, as a whole: "train_station" is none."""
    return next((s for s, names in SPLITS.items() if folder.lower() == s or folder.lower() in names), None)


def unnamed(rest: Sequence[str], what: str) -> Counter[str]:
    """What is left out of those that no split names, for `Understood`."""
    return Counter({f"{what} that no split names ({', '.join(rest[:3])})": len(rest)} if rest else {})


def needed(path: Path, split: str) -> Path:
    """A file of a split.

    Raises:
      NoSuchSplit: it is not there.
    """
    if not path.is_file():
        raise NoSuchSplit(f"{str(path.parent)!r} has no split {split!r} ({path.name} is missing)")
    return path


class Pictures:
    """Pictures by the names that tables give them, in a folder and some others.

    A name is looked for as it is; then under the Unicode normal form, the case and kind of suffix, the slashes and the leading
    folders that the files have. What then fits several files is an error.
    """

    def __init__(self, *folders: Path):
        self.folders = tuple(dict.fromkeys(f for f in folders if f.is_dir()))
        self._index: dict[str, list[Path]] | None = None
        self._lock = threading.Lock()

    def __call__(self, name: str) -> bytes:
        return read_bytes(self.find(name))

    def find(self, name: str) -> Path:
        """The file of a picture.

        Raises:
          FileNotFoundError: there is none, or there are several.
        """
        for folder in self.folders:
            if (path := folder / name).is_file():
                return path
        with self._lock:
            index = self._index = self._index if self._index is not None else self._indexed()
        parts = [p for p in _alike(name).split("/") if p not in ("", ".")]
        for start in range(len(parts)):
            wanted = "/".join(parts[start:])
            bare = wanted.rpartition(".")[0] if wanted.endswith(PICTURES) else wanted
            found = index.get(wanted) or index.get(wanted + ".") or index.get(bare + ".") or []
            if (
                start
            ):  # without some of its folders a name is that of a file only where no other folders take their place
                found = [p for p in found if any(self._whole(p, f, wanted) for f in self.folders)]
            if len(found) == 1:
                return found[0]
            if found:
                raise FileNotFoundError(
                    f"image {name!r} may be {found[0]} or {found[1]}; give its path below {self.folders[0]}"
                )
        where = ", ".join(map(str, self.folders)) or "any folder that is there"
        raise FileNotFoundError(f"image {name!r} is in the table but not in {where}")

    @staticmethod
    def _whole(path: Path, folder: Path, wanted: str) -> bool:
        """Whether a name is all of a file's path below a folder, whatever its suffix."""
        if not path.is_relative_to(folder):
            return False
        below = _alike(str(path.relative_to(folder)))
        return below == wanted or below.rpartition(".")[0] in (wanted, wanted.rpartition(".")[0])

    def _indexed(self) -> dict[str, list[Path]]:
        """Files by every end of their path; a file stands under its path without a suffix (but its dot) too."""
        found: dict[str, list[Path]] = {}
        seen: set[Path] = set()
        for folder in self.folders:
            for where, _, names in os.walk(folder):
                for name in sorted(names):
                    path = Path(where, name)
                    if path.suffix.lower() not in PICTURES or path in seen:
                        continue
                    seen.add(path)
                    parts = _alike(str(path.relative_to(folder))).split("/")
                    for i in range(len(parts)):
                        end = "/".join(parts[i:])
                        found.setdefault(end, []).append(path)
                        found.setdefault(end.rpartition(".")[0] + ".", []).append(path)
        return found


def _alike(name: str) -> str:
    stem, dot, suffix = unicodedata.normalize("NFC", name.replace("\\", "/")).rpartition(".")
    return f"{stem}.{suffix.lower()}" if dot and "/" not in suffix else stem + suffix


class Rows:
    """A source of rows; `read(name)` gives the bytes of a picture. A row that is an error raises it when it is read."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Row | tuple[str, Exception]],
        read: Callable[[Any], bytes],
        understood: Understood,
        kind: str = "rows",
    ):
        if not rows:
            raise ValueError(f"{name} holds no rows")
        bad = [r for r in rows if isinstance(r, tuple)]
        if len(bad) == len(rows):
            raise bad[0][1]
        self._name, self._rows, self._read, self._kind = name, rows, read, kind
        self.understood, self.split = understood, understood.split
        understood.rows = len(rows) - len(bad)
        if bad:
            understood.left_out[f"cannot be read, such as {bad[0][0]}: {bad[0][1]}"[:300]] += len(bad)
        texts = "\n".join(json.dumps(row, sort_keys=True, default=_stand_in) for row in rows)
        self.fingerprint = f"{zlib.crc32(texts.encode('utf-8', 'surrogatepass')):08x}"

    def __len__(self):
        return len(self._rows)

    def key(self, index: int) -> str:
        row = self._rows[index]
        return row[0] if isinstance(row, tuple) else str(row.get("key", f"{self._name}/{index}"))

    def group(self, index: int) -> str:
        """The picture (or pictures) that an example is about."""
        row = self._rows[index]
        if isinstance(row, tuple):
            return row[0]
        named = row.get("group", row.get("images", row.get("image")))
        return str(named) if isinstance(named, str | list | int) else self.key(index)

    def __getitem__(self, index: int) -> Row:
        row = {"key": self.key(index), **self._good(index)}
        if isinstance(row.get("images"), list):
            row["images"] = [self._read(name) for name in row["images"]]
        elif "image" in row:
            row["image"] = self._read(row["image"])
        return row

    def text(self, index: int) -> Row:
        """An example without its pictures."""
        return {k: v for k, v in self._good(index).items() if k not in ("image", "images")}

    def _good(self, index: int) -> Row:
        row = self._rows[index]
        if isinstance(row, tuple):
            raise type(row[1])(*row[1].args)
        return row

    def __repr__(self):
        return f"{self._kind}:{self._name}:{self.fingerprint}:{len(self)}"


def _stand_in(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def by_picture(found: Iterable[tuple[str, Any, list[str] | Exception, Row]]) -> list[Row | tuple[str, Exception]]:
    """One row a picture with all its captions, of (key, picture, captions, more), in the order in which pictures first come.

    What is wrong with a row stands by itself; what more there is to tell of a picture is what its first row tells.
    """
    captions: dict[Any, list[str]] = {}
    out: list[Any] = []
    for key, picture, value, more in found:
        if isinstance(value, Exception):
            out.append((key, value))
            continue
        if picture not in captions:
            captions[picture] = []
            out.append({**more, "key": key, "image": picture, "captions": captions[picture]})
        captions[picture].extend(value)
    return out

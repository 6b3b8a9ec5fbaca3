"""Rows of data sets: what was understood of a path, where pictures lie, and a source over both."""

import dataclasses
import json
import threading
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import printable, read_bytes
from simvlm_jax.data.folders import PICTURES, walk
from simvlm_jax.data.splits import SPLITS, group_of, split_named

Row = dict[str, Any]
"""`image` or `images` name pictures; `key`, `captions`, `question`, `answer` or `answers`, `label` and the rest are as read."""


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


class Pictures:
    """Pictures by the names that tables give them, in a folder and some others.

    A name is looked for as it is; then under the Unicode normal form, the case and kind of suffix, the slashes and the leading
    folders that the files have. What then fits several files, or only one in a folder of another split, is an error.
    """

    def __init__(self, *folders: Path, split: str = ""):
        group = group_of(split) or ""
        own = [f / s for s in (split, group, *SPLITS.get(group, ())) if s for f in folders]
        self.folders = tuple(dict.fromkeys(f for f in (*own, *folders) if f.is_dir()))
        self._allowed = {"": None, "testdev": {"testdev", "test"}}.get(group, {group})
        self._index: dict[str, list[Path]] | None = None
        self._rows: Sequence[Any] = ()
        self._ends: Counter[str] | None = None
        self._lock = threading.Lock()

    def serve(self, rows: Sequence[Any]) -> None:
        """Tells the rows whose pictures will be asked for, so that no file is taken for two of them."""
        self._rows, self._ends = rows, None

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
        parts = _parts(name)
        for start in range(len(parts)):
            wanted = "/".join(parts[start:])
            bare = wanted.rpartition(".")[0] if wanted.endswith(PICTURES) else wanted
            found = index.get(wanted) or index.get(wanted + ".") or index.get(bare + ".") or []
            if (
                start
            ):  # without some of its folders a name is that of a file only where no other folders take their place
                found = [p for p in found if any(self._whole(p, f, wanted) for f in self.folders)]
                if found and self._shared(wanted):
                    raise FileNotFoundError(
                        f"image {name!r} is not there, and {found[0]} may be another of the table that ends in {wanted!r}; "
                        "restore the folders of its name"
                    )
            if found and not (mine := [p for p in found if self._may_be(p, parts)]):
                raise FileNotFoundError(
                    f"image {name!r} is only in {found[0].parent}, of another split; add it, or give its whole path there"
                )
            found = mine if found else found
            if len(found) == 1:
                return found[0]
            if found:
                raise FileNotFoundError(
                    f"image {name!r} may be {found[0]} or {found[1]}; give its path below {self.folders[0]}"
                )
        where = ", ".join(map(str, self.folders)) or "any folder that is there"
        raise FileNotFoundError(f"image {name!r} is in the table but not in {where}")

    def _may_be(self, path: Path, parts: Sequence[str]) -> bool:
        """Whether a file lies in no folder of another split, but for one that its name in the table has."""
        if self._allowed is None:
            return True
        base = max((f for f in self.folders if path.is_relative_to(f)), key=lambda f: len(f.parts))
        folders = {p for p in path.relative_to(base).parts[:-1] if p not in parts}
        return all(split_named(p) in (None, *self._allowed) for p in folders)

    def _shared(self, end: str) -> bool:
        """Whether several names of the table end so."""
        with self._lock:
            if self._ends is None:
                names = {_parts(name) for row in self._rows for name in _picture_names(row)}
                self._ends = Counter("/".join(parts[i:]) for parts in names for i in range(len(parts)))
        return self._ends[end] > 1

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
            for where, names in walk(folder):
                for name in names:
                    path = where / name
                    if path.suffix.lower() not in PICTURES or path in seen:
                        continue
                    seen.add(path)
                    parts = _alike(str(path.relative_to(folder))).split("/")
                    for i in range(len(parts)):
                        end = "/".join(parts[i:])
                        found.setdefault(end, []).append(path)
                        found.setdefault(end.rpartition(".")[0] + ".", []).append(path)
        return found


def _picture_names(row: Any) -> list[str]:
    named = [row.get("image"), *(row.get("images") or ())] if isinstance(row, dict) else []
    return [name for name in named if isinstance(name, str)]


def _parts(name: str) -> tuple[str, ...]:
    return tuple(p for p in _alike(name).split("/") if p not in ("", "."))


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
        if isinstance(read, Pictures):
            read.serve(rows)
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
    """One row per picture with all its captions, of (key, picture, captions, more), in the order in which pictures first come.

    What is wrong with a row stands by itself, and so does one that tells something else of its picture than the first (`more`).
    """
    rows: dict[Any, Row] = {}
    out: list[Any] = []
    for key, picture, value, more in found:
        if isinstance(value, Exception):
            out.append((key, value))
            continue
        if picture not in rows:
            rows[picture] = {**more, "key": key, "image": picture, "captions": []}
            out.append(rows[picture])
        other = [k for k, v in more.items() if rows[picture].get(k, v) != v]
        if other:
            first = rows[picture][other[0]]
            out.append(
                (key, ValueError(f"{picture} has the {other[0]} {more[other[0]]!r}, and {first!r} in an earlier row"))
            )
            continue
        rows[picture] |= more
        rows[picture]["captions"].extend(value)
    return out

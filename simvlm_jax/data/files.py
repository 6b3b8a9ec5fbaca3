"""Data in files that people have: WebDataset tars, folders of images with a table, documents."""

import csv
import dataclasses
import functools
import json
import os
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from simvlm_jax.text.tokenizer import clean

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path")
CAPTION_COLUMNS = ("captions", "caption", "text", "sentence")
_OPEN_SHARDS = 256


def texts(value: Any) -> list[str]:
    """Captions as data sets spell them: nothing, a text, several texts, or several {"text": ...}.

    Raises:
      ValueError: anything else, a number for instance.
    """
    if isinstance(value, dict):
        value = value.get("text")
    if value is None:
        return []
    if isinstance(value, bytes | str):
        value = [value]
    try:
        found = [v.get("text") if isinstance(v, dict) else v for v in value]
    except TypeError:
        found = [value]
    if wrong := [v for v in found if v is not None and not isinstance(v, bytes | str)]:
        raise ValueError(f"a caption must be text, not {wrong[0]!r}")
    return [clean(v) for v in found if v is not None]


Member = tuple[Path, int, int]
"""A file inside a tar: the tar, offset and size in bytes."""


class WebDatasetSource:
    """WebDataset tars: KEY.jpg beside KEY.json {"captions" or "caption"} or KEY.txt. Indexed once, read at random."""

    def __init__(self, paths: list[Path]):
        indices = [_index(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        self._rows = [row for index in indices for row in index if picture_of(row[1])]
        if not self._rows:
            raise ValueError(f"no images in {', '.join(map(str, paths))}; expected members like KEY.jpg and KEY.json")
        self._paths, self._files, self._lock = paths, {}, threading.Lock()

    def __len__(self):
        return len(self._rows)

    def key(self, index: int) -> str:
        return self._rows[index][0]

    def _read(self, member: Member) -> bytes:
        path, offset, size = member
        with self._lock:
            if path not in self._files and len(self._files) < _OPEN_SHARDS:
                self._files[path] = path.open("rb", buffering=0)
            file = self._files.get(path)
        if file is not None:
            return os.pread(file.fileno(), size, offset)
        with path.open("rb") as file:
            return os.pread(file.fileno(), size, offset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return read_sample(*self._rows[index], self._read)

    def close(self) -> None:
        """Closes the tars; they are opened again when they are read again."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def __repr__(self):
        sizes = ",".join(f"{p.name}:{p.stat().st_size}" for p in self._paths)
        return f"webdataset:{zlib.crc32(sizes.encode()):08x}:{len(self)}"


def picture_of(files: dict[str, Member]) -> Member | None:
    """The picture among the files of a sample."""
    return next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)


def read_sample(key: str, files: dict[str, Member], read: Callable[[Member], bytes]) -> dict[str, Any]:
    """A sample with a picture: {"key", "image", "captions"}."""
    image = picture_of(files)
    assert image is not None, key
    example: dict[str, Any] = {"key": key, "image": read(image), "captions": []}
    if ".json" in files:
        meta = json.loads(read(files[".json"]))
        if not isinstance(meta, dict):
            raise ValueError(f"{key}.json must hold an object, not a {type(meta).__name__}")
        example["captions"] = texts(meta.get("captions", meta.get("caption")))
    if not example["captions"] and ".txt" in files:
        example["captions"] = [clean(read(files[".txt"]))]
    return example


@functools.cache
def _index(path: Path, size: int, changed: int) -> list[tuple[str, dict[str, Member]]]:
    """The index of a tar; `size` and `changed` tell one state of the file from another."""
    return index_tar(path)


def index_tar(path: Path) -> list[tuple[str, dict[str, Member]]]:
    """(key, members by suffix) of every sample of a tar; of members with one name the last counts, as when unpacking.

    Raises:
      ValueError: it is not a whole, uncompressed tar.
    """
    size = path.stat().st_size
    by_key: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, _, file = member.name.rpartition("/")
                    stem, _, suffix = file.partition(".")
                    entry = (path, member.offset_data, member.size)
                    if member.offset_data + member.size > size:  # which tarfile passes over in silence
                        raise tarfile.ReadError(f"it ends within {member.name}")
                    by_key.setdefault(f"{folder}/{stem}" if folder else stem, {})["." + suffix.lower()] = entry
            with path.open("rb") as file:  # a damaged header, or half a one, looks like the end
                file.seek(tar.offset)
                if file.read(512).strip(b"\0"):
                    raise tarfile.ReadError(f"there is no header at byte {tar.offset}")
    except tarfile.TarError as e:
        raise ValueError(f"{str(path)!r} is not a whole, uncompressed tar file: {e}; fetch or unpack it again") from e
    return list(by_key.items())


@dataclasses.dataclass(frozen=True)
class Table:
    """A table's rows, each with its line (or row) number; column names are in lower case."""

    path: Path
    rows: list[tuple[int, dict[str, Any]]]

    def error(self, line: int, message: str) -> ValueError:
        return ValueError(f"table {str(self.path)!r}, line {line}: {message}")


class FolderSource:
    """A folder of images with tables of image names and captions.

    The image column is `image`, `file_name`, `filename`, `file` or `path`; captions are in `captions` (a list; in CSV and
    TSV a JSON list), `caption`, `text` or `sentence`. Several rows of one image are its references.
    """

    def __init__(self, folder: Path, tables: Sequence[Table]):
        captions: dict[str, list[str]] = {}
        for table in tables:
            for line, row in table.rows:
                name = next((row[k] for k in IMAGE_COLUMNS if row.get(k)), None)
                if name is None or not any(k in row for k in CAPTION_COLUMNS):
                    raise table.error(
                        line,
                        f"needs an image ({', '.join(IMAGE_COLUMNS)}) and a caption ({', '.join(CAPTION_COLUMNS)}); "
                        f"it has {row}",
                    )
                captions.setdefault(str(name), []).extend(_captions(table, line, row))
        self._folder, self._rows = folder, list(captions.items())
        if not self._rows:
            raise ValueError(f"table {str(tables[0].path)!r} has no rows")

    def __len__(self):
        return len(self._rows)

    def key(self, index: int) -> str:
        return self._rows[index][0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, captions = self._rows[index]
        for candidate in (self._folder / name, self._folder / "images" / name):
            if candidate.is_file():
                return {"key": name, "captions": captions, "image": candidate.read_bytes()}
        raise FileNotFoundError(f"image {name!r} is in the table but not in {self._folder}")

    def __repr__(self):
        return f"folder:{zlib.crc32(json.dumps(self._rows).encode()):08x}:{len(self)}"


class TextSource:
    """Documents without images: a line of a .txt each, or the texts of tables with one of the caption columns."""

    def __init__(self, path: Path, tables: Sequence[Table] = ()):
        if tables:
            self._texts = [t for table in tables for line, row in table.rows for t in _captions(table, line, row)]
        else:
            self._texts = [t for t in map(clean, _decoded(path).split("\n")) if t]
        self._name = path.name
        if not self._texts:
            columns = f" in a column {', '.join(CAPTION_COLUMNS)}" if tables else ""
            raise ValueError(f"{str(path)!r} holds no text{columns}")

    def __len__(self):
        return len(self._texts)

    def key(self, index: int) -> str:
        return f"{self._name}/{index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"key": self.key(index), "text": self._texts[index]}

    def __repr__(self):
        return f"text:{zlib.crc32(json.dumps(self._texts).encode()):08x}:{len(self)}"


def read_table(path: Path) -> Table:
    """Reads a JSONL, CSV, TSV or Parquet file.

    Raises:
      ValueError: what is not such a file, with the line where there is one.
    """
    table = Table(path, [])
    kind = path.suffix.lower()
    read = {".jsonl": _jsonl, ".parquet": _parquet}.get(kind, _delimited)
    for line, row in read(table):
        table.rows.append((line, {str(k).strip().lower(): v for k, v in row.items()}))
    return table


def _jsonl(table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(_decoded(table.path).split("\n"), 1):
        if text.strip():
            try:
                row = json.loads(text)
            except json.JSONDecodeError as e:
                raise table.error(line, f"not JSON: {e}") from e
            if not isinstance(row, dict):
                raise table.error(line, f"must be an object, not {row!r}")
            yield line, row


def _parquet(table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(table.path).to_pylist()
    except pyarrow.lib.ArrowInvalid as e:
        raise ValueError(f"table {str(table.path)!r} is not Parquet: {e}") from e
    yield from enumerate(rows, 1)


def _delimited(table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """CSV and TSV; a CSV whose header has semicolons and no commas is taken by them, as spreadsheets write it.

    Quotes that do not pair up are text in a TSV, where fields need none, and an error in a CSV.
    """
    lines = _decoded(table.path).split("\n")
    mark = "\t" if table.path.suffix.lower() == ".tsv" else ";" if ";" in lines[0] and "," not in lines[0] else ","

    def rows(**how: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.DictReader(
            (f"{line}\n" for line in lines), delimiter=mark, skipinitialspace=True, strict=True, **how
        )
        try:
            for row in reader:
                if None in row:
                    raise table.error(
                        reader.line_num,
                        f"has more fields than the header ({row[None]}); put captions with {mark!r} in quotes",
                    )
                yield reader.line_num, row
        except csv.Error as e:
            message = f"{e}; a quote inside a quoted field is written twice"
            raise _Unpaired(str(table.error(reader.line_num + 1, message))) from e

    try:
        yield from list(rows())
    except _Unpaired:
        if mark != "\t":
            raise
        yield from rows(quoting=csv.QUOTE_NONE)


class NoSuchSplit(FileNotFoundError, ValueError):
    """The data is there, but not the split that was asked for."""


class _Unpaired(ValueError):
    """Quotes that do not pair up."""


def _captions(table: Table, line: int, row: dict[str, Any]) -> list[str]:
    try:
        return captions_of(row)
    except ValueError as e:
        raise table.error(line, str(e)) from e


def captions_of(row: dict[str, Any]) -> list[str]:
    """The texts of the first caption column that holds any.

    Raises:
      ValueError: what stands there is not text.
    """
    for name in CAPTION_COLUMNS:
        value = row.get(name)
        if name == "captions" and isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as e:
                raise ValueError(f'`captions` must be a JSON list such as ["one", "two"]: {e}') from e
        if found := [t for t in texts(value) if t]:
            return found
    return []


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{str(path)!r} is not UTF-8 (byte {e.start}); save it as UTF-8") from e

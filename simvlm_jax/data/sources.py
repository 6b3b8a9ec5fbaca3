"""Where examples come from: random access, `len(source)` and `source[i]`, by any path a user may name.

An example is a dict with `key` (text) and, as far as there are any, `image` (encoded bytes), `captions` (list of text),
`text`, and whatever else the data set knows (`scene`).
"""

import csv
import json
import tarfile
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from simvlm_jax.text.tokenizer import clean

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def key(self, index: int) -> str:
        """The example's name, without reading the rest of it."""
        ...


class TfdsSource:
    """A prepared TFDS data set in array_record form; `scenes` is prepared on first use. TensorFlow is never loaded."""

    def __init__(self, name: str, split: str):
        import tensorflow_datasets as tfds

        if name.split("/")[0] == "scenes":
            from simvlm_jax.data.scenes.builder import prepare

            builder = prepare(name.partition("/")[2] or "captions")
        else:
            builder = tfds.builder(name)
            if not Path(builder.data_path).exists():
                raise FileNotFoundError(
                    f"TFDS data set {name!r} is not prepared in {builder.data_path}; prepare it first"
                )
        if builder.info.file_format.value != "array_record":
            raise ValueError(f"TFDS data set {name!r} is {builder.info.file_format.value}; prepare it as array_record")
        features = builder.info.features
        raw = {k: tfds.decode.SkipDecoding() for k, f in features.items() if isinstance(f, tfds.features.Image)}
        try:
            self._records: Any = builder.as_data_source(split, decoders=raw or None)
        except ValueError as e:
            raise ValueError(
                f"TFDS data set {name!r} has no split {split!r}; it has {list(builder.info.splits)}"
            ) from e
        self._name = f"{name}/{split}"
        self._fingerprint = f"{name}:{builder.version}:{split}"

    def __len__(self):
        return len(self._records)

    def key(self, index: int) -> str:
        return f"{self._name}/{index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        example = {k: clean(v) if isinstance(v, bytes) and k != "image" else v for k, v in record.items()}
        example.setdefault("key", self.key(index))
        for name in ("captions", "caption"):
            if name in record:
                example["captions"] = _texts(record[name])
        return example

    def __repr__(self):
        return self._fingerprint


def _texts(value: Any) -> list[str]:
    """Captions as TFDS data sets spell them: a text, a sequence of texts, or a sequence of {"text": ...}."""
    if isinstance(value, dict):
        value = value.get("text", [])
    if isinstance(value, bytes | str):
        value = [value]
    return [clean(v["text"] if isinstance(v, dict) else v) for v in value]


class WebDatasetSource:
    """WebDataset tars: KEY.jpg beside KEY.json {"captions" or "caption"} or KEY.txt. Indexed once, read at random."""

    def __init__(self, paths: list[Path]):
        self._rows: list[tuple[str, dict[str, tuple[Path, int, int]]]] = []
        for path in paths:
            by_key: dict[str, dict[str, tuple[Path, int, int]]] = {}
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile():
                        folder, _, file = member.name.rpartition("/")
                        stem, _, suffix = file.partition(".")
                        entry = (path, member.offset_data, member.size)
                        by_key.setdefault(f"{folder}/{stem}" if folder else stem, {})["." + suffix.lower()] = entry
            rows = [(key, files) for key, files in by_key.items() if any(s in files for s in IMAGE_SUFFIXES)]
            self._rows.extend(rows)
        if not self._rows:
            raise ValueError(f"no images in {', '.join(map(str, paths))}; expected members like KEY.jpg and KEY.json")
        self._local = threading.local()
        self._paths = paths

    def __len__(self):
        return len(self._rows)

    def key(self, index: int) -> str:
        return self._rows[index][0]

    def _read(self, entry: tuple[Path, int, int]) -> bytes:
        path, offset, size = entry
        files = self._local.__dict__.setdefault("files", {})
        if path not in files:
            files[path] = path.open("rb")
        files[path].seek(offset)
        return files[path].read(size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key, files = self._rows[index]
        example: dict[str, Any] = {"key": key}
        for suffix in IMAGE_SUFFIXES:
            if suffix in files:
                example["image"] = self._read(files[suffix])
                break
        if ".json" in files:
            meta = json.loads(self._read(files[".json"]))
            example["captions"] = _texts(meta.get("captions", meta.get("caption", [])))
        elif ".txt" in files:
            example["captions"] = [clean(self._read(files[".txt"]))]
        return example

    def __repr__(self):
        sizes = ",".join(f"{p.name}:{p.stat().st_size}" for p in self._paths)
        return f"webdataset:{zlib.crc32(sizes.encode()):08x}:{len(self)}"


class FolderSource:
    """A folder of images with a table (JSONL, CSV, TSV or Parquet) of image names and captions.

    The image column is `image`, `file_name`, `filename`, `file` or `path`; captions are in `captions` (a list),
    `caption`, `text` or `sentence`. Several rows of one image are its references.
    """

    def __init__(self, folder: Path, table: Path | None = None):
        tables = [table] if table else sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLE_SUFFIXES)
        if not tables:
            raise ValueError(f"folder {str(folder)!r} holds no table; expected one of *{', *'.join(TABLE_SUFFIXES)}")
        captions: dict[str, list[str]] = {}
        for path in tables:
            for row in _read_table(path):
                name, texts = _row(row, path)
                captions.setdefault(name, []).extend(texts)
        self._folder, self._rows = folder, list(captions.items())
        if not self._rows:
            raise ValueError(f"table {str(tables[0])!r} has no rows")

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
        text = json.dumps(self._rows)
        return f"folder:{zlib.crc32(text.encode()):08x}:{len(self)}"


def _read_table(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))


def _row(row: dict[str, Any], path: Path) -> tuple[str, list[str]]:
    name = next((row[k] for k in ("image", "file_name", "filename", "file", "path") if row.get(k)), None)
    value = next((row[k] for k in ("captions", "caption", "text", "sentence") if row.get(k)), None)
    if name is None or value is None:
        raise ValueError(f"table {str(path)!r} needs an image and a caption column; this row has {list(row)}")
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    return str(name), _texts(value)


class HashSplit:
    """A share of a source by hash of the key: `held_out` and its complement never overlap, whatever the order."""

    def __init__(self, source: Source, share: float, held_out: bool):
        edge = int(share * 2**32)
        self._source = source
        self._indices = [i for i in range(len(source)) if (zlib.crc32(source.key(i).encode()) < edge) == held_out]
        if not self._indices:
            raise ValueError(f"{share:.0%} of {len(source)} examples leave none; name data.eval.path instead")
        self._label = f"{'held out' if held_out else 'without'} {share:.0%}"

    def __len__(self):
        return len(self._indices)

    def key(self, index: int) -> str:
        return self._source.key(self._indices[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._indices[index]]

    def __repr__(self):
        return f"{self._source!r} {self._label}"


class Cached:
    """A source whose examples, after transforms that draw nothing, stay in memory once seen; for small data sets."""

    def __init__(self, source: Source, transforms: Sequence[Callable] = ()):
        self._source, self._transforms = source, tuple(transforms)
        self._kept: dict[int, dict[str, Any]] = {}

    def __len__(self):
        return len(self._source)

    def key(self, index: int) -> str:
        return self._source.key(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._kept:
            example = self._source[index]
            for transform in self._transforms:
                example = transform(example, None)
            self._kept[index] = example
        return self._kept[index]

    def __repr__(self):
        return repr(self._source)


def open_source(path: str, split: str = "train") -> Source:
    """The source a user means by a path.

    A .tar file, a glob of them or a folder that holds some; a folder with a table of captions, or the table itself;
    else the name of a TFDS data set ("scenes/captions", "coco_captions"), of which `split` is read.
    """
    here = Path(path).expanduser()
    if any(c in path for c in "*?["):
        tars = sorted(Path(here.anchor or ".").glob(str(here.relative_to(here.anchor) if here.anchor else here)))
        tars = [p for p in tars if p.suffix == ".tar"]
        if not tars:
            raise FileNotFoundError(f"path {path!r} matches no .tar file; expected shards like train-0000.tar")
        return WebDatasetSource(tars)
    if here.is_file():
        if here.suffix == ".tar":
            return WebDatasetSource([here])
        if here.suffix.lower() in TABLE_SUFFIXES:
            return FolderSource(here.parent, here)
        raise ValueError(f"path {path!r} is neither a .tar nor a table (*{', *'.join(TABLE_SUFFIXES)})")
    if here.is_dir():
        if any(p.suffix.lower() in TABLE_SUFFIXES for p in here.iterdir()):
            return FolderSource(here)
        if tars := sorted(here.glob("*.tar")):
            return WebDatasetSource(tars)
        raise ValueError(f"path {path!r} holds neither .tar shards nor a table of captions")
    if path.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"path {path!r} does not exist")
    return TfdsSource(path, split)

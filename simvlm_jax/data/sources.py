"""Where examples come from: random access, `len(source)` and `source[i]`, by any path a user may name.

An example is a dict with `key` (text) and, as far as there are any, `image` (encoded bytes), `captions` (list of text),
`text`, and whatever else the data set knows (`scene`).
"""

import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from simvlm_jax.data import labelled, questions
from simvlm_jax.data.files import (
    TABLE_SUFFIXES,
    FolderSource,
    NoSuchSplit,
    Table,
    TextSource,
    WebDatasetSource,
    read_table,
    texts,
)
from simvlm_jax.text.tokenizer import clean


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
            builder = _prepared(name)
        if builder.info.file_format.value != "array_record":
            raise ValueError(f"TFDS data set {name!r} is {builder.info.file_format.value}; prepare it as array_record")
        features = builder.info.features
        skip = tfds.decode.SkipDecoding()
        raw = {k: skip for k, f in features.items() if isinstance(f, tfds.features.Image)}
        self._labels = {k: f for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)}
        try:
            self._records: Any = builder.as_data_source(split, decoders=raw or None)  # pyright: ignore[reportCallIssue]
        except ValueError as e:
            raise NoSuchSplit(
                f"TFDS data set {name!r} has no split {split!r}; it has {list(builder.info.splits)}"
            ) from e
        self._path, self._name, self.split = name, f"{name}/{split}", split
        whole = builder.info.splits
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(whole)  # None: from the start, to the end
        self._slices = [(p.splitname, range(whole[p.splitname].num_examples)[p.from_ : p.to]) for p in parts]
        self._fingerprint = f"{name}:{builder.version}:{split}"

    def __len__(self):
        return len(self._records)

    def key(self, index: int) -> str:
        return f"{self._name}/{index}"

    def origin(self, index: int) -> str:
        """The example's name in the whole of its split, whatever slice it was reached by."""
        for name, rows in self._slices:
            if index < len(rows):
                return f"{self._path}/{name}/{rows[index]}"
            index -= len(rows)
        raise IndexError(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        example = {k: clean(v) if isinstance(v, bytes) and k != "image" else v for k, v in record.items()}
        example.setdefault("key", self.key(index))
        for name in ("captions", "caption"):
            if name in record:
                example["captions"] = texts(record[name])
        for name, feature in self._labels.items():
            example[name] = feature.int2str(int(record[name]))
        return example

    def __repr__(self):
        return self._fingerprint


def _prepared(name: str) -> Any:
    """The TFDS builder of files on disk, without the data set's own code, which may want TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    try:
        if Path(name).is_dir():
            return tfds.builder_from_directory(name)
        bare, kwargs = naming.parse_builder_name_kwargs(name)
        return tfds.core.read_only_builder.builder_from_files(str(bare), **kwargs)
    except Exception as e:  # TFDS raises many kinds, and lists hundreds of names
        place = os.environ.get("TFDS_DATA_DIR", tfds.core.constants.DATA_DIR)
        raise FileNotFoundError(
            f"path {name!r} is neither a file or folder here nor a TFDS data set prepared in {place}; "
            "name a .tar, a folder, a table, or prepare the data set (file_format array_record)"
        ) from e


def origin(source: Source, index: int) -> str:
    """What tells that two examples are one, though sources may name them by different slices."""
    return getattr(source, "origin", source.key)(index)


class HashSplit:
    """A share of a source by hash of the key: `held_out` and its complement never overlap, whatever the order.

    Where a source knows which examples share a picture (`group`), they stay together.
    """

    def __init__(self, source: Source, share: float, held_out: bool):
        edge = int(share * 2**32)
        self._source = source
        name = getattr(source, "group", source.key)
        self._indices = [i for i in range(len(source)) if (zlib.crc32(name(i).encode()) < edge) == held_out]
        if not self._indices:
            raise ValueError(f"{share:.0%} of {len(source)} examples leave none; name data.eval.path instead")
        self._label = f"{'held out' if held_out else 'without'} {share:.0%}"

    def text(self, index: int) -> dict[str, Any]:
        """An example without its pictures, as far as the source can tell them apart."""
        return without_pictures(self._source, self._indices[index])

    def __len__(self):
        return len(self._indices)

    def key(self, index: int) -> str:
        return self._source.key(self._indices[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._indices[index]]

    def __repr__(self):
        return f"{self._source!r} {self._label}"


def without_pictures(source: Source, index: int) -> dict[str, Any]:
    """An example, without reading pictures where the source can do so."""
    light = getattr(source, "text", None)
    return light(index) if light else source[index]


class Cached:
    """A source whose examples, after transforms that draw nothing, stay in memory once seen; for small data sets."""

    def __init__(self, source: Source, transforms: Sequence[Callable] = ()):
        self._source, self._transforms = source, tuple(transforms)
        self._kept: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}

    def __len__(self):
        return len(self._source)

    def key(self, index: int) -> str:
        return self._source.key(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._both(index)[0]

    def untouched(self, index: int) -> dict[str, Any]:
        """What of an example is as the data has it, made by no transform."""
        return self._both(index)[1]

    def _both(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        if index not in self._kept:
            given = example = self._source[index]
            for transform in self._transforms:
                example = transform(example, None)
            self._kept[index] = example, {k: v for k, v in example.items() if v is given.get(k)}
        return self._kept[index]

    def __repr__(self):
        return repr(self._source)


def open_source(path: str, split: str = "train", images: bool = True) -> Source:
    """The source a user means by a path.

    With `images`: a .tar file, several of them ("train-*.tar", "train-{0000..0031}.tar") or a folder that holds some; a
    folder with a table of captions or of questions, or the table itself; the folder of a data set of questions.KNOWN or of
    data/labelled.py; pictures in a folder a class. Of a known data set, and of a folder whose files are named by splits
    (train.jsonl, dev-0000.tar), `split` is read.

    A folder that holds a prepared TFDS data set (of `simvlm data web`, for one) is that; of it, `split` is read.

    Without: the texts of such tables, or a .txt, a document a line. Else the name of a TFDS data set ("scenes/captions",
    "coco_captions"), of which `split` is read.
    """
    here = Path(path).expanduser()
    if any(c in path for c in "*?[{"):
        tars = [p for pattern in ranges(str(here)) for p in _glob(Path(pattern)) if p.suffix == ".tar"]
        if not tars:
            raise FileNotFoundError(f"path {path!r} matches no .tar file; expected shards like train-0000.tar")
        return WebDatasetSource(tars)
    if here.is_file():
        if here.suffix.lower() == ".tar":
            return WebDatasetSource([here])
        if here.suffix.lower() == ".txt" and not images:
            return TextSource(here)
        if here.suffix.lower() in TABLE_SUFFIXES:
            table = read_table(here)
            return _rows(here.parent, [table]) if images else TextSource(here, [table])
        text = "" if images else "a .txt, "
        raise ValueError(f"path {path!r} is neither {text}a .tar nor a table (*{', *'.join(TABLE_SUFFIXES)})")
    if (here / "dataset_info.json").is_file():
        return TfdsSource(str(here), split)
    if here.is_dir():
        if known := next((make for marker, make in questions.KNOWN.items() if (here / marker).exists()), None):
            return known(here, split)
        if labelled.holds_imagenet_samples(here):
            return labelled.imagenet_samples(here, split)
        if found := sorted(p for p in here.iterdir() if p.suffix.lower() in TABLE_SUFFIXES):
            tables = [read_table(p) for p in _of_split(found, split)]
            return _rows(here, tables) if images else TextSource(here, tables)
        if tars := sorted(here.glob("*.tar")):
            return WebDatasetSource(_of_split(tars, split))
        if labelled.holds_class_archives(here):
            return labelled.class_archive(here, split)
        if labelled.holds_class_folders(here):
            return labelled.class_folders(here, split)
        raise ValueError(f"path {path!r} holds neither .tar shards, nor a table of captions, nor a folder a class")
    if path.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"path {path!r} does not exist")
    return TfdsSource(path, split)


def _of_split(files: list[Path], split: str) -> list[Path]:
    """Those files of a folder that belong to a split, if they are named by splits: train.jsonl, dev-0000.tar."""
    of = {p: re.split(r"[-_.]", p.stem)[0].lower() for p in files}
    if not set(of.values()) & {name for names in labelled.SPLITS.values() for name in names}:
        return files
    wanted = [p for p in files if of[p] in labelled.SPLITS.get(split, (split,))]
    if not wanted:
        raise NoSuchSplit(
            f"{str(files[0].parent)!r} has no split {split!r}; its files are named {', '.join(sorted(set(of.values())))}"
        )
    return wanted


def _rows(folder: Path, tables: list[Table]) -> Source:
    asks = any(questions.asks(set(row)) for table in tables for _, row in table.rows[:1])
    return questions.from_tables(folder, tables) if asks else FolderSource(folder, tables)


def ranges(path: str) -> list[str]:
    """ "x-{08..10}.tar" as its three paths."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if found is None:
        return [path]
    first, last = found.groups()
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    paths = [p for n in numbers for p in ranges(path[: found.start()] + n + path[found.end() :])]
    if missing := [p for p in paths if not any(c in p for c in "*?[") and not Path(p).is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} shards of {path!r} are missing, such as {missing[0]!r}"
        )
    return paths


def _glob(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor) if path.anchor else path)))

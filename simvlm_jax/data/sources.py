"""Where examples come from: random access, `len(source)` and `source[i]`, by any path a user may name.

An example is a dict with `key` (text) and, as far as there are any, `image` (encoded bytes), `captions` (list of text),
`text`, and whatever else the data set knows (`scene`).
"""

import itertools
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from simvlm_jax.core.files import BadFile
from simvlm_jax.data.readers import annotations, classes, flickr, published, sidecars, tfds
from simvlm_jax.data.readers.tables import from_tables
from simvlm_jax.data.readers.tars import WebDatasetSource
from simvlm_jax.data.readers.texts import TextSource
from simvlm_jax.data.rows import NoSuchSplit, Refused, Understood, names_of, of_split, split_of, unnamed
from simvlm_jax.data.tables import TABLE_SUFFIXES, read_table

MOST_SHARDS = 100_000
"""Files that a pattern may stand for."""


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def key(self, index: int) -> str:
        """The example's name, without reading the rest of it."""
        ...


def understood(source: Source) -> Understood:
    """What a path was taken for, if the source tells."""
    return getattr(source, "understood", None) or Understood(type(source).__name__, [], len(source))


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
        self._indices = [
            i for i in range(len(source)) if (zlib.crc32(name(i).encode("utf-8", "surrogatepass")) < edge) == held_out
        ]
        if not self._indices:
            raise ValueError(f"{share:.0%} of {len(source)} examples leave none; name data.eval.path instead")
        self._label = f"{'held out' if held_out else 'without'} {share:.0%}"
        told = understood(source)
        self.understood = Understood(
            told.reader,
            told.files,
            len(self._indices),
            told.columns,
            f"{told.split or 'all'}, {self._label}",
            told.left_out,
        )

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
        self.understood = understood(source)
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


def open_source(
    path: str, split: str = "train", images: bool = True, columns: str = "", truncated: bool = False
) -> Source:
    """The source a user means by a path (docs/data.md shows every layout as a tree).

    With `images`: .tar files ("x.tar", "train-*.tar", "train-{0000..0031}.tar") or a folder of them; tables of captions,
    questions or labels (CSV, TSV, JSONL, Parquet, lists in JSON), or a folder with some; COCO's, Karpathy's, Flickr's, VQA's,
    GQA's, LAVIS's and LLaVA's files; data sets of readers/published.py; pictures in a folder a class, or with a text file
    beside each; a folder a split of any of these. Of a data set that has splits, by its files' or folders' names or within
    them, `split` is read.

    A folder that holds a prepared TFDS data set (of `simvlm data web`, for one) is that; else a name that is no path is that of
    a TFDS data set ("scenes/captions", "coco_captions").

    Without `images`: the texts of such tables, or a .txt, a document a line.

    columns: names of a table's columns in place of the usual ones, "image=filepath,caption=title". truncated: takes a tar that
    was cut for what it still holds.

    Raises:
      Refused: what lies there is no layout that is known, or could be two. NoSuchSplit, FileNotFoundError, ValueError.
    """
    if any(c in path for c in "*?[{") and not Path(path).expanduser().exists():
        return _of_pattern(path, images, columns, truncated)
    here = Path(path).expanduser()
    if here.is_file():
        return _of_file(here, split, images, columns, truncated)
    if here.is_dir():
        return _of_folder(here, split, images, columns, truncated)
    if here.exists():
        raise BadFile(f"path {path!r} is neither a regular file nor a folder")
    if path.startswith(("/", ".", "~")) or "\\" in path:
        raise FileNotFoundError(f"path {path!r} does not exist")
    return tfds.TfdsSource(path, split)


def _of_pattern(path: str, images: bool, columns: str, truncated: bool) -> Source:
    files = [p for pattern in ranges(str(Path(path).expanduser())) for p in _glob(Path(pattern))]
    tars = [p for p in files if p.suffix.lower() == ".tar"]
    tables = [p for p in files if p.suffix.lower() in TABLE_SUFFIXES]
    if tars and images and not tables:
        return WebDatasetSource(tars, truncated=truncated)
    if tables and not tars:
        read = [read_table(p, columns) for p in tables]
        return from_tables(tables[0].parent, read) if images else TextSource(tables[0], read)
    if tars and tables:
        raise Refused(f"path {path!r} matches tars and tables; name one kind, as in '*.tar'")
    raise FileNotFoundError(f"path {path!r} matches no .tar file (or table); expected shards like train-0000.tar")


def _of_file(here: Path, split: str, images: bool, columns: str, truncated: bool) -> Source:
    suffix = here.suffix.lower()
    if suffix == ".tar" and images:
        return WebDatasetSource([here], truncated=truncated)
    if images and not columns and flickr.kind_of(here):
        return flickr.read_file(here, split)
    if suffix == ".txt" and not images:
        return TextSource(here)
    if suffix in TABLE_SUFFIXES:
        table = read_table(here, columns)
        return from_tables(here.parent, [table]) if images else TextSource(here, [table])
    if suffix == ".json" and images:
        return annotations.read_file(here, split)
    text = "" if images else "a .txt, "
    raise ValueError(
        f"path {str(here)!r} is neither {text}a .tar nor a table (*{', *'.join((*TABLE_SUFFIXES, '.json'))})"
    )


def _of_folder(here: Path, split: str, images: bool, columns: str, truncated: bool) -> Source:
    """The source in a folder: what is known by a file of its own first, then tables, tars, and pictures by themselves."""
    if tfds.accepts(here):
        return tfds.TfdsSource(str(here), split)
    if known := next((make for marker, make in published.KNOWN.items() if (here / marker).exists()), None):
        return known(here, split)
    if images and classes.holds_imagenet_samples(here):
        return classes.imagenet_samples(here, split)
    if images and not columns and (found := flickr.files_in(here)):
        if len(found) > 1:
            raise Refused(f"{str(here)!r} holds {' and '.join(p.name for p in found)}; name the file that is meant")
        return flickr.read_file(found[0], split)
    entries = sorted(p for p in here.iterdir() if not p.name.startswith(".") and not p.name.endswith(".npz.parts"))
    tables = [p for p in entries if p.is_file() and p.suffix.lower() in TABLE_SUFFIXES]
    tars = [p for p in entries if p.is_file() and p.suffix.lower() == ".tar"]
    if tars and images and all(p.suffix == ".parquet" and p.with_name(f"{p.stem}_stats.json").exists() for p in tables):
        found, name, rest = of_split(tars, split, here)
        source = WebDatasetSource(found, name, truncated)
        source.understood.left_out.update(unnamed(rest, "tars"))
        return source
    if tars and tables and images:
        raise Refused(
            f"{str(here)!r} holds tars and tables ({tars[0].name}, {tables[0].name}); name one of them, or '*.tar'"
        )
    if images and sidecars.accepts(here):
        return sidecars.read_folder(here, split)
    if tables:
        found, name, rest = of_split(tables, split, here)
        read = [read_table(p, columns) for p in found]
        source = from_tables(here, read, name) if images else TextSource(here, read, name)
        source.understood.left_out.update(unnamed(rest, "tables"))
        return source
    if images and annotations.accepts(here):
        return annotations.read_folder(here, split)
    folders = [p for p in entries if p.is_dir()]
    if inner := _split_folder(here, folders, split, images):
        inside = _of_folder(inner[0], split, images, columns, truncated)
        if inner[1]:
            named: Any = inside
            named.split = named.understood.split = inner[1]
        return inside
    if images and classes.holds_class_archives(here):
        return classes.class_archive(here, split)
    if images and classes.holds_class_folders(here):
        if strange := _strange(here, entries):
            raise Refused(
                f"{str(here)!r} holds {strange}, which no reader understands, beside folders of pictures; name what is meant, or "
                "move it away if the folders are classes"
            )
        return classes.class_folders(here, split)
    raise Refused(
        f"path {str(here)!r} holds neither .tar shards, nor a table of captions, nor a folder a class, nor any other layout of "
        "docs/data.md"
    )


_DATA_SUFFIXES = (*TABLE_SUFFIXES, ".json", ".xml", ".arrow", ".txt", ".tar", ".zip", ".pkl", ".token", ".mat")
_ABOUT = re.compile(r"readme|licen[cs]e|classes|classnames|labels?\b|notice|citation|wordnet|templates", re.IGNORECASE)


def _strange(here: Path, entries: list[Path]) -> str:
    """A file of data that would be passed over if folders of pictures were taken for classes."""
    inside = itertools.chain.from_iterable(itertools.islice(p.iterdir(), 200) for p in entries if p.is_dir())
    found = (p for p in (*entries, *inside) if p.is_file() and p.suffix.lower() in _DATA_SUFFIXES)
    return next(
        (
            str(p.relative_to(here))
            for p in found
            if p.suffix.lower() not in (".txt", ".json") or not _ABOUT.match(p.name)
        ),
        "",
    )


def _split_folder(here: Path, folders: list[Path], split: str, images: bool) -> tuple[Path, str] | None:
    """(the folder of a split, its name) where splits are folders with data of their own in them, else None.

    A folder with pictures by class has its own reader; a lone folder `data` is looked into.

    Raises:
      NoSuchSplit: splits are folders, and this one is not among them.
    """
    told = {
        p: s for p in folders if (s := split_of(p.name)) and p.name.lower() in names_of(s) and _holds_data(p, images)
    }
    if told:
        for p, s in told.items():
            if s == split or s in names_of(split):
                return p, s
        raise NoSuchSplit(f"{str(here)!r} has no split {split!r}; it has {', '.join(p.name for p in told)}")
    data = here / "data"
    return (data, "") if data in folders and _holds_data(data, images) else None


def _holds_data(folder: Path, images: bool) -> bool:
    names = [p for p in itertools.islice(folder.iterdir(), 10_000) if p.is_file()]
    if any(p.suffix.lower() in (*TABLE_SUFFIXES, ".tar") for p in names):
        return True
    return images and (sidecars.accepts(folder) or annotations.accepts(folder))


def ranges(path: str) -> list[str]:
    """ "x-{08..10}.tar" as its three paths.

    Raises:
      ValueError: it stands for more than MOST_SHARDS. FileNotFoundError: some of them are missing.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if found is None:
        return [path]
    total = 1
    for first, last in re.findall(r"\{(\d+)\.\.(\d+)\}", path):
        total *= max(int(last[:20]) - int(first[:20]) + 1, 0)
    if not 0 < total <= MOST_SHARDS:
        raise ValueError(f"path {path!r} stands for {total:,} files; name between 1 and {MOST_SHARDS:,}")
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

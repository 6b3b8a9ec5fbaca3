"""Where examples come from: a source (see source.py) by any path a user may name."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import BadFile
from simvlm_jax.data.folders import PICTURES, visible, walk
from simvlm_jax.data.readers import annotations, classes, flickr, published, sidecars, tfds
from simvlm_jax.data.readers.tables import from_tables
from simvlm_jax.data.readers.tars import WebDatasetSource
from simvlm_jax.data.readers.texts import TextSource
from simvlm_jax.data.source import Source
from simvlm_jax.data.splits import (
    SPLITS,
    NoSuchSplit,
    Refused,
    folders_of,
    group_of,
    is_of,
    of_split,
    split_named,
    split_told,
    unnamed,
)
from simvlm_jax.data.table_files import read_table
from simvlm_jax.data.tables import TABLE_SUFFIXES

MOST_SHARDS = 100_000
"""Files that a pattern may stand for."""


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
    how = _How(split, images, columns, truncated)
    if any(c in path for c in "*?[{") and not Path(path).expanduser().exists():
        return _of_pattern(path, how)
    here = Path(path).expanduser()
    if here.is_file():
        return _of_file(here, how)
    if here.is_dir():
        return _of_folder(here, how)
    if here.exists():
        raise BadFile(f"path {path!r} is neither a regular file nor a folder")
    if path.startswith(("/", ".", "~")) or "\\" in path:
        raise FileNotFoundError(f"path {path!r} does not exist")
    return tfds.TfdsSource(path, split)


def open_split(path: str, split: str, **how: Any) -> Source:
    """The source of a split that somebody asked for by its name; `how` is as for `open_source`.

    Data that tells no splits apart is `train`, all of it.

    Raises:
      NoSuchSplit: another split is asked of such data, or what lies there is of another.
    """
    source = open_source(path, split, **how)
    found = getattr(source, "split", "")
    if not found and group_of(split) != "train":
        raise NoSuchSplit(
            f"{path!r} has no split {split!r}: nothing tells splits apart in its {len(source):,} rows; leave the split out to take "
            "them all, or name files or folders by splits (train.csv, val.csv)"
        )
    if found and not is_of(found, split):
        raise NoSuchSplit(f"{path!r} has no split {split!r}; by its name it is {found}")
    return source


def open_asked(path: str, split: str | None, **how: Any) -> Source:
    """The source of the split that is named; of none, that of `train`, or of the only split there is."""
    if split:
        return open_split(path, split, **how)
    try:
        return open_source(path, "train", **how)
    except NoSuchSplit:
        found = []
        for other in SPLITS:
            with contextlib.suppress(NoSuchSplit):
                found.append(open_source(path, other, **how))
        if len(found) != 1:
            raise
        return found[0]


@dataclasses.dataclass(frozen=True)
class _How:
    """How a path is to be read: the arguments of `open_source`."""

    split: str
    images: bool
    columns: str
    truncated: bool


def _of_pattern(path: str, how: _How) -> Source:
    files = [p for pattern in ranges(str(Path(path).expanduser())) for p in _glob(Path(pattern))]
    tars = [p for p in files if p.suffix.lower() == ".tar"]
    tables = [p for p in files if p.suffix.lower() in TABLE_SUFFIXES]
    if tars and tables:
        raise Refused(f"path {path!r} matches tars and tables; name one kind, as in '*.tar'")
    if tars and how.images:
        return _of_tars(tars, Path(path), _named(tars, how))
    if tables:
        return _of_tables(tables, tables[0], _named(tables, how))
    raise FileNotFoundError(f"path {path!r} matches no .tar file (or table); expected shards like train-0000.tar")


def _of_file(here: Path, how: _How) -> Source:
    suffix = here.suffix.lower()
    if suffix == ".tar" and how.images:
        return _of_tars([here], here, _named([here], how))
    if how.images and not how.columns and flickr.kind_of(here):
        return flickr.read_file(here, how.split)
    if suffix == ".txt" and not how.images:
        return TextSource(here)
    if suffix in TABLE_SUFFIXES:
        return _of_tables([here], here, _named([here], how))
    if suffix == ".json" and how.images:
        return annotations.read_file(here, how.split)
    text = "" if how.images else "a .txt, "
    raise ValueError(
        f"path {str(here)!r} is neither {text}a .tar nor a table (*{', *'.join((*TABLE_SUFFIXES, '.json'))})"
    )


def _named(files: list[Path], how: _How) -> _How:
    """How files that were named are read: where all names tell one split it is that, whatever was asked."""
    return dataclasses.replace(how, split=split_told(files) or how.split)


def _of_tars(tars: list[Path], here: Path, how: _How) -> Source:
    """Those of the tars that are of the split."""
    found, name, rest = of_split(tars, how.split, here)
    source = WebDatasetSource(found, name, how.truncated)
    source.understood.left_out.update(unnamed(rest, "tars"))
    return source


def _of_tables(tables: list[Path], here: Path, how: _How) -> Source:
    """Those of the tables, or of their rows where a column tells, that are of the split."""
    folder = here if here.is_dir() else here.parent
    try:
        found, name, rest = of_split(tables, how.split, here)
    except NoSuchSplit:
        read = [read_table(p, how.columns) for p in tables]
        if not how.images or not any("split" in t.columns for t in read):
            raise
        source = from_tables(folder, read, asked=how.split)
        if not is_of(source.split, how.split):
            raise
        return source
    read = [read_table(p, how.columns) for p in found]
    source = from_tables(folder, read, name, asked=how.split) if how.images else TextSource(here, read, name)
    source.understood.left_out.update(unnamed(rest, "tables"))
    return source


def _of_folder(here: Path, how: _How) -> Source:
    """The source in a folder: what is known by a file of its own first, then the one layout that its files have.

    Raises:
      Refused: they have none, or two.
    """
    if tfds.accepts(here):
        return tfds.TfdsSource(str(here), how.split)
    if known := published.known(here):
        return known(here, how.split)
    if how.images and classes.holds_imagenet_samples(here):
        return classes.imagenet_samples(here, how.split)
    entries = visible(here)
    folders = [p for p in entries if p.is_dir()]
    found = _layouts(here, entries, how)
    if len(found) > 1:
        told = " and ".join(f"{kind} ({name})" for kind, (name, _) in found.items())
        raise Refused(f"{str(here)!r} holds {told}; name the file that is meant, or '*.tar', or move the others away")
    if found:
        return next(iter(found.values()))[1]()
    if inner := _split_folder(here, folders, how):
        inside = _of_folder(inner[0], how)
        if inner[1]:
            named: Any = inside
            named.split = named.understood.split = inner[1]
        return inside
    if len(folders) == 1 and not split_named(folders[0].name) and not _holds_pictures(folders[0]):
        return _of_folder(folders[0], how)
    if how.images and classes.holds_class_archives(here):
        return classes.class_archive(here, how.split)
    if how.images and classes.holds_class_folders(here):
        if strange := _strange(here):
            raise Refused(
                f"{str(here)!r} holds {strange}, which no reader understands, beside folders of pictures; name what is meant, or "
                "move it away if the folders are classes"
            )
        return classes.class_folders(here, how.split)
    raise Refused(
        f"path {str(here)!r} holds neither .tar shards, nor a table of captions, nor a folder a class, nor any other layout of "
        "docs/data.md"
    )


def _layouts(here: Path, entries: list[Path], how: _How) -> dict[str, tuple[str, Callable[[], Source]]]:
    """{layout: (a file of it, how to read it)} of all that a folder's files may be."""
    files = [p for p in entries if p.is_file()]
    lines = flickr.files_in(here) if how.images and not how.columns else []
    tables = [p for p in files if p.suffix.lower() in TABLE_SUFFIXES and p not in lines]
    tars = [p for p in files if p.suffix.lower() == ".tar"] if how.images else []
    if how.images:  # img2dataset's tables beside its pictures tell what became of their addresses
        fetched = {p for p in tables if p.suffix == ".parquet" and p.with_name(f"{p.stem}_stats.json").exists()}
        if tars or any((here / p.stem).is_dir() for p in fetched):
            tables = [p for p in tables if p not in fetched]
    found: dict[str, tuple[str, Callable[[], Source]]] = {}
    if len(lines) > 1:
        raise Refused(f"{str(here)!r} holds {' and '.join(p.name for p in lines)}; name the file that is meant")
    if lines:
        found["a caption a line"] = lines[0].name, lambda: flickr.read_file(lines[0], how.split)
    if tars:
        found["tars"] = tars[0].name, lambda: _of_tars(tars, here, how)
    if tables:
        found["tables"] = tables[0].name, lambda: _of_tables(tables, here, how)
    if how.images and (beside := sidecars.accepts(here)):
        found["pictures with texts beside them"] = beside, lambda: sidecars.read_folder(here, how.split)
    if how.images and (notes := annotations.files_in(here) if not found else annotations.known_in(here)):
        found["annotations in JSON"] = notes[0].name, lambda: annotations.read_folder(here, how.split)
    return found


_DATA_SUFFIXES = (*TABLE_SUFFIXES, ".json", ".xml", ".arrow", ".txt", ".tar", ".zip", ".pkl", ".token", ".mat")
_ABOUT = re.compile(r"readme|licen[cs]e|classes|classnames|labels?\b|notice|citation|wordnet|templates", re.IGNORECASE)


def _strange(here: Path) -> str:
    """A file of data that would be passed over if folders of pictures were taken for classes."""
    for where, names in walk(here, 3):
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in _DATA_SUFFIXES and not (suffix in (".txt", ".json") and _ABOUT.match(name)):
                return str((where / name).relative_to(here))
    return ""


def _split_folder(here: Path, folders: list[Path], how: _How) -> tuple[Path, str] | None:
    """(the folder of a split, its name) where splits are folders with data of their own in them, else None.

    A folder with pictures by class has its own reader; a lone folder `data` is looked into.

    Raises:
      NoSuchSplit: splits are folders, and this one is not among them. Refused: two are.
    """
    told = {p: s for p in folders if (s := split_named(p.name)) and _holds_data(p, how.images)}
    if told:
        found = folders_of(told, how.split)
        if len(found) > 1:
            raise Refused(f"{str(here)!r} has {' and '.join(p.name for p in found)}, both of {how.split!r}; name one")
        if found:
            return found[0], told[found[0]]
        raise NoSuchSplit(f"{str(here)!r} has no split {how.split!r}; it has {', '.join(p.name for p in told)}")
    data = here / "data"
    return (data, "") if data in folders and _holds_data(data, how.images) else None


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as found:
        return any(os.path.splitext(e.name)[1].lower() in PICTURES for e in found)


def _holds_data(folder: Path, images: bool) -> bool:
    with os.scandir(folder) as found:
        if any(os.path.splitext(e.name)[1].lower() in (*TABLE_SUFFIXES, ".tar") and e.is_file() for e in found):
            return True
    return images and bool(sidecars.accepts(folder) or annotations.accepts(folder))


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

"""Where examples come from: a source (see source.py) by any path a user may name."""

import contextlib
import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import BadFile
from simvlm_jax.data.folders import PICTURES, visible
from simvlm_jax.data.reader import How
from simvlm_jax.data.readers import annotations, classes, flickr, published, sidecars, tables, tars, texts, tfds
from simvlm_jax.data.source import Source
from simvlm_jax.data.splits import (
    SPLITS,
    NoSuchSplit,
    Refused,
    folders_of,
    group_of,
    is_of,
    split_named,
)
from simvlm_jax.data.tables import TABLE_SUFFIXES

MOST_SHARDS = 100_000
"""Files that a pattern may stand for."""

FILES: tuple[Any, ...] = (tars, flickr, texts, tables, annotations)
"""Readers of a file, in the order they are asked."""
MARKED: tuple[Any, ...] = (tfds, published, classes.IMAGENET_SAMPLES)
"""Readers of a folder that is known by a file of its own, in the order they are asked."""
LAYOUTS: dict[str, Any] = {
    "one caption per line": flickr,
    "tars": tars,
    "tables": tables,
    "pictures with texts beside them": sidecars,
    "annotations in JSON": annotations,
}
"""Readers of a folder by its files: all are asked, and two that accept it are refused by these names."""
CLASSES: tuple[Any, ...] = (classes.ARCHIVES, classes.FOLDERS)
"""Readers of what has no text at all, asked last."""


def open_source(
    path: str, split: str = "train", images: bool = True, columns: str = "", truncated: bool = False
) -> Source:
    """The source a user means by a path (docs/data.md shows every layout as a tree).

    With `images`: .tar files ("x.tar", "train-*.tar", "train-{0000..0031}.tar") or a folder of them; tables of captions,
    questions or labels (CSV, TSV, JSONL, Parquet, lists in JSON), or a folder with some; COCO's, Karpathy's, Flickr's, VQA's,
    GQA's, LAVIS's and LLaVA's files; data sets of readers/published.py; pictures in one folder per class, or with a text file
    beside each; a folder a split of any of these. Of a data set that has splits, by its files' or folders' names or within
    them, `split` is read.

    A folder that holds a prepared TFDS data set (of `simvlm data web`, for one) is that; else a name that is no path is that of
    a TFDS data set ("scenes/captions", "coco_captions").

    Without `images`: the texts of such tables, or a .txt, one document per line.

    columns: names of a table's columns in place of the usual ones, "image=filepath,caption=title". truncated: takes a tar that
    was cut for what it still holds.

    Raises:
      Refused: what lies there is no layout that is known, or could be two. NoSuchSplit, FileNotFoundError, ValueError.
    """
    how = How(split, images, columns, truncated)
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


def open_one_split(path: str, split: str | None, **how: Any) -> Source:
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


def _of_pattern(path: str, how: How) -> Source:
    files = [p for pattern in ranges(str(Path(path).expanduser())) for p in _glob(Path(pattern))]
    found = {reader: [p for p in files if reader.accepts(p, how)] for reader in (tars, tables)}
    if all(found.values()):
        raise Refused(f"path {path!r} matches tars and tables; name one kind, as in '*.tar'")
    for reader, mine in found.items():
        if mine:
            return reader.read_files(mine, Path(path) if reader is tars else mine[0], how)
    raise FileNotFoundError(f"path {path!r} matches no .tar file (or table); expected shards like train-0000.tar")


def _of_file(here: Path, how: How) -> Source:
    for reader in FILES:
        if reader.accepts(here, how):
            return reader.read(here, how)
    text = "" if how.images else "a .txt, "
    raise ValueError(
        f"path {str(here)!r} is neither {text}a .tar nor a table (*{', *'.join((*TABLE_SUFFIXES, '.json'))})"
    )


def _of_folder(here: Path, how: How) -> Source:
    """The source in a folder: what is known by a file of its own first, then the one layout that its files have.

    Raises:
      Refused: they have none, or two.
    """
    for reader in MARKED:
        if reader.accepts(here, how):
            return reader.read(here, how)
    found: dict[str, tuple[str, Any]] = {}
    for name, reader in LAYOUTS.items():
        if file := reader.accepts(here, dataclasses.replace(how, alone=not found)):
            found[name] = file, reader
    if len(found) > 1:
        named = " and ".join(f"{kind} ({name})" for kind, (name, _) in found.items())
        raise Refused(f"{str(here)!r} holds {named}; name the file that is meant, or '*.tar', or move the others away")
    if found:
        return next(iter(found.values()))[1].read(here, how)
    folders = [p for p in visible(here) if p.is_dir()]
    if inner := _split_folder(here, folders, how):
        inside = _of_folder(inner[0], how)
        if inner[1]:
            named: Any = inside
            named.split = named.understood.split = inner[1]
        return inside
    if len(folders) == 1 and not split_named(folders[0].name) and not _holds_pictures(folders[0]):
        return _of_folder(folders[0], how)
    for reader in CLASSES:
        if reader.accepts(here, how):
            return reader.read(here, how)
    raise Refused(
        f"path {str(here)!r} holds neither .tar shards, nor a table of captions, nor a folder for each class, nor any other layout of "
        "docs/data.md"
    )


def _split_folder(here: Path, folders: list[Path], how: How) -> tuple[Path, str] | None:
    """(the folder of a split, its name) where splits are folders with data of their own in them, else None.

    A folder with pictures by class has its own reader; a lone folder `data` is looked into.

    Raises:
      NoSuchSplit: splits are folders, and this one is not among them. Refused: two are.
    """
    named = {p: s for p in folders if (s := split_named(p.name)) and _holds_data(p, how.images)}
    if named:
        found = folders_of(named, how.split)
        if len(found) > 1:
            raise Refused(f"{str(here)!r} has {' and '.join(p.name for p in found)}, both of {how.split!r}; name one")
        if found:
            return found[0], named[found[0]]
        raise NoSuchSplit(f"{str(here)!r} has no split {how.split!r}; it has {', '.join(p.name for p in named)}")
    data = here / "data"
    return (data, "") if data in folders and _holds_data(data, how.images) else None


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as found:
        return any(os.path.splitext(e.name)[1].lower() in PICTURES for e in found)


def _holds_data(folder: Path, images: bool) -> bool:
    with os.scandir(folder) as found:
        if any(os.path.splitext(e.name)[1].lower() in (*TABLE_SUFFIXES, ".tar") and e.is_file() for e in found):
            return True
    return images and bool(sidecars.example_in(folder) or annotations.files_in(folder))


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

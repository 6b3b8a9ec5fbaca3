"""Splits: how people name them, and which files, folders and rows are of the one that is asked for."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

SPLITS = {
    "train": ("train", "training", "train2014", "train2017", "restval"),
    "validation": ("validation", "val", "valid", "dev", "val2014", "val2017"),
    "test": ("test", "testing", "test2014", "test2015", "test2017"),
    "testdev": ("testdev", "testdev2015", "test-dev", "test-dev2015"),
}
"""How splits are named by people. Names with a year, and restval, are a part of their split."""
_YEAR = re.compile(r"[a-z]+(19|20)\d\d")


class NoSuchSplit(FileNotFoundError, ValueError):
    """The data is there, but not the split that was asked for."""


class Refused(ValueError):
    """What lies at a path is no layout that is known, or could be two of them."""


def names_of(split: str) -> tuple[str, ...]:
    """All names of a split, that which was asked for first; of a part of a split ("val2017", "restval") its own alone."""
    group = group_of(split)
    if group is None or _is_part(split):
        return (split,)
    return tuple(dict.fromkeys((split, group, *SPLITS[group])))


def group_of(split: str) -> str | None:
    """ "train", "validation", "test" or "testdev" by any of its names, None for another."""
    return next((name for name, others in SPLITS.items() if split == name or split in others), None)


def _is_part(split: str) -> bool:
    return split == "restval" or bool(_YEAR.fullmatch(split.replace("-", "")))


def is_of(found: str, split: str) -> bool:
    """Whether rows of the split `found` are of the one that is meant by `split`."""
    return found == split or (group_of(found) is not None and group_of(found) == group_of(split))


def folders_of(named: dict[Path, str], split: str) -> list[Path]:
    """Those of the folders {folder: its split} that are meant by a split: the one of that very name, else all of the same split."""
    exact = [p for p in named if p.name.lower() == split]
    return exact or [p for p, s in named.items() if s == group_of(split) and not _is_part(split)]


def _words(name: str) -> list[str]:
    """The words of a file's name in lower case: at marks, and where capitals begin ("captionsVal")."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.split(r"[-_. ]+", re.sub(r"test-dev", "testdev", apart.lower()))


def split_of(name: str) -> str | None:
    """The split that a file's or folder's name tells: "train-00000-of-00001.parquet", "captions_val2017.json", "val2", "dev".

    Raises:
      Refused: it tells two.
    """
    found = {g for word in _words(name) if (g := group_of(word) or group_of(word.rstrip("0123456789")))}
    if len(found) > 1:
        raise Refused(f"{name!r} names several splits ({', '.join(sorted(found))}); rename it, or name the file itself")
    return next(iter(found), None)


def part_of(name: str) -> str:
    """The part of a split that a name tells by a year ("val2017"), else ""."""
    return next((w for w in _words(name) if _YEAR.fullmatch(w)), "")


def split_of_all(files: Sequence[Path]) -> str:
    """The one split that the names of all files tell, "" where they tell none or several."""
    try:
        named = {split_of(p.stem) for p in files}
    except Refused:
        return ""
    return (next(iter(named)) or "") if len(named) == 1 else ""


def of_split(files: Sequence[Path], split: str, where: Path) -> tuple[list[Path], str, list[str]]:
    """(those of the files that belong to a split, its name, names of those that no split names).

    Where no file is named by a split, all of them are taken, and the split has no name.

    Raises:
      NoSuchSplit: there are splits, and not that one. Refused: there are two years of it.
    """
    named = {p: split_of(p.stem) for p in files}
    if not any(named.values()):
        return list(files), "", []
    group = group_of(split)
    wanted = [p for p, s in named.items() if s is not None and s == (group or split)]
    parts = sorted({part_of(p.stem) for p in wanted} - {""})
    if _is_part(split):
        wanted = [p for p in wanted if split.replace("-", "") in _words(p.stem)]
    elif len(parts) > 1:
        raise Refused(
            f"{str(where)!r} has several sets of {split!r} ({', '.join(parts)}); ask for one of these as the split, or name the file"
        )
    if not wanted:
        there = sorted({s for s in named.values() if s})
        raise NoSuchSplit(
            f"{str(where)!r} has no split {split!r}; it has {', '.join(there)} (by the names of {files[0].name} and others)"
        )
    rest = [p.name for p, s in named.items() if s is None]
    return wanted, group or split, rest


def split_named(folder: str) -> str | None:
    """The split whose name a folder has, as a whole: "train_station" is none."""
    return group_of(folder.lower())


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

"""Pictures with a class each: folders of classes, archives of them, and a table of labels beside an archive."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from simvlm_jax.core.files import open_regular, read_bytes
from simvlm_jax.data.folders import PICTURES, visible, walk
from simvlm_jax.data.reader import How, Reader
from simvlm_jax.data.readers.published import unpacked
from simvlm_jax.data.rows import Rows, Understood
from simvlm_jax.data.splits import SPLITS, NoSuchSplit, Refused, folders_of, names_of, needed, split_named, split_of
from simvlm_jax.data.table_files import read_table
from simvlm_jax.data.tables import TABLE_SUFFIXES

_NO_CLASS = re.compile(r"images?|imgs?|pictures?|pics?|photos?|jpegimages|data|files", re.IGNORECASE)
_SHARD = re.compile(r"\d{5,}")
LAYOUT = "FOLDER/CLASS/picture, or FOLDER/SPLIT/CLASS/picture"


def class_folders(folder: Path, split: str) -> Rows:
    """FOLDER/CLASS/picture, or FOLDER/SPLIT/CLASS/picture where there is such a folder."""
    named = {p: split if p.name == split else split_named(p.name) for p in visible(folder) if p.is_dir()}
    there = {p: name for p, name in named.items() if name and any(_pictures(p, 1))}
    wanted = folders_of(there, split)
    if there and not wanted:
        raise NoSuchSplit(f"{str(folder)!r} has no split {split!r}; it has {', '.join(p.name for p in there)}")
    if len(wanted) > 1:
        raise Refused(
            f"{str(folder)!r} has {' and '.join(p.name for p in wanted)}, both of {split!r}; name the folder that is meant"
        )
    root = wanted[0] if wanted else folder
    if not (pictures := list(_pictures(root, 1))):
        raise FileNotFoundError(f"{str(folder)!r} holds no pictures as {LAYOUT}")
    rows = [
        {"image": str(p.relative_to(root)), "label": p.parent.name, "key": str(p.relative_to(folder))} for p in pictures
    ]
    if strange := _no_classes(pictures):
        raise Refused(
            f"{str(root)!r} holds folders of pictures such as {strange!r}, which is hardly a class; add a table of captions "
            f"or labels, or lay pictures out as {LAYOUT}"
        )
    name = f"{folder.name}/{root.name}" if root != folder else folder.name
    understood = Understood("one folder per class", [], split=split if root != folder else "")
    if more := sum(1 for _ in _pictures(root)) - len(rows):
        understood.left_out["pictures that lie in no folder of a class, or deeper"] += more
    return Rows(name, rows, lambda picture: read_bytes(root / picture), understood)


def _no_classes(pictures: list[Path]) -> str:
    """A folder of pictures that is named as no class is: "images"; a shard or a split, where all of them are; else ""."""
    labels = dict.fromkeys(p.parent.name for p in pictures)
    if found := next(filter(_NO_CLASS.fullmatch, labels), ""):
        return found
    shards = all(map(_SHARD.fullmatch, labels)) and all(p.stem.isdigit() for p in pictures)
    alone = len(labels) == 1 and next(iter(labels)).isdigit()
    return next(iter(labels)) if shards or alone or all(map(_names_split, labels)) else ""


def _names_split(label: str) -> bool:
    try:
        return split_of(label) is not None
    except Refused:
        return True


def class_archive(folder: Path, split: str) -> Rows:
    """SPLIT.tar.gz of CLASS/picture, as CIFAR-10 is given away as JPEG."""
    names = names_of(split)
    path = needed(
        next((p for s in names if (p := folder / f"{s}.tar.gz").is_file()), folder / f"{split}.tar.gz"), split
    )
    pictures = [n for n in sorted(unpacked(path, whole=True)) if n.removeprefix("./").count("/")]
    if not pictures:
        raise ValueError(f"{str(path)!r} holds no CLASS/picture")
    own = path.name.removesuffix(".tar.gz")  # not the name it was asked by, for one file may have several
    rows = [{"image": name, "label": name.split("/")[-2], "key": f"{own}/{name}"} for name in pictures]
    return Rows(
        f"{folder.name}/{own}", rows, _member_of(path), Understood("an archive a split", [path.name], split=split)
    )


def imagenet_samples(folder: Path, split: str) -> Rows:
    """labels.csv (file, clip_class_name) beside images.tar: pictures of ImageNet's classes, all one split."""
    rows = [
        {"image": row["file"], "label": row["clip_class_name"], "key": row["file"]}
        for _, row in read_table(folder / "labels.csv").good
    ]
    read = _member_of(needed(folder / "images.tar", split))
    understood = Understood("a table of classes beside an archive", ["labels.csv", "images.tar"])
    return Rows(folder.name, rows, lambda name: read(f"./{name}"), understood)


def _member_of(path: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        files = unpacked(path, whole=True)
        if name not in files:
            raise FileNotFoundError(f"image {name!r} is not in {path}")
        return files[name]

    return read


def _pictures(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """The pictures so many folders below a folder, or all of them, by name."""
    for where, names in walk(folder, 100 if depth is None else depth):
        if depth in (None, len(where.relative_to(folder).parts)):
            yield from (where / n for n in names if os.path.splitext(n)[1].lower() in PICTURES)


def holds_class_folders(folder: Path) -> bool:
    """Whether pictures lie one or two folders deep."""
    return any(any(_pictures(folder, depth)) for depth in (1, 2))


def holds_class_archives(folder: Path) -> bool:
    """Whether there is an archive named by a split."""
    return any((folder / f"{s}.tar.gz").is_file() for names in SPLITS.values() for s in names)


def holds_imagenet_samples(folder: Path) -> bool:
    """Whether there is a table of CLIP's names beside an archive of pictures."""
    table = folder / "labels.csv"
    if not (folder / "images.tar").is_file() or not table.is_file():
        return False
    with open_regular(table) as file:
        first = (file.read(4096) or b"").decode("utf-8", "replace").partition("\n")[0]
    return {"file", "clip_class_name"} <= set(first.strip().split(","))


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


def _folders(path: Path, how: How) -> Rows:
    """One folder per class, unless something else lies beside them.

    Raises:
      Refused: it does.
    """
    if strange := _strange(path):
        raise Refused(
            f"{str(path)!r} holds {strange}, which no reader understands, beside folders of pictures; name what is meant, or "
            "move it away if the folders are classes"
        )
    return class_folders(path, how.split)


def _where(holds: Callable[[Path], bool]) -> Callable[[Path, How], str]:
    return lambda path, how: path.name if how.images and path.is_dir() and holds(path) else ""


IMAGENET_SAMPLES = Reader(_where(holds_imagenet_samples), lambda path, how: imagenet_samples(path, how.split))
ARCHIVES = Reader(_where(holds_class_archives), lambda path, how: class_archive(path, how.split))
FOLDERS = Reader(_where(holds_class_folders), _folders)

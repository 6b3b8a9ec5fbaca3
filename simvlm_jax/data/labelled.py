"""Pictures with a class each: folders of classes, archives of them, and a table of labels beside an archive."""

from collections.abc import Callable
from pathlib import Path

from simvlm_jax.data.files import IMAGE_SUFFIXES, read_table
from simvlm_jax.data.questions import Questions, needed, unpacked

SPLITS = ("train", "validation", "val", "test")


def class_folders(folder: Path, split: str) -> Questions:
    """FOLDER/CLASS/picture, or FOLDER/SPLIT/CLASS/picture where there is such a folder."""
    root = folder / split if (folder / split).is_dir() else folder
    others = [s for s in SPLITS if (folder / s).is_dir()]
    if root == folder and others:
        raise FileNotFoundError(f"{str(folder)!r} has no split {split!r}; it has {', '.join(others)}")
    pictures = sorted(p for p in root.glob("*/*") if p.suffix.lower() in IMAGE_SUFFIXES)
    rows = [
        {"image": str(p.relative_to(root)), "label": p.parent.name, "key": str(p.relative_to(folder))} for p in pictures
    ]
    return Questions(
        f"{folder.name}/{split}", rows, lambda name: (root / name).read_bytes(), split if root != folder else ""
    )


def class_archive(folder: Path, split: str) -> Questions:
    """SPLIT.tar.gz of CLASS/picture, as CIFAR-10 is given away as JPEG."""
    path = needed(folder / f"{split}.tar.gz", split)
    pictures = sorted(unpacked(path, whole=True))
    rows = [{"image": name, "label": name.split("/")[-2], "key": f"{split}/{name}"} for name in pictures if "/" in name]
    return Questions(f"{folder.name}/{split}", rows, _member_of(path), split)


def imagenet_samples(folder: Path, split: str) -> Questions:
    """labels.csv (file, clip_class_name) beside images.tar: pictures of ImageNet's classes, all one split."""
    rows = [
        {"image": row["file"], "label": row["clip_class_name"], "key": row["file"]}
        for _, row in read_table(folder / "labels.csv").rows
    ]
    read = _member_of(needed(folder / "images.tar", split))
    return Questions(folder.name, rows, lambda name: read(f"./{name}"))


def _member_of(path: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        files = unpacked(path, whole=True)
        if name not in files:
            raise FileNotFoundError(f"image {name!r} is not in {path}")
        return files[name]

    return read


def holds_class_folders(folder: Path) -> bool:
    """Whether pictures lie one or two folders deep."""
    found = (p for pattern in ("*/*", "*/*/*") for p in folder.glob(pattern))
    return any(p.suffix.lower() in IMAGE_SUFFIXES for p in found)


def known(folder: Path) -> Callable[[Path, str], Questions] | None:
    """What reads a folder of labelled pictures that has neither tars of its own kind nor a table for pictures beside it."""
    table, archive = folder / "labels.csv", next(iter(sorted(folder.glob("*.tar.gz"))), None)
    if (folder / "images.tar").is_file() and table.is_file():
        with table.open(encoding="utf-8", errors="replace") as lines:
            if {"file", "clip_class_name"} <= set(lines.readline().strip().split(",")):
                return imagenet_samples
    if archive is not None and any("/" in name for name in unpacked(archive, whole=True)):
        return class_archive
    return None

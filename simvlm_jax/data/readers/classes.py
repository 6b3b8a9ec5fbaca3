"""Pictures with a class each: folders of classes, archives of them, and a table of labels beside an archive."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from simvlm_jax.core.files import open_regular, read_bytes
from simvlm_jax.data.readers.published import unpacked
from simvlm_jax.data.rows import PICTURES, SPLITS, NoSuchSplit, Refused, Rows, Understood, names_of, needed
from simvlm_jax.data.tables import read_table

_NO_CLASS = re.compile(r"(images?|imgs?|pictures?|pics?|photos?|jpegimages|data|files|\d+)", re.IGNORECASE)
LAYOUT = "FOLDER/CLASS/picture, or FOLDER/SPLIT/CLASS/picture"


def class_folders(folder: Path, split: str) -> Rows:
    """FOLDER/CLASS/picture, or FOLDER/SPLIT/CLASS/picture where there is such a folder."""
    wanted = names_of(split)
    names = dict.fromkeys((*(s for names in SPLITS.values() for s in names), *wanted))
    there = [s for s in names if any(_pictures(folder / s, "*/*"))]
    root = next((folder / s for s in wanted if s in there), folder)
    if root == folder and there:
        raise NoSuchSplit(f"{str(folder)!r} has no split {split!r}; it has {', '.join(there)}")
    if not (pictures := sorted(_pictures(root, "*/*"))):
        raise FileNotFoundError(f"{str(folder)!r} holds no pictures as {LAYOUT}")
    rows = [
        {"image": str(p.relative_to(root)), "label": p.parent.name, "key": str(p.relative_to(folder))} for p in pictures
    ]
    alone = {row["label"] for row in rows}
    if len(alone) == 1 and _NO_CLASS.fullmatch(rows[0]["label"]):
        raise Refused(
            f"{str(root)!r} holds one folder of pictures, {rows[0]['label']!r}, which is hardly a class; add a table of captions "
            "or labels, or name the folder by its class"
        )
    name = f"{folder.name}/{root.name}" if root != folder else folder.name
    understood = Understood("a folder a class", [], split=split if root != folder else "")
    if more := sum(1 for p in root.rglob("*") if p.suffix.lower() in PICTURES) - len(rows):
        understood.left_out["pictures that lie in no folder of a class, or deeper"] += more
    return Rows(name, rows, lambda picture: read_bytes(root / picture), understood)


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


def _pictures(root: Path, pattern: str) -> Iterator[Path]:
    return (p for p in root.glob(pattern) if p.suffix.lower() in PICTURES)


def holds_class_folders(folder: Path) -> bool:
    """Whether pictures lie one or two folders deep."""
    return any(any(_pictures(folder, pattern)) for pattern in ("*/*", "*/*/*"))


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

"""What lies in the folders that people name: pictures, links, and what is passed over."""

import os
from collections.abc import Iterator
from pathlib import Path

PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    *(".jp2", ".ppm", ".pgm"),
)
"""Suffixes of files that are taken for pictures, in lower case; what they hold is told by their content."""
_JUNK = ("__macosx", "thumbs.db", "desktop.ini", "lost+found", "$recycle.bin", "system volume information")


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without what is hidden, left there by an operating system or written there by `embed`."""
    return sorted(p for p in folder.iterdir() if not _hidden(p.name))


def walk(folder: Path, deepest: int = 100, _above: frozenset[str] = frozenset()) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of a folder and all below it, so many folders deep; through links, but not in circles."""
    real = os.path.realpath(folder)
    if real in _above:
        return
    with os.scandir(folder) as found:
        entries = sorted((e for e in found if not _hidden(e.name)), key=lambda e: e.name)
    yield folder, [e.name for e in entries if not e.is_dir()]
    if deepest:
        for e in entries:
            if e.is_dir():
                yield from walk(folder / e.name, deepest - 1, _above | {real})


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK or name.endswith(".npz.parts")

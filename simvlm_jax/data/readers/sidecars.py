"""Pictures with a text file beside each: KEY.jpg, KEY.txt (a caption a line) or KEY.json, in one folder or several.

img2dataset's form "files" is this, in numbered folders beside tables that tell what could not be fetched.
"""

import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import read_bytes
from simvlm_jax.data.readers.tars import not_fetched, read_texts
from simvlm_jax.data.rows import PICTURES, Understood, of_split, unnamed

_BESIDE = (".json", ".txt")


class Sidecars:
    """{"key", "image", "captions"} of every picture that has a text beside it."""

    def __init__(self, folder: Path, files: list[tuple[Path, list[str]]], understood: Understood):
        self._folder, self._files, self.understood, self.split = folder, files, understood, understood.split
        understood.rows = len(files)

    def __len__(self):
        return len(self._files)

    def key(self, index: int) -> str:
        return str(self._files[index][0].relative_to(self._folder))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.text(index), "image": read_bytes(self._files[index][0])}

    def text(self, index: int) -> dict[str, Any]:
        """An example without its picture."""
        path, beside = self._files[index]
        members: dict[str, Any] = {suffix: suffix for suffix in beside}
        found = read_texts(self.key(index), members, lambda suffix: read_bytes(path.with_suffix(suffix)))  # pyright: ignore
        return {**found, "key": self.key(index)}

    def __repr__(self):
        names = json.dumps([self.key(i) for i in range(len(self))])
        return f"sidecars:{zlib.crc32(names.encode()):08x}:{len(self)}"


def _walk(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    for where, folders, names in os.walk(folder):
        folders.sort()
        here = set(names)
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURES:
                yield Path(where, name), here


def _beside(path: Path, names: set[str]) -> list[str]:
    return [s for s in _BESIDE if path.stem + s in names]


def accepts(folder: Path) -> bool:
    """Whether the first pictures of a folder (or of those in it) have texts beside them."""
    looked = [bool(_beside(*found)) for found in itertools.islice(_walk(folder), 200)]
    return sum(looked) * 2 > len(looked)


def read_folder(folder: Path, split: str) -> Sidecars:
    """The pictures of a folder with the texts beside them; where its folders are named by splits, those of one."""
    inner = [p for p in sorted(folder.iterdir()) if p.is_dir()]
    direct = any(p.suffix.lower() in PICTURES for p in folder.iterdir())
    roots, name, rest = ([folder], "", []) if direct or not inner else of_split(inner, split, folder)
    left_out: Counter[str] = unnamed(rest, "folders")
    files = []
    for path, names in (found for root in roots for found in _walk(root)):
        if beside := _beside(path, names):
            files.append((path, beside))
        else:
            left_out["pictures without a text beside them"] += 1
    fetched = [folder / f"{p.name}.tar" for p in inner if (folder / f"{p.name}_stats.json").is_file()]
    left_out.update(not_fetched(fetched))
    kind = "img2dataset files" if fetched else "pictures with texts beside them"
    columns = sorted({s for _, beside in files for s in beside})
    return Sidecars(folder, files, Understood(kind, [], 0, columns, name, left_out))

"""Pictures with a text file beside each: KEY.jpg, KEY.txt (one caption per line) or KEY.json, in one folder or several.

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
from simvlm_jax.data.folders import PICTURES, visible, walk
from simvlm_jax.data.reader import How
from simvlm_jax.data.readers.tars import not_fetched, read_texts
from simvlm_jax.data.rows import Understood
from simvlm_jax.data.splits import NoSuchSplit, group_of, split_named

_BESIDE = (".json", ".caption", ".txt")


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
        return {**_example_of(self.key(index), *self._files[index]), "key": self.key(index)}

    def __repr__(self):
        names = json.dumps([self.key(i) for i in range(len(self))])
        return f"sidecars:{zlib.crc32(names.encode()):08x}:{len(self)}"


def _walk(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    for where, names in walk(folder):
        here = set(names)
        for name in names:
            if os.path.splitext(name)[1].lower() in PICTURES:
                yield where / name, here


def _beside(path: Path, names: set[str]) -> list[str]:
    return [s for s in _BESIDE if path.stem + s in names]


def _example_of(key: str, path: Path, beside: list[str]) -> dict[str, Any]:
    members: dict[str, Any] = {{".caption": ".txt"}.get(suffix, suffix): suffix for suffix in beside}
    return read_texts(key, members, lambda suffix: read_bytes(path.with_suffix(suffix)))  # pyright: ignore


def accepts(path: Path, how: How) -> str:
    """A picture of a folder if it has texts beside its pictures, else ""."""
    return example_in(path) if how.images and path.is_dir() else ""


def read(path: Path, how: How) -> "Sidecars":
    """The split of a folder of pictures with texts beside them."""
    return read_folder(path, how.split)


def example_in(folder: Path) -> str:
    """A picture of a folder (or of those in it) if its first pictures have texts beside them that tell something, else ""."""
    looked = [(path, _beside(path, names)) for path, names in itertools.islice(_walk(folder), 200)]
    found = [(path, beside) for path, beside in looked if beside]
    accepted = len(found) * 2 > len(looked) and any(_has_text(*pair) for pair in found[:20])
    return found[0][0].name if accepted else ""


def _has_text(path: Path, beside: list[str]) -> bool:
    """Whether the texts beside a picture have a caption, a question or a label, or cannot be read, which is to be reported."""
    try:
        example = _example_of(path.name, path, beside)
    except ValueError:
        return True
    return any(value for name, value in example.items() if name != "key")


def read_folder(folder: Path, split: str) -> Sidecars:
    """The pictures of a folder with the texts beside them; where they lie in folders named by splits, those of one."""
    found = [(path, _beside(path, names), _split(path, folder)) for path, names in _walk(folder)]
    left_out: Counter[str] = Counter()
    name = ""
    if named := {s for _, _, s in found if s}:
        name = group_of(split) or split
        if name not in named:
            raise NoSuchSplit(f"{str(folder)!r} has no split {split!r}; it has {', '.join(sorted(named))}")
        if bare := sum(not s for _, _, s in found):
            left_out["pictures in folders that no split names"] += bare
    files = []
    for path, beside, of in found:
        if of != name:
            continue
        if beside:
            files.append((path, beside))
        else:
            left_out["pictures without a text beside them"] += 1
    fetched = [folder / f"{p.name}.tar" for p in visible(folder) if (folder / f"{p.name}_stats.json").is_file()]
    left_out.update(not_fetched(fetched))
    kind = "img2dataset files" if fetched else "pictures with texts beside them"
    columns = sorted({s for _, beside in files for s in beside})
    return Sidecars(folder, files, Understood(kind, [], 0, columns, name, left_out))


def _split(path: Path, folder: Path) -> str:
    """The split that one of the folders above a picture names, "" where none does."""
    return next(filter(None, map(split_named, path.relative_to(folder).parts[:-1])), "")

"""Flickr8k and Flickr30k as they are given away: one caption per line, five of each picture, in four spellings.

`captions.txt` (a header "image,caption", captions with commas and without quotes), `*.token.txt` and `results_*.token`
("NAME#0<tab>caption"), and the CSV with "image_name| comment_number| comment". Splits of Flickr8k are its lists of names
(`Flickr_8k.trainImages.txt`).
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import decoded, open_regular, read_text
from simvlm_jax.data.delimited import unquoted
from simvlm_jax.data.folders import PICTURES, visible
from simvlm_jax.data.reader import How
from simvlm_jax.data.rows import Pictures, Rows, Understood, by_picture
from simvlm_jax.data.splits import NoSuchSplit, Refused, group_of
from simvlm_jax.text.lines import lines_of
from simvlm_jax.text.tokenizer import clean

_TOKEN = re.compile(r"(.+?)#(\d+)\t(.*)")
_PIPED = re.compile(r"\s*image_name\s*\|\s*comment_number\s*\|\s*comment\s*")
_LISTS = {"train": "trainImages.txt", "validation": "devImages.txt", "test": "testImages.txt"}


def kind_of(path: Path) -> str:
    """ "token", "captions", "piped", or "" of another file; by its first line."""
    if path.suffix.lower() not in (".txt", ".token", ".csv"):
        return ""
    try:
        with open_regular(path, 2**40) as file:
            head = file.read(4096) or b""
    except (OSError, ValueError):
        return ""
    try:
        text = decoded(head[: len(head) // 2 * 2], path.name)
    except ValueError:  # cut within a character, or of another encoding, which is told when the file is read
        text = head.decode("utf-8-sig", "replace")
    first = lines_of(text)[0] if text else ""
    if _PIPED.fullmatch(first):
        return "piped"
    if _TOKEN.fullmatch(first):
        return "token"
    names = first.replace(" ", "").lower()
    return "captions" if path.suffix.lower() == ".txt" and names in ("image,caption", "image_name,caption") else ""


def files_in(folder: Path) -> list[Path]:
    """The files of captions in a folder, the plain one before those of lemmas and experts; none that is beside a picture."""
    there = visible(folder)
    pictures = {p.stem for p in there if p.suffix.lower() in PICTURES}
    found = [p for p in there if p.stem not in pictures and p.is_file() and kind_of(p)]
    return [p for p in found if not re.search(r"lemma|expert|crowd", p.name, re.IGNORECASE)] or found


def accepts(path: Path, how: How) -> str:
    """The name of a file of captions, or of the one in a folder.

    Raises:
      Refused: a folder has several.
    """
    if not how.images or how.columns:
        return ""
    if not path.is_dir():
        return path.name if kind_of(path) else ""
    found = files_in(path)
    if len(found) > 1:
        raise Refused(f"{str(path)!r} holds {' and '.join(p.name for p in found)}; name the file that is meant")
    return found[0].name if found else ""


def read(path: Path, how: How) -> Rows:
    """The captions of a file, or of that in a folder."""
    return read_file(files_in(path)[0] if path.is_dir() else path, how.split)


def read_file(path: Path, split: str, folder: Path | None = None) -> Rows:
    """The captions of a file, of those pictures that the lists of splits beside it name."""
    folder = folder or path.parent
    names, chosen = _listed(folder, split)
    left_out: Counter[str] = Counter()

    def triples() -> Iterator[tuple[str, Any, Any, dict]]:
        for line, name, value in _lines(path):
            if isinstance(value, Exception):
                yield f"{path.name}:{line}", None, value, {}
            elif names is None or name in names:
                yield name, name, [clean(value)], {}

    rows = by_picture(triples())
    if bare := (names or set()) - {r["image"] for r in rows if isinstance(r, dict)}:
        left_out[f"pictures of the list without a caption, such as {min(bare)}"] += len(bare)
    kinds = {"token": "Flickr tokens", "captions": "Flickr8k captions.txt", "piped": "Flickr30k CSV"}
    understood = Understood(kinds[kind_of(path)], [path.name], 0, ["image", "caption"], chosen, left_out)
    usual = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images", "flickr30k-images", "flickr30k_images")
    pictures = Pictures(folder, *(folder / n for n in usual), *(folder.parent / n for n in usual))
    return Rows(folder.name, rows, pictures, understood, "flickr")


def _lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """(line, picture, caption or what is wrong) of every line."""
    kind = kind_of(path)
    for number, line in enumerate(lines_of(read_text(path)), 1):
        if not line.strip() or (number == 1 and kind != "token"):
            continue
        if kind == "token":
            found = _TOKEN.fullmatch(line)
            name, caption = (found[1], found[3]) if found else ("", "")
        elif kind == "piped":
            found = re.fullmatch(
                r"\s*([^|]+?)\s*\|\s*(\d+)\s*\|?\s*(.*)", line
            )  # one line of the published file lacks its second mark
            name, caption = (found[1], found[3]) if found else ("", "")
        else:
            name, _, caption = line.partition(",")
            caption = unquoted(caption)
        if not name or not caption.strip():
            yield number, "", ValueError(f"{path.name}, line {number}: no picture with a caption: {line[:100]!r}")
        else:
            yield number, name.strip(), caption


def _listed(folder: Path, split: str) -> tuple[set[str] | None, str]:
    """(the pictures of a split by the lists beside the captions, its name); (None, "") where there are no lists.

    Raises:
      NoSuchSplit: there are lists of other splits.
    """
    lists = {s: next((p for p in visible(folder) if p.name.endswith(end)), None) for s, end in _LISTS.items()}
    if not any(lists.values()):
        return None, ""
    chosen = group_of(split)
    path = lists.get(chosen or "")
    if path is None or chosen is None:
        raise NoSuchSplit(
            f"{str(folder)!r} has no split {split!r}; its lists are of {', '.join(s for s, p in lists.items() if p)}"
        )
    return {line.strip() for line in lines_of(read_text(path)) if line.strip()}, chosen

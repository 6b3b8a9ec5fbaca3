"""Tables that people have: their rows and columns, and the texts that stand in them."""

import ast
import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from simvlm_jax.core.files import BadFile
from simvlm_jax.text.tokenizer import clean

TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
IMAGE_COLUMNS = (
    "image",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "image_path",
    "image_name",
    "file",
    "path",
    "img",
)
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "sentence", "sentences", "title", "raw")
BYTES_COLUMNS = ("jpg", "jpeg", "png", "webp")
"""Columns of encoded pictures, as img2dataset's Parquet form has them."""
_NUMBERED = re.compile(r"(caption|text|sentence)s?[ _]?\d+")
_TOKENS = re.compile(r"""(?P<text>[bu]?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))|(?P<cut>\.\.\.)|(?P<comma>,)|\s+""")
"""What Python and NumPy write between the brackets of a list of texts."""
_LEAVES = ("text", "caption", "raw", "sentence")


def texts(value: Any) -> list[str]:
    """Captions as data sets spell them: nothing, a text, several texts, or several {"text": ...} (or "raw", "caption").

    Raises:
      ValueError: anything else, a number for instance.
    """
    if isinstance(value, dict | bytes | str) or value is None:
        value = [value]
    if not isinstance(value, Sequence) and not hasattr(value, "tolist"):
        raise ValueError(f"a caption must be text, not {value!r:.100}")
    found = []
    for item in value:
        if isinstance(item, dict):
            name = next((k for k in _LEAVES if k in item), None)
            if name is None:
                raise ValueError(f"a caption must be text, or a record with {', '.join(_LEAVES)}, not {item!r:.100}")
            item = item[name]
        if item is not None and not isinstance(item, bytes | str):
            raise ValueError(f"a caption must be text, not {item!r:.100}")
        found.append(item)
    return [clean(v) for v in found if v is not None]


def captions_of(row: dict[str, Any]) -> list[str]:
    """The texts of the first caption column that holds any, and of columns such as caption_1, caption_2.

    Raises:
      ValueError: what stands there is not text.
    """
    for name in caption_columns(row):
        value = row.get(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = listed(value, name, strict=name == "captions")
        if found := [t for t in texts(value) if t]:
            rest = [c for c in row if _NUMBERED.fullmatch(c) and c != name]
            return found + [t for c in rest for t in texts(row[c]) if t]
    return []


def caption_columns(columns: Any) -> list[str]:
    """Those of a table's columns that hold captions, in the order in which they are looked at."""
    return [c for c in CAPTION_COLUMNS if c in columns] + [c for c in columns if _NUMBERED.fullmatch(c)]


def listed(value: str, name: str, strict: bool = True) -> Any:
    """A list of texts in JSON's, Python's or NumPy's spelling; without `strict`, a text that is none stays a text.

    Raises:
      ValueError: it is none, or was cut when it was written.
    """
    for read in (json.loads, lambda v: _neighbours(v, name), ast.literal_eval):
        try:
            found = read(value)
        except BadFile:
            raise
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and (strict or all(isinstance(v, str) for v in found)):
            return found
    if strict and value.rstrip().endswith("]"):
        raise ValueError(f'`{name}` must be a list such as ["one", "two"], not {value!r:.100}')
    return value


def _neighbours(value: str, name: str) -> list[str | bytes] | None:
    """The texts of a list as NumPy prints it, without commas (Python would join them); None where it is no such list.

    Raises:
      BadFile: the list was cut when it was written, or has commas between some of the texts only.
    """
    value = value.strip()
    if not (value.startswith("[") and value.endswith("]")):
        return None
    found: list[tuple[str, str]] = []
    place = 1
    while place < len(value) - 1:
        token = _TOKENS.match(value, place, len(value) - 1)
        if token is None:
            return None
        if token.lastgroup:
            found.append((token.lastgroup, token[0]))
        place = token.end()
    kinds = [kind for kind, _ in found]
    if "text" not in kinds:
        return None
    if "cut" in kinds:
        raise BadFile(
            f"`{name}` is a list that was cut where it was written (...): {value!r:.100}; write all of it, as JSON for instance"
        )
    if ("text", "text") not in itertools.pairwise(kinds):
        return None
    if "comma" in kinds:
        raise BadFile(f"`{name}` has commas between some of its texts only: {value!r:.100}; put one between any two")
    return [ast.literal_eval(text) for _, text in found]


class Held(Protocol):
    """The pictures in a column of a table: (row number from 0) -> encoded picture."""

    column: str

    def __call__(self, index: int) -> bytes: ...

    def name(self, index: int) -> str:
        """The file name that a row's picture had, "" where it is not told."""
        ...


@dataclasses.dataclass(frozen=True)
class Table:
    """A table's rows, each with its line (or row) number; a row that cannot be read is the error. Column names in lower case.

    pictures: (row number from 0) -> encoded picture, where the table holds them.
    """

    path: Path
    rows: list[tuple[int, dict[str, Any] | ValueError]]
    columns: list[str] = dataclasses.field(default_factory=list)
    pictures: Held | None = None

    def error(self, line: int, message: str) -> ValueError:
        return ValueError(f"table {str(self.path)!r}, line {line}: {message}")

    @property
    def good(self) -> list[tuple[int, dict[str, Any]]]:
        """The rows that could be read."""
        return [(line, row) for line, row in self.rows if isinstance(row, dict)]


def tidy(name: str) -> str:
    """The name of a column as it is compared: without spaces around it, in lower case."""
    return name.strip().lower()

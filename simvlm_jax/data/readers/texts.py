"""Documents without pictures: a line of a .txt each, or the texts of tables with one of the caption columns."""

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import read_text
from simvlm_jax.data.reader import How
from simvlm_jax.data.rows import Understood
from simvlm_jax.data.tables import CAPTION_COLUMNS, Table, caption_columns, captions_of
from simvlm_jax.text.lines import lines_of
from simvlm_jax.text.tokenizer import clean


def accepts(path: Path, how: How) -> str:
    """The name of a .txt, where texts are wanted and not pictures."""
    return path.name if not how.images and path.suffix.lower() == ".txt" and path.is_file() else ""


def read(path: Path, how: How) -> "TextSource":
    """One document per line."""
    return TextSource(path)


class TextSource:
    """{"key", "text"} of every document."""

    def __init__(self, path: Path, tables: Sequence[Table] = (), split: str = ""):
        self._texts: list[str] = []
        left_out: Counter[str] = Counter()
        columns: list[str] = []
        for table in tables:
            columns += [c for c in caption_columns(table.columns) if c not in columns]
            for _, row in table.rows:
                try:
                    if isinstance(row, ValueError):
                        raise row
                    self._texts += captions_of(row)
                except ValueError as e:
                    left_out[f"rows that cannot be read, such as: {e}"[:200]] += 1
        if not tables:
            self._texts = [t for t in map(clean, lines_of(read_text(path))) if t]
        self._name = path.name
        if not self._texts:
            names = f" in a column {', '.join(CAPTION_COLUMNS)}" if tables else ""
            raise ValueError(f"{str(path)!r} holds no text{names}")
        self.split = split
        files = [t.path.name for t in tables] or [path.name]
        self.understood = Understood("documents", files, len(self._texts), columns, split, left_out)

    def __len__(self):
        return len(self._texts)

    def key(self, index: int) -> str:
        return f"{self._name}/{index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"key": self.key(index), "text": self._texts[index]}

    def __repr__(self):
        return f"text:{zlib.crc32(json.dumps(self._texts).encode()):08x}:{len(self)}"

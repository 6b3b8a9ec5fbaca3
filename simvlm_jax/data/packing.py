"""Several examples in one row: no slot of a text is left to padding that a short example could fill.

Which examples share a row is an index of numbers alone, computed once from their lengths: they are put, first fit, into the open
rows of a window, of which the oldest is closed where none has room. Rows then come by their place like the examples of any source,
so that a run is resumed by its step, and hosts, devices and threads change nothing.

A row has `segment` [T] int32 (0, 1, ... by example, -1 in padding: segments see nothing of each other), `position` [T] int32
(from 0 in each), `text`, `text_mask`, and `target_mask` [T] bool (what is predicted; by default all that stands there).
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from simvlm_jax.core.trust import buildable
from simvlm_jax.data.source import Source, understood, without_pictures
from simvlm_jax.data.transforms import BadExample, Example
from simvlm_jax.text.tokenizer import Tokenizer

Piece = tuple[int, int, int]
"""(example, first token, last + 1) of what stands in a row."""


def first_fit(lengths: Sequence[int] | np.ndarray, room: int, window: int = 64) -> list[list[int]]:
    """Puts lengths into rows of `room` slots: lists of the places in `lengths` that share a row, rows in the order they close.

    window: how many rows are open at once; of these the first that has room takes the next.

    Raises:
      ValueError: a length below 1 or above `room`.
    """
    done: list[list[int]] = []
    rows: list[list[int]] = []
    left: list[int] = []
    for place, length in enumerate(lengths):
        if not 1 <= length <= room:
            raise ValueError(f"an example of {length} tokens does not fit a row of {room}; cut or chunk it first")
        row = next((i for i, free in enumerate(left) if free >= length), None)
        if row is None:
            if len(rows) == window:
                done.append(rows.pop(0))
                left.pop(0)
            rows.append([])
            left.append(room)
            row = len(rows) - 1
        rows[row].append(place)
        left[row] -= int(length)
        if not left[row]:
            done.append(rows.pop(row))
            left.pop(row)
    return done + rows


class Packed:
    """A source of rows in which several texts stand: {"key", "pieces": list of int32 ids [n], each a text's own}.

    An example has its place in one row, and so stands once in each epoch; which rows come when is the pipeline's to shuffle. A
    text longer than a row becomes several pieces (`chunked`), of which each stands once, or loses its end. Making one reads every
    text once, for its length.

    Args:
      source: examples with a text; those without, or that cannot be read, are left out and counted.
      tokenizer: its `length` is that of a row, T.
      field: of an example, that holds its text.
      window: rows that are open at once; more of them leave less padding.

    Raises:
      ValueError: there is no text.
    """

    def __init__(
        self, source: Source, tokenizer: Tokenizer, field: str = "text", chunked: bool = True, window: int = 64
    ):
        self._source, self._tokenizer, self._field = source, tokenizer, field
        self._label = f"packed {tokenizer.vocabulary.length}{'' if chunked else ', cut'} by {tokenizer.sha256[:8]}"
        room, pieces, gone = tokenizer.vocabulary.length, [], 0
        for index in range(len(source)):
            try:
                total = len(self._tokens(index))
            except Exception:  # of people's files, which raise whatever they like
                gone += 1
                continue
            stop = total if chunked else min(total, room)
            pieces += [(index, start, min(start + room, stop)) for start in range(0, stop, room)]
        if not pieces:
            raise ValueError(f"none of the {len(source)} examples of {source!r} has a {field!r} to pack")
        # mixed once, for neighbours in files are often alike
        pieces = [pieces[i] for i in np.random.default_rng(0).permutation(len(pieces))]
        rows = first_fit([stop - start for _, start, stop in pieces], room, window)
        self._rows: list[list[Piece]] = [[pieces[i] for i in row] for row in rows]
        found = understood(source)
        self.understood = dataclasses.replace(found, rows=len(rows), left_out=Counter(found.left_out))
        self.understood.reader = f"{found.reader}, {len(pieces):,} texts packed"
        if gone:
            self.understood.left_out[f"without a {field} to pack"] += gone

    def _tokens(self, index: int) -> list[int]:
        """Ids of an example's text, and EOS."""
        ids = self._tokenizer.ids_of(str(without_pictures(self._source, index).get(self._field) or ""))
        if not ids:
            raise BadExample(f"the {self._field} is empty")
        return [*ids, self._tokenizer.vocabulary.eos]

    def __len__(self):
        return len(self._rows)

    def key(self, index: int) -> str:
        return "+".join(self._source.key(i) for i, _, _ in self._rows[index])

    def __getitem__(self, index: int) -> Example:
        pieces = [np.asarray(self._tokens(i)[start:stop], np.int32) for i, start, stop in self._rows[index]]
        return {"key": self.key(index), "pieces": pieces}

    def __repr__(self):
        return f"{self._source!r} {self._label}"


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class LayOutPacked:
    """`pieces` to `text`, `text_mask`, `target_mask`, `segment` and `position`, all [T].

    Args:
      tokenizer: of the run; its `length` is T.
    """

    tokenizer: Tokenizer

    def __call__(self, example: Example, rng: Any) -> Example:
        v = self.tokenizer.vocabulary
        pieces = example["pieces"]
        used = sum(map(len, pieces))
        if used > v.length:
            raise BadExample(f"{used} packed tokens do not fit a row of {v.length}")
        text, segment, position = (np.full(v.length, x, np.int32) for x in (v.pad, -1, 0))
        place = 0
        for number, piece in enumerate(pieces):
            here = slice(place, place := place + len(piece))
            text[here], segment[here], position[here] = piece, number, np.arange(len(piece))
        made = {"text": text, "segment": segment, "position": position, "text_mask": segment >= 0}
        return {**example, **made, "target_mask": segment >= 0, "cut": np.int32(0)}

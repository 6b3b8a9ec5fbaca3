"""What the letters of a parameter say about it: whether it is a matrix, and which of its axes are its inputs and outputs.

Layers give every axis of a parameter a letter of the legend in core/types.py. Letters of one space belong together: heads and
head width ("H K") are one side of a matrix, kernel rows, kernel columns and input channels ("Y X I") are another. A matrix is
one space, then another: ("D", "H", "K") maps width to heads, ("H", "K", "D") heads to width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

SCANNED = "L"
"""Letter of the leading axis of scanned layers: each layer has a parameter of its own."""
_SPACES = {
    "D": "width",
    "W": "width of another tower",
    "E": "shared embedding",
    "F": "mlp",
    "H": "heads",
    "G": "heads",
    "K": "heads",
    "C": "channels",
    "Y": "pixels",
    "X": "pixels",
    "I": "pixels",
}
_ENTRIES = ("V", "A", "Q")
"""Letters that count entries, each with a vector of its own: pieces, answers, learned queries."""

Letterbook = Mapping[str, Sequence[str | None]]
"""The letters of every parameter, by its name."""


class Axes(NamedTuple):
    """The axes of a parameter by what they mean.

    kind: "matrix" (a linear map from `inputs` to `outputs`), "table" (a vector for each entry: embeddings, softmax and
    classification heads, learned queries), "positions" (a vector for each place) or "other" (biases, scales, temperatures,
    tables of relative positions). layers: the scanned axis, if there is one. inputs, outputs: axes of the two sides, in their
    order; () of kind "other".
    """

    kind: str
    layers: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


def axes_of(letters: Sequence[str | None]) -> Axes:
    """The meaning of a parameter's axes.

    A parameter that nobody gave letters is a matrix if it has two axes, as is the custom; of more axes nothing is known.
    """
    layers = tuple(i for i, letter in enumerate(letters) if letter == SCANNED)
    rest = [i for i in range(len(letters)) if i not in layers]
    if not any(letters[i] for i in rest):
        return Axes("matrix", layers, (rest[0],), (rest[1],)) if len(rest) == 2 else Axes("other", layers)
    sides: list[list[int]] = []
    for i in rest:
        before = letters[sides[-1][-1]] if sides else None
        joins = before != letters[i] and before in _SPACES and _SPACES[before] == _SPACES.get(letters[i] or "")
        sides[-1].append(i) if joins else sides.append([i])
    if len(sides) != 2:
        return Axes("other", layers)
    named = {letters[i] for i in rest}
    kind = "table" if named & set(_ENTRIES) else "matrix" if named <= set(_SPACES) else "positions"
    return Axes(kind, layers, tuple(sides[0]), tuple(sides[1]))


def decays(letters: Sequence[str | None]) -> bool:
    """Whether weight decay acts on a parameter by default: on matrices and tables, and on what has several axes and no letters."""
    several = len([letter for letter in letters if letter != SCANNED]) > 1
    return axes_of(letters).kind in ("matrix", "table") or (several and not any(set(letters) - {SCANNED}))

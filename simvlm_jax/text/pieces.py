"""What a tokenizer cuts texts with, whoever made it: the words that its kinds share."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Roles(NamedTuple):
    """Ids with a meaning, and how many ids there are: rows of an embedding, which may be more than pieces."""

    size: int
    pad: int
    bos: int
    eos: int


class Pieces(Protocol):
    """A vocabulary of pieces. count: how many there are. roles: as its file tells them."""

    count: int
    roles: Roles

    def encode(self, text: str) -> list[int]:
        """Piece ids, without special ids at either end."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, all of them of pieces."""
        ...

    def piece(self, id: int) -> str:
        """A piece as a person reads it."""
        ...

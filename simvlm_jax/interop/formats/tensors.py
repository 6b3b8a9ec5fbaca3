"""Arrays of a file by name, read one at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np


class Stored(NamedTuple):
    """An array in a file: its shape, and what reads it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class NoTensor(KeyError):
    """There is no array of a name."""


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name. Their shapes are known without reading them."""

    def __init__(self, stored: Mapping[str, Stored]):
        self._stored = dict(stored)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array.

        Raises:
          NoTensor: there is none of that name.
        """
        if name not in self._stored:
            raise NoTensor(name)
        return self._stored[name].shape

    @classmethod
    def joined(cls, parts: "Iterable[Tensors]") -> "Tensors":
        """The arrays of several files."""
        return cls({name: stored for part in parts for name, stored in part._stored.items()})

    def renamed(self, change: Callable[[str], str]) -> "Tensors":
        """The same arrays under other names."""
        return Tensors({change(name): stored for name, stored in self._stored.items()})

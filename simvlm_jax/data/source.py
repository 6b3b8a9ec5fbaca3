"""What a source is, and sources made of sources: a share by hash of the key, examples that stay in memory.

An example is a dict with `key` (text) and, as far as there are any, `image` (encoded bytes), `captions` (list of text),
`text`, and whatever else the data set knows (`scene`).
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simvlm_jax.data.rows import Understood


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def key(self, index: int) -> str:
        """The example's name, without reading the rest of it."""
        ...


def understood(source: Source) -> Understood:
    """What a path was taken for, if the source tells."""
    return getattr(source, "understood", None) or Understood(type(source).__name__, [], len(source))


def origin(source: Source, index: int) -> str:
    """What tells that two examples are one, though sources may name them by different slices."""
    return getattr(source, "origin", source.key)(index)


def without_pictures(source: Source, index: int) -> dict[str, Any]:
    """An example, without reading pictures where the source can do so."""
    light = getattr(source, "text", None)
    return light(index) if light else source[index]


class HashSplit:
    """A share of a source by hash of the key: `held_out` and its complement never overlap, whatever the order.

    Where a source knows which examples share a picture (`group`), they stay together.
    """

    def __init__(self, source: Source, share: float, held_out: bool):
        edge = int(share * 2**32)
        self._source = source
        name = getattr(source, "group", source.key)
        self._indices = [
            i for i in range(len(source)) if (zlib.crc32(name(i).encode("utf-8", "surrogatepass")) < edge) == held_out
        ]
        if not self._indices:
            raise ValueError(f"{share:.0%} of {len(source)} examples leave none; name data.eval.path instead")
        self._label = f"{'held out' if held_out else 'without'} {share:.0%}"
        understanding = understood(source)
        self.understood = Understood(
            understanding.reader,
            understanding.files,
            len(self._indices),
            understanding.columns,
            f"{understanding.split or 'all'}, {self._label}",
            understanding.left_out,
        )

    def text(self, index: int) -> dict[str, Any]:
        """An example without its pictures, as far as the source can tell them apart."""
        return without_pictures(self._source, self._indices[index])

    def __len__(self):
        return len(self._indices)

    def key(self, index: int) -> str:
        return self._source.key(self._indices[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._indices[index]]

    def __repr__(self):
        return f"{self._source!r} {self._label}"


class Cached:
    """A source whose examples, after transforms that draw nothing, stay in memory once seen; for small data sets."""

    def __init__(self, source: Source, transforms: Sequence[Callable] = ()):
        self._source, self._transforms = source, tuple(transforms)
        self.understood = understood(source)
        self._kept: dict[int, dict[str, Any]] = {}

    def __len__(self):
        return len(self._source)

    def key(self, index: int) -> str:
        return self._source.key(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._kept:
            example = self._source[index]
            for transform in self._transforms:
                example = transform(example, None)
            self._kept.setdefault(index, example)  # what another thread has made meanwhile stays
        return self._kept[index]

    def __repr__(self):
        return repr(self._source)

"""Several sources as one: shares that are exact in every batch, and a shuffle of its own for each source.

Which source a row is of depends on its global index alone: after any number n of rows each source has given n times its
share, to less than one row (R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980). So a batch in which
the shares are whole numbers of rows holds just these numbers.
"""

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from simvlm_jax.data.rows import Understood
from simvlm_jax.data.source import Source, understood, without_pictures

LONGEST_PERIOD = 100_000
"""Rows after which the order of the sources repeats."""


def interleave(weights: Sequence[float]) -> np.ndarray:
    """Which source each row of a period is of: [N] int32. The period N is the least in which all shares are whole rows.

    weights: of each source, as people write them: 0.7 and 0.3, or 7 and 3. They are shares of their sum.

    Raises:
      ValueError: a weight that is not positive, or a period of more than LONGEST_PERIOD.
    """
    if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ValueError(
            f"weights {list(weights)} of sources: each must be a positive number; leave out a source of weight 0"
        )
    exact = [Fraction(str(w)) for w in weights]
    shares = [w / sum(exact) for w in exact]
    period = math.lcm(*(s.denominator for s in shares))
    if period > LONGEST_PERIOD:
        raise ValueError(
            f"weights {list(weights)} repeat after {period:,} rows, more than {LONGEST_PERIOD:,}; write them with fewer digits"
        )
    rows = [int(s * period) for s in shares]
    spare = max(2 * len(rows) - 2, 1)
    given, order = [0] * len(rows), np.zeros(period, np.int32)
    for n in range(1, period + 1):
        chosen, soonest = -1, (0, 1)
        for i, share in enumerate(rows):
            owed = n * share - period * given[i]  # in rows, times the period
            if owed * spare < period and len(rows) > 1:
                continue
            due = (spare * (period - owed) - period, share)  # when it will be a row behind, times the spare
            if chosen < 0 or due[0] * soonest[1] < soonest[0] * due[1]:
                chosen, soonest = i, due
        order[n - 1] = chosen
        given[chosen] += 1
    return order


class Drawn:
    """Examples by global index: the source that the index is of, and how many rows it has given before, tell which."""

    def __init__(self, order: np.ndarray, starts: Sequence[int], orders: Sequence[Any]):
        self._order, self._starts, self._orders = order, starts, orders
        self._rows = np.bincount(order)
        self._before = np.zeros(len(order), np.int64)
        for source in range(len(starts) - 1):
            mine = order == source
            self._before[mine] = np.arange(mine.sum())

    def __getitem__(self, index: int) -> int:
        period, row = divmod(index, len(self._order))
        source = int(self._order[row])
        drawn = period * int(self._rows[source]) + int(self._before[row])
        return self._starts[source] + int(self._orders[source][drawn])


class Mixture:
    """Named sources one after the other, as one source; `sequence` draws from them by weight.

    An example's index, and so its `id`, counts through all sources in the order of their names.
    """

    def __init__(self, sources: Mapping[str, tuple[Source, float]]):
        self.names = tuple(sorted(sources))
        self._sources = [sources[name][0] for name in self.names]
        for name, source in zip(self.names, self._sources, strict=True):
            if not len(source):
                raise ValueError(f"source {name!r} of a mixture is empty")
        self.weights = tuple(float(sources[name][1]) for name in self.names)
        self._order = interleave(self.weights)
        self._starts = [0, *itertools.accumulate(map(len, self._sources))]
        parts = [understood(s) for s in self._sources]
        left_out = sum((t.left_out for t in parts), Counter[str]())
        readers = " + ".join(f"{w:g} {n} ({t.reader})" for n, w, t in zip(self.names, self.weights, parts, strict=True))
        self.understood = Understood(readers, [f for t in parts for f in t.files], len(self), left_out=left_out)

    def __len__(self):
        return self._starts[-1]

    def place(self, index: int) -> tuple[int, int]:
        """(number of the source, index in it) of an example."""
        source = bisect.bisect_right(self._starts, index) - 1
        return source, index - self._starts[source]

    def span(self, index: int) -> tuple[int, int]:
        """First and last + 1 of the indices of the source that an example is of."""
        source, _ = self.place(index)
        return self._starts[source], self._starts[source + 1]

    def key(self, index: int) -> str:
        source, inner = self.place(index)
        return f"{self.names[source]}/{self._sources[source].key(inner)}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, inner = self.place(index)
        return self._sources[source][inner]

    def text(self, index: int) -> dict[str, Any]:
        """An example without its pictures, as far as its source can tell them apart."""
        source, inner = self.place(index)
        return without_pictures(self._sources[source], inner)

    def with_each(self, change: Callable[[Source], Source]) -> "Mixture":
        """The same mixture of changed sources."""
        each = zip(self.names, self._sources, self.weights, strict=True)
        return Mixture({name: (change(source), weight) for name, source, weight in each})

    def sequence(self, shuffled: Callable[[str, int], Any]) -> "Drawn":
        """The endless order of examples. shuffled(name, n): an endless order of the n examples of a source."""
        orders = [shuffled(name, len(s)) for name, s in zip(self.names, self._sources, strict=True)]
        return Drawn(self._order, self._starts, orders)

    def __repr__(self):
        return f"mixture({', '.join(f'{n}:{w:g}:{s!r}' for n, w, s in zip(self.names, self.weights, self._sources, strict=True))})"

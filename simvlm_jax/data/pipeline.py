"""Batches by step: the global sample sequence is a pure function of (seed, step).

Row r of part p in step s is global example g = s * rows + r. Its place in the shuffled data set and all its random
draws depend on (seed, part, g) only, so hosts, devices and threads change nothing, and resuming is starting elsewhere.
"""

import contextlib
import dataclasses
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from simvlm_jax.core.parts import PAIRS
from simvlm_jax.core.types import Batch, Rows
from simvlm_jax.data.mixture import Mixture
from simvlm_jax.data.source import Source
from simvlm_jax.data.transforms import BadTransforms, keep_of

Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
_MAX_TRIES = 20
SEEDED_AS = {PAIRS: "images"}
"""The name that the draws of a part are seeded by, where it is not its own: the sequence of pairs is older than their name."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A source, how its examples become rows, and how many rows it gives to every batch.

    source: one, or a Mixture of several. transforms: the last is a Keep, which names the keys of a row.

    Raises:
      BadTransforms: the list ends in another transform.
    """

    name: str
    source: Source
    transforms: Sequence[Transform]
    rows: int

    def __post_init__(self):
        keep_of(self.transforms, self.name)


class TooManyBadExamples(ValueError):
    """The quarantine is over its limit."""


class Quarantine:
    """Bad examples: replaced, counted, handed to `record`, and fatal past a share of all examples drawn."""

    def __init__(self, limit: float = 0.05, record: Callable[[dict[str, Any]], None] | None = None):
        if not 0 <= limit <= 1:
            raise ValueError(f"a quarantine limit of {limit} is not a share between 0 and 1")
        self.limit, self.record = limit, record
        self.bad, self.drawn = 0, 0
        self._seen: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def good(self) -> None:
        with self._lock:
            self.drawn += 1

    def add(self, part: str, key: str, error: Exception) -> None:
        """Counts a bad example, records it once, and stops the run when there are too many."""
        with self._lock:
            self.bad, self.drawn = self.bad + 1, self.drawn + 1
            new = (part, key) not in self._seen
            self._seen.add((part, key))
            if new and self.record is not None:
                self.record({"part": part, "key": key, "error": f"{type(error).__name__}: {error}"})
            if self.bad >= 10 and self.bad > self.limit * self.drawn:
                raise TooManyBadExamples(
                    f"{self.bad} of {self.drawn} examples of {part!r} are bad, over the limit of {self.limit:.1%}; "
                    f"the last was {key!r}: {error}. Mend the data or raise config.data.quarantine."
                ) from error


class Pipeline:
    """Batches of a fixed make-up: every batch has exactly `rows` rows of each part."""

    def __init__(
        self,
        parts: Sequence[Part],
        seed: int,
        quarantine: Quarantine | None = None,
        mine: Callable[[int], Sequence[int]] = range,
    ):
        """mine: which of the n rows of a part this host makes, in order."""
        import grain

        self.parts, self.seed = tuple(parts), seed
        self.quarantine = quarantine or Quarantine()
        self._drawn, self._cut = Counter[str](), Counter[str]()
        self._lock = threading.Lock()
        for p in self.parts:
            if not len(p.source):
                raise ValueError(f"data source {p.name!r} is empty")
        self._mine = {p.name: mine(p.rows) for p in self.parts}
        self._counts: dict[str, int | None] = {}
        self._order: list[Any] = []
        for p in self.parts:

            def shuffled(source: str, count: int, part: Part = p) -> Any:
                """An endless order of a source's examples: each epoch another, all of them once."""
                return grain.MapDataset.range(count).seed(self._seed_of(part, source)).shuffle().repeat()

            self._order.append(
                p.source.sequence(shuffled) if isinstance(p.source, Mixture) else shuffled("", len(p.source))
            )

    def _seed_of(self, part: Part, source: str = "") -> int:
        name = SEEDED_AS.get(part.name, part.name)
        return zlib.crc32("/".join(filter(None, (str(self.seed), name, source))).encode())

    @property
    def share(self) -> float:
        """Which part of the global batch this host makes."""
        return sum(map(len, self._mine.values())) / sum(p.rows for p in self.parts)

    def batch(self, step: int) -> Batch:
        """This host's rows of the batch of a step, as numpy arrays."""
        batch: Batch = {}
        for p, order in zip(self.parts, self._order, strict=True):
            rows = []
            for place in self._mine[p.name]:
                row, cut = self._row(p, order, step * p.rows + place)
                with self._lock:
                    self._drawn[p.name] += 1
                    self._cut[p.name] += cut
                rows.append(row)
            batch[p.name] = _stack(rows)
        return batch

    def report_cuts(self) -> list[str]:
        """For each part with texts that were too long and lost pieces: how many of its rows, since this was last asked."""
        with self._lock:
            out = [
                f"{n:,} of {self._drawn[part]:,} {part} drawn have a text that is cut"
                for part, n in self._cut.items()
                if n
            ]
            self._drawn.clear()
            self._cut.clear()
        return out

    def keys(self, step: int) -> dict[str, list[str]]:
        """By part, the keys of all rows of a step's global batch, in order (a bad example's own, not its replacement's)."""
        return {
            p.name: [p.source.key(int(order[g])) for g in range(step * p.rows, (step + 1) * p.rows)]
            for p, order in zip(self.parts, self._order, strict=True)
        }

    def _images_per_row(self, p: Part, order: Any) -> int | None:
        """How many pictures a row of a part has: as many as most of the first rows of the whole sequence."""
        with self._lock:
            known = p.name in self._counts
        if not known:
            counts = Counter[int]()
            for index in range(min(p.rows, 8)):
                with contextlib.suppress(Exception):  # which is told when it is drawn
                    row, _ = self._made(p, int(order[index]), np.random.default_rng((self._seed_of(p), index)))
                    if "image" in row:
                        counts[len(row["image"])] += 1
            with self._lock:
                self._counts[p.name] = counts.most_common(1)[0][0] if counts else None
        return self._counts[p.name]

    def _made(self, p: Part, position: int, rng: np.random.Generator) -> tuple[dict[str, Any], bool]:
        """(the row of an example, whether its text has lost pieces)."""
        *before, keep = p.transforms
        example = p.source[position]
        for transform in before:
            example = transform(example, rng)
        row = {**keep(example, rng), "id": np.int64(position), "weight": np.float32(1)}
        return row, "text" in row and bool(example.get("cut", 0))

    def _row(self, p: Part, order: Any, index: int) -> tuple[dict[str, Any], bool]:
        rng = np.random.default_rng((self._seed_of(p), index))
        position = int(order[index])
        expected = self._images_per_row(p, order)
        for _ in range(_MAX_TRIES):
            try:
                row, cut = self._made(p, position, rng)
                if "image" in row and expected is not None and len(row["image"]) != expected:
                    raise ValueError(f"it has {len(row['image'])} images, where others have {expected}")
                self.quarantine.good()
                return row, cut
            except BadTransforms:
                raise
            except Exception as e:  # decoders and people's files raise whatever they like
                self.quarantine.add(p.name, p.source.key(position), e)
                first, end = p.source.span(position) if isinstance(p.source, Mixture) else (0, len(p.source))
                position = first + int(rng.integers(end - first))  # another of the same source
        raise TooManyBadExamples(
            f"{_MAX_TRIES} examples of {p.name!r} in a row were bad; the last was {p.source.key(position)!r}"
        )

    def iterate(self, start: int, stop: int, threads: int = 2, ahead: int = 4) -> Iterator[Batch]:
        """Batches of steps [start, stop), made ahead of time by threads."""
        import grain

        steps = grain.MapDataset.range(start, stop).map(self.batch)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
        return iter(steps.to_iter_dataset(options))


def _stack(rows: list[dict[str, Any]]) -> Rows:
    return {k: np.stack([r[k] for r in rows]) for k in rows[0]}

"""Confidence intervals of scores by the bootstrap over images (Efron 1979; for such scores Koehn, EMNLP 2004), in fixed draws.

A score is told by what each image adds to some sums, and by what it is of the sums: a mean of values, a ratio, corpus BLEU.
Questions about one image are drawn with it: apart, they would seem to tell more than they do.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

DRAWS, LEVEL = 1000, 0.95


class Sums(NamedTuple):
    """rows [n,k]: what each image, or question, adds. score: of the sums [k] over rows. of: the image of each row; if it is
    empty, each has its own."""

    rows: np.ndarray
    score: Callable[[np.ndarray], float]
    of: Sequence[Hashable] = ()


def mean_of(values: Sequence[float] | np.ndarray, of: Sequence[Hashable] = ()) -> Sums:
    """A mean of one value per row."""
    values = np.asarray(values, np.float64)
    return ratio_of(values, np.ones_like(values), of)


def ratio_of(
    over: Sequence[float] | np.ndarray, under: Sequence[float] | np.ndarray, of: Sequence[Hashable] = ()
) -> Sums:
    """A ratio of two sums; not a number where nothing is counted."""
    rows = np.stack([np.asarray(over, np.float64), np.asarray(under, np.float64)], axis=1)
    return Sums(rows, lambda s: s[0] / s[1] if s[1] else float("nan"), of)


def numbered(of: Sequence[Hashable]) -> list[int]:
    """A number from 0 on for each thing, the same for the same."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(x, len(numbers)) for x in of]


def _by_image(sums: Sums) -> Sums:
    """The same with one row an image."""
    if not len(sums.of):
        return sums
    at = numbered(sums.of)
    rows = np.zeros((max(at) + 1, sums.rows.shape[1]))
    np.add.at(rows, at, sums.rows)
    return Sums(rows, sums.score)


def intervals(scores: Mapping[str, Sums], draws: int = DRAWS, seed: int = 0) -> dict[str, tuple[float, float]]:
    """{score: (low, high)}: the middle 95 % of the scores of as many images, drawn with replacement; all of the same draws.

    Scores of different numbers of images are drawn apart. One that is not a number in some draw is taken over the others. Of one
    image there is no interval.
    """
    scores = {name: _by_image(s) for name, s in scores.items()}
    out: dict[str, tuple[float, float]] = {}
    for count in sorted({len(s.rows) for s in scores.values()}):
        mine = {name: s for name, s in scores.items() if len(s.rows) == count}
        if count < 2:
            continue
        rng = np.random.default_rng((seed, count))
        table = np.concatenate([s.rows for s in mine.values()], axis=1)
        found = np.empty((draws, len(mine)))
        for i in range(draws):
            times = np.bincount(rng.integers(count, size=count), minlength=count)
            sums, at = times @ table, 0
            for j, s in enumerate(mine.values()):
                found[i, j] = s.score(sums[at : at + s.rows.shape[1]])
                at += s.rows.shape[1]
        for j, name in enumerate(mine):
            values = found[np.isfinite(found[:, j]), j]
            if len(values):
                low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
                out[name] = (float(low), float(high))
    return out


def paired(
    a: Sequence[float], b: Sequence[float], draws: int = DRAWS, seed: int = 0, of: Sequence[Hashable] = ()
) -> tuple[float, float]:
    """(low, high) of the mean of b minus the mean of a over the same images: which both have is drawn together.

    of: as for `Sums`. Not numbers where there is one image.
    """
    difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    nothing = (float("nan"), float("nan"))
    return intervals({"difference": mean_of(difference, of)}, draws, seed).get("difference", nothing)

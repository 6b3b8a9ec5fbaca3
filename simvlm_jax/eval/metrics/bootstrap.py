"""Confidence intervals of scores by the bootstrap over images (Efron 1979; for such scores Koehn, EMNLP 2004), in fixed draws.

A score is told by what each image adds to some sums, and by what it is of the sums: a mean of values, a ratio, corpus BLEU.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

DRAWS, LEVEL = 1000, 0.95


class Sums(NamedTuple):
    """rows [n,k]: what each image adds. score: of the sums [k] over images."""

    rows: np.ndarray
    score: Callable[[np.ndarray], float]


def mean_of(values: Sequence[float] | np.ndarray) -> Sums:
    """A mean of one value an image."""
    values = np.asarray(values, np.float64)
    return ratio_of(values, np.ones_like(values))


def ratio_of(over: Sequence[float] | np.ndarray, under: Sequence[float] | np.ndarray) -> Sums:
    """A ratio of two sums; not a number where nothing is counted."""
    rows = np.stack([np.asarray(over, np.float64), np.asarray(under, np.float64)], axis=1)
    return Sums(rows, lambda s: s[0] / s[1] if s[1] else float("nan"))


def intervals(scores: Mapping[str, Sums], draws: int = DRAWS, seed: int = 0) -> dict[str, tuple[float, float]]:
    """{score: (low, high)}: the middle 95 % of the scores of as many images, drawn with replacement; all of the same draws.

    Scores of different numbers of images are drawn apart. One that is not a number in some draw is taken over the others.
    """
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


def paired(a: Sequence[float], b: Sequence[float], draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """(low, high) of the mean of b minus the mean of a over the same images: which both have is drawn together."""
    difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    return intervals({"difference": mean_of(difference)}, draws, seed).get("difference", (float("nan"), float("nan")))

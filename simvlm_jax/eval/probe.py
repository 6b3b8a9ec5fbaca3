"""Linear probe: what a frozen image encoder's features hold, by logistic regression (CLIP, arXiv 2103.00020, section 3.2)."""

import contextlib
import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simvlm_jax.core.schema import Count
from simvlm_jax.core.trust import buildable
from simvlm_jax.data.source import origin
from simvlm_jax.data.sources import open_source
from simvlm_jax.data.splits import NoSuchSplit
from simvlm_jax.data.transforms import answers_of
from simvlm_jax.eval.answering import Classes
from simvlm_jax.eval.metrics.logistic import MOST_TRIED, best_c, fit
from simvlm_jax.eval.suite import AnsweredExamples, Example, Examples, best_answer, probabilities
from simvlm_jax.infer.answered import Answered, Notes
from simvlm_jax.infer.engine import Engine
from simvlm_jax.run.progress import Countdown


class Learned(NamedTuple):
    """Examples of a split and their features [N,D] in fp64."""

    examples: Examples
    rows: list[Example]
    features: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen(Classes):
    """What learns from frozen features has in common.

    path: data with a `label`. train: its split to learn from. train_limit: examples of it, 0 for all.
    """

    train: str = "train"
    train_limit: Count = 0

    needed = "features"
    """The capability that gives features."""

    def feature_sets(
        self, engine: Engine, examples: Examples, splits: Sequence[str]
    ) -> tuple[list[Learned], Learned, Notes]:
        """(features of the splits to learn from, those of what is asked about, notes).

        Raises:
          ValueError: there is no data to learn from, or some of it is asked about.
        """
        what = type(self).__name__
        engine.require(what, self.needed)
        if not self.path:
            raise ValueError(f"{what} needs data of its own: set the suite's `path`")
        learned = [examples.like(split, open_source(self.path, split), self.train_limit) for split in splits]
        seen: set[str] = set()
        for part in (*learned, examples):
            keys = {origin(part.source, i) for i in part.indices}
            if shared := sorted(seen & keys):
                raise ValueError(
                    f"{what} would be asked about what it has learned from: {self.path!r} has {shared[0]!r} in more than one "
                    f"of {', '.join(map(repr, (*splits, examples.split)))}; name data with splits"
                )
            seen |= keys
        notes: Counter[str] = Counter()
        *found, evaluated = [self._features(engine, part, notes) for part in (*learned, examples)]
        return found, evaluated, notes

    def features_of(self, engine: Engine, rows: list[Example], images: np.ndarray) -> Answered[np.ndarray]:
        """Features [n,D] of a chunk."""
        return Answered(engine.apply("features", "features", {"image": images}), {})

    def _features(self, engine: Engine, examples: Examples, notes: Counter[str]) -> Learned:
        rows: list[Example] = []
        found = []
        for part, images in examples.chunks(engine.batch_size):
            assert images is not None  # these suites are asked with pictures
            rows += part
            features, noted = self.features_of(engine, part, images)
            found.append(features.astype(np.float64))
            notes.update(noted)
        return Learned(examples, rows, np.concatenate(found))


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Frozen):
    """Trained on the features of `train`, regularised by what does best on `validation`, then on both, asked about the rest.

    Data without a `validation` split lends a tenth of `train` to it, chosen by hashes of keys.
    """

    validation: str = "validation"

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        given = self._has_validation(examples)
        splits = (self.train, self.validation) if given else (self.train,)
        sets, evaluated, notes = self.feature_sets(engine, examples, splits)
        names = sorted({answers_of(e)[0] for part in sets for e in part.rows})
        place = {name: i for i, name in enumerate(names)}
        found = [(part.features, np.asarray([place[answers_of(e)[0]] for e in part.rows])) for part in sets]
        if not given:
            lent = np.asarray([zlib.crc32(str(e["key"]).encode()) % 10 == 0 for e in sets[0].rows])
            if lent.all() or not lent.any():  # of very few
                lent = np.arange(len(lent)) % 10 == 0
            found = [(found[0][0][rows], found[0][1][rows]) for rows in (~lent, lent)]
        (x, y), (xv, yv) = found
        pace = Countdown("fits", MOST_TRIED)
        c, accuracy = best_c(x, y, xv, yv, len(names), pace.at)
        pace.close()
        fitted = {
            "c": c,
            "validation_accuracy": accuracy[c],
            "classes": len(names),
            "learned_from": {part.examples.split: part.examples.fingerprint for part in sets},
        }
        probe = fit(np.concatenate([x, xv]), np.concatenate([y, yv]), len(names), c)
        likely = probabilities(probe(evaluated.features))
        out = [(e, best_answer(names, p)) for e, p in zip(evaluated.rows, likely, strict=True)]
        return Answered(out, {"probe": fitted, **notes})

    def _has_validation(self, examples: Examples) -> bool:
        """Whether the data has that split; data without splits gives the same rows for all."""
        with contextlib.suppress(NoSuchSplit):
            return open_source(self.path, self.validation).key(0) != examples.source.key(0)
        return False

    def decoding(self) -> dict[str, Any]:
        return {"probe": "logistic regression, L-BFGS, C by validation", "train": self.train, "limit": self.train_limit}


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionProbe(LinearProbe):
    """The same, of the features of an image with a question: what answers a linear map can read off a frozen model."""

    question: str = "question"

    needed = "pair_features"

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.question,)

    def features_of(self, engine: Engine, rows: list[Example], images: np.ndarray) -> Answered[np.ndarray]:
        return engine.pair_features(images, [str(e[self.question]) for e in rows])

"""Nearest neighbours: classes of images by those of the most alike training images (Wu et al., arXiv 1805.01978, section 3.4)."""

import dataclasses
from typing import Any

import numpy as np

from simvlm_jax.core.schema import AboveZero, Positive
from simvlm_jax.core.trust import buildable
from simvlm_jax.data.transforms import answers_of
from simvlm_jax.eval.probe import Frozen
from simvlm_jax.eval.suite import AnsweredExamples, Examples, best_answer
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NearestNeighbours(Frozen):
    """The `neighbours` nearest by the cosine of features vote, each with weight exp(cosine / temperature)."""

    neighbours: Positive = 20
    temperature: AboveZero = 0.07

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        (learned,), evaluated, notes = self.feature_sets(engine, examples, (self.train,))
        names = sorted({answers_of(e)[0] for e in learned.rows})
        place = {name: i for i, name in enumerate(names)}
        labels = np.asarray([place[answers_of(e)[0]] for e in learned.rows])
        bank, count = _unit(learned.features), min(self.neighbours, len(labels))
        out: AnsweredExamples = []
        for start in range(0, len(evaluated.rows), 1000):
            rows = evaluated.rows[start : start + 1000]
            alike = _unit(evaluated.features[start : start + 1000]) @ bank.T
            nearest = np.argpartition(-alike, count - 1, axis=1)[:, :count]
            weight = np.exp((np.take_along_axis(alike, nearest, axis=1) - 1) / self.temperature)
            votes = np.zeros((len(rows), len(names)))
            np.add.at(votes, (np.arange(len(rows))[:, None], labels[nearest]), weight)
            votes /= votes.sum(1, keepdims=True)
            out += [(e, best_answer(names, v)) for e, v in zip(rows, votes, strict=True)]
        return Answered(out, notes)

    def decoding(self) -> dict[str, Any]:
        return {
            "neighbours": self.neighbours,
            "temperature": self.temperature,
            "train": self.train,
            "limit": self.train_limit,
        }


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

"""Linear probe: what a frozen image encoder's features hold, by logistic regression (CLIP, arXiv 2103.00020, section 3.2)."""

import dataclasses
from typing import Any

import numpy as np

from simvlm_jax.data.sources import open_source
from simvlm_jax.data.transforms import answers_of
from simvlm_jax.eval.answering import Classes
from simvlm_jax.eval.engine import Engine
from simvlm_jax.eval.metrics.logistic import MOST_TRIED, best_c, fit
from simvlm_jax.eval.suite import Answered, Example, Examples, best_answer, probabilities
from simvlm_jax.run.progress import Countdown


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Classes):
    """Trained on the features of `train`, regularised by what does best on `validation`, then on both, asked about the rest.

    path: data with a `label`; train, validation: its splits. train_limit: examples of training used, 0 for all.
    """

    train: str = "train"
    validation: str = "validation"
    train_limit: int = 0

    def answers(self, engine: Engine, examples: Examples) -> Answered:
        engine.needs("a linear probe", "features")
        if not self.path:
            raise ValueError("a linear probe needs data of its own: set the suite's `path`")
        learned = [
            examples.like(split, open_source(self.path, split), self.train_limit)
            for split in (self.train, self.validation)
        ]
        keys = [{e.source.key(i) for i in e.indices} for e in (*learned, examples)]
        if shared := sorted((keys[0] | keys[1]) & keys[2]) or sorted(keys[0] & keys[1]):
            raise ValueError(
                f"a linear probe would be asked about what it has learned from: {self.path!r} has {shared[0]!r} in more than "
                f"one of {self.train!r}, {self.validation!r} and {examples.split!r}; name data with splits"
            )
        sets = [self._features(engine, part) for part in learned]
        asked = self._features(engine, examples)
        names = sorted({answers_of(e)[0] for rows, _ in sets for e in rows})
        place = {name: i for i, name in enumerate(names)}
        (x, y), (xv, yv) = ((features, np.asarray([place[answers_of(e)[0]] for e in rows])) for rows, features in sets)
        pace = Countdown("fits", MOST_TRIED)
        c, accuracy = best_c(x, y, xv, yv, len(names), pace.at)
        pace.close()
        engine.notes["probe"] = {
            "c": c,
            "validation_accuracy": accuracy[c],
            "classes": len(names),
            "learned_from": {e.split: e.fingerprint for e in learned},
        }
        probe = fit(np.concatenate([x, xv]), np.concatenate([y, yv]), len(names), c)
        likely = probabilities(probe(asked[1]))
        return [(e, best_answer(names, p)) for e, p in zip(asked[0], likely, strict=True)]

    def _features(self, engine: Engine, examples: Examples) -> tuple[list[Example], np.ndarray]:
        features = engine.needs("a linear probe", "features")["features"]
        rows: list[Example] = []
        found = []
        for part, images in examples.chunks(engine.batch_size):
            assert images is not None  # this suite is asked with pictures
            rows += part
            found.append(engine.over("features", features, {"image": images}).astype(np.float64))
        return rows, np.concatenate(found)

    def decoding(self) -> dict[str, Any]:
        return {"probe": "logistic regression, L-BFGS, C by validation", "train": self.train, "limit": self.train_limit}

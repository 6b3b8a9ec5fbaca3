"""Compositional probes: does a model prefer a true caption to one that is minimally wrong (see data/scenes/twins.py)?"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from simvlm_jax.core.trust import buildable
from simvlm_jax.data.scenes.graph import Scene
from simvlm_jax.data.scenes.twins import twins
from simvlm_jax.data.transforms import BadExample
from simvlm_jax.eval.answering import Classes
from simvlm_jax.eval.suite import Answer, AnsweredExamples, Example, Examples, Outcome
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine

SCORES = {"matching": "score_pair", "similarity": "similarity", "likelihood": "score_text"}
"""The capability behind each score, in the order in which they are taken."""


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Compositional(Classes):
    """accuracy, and accuracy_attribute, _relation, _order and _count; chance is a half, and a tie is wrong.

    by: "matching" (`score_pair`), "similarity" of image and text, "likelihood" of the text given the image, or "" for the
    first of them that the model has.
    """

    by: str = ""

    def __post_init__(self):
        if self.by not in ("", *SCORES):
            raise ValueError(f"compositional probes go by {', '.join(SCORES)}, not {self.by!r}")

    def expand(self, example: Example) -> Iterable[Example]:
        if "scene" not in example:
            raise BadExample("the example has no scene graph, which twins are made from")
        rng = np.random.default_rng(zlib.crc32(str(example["key"]).encode()))
        for kind, true, false in twins(Scene.from_json(example["scene"]), rng):
            yield {**example, "kind": kind, "answer": true, "twin": false}

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        by = self.by or next((name for name, needed in SCORES.items() if engine.has(needed)), "likelihood")
        out: AnsweredExamples = []
        notes: Counter[str] = Counter()
        for rows, images in examples.chunks(engine.batch_size):
            assert images is not None  # this suite is asked with pictures
            true, false = ([e[k] for e in rows] for k in ("answer", "twin"))
            (a, cut), (b, cut_too) = _scores(engine, by, images, true), _scores(engine, by, images, false)
            notes.update(cut)
            notes.update(cut_too)
            for e, right, wrong in zip(rows, a, b, strict=True):
                better = e["answer"] if right > wrong else e["twin"]
                out.append((e, Answer(better, float(1 / (1 + np.exp(-abs(right - wrong)))))))
        return Answered(out, {"by": by, **notes})

    def outcome(self, engine: Engine, answered: AnsweredExamples) -> Outcome:
        found = super().outcome(engine, answered)
        items = [
            dataclasses.replace(i, question=f"{i.example['answer']}  or  {i.example['twin']}?") for i in found.items
        ]
        return Outcome(
            {**found.scores, "chance": 0.5}, items, sums=found.sums
        )  # no confusion: every caption is its own class

    def decoding(self) -> dict[str, Any]:
        return {"by": self.by or ", else ".join(SCORES)}


def _scores(engine: Engine, by: str, images: np.ndarray, texts: Sequence[str]) -> Answered[np.ndarray]:
    """Score [N] of each image with the text beside it."""
    if by == "similarity":
        embedded, notes = engine.embed_texts(texts)
        return Answered(engine.similarity_of_rows(engine.embed_images(images), embedded), notes)
    return engine.score_pair(images, texts) if by == "matching" else engine.score_text(images, texts)

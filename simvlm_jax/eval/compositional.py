"""Compositional probes: does a model prefer a true caption to one that is minimally wrong (see data/scenes/twins.py)?"""

import dataclasses
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from simvlm_jax.core.trust import buildable
from simvlm_jax.data.scenes.graph import Scene
from simvlm_jax.data.scenes.twins import twins
from simvlm_jax.data.transforms import BadExample
from simvlm_jax.eval.answering import Classes
from simvlm_jax.eval.suite import Answer, Answered, Example, Examples, Outcome
from simvlm_jax.infer.engine import Engine


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Compositional(Classes):
    """accuracy, and accuracy_attribute, _relation, _order and _count; chance is a half, and a tie is wrong.

    by: "similarity" of image and text, "likelihood" of the text given the image, or "" for the first of them that the model
    has.
    """

    by: str = ""

    def __post_init__(self):
        if self.by not in ("", "similarity", "likelihood"):
            raise ValueError(f"compositional probes go by similarity or likelihood, not {self.by!r}")

    def expand(self, example: Example) -> Iterable[Example]:
        if "scene" not in example:
            raise BadExample("the example has no scene graph, which twins are made from")
        rng = np.random.default_rng(zlib.crc32(str(example["key"]).encode()))
        for kind, true, false in twins(Scene.from_json(example["scene"]), rng):
            yield {**example, "kind": kind, "answer": true, "twin": false}

    def answers(self, engine: Engine, examples: Examples) -> Answered:
        alike = self.by == "similarity" or (not self.by and "similarity" in engine.model.capabilities())
        engine.notes["by"] = "similarity" if alike else "likelihood"
        out: Answered = []
        for rows, images in examples.chunks(engine.batch_size):
            assert images is not None  # this suite is asked with pictures
            true, false = ([e[k] for e in rows] for k in ("answer", "twin"))
            if alike:
                seen = engine.embed_images(images)
                a, b = (engine.matched(seen, engine.embed_texts(t)) for t in (true, false))
            else:
                a, b = (engine.score_texts(images, t) for t in (true, false))
            for e, right, wrong in zip(rows, a, b, strict=True):
                better = e["answer"] if right > wrong else e["twin"]
                out.append((e, Answer(better, float(1 / (1 + np.exp(-abs(right - wrong)))))))
        return out

    def outcome(self, engine: Engine, answered: Answered) -> Outcome:
        found = super().outcome(engine, answered)
        items = [dataclasses.replace(i, asked=f"{i.example['answer']}  or  {i.example['twin']}?") for i in found.items]
        return Outcome(
            {**found.scores, "chance": 0.5}, items, sums=found.sums
        )  # no confusion: every caption is its own class

    def decoding(self) -> dict[str, Any]:
        return {"by": self.by or "similarity, else likelihood"}

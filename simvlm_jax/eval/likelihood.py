"""Classifying an image by the likelihood of texts: a captioner as a generative classifier.

A captioner gives p(text | image). By Bayes' rule p(image | text) is proportional to p(text | image) / p(text), so the class
whose text gains the most from the image is the likeliest one under a uniform prior over classes (Jaini et al., arXiv
2309.16779; Lin et al., arXiv 2306.01879, who estimate p(text) from images without content).
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from simvlm_jax.core.schema import NotNegative
from simvlm_jax.core.trust import buildable
from simvlm_jax.eval.answering import Classes
from simvlm_jax.eval.suite import Answered, Examples, best_answer, filled_in
from simvlm_jax.infer.engine import Engine


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerativeClassifier(Classes):
    """The class whose text is the likeliest of an image.

    classes: their names, by default those found in the data. template: how a class is said, "{a}" being its article.
    prior: what a text's likelihood is divided by: "none" (rank p(text | image)), or "blank", the likelihood given a grey
    image, to the power of `strength`.
    """

    classes: tuple[str, ...] = ()
    template: str = "{a} {name}"
    prior: str = "blank"
    strength: NotNegative = 1.0

    def __post_init__(self):
        if self.prior not in ("none", "blank"):
            raise ValueError(f"prior {self.prior!r} is not none or blank")

    def answers(self, engine: Engine, examples: Examples) -> Answered:
        classes = self.classes or examples.truths()
        engine.notes["classes"] = {
            "count": len(classes),
            "sha256": hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16],
        }
        texts = [filled_in(self.template, c, name=c, a="an" if c[0] in "aeiou" else "a") for c in classes]
        prior = np.zeros(len(classes))
        out: Answered = []
        for rows, images in examples.chunks(engine.batch_size):
            if self.prior == "blank" and not out:
                grey = np.full_like(images[:1], 127) if images is not None else None
                prior = self.strength * engine.likelihoods(grey, [""], texts)[0]
            scores = engine.likelihoods(images, [""] * len(rows), texts) - prior
            out += [(e, best_answer(classes, s)) for e, s in zip(rows, scores, strict=True)]
        return out

    def decoding(self) -> dict[str, Any]:
        return {"prompt": self.template, "prior": self.prior, "strength": self.strength}

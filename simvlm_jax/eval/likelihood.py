"""Generative classifiers: the class of an image by the likelihood of texts given it, or of the image given texts.

A captioner gives p(text | image). By Bayes' rule p(image | text) is proportional to p(text | image) / p(text), so the class
whose text gains the most from the image is the likeliest one under a uniform prior over classes (Jaini et al., arXiv
2309.16779; Lin et al., arXiv 2306.01879, who estimate p(text) from images without content). A model of images gives
p(image | text) itself, or a bound of it by sampling (Li et al., arXiv 2303.16203).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simvlm_jax.core.schema import NotNegative, Positive
from simvlm_jax.core.trust import buildable
from simvlm_jax.eval.answering import Classes
from simvlm_jax.eval.suite import AnsweredExamples, Example, Examples, best_answer, draw_ids, filled_in
from simvlm_jax.eval.zero_shot import listed
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerativeClassifier(Classes):
    """The class whose text is the likeliest of an image, or makes the image the likeliest.

    classes: their names, by default those found in the data. template: how a class is said, "{a}" being its article.
    by: "text" for p(text | image), by ranking or by `score_text`; "image" for p(image | text), by `score_image`; "" for the
    first of them that the model has. prior: what a text's likelihood is divided by: "none" (rank p(text | image)), or "blank",
    the likelihood given a grey image, to the power of `strength`. samples: draws an image's likelihood is estimated from.
    """

    classes: tuple[str, ...] = ()
    template: str = "{a} {name}"
    prior: str = "blank"
    strength: NotNegative = 1.0
    by: str = ""
    samples: Positive = 16

    def __post_init__(self):
        if self.prior not in ("none", "blank"):
            raise ValueError(f"prior {self.prior!r} is not none or blank")
        if self.by not in ("", "text", "image"):
            raise ValueError(f"a generative classifier goes by text or image, not {self.by!r}")

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        classes = self.classes or examples.truths()
        texts = [filled_in(self.template, c, name=c, a="an" if c[0] in "aeiou" else "a") for c in classes]
        how, score = self._score(engine)
        prior = np.zeros(len(classes))
        out: AnsweredExamples = []
        notes: Counter[str] = Counter()
        for rows, images in examples.chunks(engine.batch_size):
            if self.prior == "blank" and how != "score_image" and not out:
                grey = np.full_like(images[:1], 127) if images is not None else None
                prior = self.strength * score(engine, rows[:1], grey, texts).values[0]
            scores, cut = score(engine, rows, images, texts)
            out += [(e, best_answer(classes, s)) for e, s in zip(rows, scores - prior, strict=True)]
            notes |= cut  # of the same texts every time
        about = {"classes": listed(classes), **notes}
        return Answered(out, about if how == "ranking" else {"by": how, **about})

    def _score(self, engine: Engine) -> tuple[str, Callable[..., Answered[np.ndarray]]]:
        """The name of what scores texts [N,K] of images, and the function that does."""
        ranks = engine.has("prefill", "extend")
        if self.by == "image" or (
            not self.by and not ranks and not engine.has("score_text") and engine.has("score_image")
        ):
            return "score_image", self._by_image
        return ("ranking", _by_ranking) if ranks or not engine.has("score_text") else ("score_text", _by_text)

    def _by_image(
        self, engine: Engine, rows: list[Example], images: np.ndarray, texts: Sequence[str]
    ) -> Answered[np.ndarray]:
        pairs = _every_pair(images, texts)
        found, notes = engine.score_image(images, texts, draw_ids(rows), pairs, self.samples)
        return Answered(found.reshape(len(images), len(texts)), notes)

    def decoding(self) -> dict[str, Any]:
        how = {"by": self.by} if self.by else {}
        how |= {"samples": self.samples} if self.by == "image" else {}
        return {"prompt": self.template, "prior": self.prior, "strength": self.strength, **how}


def _by_ranking(
    engine: Engine, rows: list[Example], images: np.ndarray | None, texts: Sequence[str]
) -> Answered[np.ndarray]:
    return engine.likelihoods(images, [""] * (len(rows) if images is None else len(images)), texts)


def _by_text(engine: Engine, rows: list[Example], images: np.ndarray, texts: Sequence[str]) -> Answered[np.ndarray]:
    found, notes = engine.score_text(images, texts, _every_pair(images, texts))
    return Answered(found.reshape(len(images), len(texts)), notes)


def _every_pair(images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Numbers [N*K,2] of every image with every text."""
    return np.argwhere(np.ones((len(images), len(texts)), bool))

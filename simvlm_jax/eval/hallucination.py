"""Does a model see what is not there? Yes-or-no questions in the manner of POPE (Li et al., arXiv 2305.10355).

Of every image it is asked of things that are there and of as many that are not. The latter are drawn in three ways: at
random; among the things most frequent in the data ("popular"); or among those that look the most like what is there
("adversarial"). A scene graph knows the truth; a thing is a (colour, shape) pair, an adversarial one shares its colour or its
shape with something in the picture.
"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from simvlm_jax.core.schema import Positive
from simvlm_jax.core.trust import buildable
from simvlm_jax.data.scenes import graph
from simvlm_jax.data.scenes.graph import Scene
from simvlm_jax.data.scenes.language import Phrase, noun_phrase
from simvlm_jax.eval.answering import Answering, Ranking
from simvlm_jax.eval.metrics.bootstrap import mean_of, ratio_of
from simvlm_jax.eval.suite import Answer, AnsweredExamples, Example, Examples, Outcome, pictures_of
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine

KINDS = ("random", "popular", "adversarial")


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hallucination(Answering):
    """Accuracy, precision, recall and F1 of "yes", and how often "yes" is said, over all questions and by kind.

    each: things that are there, as far as there are so many, and as many that are not, a kind and an image. The answer is
    the likelier of yes and no.
    """

    each: Positive = 1
    ask: str = "is there {thing}?"

    @property
    def fields(self) -> tuple[str, ...]:
        return ("image", "scene")

    def expand(self, example: Example) -> Iterable[Example]:
        rng = np.random.default_rng(zlib.crc32(str(example["key"]).encode()))
        scene = Scene.from_json(example["scene"])
        there = sorted({(o.colour, o.shape) for o in scene.objects})
        for kind in KINDS:
            absent = [pair for pair in _candidates(kind, there) if pair not in there]
            count = min(self.each, len(there), len(absent))
            for answer, pool in (("yes", there), ("no", absent)):
                for i in rng.permutation(len(pool))[:count]:
                    colour, shape = pool[i]
                    question = self.ask.format(thing=noun_phrase(Phrase(colour=colour, shape=shape)))
                    yield {**example, "question": question, "answer": answer, "kind": kind}

    def list_of(self, engine: Engine) -> Sequence[str]:
        return ()

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        return Ranking(candidates=("yes", "no")).answers(engine, examples)

    def constant(self, engine: Engine, answered: AnsweredExamples, texts: Any) -> AnsweredExamples:
        return [(example, dataclasses.replace(answer, text="yes")) for example, answer in answered]

    def outcome(self, engine: Engine, answered: AnsweredExamples) -> Outcome:
        found = super().outcome(engine, answered)
        scores = {"accuracy": found.scores["accuracy"], **binary_scores(answered)}
        for kind in KINDS:
            part = [(e, a) for e, a in answered if e["kind"] == kind]
            if part:
                values = {"accuracy": found.scores[f"accuracy_{kind}"], **binary_scores(part)}
                scores |= {f"{name}_{kind}": values[name] for name in ("accuracy", "f1")}
        answers, true = (np.asarray([yes(e, a) for e, a in answered], float) for yes in (_says_yes, _is_yes))
        of = pictures_of(answered)
        sums = {
            **found.sums,
            "precision": ratio_of(answers * true, answers, of),
            "recall": ratio_of(answers * true, true, of),
        }
        sums |= {"f1": ratio_of(2 * answers * true, answers + true, of), "yes_ratio": mean_of(answers, of)}
        return Outcome(scores, found.items, found.confusion, sums)

    def decoding(self) -> dict[str, Any]:
        return {"prompt": self.ask, "ranking": "yes, no"}


def _says_yes(example: Example, answer: Answer) -> bool:
    return answer.text == "yes"


def _is_yes(example: Example, answer: Answer) -> bool:
    return example["answer"] == "yes"


def binary_scores(answered: AnsweredExamples) -> dict[str, float]:
    """precision, recall, f1 of "yes" (0 where undefined) and yes_ratio, the share of questions answered yes."""
    count = Counter((example["answer"] == "yes", answer.text == "yes") for example, answer in answered)
    hit, false, missed = count[True, True], count[False, True], count[True, False]
    precision = hit / (hit + false) if hit + false else 0.0
    recall = hit / (hit + missed) if hit + missed else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": (hit + false) / max(sum(count.values()), 1),
    }


def _candidates(kind: str, there: list[tuple[str, str]]) -> list[tuple[str, str]]:
    every = [(c, s) for c in graph.COLOURS for s in graph.SHAPES]
    if kind == "popular":  # all pairs that training shows are as frequent; those it never shows are not
        return [pair for pair in every if pair not in graph.HELD_OUT]
    if kind == "adversarial":
        colours, shapes = {c for c, _ in there}, {s for _, s in there}
        return [(c, s) for c, s in every if c in colours or s in shapes]
    return every

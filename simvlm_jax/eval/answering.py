"""Questions with short answers: by a classifier, by generation, by ranking; and how answers are scored."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from simvlm_jax.core.schema import Count
from simvlm_jax.core.trust import buildable
from simvlm_jax.data.transforms import NO_DRAWS, BadExample, answers_of, is_answered, keep_of, most_frequent
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.eval.metrics.bootstrap import mean_of
from simvlm_jax.eval.metrics.vqa import normalise, vqa_accuracy
from simvlm_jax.eval.suite import (
    Answer,
    AnsweredExamples,
    Example,
    Examples,
    Item,
    Outcome,
    Suite,
    best_answer,
    draw_ids,
    filled_in,
    pictures_of,
    probabilities,
)
from simvlm_jax.infer.answered import Answered, counts
from simvlm_jax.infer.engine import Engine
from simvlm_jax.infer.prompts import longest_answer, prompt_width
from simvlm_jax.text.tokenizer import clean

SLICES = ("kind", "answer_type", "domain")
"""Fields whose values cut a data set into slices."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answering(Suite):
    """What suites with short answers share: scores, slices, the confusion of answers.

    question: the field that is asked.
    """

    question: str = "question"

    spells = False
    """Whether capitals are the model's own; an answer of a list stands for all its spellings."""

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.question,)

    def list_of(self, engine: Engine) -> Sequence[str]:
        """The answers that can be given; () where any can, or where they hold every truth."""
        return engine.labels

    def expand(self, example: Example) -> Iterable[Example]:
        if not answers_of(example):
            raise BadExample("the example has no answer")
        return [example]

    def form(self, answer: str) -> str:
        """What of an answer is compared: VQA's normal form."""
        return normalise(answer)

    def accuracy(self, answer: str, people: list[str], truth: str) -> float:
        """Accuracy of an answer, 0 to 1.

        With one of fewer than four people left out, not even an answer that all gave would be wholly right.
        """
        if not self.spells:
            answer = next((p for p in people if p.lower() == answer.lower()), answer)
        return vqa_accuracy(answer, people) if len(people) > 3 else float(self.form(answer) == self.form(truth))

    def outcome(self, engine: Engine, answered: AnsweredExamples) -> Outcome:
        """accuracy: VQA's where four people or more answered, else whether it is (normalised) what most of them said.

        accuracy_<slice>: by the example's kind; and, where some truths are not in the run's answer list, apart for those
        that are (`in_list`) and those that are not (`out_of_list`).
        """
        known = {self.form(a) for a in self.list_of(engine)}
        items: list[Item] = []
        values: list[float] = []
        slices: dict[str, list[int]] = {}
        confusion: Counter[tuple[str, str]] = Counter()
        for example, answer in answered:
            people = answers_of(example)
            truth = most_frequent(people)
            named = not self.spells and not is_answered(example)  # a name of a class, which is compared as it is
            form = clean if named else self.form
            value = float(clean(answer.text) == clean(truth)) if named else self.accuracy(answer.text, people, truth)
            values.append(value)
            listed = {clean(a) for a in self.list_of(engine)} if named else known
            for name in _slices(example, form(truth) in listed if listed else None):
                slices.setdefault(name, []).append(len(values) - 1)
            alike = form(answer.text) == form(truth)
            confusion[truth, truth if alike else answer.text] += 1
            items.append(
                Item(
                    example,
                    answer,
                    str(example.get(self.question, "")),
                    tuple(dict.fromkeys(people)),
                    value > 0.5,
                    (1 - value) * _confidence(answer.score),
                )
            )
        if "out_of_list" not in slices:
            slices.pop("in_list", None)
        pictures = pictures_of(answered)
        sums = {"accuracy": mean_of(values, pictures)}
        for name, at in sorted(slices.items()):
            sums[f"accuracy_{name}"] = mean_of([values[i] for i in at], [pictures[i] for i in at])
        scores = {name: float(np.mean(s.rows[:, 0])) for name, s in sums.items()}
        return Outcome(scores, items, dict(confusion), sums)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes(Answering):
    """What suites share that name a class of the data's own: no question, no list of the run's, no constant control.

    VQA's normal form is VQA's alone: what names a class is compared as it is.
    """

    controls: tuple[str, ...] = ("blind",)

    @property
    def fields(self) -> tuple[str, ...]:
        return ()

    def list_of(self, engine: Engine) -> Sequence[str]:
        return ()

    def form(self, answer: str) -> str:
        """Names of classes are compared as they are: "C" is not "C++", "dog" not "Dog"."""
        return clean(answer)

    def accuracy(self, answer: str, people: list[str], truth: str) -> float:
        return float(self.form(answer) == self.form(truth))


def _slices(example: Example, listed: bool | None) -> Iterable[str]:
    yield from (str(example[k]).replace(" ", "_").replace("/", "_") for k in SLICES if k in example)
    if listed is not None:
        yield "in_list" if listed else "out_of_list"


def _confidence(score: float) -> float:
    """Between 0 and 1, of a probability or a log-likelihood."""
    return float(np.exp(min(score, 0.0))) if score <= 0 else min(score, 1.0) if np.isfinite(score) else 0.5


_ROW = "row for the model"
"""Key of an example under which its row is held until it is evaluated."""


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Answering):
    """A classifier over the run's answer list: VQA by classification, entailment, sentences about two images.

    transforms: how a row is made of an example, as in training but without draws, after the pixels. The last is a Keep with the
    keys that the model gets: without "image" no picture is read, as for premises in words (SimVLM, section 4.3).
    """

    transforms: tuple[Any, ...]

    def __post_init__(self):
        keep_of(self.transforms, type(self).__name__)

    @property
    def reads_images(self) -> bool:
        return "image" in keep_of(self.transforms, type(self).__name__).keys

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        engine.require("classification", "classify")
        out: AnsweredExamples = []
        notes: Counter[str] = Counter()
        for rows, images in examples.chunks(engine.batch_size):
            made = [e.pop(_ROW) for e in rows]
            notes += counts(texts_cut=sum(row["cut"] > 0 for row in made))
            batch = {k: np.stack([row[k] for row in made]) for k in made[0] if k != "cut"}
            if images is not None:
                batch["image"] = images
            likely = probabilities(engine.apply("classification", "classify", batch))
            out += [(e, best_answer(engine.labels, p)) for e, p in zip(rows, likely, strict=True)]
        return Answered(out, notes)

    def expand(self, example: Example) -> Iterable[Example]:
        *before, keep = self.transforms
        for made in super().expand(example):
            row = made
            for transform in before:
                row = transform(row, NO_DRAWS)
            kept = keep(row, NO_DRAWS)
            kept.pop("image", None)  # the pixels come with the examples, which may be blind
            yield {**made, _ROW: {**kept, "cut": row.get("cut", 0)}}


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassHead(Classes):
    """A classifier of pictures alone, over the run's list of classes."""

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        engine.require("classification", "classify")
        out: AnsweredExamples = []
        for rows, images in examples.chunks(engine.batch_size):
            assert images is not None  # this suite is asked with pictures
            likely = probabilities(engine.apply("classification", "classify", {"image": images}))
            out += [(e, best_answer(engine.labels, p)) for e, p in zip(rows, likely, strict=True)]
        return Answered(out, {})


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(Answering):
    """Open-ended answers: the question is the prompt, whatever the model writes is the answer."""

    how: Decoding = Decoding(max_length=8)
    prompt: str = "{}"

    spells = True

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        width = prompt_width(engine.vocabulary, self.how.max_length)
        out: AnsweredExamples = []
        notes: Counter[str] = Counter()
        for rows, images in examples.chunks(engine.batch_size):
            prompts = [filled_in(self.prompt, str(e[self.question])) for e in rows]
            made, noted = engine.generate(images, prompts, draw_ids(rows), self.how, width=width)
            out += [(e, Answer(*best[0], tuple(best))) for e, best in zip(rows, made, strict=True)]
            notes.update(noted)
        return Answered(out, notes)

    def decoding(self) -> dict[str, Any]:
        return {"prompt": self.prompt, **dataclasses.asdict(self.how)}


@buildable("suites")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(Answering):
    """Open-ended answers by likelihood: of the run's answer list, or of `candidates`, the likeliest after the question.

    per_piece: compare the mean likelihood of an answer's pieces, not their sum. shortlist: see decode.rank.
    """

    candidates: Sequence[str] = ()
    prompt: str = "{}"
    shortlist: Count = 0
    per_piece: bool = False

    def list_of(self, engine: Engine) -> Sequence[str]:
        return tuple(self.candidates) or engine.labels

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        candidates = tuple(self.list_of(engine))
        if not candidates:
            raise ValueError("ranking needs answers: set the suite's `candidates`, or config.data.labels.size")
        width = prompt_width(engine.vocabulary, longest_answer(engine.tokenizer, candidates))
        length = np.asarray([len(engine.tokenizer.encode(c)) + 1 for c in candidates])
        out: AnsweredExamples = []
        notes: Counter[str] = Counter()
        for rows, images in examples.chunks(engine.batch_size):
            prompts = [filled_in(self.prompt, str(e[self.question])) for e in rows]
            scores, noted = engine.likelihoods(images, prompts, candidates, self.shortlist, width)
            scores = scores / length if self.per_piece else scores
            out += [(e, best_answer(candidates, s)) for e, s in zip(rows, scores, strict=True)]
            notes.update(noted)
        return Answered(out, notes)

    def decoding(self) -> dict[str, Any]:
        names = ("prompt", "shortlist", "per_piece")
        return {"ranking": list(self.candidates) or "the answer list", **{k: getattr(self, k) for k in names}}

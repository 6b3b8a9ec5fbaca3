"""What every evaluation has: examples that are read once, answers, scores, and items a person can look at."""

import contextlib
import copy
import dataclasses
import hashlib
import string
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from simvlm_jax.core.schema import Count
from simvlm_jax.data.pipeline import TooManyBadExamples
from simvlm_jax.data.source import Source, without_pictures
from simvlm_jax.data.transforms import NO_DRAWS, BadExample, BadTransforms, Pixels, answers_of
from simvlm_jax.eval.metrics.bootstrap import Sums
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine
from simvlm_jax.infer.prefetch import prefetched
from simvlm_jax.run.progress import Countdown

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says of an example. score: its own (log-likelihood, probability). n_best: other hypotheses too."""

    text: str
    score: float = float("nan")
    n_best: tuple[tuple[str, float], ...] = ()


AnsweredExamples = list[tuple[Example, Answer]]


def filled_in(template: str, *given: str, **named: str) -> str:
    """A template with texts in place of "{}" and "{name}"; "{{" is a brace.

    Raises:
      ValueError: a place has another name, or says more (a width, an attribute), which templates of files may not.
    """
    out, rest = [], iter(given)
    for text, field, how, conversion in string.Formatter().parse(template):
        out.append(text)
        if field is None:
            continue
        if how or conversion or (field and field not in named):
            known = ", ".join(["{}", *(f"{{{name}}}" for name in named)])
            raise ValueError(
                f"template {template!r} has a place {{{field}}}, which must be one of {known} and say no more"
            )
        out.append(named[field] if field else next(rest, given[0] if given else ""))
    return "".join(out)


def best_answer(names: Sequence[str], scores: np.ndarray) -> Answer:
    """The answer with the highest score, and the two after it."""
    best = tuple((names[int(i)], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:3])
    return Answer(*best[0], best)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in fp64."""
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Item:
    """One judged answer. right: None where nobody can say. badness: how wrong it is, to find the worst mistakes."""

    example: Example
    answer: Answer
    question: str = ""
    truth: tuple[str, ...] = ()
    right: bool | None = None
    badness: float = 0.0
    claims: tuple[tuple[str, bool], ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Scores of one suite on one split, its items in order, and how often an answer was given for a truth.

    sums: of scores, what each image or question adds to them, for their confidence intervals.
    """

    scores: dict[str, float]
    items: list[Item]
    confusion: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    sums: dict[str, Sums] = dataclasses.field(default_factory=dict)


class Examples:
    """The examples of a source with their pixels, an even spread of `limit` of them (0: all), in order.

    Those that cannot be read or lack one of `fields` are left out, told to `record`, and fatal when there are more than a
    share of `bad`. blind: every pixel is 0. Nothing but the examples of a chunk is held in memory.
    """

    def __init__(
        self,
        split: str,
        source: Source,
        pixels: Pixels | None,
        *,
        fields: Sequence[str] = (),
        limit: int = 0,
        bad: float = 0.05,
        record: Callable[[dict[str, Any]], None] | None = None,
        blind: bool = False,
        expand: Callable[[Example], Iterable[Example]] | None = None,
    ):
        if limit < 0:
            raise ValueError(f"a limit of {limit} examples; name a positive number, or 0 for all")
        count = min(limit, len(source)) if limit else len(source)
        self.indices = [i * len(source) // count for i in range(count)]
        self.split, self.source, self.blind = split, source, blind
        self.fingerprint = ""
        """A hash of every key and of all content, once the examples have been gone through."""
        self.left_out = 0
        """How many could not be read, or lack a field; once they have been gone through."""
        self._pixels, self._fields, self._bad, self._record, self._expand = pixels, fields, bad, record, expand

    def like(self, split: str, source: Source, limit: int = 0) -> "Examples":
        """Examples of another source, read as these are."""
        how: dict[str, Any] = dict(
            fields=self._fields, limit=limit, bad=self._bad, record=self._record, blind=self.blind
        )
        return Examples(split, source, self._pixels, expand=self._expand, **how)

    @property
    def pictured(self) -> bool:
        """Whether the examples come with pictures."""
        return self._pixels is not None

    def unseen(self) -> "Examples":
        """The same examples with every pixel at 0."""
        other = copy.copy(self)
        other.blind = True
        return other

    def chunks(self, size: int) -> Iterator[tuple[list[Example], np.ndarray | None]]:
        """Yields (examples, images [n,M,Y,X,C] or None) of up to `size` examples each; the next ones are read meanwhile."""
        return prefetched(self._chunks(size))

    def _chunks(self, size: int) -> Iterator[tuple[list[Example], np.ndarray | None]]:
        rows: list[Example] = []
        pace = Countdown(f"{self.split}{', blind' if self.blind else ''}", len(self.indices))
        for done, made in self._good():
            rows += made
            while len(rows) >= size:
                yield self._taken(rows[:size])
                rows = rows[size:]
                pace.at(done)
        if rows:
            yield self._taken(rows)
        pace.close()

    def _taken(self, rows: list[Example]) -> tuple[list[Example], np.ndarray | None]:
        if self._pixels is None:
            return rows, None
        images = np.stack([row.pop("image") for row in rows])
        return rows, np.zeros_like(images) if self.blind else images

    def _good(self) -> Iterator[tuple[int, list[Example]]]:
        """(examples read so far, what is asked of one of them) of the good ones; the fingerprint is made on the way."""
        wrong, good, expected = [], 0, 0
        digest = hashlib.sha256()
        for done, i in enumerate(self.indices, 1):
            try:
                raw = self.source[i]
                digest.update(content([str(self.source.key(i)), raw]))
                example = self._read(raw, i)
                if "image" in example:
                    expected = expected or len(example["image"])
                    if len(example["image"]) != expected:
                        raise BadExample(f"it has {len(example['image'])} images, where others have {expected}")
                if seen := [raw[k] for k in ("image", "images") if raw.get(k) is not None]:
                    example["picture"] = hashlib.sha256(content(seen)).hexdigest()[:16]
                made = list(self._expand(example)) if self._expand else [example]
            except BadTransforms:
                raise
            except Exception as e:  # as in the pipeline: people's files fail in any way they like
                wrong.append(f"{self.source.key(i)!r}: {e}")
                digest.update(type(e).__name__.encode())
                if self._record is not None:
                    self._record({"part": self.split, "key": self.source.key(i), "error": f"{type(e).__name__}: {e}"})
                continue
            good += 1
            yield done, made
        self.fingerprint, self.left_out = digest.hexdigest()[:16], len(wrong)
        if not good or len(wrong) > self._bad * len(self.indices):
            last = f"; the last was {wrong[-1]}" if wrong else ""
            raise TooManyBadExamples(
                f"{len(wrong)} of {len(self.indices)} examples of {self.split!r} are bad, over the limit of "
                f"{self._bad:.1%}{last}. Mend the data or raise config.data.quarantine."
            )

    def _read(self, raw: Example, index: int) -> Example:
        example: Example = {**raw, "index": index}
        if missing := [f for f in self._fields if _empty(example.get(f))]:
            raise BadExample(f"the example has no {', '.join(missing)}; it has {sorted(example)}")
        if self._pixels is None:
            return {k: v for k, v in example.items() if k not in ("image", "images")}
        return self._pixels(example, NO_DRAWS)

    def image(self, index: int) -> np.ndarray:
        """The pixels [M,Y,X,C] of one example, as the model got them (or would have, were it not blind)."""
        assert self._pixels is not None
        return self._pixels(self.source[index], NO_DRAWS)["image"]

    def truths(self) -> tuple[str, ...]:
        """All answers in the source, whatever part of it is evaluated, in alphabetical order."""
        found: set[str] = set()
        for i in range(len(self.source)):
            with contextlib.suppress(Exception):  # what cannot be read is told when it is asked about
                found.update(answers_of(without_pictures(self.source, i))[:1])
        return tuple(sorted(found))

    def preprocessing(self) -> dict[str, Any]:
        """How pictures are made ready."""
        if self._pixels is None:
            return {"pixels": "none"}
        fit = self._pixels.fit
        part = repr(fit) if fit is not None else "all of it" if self._pixels.whole else "central square"
        resample = "bicubic" if fit is None else fit.filter
        return {"image_size": self._pixels.size, "part": part, "resample": resample, "blind": self.blind}


def content(value: Any) -> bytes:
    """Bytes that tell one value from another: lengths stand before what they are of."""
    if isinstance(value, dict):
        value = [x for k in sorted(value) for x in (k, value[k])]
    if isinstance(value, list | tuple):
        parts = [content(v) for v in value]
        return b"".join([f"[{len(parts)}".encode(), *(f":{len(p)}:".encode() + p for p in parts)])
    if isinstance(value, bytes):
        return value
    return value.tobytes() if hasattr(value, "tobytes") else f"{type(value).__name__}{value}".encode()


def _empty(value: Any) -> bool:
    return value is None or (hasattr(value, "__len__") and not len(value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """One way to examine a model; it never knows which.

    Args:
      path, splits: data of its own, {name: split}; by default what the run evaluates on.
      limit: examples a split, 0 for those of the config.
    """

    path: str = ""
    splits: dict[str, str] = dataclasses.field(default_factory=dict)
    limit: Count = 0

    fields = ("image",)
    """Fields an example must have."""
    controls: tuple[str, ...] = ("blind", "constant")
    """What to compare with, on the first split: the image zeroed; always the same answer."""

    @property
    def reads_images(self) -> bool:
        """Whether the examples need their pixels."""
        return True

    def expand(self, example: Example) -> Iterable[Example]:
        """The examples asked of one example of the data."""
        return [example]

    def answers(self, engine: Engine, examples: Examples) -> Answered[AnsweredExamples]:
        """Answers of the model, and notes that belong beside their scores: what was cut, which classes there were."""
        raise NotImplementedError

    def constant(
        self, engine: Engine, answered: AnsweredExamples, texts: Callable[[], Sequence[str]]
    ) -> AnsweredExamples:
        """The same answer to every example: the most frequent one in training. texts: gives texts of the training data."""
        return [(example, Answer(engine.labels[0])) for example, _ in answered] if engine.labels else []

    def outcome(self, engine: Engine, answered: AnsweredExamples) -> Outcome:
        """Scores of the answers."""
        raise NotImplementedError

    def decoding(self) -> dict[str, Any]:
        """How answers are made, for the provenance of scores."""
        return {}


def pictures_of(answered: AnsweredExamples) -> list[Any]:
    """The picture that each answer is about, by its content; an example without one stands for itself."""
    return [e.get("picture", e.get("index", -1 - i)) for i, (e, _) in enumerate(answered)]


def draw_ids(examples: Sequence[Example]) -> np.ndarray:
    """Numbers [N] that choose each example's draws: they depend on its key alone, not on the batch or the limit."""
    return np.asarray([zlib.crc32(str(e["key"]).encode("utf-8", "surrogatepass")) for e in examples], np.int64)

"""What a config does to an example on its way into a batch. A transform is `(example, rng) -> example`.

All random draws that the sample sequence promises are made here, from an rng that depends on the global index alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np

from simvlm_jax.core.schema import Meta, Positive, Share, Sides
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import sides_of
from simvlm_jax.data.fit import Fit
from simvlm_jax.data.images import decode, random_box, resize
from simvlm_jax.data.scenes.tasks import premise
from simvlm_jax.text.padding import pad_rows
from simvlm_jax.text.tokenizer import Tokenizer, clean

Example = dict[str, Any]


NO_DRAWS: Any = None
"""The rng of transforms that draw nothing."""


class BadExample(ValueError):
    """An example that cannot be used; the message says why."""


class BadTransforms(ValueError):
    """A list of transforms that makes no row of any example, unlike BadExample no fault of the data; the message has the mend."""


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class Keep:
    """The row: the keys of an example that go into a batch. Every list of transforms ends with one, and nothing else decides.

    keys: see core.types.Batch for those that models read. `id` and `weight` are added by the pipeline.

    Raises:
      BadTransforms: no keys, one twice or one of the pipeline's; or, of an example, one that is not there or is no number
        or array of numbers.
    """

    keys: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, "keys", tuple(self.keys))
        if not self.keys or len(set(self.keys)) < len(self.keys) or set(self.keys) & {"id", "weight"}:
            raise BadTransforms(
                f"Keep(keys={self.keys}): name each key once, at least one, and neither id nor weight (the pipeline makes them)"
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        row = {}
        for key in self.keys:
            if key not in example:
                raise BadTransforms(
                    f"Keep names the key {key!r}, which no transform before it makes and the data does not have; there are "
                    f"{', '.join(sorted(example))}. Add the transform that makes it, or take it out of Keep's keys"
                )
            row[key] = np.asarray(example[key])
            if row[key].dtype.kind not in "biuf":
                raise BadTransforms(
                    f"Keep names the key {key!r}, which is {type(example[key]).__name__} as the data has it; add a transform "
                    f"that makes numbers of it (Label, Tokenize, Pixels, ...), or take it out of Keep's keys"
                )
        return row


def keep_of(transforms: Sequence[Any], name: str) -> Keep:
    """The Keep that a list of transforms ends with.

    name: of the part or suite, for the error.

    Raises:
      BadTransforms: the list ends with another transform, or is empty.
    """
    last = transforms[-1] if transforms else None
    if not isinstance(last, Keep):
        why = f"end with {type(last).__name__}" if transforms else "are none"
        raise BadTransforms(
            f"the transforms of {name!r} {why}, so nothing says what a row holds; end them with Keep, as in "
            '`spec("simvlm_jax.data.transforms:Keep", keys=("image", "text", "text_mask"))`'
        )
    return last


@buildable("transforms", "pixels")
@dataclasses.dataclass(frozen=True)
class Pixels:
    """`image` bytes, or several `images`, to uint8 [M,size,size,3].

    The central square (or of a size of rows and columns, a region of its shape), or a random one of at least `smallest` of its area;
    with `whole` all of the picture, squeezed. fit: another way, of a released model. mirror: share of images turned left to
    right; texts that say "left" or "right" are then wrong.
    """

    size: Sides
    smallest: Annotated[float, Meta(gt=0, le=1)] = 1.0
    mirror: Share = 0.0
    whole: bool = False
    fit: Fit | None = None

    def __post_init__(self):
        if self.smallest < 1 and (self.whole or self.fit is not None):
            raise ValueError(f"{self}: a picture is taken whole or cropped; set one of whole (or fit) and smallest")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        given = example["images"] if "images" in example else [example["image"]] if "image" in example else []
        if not len(given):
            raise BadExample("the example has no image")
        made = [self._one(image, rng) for image in given]
        return {**{k: v for k, v in example.items() if k != "images"}, "image": np.stack(made)}

    def _one(self, encoded: bytes, rng: np.random.Generator) -> np.ndarray:
        size = sides_of(self.size)
        if self.fit is not None:
            pixels = self.fit(decode(encoded), size)
        else:
            image = decode(encoded, at_least=max(size))
            box = random_box(*image.size, self.smallest, rng, size) if self.smallest < 1 else None
            pixels = resize(image, size, (0, 0, *image.size) if self.whole else box)
        if self.mirror and rng.random() < self.mirror:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return pixels


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class ChooseCaption:
    """One of `captions`, drawn at random, becomes `text`."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        captions = [c for c in example.get("captions", ()) if c.strip()]
        if not captions:
            raise BadExample("the example has no caption")
        return {**example, "text": captions[int(rng.integers(len(captions)))]}


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class Tokenize:
    """A text field to int32 ids [T]: pieces, EOS, padding. A text that is cut has no EOS, for it does not end there.

    `cut`: how many pieces are lost, here and in what follows.
    """

    tokenizer: Tokenizer
    field: str = "text"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        ids = _encode(self.tokenizer, example, self.field)
        v = self.tokenizer.vocabulary
        row = _row(self.tokenizer, [*ids, v.eos])
        return {**example, **row, "cut": np.int32(max(len(ids) + 1 - v.length, 0))}


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class TokenizePair:
    """A prompt field and an answer field to one text: the prompt's pieces are the prefix, the answer's and EOS are predicted.

    Where several people answered, the answer is that of most. A prompt too long for the text loses its beginning, so that
    the answer stays; an answer that does not fit is an error.
    """

    tokenizer: Tokenizer
    prompt: str = "question"
    answer: str = "answer"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        v = self.tokenizer.vocabulary
        if self.answer not in example and (people := answers_of(example)):
            example = {**example, self.answer: most_frequent(people)}
        answer = [*_encode(self.tokenizer, example, self.answer), v.eos]
        if len(answer) > v.length:
            raise BadExample(f"the {self.answer} is {len(answer)} pieces, more than the text length of {v.length}")
        prompt = _encode(self.tokenizer, example, self.prompt)
        cut = max(len(prompt) + len(answer) - v.length, 0)
        row = _row(self.tokenizer, [*prompt[cut:], *answer])
        return {**example, **row, "prefix_length": np.int32(len(prompt) - cut), "cut": np.int32(cut)}


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class Prompt:
    """`prompt`, the same words before every text, such as "a picture of": TokenizePair makes them the prefix, which is given."""

    text: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, "prompt": self.text}


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class TokenizeAfter:
    """A text after a first part of `slots`, which holds the premise of an example of `scenes/entail`, or nothing.

    The text begins at the same slot whether its premise is read or seen, so that a model that was taught on read ones can
    be asked about seen ones (SimVLM, section 4.3). The first part is the prefix.
    """

    tokenizer: Tokenizer
    slots: Positive
    field: str = "hypothesis"
    read: bool = True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        v = self.tokenizer.vocabulary
        first = self.tokenizer.encode(premise(example["scene"], example["curtain"])) if self.read else []
        if len(first) > self.slots:
            raise BadExample(f"the premise is {len(first)} pieces, more than the {self.slots} it has room in")
        ids, room = [*_encode(self.tokenizer, example, self.field), v.eos], v.length - self.slots
        after = _row(self.tokenizer, ids, room)
        before = _row(self.tokenizer, first, self.slots)
        row = {k: np.concatenate([before[k], after[k]]) for k in before}
        return {**example, **row, "prefix_length": np.int32(self.slots), "cut": np.int32(max(len(ids) - room, 0))}


def _encode(tokenizer: Tokenizer, example: Example, field: str) -> list[int]:
    if "pieces" in example:
        raise BadTransforms(
            "Tokenize has no text in a packed example, whose `pieces` are tokens; give its part the transforms "
            "parts.packed_transforms(), or set packed=False"
        )
    if field not in example:
        raise BadExample(f"the example has no {field!r}; it has {sorted(example)}")
    ids = tokenizer.ids_of(str(example[field]))
    if not ids:
        raise BadExample("the text is empty" if field == "text" else f"the {field} is empty")
    return ids


def _row(tokenizer: Tokenizer, ids: list[int], length: int = 0) -> dict[str, np.ndarray]:
    """ids [length] (by default T), cut or padded, and their mask."""
    text, mask = pad_rows([ids], length or tokenizer.vocabulary.length, tokenizer.vocabulary.pad)
    return {"text": text[0], "text_mask": mask[0]}


def _with_prefix(example: Example, length_of: Callable[[np.ndarray], np.int32]) -> Example:
    """The example with `prefix_length`; of a packed row [T], where each slot has that of its text.

    length_of: the prefix length of a text, given by the mask [T] of its slots.
    """
    if "segment" not in example:
        return {**example, "prefix_length": length_of(example["text_mask"])}
    segment = example["segment"]
    length = np.zeros_like(segment)
    for text in (segment == number for number in range(segment.max() + 1)):
        length[text] = length_of(text)
    return {**example, "prefix_length": length}


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class DrawPrefix:
    """`prefix_length`, uniform over [0, pieces]: the EOS at least is left to predict (SimVLM, section 3.1).

    Of a packed row it is [T]: each slot has that of its text, drawn for each text by itself.

    empty: share of texts whose prefix holds nothing on purpose, as when captioning.
    """

    empty: Share = 0.0

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return _with_prefix(example, lambda text: self._drawn(text, rng))

    def _drawn(self, pieces: np.ndarray, rng: np.random.Generator) -> np.int32:
        length = rng.integers(int(pieces.sum()))
        return np.int32(0 if rng.random() < self.empty else length)


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class FixPrefix:
    """`prefix_length` 0, or with `whole` all pieces but EOS: the text goes to a model's decoder, or to its encoder.

    Of a packed row it is [T]: each slot has that of its text.
    """

    whole: bool = False

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return _with_prefix(example, lambda text: np.int32(text.sum() - 1 if self.whole else 0))


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class Label:
    """`label`: the place of the most frequent answer in the run's list of answers, -1 if it is not there.

    Answers to questions count whatever their capitals; names of classes (examples with a `label` alone) as they are.

    soft: where several people answered, `scores` [A] too: 0.3 for each who gave an answer, at most 1, as VQA counts.
    """

    labels: tuple[str, ...]
    soft: bool = False

    def __post_init__(self):
        object.__setattr__(self, "_place", {name: i for i, name in enumerate(self.labels)})
        object.__setattr__(self, "_folded", {name.lower(): i for i, name in reversed([*enumerate(self.labels)])})

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        given = answers_of(example)
        if not given:
            raise BadExample("the example has no answer")
        places = self._folded if is_answered(example) else self._place
        given = [a.lower() for a in given] if is_answered(example) else given
        row: Example = {"label": np.int32(places.get(most_frequent(given), -1))}
        if self.soft:
            scores = np.zeros(len(self.labels), np.float32)
            for answer in given:
                if answer in places:
                    scores[places[answer]] += 0.3 if len(given) > 1 else 1.0
            row["scores"] = np.minimum(scores, 1)
        return {**example, **row}


def is_answered(example: Example) -> bool:
    """Whether an example's truth is what people answered, and not the name of a class."""
    return example.get("answers") is not None or example.get("answer") is not None


def answers_of(example: Example) -> list[str]:
    """What people answered to an example: `answers`, or the one `answer` or `label`, as text."""
    given = example.get("answers")
    if given is None:
        given = [example[k] for k in ("answer", "label") if example.get(k) is not None][:1]
    given = [a.get("answer") if isinstance(a, dict) else a for a in given]
    found = [str(a).lower() if isinstance(a, bool | np.bool_) else a for a in given if a is not None]
    return [a for a in (clean(a if isinstance(a, bytes) else str(a)) for a in found) if a]


def most_frequent(answers: list[str]) -> str:
    """The answer most people gave, whatever its capitals; the first of them where several are."""
    alike = [a.lower() for a in answers]
    return max(answers, key=lambda a: alike.count(a.lower()))


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class DrawSeed:
    """`seed`, for draws whose layout a model makes itself (span corruption)."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, "seed": np.uint32(rng.integers(2**32))}

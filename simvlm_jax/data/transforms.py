"""What a config does to an example on its way into a batch. A transform is `(example, rng) -> example`.

All random draws that the sample sequence promises are made here, from an rng that depends on the global index alone.
"""

import dataclasses
from typing import Any

import numpy as np

from simvlm_jax.data.images import decode, random_box, resize
from simvlm_jax.text.tokenizer import Tokenizer, clean

Example = dict[str, Any]


class BadExample(ValueError):
    """An example that cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """`image` bytes to uint8 [1,size,size,3]: the central square, or a random one of at least `smallest` of its area.

    mirror: share of images turned left to right; captions that say "left" or "right" are then wrong.
    """

    size: int
    smallest: float = 1.0
    mirror: float = 0.0

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if "image" not in example:
            raise BadExample("the example has no image")
        image = decode(example["image"], at_least=self.size)
        box = random_box(*image.size, self.smallest, rng) if self.smallest < 1 else None
        pixels = resize(image, self.size, box)
        if self.mirror and rng.random() < self.mirror:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return {**example, "image": pixels[None]}


@dataclasses.dataclass(frozen=True)
class ChooseCaption:
    """One of `captions`, drawn at random, becomes `text`."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        captions = [c for c in example.get("captions", ()) if c.strip()]
        if not captions:
            raise BadExample("the example has no caption")
        return {**example, "text": captions[int(rng.integers(len(captions)))]}


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """`text` to int32 ids [T]: pieces, EOS, padding. A text that is cut has no EOS, for it does not end there."""

    tokenizer: Tokenizer

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        v = self.tokenizer.vocabulary
        ids = self.tokenizer.encode(clean(example.get("text", "")))
        if not ids:
            raise BadExample("the text is empty")
        ids = [*ids, v.eos][: v.length]
        text = np.full(v.length, v.pad, np.int32)
        text[: len(ids)] = ids
        return {**example, "text": text, "text_mask": np.arange(v.length) < len(ids)}


@dataclasses.dataclass(frozen=True)
class DrawPrefix:
    """`prefix_length`, uniform over [0, pieces]: the EOS at least is left to predict (SimVLM, section 3.1).

    empty: share of examples whose prefix holds no text on purpose, as when captioning.
    """

    empty: float = 0.0

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        length = rng.integers(int(example["text_mask"].sum()))
        return {**example, "prefix_length": np.int32(0 if rng.random() < self.empty else length)}


@dataclasses.dataclass(frozen=True)
class DrawSeed:
    """`seed`, for draws whose layout a model makes itself (span corruption)."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, "seed": np.uint32(rng.integers(2**32))}

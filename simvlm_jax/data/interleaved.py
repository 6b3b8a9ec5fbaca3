"""Rows of texts and images in any order: each image takes P slots among the pieces of the texts.

`image_index` [T] int32 says what stands in a slot: -1 a piece of text (or padding), m * P + p token p of the row's image m, so that
one gather puts image tokens in place. Requests of a trained run are laid out in the same way (infer/requests.py).
"""

import dataclasses
from typing import Any

import numpy as np

from simvlm_jax.core.schema import Positive
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import sides_of
from simvlm_jax.data.transforms import BadExample, Example, Pixels
from simvlm_jax.text.padding import pad_rows
from simvlm_jax.text.tokenizer import Tokenizer, clean


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class SplitAtImages:
    """`parts`, texts and encoded images in their order, from a text with a mark for each of the example's images.

    Args:
      mark: stands where an image does.
      field: of the text.

    Raises:
      BadExample: there are more marks than images, or fewer.
    """

    mark: str = "<image>"
    field: str = "text"

    def __post_init__(self):
        if not self.mark:
            raise ValueError("SplitAtImages needs a mark that is not empty, such as '<image>'")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        images = example["images"] if "images" in example else [example["image"]] if "image" in example else []
        texts = str(example.get(self.field, "")).split(self.mark)
        if len(texts) - 1 != len(images):
            raise BadExample(
                f"the {self.field} has {len(texts) - 1} of {self.mark!r}, and there are {len(images)} images"
            )
        parts: list[Any] = [texts[0]]
        for image, text in zip(images, texts[1:], strict=True):
            parts += [image, text]
        return {**example, "parts": [p for p in parts if not isinstance(p, str) or clean(p)]}


@buildable("transforms")
@dataclasses.dataclass(frozen=True)
class Interleave:
    """One row of `parts`, a list of texts (str) and encoded images (bytes) in any order; EOS ends it.

    Makes `text` [T] (the id under an image token is padding's), `text_mask` [T] (all that stands there), `target_mask` [T] (pieces
    and EOS: image tokens are never predicted), `image_index` [T], `image` [M,Y,X,C] and `image_mask` [M]. What does not fit into T
    slots or M images is left out from there on: a text is cut anywhere (and has no EOS), an image only whole.

    Args:
      tokenizer: of the run; its `length` is T.
      pixels: how images are made ready.
      images: most images per row, M. Rows with fewer have black ones, whose mask is false.
      tokens: slots an image takes, P: as many as the model makes of one.

    Raises:
      BadExample: no parts, one that is neither text nor image, or none that fits.
    """

    tokenizer: Tokenizer
    pixels: Pixels
    images: Positive
    tokens: Positive

    def __post_init__(self):
        if self.tokens > self.tokenizer.vocabulary.length:
            raise ValueError(
                f"an image takes {self.tokens} slots, and a row has {self.tokenizer.vocabulary.length}; raise config.text.length"
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        v, P = self.tokenizer.vocabulary, self.tokens
        ids: list[int] = []
        index: list[int] = []
        kept: list[bytes] = []
        lost = 0
        for part in example.get("parts", ()):
            if isinstance(part, str):
                pieces = self.tokenizer.ids_of(part)
                taken = pieces[: 0 if lost else v.length - len(ids)]
                ids, index = [*ids, *taken], [*index, *[-1] * len(taken)]
                lost += len(pieces) - len(taken)
            elif isinstance(part, bytes):
                if lost or len(ids) + P > v.length or len(kept) == self.images:
                    lost += P
                    continue
                ids, index = [*ids, *[v.pad] * P], [*index, *range(len(kept) * P, (len(kept) + 1) * P)]
                kept.append(part)
            else:
                raise BadExample(f"a part is {type(part).__name__}, neither a text nor the bytes of an image")
        if not ids:
            raise BadExample("the example has no parts that fit a row")
        if not lost and len(ids) < v.length:
            ids, index = [*ids, v.eos], [*index, -1]
        elif not lost:
            lost = 1  # the EOS
        text, mask = pad_rows([ids], v.length, v.pad)
        places, _ = pad_rows([index], v.length, -1)
        row = {
            "text": text[0],
            "text_mask": mask[0],
            "target_mask": mask[0] & (places[0] < 0),
            "image_index": places[0],
        }
        image = np.zeros((self.images, *sides_of(self.pixels.size), 3), np.uint8)
        if kept:
            image[: len(kept)] = self.pixels({"images": kept}, rng)["image"]
        rest = {k: v for k, v in example.items() if k not in ("images", "parts")}
        return {**rest, **row, "image": image, "image_mask": np.arange(self.images) < len(kept), "cut": np.int32(lost)}

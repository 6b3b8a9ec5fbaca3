"""How a picture becomes so many rows and columns of pixels: the ways of released models, equal to their own preprocessing.

Pillow resizes 8-bit pixels to 8-bit pixels here as there. What comes after (to [0, 1], minus a mean, over a deviation) is the
model's, on its device.
"""

import dataclasses
from typing import Literal

import numpy as np
from PIL import Image

from simvlm_jax.core.schema import Count
from simvlm_jax.core.trust import buildable

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Ways = Literal["whole", "shorter", "longer", "pad"]


@buildable("fit")
@dataclasses.dataclass(frozen=True)
class Fit:
    """A way to fit a picture.

    Args:
      how: "whole" (all of it, squeezed: SigLIP, ViT; with a `side` to a square of that, whose centre is cut out: DeiT), "shorter"
        (the shorter side is resized to `side`, and the centre cut out: CLIP), "longer" (the longer side is resized, and the rest
        filled: open_clip's "longest") or "pad" (filled up to a square, then resized: LLaVA).
      side: pixels of the (shorter) side before a cut; 0: that of the result.
      filter: a name in FILTERS.
      fill: of what is filled up, 0 to 255 a channel.
      rounding: where a cut begins that falls between two pixels: "down" (transformers) or "even" (torchvision: to the even one). Where
        less than the cut is there, the wider margin is then before it (transformers), or after it.
    """

    how: Ways = "whole"
    side: Count = 0
    filter: str = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
    rounding: Literal["down", "even"] = "down"

    def __post_init__(self):
        if self.filter not in FILTERS:
            raise ValueError(f"filter {self.filter!r} is not one of {', '.join(FILTERS)}")
        object.__setattr__(self, "fill", tuple(self.fill))

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """uint8 [Y,X,3] of an RGB picture; size: (Y, X)."""
        Y, X = size
        if self.how == "whole" and not self.side:
            return self._resized(image, X, Y)
        if self.how == "pad":
            side = max(image.size)
            corner = (side - image.width) // 2, (side - image.height) // 2
            return self._resized(self._filled(image, (side, side), corner), X, Y)
        if self.how == "longer":
            scale = min(X / image.width, Y / image.height)
            width, height = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
            inner = Image.fromarray(self._resized(image, width, height))
            return np.asarray(self._filled(inner, (X, Y), ((X - width) // 2, (Y - height) // 2)))
        side = self.side or min(Y, X)
        width, height = (side, side) if self.how == "whole" else scaled(image.size, side)
        made = self._resized(image, width, height)
        if width < X or height < Y:
            missing = max(X - width, 0), max(Y - height, 0)
            corner = (self._margin(missing[0]), self._margin(missing[1]))
            made = np.asarray(self._filled(Image.fromarray(made), (max(X, width), max(Y, height)), corner))
        left, top = self._half(max(width - X, 0)), self._half(max(height - Y, 0))
        return made[top : top + Y, left : left + X]

    def _resized(self, image: Image.Image, width: int, height: int) -> np.ndarray:
        return np.asarray(image.resize((width, height), FILTERS[self.filter]))

    def _filled(self, image: Image.Image, size: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
        canvas = Image.new("RGB", size, self.fill)
        canvas.paste(image, corner)
        return canvas

    def _margin(self, pixels: int) -> int:
        return -(-pixels // 2) if self.rounding == "down" else pixels // 2

    def _half(self, pixels: int) -> int:
        return pixels // 2 if self.rounding == "down" else round(pixels / 2)


def scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of a picture whose shorter side becomes `side`; the longer one is rounded down."""
    width, height = size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side

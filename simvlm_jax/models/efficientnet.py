"""EfficientNet (Tan & Le, arXiv 1905.11946) in its lite form: inverted bottlenecks without squeeze-and-excitation, ReLU6.

One idea: depth, width and resolution grow together. Images [B,1,Y,X,C] pass a stem, seven stages of inverted bottlenecks (a 1x1
convolution to `expand` times the channels, a depthwise one, and a 1x1 back; Sandler et al., arXiv 1801.04381) and a 1x1 head,
whose mean over places [B,D] is the image's vector. The lite networks (Google, 2020) drop what phones are slow at, keep ReLU at 6,
and scale neither stem, head, nor the depth of the first and the last stage.

Norms use the statistics that came with the weights (nn.batch_norm), in training too.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import Count, Positive
from simvlm_jax.core.trust import buildable
from simvlm_jax.families.dual_encoder import normalised
from simvlm_jax.families.image_classifier import Channels, ImageClassifier
from simvlm_jax.nn.batch_norm import BatchNorm
from simvlm_jax.nn.block import drop_branch
from simvlm_jax.nn.conv_stem import Conv
from simvlm_jax.nn.linear import Linear
from simvlm_jax.nn.sizes import statistics_dtype

EPSILON = 1e-3
Stage = tuple[int, int, int, int, int]
"""Kernel, stride, expansion, channels and blocks."""
LITE0: tuple[Stage, ...] = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
PIXELS = ((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255))


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """A row of SIZES.

    Args:
      stages: of each, kernel, stride, expansion, channels and blocks. stem, head: channels. mean, deviation: of pixels in [0, 1].
    """

    stages: tuple[Stage, ...] = LITE0
    stem: Positive = 32
    head: Count = 1280
    mean: Channels = PIXELS[0]
    deviation: Channels = PIXELS[1]


def lite(width: float, depth: float) -> Sizes:
    """Sizes by factors of width and depth (section 3.3)."""

    def channels(n: int) -> int:
        near = max(8, int(n * width + 4) // 8 * 8)
        return near + 8 if near < 0.9 * n * width else near

    last = len(LITE0) - 1
    stages = tuple(
        (k, s, e, channels(c), n if i in (0, last) else math.ceil(n * depth)) for i, (k, s, e, c, n) in enumerate(LITE0)
    )
    return Sizes(stages)


SIZES = {
    "lite0": Sizes(),
    "lite1": lite(1.0, 1.1),
    "lite2": lite(1.1, 1.2),
    "lite3": lite(1.2, 1.4),
    "lite4": lite(1.4, 1.8),
}


def relu6(x: jax.Array) -> jax.Array:
    """The positive part, at most 6."""
    return jnp.clip(x, 0, 6)


class InvertedBottleneck(nn.Module):
    """[B,Y,X,C] -> [B,Y/stride,X/stride,channels], plus the input where it has the shape."""

    channels: int
    kernel: int
    stride: int
    expand: int
    dtype: jnp.dtype
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C, inner = x.shape[-1], x.shape[-1] * self.expand
        h = x
        if self.expand > 1:
            h = relu6(self._norm("expand_norm", Conv(inner, 1, 1, self.dtype, name="expand")(h)))
        h = Conv(inner, self.kernel, self.stride, self.dtype, depthwise=True, name="depthwise")(h)
        h = relu6(self._norm("depthwise_norm", h))
        h = self._norm("project_norm", Conv(self.channels, 1, 1, self.dtype, name="project")(h))
        if self.stride > 1 or self.channels != C:
            return h
        if self.drop_path and self.has_rng("dropout"):
            h = drop_branch(self.make_rng("dropout"), h, self.drop_path)
        return x + h

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return BatchNorm(self.dtype, EPSILON, name=name)(x)


class Network(nn.Module):
    """Stem, stages and head."""

    model: "EfficientNet"

    def setup(self):
        m, s = self.model, self.model.sizes
        dtype = m.compute.activation_dtype
        self.stem, self.stem_norm = Conv(s.stem, 3, 2, dtype), BatchNorm(dtype, EPSILON)
        block = m.compute.rematerialised(InvertedBottleneck)
        self.blocks = [
            block(channels, kernel, stride if j == 0 else 1, expand, dtype, m.drop_path, name=f"stage_{i}_block_{j}")
            for i, (kernel, stride, expand, channels, depth) in enumerate(s.stages)
            for j in range(depth)
        ]
        self.top, self.top_norm = Conv(s.head, 1, 1, dtype), BatchNorm(dtype, EPSILON)
        self.drop = nn.Dropout(m.dropout)
        if m.classes:
            self.head = Linear(m.classes, statistics_dtype(dtype), bias=True, out="A")

    def maps(self, pixels: jax.Array) -> jax.Array:
        """What the head averages, [B,Y/32,X/32,D]."""
        s = self.model.sizes
        x = normalised(pixels, (s.mean, s.deviation)).astype(self.model.compute.activation_dtype)
        x = relu6(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return relu6(self.top_norm(self.top(x)))

    def pooled(self, pixels: jax.Array) -> jax.Array:
        x = self.maps(pixels)
        return x.astype(statistics_dtype(x.dtype)).mean((1, 2))

    def logits(self, pixels: jax.Array) -> jax.Array:
        return self.head(self.drop(self.pooled(pixels), deterministic=not self.has_rng("dropout")))

    def everything(self, pixels: jax.Array):
        """Touches every parameter once, to make them."""
        return self.logits(pixels) if self.model.classes else self.pooled(pixels)


@buildable("model")
@dataclasses.dataclass(frozen=True)
class EfficientNet(ImageClassifier):
    """An EfficientNet-lite by size."""

    SIZES = SIZES
    network_class = Network

    size: str | Sizes = "lite0"

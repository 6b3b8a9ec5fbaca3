"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., arXiv 2103.00020).

One idea: of all images and texts of a batch, which belong together? Two towers, their last states mapped linearly to one
space without bias (section 2.3), cosines times a learned temperature, a softmax over texts and one over images (figure 3).

Images [B,1,Y,X,C] and texts of T pieces become unit vectors [B,E]. The image tower is a ViT with a class token and a norm
before its first block, or the authors' ResNet (nn/resnet.py); the text tower is causal and gives its state at EOS. Pieces are
preceded by BOS, so that the paper's 76 pieces are 77 positions; a text that is cut still ends in EOS.

What differs, knowingly: parameters start as everywhere in this library (the authors scale those of residual outputs by
(2 layers)^-1/2), and ResNets are normalised by group, unless their weights come with batch statistics.

The temperature is not to pass 100 (section 2.5): the configs say so to the optimizer (`bounds`), as the authors do it, after
the update.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import Rate
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Batch, Extra, Features, Params, Rngs, Term
from simvlm_jax.families.dual_encoder import DualEncoder, DualNetwork, Scale, normalised, unit
from simvlm_jax.nn.conv_stem import TINY_STEM, ConvStemSize
from simvlm_jax.nn.linear import Linear
from simvlm_jax.nn.resnet import AttentionResNet, ResNetSize
from simvlm_jax.nn.sizes import TOWERS, Size, Style
from simvlm_jax.nn.text import TextTower
from simvlm_jax.nn.vit import ViT
from simvlm_jax.objectives.contrastive import softmax_pairs

STYLE = Style("quick_gelu", epsilon=1e-5, key_bias=True)
PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """A row of SIZES: image tower and patch, text tower, E, and a conv stem in place of plain patches, where a model is to learn
    in minutes.

    activation, epsilon: of both towers, where others than the authors trained them ("gelu_exact" of most of open_clip's). mean,
    deviation: of pixels in [0, 1].
    """

    image: Size | ResNetSize
    patch: int
    text: Size
    width: int
    stem: ConvStemSize | None = None
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    mean: tuple[float, float, float] = PIXELS[0]
    deviation: tuple[float, float, float] = PIXELS[1]


SIZES = {  # tables 19 and 20
    "tiny": Sizes(TOWERS["tiny"], 16, TOWERS["tiny"], 128, TINY_STEM),
    "B/32": Sizes(TOWERS["B"], 32, TOWERS["512"], 512),
    "B/16": Sizes(TOWERS["B"], 16, TOWERS["512"], 512),
    "L/14": Sizes(TOWERS["L"], 14, TOWERS["768"], 768),
    "RN50": Sizes(ResNetSize(64, (3, 4, 6, 3), 32), 32, TOWERS["512"], 1024),
    "RN101": Sizes(ResNetSize(64, (3, 4, 23, 3), 32), 32, TOWERS["512"], 512),
    "RN50x4": Sizes(ResNetSize(80, (4, 6, 10, 6), 40), 32, TOWERS["640"], 640),
    "RN50x16": Sizes(ResNetSize(96, (6, 8, 18, 8), 48), 32, TOWERS["768"], 768),
    "RN50x64": Sizes(ResNetSize(128, (3, 15, 36, 10), 64), 32, TOWERS["1024"], 1024),
}


class Network(DualNetwork):
    """The two towers and their projections."""

    model: "CLIP"

    def setup(self):
        m = self.model
        image, text, dtype = m.sizes.image, m.sizes.text, m.compute.activation_dtype
        width = m.sizes.width
        style = dataclasses.replace(STYLE, activation=m.sizes.activation, epsilon=m.sizes.epsilon)
        if isinstance(image, ResNetSize):
            self.image_tower = AttentionResNet(image, m.image_size, width, m.compute)
        else:
            self.image_tower = ViT(
                image,
                m.sizes.patch,
                m.image_size,
                m.compute,
                pre_norm=True,
                patch_bias=False,
                style=style,
                stem=m.sizes.stem,
            )
            self.image_projection = Linear(width, dtype)
        self.text_tower = TextTower(text, m.vocabulary.size, m.text_length, m.compute, style=style)
        self.text_projection = Linear(width, dtype)
        self.logit_scale = Scale(math.log(1 / 0.07))

    def pooled(self, pixels: jax.Array):
        return self.image_tower(normalised(pixels, (self.model.sizes.mean, self.model.sizes.deviation)))

    def image(self, pixels: jax.Array):
        pooled = self.pooled(pixels)
        return unit(pooled if isinstance(self.model.sizes.image, ResNetSize) else self.image_projection(pooled))


@buildable("model")
@dataclasses.dataclass(frozen=True)
class CLIP(DualEncoder):
    """CLIP by size.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the longest text, T.
      image_size: pixels.
      size: a row of SIZES.
      positives: "" for pairs alone, or "label": rows of one class are each other's positives (label -1 is no class).
      smoothing: share of the target spread over the batch.
      compute: dtype, remat, scan.
    """

    SIZES = SIZES
    network_class = Network

    size: str | Sizes = "tiny"
    positives: str = ""
    smoothing: Rate = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.positives not in ("", "label"):
            raise ValueError(f"CLIP positives {self.positives!r} is neither '' nor 'label'")

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        features, terms, aux = super().per_example(params, extra, batch, rngs=rngs, step=step, train=train)
        if self.positives:
            rows = self.pairs(batch)
            if "label" not in rows:
                raise ValueError(
                    "CLIP with positives='label' needs rows with a label: add transforms.Label and keep `label` in "
                    "config.data.parts.pairs.transforms, and set config.data.labels.size"
                )
            label = jnp.asarray(rows["label"])
            alone = -1 - jnp.asarray(rows["id"]).astype(label.dtype)  # a class unknown is no class
            group = jnp.where(label < 0, alone, label)
            features = {k: {**v, "group": group} for k, v in features.items()}
        return features, terms, aux

    def across_batch(self, params: Params, extra: Extra, features: Features, *, step: Array, train: bool):
        """Half the sum of both directions' cross-entropies."""
        found = softmax_pairs(
            self.apply(params, "scale"), features["image"], features["text"], smoothing=self.smoothing
        )
        aux = {
            "image_accuracy": Term(found.image_right, found.count),
            "text_accuracy": Term(found.text_right, found.count),
        }
        return self.with_scale(params, {"contrastive": Term(found.loss, found.count, 0.5)}, aux)

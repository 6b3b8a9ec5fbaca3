"""Mixture of encoder-decoder: an image encoder, and one text transformer in three modes (BLIP, arXiv 2201.12086, figure 2).

As a text encoder it reads a text alone, in both directions; as an image-grounded encoder it looks at an image too; as an
image-grounded decoder it writes, from left to right, looking at the image. The modes are three stacks here, whose parameters may be
the same: which are, the model says that puts them in place.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import Count
from simvlm_jax.core.sharding import constrain
from simvlm_jax.core.trust import buildable
from simvlm_jax.families.dual_encoder import normalised, unit
from simvlm_jax.families.language_model import DecoderNetwork
from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.cache import Written
from simvlm_jax.nn.conv_stem import ConvStemSize
from simvlm_jax.nn.embed import TextInputs
from simvlm_jax.nn.linear import Linear
from simvlm_jax.nn.masks import Kind, bidirectional, causal, cross_mask, self_mask
from simvlm_jax.nn.mlp import ACTIVATIONS
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.sizes import Size, Style
from simvlm_jax.nn.stack import Stack
from simvlm_jax.nn.vit import ViT

IMAGE_STYLE = Style("gelu_exact", key_bias=True)
TEXT_STYLE = Style("gelu_exact", epsilon=1e-12, key_bias=True, block="post")
PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """The towers of a model.

    image, patch: the ViT. text: the text transformer. width: E, of the vectors that are contrasted. positions: rows of the text's
    table, 0 for as many as there are. stem: a conv stem in place of plain patches, where a model is to learn in minutes. mean,
    deviation: of pixels in [0, 1].
    """

    image: Size
    patch: int
    text: Size
    width: int = 256
    positions: Count = 512
    stem: ConvStemSize | None = None
    image_style: Style = IMAGE_STYLE
    text_style: Style = TEXT_STYLE
    mean: tuple[float, float, float] = PIXELS[0]
    deviation: tuple[float, float, float] = PIXELS[1]


class Looked(NamedTuple):
    """What a cross-attention looks at: context [B,S,W], who is there [B,S] bool, and where padding may be (see nn.masks.Kind)."""

    context: jax.Array
    seen: jax.Array
    padding: str = "right"


def looked_at(tokens: jax.Array, mask: jax.Array | None = None) -> Looked:
    """Image tokens [B,M,1+P,W] one after another; mask [B,M] bool: which images are there."""
    B, M, each, W = tokens.shape
    context = constrain(tokens.reshape(B, M * each, W), "BTD")
    if mask is None:
        return Looked(context, jnp.ones((B, M * each), bool))
    return Looked(context, jnp.repeat(mask, each, axis=1), "any")


def image_tower_of(model: Any) -> ViT:
    """The image encoder of a model with `sizes`, `image_size`, `compute` and `drop_path`."""
    s = model.sizes
    how = dict(style=s.image_style, stem=s.stem, drop_path=model.drop_path)
    return ViT(s.image, s.patch, model.image_size, model.compute, **how)


def image_tokens(tower: ViT, sizes: Sizes, pixels: jax.Array) -> jax.Array:
    """Image tokens [B,M,1+P,W] of images [B,M,Y,X,C] uint8, the class token first."""
    B, M = pixels.shape[:2]
    single = pixels.reshape(B * M, 1, *pixels.shape[2:])
    first, tokens, _ = tower.sequence(normalised(single, (sizes.mean, sizes.deviation)))
    tokens = jnp.concatenate([first, tokens], axis=1)
    return tokens.reshape(B, M, *tokens.shape[1:])


class Writer(nn.Module):
    """States [B,T,D] to those whose product with the embedding, plus `bias`, the logits are (BERT's head of pieces)."""

    vocabulary: int
    width: int
    dtype: jnp.dtype
    style: Style

    def setup(self):
        self.transform, self.norm = Linear(self.width, self.dtype, bias=True), norm_of(self.style, self.dtype)()
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("V",))
        self.bias: Any = self.param("bias", zeros, (self.vocabulary,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(ACTIVATIONS[self.style.activation](self.transform(x)))


class Temperature(nn.Module):
    """What cosines are divided by, learned, fp32."""

    @nn.compact
    def __call__(self) -> jax.Array:
        divisor: Any = self.param("divisor", nn.with_logical_partitioning(nn.initializers.constant(0.07), ()), ())
        return divisor


class Network(DecoderNetwork):
    """The image encoder, and the text transformer as three stacks, of which parameters may be the same."""

    model: Any

    def setup(self):
        m, s = self.model, self.model.sizes
        dtype, style, wide = m.compute.activation_dtype, s.text_style, s.image.width
        self.image_tower = image_tower_of(m)
        inputs = (m.vocabulary.size + 2, s.positions or m.text_length, s.text.width, dtype, style)
        source = None if wide == s.text.width else wide

        def stack(cross: bool, context_width: int | None = None) -> Stack:
            return Stack(s.text, m.compute, cross, dropout=m.dropout, style=style, context_width=context_width)

        if m.encodes:
            self.inputs = TextInputs(*inputs)
            self.text_stack = stack(False)
            self.encoder = stack(True, source)
        if m.contrastive_weight:
            self.image_projection, self.text_projection = (Linear(s.width, dtype, bias=True) for _ in range(2))
            self.temperature = Temperature()
        if m.matching_weight:
            self.match_head = Linear(2, jnp.promote_types(dtype, jnp.float32), bias=True)
        if m.caption_weight:
            self.decoder_inputs = TextInputs(*inputs)
            self.decoder = stack(True, None if m.question else source)
            self.writer = Writer(m.vocabulary.size + 2, s.text.width, dtype, style)

    # ---- images --------------------------------------------------------------------------------------------------

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Image tokens [B,M,1+P,W] of images [B,M,Y,X,C]."""
        return image_tokens(self.image_tower, self.model.sizes, pixels)

    def image_vector(self, tokens: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Unit vectors [B,E] of image tokens [B,M,1+P,W]: the mean over images."""
        each = self.image_projection(tokens[:, :, 0])
        if mask is None:
            return unit(each.mean(1))
        weight = mask[..., None].astype(each.dtype)
        return unit((each * weight).sum(1) / jnp.maximum(weight.sum(1), 1))

    def image(self, pixels: jax.Array, mask: jax.Array | None = None):
        return self.image_vector(self.encode(pixels), mask)

    def pooled(self, pixels: jax.Array):
        return self.encode(pixels)[:, :, 0].mean(1)

    # ---- the text transformer's modes ----------------------------------------------------------------------------

    def text(self, tokens: jax.Array, valid: jax.Array):
        """The text encoder: unit vectors [B,E] of tokens [B,T], [CLS] first."""
        x = self.text_stack(self.inputs(tokens, _places(tokens)), Shared(_both_ways(valid)))
        return unit(self.text_projection(x[:, 0]))

    def grounded(self, tokens: jax.Array, valid: jax.Array, looked: Looked) -> jax.Array:
        """The image-grounded encoder: states [B,T,D] of tokens [B,T], [ENC] first."""
        cross = cross_mask(bidirectional(valid), looked.seen, looked.padding)
        x = self.inputs(tokens, _places(tokens))
        return self.encoder(x, Shared(_both_ways(valid), looked.context, cross))

    def decode(self, inputs: jax.Array, valid: jax.Array, looked: Looked) -> jax.Array:
        """The image-grounded decoder: states [B,T,D] of inputs [B,T], [DEC] first, before the head's transform."""
        sight = causal(valid)
        cross = cross_mask(sight, looked.seen, looked.padding)
        x = self.decoder_inputs(inputs, _places(inputs))
        return self.decoder(x, Shared(self_mask(sight, Kind("causal", "right")), looked.context, cross))

    def last_norm(self, x: jax.Array):
        return self.writer(x)

    def output_table(self):
        return self.decoder_inputs.table()[: self.model.vocabulary.size]

    def output_bias(self):
        return self.writer.bias[: self.model.vocabulary.size]

    # ---- passes --------------------------------------------------------------------------------------------------

    def match(self, tokens: jax.Array, valid: jax.Array, looked: Looked) -> jax.Array:
        """Logits [B,2] fp32 that a text does not, and does, belong to images."""
        return self.match_head(self.grounded(tokens, valid, looked)[:, 0])

    def context(self, tokens: jax.Array, mask: jax.Array | None, question: Any) -> Looked:
        """What the decoder looks at: image tokens [B,M,1+P,W], or with a `question`, (tokens, valid), the encoder's states of it."""
        looked = looked_at(tokens, mask)
        return looked if question is None else Looked(self.grounded(question[0], question[1], looked), question[1])

    def captions(self, pixels: jax.Array, mask: jax.Array | None, question: Any, inputs: jax.Array, valid: jax.Array):
        """`head` of what follows each slot."""
        return self.head(self.decode(inputs, valid, self.context(self.encode(pixels), mask, question)))

    def learn(self, pixels: jax.Array, mask: jax.Array | None, texts: dict[str, Any]) -> dict[str, Any]:
        """All passes of pairs over one encoding of the images; texts: what each pass reads, (tokens, valid)."""
        tokens, made = self.encode(pixels), {}
        if "contrast" in texts:
            made |= {"image": self.image_vector(tokens, mask), "text": self.text(*texts["contrast"])}
        if "match" in texts:
            made["tokens"] = tokens
        if "write" in texts:
            inputs, valid = texts["write"]
            made["head"] = self.head(self.decode(inputs, valid, self.context(tokens, mask, texts["question"])))
        return made

    def everything(self, pixels: jax.Array, tokens: jax.Array, valid: jax.Array):
        """Touches every parameter once, to make them."""
        m, encoded = self.model, self.encode(pixels)
        made: list[Any] = [encoded]
        if m.encodes:
            made.append(self.grounded(tokens, valid, looked_at(encoded)))
        if m.contrastive_weight:
            made += [self.image_vector(encoded, None), self.text(tokens, valid), self.scale()]
        if m.matching_weight:
            made.append(self.match(tokens, valid, looked_at(encoded)))
        if m.caption_weight:
            question = (tokens, valid) if m.question else None
            made.append(self.logits(self.decode(tokens, valid, self.context(encoded, None, question))))
        return made

    def step(
        self, tokens: jax.Array, new: Written, layers: dict[str, Any], fixed: dict[str, Any]
    ) -> tuple[jax.Array, Any]:
        """The decoder over new pieces [B,T] with a cache: (states [B,T,D], layers)."""
        x = self.decoder_inputs(tokens, jnp.minimum(new.position, self.model.positions - 1))
        cross = cross_mask(new.mask.query, fixed["seen"])
        x, kept = self.decoder.step(x, layers["decoder"], new.slot, new.mask, fixed["context"], cross)
        return x, {"decoder": kept}

    def read_context(self, pixels: jax.Array, mask: jax.Array | None, question: Any):
        """Keys and values of the decoder's layers over what it looks at, and who is there."""
        looked = self.context(self.encode(pixels), mask, question)
        return {"context": self.decoder.context(looked.context), "seen": looked.seen}

    def scale(self):
        return {"scale": 1 / self.temperature()}


def _places(tokens: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def _both_ways(valid: jax.Array):
    return self_mask(bidirectional(valid), Kind("full", "right"))

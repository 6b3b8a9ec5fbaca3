"""BLIP on two images or more (arXiv 2201.12086, section 4.4, figure 5): is a sentence about all of them true (NLVR2)?

Each layer of the image-grounded encoder looks at each image by a cross-attention of its own, all begun from the pre-trained one.
What they return is averaged in the first half of the layers, and in the second half put side by side and mapped to the width again,
by a map that begins as an average. The state of [ENC] goes into a head of two linear maps.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.parts import PAIRS, only_part
from simvlm_jax.core.schema import Positive, Rate, Sides
from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Batch, Extra, Params, Rngs, Rows, Vocabulary, sides_of
from simvlm_jax.families.class_head import class_terms
from simvlm_jax.families.med import Sizes, image_tokens, image_tower_of
from simvlm_jax.families.network import NetworkModel
from simvlm_jax.models.blip import ENC, SIZES
from simvlm_jax.nn.block import attention_of, dropped, mlp_of
from simvlm_jax.nn.embed import TextInputs
from simvlm_jax.nn.linear import Linear, add
from simvlm_jax.nn.masks import Kind, Mask, bidirectional, cross_mask, self_mask
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.position import fit_positions
from simvlm_jax.nn.sizes import Compute, Size, Style
from simvlm_jax.nn.stack import unstacked
from simvlm_jax.nn.vit import resize_positions


class PairBlock(nn.Module):
    """A layer that looks at several contexts; merged: what they return goes through a map of all, or is averaged."""

    size: Size
    dtype: jnp.dtype
    contexts: int
    merged: bool
    style: Style
    context_width: int | None
    dropout: float = 0.0

    def setup(self):
        size, dtype, style = self.size, self.dtype, self.style
        norm = norm_of(style, dtype)
        self.norm_attention, self.norm_cross, self.norm_mlp = norm(), norm(), norm()
        self.attention = attention_of(size, dtype, style)
        cross = [attention_of(size, dtype, style, True, self.context_width) for _ in range(self.contexts)]
        self.cross_attention = cross
        self.mlp = mlp_of(size, dtype, style)
        if self.merged:
            kernel = nn.with_logical_partitioning(_mean, ("D", "W"))
            self.merge = self.param("merge", kernel, (self.contexts * size.width, size.width))
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("D",))
            self.merge_bias = self.param("merge_bias", zeros, (size.width,))

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask, contexts: tuple[jax.Array, ...], seen: Mask) -> jax.Array:
        """x [B,T,D], contexts [B,S,W] each -> [B,T,D]."""
        drop = functools.partial(dropped, self, rate=self.dropout, drop_path=None)
        x = constrain(x, "BTD")
        x = self.norm_attention(x + drop(self.attention(x, x, mask)))
        looks = [look(x, context, seen) for look, context in zip(self.cross_attention, contexts, strict=True)]
        if self.merged:
            every = jnp.concatenate(looks, axis=-1)
            look = add(every @ in_use(self.merge, ("D", "W"), self.dtype), in_use(self.merge_bias, ("D",)))
        else:
            look = sum(looks[1:], looks[0]) / len(looks)
        x = self.norm_cross(x + drop(look))
        return self.norm_mlp(x + drop(self.mlp(x)))


def _mean(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """A map that takes the mean of the equal parts of its input."""
    parts = shape[0] // shape[1]
    return jnp.concatenate([jnp.eye(shape[1], dtype=dtype) / parts] * parts)


class Network(nn.Module):
    """The image encoder, the layers and the head."""

    model: "BLIPPairs"

    def setup(self):
        m, s = self.model, self.model.sizes
        dtype, D = m.compute.activation_dtype, s.text.width
        self.image_tower = image_tower_of(m)
        self.inputs = TextInputs(m.vocabulary.size + 2, m.positions, D, dtype, s.text_style)
        source = None if s.image.width == D else s.image.width
        block, depth = m.compute.rematerialised(PairBlock), s.text.depth
        self.layers = [
            block(s.text, dtype, m.images, i >= depth // 2, s.text_style, source, m.dropout, name=f"layer_{i}")
            for i in range(depth)
        ]
        self.hidden = Linear(D, dtype, bias=True)
        self.head = Linear(m.classes, jnp.promote_types(dtype, jnp.float32), bias=True, out="A")

    def classify(self, pixels: jax.Array, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        """Logits [B,classes] fp32 of images [B,M,Y,X,C] and a text [B,T], [ENC] first."""
        seen = image_tokens(self.image_tower, self.model.sizes, pixels)
        sight = bidirectional(valid)
        mask = self_mask(sight, Kind("full", "right"))
        cross = cross_mask(sight, jnp.ones((len(seen), seen.shape[2]), bool), "right")
        x = self.inputs(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
        for layer in self.layers:
            x = layer(x, mask, tuple(seen[:, i] for i in range(self.model.images)), cross)
        return self.head(nn.relu(self.hidden(x[:, 0])))


@buildable("model")
@dataclasses.dataclass(frozen=True)
class BLIPPairs(NetworkModel):
    """BLIP on several images, by size.

    Args:
      vocabulary, image_size, size: as BLIP's.
      images: M, of a row. classes: answers; 2 of NLVR2.
      dropout: of the text's blocks. drop_path: of the image's.
      compute: dtype, remat; layers stand one by one, whatever `scan` says, for the halves differ.
    """

    SIZES = SIZES
    network_class = Network

    vocabulary: Vocabulary
    image_size: Sides
    size: str | Sizes = "tiny"
    images: Positive = 2
    classes: Positive = 2
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    compute: Compute = Compute()

    @property
    def positions(self) -> int:
        """Rows of the text's table of positions."""
        return self.sizes.positions or self.vocabulary.length + 1

    def init(self, rng: Array, batch: Batch):
        pixels = np.zeros((1, self.images, *sides_of(self.image_size), 3), np.uint8)
        text = np.zeros((1, self.vocabulary.length), np.int32)
        return self.network.init(rng, pixels, *self.lay_out(text, text == 0), method="classify")["params"], {}

    def lay_out(self, text: Array, valid: Array) -> tuple[jax.Array, jax.Array]:
        """Pieces [B,T] after [ENC], [B,T+1], and which are valid."""
        first = jnp.full((len(text), 1), self.vocabulary.size + ENC, jnp.int32)
        valid = jnp.pad(jnp.asarray(valid), ((0, 0), (1, 0)), constant_values=True)
        return jnp.concatenate([first, jnp.asarray(text)], axis=1), valid

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        rows = only_part(batch, PAIRS, type(self).__name__)
        return {}, *class_terms(self._logits(params, rows, {"dropout": rngs} if train else {}), rows)

    def _logits(self, params: Params, rows: Rows, streams: Rngs) -> jax.Array:
        found = rows["image"].shape[1] if "image" in rows else 0
        if found != self.images:
            raise ValueError(f"this model takes {self.images} images a row (model.images), and these rows have {found}")
        tokens, valid = self.lay_out(rows["text"], rows["text_mask"])
        return self.apply(params, "classify", rows["image"], tokens, valid, rngs=streams)

    def capabilities(self):
        return {"classify": self.classify}

    def classify(self, params: Params, extra: Extra, batch: Rows):
        """Logits [B,classes] fp32."""
        return self._logits(params, batch, {})

    def adapt(self, params: Params, target: Params):
        """A pre-trained BLIP's image-grounded encoder: its cross-attention is where all of a layer begin."""
        out = {k: v for k, v in params.items() if k in target}
        if "encoder" in params:
            for name, layer in unstacked(params["encoder"], self.sizes.text.depth).items():
                cross = layer["cross_attention"]  # each with a buffer of its own, for steps donate them
                twice = {f"cross_attention_{i}": jax.tree.map(jnp.array, cross) for i in range(self.images)}
                out[name] = {**twice, **{k: v for k, v in layer.items() if k != "cross_attention"}}
        table = target["image_tower"]["position"]
        if "image_tower" in out and out["image_tower"]["position"].shape != table.shape:
            grid = tuple(side // self.sizes.patch for side in sides_of(self.image_size))
            position = resize_positions(out["image_tower"]["position"], grid, 1)
            out["image_tower"] = {**out["image_tower"], "position": position}
        if "inputs" in out:
            places = fit_positions(out["inputs"]["position"]["table"], target["inputs"]["position"]["table"])
            out["inputs"] = {**out["inputs"], "position": {"table": places}}
        return out

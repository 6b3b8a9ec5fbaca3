"""T5: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (Raffel et al., arXiv 1910.10683).

One idea: every task is a text that is read and a text that is written. The encoder sees what is given, ended by EOS, in both
directions; the decoder starts from padding, predicts the rest and looks at the encoder. Positions are relative, by buckets of
distance, one table for all layers of a side; logits of attention are not scaled; norms have no mean and no bias.

A row's text [T] is given up to its `prefix_length` and predicted after it: slot t of the decoder predicts piece t. Models from
version 1.1 on (arXiv 2002.05202) have gated mlps and a softmax of their own; before, the embedding is the softmax's table too, and
what it is multiplied with is divided by the root of the width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.parts import check_one_text, check_plain, parts_of
from simvlm_jax.core.schema import Positive, Rate
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Batch, Extra, Params, Rngs, Rows, Term, Vocabulary
from simvlm_jax.families.language_model import DecoderNetwork, LanguageModel, Reading, Teacher
from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.cache import Written, empty_layers, empty_slots
from simvlm_jax.nn.embed import TokenEmbedding
from simvlm_jax.nn.masks import Kind, Mask, Sight, bidirectional, cross_mask, self_mask
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.position import RelativeBuckets
from simvlm_jax.nn.sizes import NO_BIAS, TOWERS, Compute, Size, Style
from simvlm_jax.nn.stack import Stack
from simvlm_jax.objectives.cross_entropy import linear_cross_entropy

STYLE = Style("relu", epsilon=1e-6, norm="rms", bias=NO_BIAS, scaled=False)
GATED = dataclasses.replace(STYLE, activation="gelu", gated=True)


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """A row of SIZES: both stacks and their style, buckets of relative positions and the distance from which on they are one,
    whether the embedding is the softmax's table, and whether states are divided by the root of the width before it."""

    encoder: Size
    decoder: Size
    style: Style = STYLE
    buckets: Positive = 32
    furthest: Positive = 128
    tied: bool = True
    scaled: bool = True


def _both(size: Size, style: Style = STYLE, tied: bool = True) -> Sizes:
    return Sizes(size, size, style, tied=tied, scaled=tied)


SIZES = {  # section 3.1.2 and 3.7; version 1.1 by its published configs
    "tiny": _both(TOWERS["tiny"]),
    "small": _both(Size(512, 6, 8, 2048)),
    "base": _both(Size(768, 12, 12, 3072)),
    "large": _both(Size(1024, 24, 16, 4096)),
    "3b": _both(Size(1024, 24, 32, 16384, head_width=128)),
    "11b": _both(Size(1024, 24, 128, 65536, head_width=128)),
    "v1.1-small": _both(Size(512, 8, 6, 1024, head_width=64), GATED, False),
    "v1.1-base": _both(Size(768, 12, 12, 2048), GATED, False),
    "v1.1-large": _both(Size(1024, 24, 16, 2816), GATED, False),
}


class Network(DecoderNetwork):
    """Embedding, both stacks, their norms and relative positions."""

    model: "T5"

    def setup(self):
        m, s = self.model, self.model.sizes
        dtype = m.compute.activation_dtype
        self.pieces = TokenEmbedding(m.vocabulary.size, s.encoder.width, dtype, s.tied, deviation=1.0)
        nn.share_scope(self, self.pieces)
        stack = dict(compute=m.compute, dropout=m.dropout, style=s.style)
        buckets = dict(buckets=s.buckets, furthest=s.furthest)
        self.encoder_relative = RelativeBuckets(s.encoder.heads, **buckets)
        self.encoder = Stack(s.encoder, **stack)
        self.encoder_norm = norm_of(s.style, dtype)()
        self.decoder_relative = RelativeBuckets(s.decoder.heads, **buckets, both=False)
        self.decoder = Stack(s.decoder, **stack, cross=True)
        self.decoder_norm = norm_of(s.style, dtype)()

    def encode(self, tokens: jax.Array, given: jax.Array) -> jax.Array:
        """The encoder's output [B,S,D] over tokens [B,S] where `given`."""
        place = jnp.arange(tokens.shape[1])[None]
        mask = self_mask(bidirectional(given), Kind("full", "right"))
        x = self.encoder(self.pieces(tokens), Shared(mask, bias=self.encoder_relative(place, place)))
        return self.encoder_norm(x)

    def decode(self, inputs: jax.Array, segment: jax.Array, context: jax.Array, given: jax.Array) -> jax.Array:
        """The decoder's output [B,T,D], before the last norm, over inputs [B,T] where segment >= 0."""
        slots = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
        sight, bias = Sight(slots, segment), self.decoder_relative(slots[:1], slots[:1])
        cross = Mask(cross_mask(sight, given).query, bidirectional(given), Kind("full", "right"))
        shared = Shared(self_mask(sight, Kind("causal")), context, cross, bias=bias)
        return self.decoder(self.pieces(inputs), shared)

    def predictions(self, tokens: jax.Array, given: jax.Array, inputs: jax.Array, segment: jax.Array):
        """`head` of what follows each decoder slot."""
        return self.head(self.decode(inputs, segment, self.encode(tokens, given), given))

    def inspected(self, tokens: jax.Array, given: jax.Array, inputs: jax.Array, segment: jax.Array):
        """What is compared with other implementations: (encoder's output, decoder's after its norm, logits)."""
        context = self.encode(tokens, given)
        x = self.decode(inputs, segment, context, given)
        return context, self.decoder_norm(x), self.logits(x)

    def read_context(self, tokens: jax.Array, given: jax.Array) -> dict[str, Any]:
        """What the decoder looks at: keys and values of its layers over what is given, and where that is [B,S]."""
        return {"context": self.decoder.context(self.encode(tokens, given)), "seen": given}

    def step(self, tokens: jax.Array, new: Written, layers: dict[str, Any], fixed: dict[str, Any]):
        """New pieces [B,T] with a cache: (states [B,T,D], layers)."""
        bias = self.decoder_relative(new.mask.query.block, new.mask.key.block)
        cross = cross_mask(new.mask.query, fixed["seen"])
        x = self.pieces(tokens)
        given = layers["decoder"], new.slot, new.mask, fixed["context"], cross
        x, kept = self.decoder.step(x, *given, bias=bias)
        return x, {"decoder": kept}

    def last_norm(self, states: jax.Array) -> jax.Array:
        x = self.decoder_norm(states)
        return x * jnp.asarray(x.shape[-1] ** -0.5, x.dtype) if self.model.sizes.scaled else x

    def output_table(self) -> jax.Array:
        return self.pieces.table()

    def everything(self, tokens: jax.Array):
        """Touches every parameter once, to make them."""
        there = tokens == tokens
        return self.logits(self.decode(tokens, jnp.zeros_like(tokens), self.encode(tokens, there), there))


@buildable("model")
@dataclasses.dataclass(frozen=True)
class T5(LanguageModel):
    """T5 by size.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the longest text, T, what is given and what is written together.
      size: a row of SIZES, or its name.
      dropout: of the blocks' branches.
      compute: dtype, remat, scan.
    """

    SIZES = SIZES
    network_class = Network

    vocabulary: Vocabulary
    size: str | Sizes = "tiny"
    dropout: Rate = 0.0
    compute: Compute = Compute()

    @property
    def stacks(self) -> dict[str, int]:
        return {"decoder": self.sizes.decoder.depth}

    @property
    def output_name(self) -> str:
        return "embedding" if self.sizes.tied else "softmax"

    def init(self, rng: Array, batch: Batch):
        return self.network.init(rng, np.zeros((1, 1), np.int32), method="everything")["params"], {}

    def lay_out(self, rows: Rows) -> tuple[jax.Array, ...]:
        """(encoder tokens [B,T+1], where they are given, decoder inputs [B,T], their segment: -1 where nothing stands)."""
        text, valid = jnp.asarray(rows["text"]), jnp.asarray(rows["text_mask"])
        prefix = (
            jnp.asarray(rows["prefix_length"])[:, None]
            if "prefix_length" in rows
            else jnp.zeros((len(text), 1), jnp.int32)
        )
        slots = jnp.arange(text.shape[1])
        tokens, given = self.ended(text, slots < prefix)
        before = jnp.pad(text, ((0, 0), (1, 0)))[:, :-1]
        inputs = jnp.where(slots == prefix, self.vocabulary.bos, before)
        return tokens, given, inputs, jnp.where(valid & (slots >= prefix), 0, -1)

    def ended(self, text: jax.Array, given: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is given [B,T] of a text, and an EOS after it: (tokens [B,T+1], where they are)."""
        count, slots = given.sum(1, keepdims=True), jnp.arange(text.shape[1] + 1)
        tokens = jnp.where(slots == count, self.vocabulary.eos, jnp.pad(text, ((0, 0), (0, 1))))
        return tokens, slots <= count

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        """The loss of what follows each row's prefix, over every part alike."""
        terms, aux, total, count = {}, {}, 0.0, 0.0
        for i, (part, rows) in enumerate(parts_of(batch)):
            check_plain(rows, part, "T5", needs=("text", "text_mask", "prefix_length"))
            layout = self.lay_out(rows)
            streams = {"dropout": jax.random.fold_in(rngs, i)} if train else {}
            states, table = self.apply(params, "predictions", *layout, rngs=streams)
            wanted = (layout[3] >= 0) * jnp.asarray(rows["weight"])[:, None]
            loss, tokens, right = linear_cross_entropy(states, table, jnp.asarray(rows["text"]), wanted)
            aux[f"{part}_loss"], aux[f"{part}_accuracy"] = Term(loss, tokens), Term(right, tokens)
            total, count = total + loss, count + tokens
            terms["lm"] = Term(total, count)
        return {}, terms, aux

    def teacher_forced(self, params: Params, batch: Rows) -> Teacher:
        check_one_text(batch, "T5")
        layout = self.lay_out(batch)
        states, table = self.apply(params, "predictions", *layout)
        return Teacher(states, table, jnp.asarray(batch["text"]), layout[3] >= 0)

    def capabilities(self):
        able = self.language_capabilities() | {"score_text": self.score_text}
        return {k: v for k, v in able.items() if k != "attention"}  # there is no image to look at

    def read(self, params: Params, batch: Rows, max_length: int) -> Reading:
        if "image" in batch:
            raise ValueError("T5 reads texts alone, and these rows have images; leave them out")
        tokens, given = self.ended(jnp.asarray(batch["text"]), jnp.asarray(batch["text_mask"]))
        B, room, size = len(tokens), 1 + max_length, self.sizes.decoder
        layers = {"decoder": empty_layers(B, size.depth, room, size, self.compute.activation_dtype)}
        start, fed = jnp.full((B, 1), self.vocabulary.bos, jnp.int32), jnp.ones((B, 1), bool)
        return Reading(start, fed, empty_slots(B, room), layers, self.apply(params, "read_context", tokens, given))

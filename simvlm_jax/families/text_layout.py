"""Text of encoder-decoders: which pieces are given, which are predicted, and what stands in which slot.

All arrays are [B,T] of a fixed T, whatever is given or predicted: a random prefix is a matter of masks alone.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from simvlm_jax.core.parts import check_one_text
from simvlm_jax.core.types import Array, Rows, Vocabulary
from simvlm_jax.nn.masks import Sight, bidirectional, join

SENTINELS = 32
SPAN_SHARE, SPAN_LENGTH = 0.15, 3  # T5 (arXiv 1910.10683, section 3.3.4)


class Objective(NamedTuple):
    """What an objective needs: keys of a row, sentinels in the embedding; packed: whether several texts may share a row."""

    keys: tuple[str, ...]
    sentinels: int = 0
    packed: bool = True


OBJECTIVES = {
    "prefix_lm": Objective(("text", "text_mask", "prefix_length")),
    "lm": Objective(("text", "text_mask")),
    "span_corruption": Objective(("text", "text_mask", "seed"), SENTINELS, packed=False),
}


class Given(NamedTuple):
    """What is seen in both directions: an image [B,1,Y,X,C] uint8 and its mask [B,1] bool, or None; pieces [B,T] at positions
    [B,T], and their Sight; packed: several texts may share a row."""

    image: Array | None
    image_mask: Array | None
    tokens: Array
    positions: Array
    sight: Sight
    packed: bool = False


@dataclasses.dataclass(frozen=True)
class TextLayout:
    """Encoder tokens, decoder inputs, and targets where `predicted`; all [B,T].

    segment, input_segment: of which text of the row an encoder and a decoder slot is, -1 where nothing stands. aligned: prefix
    and suffix fill disjoint slots of the same T. packed: several texts may share a row.
    """

    tokens: jax.Array
    positions: jax.Array
    segment: jax.Array
    inputs: jax.Array
    input_positions: jax.Array
    input_segment: jax.Array
    targets: jax.Array
    predicted: jax.Array
    aligned: bool
    packed: bool = False

    @property
    def given(self) -> jax.Array:
        """Where the encoder has a token [B,T]."""
        return self.segment >= 0

    @property
    def prefix(self) -> Sight:
        """The encoder's slots: each text sees all of its prefix."""
        return Sight(jnp.zeros_like(self.segment), self.segment)

    @property
    def suffix(self) -> Sight:
        """The decoder's slots: a block each, after the prefix's block 0."""
        block = jnp.broadcast_to(1 + jnp.arange(self.inputs.shape[1]), self.inputs.shape)
        return Sight(block, self.input_segment)

    @property
    def last(self) -> jax.Array:
        """The last slot [B] that is predicted."""
        return jnp.where(self.predicted, jnp.arange(self.predicted.shape[1]), 0).max(1)

    def repeated(self, times: int) -> "TextLayout":
        """Each row `times` times."""
        return dataclasses.replace(self, **jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), self._arrays()))

    def shown(self) -> dict[str, jax.Array]:
        """The arrays by name, and `given`, for people to read."""
        return {**self._arrays(), "given": self.given}

    def _arrays(self):
        return {k: v for k, v in vars(self).items() if k not in ("aligned", "packed")}

    def given_with(self, image: Array | None, image_mask: Array | None, one_sequence: bool = False) -> Given:
        """The encoder's side after an image, or where there is `one_sequence`, both sides."""
        sides = self.one_sequence() if one_sequence else (self.tokens, self.positions, self.prefix)
        return Given(image, image_mask, *sides, self.packed)

    def one_sequence(self) -> tuple[jax.Array, jax.Array, Sight]:
        """Lay both sides out for a single stack, as (tokens, positions, Sight): the prefix in block 0, then a block per position.

        In an aligned layout prefix and suffix fill disjoint slots of the same T; otherwise one follows the other.
        """
        if not self.aligned:
            tokens = jnp.concatenate([self.tokens, self.inputs], axis=1)
            positions = jnp.concatenate([self.positions, self.input_positions], axis=1)
            return tokens, positions, join(self.prefix, self.suffix)
        pick = lambda a, b: jnp.where(self.given, a, b)  # noqa: E731
        sight = Sight(*map(pick, self.prefix, self.suffix))
        return pick(self.tokens, self.inputs), pick(self.positions, self.input_positions), sight


def lay_out_text(rows: Rows, objective: str, vocabulary: Vocabulary) -> TextLayout:
    """Lay texts out as an objective learns them: "prefix_lm", "lm" (nothing is given) or "span_corruption" (no packed rows)."""
    text, valid = rows["text"], rows["text_mask"]
    if objective == "span_corruption":
        check_one_text(rows, "span corruption")
        return span_layout(text, valid, rows["seed"], vocabulary)
    if "segment" in rows:
        prefix = rows["prefix_length"] if objective == "prefix_lm" else jnp.zeros_like(text)
        return packed_layout(rows, prefix, vocabulary.bos)
    prefix = rows["prefix_length"] if objective == "prefix_lm" else jnp.zeros_like(text[:, 0])
    return prefix_layout(text, valid, prefix, vocabulary.bos)


def prefix_layout(text: Array, valid: Array, prefix_length: Array, bos: int) -> TextLayout:
    """Give the pieces of text [B,T] before `prefix_length` [B] and predict the others, the first one from BOS."""
    slots = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
    return _split(text, jnp.where(valid, 0, -1), slots, prefix_length[:, None], bos)


def packed_layout(rows: Rows, prefix_length: Array, bos: int) -> TextLayout:
    """Lay packed rows out, each text of a row by itself; prefix_length [B,T]: that of each slot's text.

    All that follows a prefix is read from left to right, and what `target_mask` has of it is predicted.
    """
    layout = _split(rows["text"], rows["segment"], rows["position"], prefix_length, bos)
    return dataclasses.replace(layout, predicted=layout.predicted & rows["target_mask"], packed=True)


def _split(text: Array, segment: Array, position: Array, prefix: Array, bos: int) -> TextLayout:
    """Give the pieces before place `prefix` [B,T] or [B,1] of their text, and predict the others."""
    before = position < prefix
    shifted = jnp.pad(text, ((0, 0), (1, 0)))[:, :-1]
    return TextLayout(
        tokens=text,
        positions=position,
        segment=jnp.where(before, segment, -1),
        inputs=jnp.where(position == prefix, bos, shifted),
        input_positions=position,
        input_segment=jnp.where(before, -1, segment),
        targets=text,
        predicted=~before & (segment >= 0),
        aligned=True,
    )


def span_layout(text: Array, valid: Array, seed: Array, vocabulary: Vocabulary) -> TextLayout:
    """Corrupt spans as T5 does (arXiv 1910.10683, section 3.1.4): spans become sentinels, the decoder predicts each sentinel and
    its span, then EOS. text, valid [B,T]; seed [B] uint32.

    At least one piece is hidden in every row that has one; EOS never is. Sentinel k is row `vocabulary.size + k`.
    """
    T = text.shape[1]
    slots = jnp.broadcast_to(jnp.arange(T), text.shape)
    pieces = valid & (text != vocabulary.eos)
    draw = jax.vmap(lambda row: jax.random.uniform(jax.random.key(row), (T,)))(seed)
    begins = pieces & (draw < SPAN_SHARE / SPAN_LENGTH)
    draw = jnp.where(pieces, draw, 2.0)
    begins = begins | (pieces & (slots == draw.argmin(1, keepdims=True)))
    hidden = begins
    for k in range(1, SPAN_LENGTH):
        hidden = hidden | jnp.pad(begins, ((0, 0), (k, 0)))[:, :T]
    hidden = hidden & pieces
    first = hidden & ~jnp.pad(hidden, ((0, 0), (1, 0)))[:, :T]
    number = jnp.minimum(jnp.cumsum(first, axis=1) - 1, SENTINELS - 1)
    sentinel = vocabulary.size + number
    # every hidden piece may be preceded by its sentinel: interleave both, then close the gaps with a stable sort
    pairs = jnp.stack([sentinel, text], axis=-1).reshape(-1, 2 * T)
    kept = jnp.stack([first, hidden | (valid & (text == vocabulary.eos))], axis=-1).reshape(-1, 2 * T)
    order = jnp.argsort(~kept, axis=1, stable=True)[:, :T]
    targets = jnp.take_along_axis(pairs, order, axis=1)
    predicted = jnp.take_along_axis(kept, order, axis=1)
    return TextLayout(
        tokens=jnp.where(first, sentinel, text),
        positions=slots,
        segment=jnp.where(pieces & (~hidden | first), 0, -1),
        inputs=jnp.where(slots == 0, vocabulary.bos, jnp.pad(targets, ((0, 0), (1, 0)))[:, :T]),
        input_positions=slots,
        input_segment=jnp.where(predicted, 0, -1),
        targets=targets,
        predicted=predicted,
        aligned=False,
    )


class Prompt(NamedTuple):
    """A prompt before any piece is predicted: what the encoder is given, and what the decoder is fed first.

    tokens, given [B,T]: the encoder's. inputs, fed [B,S]: the decoder's, of which those count that are `fed`. position [B]: of
    the decoder's first input.
    """

    tokens: jax.Array
    given: jax.Array
    inputs: jax.Array
    fed: jax.Array
    position: jax.Array

    def with_image(self, image: Array | None, image_mask: Array | None) -> Given:
        """The encoder's side, after an image."""
        positions = jnp.broadcast_to(jnp.arange(self.tokens.shape[1]), self.tokens.shape)
        return Given(image, image_mask, self.tokens, positions, bidirectional(self.given))


def lay_out_prompt(text: Array, valid: Array, objective: str, vocabulary: Vocabulary) -> Prompt:
    """Lay a prompt [B,T] (pieces where `valid`, without EOS) out as the objective saw text in training.

    "prefix_lm": in the encoder. "lm": no text ever stood there, so the decoder is fed the prompt after BOS. "span_corruption": in
    the encoder, with one masked span for all that follows.
    """
    B, T = text.shape
    pieces = valid.sum(1).astype(jnp.int32)
    inputs, fed = jnp.full((B, 1), vocabulary.bos, jnp.int32), jnp.ones((B, 1), bool)
    position = jnp.zeros((B,), jnp.int32)
    if objective == "lm":
        inputs, fed = jnp.concatenate([inputs, text], axis=1), jnp.concatenate([fed, valid], 1)
        text, valid = text[:, :0], valid[:, :0]
    elif objective == "span_corruption":
        slots = jnp.arange(T + 1)
        text = jnp.where(slots == pieces[:, None], vocabulary.size, jnp.pad(text, ((0, 0), (0, 1))))
        valid = slots <= pieces[:, None]
        inputs = jnp.concatenate([inputs, jnp.full((B, 1), vocabulary.size, jnp.int32)], axis=1)
        fed = jnp.ones(inputs.shape, bool)
    else:
        position = pieces
    if not text.shape[1]:  # keep one masked slot, so that shapes without prompt or image stay valid
        text, valid = jnp.zeros((B, 1), jnp.int32), jnp.zeros((B, 1), bool)
    return Prompt(text, valid, inputs, fed, position)

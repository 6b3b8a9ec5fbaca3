"""Decoders of text, GPT-2 to Qwen2: one network, and a row of a table for each model that was released.

A decoder reads pieces from left to right and predicts each from those before it. What sets families apart (norms, where blocks
put them, positions, gates, biases) is the Style of their blocks and a few fields around the stack; see `Sizes`.

Texts are rows of pieces with an EOS. Where `Sizes.begins` a BOS stands before them and predicts their first piece; elsewhere the
first piece is given, and predicted by nobody.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.parts import check_plain, parts_of
from simvlm_jax.core.schema import Count, Rate
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Batch, Extra, Params, Rngs, Rows, Term, Vocabulary
from simvlm_jax.families.language_model import DecoderNetwork, LanguageModel, Reading, Teacher
from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.cache import Written, empty_layers, empty_slots
from simvlm_jax.nn.embed import TokenEmbedding
from simvlm_jax.nn.linear import Linear
from simvlm_jax.nn.masks import Kind, Sight, self_mask
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.position import LearnedPositions, fit_positions
from simvlm_jax.nn.sizes import NO_BIAS, TOWERS, Bias, Compute, Rotary, Size, Style
from simvlm_jax.nn.stack import Stack
from simvlm_jax.objectives.cross_entropy import linear_cross_entropy

GPT2 = Style("gelu", epsilon=1e-5, key_bias=True)
GPTJ = Style(
    "gelu",
    epsilon=1e-5,
    bias=Bias(query=False, value=False, out=False),
    block="parallel",
    rotary=Rotary(share=0.25, pairing="interleaved"),
)
OPT = Style("relu", epsilon=1e-5, key_bias=True)
LLAMA = Style("silu", epsilon=1e-5, norm="rms", bias=NO_BIAS, gated=True, rotary=Rotary())
QWEN2 = dataclasses.replace(
    LLAMA,
    epsilon=1e-6,
    bias=Bias(out=False, mlp=False, norm=False),
    key_bias=True,
    rotary=Rotary(1_000_000.0),
)


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """A row of SIZES.

    Args:
      stack, style: of the blocks.
      positions: rows of a learned table of positions; 0 where positions are rotary. unread: rows at its beginning that nobody
        reads (2 of OPT).
      tied: whether the softmax's table is the embedding. head_bias: whether the softmax has a bias (GPT-J).
      begins: whether a BOS stands before every text.
      embed_width: W of the embedding, where it is not D and two linear maps stand between (OPT-350m); 0: D.
      last_norm: whether a norm follows the last block.
    """

    stack: Size
    style: Style
    positions: Count = 0
    unread: Count = 0
    tied: bool = True
    head_bias: bool = False
    begins: bool = False
    embed_width: Count = 0
    last_norm: bool = True


SIZES = {
    "tiny": Sizes(TOWERS["tiny"], LLAMA, begins=True),
    "gpt2": Sizes(Size(768, 12, 12, 3072), GPT2, positions=1024),
    "gpt2-medium": Sizes(Size(1024, 24, 16, 4096), GPT2, positions=1024),
    "gpt2-large": Sizes(Size(1280, 36, 20, 5120), GPT2, positions=1024),
    "gpt2-xl": Sizes(Size(1600, 48, 25, 6400), GPT2, positions=1024),
    "gpt-j-6b": Sizes(Size(4096, 28, 16, 16384), GPTJ, tied=False, head_bias=True),
    "opt-125m": Sizes(Size(768, 12, 12, 3072), OPT, positions=2050, unread=2, begins=True),
    "opt-1.3b": Sizes(Size(2048, 24, 32, 8192), OPT, positions=2050, unread=2, begins=True),
    "opt-6.7b": Sizes(Size(4096, 32, 32, 16384), OPT, positions=2050, unread=2, begins=True),
    "llama-7b": Sizes(Size(4096, 32, 32, 11008), LLAMA, tied=False, begins=True),
    "smollm2-135m": Sizes(
        Size(576, 30, 9, 1536, kv_heads=3), dataclasses.replace(LLAMA, rotary=Rotary(100_000.0)), begins=False
    ),
    "smollm2-360m": Sizes(
        Size(960, 32, 15, 2560, kv_heads=5), dataclasses.replace(LLAMA, rotary=Rotary(100_000.0)), begins=False
    ),
    "qwen2-0.5b": Sizes(Size(896, 24, 14, 4864, kv_heads=2), QWEN2),
    "qwen2-7b": Sizes(Size(3584, 28, 28, 18944, kv_heads=4), QWEN2, tied=False),
    "mistral-7b": Sizes(
        Size(4096, 32, 32, 14336, kv_heads=8), dataclasses.replace(LLAMA, window=4096), tied=False, begins=True
    ),
}
"""Released models, by the config.json beside their weights; "tiny" is of the built-in run."""


class Network(DecoderNetwork):
    """Embedding, positions, stack and last norm; see Sizes for what the fields mean."""

    model: "Decoder"

    def setup(self):
        m, s = self.model, self.model.sizes
        dtype, D = m.compute.activation_dtype, s.stack.width
        self.pieces = TokenEmbedding(m.vocabulary.size, s.embed_width or D, dtype, s.tied, s.head_bias)
        nn.share_scope(self, self.pieces)
        if s.positions:
            self.position = LearnedPositions(s.positions, D, dtype)
        if s.embed_width:
            self.project_in, self.project_out = Linear(D, dtype, out="W"), Linear(s.embed_width, dtype, out="W")
        self.decoder = Stack(s.stack, m.compute, dropout=m.dropout, style=s.style)
        if s.last_norm:
            self.norm = norm_of(s.style, dtype)()

    def embed(self, tokens: jax.Array, position: jax.Array) -> jax.Array:
        """Tokens [B,T] at positions [B,T] as [B,T,D]."""
        s, x = self.model.sizes, self.pieces(tokens)
        x = self.project_in(x) if s.embed_width else x
        return x + self.position(position + s.unread) if s.positions else x

    def states(self, tokens: jax.Array, position: jax.Array, segment: jax.Array, padding: str = "any") -> jax.Array:
        """The last block's output [B,T,D] for tokens [B,T], each of which sees those before it in its segment [B,T].

        padding: as in nn.masks.Kind.
        """
        slots = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        mask = self_mask(Sight(slots, segment), Kind("causal", padding))
        return self.decoder(self.embed(tokens, position), Shared(mask, position=position))

    def predictions(self, tokens: jax.Array, position: jax.Array, segment: jax.Array, padding: str):
        """`head` of what follows each token."""
        return self.head(self.states(tokens, position, segment, padding))

    def inspected(self, tokens: jax.Array, position: jax.Array, segment: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is compared with other implementations: (states [B,T,D] as the softmax takes them, logits [B,T,V])."""
        x = self.states(tokens, position, segment)
        return self.last_norm(x), self.logits(x)

    def step(self, tokens: jax.Array, new: Written, layers: dict[str, Any], fixed: dict[str, Any]):
        """New pieces [B,T] with a cache: (states [B,T,D], layers)."""
        x = self.embed(tokens, jnp.minimum(new.position, self.model.vocabulary.length - 1))
        x, kept = self.decoder.step(x, layers["decoder"], new.slot, new.mask, position=new.position)
        return x, {"decoder": kept}

    def last_norm(self, states: jax.Array) -> jax.Array:
        s = self.model.sizes
        x = self.norm(states) if s.last_norm else states
        return self.project_out(x) if s.embed_width else x

    def output_table(self) -> jax.Array:
        return self.pieces.table()

    def output_bias(self) -> Any:
        return self.pieces.offset

    def everything(self, tokens: jax.Array):
        """Touches every parameter once, to make them."""
        return self.logits(self.states(tokens, jnp.zeros_like(tokens), jnp.zeros_like(tokens)))


@buildable("model")
@dataclasses.dataclass(frozen=True)
class Decoder(LanguageModel):
    """A decoder by size.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the longest text, T.
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

    def __post_init__(self):
        super().__post_init__()
        s, longest = self.sizes, self.vocabulary.length
        if s.positions and longest + s.begins > s.positions - s.unread:
            raise ValueError(
                f"texts of {longest} pieces{' after a BOS' * s.begins} do not fit {s.positions - s.unread} learned positions; "
                f"set config.text.length to {s.positions - s.unread - s.begins} at most"
            )

    @property
    def stacks(self) -> dict[str, int]:
        return {"decoder": self.sizes.stack.depth}

    @property
    def output_name(self) -> str:
        return "embedding" if self.sizes.tied else "softmax"

    def init(self, rng: Array, batch: Batch):
        return self.network.init(rng, np.zeros((1, 1), np.int32), method="everything")["params"], {}

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        """The language-model loss over every part alike. Of rows with `prefix_length` what follows the prefix is learned, of
        rows with `target_mask` what it has."""
        terms, aux, total, count = {}, {}, 0.0, 0.0
        for i, (part, rows) in enumerate(parts_of(batch)):
            check_plain(rows, part, "A decoder of text", needs=("text", "text_mask"), packed=True)
            if "image" in rows:
                raise ValueError(
                    f"a decoder reads text alone, and the rows of {part!r} have images; take `image` out of Keep's keys in "
                    f"config.data.parts.{part}.transforms"
                )
            made = self._taught(params, rows, {"dropout": jax.random.fold_in(rngs, i)} if train else {})
            wanted = _learned(rows, made.predicted) * rows["weight"][:, None]
            loss, tokens, right = linear_cross_entropy(made.states, made.table, made.targets, wanted)
            aux[f"{part}_loss"], aux[f"{part}_accuracy"] = Term(loss, tokens), Term(right, tokens)
            total, count = total + loss, count + tokens
            terms["lm"] = Term(total, count)
        return {}, terms, aux

    def teacher_forced(self, params: Params, batch: Rows) -> Teacher:
        return self._taught(params, batch, {})

    def _taught(self, params: Params, rows: Rows, streams: Any) -> Teacher:
        """Predicts every piece of each text of a row; slot t is that of piece t."""
        text, valid = jnp.asarray(rows["text"]), jnp.asarray(rows["text_mask"])
        slots = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
        segment = jnp.asarray(rows["segment"]) if "segment" in rows else jnp.where(valid, 0, -1)
        place = jnp.asarray(rows["position"]) if "position" in rows else slots
        padding = "any" if "segment" in rows else "right"
        if self.sizes.begins:
            inputs = jnp.where(place == 0, self.vocabulary.bos, jnp.pad(text, ((0, 0), (1, 0)))[:, :-1])
            states, table = self.apply(params, "predictions", inputs, place, segment, padding, rngs=streams)
            return Teacher(states, table, text, segment >= 0)
        states, table = self.apply(params, "predictions", text, place, segment, padding, rngs=streams)
        states = jnp.pad(states, ((0, 0), (1, 0), (0, 0)))[:, :-1]  # the state of a piece predicts the next
        return Teacher(states, table, text, (segment >= 0) & (place > 0))

    def capabilities(self):
        able = self.language_capabilities() | {"score_text": self.score_text}
        return {k: v for k, v in able.items() if k != "attention"}  # there is no image to look at

    def read(self, params: Params, batch: Rows, max_length: int) -> Reading:
        if "image" in batch:
            raise ValueError("a decoder of text continues texts alone, and these rows have images; leave them out")
        tokens, fed = jnp.asarray(batch["text"]), jnp.asarray(batch["text_mask"])
        B, bos = len(tokens), self.vocabulary.bos
        if self.sizes.begins or not tokens.shape[1]:
            tokens = jnp.concatenate([jnp.full((B, 1), bos, jnp.int32), tokens], axis=1)
            fed = jnp.concatenate([jnp.ones((B, 1), bool), fed], axis=1)
        else:  # an empty text has nothing else to go on from
            tokens = tokens.at[:, 0].set(jnp.where(fed[:, 0], tokens[:, 0], bos))
            fed = fed.at[:, 0].set(True)
        room, dtype = tokens.shape[1] + max_length, self.compute.activation_dtype
        layers = {"decoder": empty_layers(B, self.stacks["decoder"], room, self.sizes.stack, dtype)}
        return Reading(tokens, fed, empty_slots(B, room), layers, {})

    def adapt(self, params: Params, target: Params):
        """Of learned positions those that fit are kept, and fresh ones come after them."""
        if "position" not in params:
            return params
        table = fit_positions(params["position"]["table"], target["position"]["table"])
        return {**params, "position": {"table": table}}


def _learned(rows: Rows, predicted: jax.Array) -> jax.Array:
    """What of the predicted pieces [B,T] is learned, by the keys of rows that say so."""
    if "target_mask" in rows:
        predicted = predicted & rows["target_mask"]
    if "prefix_length" in rows:
        prefix = jnp.asarray(rows["prefix_length"])
        packed = prefix.ndim == 2
        place = jnp.asarray(rows["position"]) if packed else jnp.arange(predicted.shape[1])
        predicted = predicted & (place >= (prefix if packed else prefix[:, None]))
    return predicted

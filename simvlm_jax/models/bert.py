"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (Devlin et al., arXiv 1810.04805).

One idea: pieces are hidden from a text and predicted from both sides (masked language modelling, section 3.1). Texts of T pieces
stand after a [CLS], so that there are T + 1 positions; the row's EOS is BERT's [SEP]. Norms come after each branch, and one more
after the embedding. Nothing is masked in the middle of an attention: a text sees all of itself.

Of 15 % of the pieces, drawn from the row's `seed`, 80 % become [MASK], 10 % another piece, and 10 % stay; these are predicted. The
second objective of the paper, whether two sentences follow each other, is not trained here; weights have their type 0 for all texts.

Sentence encoders (Reimers & Gurevych, arXiv 1908.10084; MiniLM, arXiv 2002.10957) are BERTs whose states are averaged to one vector.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.parts import check_plain, parts_of
from simvlm_jax.core.schema import Count, Rate
from simvlm_jax.core.sharding import in_use
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Batch, Extra, Params, Rngs, Rows, Term, Vocabulary
from simvlm_jax.families.dual_encoder import unit
from simvlm_jax.families.network import NetworkModel
from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.embed import TokenEmbedding
from simvlm_jax.nn.linear import Linear, add
from simvlm_jax.nn.masks import Kind, bidirectional, self_mask
from simvlm_jax.nn.mlp import ACTIVATIONS
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.position import LearnedPositions, fit_positions
from simvlm_jax.nn.sizes import TOWERS, Compute, Size, Style, statistics_dtype
from simvlm_jax.nn.stack import Stack
from simvlm_jax.objectives.cross_entropy import cross_entropy

STYLE = Style("gelu_exact", epsilon=1e-12, key_bias=True, block="post")
HIDDEN, MASKED, OTHER = 0.15, 0.8, 0.1
"""Share of pieces that are predicted, and of these the shares that become [MASK] and another piece."""
POOLS = ("cls", "mean", "pooler")


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """A row of SIZES.

    Args:
      stack, style: of the blocks.
      positions: rows of the table of positions, [CLS] included. types: rows of the table of types, of which the first is used.
      pool: what a text's vector is: "cls" (the state of [CLS]), "mean" (of all states) or "pooler" (a linear map and tanh of [CLS]).
      pooler: whether there is that map. head: whether there is the head of masked language modelling.
      mask: the id of [MASK]; 103 is that of the vocabularies that BERT was published with.
    """

    stack: Size
    style: Style = STYLE
    positions: Count = 512
    types: Count = 2
    pool: str = "cls"
    pooler: bool = False
    head: bool = True
    mask: Count = 103

    def __post_init__(self):
        if self.pool not in POOLS:
            raise ValueError(f"BERT pool {self.pool!r} is not one of {', '.join(POOLS)}")
        if self.pool == "pooler" and not self.pooler:
            raise ValueError("BERT pool 'pooler' needs pooler=True")


SIZES = {  # section 3; MiniLM: table 1 of arXiv 2002.10957
    "tiny": Sizes(TOWERS["tiny"], mask=3),
    "base": Sizes(Size(768, 12, 12, 3072), pooler=True),
    "large": Sizes(Size(1024, 24, 16, 4096), pooler=True),
    "minilm-l6": Sizes(Size(384, 6, 12, 1536), pool="mean", pooler=True, head=False),
}


class Network(nn.Module):
    """Embedding, blocks, and what stands on them; see Sizes."""

    model: "BERT"

    def setup(self):
        m, s = self.model, self.model.sizes
        dtype, D = m.compute.activation_dtype, s.stack.width
        self.pieces = TokenEmbedding(m.vocabulary.size, D, dtype, bias=s.head, deviation=0.02)
        nn.share_scope(self, self.pieces)
        self.position = LearnedPositions(s.positions, D, dtype)
        types = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "D"))
        self.type = self.param("type", types, (s.types, D))
        self.embed_norm = norm_of(s.style, dtype)()
        self.encoder = Stack(s.stack, m.compute, dropout=m.dropout, style=s.style)
        if s.pooler:
            self.pooler = Linear(D, dtype, bias=True)
        if s.head:
            self.transform, self.transform_norm = Linear(D, dtype, bias=True), norm_of(s.style, dtype)()

    def states(self, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        """The last block's output [B,T,D] of tokens [B,T] where `valid`, [CLS] first."""
        place = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        kind = in_use(self.type, (None, "D"))[0]
        x = self.embed_norm(add(self.pieces(tokens) + self.position(place), kind))
        return self.encoder(x, Shared(self_mask(bidirectional(valid), Kind("full", "right"))))

    def pooled(self, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        """A text's vector [B,D]."""
        x, pool = self.states(tokens, valid), self.model.sizes.pool
        if pool == "mean":
            weight = valid[:, :, None].astype(statistics_dtype(x.dtype))
            return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
        return self.summary(x) if pool == "pooler" else x[:, 0]

    def summary(self, states: jax.Array) -> jax.Array:
        """The pooler's output [B,D]."""
        return jnp.tanh(self.pooler(states[:, 0]))

    def logits(self, states: jax.Array) -> jax.Array:
        """Logits [B,T,V] fp32 of what stands at each place."""
        h = ACTIVATIONS[self.model.sizes.style.activation](self.transform(states))
        return self.pieces.logits(self.transform_norm(h))

    def predictions(self, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        return self.logits(self.states(tokens, valid))

    def everything(self, tokens: jax.Array):
        """Touches every parameter once, to make them."""
        x = self.states(tokens, tokens == tokens)
        made: list[Any] = [x]
        if self.model.sizes.pooler:
            made.append(self.summary(x))
        if self.model.sizes.head:
            made.append(self.logits(x))
        return made


@buildable("model")
@dataclasses.dataclass(frozen=True)
class BERT(NetworkModel):
    """BERT by size.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the longest text, T, without [CLS]; its bos is [CLS], its eos [SEP].
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
        if self.vocabulary.length + 1 > self.sizes.positions:
            raise ValueError(
                f"texts of {self.vocabulary.length} pieces after [CLS] do not fit {self.sizes.positions} positions; set "
                f"config.text.length to {self.sizes.positions - 1} at most"
            )
        if self.sizes.head and self.sizes.mask >= self.vocabulary.size:
            raise ValueError(
                f"the id of [MASK], {self.sizes.mask}, is none of a vocabulary of {self.vocabulary.size} pieces; set the size's mask"
            )

    def init(self, rng: Array, batch: Batch):
        return self.network.init(rng, np.zeros((1, 1), np.int32), method="everything")["params"], {}

    def lay_out(self, text: Array, valid: Array) -> tuple[jax.Array, jax.Array]:
        """Pieces [B,T] after [CLS], and a [SEP] where a text was cut: (tokens [B,T+1], valid)."""
        text, valid = self.ended(text, valid), jnp.asarray(valid)
        first = jnp.full((len(text), 1), self.vocabulary.bos, jnp.int32)
        return jnp.concatenate([first, text], axis=1), jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)

    def ended(self, text: Array, valid: Array) -> jax.Array:
        """Pieces [B,T] with a [SEP] at the last place of texts that fill it."""
        text, valid = jnp.asarray(text), jnp.asarray(valid)
        return text.at[:, -1].set(jnp.where(valid[:, -1], self.vocabulary.eos, text[:, -1]))

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        """The loss of masked language modelling over every part alike."""
        if not self.sizes.head:
            raise ValueError("this BERT embeds sentences and has no head to train with; give its size head=True")
        terms, aux, total, count = {}, {}, 0.0, 0.0
        for i, (part, rows) in enumerate(parts_of(batch)):
            check_plain(rows, part, "BERT", needs=("text", "text_mask", "seed"))
            rows = {**rows, "text": self.ended(rows["text"], rows["text_mask"])}
            inputs, predicted = self.hidden(rows)
            tokens, valid = self.lay_out(inputs, rows["text_mask"])
            streams = {"dropout": jax.random.fold_in(rngs, i)} if train else {}
            logits = self.apply(params, "predictions", tokens, valid, rngs=streams)[:, 1:]
            weight = predicted * jnp.asarray(rows["weight"])[:, None]
            loss, number, right = cross_entropy(logits, jnp.asarray(rows["text"]), weight)
            aux[f"{part}_loss"], aux[f"{part}_accuracy"] = Term(loss, number), Term(right, number)
            total, count = total + loss, count + number
            terms["mlm"] = Term(total, count)
        return {}, terms, aux

    def hidden(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """(text with pieces hidden [B,T], which are predicted [B,T]); of every text one at least, and never its EOS."""
        text, v = jnp.asarray(rows["text"]), self.vocabulary
        keys = jax.vmap(jax.random.key)(jnp.asarray(rows["seed"]))
        draws = jax.vmap(lambda key: jax.random.uniform(key, (3, text.shape[1])))(keys)
        pieces = jnp.asarray(rows["text_mask"]) & (text != v.eos)
        chance = jnp.where(pieces, draws[:, 0], 2.0)
        least = jnp.arange(text.shape[1]) == chance.argmin(1)[:, None]
        predicted = pieces & ((chance < HIDDEN) | least)
        other = (draws[:, 2] * v.size).astype(text.dtype)
        made = jnp.where(draws[:, 1] < MASKED, self.sizes.mask, jnp.where(draws[:, 1] < MASKED + OTHER, other, text))
        return jnp.where(predicted, made, text), predicted

    def capabilities(self):
        return {"embed_text": self.embed_text, "similarity": self.similarity}

    def embed_text(self, params: Params, extra: Extra, batch: Rows):
        """Texts as unit vectors [B,D] fp32."""
        return unit(self.apply(params, "pooled", *self.lay_out(batch["text"], batch["text_mask"])))

    def similarity(self, params: Params, extra: Extra, first: jax.Array, second: jax.Array):
        """Cosines [r,c] of embedded texts [r,D] and [c,D]."""
        return jnp.einsum("rE,cE->rc", first, second, precision=jax.lax.Precision.HIGHEST)

    def adapt(self, params: Params, target: Params):
        """Of positions those that fit are kept, and fresh ones come after them."""
        if "position" not in params:
            return params
        table = fit_positions(params["position"]["table"], target["position"]["table"])
        return {**params, "position": {"table": table}}

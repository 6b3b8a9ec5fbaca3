"""CoCa: Contrastive Captioners are Image-Text Foundation Models (Yu et al., arXiv 2205.01917).

One idea: cut a captioner's decoder in half. The lower half reads text alone, and a CLS token at its end is the text's vector
for a contrastive loss; the upper half also looks at the image, and predicts each next piece. One pass gives both losses.

Images [B,1,Y,X,C] become P tokens (a ViT without class token, section 3.2). An attentional pooler of Q queries makes what the
decoder looks at; another, of one query, looks at those (cascade) and makes the image's vector. Text goes in as BOS and pieces,
one a slot, all causal; CLS comes after the last slot and sees BOS and pieces, never padding, and nothing sees it: it is taken
off before the upper half. Slot t predicts piece t, the last one EOS. L = 1 L_con + 2 L_cap, L_con the sum (not the mean) of both
directions.

What the paper does not state, and our choice: pieces and positions go into the decoder at unit variance; a pooler ends in a norm
(nn/pool.py); the vectors are the pooled query and the normalised CLS, without further projection; L_cap is a mean over all
pieces of the batch, where the printed formula sums over those of a text. Embedding and softmax share a table where the paper's
parameter counts say so (2b).

To classify with the encoder frozen, or not (section 4.2), one more pooler of one query and a linear head look at the encoder.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import Count, NotNegative, Rate
from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Batch, Extra, Features, Params, Rngs, Rows, Term
from simvlm_jax.families.class_head import class_terms
from simvlm_jax.families.dual_encoder import DualEncoder, Scale, normalised, pair_weight, unit
from simvlm_jax.families.language_model import DecoderNetwork, LanguageModel, Reading, Teacher
from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.cache import Written, empty_layers, empty_slots
from simvlm_jax.nn.conv_stem import TINY_STEM, ConvStemSize
from simvlm_jax.nn.linear import Linear
from simvlm_jax.nn.masks import Kind, Sight, causal, cross_mask, join, self_mask
from simvlm_jax.nn.norm import LayerNorm
from simvlm_jax.nn.pool import AttentionalPool, LearnedTokens
from simvlm_jax.nn.position import fit_positions
from simvlm_jax.nn.sizes import TOWERS, Size, statistics_dtype
from simvlm_jax.nn.stack import Stack
from simvlm_jax.nn.vit import ViT
from simvlm_jax.objectives.contrastive import softmax_pairs
from simvlm_jax.objectives.cross_entropy import linear_cross_entropy


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """A row of SIZES: encoder and its patch, the decoder's halves, Q, whether embedding and softmax share a table, and a conv
    stem in place of plain patches, where a model is to learn in minutes."""

    encoder: Size
    patch: int
    lower: Size
    upper: Size
    queries: int
    tied: bool
    stem: ConvStemSize | None = None


_TINY = TOWERS["tiny"]
SIZES = {  # table 1
    "tiny": Sizes(_TINY, 16, _TINY, _TINY, 16, True, TINY_STEM),
    "base": Sizes(TOWERS["B"], 18, TOWERS["768"], TOWERS["768"], 256, False),
    "large": Sizes(TOWERS["L"], 18, TOWERS["1024"], TOWERS["1024"], 256, False),
    "2b": Sizes(TOWERS["1B"], 18, Size(1408, 18, 16, 5632), Size(1408, 18, 16, 5632), 256, True),
}


class Network(DecoderNetwork):
    """The encoder, the poolers, and the two halves of the decoder; see CoCa for what the fields mean."""

    model: "CoCa"

    def setup(self):
        m = self.model
        sizes, dtype = m.sizes, m.compute.activation_dtype
        encoder, lower, upper, D = sizes.encoder, sizes.lower, sizes.upper, sizes.lower.width
        self.image_tower = ViT(
            encoder,
            sizes.patch,
            m.image_size,
            m.compute,
            pool="mean",
            stem=sizes.stem,
            dropout=m.dropout,
            drop_path=m.drop_path,
        )
        self.caption_pool = AttentionalPool(sizes.queries, D, upper.heads, m.compute)
        self.contrast_pool = AttentionalPool(1, D, upper.heads, m.compute)
        table = nn.with_logical_partitioning(nn.initializers.normal(D**-0.5), ("V", "D"))
        self.embedding = self.param("embedding", table, (m.vocabulary.size, D))
        if not sizes.tied:
            self.softmax = self.param("softmax", table, (m.vocabulary.size, D))
        positions = nn.with_logical_partitioning(nn.initializers.normal(D**-0.5), (None, "D"))
        self.text_position = self.param("text_position", positions, (m.vocabulary.length, D))
        self.cls = LearnedTokens(1, D, dtype, nn.initializers.normal(1.0))
        self.lower = Stack(lower, m.compute, dropout=m.dropout)
        self.cls_norm = LayerNorm(dtype)
        self.upper = Stack(upper, m.compute, cross=True, dropout=m.dropout)
        self.norm = LayerNorm(dtype)
        self.logit_scale = Scale(math.log(1 / 0.07))
        if m.classes:
            self.probe_pool = AttentionalPool(1, encoder.width, encoder.heads, m.compute)
            self.probe_head = Linear(m.classes, statistics_dtype(dtype), bias=True, out="A")

    def encode(self, pixels: jax.Array):
        """Image tokens [B,P,D]."""
        return self.image_tower.encode(normalised(pixels))[0]

    def poolers(self, tokens: jax.Array):
        """(what the decoder looks at [B,Q,D], the image's vector [B,D])."""
        queries = self.caption_pool(tokens)
        return queries, unit(self.contrast_pool(queries if self.model.cascade else tokens)[:, 0])

    def embed(self, inputs: jax.Array, positions: jax.Array):
        """Tokens [B,T] at positions [B,T] as [B,T,D]."""
        dtype = self.model.compute.activation_dtype
        # looked up before the cast, so that the gradient of a row is summed in float32
        pieces, places = in_use(self.embedding, "VD")[inputs], in_use(self.text_position, (None, "D"))[positions]
        scale = jnp.asarray(pieces.shape[-1] ** 0.5, dtype)  # unit variance, as everything that a block adds has
        return constrain((pieces.astype(dtype) + places.astype(dtype)) * scale, "BTD")

    def read(self, inputs: jax.Array, valid: jax.Array):
        """The lower half: (states [B,T,D], the text's vector [B,D])."""
        B, T = inputs.shape
        x = jnp.concatenate([self.embed(inputs, jnp.broadcast_to(jnp.arange(T), (B, T))), self.cls(B)], axis=1)
        end = Sight(jnp.full((B, 1), T, jnp.int32), jnp.zeros((B, 1), jnp.int32))
        sight = join(causal(valid), end)
        x = self.lower(x, Shared(self_mask(sight, Kind("causal"))))
        return x[:, :T], unit(self.cls_norm(x[:, T]))

    def together(self, pixels: jax.Array, inputs: jax.Array, valid: jax.Array):
        """The upper half's last state [B,D] of a text with its image."""
        states, _ = self.read(inputs, valid)
        queries = self.poolers(self.encode(pixels))[0]
        x = self._look(states, valid, queries)
        last = jnp.where(valid, jnp.arange(valid.shape[1]), 0).max(1)
        return jnp.take_along_axis(self.norm(x), last[:, None, None], axis=1)[:, 0]

    def predict(self, states: jax.Array, valid: jax.Array, queries: jax.Array):
        """The upper half: `head` of what follows each slot."""
        return self.head(self._look(states, valid, queries))

    def _look(self, states: jax.Array, valid: jax.Array, queries: jax.Array) -> jax.Array:
        """The upper half's states [B,T,D], before the last norm."""
        sight = causal(valid)
        cross = cross_mask(sight, jnp.ones(queries.shape[:2], bool), "right")
        return self.upper(states, Shared(self_mask(sight, Kind("causal", "right")), queries, cross))

    def last_norm(self, x: jax.Array):
        return self.norm(x)

    def output_table(self):
        table = self.embedding if self.model.sizes.tied else self.softmax
        return in_use(table, "VD", self.model.compute.activation_dtype)

    def both(self, pixels: jax.Array, inputs: jax.Array, valid: jax.Array):
        """One pass: (image vectors [B,D], text vectors [B,D], `head` of the captions)."""
        queries, image = self.poolers(self.encode(pixels))
        states, text = self.read(inputs, valid)
        return image, text, self.predict(states, valid, queries)

    def captions(self, pixels: jax.Array, inputs: jax.Array, valid: jax.Array):
        """`head` of the captions alone."""
        queries = self.caption_pool(self.encode(pixels))
        return self.predict(self.read(inputs, valid)[0], valid, queries)

    def step(
        self, tokens: jax.Array, new: Written, layers: dict[str, Any], fixed: dict[str, Any]
    ) -> tuple[jax.Array, Any]:
        """Both halves over new pieces [B,T] with a cache: (states [B,T,D], layers)."""
        x = self.embed(tokens, jnp.minimum(new.position, self.model.vocabulary.length - 1))
        x, lower = self.lower.step(x, layers["lower"], new.slot, new.mask)
        seen = jnp.ones((len(fixed["context"][0].key), self.model.sizes.queries), bool)
        cross = cross_mask(new.mask.query, seen)
        x, upper = self.upper.step(x, layers["upper"], new.slot, new.mask, fixed["context"], cross)
        return x, {"lower": lower, "upper": upper}

    def read_context(self, pixels: jax.Array):
        """What the upper half looks at: keys and values of its layers over the pooled image."""
        return {"context": self.upper.context(self.caption_pool(self.encode(pixels)))}

    def image(self, pixels: jax.Array):
        return self.poolers(self.encode(pixels))[1]

    def text(self, inputs: jax.Array, valid: jax.Array):
        return self.read(inputs, valid)[1]

    def pooled(self, pixels: jax.Array):
        return self.encode(pixels).mean(1)

    def scale(self):
        return self.logit_scale()

    def classify(self, pixels: jax.Array):
        """Logits [B,classes] in fp32 (or wider)."""
        tokens = self.encode(pixels)
        return self.probe_head(self.probe_pool(tokens)[:, 0])

    def everything(self, pixels: jax.Array, inputs: jax.Array, valid: jax.Array):
        made = self.both(pixels, inputs, valid), self.scale()
        return (*made, self.classify(pixels)) if self.model.classes else made


@buildable("model")
@dataclasses.dataclass(frozen=True)
class CoCa(DualEncoder, LanguageModel):
    """CoCa by size.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the longest text, T.
      image_size: pixels.
      size: a row of SIZES.
      caption_weight, contrastive_weight: of the two losses (table 8 of the paper); one at 0 is neither made nor paid for.
      cascade: whether the contrastive pooler looks at the caption pooler's output, or beside it at the encoder's.
      classes: of the attentional probe, 0 for none; rows with a `label` are then classified, and nothing else is learned.
      dropout, drop_path: drop_path acts on the encoder only.
      compute: dtype, remat, scan.
    """

    SIZES = SIZES
    network_class = Network

    size: str | Sizes = "tiny"
    caption_weight: NotNegative = 2.0
    contrastive_weight: NotNegative = 1.0
    cascade: bool = True
    classes: Count = 0
    dropout: Rate = 0.0
    drop_path: Rate = 0.0

    def lay_out(self, text: Array, valid: Array):
        """(inputs, valid) [B,T]: BOS and all pieces but the last (the EOS), so that slot t predicts piece t."""
        start = jnp.full((text.shape[0], 1), self.vocabulary.bos, jnp.int32)
        return jnp.concatenate([start, jnp.asarray(text)[:, :-1]], axis=1), jnp.asarray(valid)

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        streams = {"dropout": rngs} if train else {}
        rows = self.pairs(batch)
        if "label" in rows:
            return {}, *class_terms(self._class_logits(params, rows, streams), rows)
        inputs, valid = self.lay_out(rows["text"], rows["text_mask"])
        weight, image, text, head = pair_weight(rows), None, None, None
        if not self.contrastive_weight:
            head = self.apply(params, "captions", rows["image"], inputs, valid, rngs=streams)
        elif not self.caption_weight:
            image = self.apply(params, "image", rows["image"], rngs=streams)
            text = self.apply(params, "text", inputs, valid, rngs=streams)
        else:
            image, text, head = self.apply(params, "both", rows["image"], inputs, valid, rngs=streams)
        sides, terms, aux = {}, {}, {}
        if image is not None:
            sides = {"image": {"features": image, "weight": weight}, "text": {"features": text, "weight": weight}}
        if head is not None:
            loss, tokens, correct = linear_cross_entropy(
                head[0], head[1], rows["text"], rows["text_mask"] * weight[:, None]
            )
            terms, aux = (
                {"caption": Term(loss, tokens, self.caption_weight)},
                {"caption_accuracy": Term(correct, tokens)},
            )
        return sides, terms, aux

    def _class_logits(self, params: Params, batch: Rows, streams: Any) -> jax.Array:
        if not self.classes:
            raise ValueError("CoCa has no head to classify with; set config.data.labels.size")
        return self.apply(params, "classify", batch["image"], rngs=streams)

    def across_batch(self, params: Params, extra: Extra, features: Features, *, step: Array, train: bool):
        """Both directions' cross-entropies, summed."""
        if not features:
            return {}, {}
        found = softmax_pairs(self.apply(params, "scale"), features["image"], features["text"])
        aux = {
            "image_accuracy": Term(found.image_right, found.count),
            "text_accuracy": Term(found.text_right, found.count),
        }
        return self.with_scale(params, {"contrastive": Term(found.loss, found.count, self.contrastive_weight)}, aux)

    def capabilities(self):
        """What it is trained to do: with a loss at 0, nothing that this loss teaches."""
        able = super().capabilities()
        if not self.contrastive_weight:
            able = {k: v for k, v in able.items() if k in ("features", "pair_features")}
        if self.caption_weight:
            able |= self.language_capabilities() | {"score_text": self.score_text}
        return {**able, "classify": self.classify} if self.classes else able

    def classify(self, params: Params, extra: Extra, batch: Rows):
        """Logits [B,classes] fp32 of the attentional probe."""
        return self._class_logits(params, batch, {})

    @property
    def stacks(self) -> dict[str, int]:
        return {"lower": self.sizes.lower.depth, "upper": self.sizes.upper.depth}

    @property
    def cached(self) -> dict[str, Size]:
        """The stacks whose keys and values are kept while decoding."""
        return {"lower": self.sizes.lower, "upper": self.sizes.upper}

    @property
    def output_name(self) -> str:
        return "embedding" if self.sizes.tied else "softmax"

    def teacher_forced(self, params: Params, batch: Rows):
        inputs, valid = self.lay_out(batch["text"], batch["text_mask"])
        states, table = self.apply(params, "captions", batch["image"], inputs, valid)
        return Teacher(states, table, batch["text"], jnp.asarray(batch["text_mask"]))

    def read(self, params: Params, batch: Rows, max_length: int):
        if "image" not in batch:
            raise ValueError("CoCa captions images, and these rows have none")
        B, T = batch["text"].shape
        dtype, room = self.compute.activation_dtype, T + 1 + max_length
        tokens = jnp.concatenate([jnp.full((B, 1), self.vocabulary.bos, jnp.int32), batch["text"]], axis=1)
        fed = jnp.concatenate([jnp.ones((B, 1), bool), batch["text_mask"]], axis=1)
        layers = {k: empty_layers(B, size.depth, room, size, dtype) for k, size in self.cached.items()}
        return Reading(tokens, fed, empty_slots(B, room), layers, self.apply(params, "read_context", batch["image"]))

    def pair_features(self, params: Params, extra: Extra, batch: Rows):
        """Features fp32 of an image with a text, for probing: the decoder's state [B,D] at the text's end, if it learns."""
        if not self.caption_weight:
            return super().pair_features(params, extra, batch)
        found = self.apply(params, "together", batch["image"], *self.lay_out(batch["text"], batch["text_mask"]))
        return found.astype(statistics_dtype(found.dtype))

    def attention(self, params: Params, extra: Extra, batch: Rows):
        """Where each predicted piece looks: [B,T,P], the last layer's weights on queries times theirs on the image."""
        inputs, valid = self.lay_out(batch["text"], batch["text_mask"])
        found = self.intermediates(params, "both", batch["image"], inputs, valid)
        weights = self.last_weights(found["upper"], "cross_attention")
        pooled = found["caption_pool"]["attention"]["weights"][0].mean(1)
        return jnp.einsum("BTQ,BQP->BTP", weights, pooled)

    def adapt(self, params: Params, target: Params):
        """As DualEncoder's, the text positions being the decoder's."""
        out = super().adapt(params, target)
        if "text_position" in params:
            out["text_position"] = fit_positions(params["text_position"], target["text_position"])
        return out

"""CoCa as open_clip trains it, whose released weights are another network than the paper's (arXiv 2205.01917; see models/coca.py).

What differs from the paper, and from models/coca.py: the image tower is CLIP's ViT; one pooler makes 256 queries with norms of its
own, of which the first is the image's vector and the others what the decoder looks at; the upper half has its cross-attention in
layers of their own, each with an mlp, after each block; texts end in EOS before [CLS], which stands at the last position; pieces
and positions are not scaled, and vectors are mapped linearly to the shared space.

The mask of the lower half is open_clip's own: padding is hidden one place too late, so that every text sees the first padding after
it, and [CLS] sees itself only where a text fills all places. Released weights have learned with it.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import Count, NotNegative, Positive
from simvlm_jax.core.sharding import in_use
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Extra, Params
from simvlm_jax.families.dual_encoder import DualEncoder, Scale, normalised, unit
from simvlm_jax.families.language_model import DecoderNetwork
from simvlm_jax.models.coca import CoCa
from simvlm_jax.nn.attention import Attention
from simvlm_jax.nn.block import Block, CrossLayer, Shared, decoding_layer
from simvlm_jax.nn.cache import Written
from simvlm_jax.nn.embed import TokenEmbedding
from simvlm_jax.nn.linear import Linear, add
from simvlm_jax.nn.masks import Kind, Mask, Sight, causal, cross_mask, self_mask
from simvlm_jax.nn.norm import norm_of
from simvlm_jax.nn.pool import LearnedTokens
from simvlm_jax.nn.position import fit_positions
from simvlm_jax.nn.sizes import TOWERS, Size, Style
from simvlm_jax.nn.stack import Stack
from simvlm_jax.nn.vit import ViT

STYLE = Style("gelu_exact", epsilon=1e-5, key_bias=True)
PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@buildable("size")
@dataclasses.dataclass(frozen=True)
class Sizes:
    """A row of SIZES: image tower and patch, the decoder's halves, E, queries and heads of the pooler, activation, pixels."""

    image: Size
    patch: Positive
    lower: Size
    upper: Size
    width: Positive
    queries: Positive = 256
    pool_heads: Positive = 8
    activation: str = "gelu_exact"
    mean: tuple[float, float, float] = PIXELS[0]
    deviation: tuple[float, float, float] = PIXELS[1]


_TINY = TOWERS["tiny"]
SIZES = {
    "tiny": Sizes(_TINY, 16, _TINY, _TINY, 128, 16, 2),
    "B/32": Sizes(TOWERS["B"], 32, TOWERS["512"], TOWERS["512"], 512),
    "L/14": Sizes(TOWERS["L"], 14, TOWERS["768"], TOWERS["768"], 768),
}


class Pooler(nn.Module):
    """Learned queries that look at a normed sequence, [B,S,W] -> [B,Q,D]."""

    queries: int
    width: int
    heads: int
    dtype: jnp.dtype
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = norm_of(self.style, self.dtype)
        query = LearnedTokens(self.queries, self.width, self.dtype, nn.initializers.normal(1.0), name="query")(len(x))
        look = Attention(self.width, self.heads, self.dtype, True, source_width=x.shape[-1], name="attention")
        return look(norm(name="query_norm")(query), norm(name="key_norm")(x), None)


class Network(DecoderNetwork):
    """The image tower, the pooler, and the two halves of the decoder."""

    model: "OpenCoCa"

    def setup(self):
        m, s = self.model, self.model.sizes
        dtype, D = m.compute.activation_dtype, s.lower.width
        style = dataclasses.replace(STYLE, activation=s.activation)
        self.image_tower = ViT(
            s.image,
            s.patch,
            m.image_size,
            m.compute,
            dropout=m.dropout,
            drop_path=m.drop_path,
            pre_norm=True,
            patch_bias=False,
            last_norm=False,
            style=style,
        )
        self.pooler = Pooler(s.queries, s.width, s.pool_heads, dtype, style)
        self.pool_norm = norm_of(style, dtype)()
        self.image_projection = Linear(s.width, dtype)
        self.pieces = TokenEmbedding(m.vocabulary.size, D, dtype, tied=False)
        nn.share_scope(self, self.pieces)
        places = nn.with_logical_partitioning(nn.initializers.normal(0.01), (None, "D"))
        self.text_position = self.param("text_position", places, (m.vocabulary.length + 2, D))
        self.cls = LearnedTokens(1, D, dtype)
        self.lower = Stack(s.lower, m.compute, dropout=m.dropout, style=style)
        self.cls_norm = norm_of(style, dtype)()
        self.text_projection = Linear(s.width, dtype)
        fields = dict(dtype=dtype, dropout=m.dropout, style=style)
        depth = range(s.upper.depth)
        block, look = m.compute.rematerialised(Block), m.compute.rematerialised(CrossLayer)
        self.upper = [block(s.upper, **fields) for _ in depth]
        self.look = [look(s.upper, **fields, context_width=s.width) for _ in depth]
        self.look_norm = [norm_of(style, dtype)() for _ in depth]
        self.norm = norm_of(style, dtype)()
        self.logit_scale = Scale(math.log(1 / 0.07))

    # ---- images --------------------------------------------------------------------------------------------------

    def encode(self, pixels: jax.Array) -> jax.Array:
        """All tokens of the image tower [B,1+P,W]."""
        s = self.model.sizes
        first, tokens, _ = self.image_tower.sequence(normalised(pixels, (s.mean, s.deviation)))
        return jnp.concatenate([first, tokens], axis=1)

    def queries(self, pixels: jax.Array) -> jax.Array:
        """The pooled queries [B,Q,E]."""
        return self.pool_norm(self.pooler(self.encode(pixels)))

    def image(self, pixels: jax.Array) -> jax.Array:
        return unit(self.image_projection(self.queries(pixels)[:, 0]))

    def pooled(self, pixels: jax.Array) -> jax.Array:
        return self.encode(pixels).mean(1)

    # ---- texts ---------------------------------------------------------------------------------------------------

    def read(self, tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The lower half over BOS, pieces and EOS [B,T+1]: (states [B,T+1,D], the text's vector [B,E])."""
        B, T = tokens.shape
        table = in_use(self.text_position, (None, "D"))
        x = add(jnp.concatenate([self.pieces(tokens), self.cls(B)], axis=1), jnp.concatenate([table[:T], table[-1:]]))
        slots = jnp.broadcast_to(jnp.arange(T + 1), (B, T + 1))
        # a place is hidden where the piece before it is padding; between a shorter text and [CLS] there is padding too
        filled = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        filled = filled.at[:, -1].set(valid[:, -1] & (self.model.vocabulary.length + 1 == T))
        key = Sight(slots, jnp.where(filled, 0, -1))
        x = self.lower(x, Shared(Mask(Sight(slots, jnp.zeros_like(slots)), key, Kind("causal"))))
        return x[:, :T], unit(self.text_projection(self.cls_norm(x[:, T])))

    def text(self, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        return self.read(tokens, valid)[1]

    def predict(self, states: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The upper half over all states but the last: `head` of what follows each."""
        return self.head(self._upper(states[:, :-1], queries))

    def _upper(self, x: jax.Array, queries: jax.Array) -> jax.Array:
        sight, context = causal(jnp.ones(x.shape[:2], bool)), queries[:, 1:]
        cross = cross_mask(sight, jnp.ones(context.shape[:2], bool), "none")
        for block, look, norm in zip(self.upper, self.look, self.look_norm, strict=True):
            x = block(x, None, Shared(self_mask(sight, Kind("causal", "none"))))
            x = look(x, None, Shared(None, norm(context), cross))
        return x

    def both(self, pixels: jax.Array, tokens: jax.Array, valid: jax.Array):
        """One pass: (image vectors [B,E], text vectors [B,E], `head` of the captions)."""
        queries, (states, text) = self.queries(pixels), self.read(tokens, valid)
        return unit(self.image_projection(queries[:, 0])), text, self.predict(states, queries)

    def captions(self, pixels: jax.Array, tokens: jax.Array, valid: jax.Array):
        """`head` of the captions alone."""
        return self.predict(self.read(tokens, valid)[0], self.queries(pixels))

    def together(self, pixels: jax.Array, tokens: jax.Array, valid: jax.Array):
        """The upper half's last state [B,D] of a text with its image."""
        x = self.norm(self._upper(self.read(tokens, valid)[0], self.queries(pixels)))
        last = jnp.where(valid, jnp.arange(valid.shape[1]), 0).max(1)
        return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]

    def last_norm(self, states: jax.Array) -> jax.Array:
        return self.norm(states)

    def output_table(self) -> jax.Array:
        return self.pieces.table()

    def scale(self):
        return self.logit_scale()

    # ---- cached decoding -----------------------------------------------------------------------------------------

    def read_context(self, pixels: jax.Array) -> dict[str, Any]:
        """Keys and values of every layer that looks at the image."""
        context = self.queries(pixels)[:, 1:]
        return {
            "context": tuple(look.context(norm(context)) for look, norm in zip(self.look, self.look_norm, strict=True))
        }

    def step(self, tokens: jax.Array, new: Written, layers: dict[str, Any], fixed: dict[str, Any]):
        """Both halves over new pieces [B,T] with a cache: (states [B,T,D], layers)."""
        table = in_use(self.text_position, (None, "D"))
        x = self.pieces(tokens)
        x = x + table[jnp.minimum(new.position, self.model.vocabulary.length)].astype(x.dtype)
        x, lower = self.lower.step(x, layers["lower"], new.slot, new.mask)
        cross = cross_mask(new.mask.query, jnp.ones((len(fixed["context"][0].key), self.model.sizes.queries - 1), bool))
        upper = []
        for i, (block, look) in enumerate(zip(self.upper, self.look, strict=True)):
            x, kept = block.step(x, layers["upper"][i], new.slot, new.mask, None, None)
            x = look.step(x, fixed["context"][i], cross)
            upper.append(kept)
        return x, {"lower": lower, "upper": tuple(upper)}

    def everything(self, pixels: jax.Array, tokens: jax.Array, valid: jax.Array):
        return self.both(pixels, tokens, valid), self.scale()


@buildable("model")
@dataclasses.dataclass(frozen=True)
class OpenCoCa(CoCa):
    """open_clip's CoCa by size; fields as in models/coca.py, without a probe of classes.

    open_clip weighs the mean of both directions' losses by 1 and captions by 2: contrastive_weight 0.5 here.
    """

    SIZES = SIZES
    network_class = Network

    size: str | Sizes = "tiny"
    contrastive_weight: NotNegative = 0.5
    classes: Count = 0

    def __post_init__(self):
        super().__post_init__()
        if self.classes:
            raise ValueError("open_clip's CoCa has no head of classes here; leave config.data.labels.size at 0")
        if not self.cascade:
            raise ValueError(
                "open_clip's CoCa has one pooler for both, and no way without a cascade; leave cascade=True"
            )

    def adapt(self, params: Params, target: Params):
        """As CoCa's; the last of the text positions stays that of [CLS]."""
        out = super().adapt(params, target)
        if "text_position" in params:
            learned, fresh = params["text_position"], target["text_position"]
            out["text_position"] = jnp.concatenate([fit_positions(learned[:-1], fresh[:-1]), learned[-1:]])
        return out

    def lay_out(self, text: Array, valid: Array):
        """(tokens, valid) [B,T+1]: BOS, pieces and EOS."""
        return DualEncoder.lay_out(self, text, valid)

    @property
    def output_name(self) -> str:
        return "softmax"

    @property
    def stacks(self) -> dict[str, int]:
        return {"lower": self.sizes.lower.depth}

    @property
    def cached(self) -> dict[str, Size]:
        return {"lower": self.sizes.lower, "upper": self.sizes.upper}

    def decoding_params(self, params: Params, extra: Extra) -> Params:
        laid_out = super().decoding_params(params, extra)
        if laid_out is params:
            return params
        dtype = self.compute.activation_dtype
        layers = (f"{kind}_{i}" for kind in ("upper", "look") for i in range(self.sizes.upper.depth))
        return {**laid_out, **{name: decoding_layer(params[name], dtype) for name in layers}}

    def capabilities(self):
        return {
            k: v for k, v in super().capabilities().items() if k != "attention"
        }  # of one pooler there is no such map

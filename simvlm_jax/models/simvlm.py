"""SimVLM: Simple Visual Language Model Pretraining with Weak Supervision (Wang et al., arXiv 2108.10904).

One idea: a prefix language model over [image tokens; text]. The image and a random prefix of the text are seen in both
directions, the rest is predicted left to right; nothing else is trained.

An image [Y,X,C] becomes P tokens by the first three blocks of a ResNet (section 3.2), text is T pieces. The encoder
sees [image; prefix], the decoder predicts the suffix and cross-attends to the encoder. Text keeps its absolute
position on both sides, and slot t of the decoder predicts piece t, so that a random prefix is a matter of masks alone:
encoder slots from the prefix length on and decoder slots before it are segment -1.

What the paper does not state, and our choice: GroupNorm in the conv stem (see nn.norm); one table of text positions
for encoder and decoder; prefix length uniform over [0, pieces] so that at least the EOS is predicted.

The ablations of table 5 are fields: `stem_stages` 2, 3, 4, or 0 for plain patches (the token grid stays that of
`patch`); `decoder_only`; `objective`.

Fine-tuning to classify (section 4.1, VQA, SNLI-VE, NLVR2) puts a linear head on the decoder's output at the last token of
the text. Where the text stands is the prefix length's to say: 0 feeds it to the decoder, the image alone to the encoder;
its full length puts it into the encoder beside the image. Several images are as many passes, whose outputs are
concatenated (NLVR2).
"""

import dataclasses
import functools
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.layout import constrain, in_use
from simvlm_jax.core.schema import Count, Meta, Positive, Rate, Side
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import BaseModel, Term, Vocabulary
from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.cache import empty_layers, write
from simvlm_jax.nn.conv_stem import TINY_STEM, ConvStem, ConvStemSize, Patches, conv_stem_flops
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.masks import Sight, bidirectional, causal, join, visible
from simvlm_jax.nn.norm import LayerNorm
from simvlm_jax.nn.position import resize_grid, resize_relative
from simvlm_jax.nn.sizes import Compute, Size, statistics_dtype
from simvlm_jax.nn.stack import Stack, stack_flops
from simvlm_jax.objectives.cross_entropy import cross_entropy, soft_cross_entropy

_RESNET101 = ConvStemSize(("conv7", 64), (256, 512, 1024, 2048), (3, 4, 23, 3))
_RESNET152 = ConvStemSize(("conv7", 64), (256, 512, 1024, 2048), (3, 8, 36, 3))
_WIDE_RESNET152 = ConvStemSize(("conv7", 80), (320, 640, 1280, 2560), (3, 8, 36, 3))
SIZES: dict[str, tuple[Size, Size, ConvStemSize]] = {  # encoder, decoder, conv stem
    "tiny": (
        Size(128, 2, 2, 256),
        Size(128, 2, 2, 256),
        TINY_STEM,
    ),
    "small": (Size(512, 8, 8, 2048), Size(512, 8, 8, 2048), _RESNET101),
    "base": (Size(768, 12, 12, 3072), Size(768, 12, 12, 3072), _RESNET101),
    "large": (Size(1024, 24, 16, 4096), Size(1024, 24, 16, 4096), _RESNET152),
    "huge": (Size(1280, 32, 16, 5120), Size(1280, 32, 16, 5120), _WIDE_RESNET152),
}
OBJECTIVES = ("prefix_lm", "lm", "span_corruption")
SENTINELS = 32
SPAN_SHARE, SPAN_LENGTH = 0.15, 3  # T5 (arXiv 1910.10683, section 3.3.4)


class Network(nn.Module):
    """The parameters and the passes through them; see SimVLM for what the fields mean."""

    model: "SimVLM"

    def setup(self):
        m = self.model
        encoder, decoder, stem = m.sizes
        dtype = m.compute.activation_dtype
        if m.stem_stages:
            self.stem = ConvStem(stem.first(m.stem_stages), encoder.width, m.patch, m.compute, m.drop_path)
        else:
            self.stem = Patches(encoder.width, m.patch, dtype)
        D = encoder.width
        init = nn.initializers.normal(D**-0.5)
        self.embedding = self.param("embedding", nn.with_logical_partitioning(init, ("V", "D")), (m.rows, D))
        self.table = in_use(self.embedding, "VD")  # gathered once, so that its gradient is summed once
        positions = nn.with_logical_partitioning(init, (None, "D"))
        self.image_position = self.param("image_position", positions, (m.grid[0] * m.grid[1], D))
        self.text_position = self.param("text_position", positions, (m.vocabulary.length, D))
        stack = functools.partial(Stack, compute=m.compute, dropout=m.dropout)
        if m.decoder_only:
            both = dataclasses.replace(decoder, depth=encoder.depth + decoder.depth)
            self.decoder = stack(both, relative_grid=m.grid, drop_path=m.drop_path)
        else:
            self.encoder = stack(encoder, relative_grid=m.grid, drop_path=m.drop_path)
            self.encoder_norm = LayerNorm(dtype)
            self.decoder = stack(decoder, cross=True)
        self.decoder_norm = LayerNorm(dtype)
        if m.classes:
            kernel = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("D", None))
            self.head_kernel = self.param("head_kernel", kernel, (m.images * D, m.classes))
            bias = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
            self.head_bias = self.param("head_bias", bias, (m.classes,))

    def embed(self, image, image_mask, tokens, positions, sight: Sight | None) -> tuple[Any, Any]:
        """[image; text] as ([B,P+T,D], Sight). Images are normalised to [-1, 1] here; `image` None means no image."""
        m = self.model
        dtype = m.compute.activation_dtype
        scale = jnp.asarray(self.embedding.shape[1] ** 0.5, dtype)  # unit variance, as image tokens have
        # looked up before the cast, so that the gradient of a row is summed in float32
        pieces = self.table[tokens]
        places = in_use(self.text_position, (None, "D"))[positions]
        text = constrain((pieces.astype(dtype) + places.astype(dtype)) * scale, "BTD")
        if image is None:
            return text, sight
        _, M, Y, X, _ = image.shape
        if M != 1 or (m.image_size, m.image_size) != (Y, X):
            raise ValueError(f"SimVLM takes one image of {m.image_size} px a row; got {M} of {Y} x {X}")
        seen = self.stem(image[:, 0].astype(dtype) / 127.5 - 1)
        seen = add(seen, in_use(self.image_position, (None, "D")) * self.embedding.shape[1] ** 0.5)
        valid = jnp.broadcast_to(image_mask[:, :1] if image_mask is not None else True, seen.shape[:2])
        both = bidirectional(valid) if sight is None else join(bidirectional(valid), sight)
        return jnp.concatenate([seen, text], axis=1), both

    def everything(self, batch, layout: "Layout"):
        """Touches every parameter once, to make them."""
        out = self.teacher_forced(batch, layout)
        if not self.model.classes:
            return out
        several = {**batch, "image": jnp.repeat(batch["image"][:, :1], self.model.images, axis=1)}
        return out, self.classify({k: v for k, v in several.items() if k != "image_mask"}, layout)

    def classify(self, batch, layout: "Layout"):
        """Logits [B,classes] in fp32 (or wider), from the decoder's output at the last slot that is predicted."""
        M, B = self.model.images, batch["text"].shape[0]
        rows = {k: batch[k] for k in ("image", "image_mask") if k in batch}
        if "image" in rows and rows["image"].shape[1] != M:
            raise ValueError(f"SimVLM classifies {M} images a row here (model.images); got {rows['image'].shape[1]}")
        if M > 1:  # a pass an image, with the same text
            rows = {k: v.reshape(B * M, 1, *v.shape[2:]) for k, v in rows.items()}
            layout = dataclasses.replace(
                layout, **{k: jnp.repeat(v, M, axis=0) for k, v in vars(layout).items() if k != "aligned"}
            )
        x = self.decoder_norm(self.decode(rows, layout))
        slots = jnp.where(layout.predicted, jnp.arange(x.shape[1]), 0)
        last = jnp.take_along_axis(x, slots.max(1)[:, None, None], axis=1)[:, 0].reshape(B, -1)
        precise = statistics_dtype(x.dtype)
        kernel = in_use(self.head_kernel, ("D", None), x.dtype)
        return jnp.dot(last, kernel, preferred_element_type=precise) + in_use(self.head_bias, (None,))

    def last_state(self, batch, layout: "Layout"):
        """The decoder's normalised output [B,D] in fp32 (or wider) at the last slot that is predicted."""
        x = self.decoder_norm(self.decode(batch, layout))
        slots = jnp.where(layout.predicted, jnp.arange(x.shape[1]), 0)
        last = jnp.take_along_axis(x, slots.max(1)[:, None, None], axis=1)[:, 0]
        return last.astype(statistics_dtype(x.dtype))

    def features(self, image):
        """[B,1,Y,X,C] -> [B,D]: the mean of the encoded image tokens, without text."""
        empty = jnp.zeros((image.shape[0], 1), jnp.int32)
        unseen = bidirectional(jnp.zeros(empty.shape, bool))
        if self.model.decoder_only:
            x, sight = self.embed(image, None, empty, empty, unseen)
            x, _ = self.decoder(x, Shared(visible(sight, sight)))
            x = self.decoder_norm(x)
        else:
            x, _ = self.encode(image, None, empty, empty, unseen)
        return x[:, :-1].astype(statistics_dtype(x.dtype)).mean(1)

    def teacher_forced(self, batch, layout: "Layout"):
        """Logits [B,T',V] of every decoder slot of a layout."""
        return self.logits(self.decode(batch, layout))

    def decode(self, batch, layout: "Layout"):
        """The decoder's output [B,T',D] at every slot of a layout, before the last norm."""
        image, image_mask = batch.get("image"), batch.get("image_mask")
        given = bidirectional(layout.given)
        if self.model.decoder_only:
            x, sight = self.embed(image, image_mask, *layout.one_sequence())
            x, _ = self.decoder(x, Shared(visible(sight, sight)), image_tokens=image is not None)
            return x[:, -layout.targets.shape[1] :]
        context, seen = self.encode(image, image_mask, layout.tokens, layout.positions, given)
        x, _ = self.embed(None, None, layout.inputs, layout.input_positions, given)
        sight = causal(layout.predicted)
        everything = Sight(jnp.zeros_like(seen.block), seen.segment)
        shared = Shared(visible(sight, sight), context, visible(sight, everything))
        return self.decoder(x, shared)[0]

    def encode(self, image, image_mask, tokens, positions, sight):
        """The encoder's output [B,P+T,D] over [image; prefix] and its Sight."""
        x, sight = self.embed(image, image_mask, tokens, positions, sight)
        x, _ = self.encoder(x, Shared(visible(sight, sight)), image_tokens=image is not None)
        return self.encoder_norm(x), sight

    def logits(self, x):
        """[B,T,D] -> [B,T,V] in fp32 (or wider), by the transposed input embedding."""
        x = self.decoder_norm(x)
        table, precise = self.table.astype(x.dtype), statistics_dtype(x.dtype)
        return constrain(jnp.einsum("BTD,VD->BTV", x, table, preferred_element_type=precise), "BTV")

    def step(self, tokens, positions, slots, shared_masks, cache, context=None):
        """Decoder pass over new tokens with a cache; returns (logits [B,T,V], cache)."""
        x, _ = self.embed(None, None, tokens, positions, None)
        own, cross = shared_masks
        x, cache = self.decoder(x, Shared(own, context, cross, slots), cache, image_tokens=False)
        return self.logits(x), cache


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the two sides see: encoder tokens where `given`, decoder inputs and targets where `predicted`; all [B,T]."""

    tokens: Any
    positions: Any
    given: Any
    inputs: Any
    input_positions: Any
    targets: Any
    predicted: Any
    aligned: bool

    def one_sequence(self):
        """(tokens, positions, Sight) for a single stack: the prefix in block 0, then one block a position.

        In an aligned layout prefix and suffix fill disjoint slots of the same T; otherwise one follows the other.
        """
        block = jnp.broadcast_to(1 + jnp.arange(self.inputs.shape[1]), self.inputs.shape)
        suffix = Sight(block, jnp.where(self.predicted, 0, -1))
        prefix = bidirectional(self.given)
        if not self.aligned:
            tokens = jnp.concatenate([self.tokens, self.inputs], axis=1)
            return tokens, jnp.concatenate([self.positions, self.input_positions], axis=1), join(prefix, suffix)
        pick = lambda a, b: jnp.where(self.given, a, b)  # noqa: E731
        return (
            pick(self.tokens, self.inputs),
            pick(self.positions, self.input_positions),
            Sight(pick(prefix.block, suffix.block), jnp.where(self.given | self.predicted, 0, -1)),
        )


@buildable("model")
@dataclasses.dataclass(frozen=True)
class SimVLM(BaseModel):
    """SimVLM by size and ablation.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the longest text, T.
      size: a row of SIZES.
      image_size, patch: pixels; (image_size / patch)^2 image tokens.
      stem_stages: ResNet stages of the conv stem, 0 for plain patches.
      decoder_only: one stack of both depths instead of encoder and decoder.
      objective: "prefix_lm", "lm" (no text in the prefix) or "span_corruption" (T5).
      classes: of the head that fine-tuning to classify puts on the decoder, 0 for none. images: a row, to classify.
      dropout, drop_path: off in pre-training, 0.1 in fine-tuning; drop_path acts on the conv stem and the encoder only.
      compute: dtype, remat, scan.
    """

    vocabulary: Vocabulary
    image_size: Side
    size: str = "tiny"
    patch: Side = 16
    stem_stages: Annotated[int, Meta(ge=0, le=4)] = 3
    decoder_only: bool = False
    objective: str = "prefix_lm"
    classes: Count = 0
    images: Positive = 1
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    compute: Compute = Compute()

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"SimVLM size {self.size!r} is not one of {', '.join(SIZES)}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"SimVLM objective {self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")

    @property
    def sizes(self) -> tuple[Size, Size, ConvStemSize]:
        return SIZES[self.size]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.image_size // self.patch, self.image_size // self.patch

    @property
    def rows(self) -> int:
        """Rows of the embedding: the vocabulary, and sentinels where the objective needs them."""
        return self.vocabulary.size + (SENTINELS if self.objective == "span_corruption" else 0)

    @property
    def network(self) -> Network:
        return Network(self)

    def init(self, rng, batch):
        rows = {k: v for k, v in batch.items() if k != "documents"}
        small = jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), rows)
        small["image"] = np.zeros((1, 1, self.image_size, self.image_size, 3), np.uint8)  # also where rows have none
        small.pop("image_mask", None)
        layout = prefix_layout(small["text"], small["text_mask"], np.zeros(1, np.int32), self.vocabulary.bos)
        variables = self.network.init(rng, small, layout, method="everything")
        return variables["params"], {}

    def per_example(self, params, extra, batch, *, rngs, step, train):
        """The language-model loss, over images with text and over documents alike (section 3.1).

        Rows with a `label` or `scores` are classified instead; label -1 is an answer outside the list and trains nothing.
        """
        groups = {"text": {k: v for k, v in batch.items() if k != "documents"}}
        if "documents" in batch:
            groups["documents"] = batch["documents"]
        terms, aux, total, count = {}, {}, 0.0, 0.0
        for i, (name, group) in enumerate(groups.items()):
            streams = {"dropout": jax.random.fold_in(rngs, i)} if train else {}
            if "label" in group or "scores" in group:
                terms["classify"], aux["classify_accuracy"] = self._classified(params, group, streams)
                continue
            layout = self.layout(group)
            logits = self.network.apply({"params": params}, group, layout, rngs=streams, method="teacher_forced")
            weight = layout.predicted * group["weight"][:, None]
            loss, tokens, correct = cross_entropy(logits, layout.targets, weight)
            aux[f"{name}_loss"], aux[f"{name}_accuracy"] = Term(loss, tokens), Term(correct, tokens)
            total, count = total + loss, count + tokens
            terms["lm"] = Term(total, count)
        return {}, terms, aux

    def _classified(self, params, group, streams) -> tuple[Term, Term]:
        """(loss, accuracy) of classified rows: softmax over a label, or a sigmoid an answer with soft scores."""
        logits = self._class_logits(params, group, streams)
        if "scores" in group:
            loss, rows, right = soft_cross_entropy(logits, group["scores"], group["weight"])
        else:
            label = jnp.asarray(group["label"])
            weight = jnp.asarray(group["weight"]) * (label >= 0)
            loss, rows, right = cross_entropy(logits[:, None], jnp.maximum(label, 0)[:, None], weight[:, None])
        return Term(loss, rows), Term(right, rows)

    def _class_logits(self, params, batch, streams) -> Any:
        """Logits [B,classes]; without images the text is all there is (cross-modality transfer, section 4.3)."""
        if not self.classes:
            raise ValueError("SimVLM has no head to classify with; set config.data.labels.size")
        layout = prefix_layout(batch["text"], batch["text_mask"], batch["prefix_length"], self.vocabulary.bos)
        return self.network.apply({"params": params}, batch, layout, rngs=streams, method="classify")

    def layout(self, group) -> Layout:
        """Encoder inputs, decoder inputs and targets of a group of rows."""
        text, valid = group["text"], group["text_mask"]
        if self.objective == "span_corruption":
            return span_layout(text, valid, group["seed"], self.vocabulary)
        prefix = group["prefix_length"] if self.objective == "prefix_lm" else jnp.zeros_like(text[:, 0])
        return prefix_layout(text, valid, prefix, self.vocabulary.bos)

    def adapt(self, params, target):
        """Resizes the image position table as a 2D grid, and the relative tables, to this model's image size.

        A longer text keeps the positions learned and has fresh ones after them; a shorter one drops the last.
        """
        out = dict(params)
        if "image_position" in params:
            side = round(params["image_position"].shape[0] ** 0.5)
            out["image_position"] = resize_grid(params["image_position"], (side, side), self.grid)

        if "text_position" in params:
            kept = params["text_position"][: self.vocabulary.length]
            out["text_position"] = jnp.asarray(target["text_position"]).at[: len(kept)].set(kept)

        def fit(path, leaf):
            return resize_relative(leaf, self.grid) if path[-2].key == "relative" else leaf

        for tower in {"encoder", "decoder"} & set(params):
            out[tower] = jax.tree_util.tree_map_with_path(fit, params[tower])
        return out

    def capabilities(self):
        able = {"prefill": self.prefill, "extend": self.extend, "attention": self.attention}
        able |= {"features": self.features, "pair_features": self.pair_features, "layout": self.visible_layout}
        if self.objective != "span_corruption":  # which knows texts with holes alone
            able["score_text"] = self.score_text
        return {**able, "classify": self.classify} if self.classes else able

    def classify(self, params, extra, batch):
        """Logits [B,classes] fp32 of the text (and images) of each row."""
        return self._class_logits(params, batch, {})

    def features(self, params, extra, batch):
        """Image features [B,D] fp32 for probing: the mean of the encoded image tokens."""
        return self.network.apply({"params": params}, batch["image"], method="features")

    def pair_features(self, params, extra, batch):
        """Features [B,D] fp32 of an image with a text, for probing: the decoder's last state, the text being the prefix.

        With `objective` "lm", which never has text in its prefix, the decoder reads the text.
        """
        pieces = jnp.asarray(batch["text_mask"]).sum(1)
        prefix = jnp.zeros_like(pieces) if self.objective == "lm" else pieces - 1  # all but EOS
        layout = prefix_layout(batch["text"], batch["text_mask"], prefix, self.vocabulary.bos)
        return self.network.apply({"params": params}, batch, layout, method="last_state")

    def score_text(self, params, extra, batch):
        """Log-likelihood [B] fp32 (nats) of each row's text after its prefix, EOS included, given image and prefix."""
        layout = self.layout(batch)
        asked = layout.predicted & (jnp.arange(batch["text"].shape[1]) >= batch["prefix_length"][:, None])
        logits = self.network.apply({"params": params}, batch, layout, method="teacher_forced")
        likely = jax.nn.log_softmax(logits.astype(statistics_dtype(logits.dtype)), axis=-1)
        chosen = jnp.take_along_axis(likely, layout.targets[..., None], axis=-1)[..., 0]
        return jnp.where(asked, chosen, 0).sum(1)

    def visible_layout(self, batch):
        """What the two sides see of a batch, for people: see Layout."""
        layout = self.layout(batch)
        return {k: np.asarray(v) for k, v in vars(layout).items() if k != "aligned"}

    def prefill(self, params, extra, batch, max_length):
        """Reads image and prompt (`text` where `text_mask`, without EOS), ready to predict up to `max_length` pieces.

        Returns (logits [B,V] of the first new piece, cache). Positions run to `vocabulary.length`: a prompt of width
        T leaves room for `length - T` pieces.
        """
        text, valid = batch["text"], batch["text_mask"]
        B, T = text.shape
        room = self.vocabulary.length - T
        if max_length > room:
            raise ValueError(
                f"a prompt of {T} pieces leaves room for {room} of {self.vocabulary.length}, not {max_length}"
            )
        size = valid.sum(1).astype(jnp.int32)
        start = jnp.full((B, 1), self.vocabulary.bos, jnp.int32)
        if self.objective == "lm":  # no text ever stands in the prefix: the prompt is forced on the decoder
            start, fed = jnp.concatenate([start, text], axis=1), jnp.concatenate([jnp.ones((B, 1), bool), valid], 1)
            text, valid, first = text[:, :0], valid[:, :0], jnp.zeros((B,), jnp.int32)
        elif self.objective == "span_corruption":  # the rest of the text is one masked span
            slots = jnp.arange(T + 1)
            text = jnp.where(slots == size[:, None], self.vocabulary.size, jnp.pad(text, ((0, 0), (0, 1))))
            valid, first = slots <= size[:, None], jnp.zeros((B,), jnp.int32)
            start = jnp.concatenate([start, jnp.full((B, 1), self.vocabulary.size, jnp.int32)], axis=1)
            fed = jnp.ones(start.shape, bool)
        else:
            fed, first = jnp.ones((B, 1), bool), size
        if not text.shape[1]:  # keep one masked slot, so that shapes without prompt or image stay valid
            text, valid = jnp.zeros((B, 1), jnp.int32), jnp.zeros((B, 1), bool)
        return self._start(params, batch, text, valid, start, fed, first, max_length)

    def _start(self, params, batch, text, valid, start, fed, first, max_length):
        m, variables = self, {"params": params}
        image, image_mask = batch.get("image"), batch.get("image_mask")
        positions = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
        dtype, B, steps = self.compute.activation_dtype, text.shape[0], start.shape[1] + max_length
        decoder = self.sizes[1]
        given = bidirectional(valid)
        if m.decoder_only:
            embedded: Any = m.network.apply(variables, image, image_mask, text, positions, given, method="embed")
            x, sight = embedded
            depth, P = self.sizes[0].depth + decoder.depth, x.shape[1]
            layers = empty_layers(B, depth, P + steps, decoder, dtype)
            slots = jnp.broadcast_to(jnp.arange(P), (B, P))
            unwritten = jnp.full((B, steps), -1, jnp.int32)
            keys = Sight(jnp.pad(sight.block, ((0, 0), (0, steps))), jnp.concatenate([sight.segment, unwritten], 1))
            _, layers = m.network.apply(
                variables, x, Shared(visible(sight, keys), slots=slots), layers, image is not None, method=_run_decoder
            )
            cross, context = None, None
        else:
            context, cross = m.network.apply(variables, image, image_mask, text, positions, given, method="encode")
            cross = cross.segment
            layers = empty_layers(B, decoder.depth, steps, decoder, dtype)
            keys = Sight(jnp.zeros((B, steps), jnp.int32), jnp.full((B, steps), -1, jnp.int32))
        cache = {
            "layers": layers,
            "block": keys.block,
            "segment": keys.segment,
            "cross": jnp.zeros((B, 0), jnp.int32) if cross is None else cross,
            "filled": jnp.full((B,), keys.block.shape[1] - steps, jnp.int32),
            "base": jnp.full((B,), keys.block.shape[1] - steps, jnp.int32) - first,
        }
        logits, cache = self._advance(params, cache, start, fed, context)
        last = jnp.maximum(fed.sum(1) - 1, 0)
        return jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0], cache

    def extend(self, params, extra, cache, tokens):
        """Feeds tokens [B,T] and returns (logits [B,T,V] of what follows each, cache)."""
        return self._advance(params, cache, tokens, jnp.ones(tokens.shape, bool), None)

    def _advance(self, params, cache, tokens, fed, context):
        """Writes the tokens that are `fed` (a prefix of each row) to the next slots and runs the decoder on them."""
        new = write(cache, fed)
        positions = jnp.clip(new.slots - cache["base"][:, None], 0, self.vocabulary.length - 1)
        cross = None
        if not self.decoder_only:
            zeros = jnp.zeros_like(cache["cross"])
            cross = visible(new.query, Sight(zeros, cache["cross"]))
        logits, layers = self.network.apply(
            {"params": params},
            tokens,
            positions,
            new.slots,
            (new.visible, cross),
            cache["layers"],
            context,
            method="step",
        )
        return logits, {**new.state, "layers": layers}

    def attention(self, params, extra, batch):
        """Where each predicted piece looks: [B,T,P], the last decoder layer's weights on image tokens, mean over heads.

        Row t belongs to piece t of `text`; all of it is predicted, as in captioning without a prompt.
        """
        layout = prefix_layout(
            batch["text"], batch["text_mask"], jnp.zeros_like(batch["text"][:, 0]), self.vocabulary.bos
        )
        _, state = self.network.apply(
            {"params": params}, batch, layout, method="teacher_forced", mutable=["intermediates"]
        )
        layers = state["intermediates"]["decoder"]
        block = layers["layers"] if self.compute.scan else layers[f"layer_{len(layers) - 1}"]
        weights = block["attention" if self.decoder_only else "cross_attention"]["weights"][0]
        weights = weights[-1] if self.compute.scan else weights
        P = self.grid[0] * self.grid[1]
        return weights.mean(1)[:, -batch["text"].shape[1] :, :P]

    def train_flops(self, batch):
        """6 FLOPs a matrix parameter a token (2 forward, 4 backward), attention and convolutions beside them."""
        encoder, decoder, stem = self.sizes
        total = 0.0
        for group in (batch, batch.get("documents", {})):
            if "text" not in group:
                continue
            B, T = group["text"].shape
            P = self.grid[0] * self.grid[1] if "image" in group else 0
            images = group["image"].shape[1] if P else 1
            classified = (
                "label" in group or "scores" in group
            )  # by a head on one state, without the vocabulary's softmax
            head = 2.0 * images * decoder.width * self.classes if classified else 0.0
            per_row = 0.0 if classified else 2.0 * T * self.rows * decoder.width
            if P and self.stem_stages:
                stem_used = stem.first(self.stem_stages)
                per_row += conv_stem_flops(stem_used, encoder.width, self.patch, self.image_size)
            elif P:
                per_row += 2.0 * P * self.patch**2 * 3 * encoder.width
            if self.decoder_only:
                both = T if self.objective != "span_corruption" else 2 * T
                deep = dataclasses.replace(decoder, depth=encoder.depth + decoder.depth)
                per_row += stack_flops(deep, P + both)
            else:
                per_row += stack_flops(encoder, P + T) + stack_flops(decoder, T, P + T)
            total += 3 * B * (per_row * images + head)
        return total


def prefix_layout(text, valid, prefix_length, bos) -> Layout:
    """Pieces before `prefix_length` are given, the others predicted; the first prediction starts from BOS."""
    slots = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
    prefix = prefix_length[:, None]
    shifted = jnp.pad(text, ((0, 0), (1, 0)))[:, :-1]
    return Layout(
        tokens=text,
        positions=slots,
        given=valid & (slots < prefix),
        inputs=jnp.where(slots == prefix, bos, shifted),
        input_positions=slots,
        targets=text,
        predicted=valid & (slots >= prefix),
        aligned=True,
    )


def span_layout(text, valid, seed, vocabulary: Vocabulary) -> Layout:
    """T5's span corruption: spans become sentinels, the decoder predicts each sentinel and its span, then EOS.

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
    return Layout(
        tokens=jnp.where(first, sentinel, text),
        positions=slots,
        given=pieces & (~hidden | first),
        inputs=jnp.where(slots == 0, vocabulary.bos, jnp.pad(targets, ((0, 0), (1, 0)))[:, :T]),
        input_positions=slots,
        targets=targets,
        predicted=predicted,
        aligned=False,
    )


def _run_decoder(network: Network, x, shared, cache, image_tokens):
    return network.decoder(x, shared, cache, image_tokens)

"""SimVLM: Simple Visual Language Model Pretraining with Weak Supervision (Wang et al., arXiv 2108.10904).

One idea: a prefix language model over [image tokens; text]. The image and a random prefix of the text are seen in both
directions, the rest is predicted left to right; nothing else is trained.

An image [Y,X,C] becomes P tokens by the first three blocks of a ResNet (section 3.2), text is T pieces. The encoder sees
[image; prefix], the decoder predicts the suffix and cross-attends to the encoder. Text keeps its absolute position on both
sides, and slot t of the decoder predicts piece t, so that a random prefix is a matter of masks alone: encoder slots from the
prefix length on and decoder slots before it are segment -1.

What the paper does not state, and our choice: GroupNorm in the conv stem (see nn.norm); one table of text positions for
encoder and decoder; prefix length uniform over [0, pieces] so that at least the EOS is predicted.

The ablations of table 5 are fields: `stem_stages` 2, 3, 4, or 0 for plain patches (the token grid stays that of `patch`);
`decoder_only`; `objective`.

Fine-tuning to classify (section 4.1, VQA, SNLI-VE, NLVR2) puts a linear head on the decoder's output at the last token of the
text. Where the text stands is the prefix length's to say: 0 feeds it to the decoder, the image alone to the encoder; its full
length puts it into the encoder beside the image. Several images are as many passes, whose outputs are concatenated (NLVR2).
"""

import dataclasses
import functools
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.parts import PAIRS, check_one_text, check_plain, parts_of
from simvlm_jax.core.schema import Count, Meta, Positive, Rate, Side
from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Batch, Extra, Params, Rngs, Rows, Term, Vocabulary
from simvlm_jax.families.class_head import class_terms
from simvlm_jax.families.language_model import DecoderNetwork, LanguageModel, Reading, Teacher
from simvlm_jax.families.text_layout import OBJECTIVES, Given, TextLayout, lay_out_prompt, lay_out_text, prefix_layout
from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.cache import Written, empty_layers, empty_slots, write
from simvlm_jax.nn.conv_stem import RESNET101, RESNET152, TINY_STEM, WIDE_RESNET152, ConvStem, ConvStemSize, Patches
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.masks import Kind, Mask, Sight, bidirectional, cross_mask, join, self_mask
from simvlm_jax.nn.norm import LayerNorm
from simvlm_jax.nn.position import fit_positions, resize_grid, resize_relative_tables
from simvlm_jax.nn.sizes import TOWERS, Compute, Size, statistics_dtype
from simvlm_jax.nn.stack import Stack
from simvlm_jax.objectives.cross_entropy import linear_cross_entropy


class Sizes(NamedTuple):
    """A row of SIZES: encoder and decoder, and the ResNet whose first stages are the conv stem (section 4.1)."""

    encoder: Size
    decoder: Size
    stem: ConvStemSize


_SMALL = Size(512, 8, 8, 2048)
SIZES = {
    "tiny": Sizes(TOWERS["tiny"], TOWERS["tiny"], TINY_STEM),
    "small": Sizes(_SMALL, _SMALL, RESNET101),
    "base": Sizes(TOWERS["B"], TOWERS["B"], RESNET101),
    "large": Sizes(TOWERS["L"], TOWERS["L"], RESNET152),
    "huge": Sizes(TOWERS["H"], TOWERS["H"], WIDE_RESNET152),
}


class Network(DecoderNetwork):
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
            kernel = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("D", "A"))
            self.head_kernel = self.param("head_kernel", kernel, (m.images * D, m.classes))
            bias = nn.with_logical_partitioning(nn.initializers.zeros, ("A",))
            self.head_bias = self.param("head_bias", bias, (m.classes,))

    def embed(self, given: Given) -> tuple[jax.Array, Sight]:
        """[image; text] as ([B,P+T,D], Sight). Images are normalised to [-1, 1] here; `image` None means no image."""
        m, image, mask = self.model, given.image, given.image_mask
        text = self.embed_text(given.tokens, given.positions)
        if image is None:
            return text, given.sight
        _, M, Y, X, _ = image.shape
        if M != 1 or (m.image_size, m.image_size) != (Y, X):
            raise ValueError(f"SimVLM takes one image of {m.image_size} px per row; got {M} of {Y} x {X}")
        seen = self.stem(image[:, 0].astype(m.compute.activation_dtype) / 127.5 - 1)
        seen = add(seen, in_use(self.image_position, (None, "D")) * self.embedding.shape[1] ** 0.5)
        valid = jnp.broadcast_to(mask[:, :1] if mask is not None else True, seen.shape[:2])
        return jnp.concatenate([seen, text], axis=1), join(bidirectional(valid), given.sight)

    def embed_text(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """Pieces [B,T] at positions [B,T] as [B,T,D], of unit variance, as image tokens are."""
        dtype = self.model.compute.activation_dtype
        # looked up before the cast, so that the gradient of a row is summed in float32
        pieces, places = self.table[tokens], in_use(self.text_position, (None, "D"))[positions]
        scale = jnp.asarray(pieces.shape[-1] ** 0.5, dtype)
        return constrain((pieces.astype(dtype) + places.astype(dtype)) * scale, "BTD")

    def everything(self, rows: Rows, layout: TextLayout):
        """Touches every parameter once, to make them."""
        out = self.teacher_forced(rows, layout)
        if not self.model.classes:
            return out
        several = {**rows, "image": jnp.repeat(rows["image"][:, :1], self.model.images, axis=1)}
        return out, self.classify({k: v for k, v in several.items() if k != "image_mask"}, layout)

    def classify(self, rows: Rows, layout: TextLayout):
        """Logits [B,classes] in fp32 (or wider), from the decoder's output at the last slot that is predicted."""
        M, B = self.model.images, rows["text"].shape[0]
        pictures = {k: rows[k] for k in ("image", "image_mask") if k in rows}
        if "image" in pictures and pictures["image"].shape[1] != M:
            raise ValueError(
                f"SimVLM classifies {M} images per row here (model.images); got {pictures['image'].shape[1]}"
            )
        if M > 1:  # a pass an image, with the same text
            pictures = {k: v.reshape(B * M, 1, *v.shape[2:]) for k, v in pictures.items()}
            layout = layout.repeated(M)
        last = self.last_state(pictures, layout).reshape(B, -1)
        kernel, precise = in_use(self.head_kernel, "DA", last.dtype), statistics_dtype(last.dtype)
        return jnp.dot(last, kernel, preferred_element_type=precise) + in_use(self.head_bias, "A")

    def last_state(self, rows: Rows, layout: TextLayout):
        """The decoder's normalised output [B,D] at the last slot that is predicted."""
        x = self.decoder_norm(self.decode(rows, layout))
        return jnp.take_along_axis(x, layout.last[:, None, None], axis=1)[:, 0]

    def features(self, image: jax.Array) -> jax.Array:
        """[B,1,Y,X,C] -> [B,D]: the mean of the encoded image tokens, without text."""
        empty = jnp.zeros((image.shape[0], 1), jnp.int32)
        given = Given(image, None, empty, empty, bidirectional(jnp.zeros(empty.shape, bool)))
        if self.model.decoder_only:
            x, sight = self.embed(given)
            x = self.decoder_norm(self.decoder(x, Shared(self_mask(sight, Kind("full", "right")))))
        else:
            x, _ = self.encode(given)
        return x[:, :-1].astype(statistics_dtype(x.dtype)).mean(1)

    def teacher_forced(self, rows: Rows, layout: TextLayout) -> jax.Array:
        """Logits [B,T',V] of every decoder slot of a layout."""
        return self.logits(self.decode(rows, layout))

    def decode(self, rows: Rows, layout: TextLayout) -> jax.Array:
        """The decoder's output [B,T',D] at every slot of a layout, before the last norm."""
        given = layout.given_with(rows.get("image"), rows.get("image_mask"), self.model.decoder_only)
        if self.model.decoder_only:
            x, sight = self.embed(given)
            mask = self_mask(sight, Kind("prefix", self._padding(given), None))
            x = self.decoder(x, Shared(mask), image_tokens=given.image is not None)
            return x[:, -layout.targets.shape[1] :]
        context, seen = self.encode(given)
        x, sight = self.embed_text(layout.inputs, layout.input_positions), layout.suffix
        cross = Mask(sight, seen, Kind("full", self._padding(given)))
        return self.decoder(x, Shared(self_mask(sight, Kind("causal")), context, cross))

    def encode(self, given: Given) -> tuple[jax.Array, Sight]:
        """The encoder's output [B,P+T,D] over [image; prefix] and its Sight."""
        x, sight = self.embed(given)
        mask = self_mask(sight, Kind("full", self._padding(given)))
        return self.encoder_norm(self.encoder(x, Shared(mask), image_tokens=given.image is not None)), sight

    def last_norm(self, states: jax.Array):
        return self.decoder_norm(states)

    def output_table(self):
        return self.table

    def predictions(self, rows: Rows, layout: TextLayout) -> tuple[jax.Array, jax.Array]:
        """`head` of every decoder slot of a layout."""
        return self.head(self.decode(rows, layout))

    def step(
        self, tokens: jax.Array, new: Written, layers: dict[str, Any], fixed: dict[str, Any]
    ) -> tuple[jax.Array, Any]:
        """The decoder over new pieces [B,T] with a cache: (states [B,T,D], layers)."""
        x = self.embed_text(tokens, jnp.clip(new.position, 0, self.model.vocabulary.length - 1))
        cross = None
        if fixed:
            cross = cross_mask(new.mask.query, fixed["seen"])
        x, kept = self.decoder.step(x, layers["decoder"], new.slot, new.mask, fixed.get("context", ()), cross)
        return x, {"decoder": kept}

    def _padding(self, given: Given) -> str:
        """Where padding may stand in [image; prefix]: after it, unless images are masked, rows packed or spans cut out."""
        spans = self.model.objective == "span_corruption"
        return "any" if spans or given.packed or given.image_mask is not None else "right"

    def read_context(self, given: Given) -> dict[str, Any]:
        """What the decoder looks at: keys and values of its layers over [image; prefix], and who is seen there [B,P+T]."""
        context, sight = self.encode(given)
        return {"context": self.decoder.context(context), "seen": sight.segment >= 0}

    def read_prefix(
        self, given: Given, slots: dict[str, Any], layers: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """[image; prefix] written into the cache of a single stack: (slots, layers)."""
        x, sight = self.embed(given)
        new = write(slots, sight.segment >= 0, sight.block)
        _, kept = self.decoder.step(x, layers["decoder"], new.slot, new.mask, image_tokens=given.image is not None)
        return {**new.state, "position": slots["position"]}, {"decoder": kept}


@buildable("model")
@dataclasses.dataclass(frozen=True)
class SimVLM(LanguageModel):
    """SimVLM by size and ablation.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the longest text, T.
      size: a row of SIZES.
      image_size, patch: pixels; (image_size / patch)^2 image tokens.
      stem_stages: ResNet stages of the conv stem, 0 for plain patches.
      decoder_only: one stack of both depths instead of encoder and decoder.
      objective: "prefix_lm", "lm" (no text in the prefix) or "span_corruption" (T5).
      classes: of the head that fine-tuning to classify puts on the decoder, 0 for none. images: how many per row, to classify.
      dropout, drop_path: off in pre-training, 0.1 in fine-tuning; drop_path acts on the conv stem and the encoder only.
      compute: dtype, remat, scan.
    """

    SIZES = SIZES
    network_class = Network

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
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ValueError(f"SimVLM objective {self.objective!r} is not one of {', '.join(OBJECTIVES)}")
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")

    @property
    def stacks(self) -> dict[str, int]:
        return {"decoder": self.sizes.decoder.depth + (self.sizes.encoder.depth if self.decoder_only else 0)}

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.image_size // self.patch, self.image_size // self.patch

    @property
    def rows(self) -> int:
        """Rows of the embedding: the vocabulary, and sentinels where the objective needs them."""
        return self.vocabulary.size + OBJECTIVES[self.objective].sentinels

    def init(self, rng: Array, batch: Batch):
        _, rows = parts_of(batch)[0]
        small: dict[str, Any] = {k: np.zeros((1, *rows[k].shape[1:]), rows[k].dtype) for k in ("text", "text_mask")}
        small["image"] = np.zeros((1, 1, self.image_size, self.image_size, 3), np.uint8)  # also where rows have none
        layout = self.with_prefix(small, np.zeros(1, np.int32))
        variables = self.network.init(rng, small, layout, method="everything")
        return variables["params"], {}

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        """The language-model loss, over every part alike: images with text, documents (section 3.1).

        Rows with a `label` or `scores` are classified instead; label -1 is an answer outside the list and trains nothing.
        """
        terms, aux, total, count = {}, {}, 0.0, 0.0
        for i, (part, group) in enumerate(parts_of(batch)):
            name, streams = "text" if part == PAIRS else part, {"dropout": jax.random.fold_in(rngs, i)} if train else {}
            if "label" in group or "scores" in group:
                if "classify" in terms:
                    raise ValueError(f"SimVLM classifies the rows of one part; those of {part!r} have a label too")
                more, measured = class_terms(self.classify(params, extra, group, streams), group)
                terms, aux = {**terms, **more}, {**aux, **measured}
                continue
            who, how = f"SimVLM with objective {self.objective!r}", OBJECTIVES[self.objective]
            check_plain(group, part, who, needs=how.keys, packed=how.packed)
            layout = self.layout(group)
            states, table = self.apply(params, "predictions", group, layout, rngs=streams)
            wanted = layout.predicted * group["weight"][:, None]
            loss, tokens, correct = linear_cross_entropy(states, table, layout.targets, wanted)
            aux[f"{name}_loss"], aux[f"{name}_accuracy"] = Term(loss, tokens), Term(correct, tokens)
            total, count = total + loss, count + tokens
            terms["lm"] = Term(total, count)
        return {}, terms, aux

    def layout(self, group: Rows) -> TextLayout:
        """Encoder inputs, decoder inputs and targets of a group of rows."""
        return lay_out_text(group, self.objective, self.vocabulary)

    def with_prefix(self, rows: Rows, prefix_length: Array) -> TextLayout:
        """A group of rows with the first `prefix_length` [B] pieces given, whatever the objective."""
        check_one_text(rows, "SimVLM that classifies, or shows features or attention,")
        return prefix_layout(rows["text"], rows["text_mask"], prefix_length, self.vocabulary.bos)

    def adapt(self, params: Params, target: Params):
        """Resizes the image position table as a 2D grid, and the relative tables, to this model's image size.

        A longer text keeps the positions learned and has fresh ones after them; a shorter one drops the last.
        """
        out = dict(params)
        if "image_position" in params:
            side = round(params["image_position"].shape[0] ** 0.5)
            out["image_position"] = resize_grid(params["image_position"], (side, side), self.grid)
        if "text_position" in params:
            out["text_position"] = fit_positions(params["text_position"], target["text_position"])
        towers = {k: resize_relative_tables(params[k], self.grid) for k in ("encoder", "decoder") if k in params}
        return {**out, **towers}

    def capabilities(self):
        able = self.language_capabilities()
        able |= {"features": self.features, "pair_features": self.pair_features, "layout": self.visible_layout}
        if self.objective != "span_corruption":  # which knows texts with holes alone
            able["score_text"] = self.score_text
        return {**able, "classify": self.classify} if self.classes else able

    def classify(self, params: Params, extra: Extra, batch: Rows, streams: Rngs = None):
        """Logits [B,A] fp32; without images the text is all there is (cross-modality transfer, section 4.3)."""
        if not self.classes:
            raise ValueError("SimVLM has no head to classify with; set config.data.labels.size")
        return self.apply(params, "classify", batch, self.with_prefix(batch, batch["prefix_length"]), rngs=streams)

    def features(self, params: Params, extra: Extra, batch: Rows):
        """Image features [B,D] fp32 for probing: the mean of the encoded image tokens."""
        return self.apply(params, "features", batch["image"])

    def pair_features(self, params: Params, extra: Extra, batch: Rows):
        """Features [B,D] fp32 of an image with a text, for probing: the decoder's last state, the text being the prefix.

        With `objective` "lm", which never has text in its prefix, the decoder reads the text.
        """
        pieces = jnp.asarray(batch["text_mask"]).sum(1)
        prefix = jnp.zeros_like(pieces) if self.objective == "lm" else pieces - 1  # all but EOS
        layout = self.with_prefix(batch, prefix)
        last = self.apply(params, "last_state", batch, layout)
        return last.astype(statistics_dtype(last.dtype))

    def teacher_forced(self, params: Params, batch: Rows):
        layout = self.layout(batch)
        states, table = self.apply(params, "predictions", batch, layout)
        return Teacher(states, table, layout.targets, layout.predicted)

    def visible_layout(self, batch: Rows):
        """What the two sides see of a batch, for people: the arrays of a TextLayout."""
        return jax.tree.map(np.asarray, self.layout(batch).shown())

    def read(self, params: Params, batch: Rows, max_length: int):
        prompt = lay_out_prompt(batch["text"], batch["text_mask"], self.objective, self.vocabulary)
        image, (B, T) = batch.get("image"), prompt.tokens.shape
        given = prompt.with_image(image, batch.get("image_mask"))
        room = prompt.inputs.shape[1] + max_length
        if self.decoder_only:
            room += T + (0 if image is None else self.grid[0] * self.grid[1])
        slots, dtype = empty_slots(B, room, prompt.position), self.compute.activation_dtype
        layers = {"decoder": empty_layers(B, self.stacks["decoder"], room, self.sizes.decoder, dtype)}
        if self.decoder_only:
            slots, layers = self.apply(params, "read_prefix", given, slots, layers)
            return Reading(prompt.inputs, prompt.fed, slots, layers, {})
        return Reading(prompt.inputs, prompt.fed, slots, layers, self.apply(params, "read_context", given))

    def attention(self, params: Params, extra: Extra, batch: Rows):
        """Where each predicted piece looks: [B,T,P], the last decoder layer's weights on image tokens, mean over heads.

        Row t belongs to piece t of `text`; all of it is predicted, as in captioning without a prompt.
        """
        layout = self.with_prefix(batch, jnp.zeros(len(batch["text"]), jnp.int32))
        sown = self.intermediates(params, "decode", batch, layout)
        attention = "attention" if self.decoder_only else "cross_attention"
        weights = self.last_weights(sown["decoder"], attention)
        return weights[:, -batch["text"].shape[1] :, : self.grid[0] * self.grid[1]]

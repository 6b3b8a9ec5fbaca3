"""BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and Generation (Li et al., arXiv
2201.12086).

One idea: one text transformer in three modes (mixture of encoder-decoder, figure 2). As a text encoder it reads a text alone,
after [CLS], in both directions; as an image-grounded encoder it reads after [ENC] and looks at the image too; as an
image-grounded decoder it writes after [DEC], from left to right, looking at the image. The modes share everything but the
decoder's self-attention (table 3): what is shared is stored once, under "encoder" and "inputs", and what the decoder has for
itself under "decoder".

An image is encoded once and the text goes through all three modes (section 3.2):
  ITC  contrast of the [CLS] vectors, with momentum encoders, queues of their features and soft targets (objectives/momentum.py)
  ITM  a yes or no about image and text, read off [ENC]: each pair, and with each image a hard negative text, with each text a
       hard negative image (objectives/matching.py)
  LM   the text, piece by piece, with label smoothing

Images [B,M,Y,X,C]: of several, such as the frames of a video, all tokens stand one after another, class tokens included, and the
vectors are averaged (section 4.5). Texts of T pieces and EOS; the paper's 30 positions are [CLS] and 29 pieces.

To answer questions (section 4.4, `question`) the grounded encoder reads the image and the question, which is the row's prefix,
and the decoder writes what follows while looking at the encoder's states.

What differs, knowingly: negatives are sought in the whole batch, however it is cut or spread, where the authors' code seeks them
among the rows of a GPU; a row's draws come from its own `seed`. The queue takes no padding.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.schema import NotNegative, Rate, Share
from simvlm_jax.core.sharding import constrain
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import Array, Batch, Extra, Features, Params, Rngs, Rows, Term, sides_of
from simvlm_jax.families.dual_encoder import pair_weight
from simvlm_jax.families.language_model import OUTPUT, LanguageModel, Reading, Teacher
from simvlm_jax.families.med import Network, Sizes, looked_at
from simvlm_jax.families.momentum import MomentumContrast
from simvlm_jax.nn.cache import empty_layers, empty_slots
from simvlm_jax.nn.conv_stem import TINY_STEM
from simvlm_jax.nn.position import fit_positions
from simvlm_jax.nn.sizes import TOWERS
from simvlm_jax.nn.stack import decoding_layers
from simvlm_jax.objectives.cross_entropy import linear_cross_entropy
from simvlm_jax.objectives.matching import hard_negatives, matching_loss, picked

SIZES = {  # section 4.1
    "tiny": Sizes(TOWERS["tiny"], 16, TOWERS["tiny"], 128, 0, TINY_STEM),
    "base": Sizes(TOWERS["B"], 16, TOWERS["768"]),
    "large": Sizes(TOWERS["L"], 16, TOWERS["768"]),
}
SHARING = {
    "all": (),
    "all_but_cross": ("cross_attention", "norm_cross"),
    "all_but_self": ("attention", "norm_attention"),
    "none": ("attention", "norm_attention", "cross_attention", "norm_cross", "mlp", "norm_mlp"),
}
"""What of a layer the decoder has for itself, by what is shared (table 3); with "none" it has its own embedding too."""
_QUEUED = {"text": "pieces", "valid": "valid"}
"""Names in the queue of what is kept of texts."""
DEC, ENC = 0, 1
"""Rows of the embedding after those of the vocabulary, which are read and never written: [DEC] and [ENC]."""


@buildable("model")
@dataclasses.dataclass(frozen=True)
class BLIP(MomentumContrast, LanguageModel):
    """BLIP by size. A loss of weight 0 is not made, and what it alone needs is not there.

    Args:
      vocabulary: of the run's tokenizer; its `length` is the longest text, T. Its bos is [CLS], its eos [SEP].
      image_size: pixels.
      size: a row of SIZES.
      sharing: what encoder and decoder share, a key of SHARING.
      contrastive_weight, queue, momentum, soft, ramp, same_image: of ITC, as in MomentumContrast. Negatives of ITM are never of
        the same `id`, whatever `same_image` says.
      matching_weight, caption_weight: of ITM and LM.
      queued_texts: whether hard texts of ITM are sought in the queue too, whose pieces are then kept: the closest of thousands
        differ by a word, those of a small batch by all. The paper seeks them in the batch.
      below: negatives are less similar than this share of a row's own pair, for what is more alike is likely true as well (Moreira
        et al., arXiv 2407.15831, section 3); 0 for no such bound, as in the paper.
      smoothing: of labels, in LM.
      question: the prefix of a row is a question to the encoder, and the decoder looks at its answer to that (VQA).
      dropout: of the text's blocks. drop_path: of the image's.
      compute: dtype, remat, scan.
    """

    SIZES = SIZES
    network_class = Network

    size: str | Sizes = "tiny"
    sharing: str = "all_but_self"
    matching_weight: NotNegative = 1.0
    caption_weight: NotNegative = 1.0
    queued_texts: bool = False
    below: Share = 0.0
    smoothing: Rate = 0.1
    question: bool = False
    dropout: Rate = 0.0
    drop_path: Rate = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.sharing not in SHARING:
            raise ValueError(f"BLIP sharing {self.sharing!r} is not one of {', '.join(SHARING)}")
        if self.matching_weight and not self.contrastive_weight:
            raise ValueError(
                "BLIP's matching loss draws its negatives by the similarities of the contrastive one; give contrastive_weight "
                "too, or set matching_weight=0"
            )
        if self.queued_texts and not (self.follows and self.matching_weight):
            raise ValueError(
                "BLIP seeks negative texts in the queue (queued_texts=True); give a queue, and a matching_weight"
            )
        if self.question and (self.contrastive_weight or not self.caption_weight):
            raise ValueError(
                "BLIP answers questions (question=True) by its captioning loss alone; set contrastive_weight=0, "
                "matching_weight=0 and a caption_weight"
            )
        if self.question and self.sharing != "none" and self.sizes.image.width != self.sizes.text.width:
            raise ValueError(
                f"BLIP's encoder looks at an image of width {self.sizes.image.width} and its decoder at a question of width "
                f"{self.sizes.text.width}, so they cannot share cross-attention; set sharing='none'"
            )
        if self.positions < self.text_length:
            raise ValueError(
                f"texts of {self.vocabulary.length} pieces after [CLS] do not fit {self.positions} positions; set "
                f"config.text.length to {self.positions - 1} at most"
            )

    @property
    def positions(self) -> int:
        """Rows of the text's table of positions."""
        return self.sizes.positions or self.text_length

    @property
    def encodes(self) -> bool:
        """Whether there is a text encoder."""
        return bool(self.contrastive_weight or self.question)

    # ---- parameters ----------------------------------------------------------------------------------------------

    def init(self, rng: Array, batch: Batch):
        pixels = np.zeros((1, 1, *sides_of(self.image_size), 3), np.uint8)
        text = np.zeros((1, self.vocabulary.length), np.int32)
        made: Any = self.network.init(rng, pixels, *self.lay_out(text, text == 0), method="everything")["params"]
        return self.stored(made), self.state(jax.random.fold_in(rng, 1), made)

    def stored(self, params: Params) -> Params:
        """Parameters of the network without those that are another's: each that is shared once."""
        params = {k: v for k, v in params.items() if k != "text_stack"}
        if not (self.encodes and self.caption_weight) or self.sharing == "none":
            return params
        del params["decoder_inputs"]
        own = {
            name: {k: v for k, v in layer.items() if k in SHARING[self.sharing]}
            for name, layer in params["decoder"].items()
        }
        own = {name: layer for name, layer in own.items() if layer}
        return {**{k: v for k, v in params.items() if k != "decoder"}, **({"decoder": own} if own else {})}

    def completed(self, params: Params) -> Params:
        """The inverse of `stored`, for the network; what is complete stays as it is."""
        params = dict(params)
        if "encoder" in params:
            params.setdefault("text_stack", params["encoder"])
        if self.caption_weight and self.encodes and "decoder_inputs" not in params:
            own = params.get("decoder", {})
            params["decoder"] = {name: {**layer, **own.get(name, {})} for name, layer in params["encoder"].items()}
            params["decoder_inputs"] = params["inputs"]
        return params

    def apply(self, params: Params, method: str, *args: Any, rngs: Rngs = None, extra: Extra = None) -> Any:
        return super().apply(self.completed(params), method, *args, rngs=rngs, extra=extra)

    def intermediates(self, params: Params, method: str, *args: Any) -> Any:
        return super().intermediates(self.completed(params), method, *args)

    def decoding_params(self, params: Params, extra: Extra) -> Params:
        if OUTPUT in params:
            return params
        dtype, full = self.compute.activation_dtype, self.completed(params)
        out = {k: full[k] for k in ("image_tower", "decoder_inputs", "writer")}
        out |= {k: full[k] for k in ("inputs", "encoder") if self.question}
        out[OUTPUT] = full["decoder_inputs"]["embedding"][: self.vocabulary.size].astype(dtype)
        return {**out, "decoder": decoding_layers(full["decoder"], self.sizes.text.depth, dtype)}

    def adapt(self, params: Params, target: Params):
        """Positions as DualEncoder's; a decoder that shares less than the loaded one gets what that shared, and parts that a model of
        these losses has not are left behind."""
        out = super().adapt(params, target)
        if "decoder_inputs" in target and "inputs" in out and "decoder_inputs" not in out:
            out["decoder_inputs"] = jax.tree.map(jnp.array, out["inputs"])  # a buffer of its own, for steps donate them
        if "decoder" in target and "encoder" in out:
            loaded, own = out.get("decoder", {}), {}
            for name, layer in target["decoder"].items():
                whole = {**out["encoder"].get(name, {}), **loaded.get(name, {})}
                if lost := sorted(loaded.get(name, {}).keys() - layer.keys()):
                    raise ValueError(
                        f"sharing={self.sharing!r} has no place for a decoder's own {', '.join(lost)}; set model.sharing as it was"
                    )
                begun = self.question and self.sizes.image.width != self.sizes.text.width  # looks at another width now
                taken = {k: whole[k] for k in layer if k in whole and not (begun and k == "cross_attention")}
                own[name] = jax.tree.map(jnp.array, taken)
            out["decoder"] = own
        for name in ("inputs", "decoder_inputs"):
            if name in out and name in target:
                table = fit_positions(out[name]["position"]["table"], target[name]["position"]["table"])
                out[name] = {**out[name], "position": {"table": table}}
        parts = {"encoder", "inputs", "decoder", "decoder_inputs", "writer", "match_head", "temperature"}
        parts |= {"image_projection", "text_projection"}
        return {k: v for k, v in out.items() if k in target or k not in parts}

    @property
    def vector_width(self) -> int:
        return self.sizes.width

    def state(self, rng: Array, params: Params) -> Extra:
        made = super().state(rng, params)
        if self.queued_texts:
            box = nn.with_logical_partitioning(lambda shape, dtype: jnp.zeros(shape, dtype), ("N", None))
            shape = (self.queue, self.text_length)
            texts = {"pieces": box(shape, jnp.int32), "valid": box(shape, bool)}
            made["queue"] |= {**texts, "id": jnp.full((self.queue,), -1, jnp.int32)}
        return made

    def remembered(self, features: Features) -> dict[str, Any]:
        rows = super().remembered(features)
        if self.queued_texts:
            if "id" not in features:
                raise ValueError("BLIP with queued_texts=True needs rows with an `id`, and these have none")
            rows |= {_QUEUED[k]: features["match"][k] for k in _QUEUED} | {"id": features["id"]}
        return rows

    def followed(self, params: Params) -> Params:
        """Both encoders and their projections, without cross-attention."""
        kept = {k: params[k] for k in ("image_tower", "image_projection", "inputs", "text_projection")}
        cross = SHARING["all_but_cross"]
        alone = {name: {k: v for k, v in x.items() if k not in cross} for name, x in params["encoder"].items()}
        return {**kept, "encoder": alone}

    # ---- learning ------------------------------------------------------------------------------------------------

    def per_example(self, params: Params, extra: Extra, batch: Batch, *, rngs: Rngs, step: Array, train: bool):
        rows = self.pairs(batch)
        streams, weight = {"dropout": rngs} if train else {}, pair_weight(rows)
        pixels, mask = rows["image"], rows.get("image_mask")
        alone, texts = self.lay_out(rows["text"], rows["text_mask"]), {}
        if self.contrastive_weight:
            texts["contrast"] = alone
        if self.matching_weight:
            texts["match"] = alone
        writing = self._writing(rows) if self.caption_weight else None
        if writing is not None:
            texts |= {"write": (writing.inputs, writing.valid), "question": writing.question}
        made, features, terms, aux = self.apply(params, "learn", pixels, mask, texts, rngs=streams), {}, {}, {}
        if self.contrastive_weight:
            features = {"image": {"online": made["image"]}, "text": {"online": made["text"]}, "weight": weight}
            if self.follows:
                seen = {"image": (pixels, mask), "text": alone}
                for k, of in seen.items():
                    slow = self.apply(extra["momentum"], k, *of, rngs=streams)
                    features[k]["momentum"] = jax.lax.stop_gradient(slow)
            if "id" in rows:
                features["id"] = jnp.asarray(rows["id"]).astype(jnp.int32)
        if self.matching_weight:
            if "seed" not in rows:
                raise ValueError(
                    "BLIP draws hard negatives by the rows' seed, and these rows have none; add transforms.DrawSeed and keep `seed` "
                    "in config.data.parts.pairs.transforms"
                )
            shown = {"tokens": made["tokens"], "text": alone[0], "valid": alone[1], "seed": jnp.asarray(rows["seed"])}
            features["match"] = shown if mask is None else {**shown, "mask": mask}
        if writing is not None:
            predicted = writing.predicted * weight[:, None]
            states, table = made["head"]
            loss, pieces, right = linear_cross_entropy(
                states, table, writing.targets, predicted, smoothing=self.smoothing
            )
            terms["caption"], aux["caption_accuracy"] = Term(loss, pieces, self.caption_weight), Term(right, pieces)
        return features, terms, aux

    def across_batch(self, params: Params, extra: Extra, features: Features, *, step: Array, train: bool):
        """ITC over the batch and the queues, and ITM with negatives of the whole batch."""
        if not self.contrastive_weight:
            return {}, {}
        terms, aux = self.contrast(params, extra, features, step)
        if self.matching_weight:
            loss, asked, right = self._matching(params, extra, features, train)
            terms["matching"], aux["matching_accuracy"] = Term(loss, asked, self.matching_weight), Term(right, asked)
        return terms, aux

    def _matching(self, params: Params, extra: Extra, features: Features, train: bool):
        """matching_loss of 3 B pairs: each with its own, each text with a hard image, each image with a hard text.

        A text that is another's letter by letter is no negative where texts of the queue are.
        """
        shown, weight = features["match"], features["weight"]
        own = features["id"] if "id" in features else jnp.arange(len(weight))
        allowed = (own[:, None] != own[None]) & (weight > 0)[None]
        alike = self.alike(params, features, "text", "image")
        image, any_image = hard_negatives(alike, allowed & self._less(alike), shown["seed"], 0)
        texts, far = {k: shown[k] for k in ("text", "valid")}, None
        if self.queued_texts:
            queue = extra["queue"]
            far, texts = queue["text"], {k: jnp.concatenate([x, queue[_QUEUED[k]]]) for k, x in texts.items()}
            other = (own[:, None] != queue["id"][None]) & queue["valid"][:, 0]
            mark = _marks(texts["text"])
            allowed = jnp.concatenate([allowed, other], axis=1) & (mark[: len(own), None] != mark[None])
        alike = self.alike(params, features, "image", "text", far)
        text, any_text = hard_negatives(alike, allowed & self._less(alike), shown["seed"], 1)

        def join(*parts: jax.Array) -> jax.Array:
            x = jnp.concatenate(parts)
            return constrain(x, ("B", *(None,) * (x.ndim - 1)))

        pictures = jax.tree.map(
            lambda x: join(x, picked(x, image), x), {k: shown[k] for k in ("tokens", "mask") if k in shown}
        )
        pieces, valid = (join(shown[k], shown[k], texts[k][text]) for k in ("text", "valid"))
        streams = {"dropout": jax.random.key(shown["seed"].sum())} if train else {}
        looked = looked_at(pictures["tokens"], pictures.get("mask"))
        logits = self.apply(params, "match", self._grounding(pieces), valid, looked, rngs=streams)
        matches = jnp.arange(len(logits)) < len(weight)
        return matching_loss(logits, matches, join(weight, weight * any_image, weight * any_text))

    def _less(self, alike: jax.Array) -> jax.Array:
        """Which pairs [B,B+N] are less similar than a share of the row's own, if there is a bound."""
        own = alike.diagonal()[:, None]
        return alike < jnp.minimum(self.below * own, own) if self.below else jnp.ones(alike.shape, bool)

    def _grounding(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B,T] with [ENC] in the place of [CLS]."""
        return tokens.at[:, 0].set(self.vocabulary.size + ENC)

    # ---- writing -------------------------------------------------------------------------------------------------

    def _writing(self, rows: Rows) -> "Writing":
        """What the decoder reads and predicts; the prefix, if there is one, is given: to the encoder where it is a question."""
        text, valid = jnp.asarray(rows["text"]), jnp.asarray(rows["text_mask"])
        prefix, slots = rows.get("prefix_length"), jnp.arange(text.shape[1])
        question, predicted = None, valid
        if self.question:
            if prefix is None:
                raise ValueError(
                    "BLIP with question=True needs rows with a prefix_length, the question's; make them by "
                    "transforms.TokenizePair, and keep `prefix_length` in config.data.parts.pairs.transforms"
                )
            question = self._asked(text, slots < jnp.asarray(prefix)[:, None])
            from_prefix = jnp.minimum(slots + jnp.asarray(prefix)[:, None], text.shape[1])
            take = lambda x: jnp.take_along_axis(jnp.pad(x, ((0, 0), (0, 1))), from_prefix, axis=1)  # noqa: E731
            text, valid = take(text), take(valid)
            predicted = valid
        elif prefix is not None:
            predicted = valid & (slots >= jnp.asarray(prefix)[:, None])
        start = jnp.full((len(text), 1), self.vocabulary.size + DEC, jnp.int32)
        return Writing(jnp.concatenate([start, text[:, :-1]], axis=1), valid, text, predicted, question)

    def _asked(self, text: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A question [B,T] as the encoder reads it, [B,T+2]: [ENC], its pieces, [SEP]."""
        pieces = valid.sum(1, keepdims=True)
        slots = jnp.arange(text.shape[1] + 2)
        shifted = jnp.pad(text, ((0, 0), (1, 1)))
        tokens = jnp.where(slots == pieces + 1, self.vocabulary.eos, shifted).at[:, 0].set(self.vocabulary.size + ENC)
        return tokens.astype(jnp.int32), slots <= pieces + 1

    def teacher_forced(self, params: Params, batch: Rows):
        w = self._writing({k: v for k, v in batch.items() if self.question or k != "prefix_length"})
        states, table = self.apply(
            params, "captions", batch["image"], batch.get("image_mask"), w.question, w.inputs, w.valid
        )
        targets, predicted = w.targets, w.predicted
        if self.question:  # back to the slots of the row
            slots = jnp.arange(targets.shape[1]) - jnp.asarray(batch["prefix_length"])[:, None]
            after, slots = slots >= 0, jnp.maximum(slots, 0)
            states = jnp.take_along_axis(states, slots[..., None], axis=1)
            targets, predicted = (jnp.take_along_axis(x, slots, axis=1) for x in (targets, predicted))
            predicted = predicted & after
        return Teacher(states, table, targets, predicted)

    def read(self, params: Params, batch: Rows, max_length: int):
        if "image" not in batch:
            raise ValueError("BLIP writes about images, and these rows have none")
        text, valid = jnp.asarray(batch["text"]), jnp.asarray(batch["text_mask"])
        B, question = len(text), None
        tokens, fed = jnp.full((B, 1), self.vocabulary.size + DEC, jnp.int32), jnp.ones((B, 1), bool)
        if self.question:
            question = self._asked(text, valid)
        else:
            tokens, fed = jnp.concatenate([tokens, text], axis=1), jnp.concatenate([fed, valid], axis=1)
        room, size = tokens.shape[1] + max_length, self.sizes.text
        layers = {"decoder": empty_layers(B, size.depth, room, size, self.compute.activation_dtype)}
        fixed = self.apply(params, "read_context", batch["image"], batch.get("image_mask"), question)
        return Reading(tokens, fed, empty_slots(B, room), layers, fixed)

    @property
    def stacks(self) -> dict[str, int]:
        return {"decoder": self.sizes.text.depth}

    # ---- capabilities --------------------------------------------------------------------------------------------

    def capabilities(self):
        """What it is trained to do: with a loss at 0, nothing that this loss teaches."""
        able = super().capabilities()
        if not self.contrastive_weight:
            able = {"features": self.features}
        if self.matching_weight:
            able |= {"score_pair": self.score_pair, "image_states": self.image_states}
        if self.caption_weight:
            able |= self.language_capabilities() | {"score_text": self.score_text}
        if self.question:  # which looks at the question's states
            del able["attention"]
        return able

    def embed_image(self, params: Params, extra: Extra, batch: Rows):
        """Images, or rows of several, in the shared space: unit vectors [B,E] fp32."""
        return self.apply(params, "image", batch["image"], batch.get("image_mask"))

    def image_states(self, params: Params, extra: Extra, batch: Rows):
        """Image tokens [B,M,1+P,W] that `score_pair` takes as `image_states` in the place of `image`."""
        return self.apply(params, "encode", batch["image"])

    def score_pair(self, params: Params, extra: Extra, batch: Rows):
        """The log odds [B] fp32 that a text belongs to its image, by the image-grounded encoder (ITM)."""
        states = batch["image_states"] if "image_states" in batch else self.image_states(params, extra, batch)
        tokens, valid = self.lay_out(batch["text"], batch["text_mask"])
        looked = looked_at(states, batch.get("image_mask"))
        logits = self.apply(params, "match", self._grounding(tokens), valid, looked)
        return logits[:, 1] - logits[:, 0]

    def attention(self, params: Params, extra: Extra, batch: Rows):
        """Where each predicted piece looks: [B,T,M*P], the weights of the decoder's last cross-attention, class tokens left out."""
        w = self._writing({k: v for k, v in batch.items() if k != "prefix_length"})
        found = self.intermediates(params, "captions", batch["image"], batch.get("image_mask"), None, w.inputs, w.valid)
        weights = self.last_weights(found["decoder"], "cross_attention")
        each = weights.reshape(*weights.shape[:2], batch["image"].shape[1], -1)[..., 1:]
        return each.reshape(*weights.shape[:2], -1)


class Writing(NamedTuple):
    """What the decoder is fed and predicts, [B,T] all: inputs, [DEC] first, targets, and which are valid and predicted; question:
    (tokens, valid) that the encoder reads, or None."""

    inputs: jax.Array
    valid: jax.Array
    targets: jax.Array
    predicted: jax.Array
    question: Any


def _marks(tokens: jax.Array) -> jax.Array:
    """A number [N] uint32 of each text [N,T], by which equal ones are known."""
    odd = jnp.uint32(2654435761) * (2 * jnp.arange(tokens.shape[1], dtype=jnp.uint32) + 1)
    mixed = (tokens.astype(jnp.uint32) + 1) * odd
    return (mixed ^ (mixed >> 15)).sum(1, dtype=jnp.uint32)

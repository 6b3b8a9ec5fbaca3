"""BLIP: transformers' captioner, matcher and answerer."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile
from simvlm_jax.core.types import sides_of
from simvlm_jax.interop import open_clip, pixels
from simvlm_jax.interop.family import Family, Options, Plan, Written, of_record, whole
from simvlm_jax.interop.parts import (
    activation_named,
    activation_of,
    compute,
    linear,
    norm,
    separate_attention,
    stack_of,
)
from simvlm_jax.interop.pixels import pixels_of
from simvlm_jax.interop.reference import Arrays, Reference, pretrained, random_images, random_texts, tensor
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Row, Table, under
from simvlm_jax.interop.tokenizers import special_files, tokenizer_of
from simvlm_jax.interop.transforms import TRANSPOSED, before, heads_bias, heads_in, heads_out, packed, patches
from simvlm_jax.text.tokenizer import Tokenizer

_MODEL = "models.blip"
_USUAL = open_clip.USUAL._replace(image_size=384, fit={"how": "whole", "filter": "bicubic"})
_VISION = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
_TEXT = {**_VISION, "vocab_size": 30_524, "max_position_embeddings": 512, "layer_norm_eps": 1e-12}
"""transformers' own, which its older versions leave out of a config.json."""
_KINDS = {  # of the classes of transformers: the losses of which the parts are there
    "BlipForConditionalGeneration": dict(contrastive_weight=0.0, matching_weight=0.0),
    "BlipForImageTextRetrieval": dict(caption_weight=0.0),
    "BlipForQuestionAnswering": dict(contrastive_weight=0.0, matching_weight=0.0, question=True),
}
_QKV = ("query", "key", "value")


def _plan(source: Source, options: Options) -> Plan:
    c, names = source.config, set(source.tensors)
    if source.layout != "hf":
        raise BadFile(
            f"{source.file} has no config.json of transformers beside it; of BLIP only what transformers writes is known here"
        )
    if "text_model.embeddings.word_embeddings.weight" in names:
        raise BadFile(
            "this is transformers' BlipModel, a class of which nobody has published weights; known are "
            + ", ".join(_KINDS)
        )
    encodes, writes, matches = (
        any(k.startswith(p) for k in names) for p in ("text_encoder.", "text_decoder.", "itm_head.")
    )
    kind = "BlipForImageTextRetrieval" if matches else _named(encodes, writes)
    vision, text = {**_VISION, **c.get("vision_config", {})}, {**_TEXT, **c.get("text_config", {})}
    shape = source.tensors.shape
    stacks = [stack_of(t) for t in (vision, text)]
    side = whole(vision, "image_size", default=384)
    seen = pixels_of(source.folder, side, _USUAL)

    def style(t: Any, epsilon: float, block: str) -> Any:
        act, eps = activation_of(t, "hidden_act", "gelu"), float(t.get("layer_norm_eps", epsilon))
        return of_record("nn.sizes", "Style", activation=act, epsilon=eps, key_bias=True, block=block)

    size = of_record(
        "families.med",
        "Sizes",
        image=of_record("nn.sizes", "Size", **stacks[0]),
        patch=whole(vision, "patch_size", default=16),
        text=of_record("nn.sizes", "Size", **stacks[1]),
        width=shape("vision_proj.weight")[0] if "vision_proj.weight" in names else 256,
        positions=whole(text, "max_position_embeddings"),
        image_style=style(vision, 1e-5, "pre"),
        text_style=style(text, 1e-12, "post"),
        mean=seen.mean,
        deviation=seen.deviation,
    )
    rows = whole(text, "vocab_size") - 2  # [DEC] and [ENC] come after the pieces
    start = text.get("bos_token_id", rows)
    if start != rows:
        raise BadFile(f"[DEC] is piece {start} of this BLIP, and only one right after the {rows} pieces is known here")
    tokenizer = tokenizer_of(source, options.tokenizer).tokenizer(
        options.length or whole(text, "max_position_embeddings") - 1, "", rows
    )
    fields = {**_KINDS[kind], "queue": 0, "sharing": "none"}
    return Plan(of_record(_MODEL, "BLIP", size=size, compute=compute(), **fields), tokenizer, seen.data)


def _named(encodes: bool, writes: bool) -> str:
    if not writes:
        raise BadFile(
            "this BLIP neither writes (text_decoder) nor matches (itm_head); which class of transformers is it?"
        )
    return "BlipForQuestionAnswering" if encodes else "BlipForConditionalGeneration"


# ---- what arrays are called ----------------------------------------------------------------------------------------


def names(model: Any) -> Table:
    """transformers' names, of those parts that the model has."""
    s, m = model.sizes, model
    rows = list(_vision(s))
    same: dict[str, str] = {}
    if m.encodes:
        rows += under("text_encoder.", "", _text(s.text.heads, "inputs", "encoder"))
    if m.contrastive_weight:
        rows += [*_map("vision_proj", "image_projection"), *_map("text_proj", "text_projection")]
    if m.matching_weight:
        rows += _map("itm_head", "match_head")
    if m.caption_weight:
        rows += under("text_decoder.bert.", "", _text(s.text.heads, "decoder_inputs", "decoder"))
        head = (
            *_map("transform.dense", "writer/transform"),
            *norm("transform.LayerNorm", "writer/norm"),
            Row("bias", "writer/bias"),
        )
        rows += under("text_decoder.cls.predictions.", "", head)
        same = {
            "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
            "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
        }
    dropped = {f"{k}.embeddings.position_ids": "a constant" for k in ("text_encoder", "text_decoder.bert")}
    own = {"temperature/": 0.07, "extra/momentum/": 0.0, "extra/queue/": 0.0, "extra/next": 0.0}
    return Table(tuple(rows), dropped, same, own=own)


def _map(theirs: str, ours: str) -> tuple[Row, ...]:
    return Row(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSED), Row(f"{theirs}.bias", f"{ours}/bias")


def _vision(s: Any) -> tuple[Row, ...]:
    H, three = s.image.heads, tuple(f"attention/{k}" for k in _QKV)
    block = (
        *norm("layer_norm1", "norm_attention"),
        Row("self_attn.qkv.weight", three, packed(*[heads_out(H)] * 3)),
        Row("self_attn.qkv.bias", tuple(f"{k}_bias" for k in three), packed(*[heads_bias(H)] * 3)),
        *linear("self_attn.projection", "attention/out", heads_in(H)),
        *norm("layer_norm2", "norm_mlp"),
        *linear("mlp.fc1", "mlp/up"),
        *linear("mlp.fc2", "mlp/down"),
    )
    tower = (
        Row("embeddings.class_embedding", "class_token/tokens", before()),
        Row("embeddings.position_embedding", "position", before()),
        Row("embeddings.patch_embedding.weight", "patches/kernel", patches(s.patch)),
        Row("embeddings.patch_embedding.bias", "patches/bias"),
        *under("encoder.layers.*.", "stack/layer_*/", block),
        *norm("post_layernorm", "norm"),
    )
    return under("vision_model.", "image_tower/", tower)


def _text(heads: int, inputs: str, stack: str) -> tuple[Row, ...]:
    def attention(theirs: str, ours: str, after: str) -> tuple[Row, ...]:
        three = [f"{theirs}.self.{k}" for k in _QKV]
        return (
            *separate_attention([*three, f"{theirs}.output.dense"], ours, heads),
            *norm(f"{theirs}.output.LayerNorm", after),
        )

    block = (
        *attention("attention", "attention", "norm_attention"),
        *attention("crossattention", "cross_attention", "norm_cross"),
        *linear("intermediate.dense", "mlp/up"),
        *linear("output.dense", "mlp/down"),
        *norm("output.LayerNorm", "norm_mlp"),
    )
    return (
        Row("embeddings.word_embeddings.weight", f"{inputs}/embedding"),
        Row("embeddings.position_embeddings.weight", f"{inputs}/position/table"),
        *norm("embeddings.LayerNorm", f"{inputs}/norm"),
        *under("encoder.layer.*.", f"{stack}/layer_*/", block),
    )


def _table(source: Source, model: Any) -> Table:
    return names(model)


# ---- config.json ---------------------------------------------------------------------------------------------------


def _written(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    assert tokenizer is not None
    s, v, m = model.sizes, tokenizer.vocabulary, model
    Y, X = sides_of(m.image_size)
    if s.stem is not None or Y != X:
        raise ValueError("transformers' BLIP has a plain ViT of square images; this one has another tower")
    parts = (bool(m.contrastive_weight and m.matching_weight), bool(m.caption_weight), m.question)
    kinds = {(True, False, False): 1, (False, True, False): 0, (False, True, True): 2}
    if parts not in kinds or (m.question and m.sharing != "none"):
        raise ValueError(
            "transformers has BLIPs that caption, that match, or that answer with two stacks of their own, and this run's is "
            "none of them; fine-tune it first with configs/blip.py:captions, :retrieval or :vqa"
        )
    kind = list(_KINDS)[kinds[parts]]

    def tower(size: Any, style: Any, **more: Any) -> dict[str, Any]:
        shape = dict(hidden_size=size.width, num_hidden_layers=size.depth, num_attention_heads=size.heads)
        act = dict(intermediate_size=size.mlp, hidden_act=activation_named(style.activation))
        return {**shape, **act, "layer_norm_eps": style.epsilon, **more}

    ids = dict(bos_token_id=v.size, pad_token_id=v.pad, sep_token_id=v.eos, eos_token_id=2, vocab_size=v.size + 2)
    text = tower(s.text, s.text_style, max_position_embeddings=m.positions, encoder_hidden_size=s.image.width, **ids)
    config = dict(
        architectures=[kind],
        model_type="blip",
        image_text_hidden_size=s.width,
        text_config={**text, "model_type": "blip_text_model", "is_decoder": True},
        vision_config=tower(s.image, s.image_style, image_size=Y, patch_size=s.patch),
        torch_dtype="float32",
    )
    files = {"config.json": config, **special_files(tokenizer)}
    files["tokenizer_config.json"] |= {"cls_token": files["tokenizer_config.json"].pop("bos_token")}
    files["tokenizer_config.json"] |= {"sep_token": files["tokenizer_config.json"].pop("eos_token")}
    files[pixels.FILE] = pixels.written(data, s.mean, s.deviation, "BlipImageProcessor")
    return Written(names(model), files)


# ---- the reference -------------------------------------------------------------------------------------------------


def _load(folder: Path) -> Any:
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return pretrained(kind, folder)


def _rows(model: Any) -> Arrays:
    v = model.vocabulary
    images, texts = random_images(sides_of(model.image_size), 4), random_texts(v, 4)
    mean, deviation = (np.asarray(x, np.float32) for x in (model.sizes.mean, model.sizes.deviation))
    made = ((images["image"][:, 0] / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2)
    rows = {**images, **texts, "pixels": made, "start": np.asarray(v.size)}
    rows["prefix_length"] = np.minimum(np.arange(4), texts["text_mask"].sum(1) - 1).astype(np.int32)
    tokens, valid = model.lay_out(texts["text"], texts["text_mask"])
    return {**rows, "tokens": np.asarray(tokens), "valid": np.asarray(valid)}


def _theirs(module: Any, rows: Arrays) -> Arrays:
    shown, kind = dict(pixel_values=tensor(rows["pixels"])), type(module).__name__
    tokens, valid, start = rows["tokens"].copy(), tensor(rows["valid"]).long(), int(rows["start"])
    if kind == "BlipForImageTextRetrieval":
        grounded = tokens.copy()
        grounded[:, 0] = start + 1
        match = module(input_ids=tensor(grounded), attention_mask=valid, **shown).itm_score
        alike = module(input_ids=tensor(tokens), attention_mask=valid, use_itm_head=False, **shown).itm_score
        return {"odds": (match[:, 1] - match[:, 0]).numpy(), "similarity": alike.numpy()}
    if kind == "BlipForConditionalGeneration":
        inputs = np.concatenate([np.full((len(tokens), 1), start), rows["text"][:, :-1]], axis=1)
        mask = tensor(rows["text_mask"]).long()
        found = module(input_ids=tensor(inputs), attention_mask=mask, **shown).logits.numpy()
        return {"logits": found[..., :start][rows["text_mask"]]}
    found = []
    for i, n in enumerate(rows["prefix_length"]):  # one by one, for questions and answers are of any length
        text = rows["text"][i][rows["text_mask"][i]]
        question = np.asarray([start + 1, *text[:n], int(rows["eos"])])
        answer = np.asarray([start, *text[n:-1]])
        one = dict(pixel_values=shown["pixel_values"][i : i + 1])
        out = _answered(module, tensor(question[None]), tensor(answer[None]), **one)
        found.append(out[0, :, :start])
    return {"logits": np.concatenate(found)}


def _answered(module: Any, question: Any, answer: Any, pixel_values: Any) -> np.ndarray:
    image = module.vision_model(pixel_values=pixel_values).last_hidden_state
    asked = module.text_encoder(
        input_ids=question, attention_mask=question * 0 + 1, encoder_hidden_states=image
    ).last_hidden_state
    return module.text_decoder(input_ids=answer, encoder_hidden_states=asked).logits.numpy()


def _ours(model: Any, params: Any, extra: Any, rows: Arrays) -> Arrays:
    if model.matching_weight:
        able = model.capabilities()
        image, text = (able[f"embed_{k}"](params, extra, rows) for k in ("image", "text"))
        odds = able["score_pair"](params, extra, rows)
        return {"odds": np.asarray(odds), "similarity": np.asarray(able["similarity"](params, extra, image, text))}
    given = {k: x for k, x in rows.items() if model.question or k != "prefix_length"}
    told = model.teacher_forced(params, given)
    logits = np.asarray(told.states) @ np.asarray(told.table).T
    return {"logits": logits[np.asarray(told.predicted)]}


_CLASS = resolve(f"simvlm_jax.{_MODEL}:BLIP")
FAMILIES = {
    "blip": Family(
        _CLASS,
        ("blip",),
        _plan,
        _table,
        {"hf": _written},
        {"hf": Reference(_load, lambda m: {**_rows(m), "eos": np.asarray(m.vocabulary.eos)}, _theirs, _ours)},
    )
}

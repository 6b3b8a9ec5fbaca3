"""SigLIP and SigLIP 2 of a fixed resolution: transformers' weights, and the authors' (big_vision's .npz)."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile
from simvlm_jax.core.types import sides_of
from simvlm_jax.interop import pixels
from simvlm_jax.interop.family import Family, Options, Plan, Written, of_record, whole
from simvlm_jax.interop.parts import (
    activation_of,
    compute,
    flax_attention,
    flax_linear,
    flax_norm,
    fused_attention,
    linear,
    norm,
    transformers_block,
)
from simvlm_jax.interop.pixels import Pixels, pixels_of
from simvlm_jax.interop.reference import Arrays, Reference, pretrained, random_images, random_texts, tensor
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Row, Table, under
from simvlm_jax.interop.tokenizers import special_files, tokenizer_of
from simvlm_jax.interop.transforms import SCALAR, TRANSPOSED, Transform, before, layered, patches
from simvlm_jax.text.tokenizer import Tokenizer

_MODEL = "models.siglip"
_HALF = (0.5, 0.5, 0.5)
_TOWER = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
_DEFAULTS = {
    "vision": dict(_TOWER, image_size=224, patch_size=16),
    "text": dict(_TOWER, vocab_size=32_000, max_position_embeddings=64),
}
"""transformers' own, which its older versions leave out of a config.json."""
USUAL = Pixels(224, {"how": "whole", "filter": "bicubic"}, _HALF, _HALF)


def _plan(name: str, source: Source, options: Options) -> Plan:
    if source.layout == "npz":
        image, text, patch, image_size, length, rows = _shapes(source)
        seen = USUAL._replace(image_size=image_size)
    else:
        c = source.config
        vision, words = ({**usual, **c.get(f"{k}_config", {})} for k, usual in _DEFAULTS.items())
        image, text = (_tower(t) for t in (vision, words))
        if whole(words, "projection_size", default=text["width"]) != image["width"] or not vision.get(
            "vision_use_head", True
        ):
            raise BadFile(
                "this SigLIP has a text projection of another width, or no head of its image tower: not known here"
            )
        patch, length, rows = (
            whole(vision, "patch_size"),
            whole(words, "max_position_embeddings"),
            whole(words, "vocab_size"),
        )
        seen = pixels_of(source.folder, whole(vision, "image_size"), USUAL)
    if (seen.mean, seen.deviation) != (_HALF, _HALF):
        raise BadFile(f"this SigLIP has pixels of mean {seen.mean}; SigLIP maps them to [-1, 1]")
    found = tokenizer_of(source, options.tokenizer)
    # the first SigLIP's texts are without punctuation; SigLIP 2's, of Gemma's vocabulary of 256,000, are only lower case
    spelling = "lower" if name == "siglip2" or rows == 256_000 else "plain"
    record = dict(tower=of_record("nn.sizes", "Size", **image), patch=patch)
    if text != image:
        record["text"] = of_record("nn.sizes", "Size", **text)
    model = of_record(_MODEL, "SigLIP", size=of_record(_MODEL, "Sizes", **record), compute=compute())
    return Plan(model, found.tokenizer(options.length or length, spelling, rows), seen.data)


def _tower(c: dict[str, Any]) -> dict[str, int]:
    if activation_of(c, "hidden_act", "gelu_pytorch_tanh") != "gelu" or float(c.get("layer_norm_eps", 1e-6)) != 1e-6:
        raise BadFile("this SigLIP has another activation than GELU's tanh form, or another epsilon than 1e-6")
    return dict(
        width=whole(c, "hidden_size"),
        depth=whole(c, "num_hidden_layers"),
        heads=whole(c, "num_attention_heads"),
        mlp=whole(c, "intermediate_size"),
    )


def _shapes(source: Source) -> tuple[dict[str, int], dict[str, int], int, int, int, int]:
    """(image tower, text tower, patch, pixels a side, positions of a text, pieces) of big_vision's arrays."""
    try:
        shape = source.tensors.shape
        towers = []
        for start in ("params/img/Transformer/", "params/txt/Encoder_0/"):
            scanned = f"{start}encoderblock/MlpBlock_0/Dense_0/kernel" in source.tensors
            block = f"{start}encoderblock/" if scanned else f"{start}encoderblock_0/"
            width, mlp = shape(f"{block}MlpBlock_0/Dense_0/kernel")[-2:]
            heads = shape(f"{block}MultiHeadDotProductAttention_0/query/kernel")[-2]
            depth = shape(f"{block}LayerNorm_0/scale")[0] if scanned else _depth(source, start)
            towers.append(dict(width=width, depth=depth, heads=heads, mlp=mlp))
        patch = shape("params/img/embedding/kernel")[0]
        side = round(shape("params/img/pos_embedding")[1] ** 0.5) * patch
        return *towers, patch, side, shape("params/txt/pos_embedding")[1], shape("params/txt/Embed_0/embedding")[0]  # pyright: ignore
    except KeyError as e:
        raise BadFile(f"{source.file} is no SigLIP of big_vision: it has no {e}") from e


def _depth(source: Source, start: str) -> int:
    return len({k.split("/")[3] for k in source.tensors if k.startswith(f"{start}encoderblock_")})


# ---- what arrays are called ----------------------------------------------------------------------------------------


def _transformers_table(model: Any) -> Table:
    image, text = model.sizes.tower, model.sizes.text or model.sizes.tower
    vision = (
        Row("embeddings.patch_embedding.weight", "patches/kernel", patches(model.sizes.patch)),
        Row("embeddings.patch_embedding.bias", "patches/bias"),
        Row("embeddings.position_embedding.weight", "position"),
        *under("encoder.layers.*.", "stack/layer_*/", transformers_block(image)),
        *norm("post_layernorm", "norm"),
        Row("head.probe", "head/probe/tokens", before()),
        *fused_attention("head.attention", "head/attention", image.heads),
        *norm("head.layernorm", "head/norm"),
        *linear("head.mlp.fc1", "head/mlp/up"),
        *linear("head.mlp.fc2", "head/mlp/down"),
    )
    words = (
        Row("embeddings.token_embedding.weight", "text_tower/embedding"),
        Row("embeddings.position_embedding.weight", "text_tower/position"),
        *under("encoder.layers.*.", "text_tower/stack/layer_*/", transformers_block(text)),
        *norm("final_layer_norm", "text_tower/norm"),
        Row("head.weight", "text_projection/kernel", TRANSPOSED),
        Row("head.bias", "text_projection/bias"),
    )
    rows = (
        *under("vision_model.", "image_tower/", vision),
        *under("text_model.", "", words),
        Row("logit_scale", "logit_scale/log", SCALAR),
        Row("logit_bias", "logit_scale/bias", SCALAR),
    )
    constants = [f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision")]
    return Table(rows, dict.fromkeys(constants, "a constant"))


def big_vision_table(model: Any, scanned: bool = False) -> Table:
    """big_vision's names. scanned: the layers of a tower are one array (a config with scan=True)."""
    block = (
        *flax_norm("LayerNorm_0", "norm_attention"),
        *flax_attention("MultiHeadDotProductAttention_0", "attention"),
        *flax_norm("LayerNorm_1", "norm_mlp"),
        *flax_linear("MlpBlock_0/Dense_0", "mlp/up"),
        *flax_linear("MlpBlock_0/Dense_1", "mlp/down"),
    )

    def layers(theirs: str, ours: str, size: Any) -> tuple[Row, ...]:
        if not scanned:
            return under(f"{theirs}encoderblock_*/", f"{ours}stack/layer_*/", block)
        return tuple(
            Row(
                f"{theirs}encoderblock/{r.theirs}",
                tuple(f"{ours}stack/layer_{i}/{r.ours}" for i in range(size.depth)),
                layered(r.transform),
            )
            for r in block
        )

    side = model.sizes.patch
    kernel = Transform(lambda x: x.reshape(-1, x.shape[-1]), lambda x: x.reshape(side, side, -1, x.shape[-1]))
    rows = (
        Row("params/img/embedding/kernel", "image_tower/patches/kernel", kernel),
        Row("params/img/embedding/bias", "image_tower/patches/bias"),
        Row("params/img/pos_embedding", "image_tower/position", before()),
        *layers("params/img/Transformer/", "image_tower/", model.sizes.tower),
        *flax_norm("params/img/Transformer/encoder_norm", "image_tower/norm"),
        Row("params/img/MAPHead_0/probe", "image_tower/head/probe/tokens", before()),
        *flax_attention("params/img/MAPHead_0/MultiHeadDotProductAttention_0", "image_tower/head/attention"),
        *flax_norm("params/img/MAPHead_0/LayerNorm_0", "image_tower/head/norm"),
        *flax_linear("params/img/MAPHead_0/MlpBlock_0/Dense_0", "image_tower/head/mlp/up"),
        *flax_linear("params/img/MAPHead_0/MlpBlock_0/Dense_1", "image_tower/head/mlp/down"),
        Row("params/txt/Embed_0/embedding", "text_tower/embedding"),
        Row("params/txt/pos_embedding", "text_tower/position", before()),
        *layers("params/txt/Encoder_0/", "text_tower/", model.sizes.text or model.sizes.tower),
        *flax_norm("params/txt/Encoder_0/encoder_norm", "text_tower/norm"),
        Row("params/txt/head/kernel", "text_projection/kernel"),
        Row("params/txt/head/bias", "text_projection/bias"),
        Row("params/t", "logit_scale/log", SCALAR),
        Row("params/b", "logit_scale/bias", SCALAR),
    )
    return Table(rows)


def _table(source: Source, model: Any) -> Table:
    if source.layout == "npz":
        return big_vision_table(model, any("/encoderblock/" in k for k in source.tensors))
    return _transformers_table(model)


# ---- configs -------------------------------------------------------------------------------------------------------


def _check(model: Any) -> None:
    if model.sizes.stem is not None or not model.use_bias:
        raise ValueError("a SigLIP of other people has plain patches and a bias of its logits, and this one has not")


def _write_hf(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    assert tokenizer is not None
    _check(model)
    s, v = model.sizes, tokenizer.vocabulary
    Y, X = sides_of(model.image_size)
    if Y != X:
        raise ValueError("transformers' SigLIP has square images; use --format big_vision")

    def tower(size: Any, **more: Any) -> dict[str, Any]:
        shape = dict(hidden_size=size.width, num_hidden_layers=size.depth, num_attention_heads=size.heads)
        return {
            **shape,
            "intermediate_size": size.mlp,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            **more,
        }

    text = tower(s.text or s.tower, vocab_size=v.size, max_position_embeddings=model.text_length)
    text |= dict(projection_size=s.tower.width, bos_token_id=v.bos, eos_token_id=v.eos, pad_token_id=v.pad)
    config = dict(
        architectures=["SiglipModel"],
        model_type="siglip",
        text_config=text,
        vision_config=tower(s.tower, image_size=Y, patch_size=s.patch),
        torch_dtype="float32",
    )
    files = {pixels.FILE: pixels.written(data, _HALF, _HALF, "SiglipImageProcessor"), **special_files(tokenizer)}
    return Written(_transformers_table(model), {"config.json": config, **files})


def _write_big_vision(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    assert tokenizer is not None
    _check(model)
    files = special_files(tokenizer)
    return Written(
        big_vision_table(model), {k: v for k, v in files.items() if k != "tokenizer_config.json"}, "model.npz"
    )


# ---- the reference -------------------------------------------------------------------------------------------------


def _rows(model: Any) -> Arrays:
    images, texts = random_images(sides_of(model.image_size), 4), random_texts(model.vocabulary, 4)
    last = texts["text_mask"].sum(1) - 1
    texts["text"][np.arange(4), last] = model.vocabulary.eos
    tokens = np.full((4, model.text_length), model.vocabulary.pad, np.int32)
    tokens[:, : texts["text"].shape[1]] = np.where(texts["text_mask"], texts["text"], model.vocabulary.pad)
    return {
        **images,
        **texts,
        "tokens": tokens,
        "pixels": (images["image"][:, 0] / np.float32(127.5) - 1).transpose(0, 3, 1, 2),
    }


def _theirs(module: Any, rows: Arrays) -> Arrays:
    out = module(input_ids=tensor(rows["tokens"]), pixel_values=tensor(rows["pixels"]))
    return {
        "image_states": out.vision_model_output.last_hidden_state.numpy(),
        "image_embeds": out.image_embeds.numpy(),
        "text_embeds": out.text_embeds.numpy(),
        "logits": out.logits_per_image.numpy(),
    }


def _ours(model: Any, params: Any, extra: Any, rows: Arrays) -> Arrays:
    image, text = (model.capabilities()[f"embed_{k}"](params, extra, rows) for k in ("image", "text"))
    scale = model.apply(params, "scale")
    tokens = model.intermediates(params, "pooled", rows["image"])["image_tower"]["normed"][0]
    logits = scale["scale"] * model.similarity(params, extra, image, text) + scale["bias"]
    found = {"image_states": tokens, "image_embeds": image, "text_embeds": text, "logits": logits}
    return {k: np.asarray(x) for k, x in found.items()}


def _load(folder: Path) -> Any:
    if "siglip2" in json.loads((folder / "config.json").read_text()).get("model_type", ""):
        raise ValueError("SigLIP 2 of any resolution (NaFlex) is not known here, only of a fixed one")
    return pretrained("SiglipModel", folder)


FAMILIES = {
    name: Family(
        resolve(f"simvlm_jax.{_MODEL}:SigLIP"),
        ("siglip",),
        functools.partial(_plan, name),
        _table,
        {"hf": _write_hf, "big_vision": _write_big_vision},
        {"hf": Reference(_load, _rows, _theirs, _ours)},
    )
    for name in ("siglip", "siglip2")
}

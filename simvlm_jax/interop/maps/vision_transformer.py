"""Vision transformers: ViT, DeiT, BEiT and MAE as transformers writes them, ViT as its authors do (.npz)."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile
from simvlm_jax.core.types import sides_of
from simvlm_jax.interop import pixels
from simvlm_jax.interop.family import Family, Options, Plan, Written, field, of_record, whole
from simvlm_jax.interop.parts import (
    activation_named,
    activation_of,
    compute,
    flax_attention,
    flax_linear,
    flax_norm,
    linear,
    norm,
)
from simvlm_jax.interop.pixels import Pixels, answers_of, pixels_of
from simvlm_jax.interop.reference import Arrays, Reference, pretrained, random_images, tensor
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Row, Table, under
from simvlm_jax.interop.transforms import TRANSPOSED, Transform, before, heads_bias, heads_in, heads_out, patches
from simvlm_jax.text.tokenizer import Tokenizer

_MODEL = "models.vision_transformer"
_HALF, _IMAGENET = (0.5, 0.5, 0.5), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_USUAL = {  # how pictures are made ready where nothing says so
    "vit": Pixels(224, {"how": "whole", "filter": "bilinear"}, _HALF, _HALF),
    "deit": Pixels(224, {"how": "whole", "side": 256, "filter": "bicubic"}, *_IMAGENET),
    "beit": Pixels(224, {"how": "whole", "filter": "bicubic"}, _HALF, _HALF),
    "mae": Pixels(224, {"how": "shorter", "side": 256, "filter": "bicubic"}, *_IMAGENET),
}
_PRE_TRAINED = "the head of pre-training, which reads a layer of its own"
_MAE = "the decoder of its pre-training, which is gone once it has learned"


def _plan(kind: str, source: Source, options: Options) -> Plan:
    if source.layout == "npz":
        return _plan_npz(source, options)
    c, names = source.config, set(source.tensors)
    said = field(c, "image_size", default=224)
    image_size = said if isinstance(said, int) else tuple(said)
    seen = pixels_of(source.folder, image_size, _USUAL[kind])
    classes = next(
        (source.tensors.shape(n)[0] for n in ("classifier.weight", "cls_classifier.weight") if n in names), 0
    )
    labels = answers_of(options.labels, c, classes)
    pooled = kind == "beit" and field(c, "use_mean_pooling", default=True)
    if kind == "beit" and (c.get("use_shared_relative_position_bias") or any("mask_token" in n for n in names)):
        raise BadFile("this BEiT shares its relative positions among layers or has a mask token: it is not fine-tuned")
    bias = bool(c.get("qkv_bias", True))
    style = dict(
        activation=activation_of(c, "hidden_act", "gelu"),
        epsilon=float(field(c, "layer_norm_eps", default=1e-12)),
        key_bias=bias and kind != "beit",
        bias=of_record("nn.sizes", "Bias", query=bias, value=bias),
        layer_scale=float(c.get("layer_scale_init_value", 0.1)) if kind == "beit" else 0.0,
    )
    stack = dict(
        width=whole(c, "hidden_size"),
        depth=whole(c, "num_hidden_layers"),
        heads=whole(c, "num_attention_heads"),
        mlp=whole(c, "intermediate_size"),
    )
    size = of_record(
        _MODEL,
        "Sizes",
        stack=of_record("nn.sizes", "Size", **stack),
        style=of_record("nn.sizes", "Style", **style),
        patch=whole(c, "patch_size"),
        tokens=1 + any("distillation_token" in n for n in names),
        heads=1 + ("distillation_classifier.weight" in names),
        pool="mean" if pooled else "cls",
        positions=kind != "beit" or bool(c.get("use_absolute_position_embeddings", False)),
        relative=kind == "beit" and bool(c.get("use_relative_position_bias", False)),
        norm="after" if pooled else "before",
        mean=seen.mean,
        deviation=seen.deviation,
    )
    return Plan(of_record(_MODEL, "VisionTransformer", size=size, compute=compute()), None, seen.data, labels)


def _plan_npz(source: Source, options: Options) -> Plan:
    """vision_transformer's archives say nothing but shapes."""
    names = {_bare(name): name for name in source.tensors}
    shape = lambda name: source.tensors.shape(names[name])  # noqa: E731
    start = "Transformer/encoderblock_"
    try:
        side, _, _, width = shape("embedding/kernel")
        heads = shape(f"{start}0/MultiHeadDotProductAttention_1/query/kernel")[1]
        mlp = shape(f"{start}0/MlpBlock_3/Dense_0/kernel")[1]
        tokens = shape("Transformer/posembed_input/pos_embedding")[1] - 1
    except KeyError as e:
        raise BadFile(f"{source.file} is no vision transformer of the authors' kind: it has no {e}") from e
    depth = len({name.split("/")[1] for name in names if name.startswith(start)})
    image_size = round(tokens**0.5) * side
    classes = shape("head/kernel")[1] if _headed(names) else 0
    seen = _USUAL["vit"]._replace(image_size=image_size)
    size = of_record(
        _MODEL,
        "Sizes",
        stack=of_record("nn.sizes", "Size", width=width, depth=depth, heads=heads, mlp=mlp),
        style=of_record("nn.sizes", "Style", activation="gelu_exact", epsilon=1e-6, key_bias=True),
        patch=side,
        mean=seen.mean,
        deviation=seen.deviation,
    )
    labels = answers_of(options.labels, {}, classes)
    return Plan(of_record(_MODEL, "VisionTransformer", size=size, compute=compute()), None, seen.data, labels)


def _headed(names: Collection[str]) -> bool:
    """Whether the head reads the class token; that of pre-training reads a layer between the two, and goes with it."""
    return "head/kernel" in names and "pre_logits/kernel" not in names


def _bare(name: str) -> str:
    return name.removeprefix("opt/target/")


# ---- what arrays are called ----------------------------------------------------------------------------------------


def names(kind: str, model: Any) -> Table:
    """transformers' names, those of its files first and those of its newest modules after them."""
    s, H = model.sizes, model.sizes.stack.heads
    start = {"mae": "vit."}.get(kind, f"{kind}.")
    to = dict(query=heads_out(H), key=heads_out(H), value=heads_out(H))
    old = [r for k, t in to.items() for r in linear(f"attention.attention.{k}", f"attention/{k}", t, heads_bias(H))]
    new = [r for k, t in to.items() for r in linear(f"attention.{k[0]}_proj", f"attention/{k}", t, heads_bias(H))]
    grid = tuple(side // s.patch for side in sides_of(model.image_size))
    table = ("relative/table", "relative/class")
    block = (
        *norm("layernorm_before", "norm_attention"),
        *old,
        *linear("attention.output.dense", "attention/out", heads_in(H)),
        *norm("layernorm_after", "norm_mlp"),
        *linear("intermediate.dense", "mlp/up"),
        *linear("output.dense", "mlp/down"),
        Row("lambda_1", "scale_attention"),
        Row("lambda_2", "scale_mlp"),
        Row("attention.attention.relative_position_bias.relative_position_bias_table", table, _relative(grid)),
    )
    newer = (
        *norm("layernorm_before", "norm_attention"),
        *new,
        *linear("attention.o_proj", "attention/out", heads_in(H)),
        *norm("layernorm_after", "norm_mlp"),
        *linear("mlp.fc1", "mlp/up"),
        *linear("mlp.fc2", "mlp/down"),
        Row("lambda_1", "scale_attention"),
        Row("lambda_2", "scale_mlp"),
        Row("relative_position_bias.relative_position_bias_table", table, _relative(grid)),
    )
    tower = (
        Row("embeddings.cls_token", "image_tower/class_token/tokens", before()),
        Row("embeddings.distillation_token", "image_tower/distillation_token/tokens", before()),
        Row("embeddings.position_embeddings", "image_tower/position", before()),
        Row("embeddings.patch_embeddings.projection.weight", "image_tower/patches/kernel", patches(s.patch)),
        Row("embeddings.patch_embeddings.projection.bias", "image_tower/patches/bias"),
        *under("encoder.layer.*.", "image_tower/stack/layer_*/", block),
        *under("layers.*.", "image_tower/stack/layer_*/", newer),
        *norm("layernorm", "image_tower/norm"),
        *norm("pooler.layernorm", "pool_norm"),
    )
    two = s.heads == 2
    rows = (
        *under(start, "", tower),
        *_head("cls_classifier" if two else "classifier", "head"),
        *_head("distillation_classifier", "distillation_head"),
    )
    dropped = {
        f"{start}pooler.dense.weight": "a pooler that no task reads",
        f"{start}pooler.dense.bias": "a pooler that no task reads",
        f"{start}encoder.layer.*.attention.attention.relative_position_bias.relative_position_index": "a constant",
    }
    if kind == "mae":
        dropped |= _decoder()
    return Table(rows, dropped, {}, (start,))


def _decoder() -> dict[str, str]:
    """The arrays of an MAE's decoder."""
    layer = (
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
    )
    layer += ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
    ends = [f"{folder}.*.{k}" for folder in ("decoder_layers", "decoder_encoder.layer") for k in layer]
    ends += ["decoder_embed", "decoder_norm", "decoder_pred"]
    arrays = [f"decoder.{k}.{p}" for k in ends for p in ("weight", "bias")]
    return dict.fromkeys([*arrays, "decoder.mask_token", "decoder.decoder_pos_embed"], _MAE)


def _head(theirs: str, ours: str) -> tuple[Row, ...]:
    return Row(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSED), Row(f"{theirs}.bias", f"{ours}/bias")


def _relative(grid: tuple[int, ...]) -> Transform:
    """BEiT's table [(2Y-1)(2X-1)+3,H] as a table [H,2Y-1,2X-1] and the class token's three numbers [H,3]."""
    Y, X = 2 * grid[0] - 1, 2 * grid[1] - 1

    def take(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return x[:-3].T.reshape(-1, Y, X), x[-3:].T

    return Transform(take, lambda table, three: np.concatenate([table.reshape(len(table), -1).T, three.T]))


def npz_names(source: Source) -> Table:
    """Names of vision_transformer, of weights alone or of a whole training state."""
    start = next((k[: -len("embedding/kernel")] for k in source.tensors if k.endswith("embedding/kernel")), "")
    headed = _headed({_bare(name) for name in source.tensors})
    block = (
        *flax_norm("LayerNorm_0", "norm_attention"),
        *flax_attention("MultiHeadDotProductAttention_1", "attention"),
        *flax_norm("LayerNorm_2", "norm_mlp"),
        *flax_linear("MlpBlock_3/Dense_0", "mlp/up"),
        *flax_linear("MlpBlock_3/Dense_1", "mlp/down"),
    )
    kernel = Transform(lambda x: x.reshape(-1, x.shape[-1]), _square)
    rows = (
        Row("cls", "image_tower/class_token/tokens", before()),
        Row("embedding/kernel", "image_tower/patches/kernel", kernel),
        Row("embedding/bias", "image_tower/patches/bias"),
        Row("Transformer/posembed_input/pos_embedding", "image_tower/position", before()),
        *under("Transformer/encoderblock_*/", "image_tower/stack/layer_*/", block),
        *flax_norm("Transformer/encoder_norm", "image_tower/norm"),
        *(Row(f"head/{k}", f"head/{k}") for k in ("kernel", "bias") if headed),
    )
    gone = () if headed else ("pre_logits", "head")
    dropped = {f"{start}{layer}/{k}": _PRE_TRAINED for layer in gone for k in ("kernel", "bias")}
    return Table(under(start, "", rows), dropped)


def _square(x: np.ndarray) -> np.ndarray:
    side = round((x.shape[0] / 3) ** 0.5)
    return x.reshape(side, side, 3, -1)


# ---- config.json ---------------------------------------------------------------------------------------------------

_CLASSES = {"vit": "ViT", "deit": "DeiT", "beit": "Beit", "mae": "ViT"}


def _write(kind: str, model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    s, name = model.sizes, _CLASSES[kind]
    head = f"{name}ForImageClassification{'WithTeacher' if s.heads == 2 else ''}" if model.classes else f"{name}Model"
    sides = sides_of(model.image_size)
    config: dict[str, Any] = dict(
        architectures=[head],
        model_type="vit" if kind == "mae" else kind,
        hidden_size=s.stack.width,
        num_hidden_layers=s.stack.depth,
        num_attention_heads=s.stack.heads,
        intermediate_size=s.stack.mlp,
        hidden_act=activation_named(s.style.activation),
        layer_norm_eps=s.style.epsilon,
        image_size=sides[0] if sides[0] == sides[1] else list(sides),
        patch_size=s.patch,
        num_channels=3,
        qkv_bias=s.style.bias.query,
        torch_dtype="float32",
        **pixels.answers(labels),
    )
    if kind == "beit":
        config |= dict(
            use_mean_pooling=s.pool == "mean",
            use_absolute_position_embeddings=s.positions,
            use_relative_position_bias=s.relative,
            use_mask_token=False,
            layer_scale_init_value=s.style.layer_scale,
        )
    files = {"config.json": config, pixels.FILE: pixels.written(data, s.mean, s.deviation, f"{name}ImageProcessor")}
    return Written(names("vit" if kind == "mae" else kind, model), files)


# ---- the reference -------------------------------------------------------------------------------------------------


_WITH_A_POOLER = ("ViTModel", "DeiTModel", "BeitModel")


def _load(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    name = (config.get("architectures") or ["AutoModel"])[0]
    return pretrained(name, folder, **({"add_pooling_layer": False} if name in _WITH_A_POOLER else {}))


def _rows(model: Any) -> Arrays:
    rows = random_images(sides_of(model.image_size))
    mean, deviation = (np.asarray(x, np.float32) for x in (model.sizes.mean, model.sizes.deviation))
    return {**rows, "pixels": ((rows["image"][:, 0] / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2)}


def _theirs(module: Any, rows: Arrays) -> Arrays:
    shown: Arrays = {}
    if module.config.model_type == "vit_mae":  # whose encoder hides nothing here, and keeps the order of the patches
        module = getattr(module, "vit", module)
        module.config.mask_ratio = 0.0
        count = (module.config.image_size // module.config.patch_size) ** 2
        shown["noise"] = tensor(np.tile(np.arange(count, dtype=np.float32), (len(rows["pixels"]), 1)))
    out = module(pixel_values=tensor(rows["pixels"]), output_hidden_states=True, **shown)
    found = {"states": out.hidden_states[-1].numpy()}
    return found | ({"logits": out.logits.numpy()} if hasattr(out, "logits") else {})


def _ours(model: Any, params: Any, extra: Any, rows: Arrays) -> Arrays:
    states = model.intermediates(params, "tokens", rows["image"])["image_tower"]["last"][0]
    found = {"states": np.asarray(states)}
    return found | ({"logits": np.asarray(model.classify(params, extra, rows))} if model.classes else {})


def _family(kind: str, kinds: tuple[str, ...]) -> Family:
    write: Callable[..., Written] = lambda *args: _write(kind, *args)  # noqa: E731
    return Family(
        resolve(f"simvlm_jax.{_MODEL}:VisionTransformer"),
        kinds,
        lambda source, options: _plan(kind, source, options),
        lambda source, model: npz_names(source) if source.layout == "npz" else names(kind, model),
        {"hf": write},
        {"hf": Reference(_load, _rows, _theirs, _ours)},
    )


FAMILIES = {
    "vit": _family("vit", ("vit",)),
    "deit": _family("deit", ("deit",)),
    "beit": _family("beit", ("beit",)),
    "mae": _family("mae", ("vit_mae",)),
}

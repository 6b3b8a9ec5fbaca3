"""EfficientNet-lite, by the names of timm and of efficientnet_lite_pytorch."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.build import resolve
from simvlm_jax.core.files import BadFile
from simvlm_jax.core.types import sides_of
from simvlm_jax.interop import pixels
from simvlm_jax.interop.family import Family, Options, Plan, Written, of_record
from simvlm_jax.interop.parts import batch_norm, compute
from simvlm_jax.interop.pixels import Pixels, answers_of
from simvlm_jax.interop.reference import Arrays, Reference, random_images, tensor
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.table import Row, Table
from simvlm_jax.interop.transforms import CONVOLUTION, TRANSPOSED
from simvlm_jax.text.tokenizer import Tokenizer

_MODEL = "models.efficientnet"
STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Of the seven stages; arrays do not show them."""
_COUNTER = "how many batches its statistics have seen"
_TIMM = Pixels(224, {}, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_LITE = Pixels(224, {}, (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255))


def _blocks(source: Source) -> list[tuple[int, int, str]]:
    """(stage, place in it, beginning of the names) of every block."""
    tensors = source.tensors
    if "conv_stem.weight" in tensors:
        found = {m[0]: (int(m[1]), int(m[2])) for n in tensors if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", n))}
        return sorted((stage, place, name) for name, (stage, place) in found.items())
    numbers = sorted({int(m[1]) for n in tensors if (m := re.match(r"_blocks\.(\d+)\.", n))})
    out: list[tuple[int, int, str]] = []
    before = None
    for number in numbers:
        name = f"_blocks.{number}."
        made = (tensors.shape(f"{name}_project_conv.weight")[0], tensors.shape(f"{name}_depthwise_conv.weight")[2])
        stage, place = (out[-1][0], out[-1][1] + 1) if made == before else (out[-1][0] + 1 if out else 0, 0)
        before = made
        out.append((stage, place, name))
    return out


def _plan(source: Source, options: Options) -> Plan:
    tensors, timm = source.tensors, "conv_stem.weight" in source.tensors
    if not timm and "_conv_stem.weight" not in tensors:
        raise BadFile(f"{source.file} is no EfficientNet: it has neither conv_stem.weight nor _conv_stem.weight")
    if se := next((n for n in tensors if "se." in n or "_se_" in n), None):
        raise BadFile(
            f"{source.file} has squeeze-and-excitation ({se}); the lite networks, which are known here, have none"
        )
    stages: list[list[int]] = []
    for stage, place, name in _blocks(source):
        if place == 0:
            if timm:
                depthwise = tensors.shape(f"{name}conv_dw.weight")
                expands = f"{name}conv_pwl.weight" in tensors
                out = tensors.shape(f"{name}{'conv_pwl' if expands else 'conv_pw'}.weight")[0]
                into = tensors.shape(f"{name}conv_pw.weight")[1] if expands else depthwise[0]
            else:
                depthwise = tensors.shape(f"{name}_depthwise_conv.weight")
                expands = f"{name}_expand_conv.weight" in tensors
                out = tensors.shape(f"{name}_project_conv.weight")[0]
                into = tensors.shape(f"{name}_expand_conv.weight")[1] if expands else depthwise[0]
            if stage >= len(STRIDES):
                raise BadFile(f"{source.file} has more than {len(STRIDES)} stages, whose strides are not known")
            stages.append([depthwise[2], STRIDES[stage], depthwise[0] // into, out, 0])
        stages[stage][4] += 1
    stem, top, head = ("conv_stem", "conv_head", "classifier") if timm else ("_conv_stem", "_conv_head", "_fc")
    usual = _TIMM if timm else _LITE
    said = source.config.get("pretrained_cfg", source.config)
    Y, X = (said.get("input_size") or [3, *[_side(stages)] * 2])[1:]
    image_size = Y if Y == X else (Y, X)
    mean, deviation = (tuple(said.get(k) or v) for k, v in (("mean", usual.mean), ("std", usual.deviation)))
    filter_ = said.get("interpolation", "bicubic")
    share = float(said.get("crop_pct", min(Y, X) / (min(Y, X) + 32)))
    fit = {"how": "shorter", "side": int(min(Y, X) / share), "filter": filter_}
    size = of_record(
        _MODEL,
        "Sizes",
        stages=tuple(map(tuple, stages)),
        stem=tensors.shape(f"{stem}.weight")[0],
        head=tensors.shape(f"{top}.weight")[0],
        mean=mean,
        deviation=deviation,
    )
    classes = tensors.shape(f"{head}.weight")[0] if f"{head}.weight" in tensors else 0
    listed = said.get("label_names") or source.config.get("label_names")
    config = {"id2label": dict(enumerate(listed))} if isinstance(listed, list) else source.config
    labels = answers_of(options.labels, config, classes)
    model = of_record(_MODEL, "EfficientNet", size=size, dropout=0.2, compute=compute(scan=False))
    return Plan(model, None, Pixels(image_size, fit, mean, deviation).data, labels)  # pyright: ignore[reportArgumentType]


def _side(stages: list[list[int]]) -> int:
    """The resolution of the lite networks by the blocks of their deepest stage."""
    return {4: 224, 5: 240, 6: 280, 8: 300}.get(stages[5][4] if len(stages) > 5 else 4, 224)


def timm_names(model: Any) -> Table:
    """timm's names, for tf_efficientnet_lite0 to 4."""
    rows: list[Row] = [Row("conv_stem.weight", "stem/kernel", CONVOLUTION), *batch_norm("bn1", "stem_norm")]
    for i, (_, _, expand, _, depth) in enumerate(model.sizes.stages):
        kinds = ("conv_pw", "conv_dw", "conv_pwl") if expand > 1 else ("conv_dw", "conv_pw")
        for j in range(depth):
            theirs, ours = f"blocks.{i}.{j}.", f"stage_{i}_block_{j}/"
            parts = ("expand", "depthwise", "project")[-len(kinds) :]
            for k, (kind, part) in enumerate(zip(kinds, parts, strict=True)):
                rows.append(Row(f"{theirs}{kind}.weight", f"{ours}{part}/kernel", CONVOLUTION))
                rows += batch_norm(f"{theirs}bn{k + 1}", f"{ours}{part}_norm")
    rows += [Row("conv_head.weight", "top/kernel", CONVOLUTION), *batch_norm("bn2", "top_norm"), *_head("classifier")]
    return Table(tuple(rows), _counters(rows))


def _head(theirs: str) -> tuple[Row, ...]:
    return Row(f"{theirs}.weight", "head/kernel", TRANSPOSED), Row(f"{theirs}.bias", "head/bias")


def _counters(rows: list[Row]) -> dict[str, str]:
    norms = [r.theirs.removesuffix("running_mean") for r in rows if r.theirs.endswith("running_mean")]
    return {f"{n}num_batches_tracked": _COUNTER for n in norms}


def _other_names(source: Source) -> Table:
    """efficientnet_lite_pytorch's names, whose blocks are numbered through."""
    rows: list[Row] = [Row("_conv_stem.weight", "stem/kernel", CONVOLUTION), *batch_norm("_bn0", "stem_norm")]
    for stage, place, theirs in _blocks(source):
        ours = f"stage_{stage}_block_{place}/"
        for k, part in enumerate(("expand", "depthwise", "project")):
            rows.append(Row(f"{theirs}_{part}_conv.weight", f"{ours}{part}/kernel", CONVOLUTION))
            rows += batch_norm(f"{theirs}_bn{k}", f"{ours}{part}_norm")
    rows += [Row("_conv_head.weight", "top/kernel", CONVOLUTION), *batch_norm("_bn1", "top_norm"), *_head("_fc")]
    return Table(tuple(rows), _counters(rows))


def _table(source: Source, model: Any) -> Table:
    return timm_names(model) if "conv_stem.weight" in source.tensors else _other_names(source)


def _written(model: Any, tokenizer: Tokenizer | None, labels: tuple[str, ...], data: Any) -> Written:
    s, fit = model.sizes, dict(data.get("fit") or {})
    Y, X = sides_of(data.image_size)
    name = next(
        (f"tf_efficientnet_{k}" for k, row in model.SIZES.items() if row.stages == s.stages), "efficientnet_lite"
    )
    said = dict(
        input_size=[3, Y, X],
        interpolation=fit.get("filter", "bicubic"),
        crop_pct=min(Y, X) / int(fit.get("side") or min(Y, X)),
        mean=list(s.mean),
        std=list(s.deviation),
        num_classes=model.classes,
        first_conv="conv_stem",
        classifier="classifier",
    )
    config = dict(architecture=name, num_classes=model.classes, num_features=s.head, pretrained_cfg=said)
    return Written(timm_names(model), {"config.json": config | pixels.answers(labels)})


# ---- the reference -------------------------------------------------------------------------------------------------


def _load(folder: Path) -> Any:
    try:
        import timm
        import torch
        from safetensors.torch import load_file
    except ImportError as e:
        raise ValueError(f"comparing with the reference needs torch and timm ({e}): pip install .[parity]") from e
    import json

    config = json.loads((folder / "config.json").read_text())
    module = timm.create_model(config["architecture"], num_classes=config["num_classes"])
    missing = module.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if lost := [k for k in missing.missing_keys if not k.endswith("num_batches_tracked")]:
        raise ValueError(f"timm does not find {lost[0]} in {folder}")
    return module.to(torch.float32).eval()


def _rows(model: Any) -> Arrays:
    rows = random_images(sides_of(model.image_size))
    mean, deviation = (np.asarray(x, np.float32) for x in (model.sizes.mean, model.sizes.deviation))
    return {**rows, "pixels": ((rows["image"][:, 0] / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2)}


def _theirs(module: Any, rows: Arrays) -> Arrays:
    pixels = tensor(rows["pixels"])
    maps = module.forward_features(pixels)
    return {"maps": maps.numpy(), "pooled": maps.mean((2, 3)).numpy(), "logits": module(pixels).numpy()}


def _ours(model: Any, params: Any, extra: Any, rows: Arrays) -> Arrays:
    maps = model.apply(params, "maps", rows["image"], extra=extra)
    pooled = model.features(params, extra, rows)
    return {
        "maps": np.asarray(maps).transpose(0, 3, 1, 2),
        "pooled": np.asarray(pooled),
        "logits": np.asarray(model.classify(params, extra, rows)),
    }


FAMILIES = {
    "efficientnet": Family(
        resolve(f"simvlm_jax.{_MODEL}:EfficientNet"),
        (*(f"tf_efficientnet_lite{i}" for i in range(5)), "efficientnet_lite"),
        _plan,
        _table,
        {"timm": _written},
        {"timm": Reference(_load, _rows, _theirs, _ours)},
    )
}

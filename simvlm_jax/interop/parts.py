"""What the tables and configs of several families share."""

from collections.abc import Mapping, Sequence
from typing import Any

from simvlm_jax.core.files import BadFile
from simvlm_jax.interop.family import field, of_record, whole
from simvlm_jax.interop.pixels import Pixels
from simvlm_jax.interop.table import Row
from simvlm_jax.interop.transforms import SAME, TRANSPOSED, Transform, heads_bias, heads_in, heads_out, packed

ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}
"""Activations by the names of transformers."""


def activation_of(config: Mapping[str, Any], name: str, default: Any = ...) -> str:
    """The activation that a config.json names.

    Raises:
      BadFile: it is not known.
    """
    said = field(config, name, default=default)
    if said not in ACTIVATIONS:
        raise BadFile(f"{name} {said!r} is not known; those that are are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[said]


def activation_named(activation: str) -> str:
    """The name that transformers has for an activation."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def stack_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Fields of a Size, by the names that transformers' encoders have for them."""
    return dict(
        width=whole(config, "hidden_size"),
        depth=whole(config, "num_hidden_layers"),
        heads=whole(config, "num_attention_heads"),
        mlp=whole(config, "intermediate_size"),
    )


def compute(scan: bool = True) -> Any:
    """The spec of how an imported model is run."""
    return of_record("nn.sizes", "Compute", dtype="auto", remat="none", scan=scan)


def linear(theirs: str, ours: str, transform: Transform = TRANSPOSED, bias: Transform = SAME) -> tuple[Row, ...]:
    """A linear map, with a bias if the model has one."""
    return Row(f"{theirs}.weight", ours, transform), Row(f"{theirs}.bias", f"{ours}_bias", bias)


def norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """A norm's scale, and its bias if the model has one."""
    return Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")


def flax_norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """A norm of Flax."""
    return tuple(Row(f"{theirs}/{k}", f"{ours}/{k}") for k in ("scale", "bias"))


def flax_linear(theirs: str, ours: str) -> tuple[Row, ...]:
    """A linear map of Flax, whose kernels stand as ours."""
    return Row(f"{theirs}/kernel", ours), Row(f"{theirs}/bias", f"{ours}_bias")


def flax_attention(theirs: str, ours: str) -> tuple[Row, ...]:
    """MultiHeadDotProductAttention of Flax, whose heads are axes of their own as ours."""
    return tuple(r for k in ("query", "key", "value", "out") for r in flax_linear(f"{theirs}/{k}", f"{ours}/{k}"))


def batch_norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """A batch norm of torch: scale, bias, and statistics, which stand in extra."""
    return (
        *norm(theirs, ours),
        Row(f"{theirs}.running_mean", f"extra/statistics/{ours}/mean"),
        Row(f"{theirs}.running_var", f"extra/statistics/{ours}/variance"),
    )


def separate_attention(theirs: Sequence[str], ours: str, heads: int) -> tuple[Row, ...]:
    """An attention whose maps of queries, keys, values and results have names of their own."""
    query, key, value, out = theirs
    return (
        *linear(query, f"{ours}/query", heads_out(heads), heads_bias(heads)),
        *linear(key, f"{ours}/key", heads_out(heads), heads_bias(heads)),
        *linear(value, f"{ours}/value", heads_out(heads), heads_bias(heads)),
        *linear(out, f"{ours}/out", heads_in(heads)),
    )


def fused_attention(theirs: str, ours: str, heads: int) -> tuple[Row, ...]:
    """torch.nn.MultiheadAttention, whose maps of queries, keys and values are one."""
    three = [f"{ours}/{k}" for k in ("query", "key", "value")]
    return (
        Row(f"{theirs}.in_proj_weight", tuple(three), packed(*[heads_out(heads)] * 3)),
        Row(f"{theirs}.in_proj_bias", tuple(f"{k}_bias" for k in three), packed(*[heads_bias(heads)] * 3)),
        *linear(f"{theirs}.out_proj", f"{ours}/out", heads_in(heads)),
    )


def open_clip_pixels(config: Mapping[str, Any], image_size: Any, usual: Pixels) -> Pixels:
    """How open_clip has pictures made ready, by the preprocess_cfg of its config.

    Raises:
      BadFile: it resizes in a way that is not known.
    """
    said = config.get("preprocess_cfg", {})
    mode, filter_ = said.get("resize_mode", "shortest"), said.get("interpolation", "bicubic")
    ways = {"shortest": "shorter", "longest": "longer", "squash": "whole"}
    if mode not in ways or filter_ not in ("bicubic", "bilinear"):
        raise BadFile(f"open_clip's resize_mode {mode!r} or interpolation {filter_!r} is not known here")
    fit = {**usual.fit, "how": ways[mode], "filter": filter_}
    if mode == "longest":
        fill = said.get("fill_color", 0)
        fit["fill"] = tuple(fill) if isinstance(fill, list | tuple) else (int(fill),) * 3
    mean, deviation = (tuple(said.get(k) or v) for k, v in (("mean", usual.mean), ("std", usual.deviation)))
    return Pixels(image_size, fit, mean, deviation)  # pyright: ignore[reportArgumentType]


def transformers_block(size: Any) -> tuple[Row, ...]:
    """A block of transformers' dual encoders."""
    names = [f"self_attn.{k}_proj" for k in ("q", "k", "v", "out")]
    return (
        *norm("layer_norm1", "norm_attention"),
        *separate_attention(names, "attention", size.heads),
        *norm("layer_norm2", "norm_mlp"),
        *linear("mlp.fc1", "mlp/up"),
        *linear("mlp.fc2", "mlp/down"),
    )

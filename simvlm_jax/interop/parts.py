"""What the tables and configs of several families share."""

from collections.abc import Mapping
from typing import Any

from simvlm_jax.core.files import BadFile
from simvlm_jax.interop.family import field, of_record
from simvlm_jax.interop.table import Row
from simvlm_jax.interop.transforms import SAME, TRANSPOSED, Transform

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


def compute(scan: bool = True) -> Any:
    """The spec of how an imported model is run."""
    return of_record("nn.sizes", "Compute", dtype="auto", remat="none", scan=scan)


def linear(theirs: str, ours: str, transform: Transform = TRANSPOSED, bias: Transform = SAME) -> tuple[Row, ...]:
    """A linear map, with a bias if the model has one."""
    return Row(f"{theirs}.weight", ours, transform), Row(f"{theirs}.bias", f"{ours}_bias", bias)


def norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """A norm's scale, and its bias if the model has one."""
    return Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")

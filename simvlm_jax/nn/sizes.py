"""Small records that constructors share."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.layout import IN_USE, gathers, platform
from simvlm_jax.core.trust import buildable


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """Keeps everything but gathered parameters, under whatever they are known by on their way into a product."""
    return primitive.name not in ("sharding_constraint", "transpose") and params.get("name") != IN_USE


_POLICIES = {
    "none": _all_but_gathered,
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """A transformer stack: width D, depth L, heads H (head width K = D / H) and mlp width F."""

    width: int
    depth: int
    heads: int
    mlp: int

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


TOWERS = {
    "tiny": Size(128, 2, 2, 256),  # of the built-in runs
    "512": Size(512, 12, 8, 2048),  # text towers by their width
    "640": Size(640, 12, 10, 2560),
    "768": Size(768, 12, 12, 3072),
    "1024": Size(1024, 12, 16, 4096),
    "1024x24": Size(1024, 24, 16, 4096),
    "1280": Size(1280, 32, 20, 5120),
    "B": Size(768, 12, 12, 3072),  # ViTs (arXiv 2010.11929, table 1; 2106.04560, table 2)
    "L": Size(1024, 24, 16, 4096),
    "So400m": Size(1152, 27, 16, 4304),
    "H": Size(1280, 32, 16, 5120),
    "1B": Size(1408, 40, 16, 6144),
    "G": Size(1664, 48, 16, 8192),
}
"""Towers that papers share."""


@dataclasses.dataclass(frozen=True)
class Style:
    """How a family builds its blocks: activation of mlps ("gelu", tanh form; "gelu_exact"; "quick_gelu"), the epsilon of
    norms, and whether keys have a bias. Softmax does not see one and its gradient is zero: it is there for weights that have
    it, and for their count.
    """

    activation: str = "gelu"
    epsilon: float = 1e-6
    key_bias: bool = False

    def __post_init__(self):
        if self.activation not in ("gelu", "gelu_exact", "quick_gelu"):
            raise ValueError(f"activation {self.activation!r} is not gelu, gelu_exact or quick_gelu")


@buildable("compute")
@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network is run, not what it computes.

    dtype: of activations ("auto": bfloat16 on TPU and GPU, float32 on CPU). remat: "none", "full" (keep only the
    inputs of blocks) or "dots" (keep the outputs of matrix products too). scan: one compiled block for all layers.
    """

    dtype: str = "auto"
    remat: str = "none"
    scan: bool = True

    def __post_init__(self):
        if self.dtype not in ("auto", "float32", "bfloat16", "float64"):
            raise ValueError(f"compute dtype {self.dtype!r} is not auto, float32, bfloat16 or float64")
        if self.remat not in ("none", "full", "dots"):
            raise ValueError(f"remat {self.remat!r} is not none, full or dots")

    @property
    def activation_dtype(self):
        if self.dtype == "auto":
            return jnp.float32 if platform() == "cpu" else jnp.bfloat16
        return jnp.dtype(self.dtype)

    def rematerialised(self, block: Any, scanned: bool = False) -> Any:
        """A module class whose activations are kept for the backward pass as `remat` says.

        Parameters that were gathered to be used are never kept: their shards are gathered again.
        """
        if self.remat == "none" and not gathers():
            return block
        return nn.remat(block, prevent_cse=not scanned, policy=_POLICIES[self.remat])


def statistics_dtype(dtype):
    """The dtype of softmax and norm statistics beside activations of `dtype`: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)

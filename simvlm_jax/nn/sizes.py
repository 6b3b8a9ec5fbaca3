"""Small records that constructors share."""

import dataclasses

import jax
import jax.numpy as jnp


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
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return jnp.dtype(self.dtype)


def statistics_dtype(dtype):
    """The dtype of softmax and norm statistics beside activations of `dtype`: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)

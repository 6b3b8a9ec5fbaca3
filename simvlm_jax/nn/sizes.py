"""Small records that constructors share."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.platform import platform
from simvlm_jax.core.sharding import IN_USE, gathers
from simvlm_jax.core.trust import buildable
from simvlm_jax.nn.mlp import ACTIVATIONS


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """Keeps everything but gathered parameters, under whatever they are known by on their way into a product."""
    return primitive.name not in ("sharding_constraint", "transpose") and params.get("name") != IN_USE


_POLICIES = {
    "none": _all_but_gathered,
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@buildable("stack", "image", "text", "tower", "encoder", "decoder", "lower", "upper")
@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers of a transformer stack: width D, depth L, heads H and mlp width F.

    kv_heads: G, heads of keys and values, each shared by H / G query heads (grouped-query attention, Ainslie et al., arXiv
    2305.13245); 0: as many as heads. head_width: K; 0: D / H.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    kv_heads: int = 0
    head_width: int = 0

    def __post_init__(self):
        if self.head_width < 0 or self.kv_heads < 0:
            raise ValueError(
                f"kv_heads {self.kv_heads} and head_width {self.head_width} are counts; 0 takes heads, and width / heads"
            )
        if not self.head_width and self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}; change one of them, or set head_width"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads {self.kv_heads} does not divide heads {self.heads}; set it to a divisor, or to 0 for all of them"
            )

    @property
    def key_heads(self) -> int:
        """G, the heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def key_width(self) -> int:
        """K, the width of a head."""
        return self.head_width or self.width // self.heads


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


@buildable("bias")
@dataclasses.dataclass(frozen=True)
class Bias:
    """Which projections of attention, mlps and norms have a bias. The keys' is `Style.key_bias`."""

    query: bool = True
    value: bool = True
    out: bool = True
    mlp: bool = True
    norm: bool = True


NO_BIAS = Bias(False, False, False, False, False)


@buildable("longer")
@dataclasses.dataclass(frozen=True)
class Longer:
    """Rotary frequencies slowed down for texts longer than those of pretraining.

    factor: by which all are divided (position interpolation, Chen et al., arXiv 2306.15595), or where `original` is set only
    the slow ones (Llama 3.1). original: the length of pretraining, in positions. slow, fast: frequencies that turn less than
    `slow` times in `original` are divided by the factor, those that turn more than `fast` times stay, and those between are
    blended.
    """

    factor: float
    original: int = 0
    slow: float = 1.0
    fast: float = 4.0

    def __post_init__(self):
        if self.factor < 1 or self.original < 0 or not 0 < self.slow < self.fast:
            raise ValueError(f"{self}: it needs factor >= 1, original >= 0 and 0 < slow < fast")


@buildable("rotary")
@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of queries and keys (Su et al., arXiv 2104.09864, section 3.2); see nn.rotary.

    base: pair i of R / 2 turns by position * base^(-2i / R). share: R / K, the share of the head width K that turns, its first
    components; the rest has no position. pairing: which components turn together: "half" (i and i + R / 2: LLaMA, GPT-NeoX,
    Phi) or "interleaved" (2i and 2i + 1: the paper, GPT-J). longer: how frequencies are slowed down, None for not at all.
    """

    base: float = 10_000.0
    share: float = 1.0
    pairing: str = "half"
    longer: Longer | None = None

    def __post_init__(self):
        if self.pairing not in ("half", "interleaved"):
            raise ValueError(f"rotary pairing {self.pairing!r} is not half or interleaved")
        if not 0 < self.share <= 1:
            raise ValueError(f"rotary share {self.share} is not in (0, 1]; 1 turns the whole head, rotary=None nothing")
        if self.base <= 1:
            raise ValueError(
                f"rotary base {self.base} is not above 1, and its angles would not differ; the paper has 10000"
            )

    def width(self, head_width: int) -> int:
        """R, the components of a head of width K that turn."""
        width = round(self.share * head_width)
        if not width or width % 2:
            raise ValueError(
                f"rotary share {self.share} of a head width of {head_width} is {width} components, and they turn in pairs; "
                "choose another share or head_width"
            )
        return width


@buildable("style", "image_style", "text_style")
@dataclasses.dataclass(frozen=True)
class Style:
    """How a family builds its blocks.

    Args:
      activation: of mlps: "gelu" (tanh form), "gelu_exact", "quick_gelu", "relu" or "silu".
      epsilon: of norms.
      key_bias: whether keys have a bias. Softmax does not see one and its gradient is zero, unless keys are normalised or
        turned by their positions: it is there for weights that have it, and for their count.
      norm: "layer" (Ba et al., arXiv 1607.06450) or "rms" (Zhang & Sennrich, arXiv 1910.07467).
      bias: of everything else.
      gated: mlps whose hidden units are a product of two maps, one of them activated (Shazeer, arXiv 2002.05202): SwiGLU with
        "silu", GEGLU with "gelu".
      block: "pre" (x + f(norm(x)), Xiong et al., arXiv 2002.04745), "post" (norm(x + f(x)), Vaswani et al. 2017) or
        "parallel" (x + attention(norm(x)) + mlp(norm(x)) with one norm: GPT-J, Phi).
      qk_norm: where queries and keys are normalised over the width of each head, by a norm of the kind of `norm` whose scale
        all heads share, before they turn (Henry et al., arXiv 2010.04245; Qwen3, Phi): "none", "self" (in self-attention),
        "cross" (in cross-attention: Llama 3.2 Vision) or "both".
      rotary: position embedding of self-attention; None for none.
      window: keys that a query of self-attention may see: those whose block (see nn.masks) is less than `window` behind its
        own, itself included (Mistral, arXiv 2310.06825, section 2); 0 for all.
      cross_every: in a stack with cross-attention, 0: each block has it, between self-attention and mlp. n: in front of every
        n-th block stands a layer of its own, cross-attention and mlp (Flamingo, arXiv 2204.14198, section 2.2).
      cross_gate: whether the two branches of such a layer are multiplied by tanh of a learned number that begins at 0.
      layer_scale: what each channel of a branch is multiplied by at the start, a learned number (Touvron et al., arXiv
        2103.17239, section 2); 0 for none.
      scaled: whether logits of attention are divided by the root of the head width; T5's are not (arXiv 1910.10683).
    """

    activation: str = "gelu"
    epsilon: float = 1e-6
    key_bias: bool = False
    norm: str = "layer"
    bias: Bias = Bias()
    gated: bool = False
    block: str = "pre"
    qk_norm: str = "none"
    rotary: Rotary | None = None
    window: int = 0
    cross_every: int = 0
    cross_gate: bool = False
    layer_scale: float = 0.0
    scaled: bool = True

    def __post_init__(self):
        allowed = {
            "activation": tuple(ACTIVATIONS),
            "norm": ("layer", "rms"),
            "block": ("pre", "post", "parallel"),
            "qk_norm": ("none", "self", "cross", "both"),
        }
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                raise ValueError(f"{field} {getattr(self, field)!r} is not {', '.join(values[:-1])} or {values[-1]}")
        for field in ("window", "cross_every"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} {getattr(self, field)} is negative; 0 turns it off")
        if self.cross_gate and not self.cross_every:
            raise ValueError(
                "cross_gate=True gates layers of cross-attention that stand alone, and cross_every=0 has none; "
                "set cross_every, or leave cross_gate out"
            )


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


def statistics_dtype(dtype: Any):
    """The dtype of softmax and norm statistics beside activations of `dtype`: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)

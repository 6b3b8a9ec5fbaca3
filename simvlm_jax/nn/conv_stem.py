"""Image to tokens: the first blocks of a ResNet (SimVLM's conv stage), or plain patches."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.nn.block import drop_branch
from simvlm_jax.nn.depthwise import depthwise
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.norm import GroupNorm
from simvlm_jax.nn.sizes import Compute


@dataclasses.dataclass(frozen=True)
class ConvStemSize:
    """A ResNet's first stages (He et al. 2015). widths: channels out of each stage. depths: blocks a stage.

    root: ("conv7", width) is the 7x7/2 convolution and 3x3/2 pooling of ResNet; ("conv3", width) two 3x3/2 convolutions,
    the first of half the width, for small images.
    bottleneck: normalised 1x1, 3x3, 1x1 blocks of a quarter of the width, or two 3x3 without norm.
    """

    root: tuple[str, int]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    bottleneck: bool = True

    def first(self, stages: int) -> "ConvStemSize":
        """The same stem with its first `stages` stages."""
        if not 1 <= stages <= len(self.widths):
            raise ValueError(f"a conv stem has 1 to {len(self.widths)} stages, not {stages}")
        return dataclasses.replace(self, widths=self.widths[:stages], depths=self.depths[:stages])


RESNET101 = ConvStemSize(("conv7", 64), (256, 512, 1024, 2048), (3, 4, 23, 3))
RESNET152 = ConvStemSize(("conv7", 64), (256, 512, 1024, 2048), (3, 8, 36, 3))
WIDE_RESNET152 = ConvStemSize(("conv7", 80), (320, 640, 1280, 2560), (3, 8, 36, 3))
TINY_STEM = ConvStemSize(("conv3", 64), (64, 96, 128, 128), (0, 1, 1, 1), bottleneck=False)
"""The stem of models that learn from small pictures in minutes."""


def stage_strides(stages: int, patch: int) -> tuple[int, ...]:
    """Strides of the stages after the root's 4: 1, then 2 each, as long as the net stride stays within `patch`."""
    strides, net = [], 4
    for i in range(stages):
        stride = 2 if i and net * 2 <= patch else 1
        strides.append(stride)
        net *= stride
    return tuple(strides)


class Conv(nn.Module):
    """A convolution [B,Y,X,C] -> [B,Y,X,C], He initialisation; without bias where a norm follows.

    symmetric: half the kernel is padded on either side; XLA's "SAME" pads less above than below when it strides. depthwise: every
    channel has a kernel of its own, and `features` is their number.
    """

    features: int
    kernel: int
    stride: int
    dtype: jnp.dtype
    bias: bool = False
    symmetric: bool = False
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array):
        half = self.kernel // 2
        letters = ("Y", "X", "I", "C")
        init = nn.with_logical_partitioning(nn.initializers.he_normal(), letters)
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param("kernel", init, (self.kernel, self.kernel, inputs, self.features))
        x, kernel = x.astype(self.dtype), in_use(kernel, letters, self.dtype)
        if self.depthwise:
            x = depthwise(x, kernel, self.stride)
        else:
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                [(half, half)] * 2 if self.symmetric else "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.bias:
            bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("C",)), (self.features,))
            x = add(x, in_use(bias, "C"))
        return constrain(x, "BYXC")


def conv(features: int, kernel: int, stride: int, dtype: Any, name: str, bias: bool = False) -> Conv:
    """A named convolution."""
    return Conv(features, kernel, stride, dtype, bias, name=name)


class Bottleneck(nn.Module):
    """conv-norm-relu 1x1, 3x3, 1x1 plus the input; the stride sits on the 3x3 (ResNet v1.5)."""

    width: int
    stride: int
    dtype: jnp.dtype
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array):
        inner = self.width // 4
        h = x
        for i, (features, kernel, stride) in enumerate(((inner, 1, 1), (inner, 3, self.stride), (self.width, 1, 1))):
            h = conv(features, kernel, stride, self.dtype, f"conv_{i}")(h)
            h = GroupNorm(self.dtype, name=f"norm_{i}")(h)
            if i < 2:
                h = nn.relu(h)
        if x.shape[-1] != self.width or self.stride != 1:
            x = conv(self.width, 1, self.stride, self.dtype, "conv_shortcut")(x)
            x = GroupNorm(self.dtype, name="norm_shortcut")(x)
        if self.drop_path and self.has_rng("dropout"):
            h = drop_branch(self.make_rng("dropout"), h, self.drop_path)
        return nn.relu(x + h)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus the input, without norm: a few such blocks need none, and learn faster so."""

    width: int
    stride: int
    dtype: jnp.dtype
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array):
        h = nn.relu(conv(self.width, 3, self.stride, self.dtype, "conv_0", bias=True)(x))
        h = conv(self.width, 3, 1, self.dtype, "conv_1", bias=True)(h)
        if x.shape[-1] != self.width or self.stride != 1:
            x = conv(self.width, self.stride, self.stride, self.dtype, "conv_shortcut", bias=True)(x)
        if self.drop_path and self.has_rng("dropout"):
            h = drop_branch(self.make_rng("dropout"), h, self.drop_path)
        return x + h


class ConvStem(nn.Module):
    """[B,Y,X,C] -> [B,P,D]: root, residual stages, and a linear map of what is left of a patch to width D."""

    size: ConvStemSize
    width: int
    patch: int
    compute: Compute
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array):
        root, root_width = self.size.root
        dtype = self.compute.activation_dtype
        if root == "conv7":
            x = conv(root_width, 7, 2, dtype, "root")(image)
            x = nn.relu(GroupNorm(dtype, name="root_norm")(x))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        elif root == "conv3":
            x = image
            for i, width in enumerate((root_width // 2, root_width)):
                x = nn.relu(conv(width, 3, 2, dtype, f"root_{i}", bias=True)(x))
        else:
            raise ValueError(f"conv stem root {root!r} is not conv7 or conv3")
        strides = stage_strides(len(self.size.widths), self.patch)
        scan = self.compute.scan
        kind = Bottleneck if self.size.bottleneck else BasicBlock
        block, scanned = self.compute.rematerialised(kind), self.compute.rematerialised(kind, scanned=True)
        for i, (width, depth) in enumerate(zip(self.size.widths, self.size.depths, strict=True)):
            for j in range(min(depth, 1) if scan else depth):
                stride = strides[i] if j == 0 else 1
                x = block(width, stride, dtype, self.drop_path, name=f"stage_{i}_block_{j}")(x)
            if scan and depth > 1:  # all blocks of a stage but the first have one shape
                rest = nn.scan(
                    lambda cell, x, _: (cell(x), None),
                    length=depth - 1,
                    variable_axes={"params": 0},
                    split_rngs={"params": True, "dropout": True},
                    metadata_params={nn.PARTITION_NAME: "L"},
                )
                x, _ = rest(scanned(width, 1, dtype, self.drop_path, name=f"stage_{i}_blocks"), x, None)
        return Patches(self.width, self.patch // (4 * math.prod(strides)), dtype, name="project")(x)


class Patches(nn.Module):
    """[B,Y,X,C] -> [B,P,D]: the linear map of every patch of `patch` x `patch` pixels (ViT, arXiv 2010.11929)."""

    width: int
    patch: int
    dtype: jnp.dtype
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array):
        B, Y, X, C = x.shape
        p = self.patch
        x = x[:, : Y // p * p, : X // p * p]
        x = x.reshape(B, Y // p, p, X // p, p, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, p * p * C)
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("C", "D"))
        kernel = self.param("kernel", init, (p * p * C, self.width))
        x = x.astype(self.dtype) @ in_use(kernel, ("C", "D"), self.dtype)
        if self.bias:
            bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("D",)), (self.width,))
            x = add(x, in_use(bias, "D"))
        return constrain(x, "BPD")

"""CLIP's ResNet (arXiv 2103.00020, section 2.3.1): a stem of three convolutions, anti-aliased strides, attention pooling.

Every stride is an average pool before a convolution of stride 1 (Zhang, arXiv 1904.11486; ResNet-D for shortcuts), and the
global average is a query that looks at all places once. The authors normalise by batch; what is trained here is normalised by
group, as in every convolution of this library (see nn.norm.GroupNorm), and has as many parameters. Their own weights come with
batch statistics (nn.batch_norm).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import in_use
from simvlm_jax.core.trust import buildable
from simvlm_jax.core.types import sides_of
from simvlm_jax.nn.attention import Attention
from simvlm_jax.nn.batch_norm import BatchNorm
from simvlm_jax.nn.conv_stem import Conv, conv
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.norm import GroupNorm
from simvlm_jax.nn.sizes import Compute


@buildable("image")
@dataclasses.dataclass(frozen=True)
class ResNetSize:
    """width: of the first stage's inner convolutions. depths: blocks a stage. heads: of the attention pool. norm: "group", or "batch"
    with statistics that came with the weights."""

    width: int
    depths: tuple[int, int, int, int]
    heads: int
    norm: str = "group"

    def __post_init__(self):
        if self.norm not in ("group", "batch"):
            raise ValueError(f"norm {self.norm!r} of a ResNet is not group or batch")

    @property
    def normalisation(self) -> Any:
        """The class of its norms."""
        return {"group": GroupNorm, "batch": BatchNorm}[self.norm]

    @property
    def features(self) -> int:
        """Channels at the end."""
        return self.width * 32


def _shrink(x: jax.Array, stride: int) -> jax.Array:
    return nn.avg_pool(x, (stride, stride), (stride, stride)) if stride > 1 else x


class Bottleneck(nn.Module):
    """1x1, 3x3, (average pool,) 1x1 to four times the width, plus the (pooled) input."""

    width: int
    stride: int
    dtype: jnp.dtype
    norm: Any = GroupNorm

    @nn.compact
    def __call__(self, x: jax.Array):
        h, out = x, 4 * self.width
        for i, (features, kernel) in enumerate(((self.width, 1), (self.width, 3), (out, 1))):
            if i == 2:
                h = _shrink(h, self.stride)
            h = self.norm(self.dtype, name=f"norm_{i}")(conv(features, kernel, 1, self.dtype, f"conv_{i}")(h))
            if i < 2:
                h = nn.relu(h)
        if self.stride > 1 or x.shape[-1] != out:
            x = conv(out, 1, 1, self.dtype, "conv_shortcut")(_shrink(x, self.stride))
            x = self.norm(self.dtype, name="norm_shortcut")(x)
        return nn.relu(h + x)


class AttentionResNet(nn.Module):
    """[B,Y,X,C], normalised, to [B,width]."""

    size: ResNetSize
    image_size: int | tuple[int, int]
    width: int
    compute: Compute

    @nn.compact
    def __call__(self, image: jax.Array):
        B, Y, X, _ = image.shape
        if sides_of(self.image_size) != (Y, X):
            raise ValueError(f"this image tower takes {self.image_size} px; got {Y} x {X}")
        dtype, width = self.compute.activation_dtype, self.size.width
        x = image.astype(dtype)
        for i, (features, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1))):
            x = Conv(features, 3, stride, dtype, symmetric=True, name=f"root_{i}")(x)
            x = nn.relu(self.size.normalisation(dtype, name=f"root_norm_{i}")(x))
        x = _shrink(x, 2)
        block = self.compute.rematerialised(Bottleneck)
        for i, depth in enumerate(self.size.depths):
            for j in range(depth):
                stride = 2 if i and not j else 1
                x = block(width * 2**i, stride, dtype, self.size.normalisation, name=f"stage_{i}_block_{j}")(x)
        x = x.reshape(B, -1, self.size.features)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        init = nn.with_logical_partitioning(nn.initializers.normal(x.shape[-1] ** -0.5), (None, "D"))
        x = add(x, in_use(self.param("position", init, x.shape[1:]), (None, "D")))
        pool = Attention(x.shape[-1], self.size.heads, dtype, key_bias=True, out_width=self.width, name="attention")
        return pool(x[:, :1], x, None)[:, 0]

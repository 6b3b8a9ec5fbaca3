"""The mlp of a transformer block: two maps with an activation between them, or three with a gate."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import constrain, in_use
from simvlm_jax.nn.linear import TRANSPOSED, add, multiply_transposed


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU, tanh form. Its derivative is kept from the forward pass: recomputing tanh costs more than the memory."""
    return _gelu_and_slope(x)[0]


def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    c = jnp.asarray((2 / jnp.pi) ** 0.5, x.dtype)
    t = jnp.tanh(c * (x + 0.044715 * x * x * x))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + t), slope


gelu.defvjp(_gelu_and_slope, lambda slope, g: (g * slope,))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Mlp(nn.Module):
    """Maps D -> F -> D: down(activation(up(x))), or down(activation(gate(x)) * up(x)) where `gated` (arXiv 2002.05202).

    Args:
      width: F. activation: a name in ACTIVATIONS. bias: of all maps.
    """

    width: int
    dtype: jnp.dtype
    activation: str = "gelu"
    gated: bool = False
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, F = x.shape[-1], self.width
        hidden = constrain(self._map("up", x, ("D", "F"), (D, F)), "BTF")
        if self.gated:
            gate = constrain(self._map("gate", x, ("D", "F"), (D, F)), "BTF")
            hidden = ACTIVATIONS[self.activation](gate) * hidden
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        return self._map("down", hidden, ("F", "D"), (F, D))

    def _map(self, name: str, x: jax.Array, letters: tuple[str, str], shape: tuple[int, int]) -> jax.Array:
        xavier, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        if self.has_variable("params", name + TRANSPOSED):
            kernel = self.get_variable("params", name + TRANSPOSED)
            y = multiply_transposed(x, in_use(kernel, letters[::-1], self.dtype))
        else:
            kernel = self.param(name, nn.with_logical_partitioning(xavier, letters), shape)
            y = x @ in_use(kernel, letters, self.dtype)
        if not self.bias:
            return y
        bias = self.param(f"{name}_bias", nn.with_logical_partitioning(zeros, letters[1:]), shape[1:])
        return add(y, in_use(bias, letters[1:]))

"""From logits to the next token: greedy, or temperature, top-k and nucleus sampling."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from simvlm_jax.core.schema import Count, Meta
from simvlm_jax.core.trust import buildable


def first_largest(logits_BV: jax.Array) -> jax.Array:
    """The id [B] int32 of the largest logit, the first of equal ones; where there is a NaN, the last id.

    Two plain reductions, for CPUs do not vectorise the one over pairs of value and place that `argmax` is.
    """
    V = logits_BV.shape[-1]
    largest = logits_BV.max(-1, keepdims=True)
    places = jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, 1)
    return jnp.where(logits_BV == largest, places, V - 1).min(-1)


@buildable("sampler")
@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is chosen.

    temperature 0 is greedy. top_k keeps the k likeliest tokens (0: all); top_p the smallest set of likeliest tokens
    whose probability reaches p (Holtzman et al., arXiv 1904.09751). All are fixed while compiling.
    """

    temperature: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    top_k: Count = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0

    def __post_init__(self):
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError(f"{self}: top_k and top_p act on sampling alone; set temperature too")

    def __call__(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Choose token ids [B] int32; each row draws from its own key."""
        if self.temperature == 0:
            return first_largest(logits_BV)
        kept = self.filter(logits_BV)
        return jax.vmap(jax.random.categorical)(keys_B, kept).astype(jnp.int32)

    def filter(self, logits_BV: jax.Array) -> jax.Array:
        """Return logits divided by the temperature, those outside top-k and nucleus at -inf."""
        logits = logits_BV.astype(jnp.float32) / self.temperature
        if self.top_k and self.top_k < logits.shape[-1]:
            smallest = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < smallest, -jnp.inf, logits)
        if self.top_p < 1:
            ordered = -jnp.sort(-logits, axis=-1)
            probability = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probability, axis=-1) - probability  # mass of strictly likelier tokens
            last = jnp.where(before < self.top_p, ordered, jnp.inf).min(-1, keepdims=True)
            logits = jnp.where(logits < last, -jnp.inf, logits)
        return logits

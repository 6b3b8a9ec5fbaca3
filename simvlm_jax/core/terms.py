"""Loss terms of a model's two halves: checked, joined and added up."""

from typing import Any

import jax
import jax.numpy as jnp

from simvlm_jax.core.types import Aux, Term, Terms

RESERVED = ("loss", "grad_norm", "samples")
"""Names of measurements that the train step makes itself."""


def total_loss(terms: Terms) -> jax.Array:
    """The loss of summed terms: `weight * sum / max(count, 1)` over all of them, a scalar."""
    return sum((t.weight * t.sum / jnp.maximum(t.count, 1) for t in terms.values()), jnp.zeros(()))


def check_terms(found: dict[str, Any], where: str) -> None:
    """Raises TypeError where a value is no Term; where: the method that returned them, for the message."""
    for name, value in found.items():
        if not isinstance(value, Term):
            raise TypeError(
                f"{where} returns {name!r} as {type(value).__name__}; it must be a core.types.Term(sum, count, weight), "
                "so that it can be added up over micro-batches"
            )


def join_halves(first: tuple[Terms, Aux], second: tuple[Terms, Aux], model: str) -> tuple[Terms, Aux]:
    """(terms, aux) of `per_example` and of `across_batch` as one of each.

    Raises:
      ValueError: two of them share a name, or one has a name that the train step uses, so that one would be lost.
    """
    named = [*first[0], *first[1], *second[0], *second[1]]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise ValueError(
            f"{model} returns {', '.join(twice)} twice; the names of terms and measurements of per_example and across_batch must "
            "all differ"
        )
    if taken := sorted(set(named) & set(RESERVED)):
        raise ValueError(f"{model} returns {', '.join(taken)}, a name that the train step uses; choose another")
    return {**first[0], **second[0]}, {**first[1], **second[1]}

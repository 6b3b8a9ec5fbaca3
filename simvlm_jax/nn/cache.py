"""Slots of a decoder's cache: where new tokens go, what they see, and which slots are written."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from simvlm_jax.nn.masks import Sight, visible
from simvlm_jax.nn.sizes import Size


def empty_layers(batch: int, depth: int, slots: int, size: Size, dtype) -> dict[str, Any]:
    """Keys and values [B,L,S,H,K] of a stack, nothing written."""
    shape = (batch, depth, slots, size.heads, size.width // size.heads)
    return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}


class Written(NamedTuple):
    """slots [B,T] of the new tokens; query: their Sight; visible [B,T,S]; state: of the slots from now on."""

    slots: Any
    query: Sight
    visible: Any
    state: dict[str, Any]


def empty_slots(batch: int, slots: int) -> dict[str, Any]:
    """The state of `slots` slots of a causal sequence, none of them written."""
    return {
        "block": jnp.zeros((batch, slots), jnp.int32),
        "segment": jnp.full((batch, slots), -1, jnp.int32),
        "filled": jnp.zeros((batch,), jnp.int32),
    }


def write(state: dict[str, Any], fed) -> Written:
    """Gives the next slots to new tokens, of which those count that are `fed` [B,T] (in each row the first ones)."""
    rows = jnp.arange(fed.shape[0])[:, None]
    slots = state["filled"][:, None] + jnp.arange(fed.shape[1], dtype=jnp.int32)
    query = Sight(1 + slots, jnp.where(fed, 0, -1))
    keys = Sight(state["block"].at[rows, slots].set(query.block), state["segment"].at[rows, slots].set(query.segment))
    filled = state["filled"] + fed.sum(1).astype(jnp.int32)
    return Written(
        slots, query, visible(query, keys), {**state, "block": keys.block, "segment": keys.segment, "filled": filled}
    )

"""The slots of a decoder's cache: keys and values written in place, and what stands in which slot.

All rows write the same slots at the same time, so that a write is one slice and never a copy; what a row did not feed there is
padding, which the mask hides. Where a row stands in its own text is `position`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simvlm_jax.nn.masks import Mask, Sight
from simvlm_jax.nn.sizes import Size


class KeyValue(NamedTuple):
    """Keys and values of a layer, [B,G,S,K] both: heads first, so that a step of decoding reads them as they lie."""

    key: jax.Array
    value: jax.Array


def empty_layers(batch: int, depth: int, slots: int, size: Size, dtype: Any) -> tuple[KeyValue, ...]:
    """Keys and values of the layers of a stack, nothing written."""
    shape = (batch, size.key_heads, slots, size.key_width)
    return tuple(KeyValue(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(depth))


def write_keys_values(cache: KeyValue, new: KeyValue, slot: jax.Array) -> KeyValue:
    """The cache with `new` [B,G,T,K] in T slots from `slot` (int32 scalar) on."""
    return KeyValue(
        *(jax.lax.dynamic_update_slice_in_dim(old, x, slot, axis=2) for old, x in zip(cache, new, strict=True))
    )


def empty_slots(batch: int, slots: int, position: jax.Array | int = 0) -> dict[str, Any]:
    """The state of `slots` slots of a causal sequence, none of them written; position [B] of the first token to come."""
    return {
        "block": jnp.zeros((batch, slots), jnp.int32),
        "segment": jnp.full((batch, slots), -1, jnp.int32),
        "filled": jnp.zeros((batch,), jnp.int32),
        "position": jnp.broadcast_to(jnp.asarray(position, jnp.int32), (batch,)),
    }


class Written(NamedTuple):
    """Where new tokens [B,T] go: the first slot (int32 scalar), their positions [B,T], the Mask of their self-attention, and
    the state of the slots from now on."""

    slot: jax.Array
    position: jax.Array
    mask: Mask
    state: dict[str, Any]


def write(state: dict[str, Any], fed: jax.Array, block: jax.Array | None = None) -> Written:
    """Give the next slots to new tokens, of which those count that are `fed` [B,T]; the others are padding, on either side.

    block [B,T]: of the new tokens, for masks that are not causal. Causal ones have 1 + position, whatever padding lies between.

    Raises:
      ValueError: there are more tokens than slots left. Under jit it is not known how many are left, and only more tokens than
        there are slots are refused; a loop of `max_length` steps after `prefill` of that length never needs more.
    """
    T = fed.shape[1]
    slot = state["filled"].max()
    _check_room(slot, T, state["segment"].shape[1])
    place = jnp.maximum(jnp.cumsum(fed, axis=1, dtype=jnp.int32) - 1, 0)
    position = state["position"][:, None] + place
    where = 1 + position if block is None else block.astype(jnp.int32)
    query = Sight(where, jnp.asarray(fed, jnp.int32) - 1)
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=1)  # noqa: E731
    keys = Sight(put(state["block"], query.block), put(state["segment"], query.segment))
    new = {
        "block": keys.block,
        "segment": keys.segment,
        "filled": state["filled"] + T,
        "position": state["position"] + fed.sum(1).astype(jnp.int32),
    }
    return Written(slot, position, Mask(query, keys), {**state, **new})


def _check_room(slot: jax.Array, new: int, slots: int) -> None:
    known = not isinstance(slot, jax.core.Tracer)
    taken = int(slot) if known else 0
    if taken + new > slots:
        raise ValueError(
            f"{new} more tokens do not fit a cache of {slots} slots, of which {taken if known else 'some'} are taken; give "
            f"`prefill` a max_length that is {'' if known else 'at least '}{taken + new - slots} larger"
        )

"""Masks are data: two int vectors, (block, segment), for queries and for keys.

A query sees a key when its block is at least the key's and their segments agree; segment -1 (padding, unwritten cache
slots) agrees with nothing. Bidirectional: all blocks 0. Causal: block = position. Prefix: block = max(0, position -
prefix length).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sight(NamedTuple):
    """Who is where, for one side of an attention: block [B,T] and segment [B,T], int32."""

    block: jax.Array
    segment: jax.Array


def bidirectional(valid: jax.Array) -> Sight:
    """Everybody in `valid` [B,T] (bool) sees everybody in it."""
    return Sight(jnp.zeros(valid.shape, jnp.int32), jnp.where(valid, 0, -1))


def causal(valid: jax.Array) -> Sight:
    """Everybody in `valid` [B,T] (bool) sees itself and what stands before it."""
    return Sight(jnp.broadcast_to(jnp.arange(valid.shape[1]), valid.shape), jnp.where(valid, 0, -1))


def join(*sights: Sight) -> Sight:
    """One sequence after another."""
    return Sight(*(jnp.concatenate(parts, axis=1) for parts in zip(*sights, strict=True)))


def visible(query: Sight, key: Sight) -> jax.Array:
    """bool [B,T,S]: whether query t sees key s."""
    ordered = query.block[:, :, None] >= key.block[:, None, :]
    agree = (query.segment[:, :, None] == key.segment[:, None, :]) & (query.segment[:, :, None] >= 0)
    return ordered & agree

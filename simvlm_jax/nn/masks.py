"""Masks are data: two int vectors, (block, segment), for queries and for keys.

A query sees a key when its block is at least the key's and their segments agree; segment -1 (padding, unwritten cache
slots) agrees with nothing. Bidirectional: all blocks 0. Causal: block = position. Prefix: block = max(0, position -
prefix length).

The vectors travel down to the attention call. What is known of them before they have values, their `Kind`, travels beside
them, and lets `nn.kernels` choose a kernel that needs no dense mask.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sight(NamedTuple):
    """Who is where, for one side of an attention: block [B,T] and segment [B,T], int32."""

    block: jax.Array
    segment: jax.Array


class Kind(NamedTuple):
    """What the vectors of a mask are known to say, whatever their values.

    order: "full" (the blocks allow every pair), "causal" (T = S, query t may see keys 0..t), "prefix" (the same, and the
    prefix sees all of itself), or "any". padding: "none" (one segment, nothing is padding), "right" (one segment, with
    padding anywhere among queries, and after the last of the keys), or "any". prefix: how many positions at the front of
    every row are the prefix; None where it is those in block 0, in each row its own.

    window is no knowledge but a bound beside what the vectors say: a query sees only keys whose block is less than `window`
    behind its own, its own included (sliding window attention; 0: no bound). In a causal sequence blocks count places, so that
    padding between tokens, as a cache has it, does not shorten the window.
    """

    order: str = "any"
    padding: str = "any"
    prefix: int | None = 0
    window: int = 0


DENSE = Kind()
"""Nothing is known."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=("query", "key"), meta_fields=("kind",))
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which keys each query sees: the Sight of T queries, the Sight of S keys, and the Kind that both keep to."""

    query: Sight
    key: Sight
    kind: Kind = DENSE

    @property
    def visible(self) -> jax.Array:
        """bool [B,T,S]."""
        return visible(self.query, self.key, self.kind.window)

    def within(self, window: int) -> "Mask":
        """The mask bounded to a sliding window; see Kind."""
        return dataclasses.replace(self, kind=self.kind._replace(window=window))


def bidirectional(valid: jax.Array) -> Sight:
    """Let everybody in `valid` [B,T] (bool) see everybody in it."""
    return Sight(jnp.zeros(valid.shape, jnp.int32), jnp.where(valid, 0, -1))


def causal(valid: jax.Array) -> Sight:
    """Let everybody in `valid` [B,T] (bool) see itself and what stands before it."""
    return Sight(jnp.broadcast_to(jnp.arange(valid.shape[1]), valid.shape), jnp.where(valid, 0, -1))


def join(*sights: Sight) -> Sight:
    """Put one sequence after another."""
    return Sight(*(jnp.concatenate(parts, axis=1) for parts in zip(*sights, strict=True)))


def self_mask(sight: Sight, kind: Kind = DENSE) -> Mask:
    """The mask of a sequence that looks at itself."""
    return Mask(sight, sight, kind)


def cross_mask(query: Sight, seen: jax.Array, padding: str = "any") -> Mask:
    """The mask of queries [B,T] that look at every key of another sequence where `seen` [B,S]; padded queries see none.

    padding: as in Kind.
    """
    present = Sight(jnp.zeros_like(query.block), jnp.where(query.segment >= 0, 0, -1))
    return Mask(present, bidirectional(seen), Kind("full", padding))


def visible(query: Sight, key: Sight, window: int = 0) -> jax.Array:
    """bool [B,T,S]: whether query t sees key s; window: as in Kind."""
    ordered = query.block[:, :, None] >= key.block[:, None, :]
    if window:
        ordered &= query.block[:, :, None] - key.block[:, None, :] < window
    agree = (query.segment[:, :, None] == key.segment[:, None, :]) & (query.segment[:, :, None] >= 0)
    return ordered & agree

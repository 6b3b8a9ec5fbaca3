"""What a mask's Kind promises of its vectors, checked and drawn in numpy."""

import jax.numpy as jnp
import numpy as np

from simvlm_jax.nn.masks import Kind, Mask, Sight

ORDERS = [("full", 0), ("causal", 0), ("prefix", 20), ("prefix", None)]
KINDS = [Kind(order, padding, prefix) for order, prefix in ORDERS for padding in ("none", "right", "any")]


def allowed(kind: Kind, query: Sight, key: Sight) -> np.ndarray:
    """bool [B,T,S]: the pairs that the order of a kind lets see each other, whatever their segments."""
    T, S = query.block.shape[1], key.block.shape[1]
    if kind.order == "full":
        return np.ones((len(query.block), T, S), bool)
    assert T == S, f"{kind} with {T} queries and {S} keys"
    before = np.tril(np.ones((T, S), bool))
    if kind.order == "causal":
        return np.broadcast_to(before, (len(query.block), T, S))
    if kind.prefix is None:
        return before | (np.asarray(query.block) == 0)[:, :, None] & (np.asarray(key.block) == 0)[:, None, :]
    return np.broadcast_to(before | (np.arange(S) < kind.prefix), (len(query.block), T, S))


def check_kind(mask: Mask) -> None:
    """Raise AssertionError where the vectors of a mask contradict its kind."""
    kind = mask.kind
    assert kind.order in ("full", "causal", "prefix", "any") and kind.padding in ("none", "right", "any"), kind
    query, key = (Sight(*map(np.asarray, side)) for side in (mask.query, mask.key))
    if kind.order != "any":
        agree = (query.segment[:, :, None] == key.segment[:, None, :]) & (query.segment[:, :, None] >= 0)
        seen = np.asarray(mask.visible)
        np.testing.assert_array_equal(seen, agree & allowed(kind, query, key), f"the blocks are not {kind}")
    if kind.padding == "any":
        return
    for row in zip(query.segment, key.segment, strict=True):
        there = [side[side >= 0] for side in row]
        assert len({*there[0].tolist(), *there[1].tolist()}) <= 1, f"several segments in a row of {kind}"
        assert kind.padding == "right" or all((side >= 0).all() for side in row), f"padding in {kind}"
        assert (np.diff((row[1] >= 0).astype(int)) <= 0).all(), f"padding before a key in {kind}"


def drawn(kind: Kind, draw: np.random.Generator, B: int, T: int, S: int) -> Mask:
    """A mask of a kind with random vectors. Padding "right": queries are padded anywhere, keys after the last, the last row
    has no key; "any": packed rows after padding, the last without it.
    """
    if kind.order != "full":
        S = T
    segments = [_segments(kind.padding, draw, B, n) for n in (T, S)]
    if kind.padding == "right":
        segments[0] = np.where(draw.random((B, T)) < 0.2, -1, 0)
    if kind.order == "full":
        constant = int(draw.integers(3))
        return _mask(kind, np.full((B, T), constant), segments[0], np.full((B, S), constant), segments[1])
    (query, segment), place = segments, np.broadcast_to(np.arange(T), (B, T))
    if kind.order == "causal":
        block = place
    elif kind.prefix is not None:
        block = np.maximum(0, place - kind.prefix + 1)
    else:
        starts = np.zeros((B, T), int)
        for i in range(1, T):  # where the segment of each position begins
            same = kind.padding != "any" or segment[:, i] == segment[:, i - 1]
            starts[:, i] = np.where(same, starts[:, i - 1], i)
        lengths = draw.integers(0, T // 2, (B, T))  # of the prefix of each segment
        length = np.take_along_axis(lengths, starts, 1)
        block = np.where(place - starts < length, 0, 1 + place)
    return _mask(kind, block, query if kind.padding == "right" else segment, block, segment)


def _segments(padding, draw, B, n):
    if padding == "none":
        return np.zeros((B, n), int)
    if padding == "right":
        lengths = draw.integers(1, n, B)
        lengths[-1] = 0
        return np.where(np.arange(n) < lengths[:, None], 0, -1)
    return np.sort(draw.integers(0, 3, (B, n)), axis=1) - np.r_[np.ones(B - 1, int), 0][:, None]  # padding before


def _mask(kind, block, segment, key_block, key_segment):
    side = lambda *pair: Sight(*(jnp.asarray(x, jnp.int32) for x in pair))  # noqa: E731
    return Mask(side(block, segment), side(key_block, key_segment), kind)

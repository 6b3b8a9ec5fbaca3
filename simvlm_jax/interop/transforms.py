"""How an array of someone's weights becomes one of ours, and back: pairs of functions that undo each other, bit for bit.

A linear map of torch stands as [out,in], of ours as [in,out]; heads are axes of their own here (H, K), and rows of one axis there.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Arrays = np.ndarray | tuple[np.ndarray, ...]


class Transform(NamedTuple):
    """take: their array -> ours (or several). give: ours -> theirs."""

    take: Callable[[np.ndarray], Arrays]
    give: Callable[..., np.ndarray]


SAME = Transform(lambda x: x, lambda x: x)
TRANSPOSED = Transform(np.transpose, np.transpose)
"""[out,in] <-> [in,out]."""
CONVOLUTION = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""[O,I,Y,X] <-> [Y,X,I,O]."""


def heads_out(heads: int) -> Transform:
    """A map to heads, [H*K,D] <-> [D,H,K]."""
    return Transform(
        lambda x: x.T.reshape(x.shape[1], heads, -1),
        lambda x: x.reshape(x.shape[0], -1).T,
    )


def heads_in(heads: int) -> Transform:
    """A map from heads, [D,H*K] <-> [H,K,D]."""
    return Transform(
        lambda x: x.T.reshape(heads, -1, x.shape[0]),
        lambda x: x.reshape(-1, x.shape[-1]).T,
    )


def heads_bias(heads: int) -> Transform:
    """A bias of heads, [H*K] <-> [H,K]."""
    return Transform(lambda x: x.reshape(heads, -1), lambda x: x.reshape(-1))


def before(count: int = 1) -> Transform:
    """Theirs has `count` leading axes of length 1 that ours has not: [1,...] <-> [...]."""

    def take(x: np.ndarray) -> np.ndarray:
        if any(n != 1 for n in x.shape[:count]):
            raise ValueError(f"its first {count} axes are {list(x.shape[:count])}, and must be 1")
        return x.reshape(x.shape[count:])

    return Transform(take, lambda x: x.reshape(*(1,) * count, *x.shape))


UNSQUEEZED = Transform(lambda x: x[None], lambda x: x[0])
"""Ours has a leading axis of length 1 that theirs has not."""
NUMBER = Transform(lambda x: x.reshape(()), lambda x: x.reshape(()))
SCALAR = Transform(lambda x: x.reshape(()), lambda x: x.reshape(1))
"""A number as [] or [1] <-> []; it is given back as [], or as [1]."""


def patches(side: int) -> Transform:
    """The convolution of patches as a linear map of their pixels, [D,C,p,p] <-> [p*p*C,D]."""
    return Transform(
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(side, side, -1, x.shape[-1]).transpose(3, 2, 0, 1),
    )


def packed(*parts: Transform, axis: int = 0) -> Transform:
    """Several arrays of one shape that stand in one, side by side on an axis; each part has a transform of its own."""

    def take(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(p.take(y)) for p, y in zip(parts, np.split(x, len(parts), axis), strict=True))

    return Transform(take, lambda *xs: np.concatenate([p.give(x) for p, x in zip(parts, xs, strict=True)], axis))


def layered(each: Transform) -> Transform:
    """Layers that stand in one array, each of which is transformed by itself: [L,...] <-> one array a layer."""
    return Transform(
        lambda x: tuple(np.asarray(each.take(y)) for y in x),
        lambda *xs: np.stack([each.give(x) for x in xs]),
    )

"""Token ids of several lengths as one array."""

from collections.abc import Sequence

import numpy as np


def pad_rows(rows: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of ids to (ids [N,length] int32, mask [N,length] bool, true where an id stands); what is longer loses its end."""
    ids = np.full((len(rows), length), pad, np.int32)
    for row, own in zip(ids, rows, strict=True):
        row[: min(len(own), length)] = own[:length]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return ids, np.arange(length) < lengths[:, None]

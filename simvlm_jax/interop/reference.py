"""Outputs of the reference implementation beside ours, for those who have torch installed and ask for it.

Nothing else of this package imports torch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Reference(NamedTuple):
    """How a family is compared.

    load: a module of torch, in fp32, from a folder in the family's own format. rows: random rows for a model. theirs, ours:
    outputs by name for those rows, of the module and of (model, params, extra).
    """

    load: Callable[[Path], Any]
    rows: Callable[[Any], Arrays]
    theirs: Callable[[Any, Arrays], Arrays]
    ours: Callable[[Any, Any, Any, Arrays], Arrays]


def compare(reference: Reference, module: Any, model: Any, params: Any, extra: Any) -> dict[str, float]:
    """{output: largest difference, in parts of the output's largest value} of a module of torch and a model."""
    import torch

    rows = reference.rows(model)
    with torch.no_grad():
        theirs = reference.theirs(module.eval(), rows)
    ours = reference.ours(model, params, extra, rows)
    return {name: difference(ours[name], expected) for name, expected in theirs.items()}


def difference(found: Any, expected: Any) -> float:
    """The largest difference of two arrays, in parts of the largest value of the second."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"outputs of shapes {list(a.shape)} and {list(b.shape)} cannot be compared")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))


def tensor(array: np.ndarray) -> Any:
    """An array as a tensor of torch, whole numbers as int64."""
    import torch

    made = torch.tensor(np.asarray(array))
    return made.long() if made.dtype in (torch.int32, torch.int16, torch.uint8) else made


def pretrained(auto: str, folder: Path, **options: Any) -> Any:
    """A model of transformers from a folder, in fp32 with plain attention. auto: a class of transformers, by name.

    Raises:
      ValueError: transformers or torch is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as e:
        raise ValueError(
            f"comparing with the reference needs torch and transformers ({e}): pip install .[parity]"
        ) from e
    kind = getattr(transformers, auto)
    options = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True, **options}
    return kind.from_pretrained(str(folder), **options).eval()


def random_texts(vocabulary: Any, rows: int = 4, length: int = 12, below: int | None = None) -> Arrays:
    """`text`, `text_mask` [B,T]: pieces and padding after them, the first row full and the others shorter.

    below: a bound of their ids.
    """
    rng = np.random.default_rng(0)
    length = min(length, vocabulary.length)
    sizes = np.maximum(length - 3 * np.arange(rows), 2)
    mask = np.arange(length) < sizes[:, None]
    special = [vocabulary.pad, vocabulary.bos, vocabulary.eos]
    usual = np.setdiff1d(np.arange(below or vocabulary.size), special)
    text = np.where(mask, rng.choice(usual, (rows, length)), vocabulary.pad)
    return {"text": text.astype(np.int32), "text_mask": mask}


def random_images(side: tuple[int, int], rows: int = 3) -> Arrays:
    """`image` [B,1,Y,X,3] uint8."""
    return {"image": np.random.default_rng(1).integers(0, 256, (rows, 1, *side, 3), dtype=np.uint8)}

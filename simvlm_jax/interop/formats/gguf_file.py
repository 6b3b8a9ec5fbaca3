"""GGUF, llama.cpp's format: weights of any of its usual types, dequantised as they are read, and what the file says of the model."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simvlm_jax.core.files import BadFile, open_regular
from simvlm_jax.interop.formats.tensors import Stored, Tensors

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
"""Types of arrays that are read."""
MOST_FILE = 2**40


class Gguf(NamedTuple):
    """metadata: values by key ("llama.block_count"). types: of the arrays, by name."""

    tensors: Tensors
    metadata: dict[str, Any]
    types: dict[str, str]


def read(path: Path) -> Gguf:
    """A .gguf file.

    Raises:
      BadFile: it is truncated or none, or holds arrays of another type than TYPES.
    """
    import gguf

    with open_regular(path, MOST_FILE) as file:
        if file.read(4) != b"GGUF":
            raise BadFile(f"{path} is no GGUF file (it does not begin with GGUF)")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        types = {t.name: t.tensor_type.name for t in reader.tensors}
    except Exception as e:  # of a broken file it raises whatever comes first, also of a type that it does not know
        raise BadFile(f"{path} is not a whole GGUF file, or of a type that is not known ({str(e)[:160]})") from e
    if strange := sorted({kind for kind in types.values() if kind not in TYPES}):
        name = next(name for name, kind in types.items() if kind in strange)
        raise BadFile(f"{path}: {name} is of type {', '.join(strange)}; those that are read are {', '.join(TYPES)}")
    stored = {t.name: Stored(tuple(int(n) for n in t.shape[::-1]), functools.partial(_read, t)) for t in reader.tensors}
    return Gguf(Tensors(stored), metadata, types)


def _read(tensor: Any) -> np.ndarray:
    from gguf.quants import dequantize

    return dequantize(tensor.data, tensor.tensor_type).reshape(tuple(int(n) for n in tensor.shape[::-1]))

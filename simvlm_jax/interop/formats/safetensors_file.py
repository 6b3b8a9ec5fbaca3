"""The arrays of a .safetensors file."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.files import BadFile, open_regular
from simvlm_jax.interop.formats.tensors import Stored, Tensors

MOST_FILE = 2**40


def read(path: Path) -> Tensors:
    """The arrays of a .safetensors file.

    Raises:
      BadFile: it is truncated or none.
    """
    return Tensors(_arrays(path))


def _arrays(path: Path) -> dict[str, Stored]:
    from safetensors import safe_open

    open_regular(path, MOST_FILE).close()
    try:
        file: Any = safe_open(str(path), framework="flax")  # numpy has no bfloat16 of its own
        return {
            name: Stored(tuple(file.get_slice(name).get_shape()), functools.partial(_read, file, name, path))
            for name in file.keys()  # noqa: SIM118
        }
    except Exception as e:  # the library's own, and what it raises of a broken header
        raise BadFile(f"{path} is not a whole safetensors file ({str(e)[:120]}); download it again") from e


def _read(file: Any, name: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(file.get_tensor(name))
    except Exception as e:
        raise BadFile(f"{path}: {name} cannot be read ({str(e)[:120]})") from e


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a .safetensors file whole."""
    from safetensors.numpy import save

    from simvlm_jax.core.files import write_whole

    write_whole(path, save(dict(arrays), dict(metadata)))

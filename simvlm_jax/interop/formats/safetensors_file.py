"""safetensors: one file, or several that an index lists (`model.safetensors.index.json`)."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.files import BadFile, open_regular, read_json
from simvlm_jax.interop.formats.tensors import Stored, Tensors

INDEX = ".index.json"
MOST_FILE = 2**40


def read(path: Path) -> Tensors:
    """The arrays of a .safetensors file, or of all files that its index names.

    Raises:
      BadFile: it is truncated or none, or a file or an array that the index names is not there.
    """
    if not path.name.endswith(INDEX):
        return Tensors(_arrays(path))
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(v, str) and Path(v).name == v for v in places.values()):
        raise BadFile(f"{path} is no index of weights: it has no weight_map of array names to files beside it")
    files = sorted(set(places.values()))
    if missing := [name for name in files if not (path.parent / name).is_file()]:
        raise BadFile(f"{path} names {len(files)} files, and {', '.join(missing)} is not there; download it again")
    found: dict[str, Stored] = {}
    for name in files:
        found |= _arrays(path.parent / name)
    if lost := sorted(set(places) - set(found)):
        raise BadFile(f"{path} names {lost[0]}{f' and {len(lost) - 1} others' * (len(lost) > 1)}, which no file holds")
    return Tensors(found)


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

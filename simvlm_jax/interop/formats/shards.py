"""Weights in several files that an index lists (`model.safetensors.index.json`, `pytorch_model.bin.index.json`)."""

from collections.abc import Callable
from pathlib import Path

from simvlm_jax.core.files import BadFile, read_json
from simvlm_jax.interop.formats.tensors import Tensors

INDEX = ".index.json"


def read(path: Path, read_one: Callable[[Path], Tensors]) -> Tensors:
    """The arrays of all files that an index names, all of which stand beside it. read_one: reads a file.

    Raises:
      BadFile: it is no index, or a file or an array that it names is not there.
    """
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(v, str) and Path(v).name == v for v in places.values()):
        raise BadFile(f"{path} is no index of weights: it has no weight_map of array names to files beside it")
    files = sorted(set(places.values()))
    if missing := [name for name in files if not (path.parent / name).is_file()]:
        raise BadFile(f"{path} names {len(files)} files, and {', '.join(missing)} is not there; download it again")
    found = Tensors.joined(read_one(path.parent / name) for name in files)
    if lost := sorted(set(places) - set(found)):
        raise BadFile(f"{path} names {lost[0]}{f' and {len(lost) - 1} others' * (len(lost) > 1)}, which no file holds")
    return found

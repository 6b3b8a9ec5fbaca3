"""NumPy archives, as big_vision and vision_transformer write their weights: "params/img/Transformer/..." by path."""

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from simvlm_jax.core.files import BadFile, open_regular, write_whole
from simvlm_jax.interop.formats.tensors import Stored, Tensors

MOST_FILE = 2**40


def read(path: Path) -> Tensors:
    """The arrays of an .npz; none of its members may hold a pickle.

    Raises:
      BadFile: it is truncated or none, or a member would have to run code.
    """
    open_regular(path, MOST_FILE).close()
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m.endswith(".npy")]
            shapes = {m.removesuffix(".npy"): _shape(archive, m, path) for m in members}
    except (zipfile.BadZipFile, OSError, struct.error, EOFError, zlib.error) as e:
        raise BadFile(f"{path} is not a whole .npz ({e}); download it again") from e
    if not shapes:
        raise BadFile(f"{path} holds no arrays")
    return Tensors({name: Stored(shape, functools.partial(_read, path, name)) for name, shape in shapes.items()})


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz whole; names may have slashes."""
    file = io.BytesIO()
    np.savez(file, **{name: np.asarray(x) for name, x in arrays.items()})  # pyright: ignore[reportArgumentType]
    write_whole(path, file.getvalue())


def _shape(archive: zipfile.ZipFile, member: str, path: Path) -> tuple[int, ...]:
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(file)
        except ValueError as e:
            raise BadFile(f"{path}: {member} is no array ({e})") from e
    if dtype.hasobject:
        raise BadFile(f"{path}: {member} holds Python objects, which only running code could read; it is not read")
    return tuple(shape)


def _read(path: Path, name: str) -> np.ndarray:
    import ml_dtypes  # of jax, for what NumPy calls |V2

    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error) as e:
        raise BadFile(f"{path}: {name} cannot be read ({e})") from e
    return array.view(ml_dtypes.bfloat16) if array.dtype.str == "|V2" else array

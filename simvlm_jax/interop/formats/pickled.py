"""Weights that torch.save or torch.jit.save wrote (.bin, .pt, .pth), read without torch and without running what a pickle says.

A pickle is a program. Here it may build tensors, and the dicts, lists, texts and numbers around them; everything else that it names
is an error, but for modules of TorchScript archives, whose fields are kept and whose code is not read.

Three layouts: a zip of `data.pkl` and storages (torch >= 1.6), the same of TorchScript, and a stream of pickles before the bytes of
the storages (older ones). Names are paths of nested dicts, joined by dots; `state_dict` and its like are gone into.
"""

import functools
import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simvlm_jax.core.files import BadFile, open_regular, read_bytes
from simvlm_jax.interop.formats.tensors import Stored, Tensors

MOST_FILE = 2**40
MOST_LEGACY = 2**36
MOST_PICKLE = 2**28
MAGIC = 0x1950A86A20F9469CFC6C
"""The number that an old file begins with."""
_DTYPES = {
    **{"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1"},
    "BoolStorage": "?",
}
_INSIDE = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params")
"""Keys under which people keep a dict of weights, beside other things."""


class _Storage(NamedTuple):
    """Bytes of a tensor, by the key of their storage."""

    dtype: str
    key: str


class _Tensor(NamedTuple):
    """A view of a storage: strides and offset in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module:
    """A TorchScript module: what was set on it, and nothing of its code."""

    def __init__(self, *_: Any):
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = state if isinstance(state, dict) else {}


def read(path: Path) -> Tensors:
    """The tensors of a file of torch by name.

    Raises:
      BadFile: it is truncated or none, or its pickle names something else than tensors.
    """
    with open_regular(path, MOST_FILE) as file:
        start = file.read(4)
    if start == b"PK\3\4":
        tree, data = _zipped(path)
    else:
        tree, data = _legacy(path)
    found = {name: t for name, t in _named(tree).items() if t.storage.dtype}
    if not found:
        raise BadFile(f"{path} holds no tensors")
    return Tensors(
        {name: Stored(t.shape, functools.partial(_array, t, data, f"{path}: {name}")) for name, t in found.items()}
    )


class _Maker:
    """A function that a pickle may call, and which it cannot change, as it could one of Python's own."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]):
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise BadFile("a pickle that changes what it calls is not read")


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain values; everything else that a pickle names is an error."""

    def __init__(self, file: Any, name: str):
        super().__init__(file, encoding="utf-8")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _Maker(_ALLOWED[module, name])
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return name
        if module.split(".")[0] == "__torch__":
            return _Module
        raise BadFile(
            f"{self._name}: its pickle names {module}.{name}, and only tensors are read from a pickle, for anything else could "
            "run code; save the weights alone (a state_dict), best as safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ("storage", kind, key, place, size)."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise BadFile(f"{self._name}: its pickle has an object from outside that is no storage")
        return _Storage(_DTYPES.get(str(pid[1]), ""), str(pid[2]))


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.jit._pickle", "build_intlist"): list,
    ("torch.jit._pickle", "build_doublelist"): list,
    ("torch.jit._pickle", "build_boollist"): list,
    ("torch.jit._pickle", "build_tensorlist"): list,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *_: None,
}


def _zipped(path: Path) -> tuple[Any, Callable[[str], bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [n for n in names if n.endswith("/data.pkl") or n == "data.pkl"]
            if not pickles:
                raise BadFile(f"{path} is a zip without data.pkl, so no file of torch.save")
            folder = pickles[0].removesuffix("data.pkl")
            if archive.getinfo(pickles[0]).file_size > MOST_PICKLE:
                raise BadFile(f"{path}: data.pkl is larger than the limit of {MOST_PICKLE:,} bytes")
            order = f"{folder}byteorder"
            if order in names and archive.read(order) != b"little":
                raise BadFile(f"{path} was written by a big-endian machine; save it on another")
            tree = _unpickled(io.BytesIO(archive.read(pickles[0])), str(path))
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as e:
        raise BadFile(f"{path} is not a whole file of torch.save ({e}); download it again") from e

    def data(key: str) -> bytes:
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(f"{folder}data/{key}")
        except (KeyError, zipfile.BadZipFile, OSError, zlib.error) as e:
            raise BadFile(f"{path}: the bytes of storage {key} are not there ({e}); download it again") from e

    return tree, data


def _legacy(path: Path) -> tuple[Any, Callable[[str], bytes]]:
    whole = read_bytes(path, MOST_LEGACY)
    file = io.BytesIO(whole)
    head = [_unpickled(file, str(path)) for _ in range(3)]
    if head[0] != MAGIC:
        raise BadFile(f"{path} is no file of torch.save")
    tree, keys = _unpickled(file, str(path)), _unpickled(file, str(path))
    kinds = {s.key: s.dtype for t in _named(tree).values() for s in [t.storage]}
    places: dict[str, tuple[int, int]] = {}
    for key in map(str, keys):
        count = file.read(8)
        if len(count) < 8:
            raise BadFile(f"{path} ends within its weights; download it again")
        size = struct.unpack("<q", count)[0] * (_dtype(kinds[key]).itemsize if kinds.get(key) else 0)
        places[key] = file.tell(), size
        if size < 0 or file.tell() + size > len(whole):
            raise BadFile(f"{path} ends within its weights; download it again")
        file.seek(size, io.SEEK_CUR)

    def data(key: str) -> bytes:
        start, size = places[key]
        return whole[start : start + size]

    return tree, data


def _unpickled(file: Any, name: str) -> Any:
    try:
        return _Unpickler(file, name).load()
    except BadFile:
        raise
    except Exception as e:  # a broken pickle raises whatever comes first
        raise BadFile(f"{name} is not a whole file of torch.save ({type(e).__name__}: {str(e)[:120]})") from e


def _named(tree: Any) -> dict[str, _Tensor]:
    """The tensors of a tree by name."""
    if isinstance(tree, dict):
        for key in _INSIDE:
            if isinstance(inner := tree.get(key), dict | _Module) and not any(
                isinstance(v, _Tensor) for v in tree.values()
            ):
                return _named(inner)
    found: dict[str, _Tensor] = {}
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, _Tensor):
            found[name] = value
        elif depth < 64:
            fields = value.fields if isinstance(value, _Module) else value
            if isinstance(fields, dict):
                inner = [(f"{name}.{k}" if name else str(k), v, depth + 1) for k, v in fields.items()]
                waiting += reversed(inner)
    return found


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _array(tensor: _Tensor, data: Callable[[str], bytes], name: str) -> np.ndarray:
    """A tensor with its strides, which need not be those of its shape."""
    flat = np.frombuffer(data(tensor.storage.key), _dtype(tensor.storage.dtype))
    reach = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if not all(n > 0 for n in tensor.shape):
        return np.zeros(tensor.shape, flat.dtype)
    if tensor.offset < 0 or min(tensor.strides, default=0) < 0 or reach >= len(flat):
        raise BadFile(f"{name} reaches beyond the end of its storage; the file is truncated or broken")
    strides = tuple(s * flat.itemsize for s in tensor.strides)
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.ascontiguousarray(view).reshape(tensor.shape)

"""Vectors of all pictures of a source, in parts: what is there is not made again, and several processes can share the work.

A part is an .npz of so many rows beside a manifest that says of what and by whom; `merge` makes one file of all parts. A picture
that cannot be read has no vector: its key and the reason stand in its part, and in the file.
"""

import contextlib
import fcntl
import glob
import json
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simvlm_jax.core.files import (
    MOST_RECORD,
    followed,
    open_own,
    open_regular,
    parse_json,
    partial_of,
    read_bytes,
    read_json,
    write_whole,
)
from simvlm_jax.core.schema import check
from simvlm_jax.data.source import Source
from simvlm_jax.data.sources import ranges
from simvlm_jax.data.tables import TABLE_SUFFIXES
from simvlm_jax.infer.prefetch import prefetched
from simvlm_jax.run.progress import Countdown

MANIFEST = "manifest.json"
LONGEST_KEY = 4096
"""Characters of a key: numpy gives every one the room of the longest."""


class FileList:
    """Pictures by the names of their files."""

    def __init__(self, names: Sequence[str]):
        self._names = list(names)

    def __len__(self):
        return len(self._names)

    def key(self, index: int) -> str:
        return self._names[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = Path(self._names[index])
        if not path.exists():
            raise FileNotFoundError("does not exist")
        if path.is_dir():
            raise IsADirectoryError("is a directory")
        return {"key": str(path), "image": read_bytes(path)}

    def __repr__(self):
        stamps = [(n, Path(n).stat().st_mtime_ns if Path(n).is_file() else None) for n in self._names]
        return f"files:{stamps!r}"


def embed_parts(
    source: Source,
    pixels: Callable[[dict[str, Any], Any], dict[str, Any]],
    embed: Callable[[np.ndarray], np.ndarray],
    folder: Path,
    about: dict[str, Any],
    rows: int,
    mine: Callable[[int], bool] = lambda part: True,
    chunk: int = 64,
) -> list[tuple[str, str]]:
    """Makes those parts that are `mine` and are not there; returns (key, error) of the pictures that could not be read.

    embed: images [n,M,Y,X,C] uint8 to vectors [n,...] fp32. about: what else the vectors depend on. rows: pictures of a part.
    chunk: images of a call of `embed`; the next ones are read meanwhile.

    Raises:
      ValueError: the folder holds parts of something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_manifest(folder, {**_of_what(source, about), "rows": rows})
    parts = [part for part in range(-(-len(source) // rows)) if mine(part) and not _path(folder, part).exists()]
    pace = Countdown("pictures", sum(len(_rows_of(source, part, rows)) for part in parts))
    reader, done, unread = _Reader(source, pixels, chunk), 0, []
    for part in parts:
        keys: list[str] = []
        found: list[np.ndarray] = []
        errors: list[tuple[str, str]] = []
        for read in prefetched(reader.chunks(_rows_of(source, part, rows))):
            if read.images is not None:
                found.append(embed(read.images))
            keys += read.keys
            errors += read.errors
            done += len(read.keys) + len(read.errors)
            pace.at(done)
        write_arrays(
            _path(folder, part),
            embeddings=np.concatenate(found) if found else np.zeros((0,), np.float32),
            keys=np.asarray(keys, str),
            errors=np.asarray(errors, str).reshape(-1, 2),
        )
        unread += errors
    pace.close()
    return unread


class _Chunk(NamedTuple):
    """Pictures [n,M,Y,X,C] uint8 (None: none could be read) with their keys, and (key, error) of the others."""

    images: np.ndarray | None
    keys: list[str]
    errors: list[tuple[str, str]]


class _Reader:
    """Reads pictures of a source in chunks; all must have as many images as the first."""

    def __init__(self, source: Source, pixels: Callable[[dict[str, Any], Any], dict[str, Any]], size: int):
        self._source, self._pixels, self._size, self._expected = source, pixels, size, 0

    def chunks(self, indices: range) -> Iterator[_Chunk]:
        """Yields chunks of `size` readable pictures; the last may have fewer."""
        made: list[np.ndarray] = []
        keys: list[str] = []
        errors: list[tuple[str, str]] = []
        for i in indices:
            try:
                image, key = self._read(i)
                made.append(image)
                keys.append(key)
            except Exception as e:  # people's files fail in any way they like
                errors.append((str(self._source.key(i))[:LONGEST_KEY], f"{type(e).__name__}: {e}"[:1000]))
            if len(made) == self._size:
                yield _Chunk(np.stack(made), keys, errors)
                made, keys, errors = [], [], []
        if made or errors:
            yield _Chunk(np.stack(made) if made else None, keys, errors)

    def _read(self, index: int) -> tuple[np.ndarray, str]:
        image, key = self._pixels(self._source[index], None)["image"], str(self._source.key(index))
        self._expected = self._expected or len(image)
        if len(image) != self._expected:
            raise ValueError(f"it has {len(image)} images, where others have {self._expected}")
        if len(key) > LONGEST_KEY:
            raise ValueError(f"its key has {len(key):,} characters, more than {LONGEST_KEY:,}")
        return image, key


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes what the parts of a folder are of, or compares it with what is written.

    Raises:
      ValueError: the folder holds parts of something else.
    """
    path = folder / MANIFEST
    begun = any(folder.glob("part-*.npz"))  # asked first: whoever writes a part has written the manifest before it
    if begun and not path.exists():
        raise ValueError(
            f"{folder} holds parts without the {MANIFEST} that says of what they are; remove it, or write elsewhere"
        )
    if not path.exists():  # several processes may be here at once, with the same to say
        write_whole(path, json.dumps(manifest), own=True)
    before = read_json(path, most=MOST_RECORD)
    check(before, dict[str, str | int | bool | float | None], str(path))
    if changed := sorted(k for k in {*manifest, *before} - {"run"} if before.get(k) != manifest.get(k)):
        raise ValueError(
            f"{folder} holds parts made otherwise ({', '.join(changed)} differs); remove it, or write elsewhere"
        )


def merge(folder: Path, out: Path) -> int | None:
    """Merges all parts into one file, a part in memory at a time, and removes the folder; returns the number of vectors.

    None while parts are missing, or while another process does it.

    Raises:
      ValueError: no picture could be read. OSError: the file could not be written; the parts stay.
    """
    try:
        manifest = read_json(folder / MANIFEST, most=MOST_RECORD)
        paths = [_path(folder, part) for part in range(-(-manifest["examples"] // manifest["rows"]))]
        if not all(p.exists() for p in paths):
            return None
        lock = open_own(folder / "merging", "w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which ends with its process, whatever ends that
    except (FileNotFoundError, BlockingIOError):
        return None
    with lock:
        if not all(p.exists() for p in paths):  # another has just made it
            return None
        keys, errors, shape = [], [], ()
        for p in paths:
            with np.load(p) as part:
                keys.append(part["keys"])
                errors.append(part["errors"])
                shape = part["embeddings"].shape[1:] if len(part["keys"]) else shape
        count = sum(map(len, keys))
        if not count:
            first = next(e for e in errors if len(e))[0]
            _end(folder)  # there is nothing to go on with
            raise ValueError(f"none of {manifest['examples']} pictures could be read; the first: {': '.join(first)}")
        about = json.dumps({k: v for k, v in manifest.items() if k != "rows"})
        with _written(out) as partial:
            np.savez(partial, keys=np.concatenate(keys), errors=np.concatenate(errors), about=np.asarray(about))
            with (
                zipfile.ZipFile(partial, "a") as archive,
                archive.open("embeddings.npy", "w", force_zip64=True) as file,
            ):
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_2_0(file, header)
                for p, own in zip(paths, keys, strict=True):
                    if len(own):
                        with np.load(p) as part:
                            file.write(np.ascontiguousarray(part["embeddings"], "<f4").tobytes())
        _end(folder)
    return count


def made_before(out: Path, folder: Path, source: Source, about: dict[str, Any]) -> int | None:
    """Counts the vectors in `out` if it holds just what is asked for. The folder of parts that `out` was made of is removed."""
    shutil.rmtree(_ended(folder), ignore_errors=True)  # of a process that was killed while it was at that
    try:
        _, keys, before = read_vectors(out)
    except (FileNotFoundError, ValueError):
        return None
    with contextlib.suppress(FileNotFoundError):  # which is there if its process was killed before it could remove it
        parts = read_json(folder / MANIFEST, most=MOST_RECORD)
        if {k: v for k, v in parts.items() if k != "rows"} == before:
            _end(folder)
    return len(keys) if {**before, "run": ""} == {**_of_what(source, about), "run": ""} else None


def stamp(path: str, out: Path) -> str:
    """Hashes the names, sizes and times of all files that a path names; "" of a TFDS name.

    Of a table, those of its folder, where its pictures are. `out`, where vectors are written, does not count, nor do hidden
    files.
    """
    here = Path(path).expanduser()
    if here.is_file() and here.suffix.lower() in TABLE_SUFFIXES:
        here = here.parent
    if here.is_dir():
        found = here.rglob("*")
    elif here.is_file():
        found = [here]
    else:
        found = [Path(p) for pattern in ranges(str(here)) for p in glob.glob(pattern)]
    written = str(out.absolute())  # and its parts
    counts = [
        p for p in found if not str(p.absolute()).startswith(written) and not p.name.startswith(".") and p.is_file()
    ]
    stats = sorted((os.path.relpath(p, here if here.is_dir() else None), p.stat()) for p in counts)
    lines = "\n".join(f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats)
    return f"{zlib.crc32(lines.encode()):08x}" if stats else ""


def _of_what(source: Source, about: dict[str, Any]) -> dict[str, Any]:
    return {"source": repr(source), "examples": len(source), **about}


def read_vectors(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Reads (vectors [N,...] fp32, keys [N], what they depend on) from a file that `merge` wrote.

    Raises:
      ValueError: it is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"index {str(path)!r} does not exist; make one with: simvlm embed RUN ... --out {path}")
    try:
        _check_members(path)
        with np.load(path) as file:
            vectors, keys, about = file["embeddings"], file["keys"], parse_json(str(file["about"]), "about")
        if vectors.dtype != np.float32 or vectors.ndim < 2:
            raise ValueError(f"its vectors are {vectors.dtype} of shape {vectors.shape}, not float32 [N,...]")
        if keys.dtype.kind != "U" or keys.ndim != 1 or len(keys) != len(vectors):
            raise ValueError(f"it has {len(vectors)} vectors, and keys {keys.dtype} of shape {keys.shape}")
        if not len(vectors):
            raise ValueError("it has no vectors")
        check(about, dict[str, str | int | bool | float | None], "about")
        for start in range(0, len(vectors), 2**16):
            if not np.isfinite(vectors[start : start + 2**16]).all():
                raise ValueError("some of its vectors are not finite")
        return vectors, keys, about
    except Exception as e:  # zipfile, zlib and numpy raise whatever they like on what is damaged
        raise ValueError(f"{str(path)!r} is not a file of vectors as `simvlm embed` writes it: {e}") from e


def _check_members(path: Path) -> None:
    """Compares what the headers of an .npz claim with the bytes that are there, before any are read.

    Raises:
      ValueError: they do not agree, or are compressed, so that the size of the file would not bound what is read.
    """
    with open_regular(path, 2**50) as raw, zipfile.ZipFile(raw) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names) or set(names) - {"errors.npy"} != {"embeddings.npy", "keys.npy", "about.npy"}:
            raise ValueError(f"its members are {', '.join(names)[:200]}")
        for name in ("embeddings.npy", "keys.npy", "about.npy"):
            member = archive.getinfo(name)
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"its {name} is compressed, which vectors are not; make it anew by simvlm embed, or save it by numpy.savez in "
                    "place of savez_compressed"
                )
            if member.file_size != member.compress_size or member.file_size > os.fstat(raw.fileno()).st_size:
                raise ValueError(f"{name} claims {member.file_size:,} bytes of {member.compress_size:,} in the file")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read[version](file)
                if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                    raise ValueError(f"{name} claims {dtype} of shape {shape} in {member.file_size:,} bytes")


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays as an .npz, whole or not at all.

    Raises:
      OSError: it could not be written; the message names it.
    """
    with _written(path) as partial:
        np.savez(partial, **arrays)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    """The name of an .npz that takes the place of `path` (or of what that links to) once what is inside has written it.

    Raises:
      OSError: it could not be written; nothing half written stays.
    """
    partial = None
    try:
        target = followed(path)
        partial = partial_of(target, ".npz")
        yield partial
        partial.replace(target)
    except OSError as e:
        raise OSError(
            f"{path} could not be written ({e.strerror or e}); free some space, and the same command continues"
        ) from e
    finally:
        if partial:
            partial.unlink(missing_ok=True)


def _end(folder: Path) -> None:
    """Removes a folder of parts, all at once for whoever looks: a process that comes by must not find half of it."""
    shutil.rmtree(_ended(folder), ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rename(_ended(folder))
    shutil.rmtree(_ended(folder), ignore_errors=True)


def _ended(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.ended")


def _path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.npz"


def _rows_of(source: Source, part: int, rows: int) -> range:
    return range(part * rows, min((part + 1) * rows, len(source)))

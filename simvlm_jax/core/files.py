"""Files that other people made, read within bounds: regular files only, so many bytes, JSON that nests so deep; and writing whole.

Every reader of foreign bytes comes through here, so that a FIFO, a device, a bomb or a hostile JSON is an error of one line.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 2**28
"""Of one picture, table cell or JSON file that is read whole (256 MiB)."""
MOST_TABLE = 2**32
"""Of a table of text."""
MOST_UNPACKED = 2**31
"""Of an archive, once unpacked into memory."""
DEEPEST = 64
"""Levels that JSON may nest."""


class BadFile(ValueError):
    """A file that cannot be what it is taken for; the message names it."""


def open_regular(path: str | os.PathLike, most: int = MOST_BYTES) -> BinaryIO:
    """An unbuffered binary file opened for reading.

    Raises:
      BadFile: it is a FIFO, a device or a socket, or holds more than `most` bytes. OSError: it cannot be opened.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        found = os.fstat(number)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(21, "is a directory", os.fspath(path))
        if not stat.S_ISREG(found.st_mode):
            raise BadFile(f"{_name(path)} is not a regular file (a pipe, a device or a socket)")
        if found.st_size > most:
            raise BadFile(f"{_name(path)} has {found.st_size:,} bytes, more than the limit of {most:,}")
        return os.fdopen(number, "rb", buffering=0)
    except BaseException:
        os.close(number)
        raise


def read_bytes(path: str | os.PathLike, most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
      BadFile, OSError: as `open_regular`; also where the file grows past `most` while it is read.
    """
    with open_regular(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size)
        while more := file.read(
            min(2**20, most + 1 - len(data))
        ):  # of a file system whose sizes are not told, or a short read
            data += more
            if len(data) > most:
                raise BadFile(f"{_name(path)} has more bytes than the limit of {most:,}")
        return data


def read_text(path: str | os.PathLike, most: int = MOST_TABLE) -> str:
    """The text of a file in UTF-8 or UTF-16, as `decoded` tells them apart.

    Raises:
      BadFile: another encoding; the message names the byte.
    """
    return decoded(read_bytes(path, most), _name(path))


def decoded(data: bytes, name: str) -> str:
    """Text of bytes in UTF-8 or UTF-16, with or without a byte order mark; without one, UTF-16 is told by its zero bytes.

    Raises:
      BadFile: another encoding.
    """
    if wide := _wide(data[:4096]):
        try:
            return data.decode(wide)
        except UnicodeDecodeError as e:
            raise BadFile(f"{name} begins as UTF-16 and is not (byte {e.start}); save it as UTF-8") from e
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise BadFile(f"{name} is not UTF-8 (byte {e.start}); save it as UTF-8") from e


def _wide(start: bytes) -> str:
    """The name of the UTF-16 that a file which begins so is in, "" where it is in none.

    It is told by the byte order mark; without one, nearly every second byte of mostly ASCII text is zero and hardly any other.
    """
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) and not start.startswith(b"\xff\xfe\0\0"):
        return "utf-16"
    half = len(start) // 2
    even, odd = start[: 2 * half : 2].count(0), start[1 : 2 * half : 2].count(0)
    if half > 1 and odd * 10 >= half * 9 and even * 10 < half:
        return "utf-16-le"
    return "utf-16-be" if half > 1 and even * 10 >= half * 9 and odd * 10 < half else ""


def parse_json(text: str | bytes, name: str, unique: bool = False) -> Any:
    """The value of a JSON text. unique: a name that stands twice in one object is an error, where JSON keeps the last.

    Raises:
      BadFile: it is not JSON, nests deeper than DEEPEST, or has a name twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))
            raise BadFile(f"{name}: {twice!r} stands more than once")
        return found

    try:
        value = json.loads(text, object_pairs_hook=once if unique else None)
    except RecursionError as e:
        raise BadFile(f"{name} nests deeper than {DEEPEST} levels") from e
    except BadFile:
        raise
    except ValueError as e:  # also numbers of more digits than Python reads
        raise BadFile(f"{name} is not JSON: {e}") from e
    level, depth = [value], 0
    while level := [x for x in level if isinstance(x, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            raise BadFile(f"{name} nests deeper than {DEEPEST} levels")
        level = [v for x in level for v in (x.values() if isinstance(x, dict) else x)]
    return value


def read_json(path: str | os.PathLike, unique: bool = False, most: int = MOST_BYTES) -> Any:
    """The value of a JSON file.

    Raises:
      BadFile: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, most), _name(path), unique)


def write_whole(path: str | os.PathLike, data: str | bytes) -> None:
    """Writes a file so that a reader sees all of it or the old one; text as UTF-8.

    Raises:
      OSError: it cannot be written; the message names the file.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({e.strerror or e}); free some space or name another place") from e


def can_be_written(path: str | os.PathLike) -> None:
    """Refuses a place for results that will not take them, before the work is done.

    Raises:
      OSError: it is a folder, or its folder does not exist and cannot be made, or may not be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OSError(f"{path} cannot be written: its folder cannot be made ({e.strerror or e})") from e
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written (permission denied)")


def printable(text: str) -> str:
    """A name or text for a terminal: control characters, which may move the cursor or worse, are spelt out."""
    return _CONTROL.sub(lambda c: f"\\x{ord(c[0]):02x}", text)


def printable_lines(text: str) -> str:
    """The same, of a text that may have lines."""
    return "\n".join(map(printable, text.split("\n")))


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def _name(path: str | os.PathLike) -> str:
    return repr(os.fspath(path))

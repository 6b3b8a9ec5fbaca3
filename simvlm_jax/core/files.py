"""Files that other people made, read within bounds: regular files only, so many bytes, JSON that nests so deep; and writing whole.

Every reader of foreign bytes comes through here, so that a FIFO, a device, a bomb or a hostile JSON is an error of one line.
"""

import errno
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import IO, Any, BinaryIO

MOST_BYTES = 2**28
"""Most bytes of one picture, table cell or JSON file that is read whole (256 MiB)."""
MOST_RECORD = 2**24
"""Most bytes of a small JSON file of a run: a config, a list of answers, a contract (16 MiB)."""
MOST_TABLE = 2**32
"""Most bytes of a table of text."""
MOST_PARSED = 2**30
"""Most memory of parsed JSON that is more than a few times its text."""
MOST_UNPACKED = 2**31
"""Most bytes of an archive, once unpacked into memory."""
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
      BadFile: it is not JSON, nests deeper than DEEPEST, has a name twice, or is made of so many small values that it would
        take more than MOST_PARSED of memory, and ten times its text.
    """
    if (size := _parsed_size(text)) > max(MOST_PARSED, 10 * len(text)):
        raise BadFile(
            f"{name} has {len(text):,} bytes of JSON that would take about {size / 2**30:.1f} GiB of memory, more than the limit "
            f"of {MOST_PARSED / 2**30:.0f}; it is made of empty lists and the like"
        )

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


def _parsed_size(text: str | bytes) -> int:
    """About the bytes of memory that a JSON text takes once parsed, by its signs; 0 of a short one, which cannot take much."""
    if len(text) < MOST_PARSED // 30:
        return 0
    commas, lists, records = (text.count(c if isinstance(text, str) else c.encode()) for c in ",[{")  # pyright: ignore
    return len(text) + 40 * commas + 80 * lists + 200 * records


def read_json(path: str | os.PathLike, unique: bool = False, most: int = MOST_BYTES) -> Any:
    """The value of a JSON file.

    Raises:
      BadFile: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, most), _name(path), unique)


def open_own(path: str | os.PathLike, mode: str) -> IO[str]:
    """A text file of a folder of ours, opened to be written anew ("w") or at its end ("a", or "a+" to be read too).

    It is made where it is missing. Such a folder may come from anybody, so a link in it is not followed.

    Raises:
      BadFile: it is a link, a FIFO or a device. OSError: it cannot be opened.
    """
    how = os.O_RDWR if "+" in mode else os.O_WRONLY
    how |= os.O_CREAT | (os.O_APPEND if "a" in mode else 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        number = os.open(path, how | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise BadFile(_NO_PLACE.format(_name(path))) from e
        raise
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise BadFile(_NO_PLACE.format(_name(path)))
        if "w" in mode:
            os.ftruncate(number, 0)
        return os.fdopen(number, mode, encoding="utf-8")
    except BaseException:
        os.close(number)
        raise


def partial_of(path: Path, suffix: str = ".partial") -> Path:
    """A name beside `path` for a file that is being written, which no other process on any machine gives to its own."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{suffix}")


def write_whole(path: str | os.PathLike, data: str | bytes, own: bool = False) -> None:
    """Writes a file so that a reader sees all of it or the old one; text as UTF-8.

    Of a link that a person named, what it leads to is written; a pipe, a terminal or a device like /dev/null gets the bytes and
    stays what it is. own: the file is one of a folder of ours, which may come from anybody: a link in it is replaced.

    Raises:
      BadFile: `own`, and it is a pipe or a device. OSError: it cannot be written; the message names the file.
    """
    path, data = Path(path), data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    partial = None
    try:
        target = path if own else followed(path)
        if own and not path.is_symlink() and path.exists() and not path.is_file() and not path.is_dir():
            raise BadFile(_NO_PLACE.format(_name(path)))
        if not own and is_stream(path):
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC), "wb") as file:
                file.write(data)
            return
        partial = partial_of(target)
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as e:
        if partial:
            partial.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({e.strerror or e}); free some space or name another place") from e


def is_stream(path: str | os.PathLike) -> bool:
    """Whether a path leads to a pipe, a terminal or a device like /dev/null, or to what a process has open (/dev/stdout).

    Such a thing is written to as it is: it is never replaced by a file.
    """
    try:
        kind = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(kind) or stat.S_ISFIFO(kind) or followed(path).is_relative_to("/proc")


def followed(path: str | os.PathLike) -> Path:
    """Where a path leads once its links are followed, whether anything is there or not; itself where it is no link.

    Links of /proc stay, for what they name need not have a name.

    Raises:
      OSError: the links lead round in a circle.
    """
    path = Path(path)
    for _ in range(40):
        if not path.is_symlink():
            return path
        path = Path(os.path.realpath(path.parent)) / path.name
        if path.is_relative_to("/proc"):
            return path
        path = path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))


def can_be_written(path: str | os.PathLike, stream: bool = True) -> None:
    """Refuses a place for results that will not take them, before the work is done.

    stream: whether a pipe or a device will do, which what is written in several goes will not.

    Raises:
      OSError: it is a folder, a disk or a socket, or its folder does not exist and cannot be made, or may not be written to.
    """
    path = Path(path)
    try:
        target = followed(path)
    except OSError as e:
        raise OSError(f"{path} cannot be written: its links lead round in a circle") from e
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write")
    if target.exists() and not target.is_file() and not is_stream(path):
        raise OSError(f"{path} is a disk or a socket; name a file to write")
    if is_stream(path) and not stream:
        raise OSError(f"{path} is a pipe or a device, and what is written there is a file; name one")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OSError(f"{path} cannot be written: its folder cannot be made ({e.strerror or e})") from e
    if not os.access(target if is_stream(path) else target.parent, os.W_OK) or (
        target.exists() and not os.access(target, os.W_OK)
    ):
        raise PermissionError(f"{path} cannot be written (permission denied)")


def printable(text: str) -> str:
    """A name or text for a terminal: control characters, which may move the cursor or worse, are spelt out."""
    return _CONTROL.sub(lambda c: f"\\x{ord(c[0]):02x}", text)


def printable_lines(text: str) -> str:
    """The same, of a text that may have lines."""
    return "\n".join(map(printable, text.split("\n")))


_NO_PLACE = "{} is a link, a pipe or a device, where a file of ours is to be written; remove it, or use another folder"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def _name(path: str | os.PathLike) -> str:
    return repr(os.fspath(path))

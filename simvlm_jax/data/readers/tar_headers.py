"""Headers of tars, looked at before Python's tarfile believes them.

tarfile reads headers that hold names and attributes (PAX, GNU's long names, maps of sparse files) as long as they say they are, and
finds its way through those of PAX in quadratic time (CVE-2024-6232). Here they are walked as tarfile will walk them, a read a member.
"""

import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from simvlm_jax.core.files import BadFile, open_regular

MOST_HEADER = 2**20
"""Bytes of the names and attributes of one member."""
_MOST_IN_A_ROW = 32
"""Headers before one member; tarfile calls itself for each."""
_MOST = 2**60
"""Largest offset in a tar; what lies beyond cannot be read."""
_BLOCK = 512
_NAMES, _PAX, _SPARSE = b"xgXLK", b"xgX", b"S"
_END = bytes(_BLOCK)
_NO_DATA = b"123456"
"""Types whose size is not followed by data: links, devices, folders, pipes."""
_RECORD = re.compile(rb"(\d{1,20}) ([^=\n]+)=")
_LONG_NUMBER = re.compile(rb"\d{257}")
"""Longer than any name; tarfile looks for words after digits from each digit anew."""
_SIZES = (b"size", b"GNU.sparse.size", b"GNU.sparse.realsize")
_REMEDY = "; fetch or write the tar anew"


class _Pax(NamedTuple):
    """What PAX headers tell of the way to the next member."""

    size: int | None = None
    map_in_data: bool = False


def check_tar(path: Path) -> None:
    """Walks the headers of a tar from one to the next, as far as there are any.

    Raises:
      BadFile: one is longer than MOST_HEADER, or does not say what such headers say. OSError: it cannot be opened.
    """
    with open_regular(path, 2**50) as file:
        check_headers(file, repr(str(path)))


def check_headers(file: Any, name: str) -> None:
    """The same of an open file, which may be unpacked while it is read.

    Raises:
      BadFile: as `check_tar`; the message has the name and the place.
    """
    at = _reader(file)
    place, row, pax = 0, 0, _Pax()
    while place <= _MOST and len(block := at(place, _BLOCK)) == _BLOCK:
        size = _number(block[124:136])
        if size is None or block == _END or (size < 0 and block[156] not in _NAMES):
            return  # the end, what tarfile takes for it, or what readers of members refuse
        start, place = place, place + _BLOCK
        try:
            if block[156] in _NAMES:
                row += 1
                _check_length(size, row)
                if block[156] in _PAX:
                    pax = _pax(at(place, _padded(size)), size, block[156:157], pax)
                place += _padded(size)
                continue
            if block[156] in _SPARSE:
                place = _after_map(at, place, block[482])
            elif pax.map_in_data:
                _check_map(at(place, MOST_HEADER))
        except BadFile as e:
            if _number(block[148:156]) not in tarfile.calc_chksums(block):
                return
            raise BadFile(f"{name}: the header at byte {start:,} {e}") from None
        if block[156] not in _NO_DATA and not (not block[156] and block[:100].partition(b"\0")[0].endswith(b"/")):
            place += _padded(size if pax.size is None else pax.size)
        row, pax = 0, _Pax()


def _reader(file: Any) -> Callable[[int, int], bytes]:
    """A function (place, size) -> bytes: in one call where the file lies on a disk as it is."""
    try:
        number = file.fileno()
        return lambda place, size: os.pread(number, size, place)
    except (AttributeError, OSError):

        def read(place: int, size: int) -> bytes:
            file.seek(place)
            return file.read(size)

        return read


def _number(field: bytes) -> int | None:
    """A number in octal digits, or in base 256; None where it is none."""
    if field[0] in (0o200, 0o377):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0o377 else 0)
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _check_length(size: int, row: int) -> None:
    if not 0 <= size <= MOST_HEADER:
        raise BadFile(
            f"claims {size:,} bytes of names and attributes, more than the limit of {MOST_HEADER:,}; write the tar "
            "anew without them"
        )
    if row > _MOST_IN_A_ROW:
        raise BadFile(f"is one of more than {_MOST_IN_A_ROW} before one member; write the tar anew")


def _pax(data: bytes, size: int, kind: bytes, before: _Pax) -> _Pax:
    """What is told after a PAX header, whose records are each "LENGTH KEY=VALUE\\n"."""
    if _LONG_NUMBER.search(data):
        raise BadFile(f"has a number of more than 256 digits{_REMEDY}")
    if len(data) < size:
        return before  # cut short, which tarfile says
    place, records = 0, []
    while place < size:
        found = _RECORD.match(data, place)
        end = place + int(found[1]) if found else 0
        if not found or not found.end() < end <= size or data[end - 1] != ord("\n"):
            raise BadFile(f"has no PAX record at its byte {place:,}{_REMEDY}")
        records.append((found[2], data[found.end() : end - 1]))
        place = end
    if data[size:].strip(b"\0"):
        raise BadFile(f"goes on after its {size:,} bytes{_REMEDY}")
    pax, values, sizes = before, dict(records), [value for key, value in records if key in _SIZES]
    if b"size" in values:
        pax = pax._replace(size=int(values[b"size"]) if re.fullmatch(rb"\d{1,18}", values[b"size"]) else -1)
    if (values.get(b"GNU.sparse.major"), values.get(b"GNU.sparse.minor")) == (b"1", b"0"):
        pax = pax._replace(map_in_data=True)
    twice = pax.size is not None and (
        len(sizes) > 1 or pax.map_in_data or (b"size" in values and before.size is not None)
    )
    if twice or pax.size == -1 or (kind == b"g" and any(k in _SIZES or k.startswith(b"GNU.sparse") for k in values)):
        raise BadFile(f"tells a size that is none, more than one, or that of no one member{_REMEDY}")
    return pax


def _after_map(at: Callable[[int, int], bytes], place: int, more: int) -> int:
    """Where the data of a GNU sparse file begin, after the blocks that go on with its map."""
    start = place
    while more:
        block = at(place, _BLOCK)
        place += _BLOCK
        if len(block) < _BLOCK:
            raise BadFile(f"is cut short{_REMEDY}")
        if place - start > MOST_HEADER:
            raise BadFile(f"goes on for more than {MOST_HEADER:,} bytes; write the tar anew, not sparse")
        more = block[504]
    return place


def _check_map(data: bytes) -> None:
    """Refuses the map of a sparse file, numbers one per line at the beginning of its data, that goes on and on."""
    first = data.partition(b"\n")[0]
    lines = 2 * int(first) + 1 if re.fullmatch(rb"\d{1,9}", first) else MOST_HEADER
    if data.count(b"\n") < lines and len(data) == MOST_HEADER:
        raise BadFile(f"has a map of more than {MOST_HEADER:,} bytes, or none; write the tar anew, not sparse")

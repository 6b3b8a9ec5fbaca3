"""Headers of tars are walked as tarfile walks them; those that would cost it hours or gigabytes are refused."""

import io
import random
import tarfile

import pytest

from simvlm_jax.core.files import BadFile
from simvlm_jax.data.readers import tar_headers
from simvlm_jax.data.readers.published import unpacked
from simvlm_jax.data.readers.tar_headers import MOST_HEADER, check_tar
from simvlm_jax.data.readers.tars import index_tar


def header(kind, size, name="a.jpg", more=b""):
    """A header of 512 bytes; more: what stands in its last part."""
    field = (
        b"%011o\0" % size if 0 <= size < 8**11 else b"\x80\xff"[size < 0 :][:1] + size.to_bytes(11, "big", signed=True)
    )
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:148] = b"0000644\0" * 3 + field + b"%011o\0" % 0
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[386 : 386 + len(more)] = more
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


def record(key, value):
    body = b" " + key + b"=" + value + b"\n"
    length = next(n for n in range(len(body) + 1, len(body) + 9) if len(str(n)) + len(body) == n)
    return str(length).encode() + body


def pax(*records, kind=b"x", size=None):
    data = b"".join(records)
    return header(kind, len(data) if size is None else size, "PaxHeader") + data + bytes(-len(data) % 512)


def picture(name="b.jpg"):
    return header(b"0", 4, name) + b"1234".ljust(512, b"\0")


END = bytes(1024)
SPARSE = [record(b"GNU.sparse." + k, v) for k, v in ((b"major", b"1"), (b"minor", b"0"), (b"name", b"s.jpg"))]
REFUSED = {
    "digits": (pax(b"1" * 300_000), "a number of more than 256 digits"),
    "digits in a value": (pax(record(b"comment", b"1" * 300_000)), "a number of more than 256 digits"),
    "digits, cut short": (pax(b"1" * 300_000, size=400_000), "a number of more than 256 digits"),
    "no records": (pax(b"hello"), "has no PAX record at its byte 0"),
    "a record too long": (pax(b"99 a=b\n"), "has no PAX record at its byte 0"),
    "a record without an end": (pax(record(b"a", b"b"), b"6 a=bc"), "has no PAX record at its byte 6"),
    "a record of nothing": (pax(b"0 a=b\n"), "has no PAX record at its byte 0"),
    "after the records": (pax(record(b"a", b"b"))[:-1] + b"1", "goes on after its 6 bytes"),
    "3 GB of PAX": (pax(record(b"a", b"b"), size=3 * 10**9), "claims 3,000,000,000 bytes of names"),
    "3 GB of a long name": (header(b"L", 3 * 10**9), "claims 3,000,000,000 bytes of names"),
    "20 GB of a long link": (header(b"K", 20 * 10**9), "claims 20,000,000,000 bytes of names"),
    "less than nothing": (header(b"L", -512), "claims -512 bytes of names"),
    "after a folder that says it is large": (
        header(b"5", 2**70) + pax(b"1" * 300_000),
        "a number of more than 256 digits",
    ),
    "many in a row": (pax(record(b"a", b"b")) * 40 + picture(), "more than 32 before one member"),
    "two sizes": (pax(record(b"size", b"4")) * 2 + picture(), "tells a size that is none, more than one"),
    "a size of words": (pax(record(b"size", b"1_0")) + picture(), "tells a size that is none"),
    "a size of all": (pax(record(b"size", b"4"), kind=b"g") + picture(), "or that of no one member"),
    "a map without end": (pax(*SPARSE) + header(b"0", 512) + b"1" * (2 * MOST_HEADER), "has a map of more than"),
    "old maps without end": (
        header(b"S", 0, more=b"\0" * 96 + b"\1") + (b"\0" * 504 + b"\1" + b"\0" * 7) * 3000,
        "goes on for more than",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_headers_that_are_refused(tmp_path, name):
    data, message = REFUSED[name]
    path = tmp_path / "a.tar"
    path.write_bytes(picture("0.jpg") + data + END)
    with pytest.raises(BadFile, match=rf"a\.tar': the header at byte [\d,]+ .*{message}"):
        index_tar(path)
    with pytest.raises(BadFile, match=message):
        unpacked(path)


@pytest.mark.parametrize("size", [-512, 2**70])
def test_sizes_of_members_that_are_none(tmp_path, size):
    path = tmp_path / "a.tar"
    path.write_bytes(picture("0.jpg") + header(b"0", size) + END)
    with pytest.raises(ValueError, match=r"a\.tar' is not a whole, uncompressed tar"):
        index_tar(path)


def walked(path, monkeypatch):
    """The places of headers that the walk has read."""
    places, reader = [], tar_headers._reader

    def noted(file):
        at = reader(file)
        return lambda place, size: (places.append(place) if size == 512 else None, at(place, size))[1]

    monkeypatch.setattr(tar_headers, "_reader", noted)
    check_tar(path)
    return places


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_of_a_tar_is_walked_to(tmp_path, monkeypatch, kind):
    rng, path = random.Random(0), tmp_path / "a.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for i in range(200):
            long = "é" * 60 + "/" + "n" * 120 if kind != tarfile.USTAR_FORMAT and i % 3 == 0 else "name"
            member = tarfile.TarInfo(f"{long}/{i}.jpg")
            member.type = rng.choice([tarfile.REGTYPE] * 5 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
            member.linkname = long if not member.isreg() else ""
            member.mtime = i + 0.5
            member.size = rng.randint(0, 3000) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    with tarfile.open(path) as tar:
        starts = {m.offset for m in tar}
    assert starts <= set(walked(path, monkeypatch)) and len(starts) == 200
    whole = path.read_bytes()
    for cut in (0, 100, 700, len(whole) // 2, len(whole) - 1500):
        path.write_bytes(whole[:cut])
        check_tar(path)


def test_sparse_and_global_headers_and_sizes_of_pax_are_walked_past(tmp_path, monkeypatch):
    parts = [
        pax(record(b"comment", b"of all"), kind=b"g"),
        pax(record(b"size", b"1024"), record(b"path", "é.jpg".encode())) + header(b"0", 7) + bytes(1024),
        pax(*SPARSE, record(b"GNU.sparse.realsize", b"9")) + header(b"0", 1024) + b"1\n0\n9\n".ljust(1024, b"\0"),
        header(b"S", 512, more=b"\0" * 96 + b"\1") + bytes(504) + b"\1" + bytes(7) + bytes(512) + bytes(512),
        header(b"\0", 4, "folder/"),
        picture("last.jpg"),
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(parts) + END)
    last = sum(map(len, parts[:-1]))
    assert last in walked(path, monkeypatch)
    with tarfile.open(path) as tar:
        assert tar.getmembers()[-1].offset == last and tar.getmembers()[-1].name == "last.jpg"

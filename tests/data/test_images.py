"""Pictures that would take too much memory or too long are refused before they are decoded."""

import gzip
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from simvlm_jax.data.images import BadImage, decode


def png(size):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def icon(data, magic):
    """A PNG in an icon that says it is small."""
    if magic == "icns":
        return b"icns" + struct.pack(">I", len(data) + 16) + b"ic08" + struct.pack(">I", len(data) + 8) + data
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(data), 22) + data


@pytest.mark.parametrize("magic", ["ico", "icns"])
def test_what_is_inside_an_icon_is_looked_at_before_it_is_decoded(magic, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size = (300, 200) if magic == "ico" else (256, 256)  # Pillow takes no icns of another size than it says
        assert decode(icon(png(size), magic)).size == size
    bomb = bytearray(png((300, 200)))
    bomb[16:24] = struct.pack(">II", 13300, 13300)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(BadImage, match=r"13300 x 13300 pixels .* more than the limit"):
        decode(icon(bytes(bomb), magic))


def test_an_icon_is_not_taken_for_a_tga():
    """Both begin alike: formats are asked in Pillow's order."""
    data = png((200, 200))
    assert 2**16 < len(data) < 2**17  # this byte of the length stands where a TGA has its depth
    assert Image.open(io.BytesIO(icon(data, "ico")), formats=["TGA", "ICO"]).format == "TGA"
    assert decode(icon(data, "ico")).size == (200, 200)


def header(**cards):
    lines = [f"{name:8}= {value:>20}" for name, value in cards.items()]
    return "".join(line.ljust(80) for line in [*lines, "END"]).ljust(2880).encode()


def fits(width, height, packed=None):
    """A FITS of 16-bit pixels, or of a table whose data are packed."""
    if packed is None:
        return header(SIMPLE="T", BITPIX=16, NAXIS=2, NAXIS1=width, NAXIS2=height) + bytes(2 * width * height)
    table = dict(XTENSION="'BINTABLE'", BITPIX=8, NAXIS=2, NAXIS1=8, NAXIS2=1, ZIMAGE="T", ZCMPTYPE="'GZIP_1  '")
    table |= dict(ZBITPIX=16, ZNAXIS=2, ZNAXIS1=width, ZNAXIS2=height)
    return header(SIMPLE="T", BITPIX=8, NAXIS=0) + header(**table) + bytes(8) + packed.ljust(2872, b"\0")


def blp(outer, jpeg):
    """A BLP of a size that holds a JPEG."""
    places = (164, *[0] * 15, len(jpeg) - 4, *[0] * 15)
    return b"BLP1" + struct.pack("<iIIIii32II", 0, 0, *outer, 5, 0, *places, 4) + jpeg


def test_formats_that_are_decoded_in_python_are_read_and_kept_small():
    qoi = io.BytesIO()
    Image.new("RGB", (8, 8)).save(qoi, "QOI")
    assert decode(qoi.getvalue()).size == (8, 8)
    large = bytearray(qoi.getvalue())
    large[4:12] = struct.pack(">II", 9000, 9000)
    with pytest.raises(BadImage, match="of QOI, which is slow to decode"):
        decode(bytes(large))
    assert decode(fits(4, 3)).size == (4, 3)
    assert decode(fits(4, 3, gzip.compress(bytes(4 * 4 * 3)))).size == (4, 3)
    with pytest.raises(BadImage, match="its packed data are more than its 4 x 3 pixels"):
        decode(fits(4, 3, gzip.compress(bytes(2**22))))


def test_the_jpeg_in_a_blp_is_looked_at_before_it_is_decoded(monkeypatch):
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(jpeg, "JPEG")
    assert decode(blp((8, 8), jpeg.getvalue())).size == (8, 8)
    data = bytearray(jpeg.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(BadImage, match="limit"):
        decode(blp((8, 8), bytes(data)))


def test_plain_ppm_is_kept_small():
    assert decode(b"P3 2 1 255 1 2 3 4 5 6").size == (2, 1)
    with pytest.raises(BadImage, match=r"9000 x 9000 pixels are more than .* of PPM, which is slow to decode; save"):
        decode(b"P3 9000 9000 255 " + b"1 2 3 " * 9)

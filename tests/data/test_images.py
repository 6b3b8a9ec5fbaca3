"""Pictures that would take too much memory or too long are refused before they are decoded."""

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


def test_formats_that_are_decoded_in_python_are_refused_or_kept_small():
    qoi = io.BytesIO()
    Image.new("RGB", (8, 8)).save(qoi, "QOI")
    for data in (qoi.getvalue(), b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800)):
        with pytest.raises(BadImage, match="not an image in a format that can be read"):
            decode(data)
    assert decode(b"P3 2 1 255 1 2 3 4 5 6").size == (2, 1)
    with pytest.raises(BadImage, match=r"9000 x 9000 pixels are more than .* of PPM, which is slow to decode; save"):
        decode(b"P3 9000 9000 255 " + b"1 2 3 " * 9)

"""Image bytes to RGB pixels, defensively: known formats only, sizes checked before decoding, every mode made 8-bit RGB."""

import functools
import importlib.util
import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
from PIL import (
    BmpImagePlugin,
    IcnsImagePlugin,
    IcoImagePlugin,
    Image,
    ImageOps,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
)

MAX_PIXELS = 178_956_970
"""Largest picture decoded (Pillow's own hard limit is twice its warning level; a 50-megapixel photo passes)."""
MAX_DECODED = 2**29
"""Bytes that the pixels of a picture may take while it is made 8-bit RGB (Pillow keeps RGB in 4 bytes per pixel)."""
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 4, "I;16B": 4, "I;16L": 4, "I;16N": 4, "I": 5, "F": 5}
"""Bytes per pixel of a Pillow mode, beside those of the RGB it becomes; 4 for other modes."""
MAX_IN_PYTHON = 2**22
"""Pixels of a picture that Pillow decodes in Python (QOI, packed FITS, BLP, plain PPM, run-length BMP ...), microseconds each."""
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "MPO", "JPEG2000", "PPM", "TGA", "ICO", "DIB", "PCX"),
    *("QOI", "DDS", "SGI", "SUN", "PSD", "XBM", "XPM", "MSP", "IM", "SPIDER", "FITS", "FLI", "PCD", "PIXAR", "GBR"),
    *("BLP", "CUR", "DCX", "FTEX", "ICNS", "MCIDAS", "XVTHUMB", "IMT"),
)  # fmt: skip
"""What is decoded, as far as Pillow and its plugins can: pictures made of pixels. PostScript, EMF and other programs are not."""
Box = tuple[float, float, float, float]
"""A region of a picture in pixels: left, top, right, bottom."""


class BadImage(ValueError):
    """An image that cannot be used; the message says why."""


def decode(data: bytes | np.ndarray, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """RGB image of encoded bytes: first frame, upright by EXIF, alpha over white, 16-bit scaled to 8.

    Pixels [Y,X,3] uint8, as some data sets store them, are taken as they are.

    at_least: a JPEG may be decoded at a reduced scale whose shorter side is still at least this, which is faster.

    Raises:
      BadImage: empty, unreadable, truncated, of a format that is none of FORMATS, or of more than `max_pixels` or MAX_DECODED.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data)
    if not data:
        raise BadImage("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # of odd icons and metadata, with no word of whose they are
            if inside := _inside(data):
                _check_pixels(inside, max_pixels)
                _check_work(inside)
            image = Image.open(io.BytesIO(data), formats=_readable())
            _check_pixels(image, max_pixels)
            if at_least is not None and image.format == "JPEG":
                image.draft("RGB", (at_least, at_least))
            _check_work(image)
            _check_packed(image, data)
            image.load()
            return as_rgb(image)
    except BadImage:
        raise
    except Image.DecompressionBombError as e:  # Pillow's own, at twice the limit, before the size can be asked
        raise BadImage(f"its pixels are more than the limit of {max_pixels}") from e
    except Image.UnidentifiedImageError as e:
        raise BadImage("not an image in a format that can be read") from e
    except Exception as e:  # decoders raise whatever they like on broken input
        raise BadImage(f"cannot be decoded: {e}") from e


def _check_pixels(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise BadImage(f"{image.width} x {image.height} pixels are more than the limit of {most}")


def _check_work(image: Image.Image) -> None:
    """Refuses an opened picture that would take too much memory or too long to decode."""
    pixels, size = image.width * image.height, f"{image.width} x {image.height} pixels"
    memory = pixels * (4 if image.mode == "RGB" else 4 + _BYTES.get(image.mode, 4))
    if memory > MAX_DECODED:
        raise BadImage(f"{size} ({image.mode}) take {memory:,} bytes to decode, more than the limit of {MAX_DECODED:,}")
    in_python = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
    if in_python and pixels > MAX_IN_PYTHON:
        raise BadImage(
            f"{size} are more than the limit of {MAX_IN_PYTHON} of this kind of {image.format}, which is slow to decode; "
            "save it as PNG"
        )


def _check_packed(image: Image.Image, data: bytes) -> None:
    """Refuses a FITS whose packed data are larger than its pixels, for not every Pillow stops at these."""
    for tile in getattr(image, "tile", ()):
        if tile[0] == "fits_gzip":
            most = 4 * image.width * image.height + 2**20
            if len(zlib.decompressobj(wbits=31).decompress(data[tile[2] :], most)) == most:
                raise BadImage(f"its packed data are more than its {image.width} x {image.height} pixels")


def _inside(data: bytes) -> Image.Image | None:
    """The picture that an ICO, ICNS or BLP holds, opened, for it may be larger than the file says; None of other files."""
    find = {b"\0\0\1\0": _inside_ico, b"icns": _inside_icns, b"BLP1": _inside_blp}.get(data[:4])
    try:
        return find(io.BytesIO(data)) if find else None
    except Exception:  # what cannot be opened here, Pillow cannot open either
        return None


def _inside_blp(file: io.BytesIO) -> Image.Image | None:
    """The JPEG of a BLP, whose header stands apart from its data."""
    data = file.getvalue()
    (kind,), (start,), (length,), (header,) = (struct.unpack_from("<i", data, at) for at in (4, 28, 92, 156))
    if kind:
        return None  # pixels, of the size that is told
    return JpegImagePlugin.JpegImageFile(io.BytesIO(data[160 : 160 + header] + data[start : start + length]))


def _inside_ico(file: io.BytesIO) -> Image.Image:
    file.seek(IcoImagePlugin.IcoFile(file).entry[0].offset)
    return _opened_here(file, BmpImagePlugin.DibImageFile)


def _inside_icns(file: io.BytesIO) -> Image.Image | None:
    icon = IcnsImagePlugin.IcnsFile(file)
    code, reader = next(kind for kind in icon.SIZES[icon.bestsize()] if kind[0] in icon.dct)
    if reader is not IcnsImagePlugin.read_png_or_jpeg2000:
        return None  # pixels, of the icon's own size
    start, length = icon.dct[code]
    file.seek(start)
    return _opened_here(io.BytesIO(file.read(length)), Jpeg2KImagePlugin.Jpeg2KImageFile)


def _opened_here(file: io.BytesIO, other: Callable[[io.BytesIO], Image.Image]) -> Image.Image:
    """The PNG that begins where the file stands, or what else begins there; not decoded."""
    start = file.tell()
    is_png = file.read(8) == b"\x89PNG\r\n\x1a\n"
    file.seek(start)
    return PngImagePlugin.PngImageFile(file) if is_png else other(file)


@functools.cache
def _readable() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads, in its own order, for some (TGA) are told by very little; HEIC with pillow-heif."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in Image.ID if name in FORMATS)


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF block says; a block that cannot be read says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises struct.error, SyntaxError, ValueError, TypeError and others
        return image


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened picture as `decode` gives it: upright by EXIF, alpha over white, 16-bit scaled to 8."""
    return _to_rgb(_upright(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these to 255
        wide = np.asarray(image)
        top = 65535.0 if image.mode.startswith("I;16") or wide.max() > 255 else 255.0
        grey = np.empty(wide.shape, np.uint8)
        for y in range(0, len(wide), 256):  # a strip at a time, for these are wide numbers
            grey[y : y + 256] = np.clip(wide[y : y + 256].astype(np.float64) * (255.0 / top) + 0.5, 0, 255)
        image = Image.fromarray(grey, "L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def resize(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """uint8 [Y,X,3] of a region (left, top, right, bottom) in pixels, by default the central one of that shape; size: (Y, X)."""
    Y, X = size
    if box is None:
        width, height = largest(image.size, size)
        left, top = (image.width - width) / 2, (image.height - height) / 2
        box = (left, top, left + width, top + height)
    if image.size == (X, Y) and tuple(box) == (0, 0, X, Y):
        return np.asarray(image)
    return np.asarray(image.resize((X, Y), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))


def largest(image: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """(width, height) of the largest region of a picture (width, height) that has the shape of (Y, X)."""
    scale = min(image[0] / size[1], image[1] / size[0])
    if size[0] == size[1]:
        return min(image), min(image)
    return size[1] * scale, size[0] * scale


def random_box(
    width: int, height: int, smallest: float, rng: np.random.Generator, size: tuple[int, int] = (1, 1)
) -> Box:
    """A random region in the shape of (Y, X) that covers between `smallest` and all of the central one's area."""
    share = float(np.sqrt(rng.uniform(smallest, 1.0)))
    across, down = (side * share for side in largest((width, height), size))
    left, top = float(rng.uniform(0, width - across)), float(rng.uniform(0, height - down))
    return left, top, left + across, top + down

"""Image bytes to RGB pixels, defensively: known formats only, sizes checked before decoding, every mode made 8-bit RGB."""

import functools
import importlib.util
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 178_956_970
"""Largest picture decoded (Pillow's own hard limit is twice its warning level; a 50-megapixel photo passes)."""
MAX_DECODED = 2**29
"""Bytes that the pixels of a picture may take while it is made 8-bit RGB (Pillow keeps RGB in 4 bytes a pixel)."""
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 4, "I;16B": 4, "I;16L": 4, "I;16N": 4, "I": 5, "F": 5}
"""Of a pixel of a mode, beside those of the RGB it becomes; 4 of the others."""
FORMATS = (
    *(
        "JPEG",
        "PNG",
        "WEBP",
        "GIF",
        "BMP",
        "TIFF",
        "AVIF",
        "HEIF",
        "MPO",
        "JPEG2000",
        "PPM",
        "TGA",
        "ICO",
        "DIB",
        "PCX",
    ),
    *("QOI", "DDS", "SGI", "SUN", "PSD", "XBM", "XPM", "MSP", "IM", "SPIDER", "FITS", "FLI", "PCD", "PIXAR", "GBR"),
    *("BLP", "CUR", "DCX", "FTEX", "ICNS", "MCIDAS", "XVTHUMB", "IMT"),
)
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
            image = Image.open(io.BytesIO(data), formats=_readable())
            if image.width * image.height > max_pixels:
                raise BadImage(f"{image.width} x {image.height} pixels are more than the limit of {max_pixels}")
            if at_least is not None and image.format == "JPEG":
                image.draft("RGB", (at_least, at_least))
            memory = image.width * image.height * (4 if image.mode == "RGB" else 4 + _BYTES.get(image.mode, 4))
            if memory > MAX_DECODED:
                raise BadImage(
                    f"{image.width} x {image.height} pixels ({image.mode}) take {memory:,} bytes to decode, more than the limit "
                    f"of {MAX_DECODED:,}"
                )
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


@functools.cache
def _readable() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads; HEIC too, where pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


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


def resize(image: Image.Image, size: int, box: Box | None = None) -> np.ndarray:
    """uint8 [size,size,3] of a region (left, top, right, bottom) in pixels, by default the central square."""
    if box is None:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    if image.size == (size, size) and tuple(box) == (0, 0, size, size):
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))


def random_box(width: int, height: int, smallest: float, rng: np.random.Generator) -> Box:
    """A random square that covers between `smallest` and all of the central square's area."""
    side = min(width, height) * float(np.sqrt(rng.uniform(smallest, 1.0)))
    left, top = float(rng.uniform(0, width - side)), float(rng.uniform(0, height - side))
    return left, top, left + side, top + side

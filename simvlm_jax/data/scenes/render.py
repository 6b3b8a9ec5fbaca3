"""Scene graph to pixels. Shapes are signed distance functions, so edges are anti-aliased at any size."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from simvlm_jax.data.scenes.graph import COLOURS, SIZES, Object, Scene

_OUTLINE = 25.0


def render(scene: Scene, size: int = 64, curtain: Sequence[tuple[int, int]] = ()) -> np.ndarray:
    """Returns the picture of a scene: uint8 [size, size, 3], the same bytes for the same arguments.

    curtain: (row, column) cells of the 3 x 3 grid that a curtain hides.
    """
    canvas = _background(scene, size)
    for o in scene.objects:
        _draw(canvas, o)
    folds = 95 + 30 * np.cos(2 * np.pi * 18 * np.arange(size) / size)
    for row, column in curtain:
        y, x = (slice(round(i * size / 3), round((i + 1) * size / 3)) for i in (row, column))
        canvas[y, x] = folds[None, x, None]
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def render_png(scene: Scene, size: int = 64, curtain: Sequence[tuple[int, int]] = ()) -> bytes:
    """The picture of a scene as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(render(scene, size, curtain)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _background(scene: Scene, size: int) -> np.ndarray:
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = scene.tint
    rng = np.random.default_rng(scene.noise)
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    if scene.background == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        slope = np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]
        canvas += 36 * slope[..., None]
    elif scene.background == "grain":
        cells = rng.normal(0, 6, size=(32, 32)).astype(np.float32)  # the grain's size follows the image's
        index = np.arange(size) * 32 // size
        canvas += cells[index][:, index, None]
    elif scene.background == "vignette":
        canvas -= 60 * (ramp[None, :, None] ** 2 + ramp[:, None, None] ** 2)
    return canvas


def _draw(canvas: np.ndarray, o: Object) -> None:
    """Paints an object with a dark outline, in place, touching only its own patch of the canvas."""
    side = canvas.shape[0]
    radius = SIZES[o.size] * side
    x0, x1 = int(max(o.x * side - radius - 2, 0)), int(min(o.x * side + radius + 3, side))
    y0, y1 = int(max(o.y * side - radius - 2, 0)), int(min(o.y * side + radius + 3, side))
    u = ((np.arange(x0, x1, dtype=np.float32) + 0.5 - o.x * side) / radius)[None, :]
    v = ((np.arange(y0, y1, dtype=np.float32) + 0.5 - o.y * side) / radius)[:, None]
    distance = _DISTANCE[o.shape](u, v) * radius
    outline = max(0.14 * radius, 0.9)
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    inside = np.clip(0.5 - distance - outline, 0, 1)[..., None]
    patch = canvas[y0:y1, x0:x1]
    patch += coverage * (_OUTLINE + inside * (_paint(o, u, v, radius) - _OUTLINE) - patch)


def _paint(o: Object, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """The colour of every pixel of an object's patch: its own, with dark stripes or light dots."""
    colour = np.asarray(COLOURS[o.colour], np.float32)
    if o.texture == "plain":
        return colour
    if o.texture == "striped":
        wave = np.cos(2 * np.pi * (u + v) / 0.8)
        sharp = radius * 0.4
        tone = 20.0 if o.colour != "black" else 150.0
    else:
        wave = np.cos(2 * np.pi * u / 0.62) + np.cos(2 * np.pi * v / 0.62) - 0.7
        sharp = radius * 0.3
        tone = 255.0 if o.colour != "white" else 120.0
    ink = np.clip(0.5 + wave * sharp * 0.5, 0, 1)[..., None]
    return colour + 0.8 * ink * (tone - colour)


def _box(u, v, half_width, half_height):
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _triangle(u, v):
    return np.maximum(v - 0.75, (np.abs(u) * 1.75 - (v + 1) * 0.92) / 1.977)


def _star(u, v):
    """Five points: fold the plane onto one half point, whose edge runs from the tip to the inner corner."""
    r, angle = np.hypot(u, v), np.arctan2(u, -v)
    wedge = 2 * np.pi / 5
    folded = np.abs(np.mod(angle + wedge / 2, wedge) - wedge / 2)
    px, py = r * np.sin(folded), r * np.cos(folded)
    inner = 0.45
    ex, ey = inner * np.sin(wedge / 2), inner * np.cos(wedge / 2) - 1.0  # edge direction from the tip (0, 1)
    return (px * -ey + (py - 1.0) * ex) / np.hypot(ex, ey)


_DISTANCE = {
    "circle": lambda u, v: np.hypot(u, v) - 0.95,
    "square": lambda u, v: _box(u, v, 0.82, 0.82),
    "triangle": _triangle,
    "star": _star,
    "diamond": lambda u, v: (np.abs(u) / 0.7 + np.abs(v) - 1.0) * 0.573,
    "cross": lambda u, v: np.minimum(_box(u, v, 0.3, 0.95), _box(u, v, 0.95, 0.3)),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.25,
    "moon": lambda u, v: np.maximum(np.hypot(u, v) - 0.97, 0.78 - np.hypot(u - 0.55, v)),
}

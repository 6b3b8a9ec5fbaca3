"""The scene graph: what there is to see, and how a scene is drawn at random.

A scene holds one to five objects on a background. Each object sits wholly inside one cell of a 3 x 3 grid (with
jitter), so "in the top left" and "left of" have exact truth. Coordinates are fractions of the image side, x to the
right and y down.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (31, 90, 220),
    "yellow": (250, 220, 30),
    "orange": (250, 130, 10),
    "purple": (140, 40, 170),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "moon")
SIZES = {"small": 0.115, "large": 0.155}  # radius as a fraction of the image side
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("plain", "gradient", "grain", "vignette")
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACES = (
    ("in the top left", "at the top", "in the top right"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left", "at the bottom", "in the bottom right"),
)
MAX_OBJECTS = 5
HELD_OUT = frozenset((colour, SHAPES[(3 * i + 1) % len(SHAPES)]) for i, colour in enumerate(COLOURS))
"""(colour, shape) pairs kept for the `compositional` split: each colour and each shape exactly once."""

CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""64 classes of single objects, for zero-shot classification and probing."""


@dataclasses.dataclass(frozen=True)
class Object:
    """One object; `x`, `y` is its centre in fractions of the image side."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float

    @property
    def cell(self) -> tuple[int, int]:
        """(row, column) of the 3 x 3 grid."""
        return min(int(self.y * 3), 2), min(int(self.x * 3), 2)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects on a background; `tint` is the background's RGB and `noise` seeds its grain."""

    objects: tuple[Object, ...]
    background: str
    tint: tuple[int, int, int]
    noise: int

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Scene":
        fields = json.loads(text)
        objects = tuple(Object(**o) for o in fields.pop("objects"))
        return cls(objects=objects, background=fields["background"], tint=tuple(fields["tint"]), noise=fields["noise"])


def holds(relation: str, a: Object, b: Object, margin: float = 0.1) -> bool:
    """Whether `a` stands in `relation` to `b`: their centres differ by more than `margin` on that axis."""
    gap = {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[relation]
    return gap > margin


def main_relation(a: Object, b: Object) -> str:
    """The relation a person would name first: along the axis on which the two differ most."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) >= abs(dy):
        return "left" if dx > 0 else "right"
    return "above" if dy > 0 else "below"


def lies(o: Object, words: str) -> bool:
    """Whether an object is where the words say: "on the left" is true of a whole column, "at the top" of a whole row."""
    row, column = o.cell
    rows = {"at the top": 0, "at the bottom": 2}
    columns = {"on the left": 0, "on the right": 2}
    if words in rows or words in columns:
        return rows.get(words) == row or columns.get(words) == column
    return place(o) == words


def place(o: Object) -> str:
    """The words for the grid cell of an object."""
    row, column = o.cell
    return PLACES[row][column]


def sample_scene(rng: np.random.Generator, count: int, compositional: bool = False) -> Scene:
    """Draws a scene of `count` objects.

    Without `compositional` no object bears a held-out (colour, shape) pair; with it, at least one does.
    """
    if not 1 <= count <= MAX_OBJECTS:
        raise ValueError(f"a scene holds 1 to {MAX_OBJECTS} objects, not {count}")
    cells = rng.permutation(9)[:count]
    objects = []
    for i, cell in enumerate(cells):
        row, column = divmod(int(cell), 3)
        held_out = compositional and i == 0
        colour, shape = sample_pair(rng, held_out)
        size = pick(rng, tuple(SIZES))
        room = 1 / 6 - SIZES[size] - 0.01
        objects.append(
            Object(
                shape=shape,
                colour=colour,
                size=size,
                texture=pick(rng, ("plain", "plain", "plain", "striped", "dotted")),
                x=round((column + 0.5) / 3 + float(rng.uniform(-room, room)), 4),
                y=round((row + 0.5) / 3 + float(rng.uniform(-room, room)), 4),
            )
        )
    base = int(rng.integers(190, 220))
    red, green, blue = (int(np.clip(base + d, 0, 255)) for d in rng.integers(-12, 13, size=3))
    order = rng.permutation(count)  # the held-out object must not always come first
    return Scene(
        objects=tuple(objects[i] for i in order),
        background=pick(rng, BACKGROUNDS),
        tint=(red, green, blue),
        noise=int(rng.integers(2**31)),
    )


def pick(rng: np.random.Generator, values: Sequence):
    """One of `values`, uniformly (`rng.choice` is several times slower on short lists)."""
    return values[int(rng.integers(len(values)))]


def sample_pair(rng: np.random.Generator, held_out: bool) -> tuple[str, str]:
    """A (colour, shape), uniform over those held out, or over the others."""
    if held_out:
        return pick(rng, sorted(HELD_OUT))
    while True:
        pair = pick(rng, tuple(COLOURS)), pick(rng, SHAPES)
        if pair not in HELD_OUT:
            return pair

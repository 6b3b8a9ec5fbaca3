"""Scenes that move: one object goes to the next cell of the grid, then another does; who, which way, and before what is exact."""

import dataclasses
import json

import numpy as np

from simvlm_jax.data.scenes import graph
from simvlm_jax.data.scenes.graph import Object, Scene

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Where an object can go, in cells to the right and down."""
KINDS = ("way", "first", "before")


@dataclasses.dataclass(frozen=True)
class Video:
    """Four frames. In the second the first mover is halfway, in the third it is there, in the fourth the second mover is.

    movers: the two objects as they stand at first. ways: where each goes, one of WAYS.
    """

    frames: tuple[Scene, ...]
    movers: tuple[Object, Object]
    ways: tuple[str, str]

    def moves_json(self) -> str:
        """[{"object": "red circle", "way": "left"}, ...] in the order of time."""
        return json.dumps([{"object": name(o), "way": way} for o, way in zip(self.movers, self.ways, strict=True)])


def name(o: Object) -> str:
    return f"{o.colour} {o.shape}"


def filmed(scene: Scene, rng: np.random.Generator) -> Video | None:
    """A video that begins with a scene; None where two objects have one name, or nothing has room to move."""
    if len({name(o) for o in scene.objects}) < len(scene.objects):
        return None
    first, second = (int(i) for i in rng.permutation(len(scene.objects))[:2])
    ways = graph.pick(rng, tuple(WAYS)), graph.pick(rng, tuple(WAYS))
    halfway, after = _moved(scene, first, ways[0], 0.5), _moved(scene, first, ways[0], 1.0)
    if halfway is None or after is None:
        return None
    end = _moved(after, second, ways[1], 1.0)
    if end is None:
        return None
    return Video((scene, halfway, after, end), (scene.objects[first], scene.objects[second]), ways)


def _moved(scene: Scene, which: int, way: str, share: float) -> Scene | None:
    """The scene with an object a share of the way to the next cell; None where that is taken, or outside."""
    o, (dx, dy) = scene.objects[which], WAYS[way]
    row, column = o.cell[0] + dy, o.cell[1] + dx
    if not (0 <= row < 3 and 0 <= column < 3) or (row, column) in {x.cell for x in scene.objects}:
        return None
    moved = dataclasses.replace(o, x=round(o.x + share * dx / 3, 4), y=round(o.y + share * dy / 3, 4))
    objects = tuple(moved if i == which else x for i, x in enumerate(scene.objects))
    return dataclasses.replace(scene, objects=objects)


def told(shot: Video, rng: np.random.Generator) -> list[str]:
    """Three true captions of a video."""
    (a, b), (first, second) = map(name, shot.movers), shot.ways
    found = [
        f"the {a} moves {first}, then the {b} moves {second}",
        f"the {b} moves {second} after the {a} moves {first}",
        f"the {a} goes {first} and then the {b} goes {second}",
    ]
    return [found[i] for i in rng.permutation(len(found))]


def answered(shot: Video, rng: np.random.Generator) -> tuple[str, str, str]:
    """(kind, question, answer): which way something moves, what moves first, or whether one moves before the other."""
    kind, (a, b) = graph.pick(rng, KINDS), map(name, shot.movers)
    if kind == "way":
        which = int(rng.integers(2))
        return kind, f"which way does the {(a, b)[which]} move?", shot.ways[which]
    if kind == "first":
        return kind, "what moves first?", a
    swapped = bool(rng.integers(2))
    one, other = (b, a) if swapped else (a, b)
    return kind, f"does the {one} move before the {other}?", "no" if swapped else "yes"

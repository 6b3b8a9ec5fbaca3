"""Captions of a scene and their minimally wrong twins: what a model must know of a picture to tell them apart.

After Winoground (Thrush et al., arXiv 2204.03162) and ARO (Yuksekgonul et al., arXiv 2210.01936): a bag of words will not do.
Here every twin is false by the scene graph; but for `relation`, which has its opposite word, both captions hold the same words
(but for articles and plurals); and neither is the likelier text: what is true of one scene is the twin of another as often,
and a twin has as many pairs of colour and shape that captions for training never hold as its caption has.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from simvlm_jax.data.scenes import graph
from simvlm_jax.data.scenes.graph import Object, Scene
from simvlm_jax.data.scenes.judge import judge
from simvlm_jax.data.scenes.language import Phrase, noun_phrase

KINDS = ("attribute", "relation", "order", "count")


def twins(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
    """(kind, true caption, false twin) as far as a scene has any, at most one a kind.

    attribute: two things change their colours; no pair that training never shows takes part, or a text alone would tell. relation:
    the opposite word. order: two things change places in the sentence. count: two of this and one of that change their numbers.
    """
    for kind, make in (("attribute", _attribute), ("relation", _relation), ("order", _order), ("count", _count)):
        made = make(scene, rng)
        if made and judge(scene, made[0]).accurate and not judge(scene, made[1]).accurate:
            yield kind, *made


def _two(scene: Scene, rng: np.random.Generator) -> tuple[Object, Object] | None:
    """Two things that differ in colour and in shape."""
    order = rng.permutation(len(scene.objects))
    pairs = ((scene.objects[i], scene.objects[j]) for i in order for j in order if i != j)
    return next(((a, b) for a, b in pairs if a.colour != b.colour and a.shape != b.shape), None)


def _named(colour: str, shape: str) -> str:
    return noun_phrase(Phrase(colour=colour, shape=shape))


def _attribute(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if (two := _two(scene, rng)) is None:
        return None
    a, b = two
    if graph.HELD_OUT & {(x.colour, y.shape) for x in two for y in two}:
        return None
    return (
        f"{_named(a.colour, a.shape)} and {_named(b.colour, b.shape)}",
        f"{_named(b.colour, a.shape)} and {_named(a.colour, b.shape)}",
    )


def _sentence(a: Object, relation: str, b: Object) -> str:
    of = {"left": "to the left of", "right": "to the right of"}.get(relation, relation)
    return f"{_named(a.colour, a.shape)} {of} {_named(b.colour, b.shape)}"


def _relation(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if (two := _two(scene, rng)) is None:
        return None
    word = graph.main_relation(*two)
    return _sentence(two[0], word, two[1]), _sentence(two[0], graph.OPPOSITE[word], two[1])


def _order(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if (two := _two(scene, rng)) is None:
        return None
    word = graph.main_relation(*two)
    return _sentence(two[0], word, two[1]), _sentence(two[1], word, two[0])


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    numbers = Counter(o.shape for o in scene.objects)
    two, one = ([shape for shape, n in numbers.items() if n == k] for k in (2, 1))
    if not two or not one:
        return None
    shapes = [graph.pick(rng, two), graph.pick(rng, one)]
    order = (0, 1) if rng.random() < 0.5 else (1, 0)

    def sentence(counts: tuple[int, int]) -> str:
        return " and ".join(noun_phrase(Phrase(count=counts[i], shape=shapes[i])) for i in order)

    return sentence((2, 1)), sentence((1, 2))

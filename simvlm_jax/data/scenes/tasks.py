"""What each builder config shows of a scene. A task is `task(rng, draw, size) -> example`, `draw()` being a new scene.

Every example keeps its scene graph, so that any answer can be checked against the truth.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from simvlm_jax.data.scenes import graph
from simvlm_jax.data.scenes.graph import Object, Scene
from simvlm_jax.data.scenes.judge import judge
from simvlm_jax.data.scenes.language import Phrase, english, noun_phrase, plan, references
from simvlm_jax.data.scenes.motion import Video, answered, filmed, told
from simvlm_jax.data.scenes.render import render_png
from simvlm_jax.data.scenes.translation import sulari

Draw = Callable[[], Scene]
T = TypeVar("T")
QUESTION_KINDS = ("existence", "count", "attribute", "relation", "comparison")
BLIND_VQA_ACCURACY = (1 / 2 + 1 / 4 + 1 / 7 + 1 / 2 + 1 / 2) / 5
"""What the best guesser that sees only the question scores on `vqa`: whatever the question, its answers are uniform.

A shape has 7 colours (the eighth is held out), and 8 in `compositional`.
"""
CURTAINS = {
    **{name: tuple((i, j) for j in range(3)) for i, name in enumerate(("top", "middle row", "bottom"))},
    **{name: tuple((i, j) for i in range(3)) for j, name in enumerate(("left", "middle column", "right"))},
}
"""What a curtain can hide, as (row, column) cells of the 3 x 3 grid."""
NOISE = {"exact": 0.5, "partial": 0.2, "wrong": 0.2, "unrelated": 0.1}
"""Shares of the kinds of `noisy` captions."""
ENTAILMENT = ("entailment", "neutral", "contradiction")
_ALT_TEXT = ("IMG_{n:04d}.jpg", "buy now - free shipping", "photo {n} of 250", "click to enlarge", "untitled-{n}")
_DECOYS = ("{} clip art", "stock image: {}", "{} | pictures", "{}")


def captions(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """Five references an image; with up to three objects each mentions every object."""
    scene = draw()
    return {"image": render_png(scene, size), "captions": references(scene, rng), "scene": scene.to_json()}


def translate(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """A caption and its translation into Sulari."""
    scene = draw()
    statement = plan(scene, rng)
    return {
        "image": render_png(scene, size),
        "source": english(statement, rng),
        "target": sulari(statement),
        "scene": scene.to_json(),
    }


def text(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """A document of two to four sentences about one scene, which nobody draws: what is read foretells what follows."""
    scene = draw()
    sentences = [english(plan(scene, rng), rng) for _ in range(int(rng.integers(2, 5)))]
    return {"text": ". ".join(sentences) + "."}


def noisy(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """Alt text: exact, partial, wrong or unrelated, in known shares; `truth` tells which."""
    scene = draw()
    truth = str(rng.choice(list(NOISE), p=list(NOISE.values())))
    caption = english(plan(scene, rng), rng)
    if truth == "partial":
        caption = noun_phrase(_describe(graph.pick(rng, scene.objects)))
    elif truth == "wrong":
        caption = _until(lambda: english(plan(draw(), rng), rng), lambda c: not judge(scene, c).accurate)
    elif truth == "unrelated":
        caption = graph.pick(rng, _ALT_TEXT).format(n=int(rng.integers(1, 9999)))
    if truth != "unrelated":
        caption = graph.pick(rng, _DECOYS).format(caption)
    return {"image": render_png(scene, size), "caption": caption, "truth": truth, "scene": scene.to_json()}


def classes(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """One object and its class, one of graph.CLASSES."""
    scene = draw()
    o = scene.objects[0]
    return {"image": render_png(scene, size), "label": f"{o.colour} {o.shape}", "scene": scene.to_json()}


def entail(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """Image premise, sentence hypothesis, one of ENTAILMENT.

    A curtain hides a third of the picture. What is said of a place that can be seen is true (entailment) or not
    (contradiction: something else is there); of a place behind the curtain nobody can tell (neutral). The sentence alone
    tells nothing: things and places have the same distribution whatever the label. The scene graph holds the hidden
    objects too.
    """
    label = graph.pick(rng, ENTAILMENT)
    while True:
        scene, curtain = draw(), graph.pick(rng, tuple(CURTAINS))
        hidden = [o.cell in CURTAINS[curtain] for o in scene.objects]
        at = [o for o, covered in zip(scene.objects, hidden, strict=True) if covered == (label == "neutral")]
        at = [o for o in at if sum(o.cell) % 2 == 0]  # corners and the middle: "at the top" may mean a whole row
        if not at:
            continue
        there = graph.pick(rng, at)
        described = there if label == "entailment" else graph.pick(rng, draw().objects)
        phrase = _detailed(described, rng)
        if label != "contradiction" or not phrase.fits(there):
            break
    hypothesis = f"there is {noun_phrase(phrase)} {graph.place(there)}"
    return {
        "image": render_png(scene, size, CURTAINS[curtain]),
        "hypothesis": hypothesis,
        "label": label,
        "curtain": curtain,
        "scene": scene.to_json(),
    }


def premise(scene: str, curtain: str) -> str:
    """An `entail` picture in words: all that can be seen and where; what is behind the curtain is not said."""
    seen = [o for o in Scene.from_json(scene).objects if o.cell not in CURTAINS[curtain]]
    every = (Phrase(1, o.size, None if o.texture == "plain" else o.texture, o.colour, o.shape) for o in seen)
    phrases = [f"{noun_phrase(p)} {graph.place(o)}" for p, o in zip(every, seen, strict=True)]
    return " and ".join(phrases) or "nothing"


def video(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """Four frames in which one object moves and then another; what is said and asked is of who, which way, and before what."""
    shot: Video | None = None
    while shot is None:
        shot = filmed(draw(), rng)
    kind, question, answer = answered(shot, rng)
    return {
        "images": [render_png(frame, size) for frame in shot.frames],
        "captions": told(shot, rng),
        "question": question,
        "answer": answer,
        "kind": kind,
        "moves": shot.moves_json(),
        "scenes": [frame.to_json() for frame in shot.frames],
    }


def _detailed(o: Object, rng: np.random.Generator) -> Phrase:
    """Colour and shape, and now and then size or texture."""
    return Phrase(
        size=o.size if rng.random() < 0.3 else None,
        texture=o.texture if o.texture != "plain" and rng.random() < 0.3 else None,
        colour=o.colour,
        shape=o.shape,
    )


def pairs(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """Two images and a sentence about both (NLVR2's form). The sentence is drawn first, its truth by a fair coin after."""
    label = bool(rng.integers(2))
    kind = graph.pick(rng, ("both", "only one", "more"))
    if kind == "more":
        sentence = "the left picture shows more shapes than the right one"
        left, right = _until(lambda: (draw(), draw()), lambda p: (len(p[0].objects) > len(p[1].objects)) == label)
    else:
        colour, shape = graph.sample_pair(rng, has_held_out(draw()) and bool(rng.integers(2)))
        phrase = Phrase(colour=colour, shape=shape if rng.random() < 0.5 else None)
        sentence = f"{'both pictures show' if kind == 'both' else 'only one picture shows'} {noun_phrase(phrase)}"
        truths = {True: ((1, 1),), False: ((0, 0), (0, 1), (1, 0))}
        if kind == "only one":
            truths = {True: ((0, 1), (1, 0)), False: ((0, 0), (1, 1))}
        left, right = (
            _until(draw, lambda s, seen=seen: any(phrase.fits(o) for o in s.objects) == seen)
            for seen in graph.pick(rng, truths[label])
        )
    return {
        "images": [render_png(left, size), render_png(right, size)],
        "sentence": sentence,
        "label": label,
        "scenes": [left.to_json(), right.to_json()],
    }


def interleaved(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """A document of two to four images whose text refers back to "the first", "the second"...; <image> marks a picture."""
    scenes = [draw() for _ in range(int(rng.integers(2, 5)))]
    ordinals = ("first", "second", "third", "fourth")
    text = " ".join(f"<image> {english(plan(s, rng), rng)}." for s in scenes)
    which = int(rng.integers(len(scenes)))
    o = graph.pick(rng, scenes[which].objects)
    text += f" the {ordinals[which]} picture shows {noun_phrase(Phrase(colour=o.colour, shape=o.shape))}."
    return {
        "images": [render_png(s, size) for s in scenes],
        "text": text,
        "scenes": [s.to_json() for s in scenes],
    }


def vqa(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """A question and an answer that the question does not give away; see BLIND_VQA_ACCURACY."""
    kind = graph.pick(rng, QUESTION_KINDS)
    ask, answer = _QUESTIONS[kind](rng, has_held_out(draw()))
    while True:
        scene = draw()
        question = ask(scene)
        if question is not None:
            break
    return {
        "image": render_png(scene, size),
        "question": question,
        "answer": answer,
        "kind": kind,
        "scene": scene.to_json(),
    }


Question = tuple[Callable[[Scene], str | None], str]
"""How to ask it of a scene (None: not of this one), and the answer it will have."""


def _existence(rng: np.random.Generator, held_out: bool) -> Question:
    """The thing first, then a fair coin, then a scene to match."""
    phrase = Phrase(
        **dict(zip(("colour", "shape"), graph.sample_pair(rng, held_out and rng.random() < 0.5), strict=True))
    )
    answer = graph.pick(rng, ("yes", "no"))

    def ask(scene: Scene) -> str | None:
        there = any(phrase.fits(o) for o in scene.objects)
        return f"is there {noun_phrase(phrase)}?" if there == (answer == "yes") else None

    return ask, answer


def _count(rng: np.random.Generator, held_out: bool) -> Question:
    shape, answer = graph.pick(rng, graph.SHAPES), graph.pick(rng, ("0", "1", "2", "3"))

    def ask(scene: Scene) -> str | None:
        right = sum(o.shape == shape for o in scene.objects) == int(answer)
        return f"how many {_plural(shape)} are there?" if right else None

    return ask, answer


def _attribute(rng: np.random.Generator, held_out: bool) -> Question:
    """The shape first, then one of the colours it can have."""
    shape = graph.pick(rng, graph.SHAPES)
    colours = [c for c in graph.COLOURS if held_out or (c, shape) not in graph.HELD_OUT]
    answer = graph.pick(rng, colours)

    def ask(scene: Scene) -> str | None:
        return (
            f"what colour is the {shape}?"
            if [o.colour for o in scene.objects if o.shape == shape] == [answer]
            else None
        )

    return ask, answer


def _relation(rng: np.random.Generator, held_out: bool) -> Question:
    """A scene and its mirror image are as likely, so both answers are, whatever is asked."""
    answer = graph.pick(rng, ("yes", "no"))

    def ask(scene: Scene) -> str | None:
        if len(scene.objects) < 2:
            return None
        a, b = (scene.objects[i] for i in rng.permutation(len(scene.objects))[:2])
        if sum((o.colour, o.shape) in ((a.colour, a.shape), (b.colour, b.shape)) for o in scene.objects) != 2:
            return None
        word = graph.main_relation(a, b)
        if answer == "no":
            word = graph.OPPOSITE[word]
        of = " of" if word in ("left", "right") else ""
        return f"is the {a.colour} {a.shape} {word}{of} the {b.colour} {b.shape}?"

    return ask, answer


def _comparison(rng: np.random.Generator, held_out: bool) -> Question:
    a, b = (graph.SHAPES[i] for i in rng.permutation(len(graph.SHAPES))[:2])
    answer = graph.pick(rng, ("yes", "no"))

    def ask(scene: Scene) -> str | None:
        more, fewer = (
            sum(o.shape == shape for o in scene.objects) for shape in ((a, b) if answer == "yes" else (b, a))
        )
        return f"are there more {_plural(a)} than {_plural(b)}?" if more > fewer else None

    return ask, answer


_QUESTIONS = {
    "existence": _existence,
    "count": _count,
    "attribute": _attribute,
    "relation": _relation,
    "comparison": _comparison,
}


def _plural(shape: str) -> str:
    return noun_phrase(Phrase(count=2, shape=shape)).split(" ", 1)[1]


def has_held_out(scene: Scene) -> bool:
    """Whether a scene is one of the `compositional` split: all of those, and no others, hold a held-out pair."""
    return any((o.colour, o.shape) in graph.HELD_OUT for o in scene.objects)


def _describe(o: Object) -> Phrase:
    return Phrase(colour=o.colour, shape=o.shape)


def _until(draw: Callable[[], T], accept: Callable[[T], bool]) -> T:
    while not accept(candidate := draw()):
        pass
    return candidate


def scenes_of(example: dict) -> list[Scene]:
    """The scene graphs behind an example of any task (none for `text`)."""
    stored = example.get("scenes", [example["scene"]] if "scene" in example else [])
    return [Scene.from_json(s) for s in stored]

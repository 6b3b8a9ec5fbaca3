"""What each builder config shows of a scene. A task is `task(rng, draw, size) -> example`, `draw()` being a new scene.

Every example keeps its scene graph, so that any answer can be checked against the truth.
"""

from collections.abc import Callable

import numpy as np

from simvlm_jax.data.scenes import graph
from simvlm_jax.data.scenes.graph import Object, Scene
from simvlm_jax.data.scenes.judge import judge
from simvlm_jax.data.scenes.language import Phrase, english, noun_phrase, plan, references
from simvlm_jax.data.scenes.render import render_png
from simvlm_jax.data.scenes.translation import sulari

Draw = Callable[[], Scene]
QUESTION_KINDS = ("existence", "count", "attribute", "relation", "comparison")
BLIND_VQA_ACCURACY = (1 / 2 + 1 / 4 + 1 / 8 + 1 / 2 + 1 / 2) / 5
"""What the best guesser that sees only the question scores on `vqa`: answers are uniform within each kind."""
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
    """A document of two to four sentences about scenes that nobody draws."""
    sentences = [english(plan(draw(), rng), rng) for _ in range(int(rng.integers(2, 5)))]
    return {"text": ". ".join(sentences) + "."}


def noisy(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """Alt text: exact, partial, wrong or unrelated, in known shares; `truth` tells which."""
    scene = draw()
    truth = str(rng.choice(list(NOISE), p=list(NOISE.values())))
    caption = english(plan(scene, rng), rng)
    if truth == "partial":
        caption = noun_phrase(_describe(graph.pick(rng, scene.objects)))
    elif truth == "wrong":
        caption = _first(lambda: english(plan(draw(), rng), rng), lambda c: not judge(scene, c).accurate)
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
    """Image premise, sentence hypothesis, one of ENTAILMENT. Neutral speaks of what no picture shows: who made it."""
    scene, label = draw(), graph.pick(rng, ENTAILMENT)
    hypothesis = english(plan(scene, rng), rng)
    if label == "contradiction":
        hypothesis = _first(lambda: english(plan(draw(), rng), rng), lambda c: not judge(scene, c).accurate)
    elif label == "neutral":
        o = graph.pick(rng, scene.objects)
        unseen = graph.pick(rng, ("is new", "is heavy", "belongs to a child", "is made of wood", "was drawn first"))
        hypothesis = f"the {noun_phrase(_describe(o)).split(' ', 1)[1]} {unseen}"
    return {"image": render_png(scene, size), "hypothesis": hypothesis, "label": label, "scene": scene.to_json()}


def pairs(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """Two images and a sentence about both (NLVR2's form), true or false with equal odds."""
    want = bool(rng.integers(2))
    while True:
        left, right = draw(), draw()
        sentence, truth = _pair_sentence(rng, left, right)
        if truth == want:
            break
    return {
        "images": [render_png(left, size), render_png(right, size)],
        "sentence": sentence,
        "label": truth,
        "scenes": [left.to_json(), right.to_json()],
    }


def _pair_sentence(rng: np.random.Generator, left: Scene, right: Scene) -> tuple[str, bool]:
    o = graph.pick(rng, left.objects + right.objects)
    kind = int(rng.integers(3))
    phrase = Phrase(colour=o.colour, shape=o.shape if rng.random() < 0.5 else None)
    seen = [sum(phrase.fits(x) for x in s.objects) for s in (left, right)]
    noun = noun_phrase(phrase)
    if kind == 0:
        return f"both pictures show {noun}", seen[0] > 0 and seen[1] > 0
    if kind == 1:
        return f"only one picture shows {noun}", (seen[0] > 0) != (seen[1] > 0)
    more, fewer = len(left.objects), len(right.objects)
    return "the left picture shows more shapes than the right one", more > fewer


def interleaved(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """A document of two to four images whose text refers back to "the first", "the second"...; <image> marks a picture."""
    scenes = [draw() for _ in range(int(rng.integers(2, 5)))]
    ordinals = ("first", "second", "third", "fourth")
    text = " ".join(f"<image> {english(plan(s, rng), rng)}." for s in scenes)
    asked = int(rng.integers(len(scenes)))
    o = graph.pick(rng, scenes[asked].objects)
    text += f" the {ordinals[asked]} picture shows {noun_phrase(Phrase(colour=o.colour, shape=o.shape))}."
    return {
        "images": [render_png(s, size) for s in scenes],
        "text": text,
        "scenes": [s.to_json() for s in scenes],
    }


def vqa(rng: np.random.Generator, draw: Draw, size: int) -> dict:
    """A question whose answer is uniform within its kind; see BLIND_VQA_ACCURACY."""
    kind = graph.pick(rng, QUESTION_KINDS)
    ask = _QUESTIONS[kind]
    wanted = graph.pick(rng, _ANSWERS[kind])
    while True:
        scene = draw()
        asked = ask(rng, scene, wanted)
        if asked is not None:
            break
    return {
        "image": render_png(scene, size),
        "question": asked,
        "answer": wanted,
        "kind": kind,
        "scene": scene.to_json(),
    }


_ANSWERS = {
    "existence": ("yes", "no"),
    "count": ("0", "1", "2", "3"),
    "attribute": tuple(graph.COLOURS),
    "relation": ("yes", "no"),
    "comparison": ("yes", "no"),
}


def _ask_existence(rng, scene: Scene, wanted: str) -> str | None:
    if wanted == "yes":
        phrase = _describe(graph.pick(rng, scene.objects))
    else:
        phrase = Phrase(colour=graph.pick(rng, tuple(graph.COLOURS)), shape=graph.pick(rng, graph.SHAPES))
    if any(phrase.fits(o) for o in scene.objects) != (wanted == "yes"):
        return None
    return f"is there {noun_phrase(phrase)}?"


def _ask_count(rng, scene: Scene, wanted: str) -> str | None:
    shape = graph.pick(rng, graph.SHAPES)
    if sum(o.shape == shape for o in scene.objects) != int(wanted):
        return None
    return f"how many {noun_phrase(Phrase(count=2, shape=shape)).split(' ', 1)[1]} are there?"


def _ask_attribute(rng, scene: Scene, wanted: str) -> str | None:
    chosen = [o for o in scene.objects if o.colour == wanted]
    chosen = [o for o in chosen if sum(x.shape == o.shape for x in scene.objects) == 1]
    return f"what colour is the {chosen[0].shape}?" if chosen else None


def _ask_relation(rng, scene: Scene, wanted: str) -> str | None:
    if len(scene.objects) < 2:
        return None
    a, b = (scene.objects[i] for i in rng.permutation(len(scene.objects))[:2])
    if sum((o.colour, o.shape) in ((a.colour, a.shape), (b.colour, b.shape)) for o in scene.objects) != 2:
        return None
    word = graph.main_relation(a, b)
    if wanted == "no":
        word = graph.OPPOSITE[word]
    of = " of" if word in ("left", "right") else ""
    return f"is the {a.colour} {a.shape} {word}{of} the {b.colour} {b.shape}?"


def _ask_comparison(rng, scene: Scene, wanted: str) -> str | None:
    a, b = rng.permutation(graph.SHAPES)[:2]
    counts = [sum(o.shape == s for o in scene.objects) for s in (a, b)]
    if counts[0] == counts[1] or (counts[0] > counts[1]) != (wanted == "yes"):
        return None
    nouns = [noun_phrase(Phrase(count=2, shape=str(s))).split(" ", 1)[1] for s in (a, b)]
    return f"are there more {nouns[0]} than {nouns[1]}?"


_QUESTIONS = {
    "existence": _ask_existence,
    "count": _ask_count,
    "attribute": _ask_attribute,
    "relation": _ask_relation,
    "comparison": _ask_comparison,
}


def _describe(o: Object) -> Phrase:
    return Phrase(colour=o.colour, shape=o.shape)


def _first(draw: Callable[[], str], accept: Callable[[str], bool]) -> str:
    while not accept(candidate := draw()):
        pass
    return candidate


def scenes_of(example: dict) -> list[Scene]:
    """The scene graphs behind an example of any task (none for `text`)."""
    stored = example.get("scenes", [example["scene"]] if "scene" in example else [])
    return [Scene.from_json(s) for s in stored]

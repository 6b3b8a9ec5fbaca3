"""Captions and their meaning: a `Statement` is what a caption claims; `english` says it and `parse` reads it back.

The grammar is small but human in style: openers, groups ("two red circles"), relations in both word orders, "with ...
above it", places. `parse(english(s))` is `s`, for any surface form (tested).
"""

import dataclasses
import re

import numpy as np

from simvlm_jax.data.scenes import graph
from simvlm_jax.data.scenes.graph import Object, Scene

NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_NUMBER_WORD = {n: w for w, n in NUMBERS.items()}
_PLURAL = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in (*graph.SHAPES, "shape")}
_SINGULAR = {plural: shape for shape, plural in _PLURAL.items()}
_RELATIONS_IN_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
_RELATIONS_OF_IT = {"left": "to its left", "right": "to its right", "above": "above it", "below": "below it"}
BRIEF = 22
"""Words and commas that people spend on three objects or fewer."""
OPENERS = ("a picture of", "the picture shows", "we see", "there is", "there are")


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A noun phrase: `count` things that share the given attributes; None means unsaid."""

    count: int = 1
    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    def attributes(self) -> dict[str, str]:
        """The attributes said, by name."""
        fields = {k: getattr(self, k) for k in ("size", "texture", "colour", "shape")}
        return {k: v for k, v in fields.items() if v is not None}

    def fits(self, o: Object) -> bool:
        """Whether every attribute said is true of an object."""
        return all(getattr(o, k) == v for k, v in self.attributes().items())


@dataclasses.dataclass(frozen=True)
class Relation:
    """Phrase number `a` stands in `word` (left, right, above, below) to phrase number `b`."""

    a: int
    word: str
    b: int


@dataclasses.dataclass(frozen=True)
class Place:
    """Phrase number `a` is `where` (one of graph.PLACES)."""

    a: int
    where: str


@dataclasses.dataclass(frozen=True)
class Statement:
    """All that a caption claims. `unread` holds the words that the grammar has no reading for."""

    phrases: tuple[Phrase, ...]
    relations: tuple[Relation, ...] = ()
    places: tuple[Place, ...] = ()
    unread: tuple[str, ...] = ()


def plan(scene: Scene, rng: np.random.Generator) -> Statement:
    """Draws something true to say of a scene that mentions every object, alone or in a group.

    Like people, it mostly names things in reading order; now and then in any other.
    """
    few = len(scene.objects) < 3  # the more there is to name, the less is mentioned of each
    mentioned = {"size": rng.random() < (0.5 if few else 0.3), "texture": rng.random() < (0.6 if few else 0.4)}
    members = sorted(_group(scene, rng, mentioned), key=lambda member: min(o.cell for o in member[1]))
    if rng.random() < 0.1:
        members = [members[i] for i in rng.permutation(len(members))]
    phrases = tuple(p for p, _ in members)
    kind = graph.pick(rng, ("list", "relate", "relate", "place"))
    if kind == "place" or (kind == "relate" and len(phrases) == 1):
        chosen = [i for i, (_, objects) in enumerate(members) if len({o.cell for o in objects}) == 1]
        return Statement(phrases, places=tuple(Place(i, graph.place(members[i][1][0])) for i in chosen))
    relations = []
    if kind == "relate":
        head_form = rng.random() < 0.3
        for i in range(1, len(members)):
            a, b = (i, 0) if head_form else (i - 1, i)
            word = graph.main_relation(members[a][1][0], members[b][1][0])
            if not all(graph.holds(word, x, y) for x in members[a][1] for y in members[b][1]):
                break
            relations.append(Relation(a, word, b))
    return Statement(phrases, tuple(relations))


def _group(scene: Scene, rng: np.random.Generator, mentioned: dict[str, bool]) -> list[tuple[Phrase, list[Object]]]:
    """Describes each object, merges like descriptions, and now and then groups by shape or by colour alone."""
    by_phrase: dict[Phrase, list[Object]] = {}
    loose, loose_value = None, None
    if rng.random() < 0.15:
        loose = "shape" if rng.random() < 0.5 else "colour"
        values = [getattr(o, loose) for o in scene.objects]
        common = [v for v in sorted(set(values)) if values.count(v) > 1]
        loose_value = common[0] if common else None
    for o in scene.objects:
        phrase = Phrase(
            size=o.size if mentioned["size"] else None,
            texture=o.texture if mentioned["texture"] and o.texture != "plain" else None,
            colour=o.colour,
            shape=o.shape,
        )
        if loose and getattr(o, loose) == loose_value:
            phrase = dataclasses.replace(Phrase(), **{loose: loose_value})
        by_phrase.setdefault(phrase, []).append(o)
    return [(dataclasses.replace(p, count=len(objects)), objects) for p, objects in by_phrase.items()]


def noun_phrase(p: Phrase) -> str:
    """A phrase in English: "a small striped red circle", "two red shapes"."""
    words = [w for w in (p.size, p.texture, p.colour) if w]
    noun = p.shape or "shape"
    if p.count == 1:
        words.append(noun)
        return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)
    return " ".join([_NUMBER_WORD.get(p.count, str(p.count)), *words, _PLURAL[noun]])


def english(s: Statement, rng: np.random.Generator) -> str:
    """Says a statement in one of its many surface forms."""
    nouns = [noun_phrase(p) for p in s.phrases]
    opened = rng.random() < 0.2
    if s.relations:
        body = _say_relations(s, nouns, rng, clause=not opened)
    else:
        placed = {p.a: p.where for p in s.places}
        body = _join([f"{noun} {placed[i]}" if i in placed else noun for i, noun in enumerate(nouns)])
    if opened:
        there = "there is" if s.phrases[0].count == 1 else "there are"
        body = f"{graph.pick(rng, ('a picture of', 'the picture shows', 'we see', there))} {body}"
    return body


def _say_relations(s: Statement, nouns: list[str], rng: np.random.Generator, clause: bool) -> str:
    rest = nouns[len(s.relations) + 1 :]
    if all(r.b == 0 for r in s.relations):  # "A with B above it and C to its left"
        tails = [f"{nouns[r.a]} {_RELATIONS_OF_IT[r.word]}" for r in s.relations]
        body = f"{nouns[0]} with {_join(tails)}"
    else:  # "A above B", "A is above B, which is left of C"
        verb = ("", "is " if s.phrases[0].count == 1 else "are ")[int(clause and rng.random() < 0.4)]
        body = nouns[0]
        for i, r in enumerate(s.relations):
            link = verb if i == 0 else ("is " if s.phrases[r.a].count == 1 else "are ")
            body += f"{', which' if i else ''} {link}{graph.pick(rng, _RELATIONS_IN_WORDS[r.word])} {nouns[r.b]}"
    return f"{body}, and {_join(rest)}" if rest else body


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def references(scene: Scene, rng: np.random.Generator, count: int = 5) -> list[str]:
    """`count` different captions of a scene, every one true and mentioning every object; brief where they can be."""
    found: dict[str, None] = {}
    for _ in range(200):
        caption = english(plan(scene, rng), rng)
        if len(scene.objects) > 3 or len(_WORD.findall(caption)) <= BRIEF:
            found.setdefault(caption)
        if len(found) == count:
            return list(found)
    raise ValueError(f"only {len(found)} of {count} different captions found for {scene.to_json()}")


_PLACE_WORDS = {place: place.split() for row in graph.PLACES for place in row}
_WORD = re.compile(r"[^\W_]+|[^\w\s]")
_GLUE = {"and", ",", ".", "is", "are", "which"}


def parse(text: str) -> Statement:
    """Reads a caption. Words outside the grammar, or a relation without both its ends, land in `unread`."""
    words = _WORD.findall(text.lower())
    phrases: list[Phrase] = []
    relations: list[Relation] = []
    places: list[Place] = []
    unread: list[str] = []
    head: int | None = None  # the phrase that "it" means
    pending: tuple[int, str] | None = None  # a relation that waits for its right-hand phrase
    for opener in OPENERS:
        if words[: len(opener.split())] == opener.split():
            words = words[len(opener.split()) :]
            break
    i = 0
    while i < len(words):
        if (step := _read_phrase(words, i)) is not None:
            phrase, i = step
            phrases.append(phrase)
            if pending is not None:
                relations.append(Relation(pending[0], pending[1], len(phrases) - 1))
                pending = None
        elif (step := _read_relation(words, i)) is not None and phrases:
            word, of_it, i = step
            last = len(phrases) - 1
            if of_it and head is not None and head != last:
                relations.append(Relation(last, word, head))
            elif of_it:
                unread.append(f"{word} it")
            else:
                pending = (last, word)
        elif (step := _read_place(words, i)) is not None and phrases:
            where, i = step
            places.append(Place(len(phrases) - 1, where))
        elif words[i] == "with" and phrases:
            head, i = len(phrases) - 1, i + 1
        else:
            if words[i] not in _GLUE:
                unread.append(words[i])
            i += 1
    if pending is not None:
        unread.append(pending[1])
    rest = [w for w in words if w not in (".", ",")]
    if rest and rest[-1] in ("and", "with", "is", "are", "which"):  # a caption that was cut
        unread.append(rest[-1])
    return Statement(tuple(phrases), tuple(relations), tuple(places), tuple(unread))


def _read_phrase(words: list[str], i: int) -> tuple[Phrase, int] | None:
    count = 1 if words[i] in ("a", "an", "one", "the") else NUMBERS.get(words[i])
    if count is None:
        return None
    fields: dict[str, str] = {}
    kinds = (("size", graph.SIZES), ("texture", graph.TEXTURES), ("colour", graph.COLOURS))
    i += 1
    for name, values in kinds:
        if i < len(words) and words[i] in values:
            fields[name] = words[i]
            i += 1
    if i == len(words):
        return None
    noun = words[i] if count == 1 else _SINGULAR.get(words[i])
    if noun in graph.SHAPES:
        fields["shape"] = noun
    elif noun != "shape":
        return None
    return Phrase(count=count, **fields), i + 1


def _read_relation(words: list[str], i: int) -> tuple[str, bool, int] | None:
    """(relation, whether it ends in "it", next word)."""
    for relation, form in _RELATIONS_OF_IT.items():
        if words[i : i + len(form.split())] == form.split():
            return relation, True, i + len(form.split())
    for relation, forms in _RELATIONS_IN_WORDS.items():
        for form in forms:
            if words[i : i + len(form.split())] == form.split():
                return relation, False, i + len(form.split())
    return None


def _read_place(words: list[str], i: int) -> tuple[str, int] | None:
    for place, form in _PLACE_WORDS.items():
        if words[i : i + len(form)] == form and words[i + len(form) : i + len(form) + 1] != ["of"]:
            return place, i + len(form)
    return None

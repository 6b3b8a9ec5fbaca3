"""The exact judge of a caption: is everything it says true of the scene, and how much of the scene does it say?

A caption's phrases are assigned to different objects so that as many of its claims as possible hold; what no assignment
can make true is a hallucination. "Two red circles" is true of exactly two: a third, left over, makes it false.
"""

import dataclasses
import itertools

from simvlm_jax.data.scenes import graph
from simvlm_jax.data.scenes.graph import Object, Scene
from simvlm_jax.data.scenes.language import Phrase, Statement, noun_phrase, parse

_MAX_SLOTS = graph.MAX_OBJECTS


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of one caption. Counts are claims; `by` maps a slice to (true, total); `claims` says which is true."""

    true: int
    total: int
    covered: int
    objects: int
    attributes: int
    mentioned: int
    by: dict[str, tuple[int, int]]
    claims: tuple[tuple[str, bool], ...]

    @property
    def accurate(self) -> bool:
        """Whether there are claims, all of them true."""
        return self.total > 0 and self.true == self.total


def judge(scene: Scene, caption: str | Statement) -> Verdict:
    """Judges a caption (or a parsed statement) against the scene graph."""
    s = parse(caption) if isinstance(caption, str) else caption
    members = _best_assignment(scene, s)
    phrase_true = [_phrase_holds(p, m, members, scene) for p, m in zip(s.phrases, members, strict=True)]
    relation_true = [_related(r.word, members[r.a], members[r.b]) for r in s.relations]
    place_true = [bool(members[p.a]) and all(graph.lies(o, p.where) for o in members[p.a]) for p in s.places]
    covered = {
        o
        for p, m, ok in zip(s.phrases, members, phrase_true, strict=True)
        if ok and ((p.shape and p.colour) or p.count > 1)
        for o in m
    }
    by = _slices(s, members, phrase_true, relation_true, place_true)
    return Verdict(
        true=sum(phrase_true) + sum(relation_true) + sum(place_true),
        total=len(s.phrases) + len(s.relations) + len(s.places) + len(s.unread),
        covered=len(covered),
        objects=len(scene.objects),
        attributes=sum(len(p.attributes()) * len(m) for p, m in zip(s.phrases, members, strict=True)),
        mentioned=sum(len(m) for m in members),
        by=by,
        claims=_claims(s, phrase_true, relation_true, place_true),
    )


def scores(scenes: list[Scene], captions: list[str]) -> dict[str, float]:
    """Corpus scores, each between 0 and 1 except `attributes_per_object`; NaN where a slice holds no claim.

    scene_accuracy: share of captions in which every claim is true. hallucination: share of claims that are false.
    coverage: share of objects mentioned. attributes_per_object: attributes stated per object mentioned.
    accuracy_<slice>: share of true claims about relations, order, counts, places and each attribute.
    """
    out = {}
    for name, pairs in counts(scenes, captions).items():
        over, under = (sum(column) for column in zip(*pairs, strict=True))
        nothing = 0.0 if name in ("hallucination", "attributes_per_object") else float("nan")
        out[name] = over / under if under else nothing
    return out


def counts(scenes: list[Scene], captions: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Numerator and denominator that each caption adds to each of the ratios of `scores`."""
    if not scenes or len(scenes) != len(captions):
        raise ValueError(f"{len(captions)} captions for {len(scenes)} scenes; one each, and at least one, is needed")
    verdicts = [judge(scene, caption) for scene, caption in zip(scenes, captions, strict=True)]
    out = {
        "scene_accuracy": [(int(v.accurate), 1) for v in verdicts],
        "hallucination": [(v.total - v.true, v.total) for v in verdicts],
        "coverage": [(v.covered, v.objects) for v in verdicts],
        "attributes_per_object": [(v.attributes, v.mentioned) for v in verdicts],
    }
    for name in ("relation", "order", "count", "place", "size", "texture", "colour", "shape"):
        out[f"accuracy_{name}"] = [v.by[name] for v in verdicts]
    return out


def _best_assignment(scene: Scene, s: Statement) -> list[list[Object]]:
    """The objects each phrase means, chosen to make the most claims true, then the most attributes."""
    slots = [i for i, p in enumerate(s.phrases) for _ in range(min(p.count, _MAX_SLOTS))][:_MAX_SLOTS]
    pool: list[Object | None] = [*scene.objects, *[None] * max(len(slots) - len(scene.objects), 0)]
    best, best_score = None, (-1, -1)
    for chosen in itertools.permutations(pool, len(slots)):
        members: list[list[Object]] = [[] for _ in s.phrases]
        for slot, o in zip(slots, chosen, strict=True):
            if o is not None:
                members[slot].append(o)
        true = sum(_phrase_holds(p, m, members, scene) for p, m in zip(s.phrases, members, strict=True))
        true += sum(_related(r.word, members[r.a], members[r.b]) for r in s.relations)
        true += sum(bool(members[p.a]) and all(graph.lies(o, p.where) for o in members[p.a]) for p in s.places)
        agree = sum(_agreement(p, o) for p, m in zip(s.phrases, members, strict=True) for o in m)
        if (true, agree) > best_score:
            best, best_score = members, (true, agree)
    assert best is not None  # the empty assignment scores (0, 0)
    return best


def _claims(s: Statement, phrase_true, relation_true, place_true) -> tuple[tuple[str, bool], ...]:
    nouns = [noun_phrase(p) for p in s.phrases]
    out = list(zip(nouns, phrase_true, strict=True))
    of = {"left": "left of", "right": "right of"}
    for r, ok in zip(s.relations, relation_true, strict=True):
        out.append((f"{nouns[r.a]} {of.get(r.word, r.word)} {nouns[r.b]}", ok))
    out += [(f"{nouns[p.a]} {p.where}", ok) for p, ok in zip(s.places, place_true, strict=True)]
    return tuple(out + [(word, False) for word in s.unread])


def _agreement(p: Phrase, o: Object) -> int:
    return sum(getattr(o, k) == v for k, v in p.attributes().items())


def _phrase_holds(p: Phrase, objects: list[Object], members: list[list[Object]], scene: Scene) -> bool:
    if len(objects) != p.count or not all(p.fits(o) for o in objects):
        return False
    if p.count == 1:
        return True
    taken = {o for m in members for o in m}
    return not any(p.fits(o) for o in scene.objects if o not in taken)


def _related(word: str, a: list[Object], b: list[Object]) -> bool:
    return bool(a) and bool(b) and all(graph.holds(word, x, y) for x in a for y in b)


def _slices(s, members, phrase_true, relation_true, place_true) -> dict[str, tuple[int, int]]:
    by = {
        "relation": (sum(relation_true), len(s.relations)),
        "place": (sum(place_true), len(s.places)),
    }
    # word order: of the relations that hold one way round, how many are said the right way round
    swapped = [_related(r.word, members[r.b], members[r.a]) for r in s.relations]
    by["order"] = (sum(relation_true), sum(relation_true) + sum(swapped))
    groups = [ok for p, ok in zip(s.phrases, phrase_true, strict=True) if p.count > 1]
    by["count"] = (sum(groups), len(groups))
    for name in ("size", "texture", "colour", "shape"):
        named = [(getattr(p, name), o) for p, m in zip(s.phrases, members, strict=True) for o in m if getattr(p, name)]
        by[name] = (sum(value == getattr(o, name) for value, o in named), len(named))
    return by

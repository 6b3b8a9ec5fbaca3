"""Sulari, a second small grammar with known truth, for image-conditioned translation.

Noun first, then colour, texture, size and number; relations and places come last, as particles. Every statement has
exactly one translation, so a translation can be judged by equality.
"""

from simvlm_jax.data.scenes.language import Phrase, Statement

_WORDS = {
    **{"circle": "oru", "square": "kadi", "triangle": "teka", "star": "asti", "diamond": "lupa", "cross": "miro"},
    **{"ring": "sono", "moon": "vela", "shape": "zuna", "red": "rubi", "green": "verdo", "blue": "azu"},
    **{"yellow": "gala", "orange": "nara", "purple": "mova", "white": "bela", "black": "noko", "small": "tini"},
    **{"large": "gran", "plain": "puro", "striped": "liri", "dotted": "puntu"},
}
_NUMBERS = {1: "un", 2: "du", 3: "tri", 4: "kva", 5: "pen"}
_RELATIONS = {"left": "ile", "right": "ira", "above": "upa", "below": "suba"}
_ROWS, _COLUMNS = {"top": "upo", "bottom": "subo"}, {"left": "ilo", "right": "iro"}


def sulari(s: Statement) -> str:
    """Translates a statement: "a red circle above a blue star" -> "oru rubi un asti azu un upa"."""
    phrases = [_phrase(p) for p in s.phrases]
    for i, where in ((p.a, p.where) for p in s.places):
        phrases[i] += " " + _place(where)
    if not s.relations:
        return " e ".join(phrases)
    linked = {i for r in s.relations for i in (r.a, r.b)}
    clauses = [f"{phrases[r.a]} {phrases[r.b]} {_RELATIONS[r.word]}" for r in s.relations]
    return " e ".join(clauses + [phrases[i] for i in range(len(phrases)) if i not in linked])


def _phrase(p: Phrase) -> str:
    words = [p.shape or "shape", p.colour, p.texture, p.size]
    return " ".join([*(_WORDS[w] for w in words if w), _NUMBERS[p.count]])


def _place(where: str) -> str:
    words = where.split()
    parts = [_ROWS[w] for w in words if w in _ROWS] + [_COLUMNS[w] for w in words if w in _COLUMNS]
    return " ".join(parts) or "meza"

r"""Penn Treebank tokenisation of captions, equal to the official COCO caption scorer's (CoreNLP 3.4.1), without Java.

The scorer writes all captions into one file, a line each, runs PTBTokenizer with -preserveLines -lowerCase on it, and drops a
list of punctuation tokens. The tokeniser is a lexer: at every place the rule with the longest match wins, what it looks ahead at
counted in, and of equals the first. It looks ahead across the end of a line, so a few tokens ("plan b." before a caption that
begins with "A ") depend on the caption after; `ptb_tokenize_all` takes them in order, as the scorer does.

Quirks kept: the list of dropped tokens spells brackets in capitals and the tokens are lower-cased, so "(" survives as "-lrb-";
characters beyond Unicode's basic plane (emoji) are dropped; spaces inside a token ("1 1/2", a phone number) become U+00A0, at which
BLEU and CIDEr divide it again and ROUGE does not. Line breaks inside a caption are spaces here, where the scorer's own files would
fall out of step.

Time grows with the length of a caption, whatever it says: a rule that would read far ahead for nothing is not tried (`Within`).
"""

import functools
import re
from collections.abc import Sequence

from simvlm_jax.eval.metrics.ptb_rules import PERIOD_MATTERS, Within, all_rules, as_is

DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
MOST_CHARACTERS = 500_000
"""Longest caption that is tokenized; each token takes some tens of microseconds."""
_BREAKS = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")


def ptb_tokenize(caption: str) -> list[str]:
    """The tokens of a caption, lower-cased, without dropped punctuation; [] for an empty one."""
    return ptb_tokenize_all([caption])[0]


def ptb_tokenize_all(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of captions that stand one after the other in the scorer's file.

    Raises:
      ValueError: one has more than MOST_CHARACTERS.
    """
    for i, caption in enumerate(captions):
        if len(caption) > MOST_CHARACTERS:
            raise ValueError(
                f"caption {i} ({caption[:40]!r} ...) has {len(caption):,} characters, more than the limit of "
                f"{MOST_CHARACTERS:,}; shorten it"
            )
    lines = [_BREAKS.sub(" ", c) for c in captions]
    out = []
    for i, line in enumerate(lines):
        tokens = _by_chunks(line) if i + 1 < len(lines) else None
        if tokens is None:
            tokens = _lexed(line, _beginning(lines, i + 1))
        if (
            tokens and not (tokens := [*tokens[:-1], tokens[-1].rstrip()])[-1]
        ):  # the scorer strips lines of all kinds of spaces
            tokens.pop()
        out.append([t for t in tokens if t not in DROPPED])
    return out


def _beginning(lines: Sequence[str], start: int) -> str | None:
    """As much of the lines from `start` on as the lexer may look at; None where there are none."""
    if start >= len(lines):
        return None
    found = ""
    while start < len(lines) and len(found) < 64:
        found += lines[start][:64] + ("\n" if start + 1 < len(lines) else "")
        start += 1
    return found


# ---- most lines: what stands between spaces is a matter of its own -------------------------------------------------------

_CHUNKS = re.compile(r"[ \t]+")
_WORDS = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*\.")
_OTHER_SPACES = tuple("\xa0\u3000") + tuple(map(chr, range(0x2000, 0x200B)))
_LAST_DIGIT, _FIRST_DIGIT = re.compile(r"[\d)]$"), re.compile(r"\d")


def _by_chunks(line: str) -> list[str] | None:
    """The tokens of a line that is followed by another; None where what spaces part is not lexed apart."""
    out: list[str] = []
    before = ""
    for chunk in _CHUNKS.split(line.strip(" \t")):
        found = _of_chunk(chunk) if len(chunk) < 100 else _of_chunk.__wrapped__(chunk)  # long ones are not kept
        if found is None or (
            _FIRST_DIGIT.match(chunk) and _LAST_DIGIT.search(before)
        ):  # a fraction, a telephone number
            return None
        if chunk[:1] == "." == before[-1:] or chunk[:1] in _OTHER_SPACES:  # ". . ."; spaces that go with those before
            return None
        out += found
        before = chunk
    return out


@functools.lru_cache(maxsize=200_000)
def _of_chunk(chunk: str) -> tuple[str, ...] | None:
    if "<" in chunk:
        return None  # a tag may hold spaces
    if chunk.endswith(".") and (
        PERIOD_MATTERS.match(chunk) if _WORDS.fullmatch(chunk) else PERIOD_MATTERS.search(_end_of(chunk))
    ):
        return None  # whether a period is an abbreviation's own may depend on what follows
    return tuple(_lexed(chunk, ""))


def _end_of(chunk: str) -> str:
    """The last of a chunk that ends in periods, long enough for any abbreviation; of initials the last letter will do."""
    return f"{chunk.rstrip('.')[-32:]}."


# ---- the lexer -----------------------------------------------------------------------------------------------------------


def _lexed(line: str, following: str | None) -> list[str]:
    """The tokens of a line, lower-cased. following: the line after it, of which only its beginning matters; None at the end."""
    text = _units(line)
    end = len(text)
    whole = text if following is None else f"{text}\n{_units(following)}"
    out: list[str] = []
    place = 0
    seen: dict[Within, tuple[int, int]] = {}
    while place < end:
        longest, chosen, match = 0, None, None
        for rule in all_rules():
            if rule.needs and not _may_come(whole, place, rule.needs, seen):
                continue
            found = rule.pattern.match(whole, place)
            if found and found.end() - place > longest and found.end(1) <= end:
                longest, chosen, match = found.end() - place, rule, found
        assert chosen is not None and match is not None  # the last rule takes anything
        token = match[1][: len(match[1]) - chosen.cut] if chosen.cut and chosen.make is as_is else match[1]
        made = chosen.make(token)
        place = match.end(1) - chosen.cut
        if made:
            out.append(_joined(made).lower())
    return out


def _may_come(whole: str, place: int, needs: Within, seen: dict[Within, tuple[int, int]]) -> bool:
    """Whether what is needed comes before a break. seen: where both came last; as places only grow, each is searched for once."""
    start = place + needs.start
    sought, breaks = seen.get(needs, (-1, -1))
    if sought < start:
        sought = found.start() if (found := needs.sought.search(whole, start)) else len(whole)
    if breaks < start:
        breaks = found.start() if (found := needs.breaks.search(whole, start)) else len(whole)
    seen[needs] = sought, breaks
    return sought < breaks


def _units(text: str) -> str:
    """A text as the program has it: characters beyond the basic plane are two surrogates."""
    if text.isascii() or max(text) <= "\uffff":
        return text
    data = text.encode("utf-16-le", "surrogatepass")
    return "".join(chr(int.from_bytes(data[i : i + 2], "little")) for i in range(0, len(data), 2))


def _joined(text: str) -> str:
    """Surrogates as characters again."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

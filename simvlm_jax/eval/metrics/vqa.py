"""VQA accuracy as the official scorer computes it (Antol et al., ICCV 2015; GT-Vision-Lab's vqaEval), quirks and all.

Of its versions, the one that treats both sides alike: prediction and human answers are normalised, or neither is.

An answer is right to the degree that people agree with it: for each annotator left out, min(1, matches among the others /
3), averaged. Of ten, 1, 2, 3 and 4 or more who agree make 0.3, 0.6, 0.9 and 1. Texts are normalised only where the
annotators disagree.

Quirks kept: punctuation becomes nothing (not a space) wherever it touches a space, or anywhere in a text with a comma
between digits; the look-behind of the period rule is misspelt, so that only a digit after a period keeps it; and a flag
passed as a count lets that rule act 32 times at most.
"""

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = int(re.UNICODE)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(_NUMBERS)}}
_ARTICLES = ("a", "an", "the")
_SHORT = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
y'all'd've you'd you'd've you'll you're you've
"""


def _misspellings() -> dict[str, str]:
    """Each short form by the ways to leave one of its apostrophes out."""
    found = {"somebody'd": "somebodyd"}  # as the scorer has it
    for word in _SHORT.split():
        for i, c in enumerate(word):
            if c == "'":
                found[word[:i] + word[i + 1 :]] = word
    return found


_CONTRACTIONS = _misspellings()


def normalise(answer: str) -> str:
    """An answer without punctuation, articles and number words, its contractions spelt out: "The two cats." -> "2 cats"."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    drop = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for p in _PUNCTUATION:
        out = out.replace(p, "" if drop or f"{p} " in text or f" {p}" in text else " ")
    out = _PERIOD.sub("", out, count=_PERIODS)
    words = [_DIGITS.get(w, w) for w in out.lower().split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """The accuracy (0 to 1) of one answer against those of several people, ten as a rule.

    Raises:
      ValueError: nobody answered.
    """
    if not people:
        raise ValueError("a question without human answers cannot be scored")
    tidy = [p.replace("\n", " ").replace("\t", " ").strip() for p in people]
    predicted = answer.replace("\n", " ").replace("\t", " ").strip()
    if len(set(tidy)) > 1:
        tidy, predicted = [normalise(p) for p in tidy], normalise(predicted)
    agree = sum(p == predicted for p in tidy)
    return sum(min(1.0, (agree - (p == predicted)) / 3) for p in tidy) / len(tidy)

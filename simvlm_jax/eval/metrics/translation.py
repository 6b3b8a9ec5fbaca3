"""Corpus BLEU of translations (Papineni et al., ACL 2002) as sacreBLEU prints it (Post, WMT 2018), tokenisation 13a."""

import math
import re
from collections import Counter
from collections.abc import Sequence

_RULES = (  # mteval-v13a: what stands apart
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("<skipped>", ""), ("-\n", ""), ("\n", " "), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def tokenize_13a(text: str) -> list[str]:
    """Words and punctuation of a text, letters in the case they have."""
    for old, new in _ENTITIES:
        text = text.replace(old, new)
    text = f" {text} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.split()


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str], smooth: bool = False) -> float:
    """BLEU-4 between 0 and 100, one reference each.

    Orders without a match are smoothed as by default in sacreBLEU (the k-th gets 1 / 2^k matches). smooth: for single
    sentences: orders the hypothesis is too short for are left out.

    Raises:
      ValueError: numbers differ, or there is nothing to score.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} translations for {len(references)} references")
    counts = [bleu_counts(h, r) for h, r in zip(hypotheses, references, strict=True)]
    return bleu_of([sum(column) for column in zip(*counts, strict=True)], smooth)


def bleu_counts(hypothesis: str, reference: str) -> list[int]:
    """What a translation adds to corpus BLEU: matches and n-grams of 1 to 4 words, its words and those of the reference."""
    h, r = tokenize_13a(hypothesis), tokenize_13a(reference)
    matches, totals = [], []
    for n in range(1, 5):
        ours = Counter(tuple(h[i : i + n]) for i in range(len(h) - n + 1))
        theirs = Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1))
        matches.append(sum((ours & theirs).values()))
        totals.append(max(len(h) - n + 1, 0))
    return [*matches, *totals, len(h), len(r)]


def bleu_of(counts: Sequence[float], smooth: bool = False) -> float:
    """Corpus BLEU of the sums of `bleu_counts`."""
    matches, totals, (length, wanted) = counts[:4], counts[4:8], counts[8:]
    logs, missing = [], 1.0
    for match, total in zip(matches, totals, strict=True):
        if not total:
            if smooth:
                break
            return 0.0
        if not match:
            missing *= 2
            match = 1 / missing
        logs.append(math.log(match / total))
    if not logs or not matches[0]:
        return 0.0
    brevity = min(0.0, 1 - wanted / length)
    return 100 * math.exp(brevity + sum(logs) / len(logs))

"""BLEU, ROUGE-L and CIDEr-D exactly as the official COCO caption scorer computes them (pycocoevalcap), without Java.

Inputs are raw captions; both sides go through the PTB tokenisation. METEOR is the official program (metrics/meteor.py).
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from simvlm_jax.eval.metrics.bootstrap import Sums, mean_of
from simvlm_jax.eval.metrics.ptb import ptb_tokenize_all

Tokens = list[str]
_TINY, _SMALL = 1e-15, 1e-9  # the official BLEU's guards against log(0)
_ROUGE_BETA = 1.2
_CIDER_SIGMA, _CIDER_N = 6.0, 4


def caption_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus scores `bleu1`..`bleu4`, `rouge_l` (0 to 1) and `cider` (CIDEr-D, native scale: 10 is a perfect match)."""
    return caption_scores_and_cider(hypotheses, references)[0]


def caption_scores_and_cider(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], list[float]]:
    """(corpus scores, CIDEr-D of every image)."""
    found = _all(hypotheses, references)
    return _corpus(found), found["cider"]


def caption_sums(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, Sums]]:
    """(corpus scores, what each image adds to them). Document frequencies are those of the whole set in every draw of images."""
    found = _all(hypotheses, references)
    rows = np.asarray([bleu_counts(h, refs) for h, refs in zip(*found["words"], strict=True)], float)

    def order(n: int) -> Sums:
        return Sums(rows, lambda sums: bleu_of(sums)[f"bleu{n}"])

    sums = {
        **{f"bleu{n}": order(n) for n in range(1, 5)},
        "rouge_l": mean_of(found["rouge_l"]),
        "cider": mean_of(found["cider"]),
    }
    return _corpus(found), sums


def _corpus(found: dict) -> dict[str, float]:
    return {name: float(np.mean(v)) if isinstance(v, list) else v for name, v in found.items() if name != "words"}


def caption_scores_per_image(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """Each image's `rouge_l` and `cider` (their means are the corpus scores) and sentence-level `bleu1`..`bleu4`."""
    scores = _all(hypotheses, references)
    rows = []
    for i, (words, refs) in enumerate(zip(*scores["words"], strict=True)):
        single = bleu([words], [refs])
        rows.append({**single, "rouge_l": scores["rouge_l"][i], "cider": scores["cider"][i]})
    return rows


def _all(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict:
    if not hypotheses:
        raise ValueError("there are no captions to score")
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} captions for {len(references)} sets of references")
    if empty := [i for i, refs in enumerate(references) if not refs]:
        raise ValueError(f"no references for caption {empty[0]} ({len(empty)} in all lack them)")
    tokens, refs = tokenized(hypotheses, references)
    rouge = [rouge_l(h, r) for h, r in zip(tokens, refs, strict=True)]
    words, ref_words = list(map(_words, tokens)), [list(map(_words, rs)) for rs in refs]
    return {**bleu(words, ref_words), "rouge_l": rouge, "cider": CiderD(ref_words)(words), "words": (words, ref_words)}


def tokenized(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Captions and references as the scorer tokenises them, each kind in one file, in their order."""
    flat = iter(ptb_tokenize_all([r for rs in references for r in rs]))
    return ptb_tokenize_all(hypotheses), [[next(flat) for _ in rs] for rs in references]


def _words(tokens: Tokens) -> Tokens:
    """Tokens as BLEU and CIDEr get them: those with a space inside, such as "1 1/2", come apart."""
    text = " ".join(tokens)
    return text.split() if len(text.split()) != len(tokens) else tokens


def _ngrams(tokens: Tokens, n: int) -> Counter:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def bleu(hypotheses: list[Tokens], references: list[list[Tokens]]) -> dict[str, float]:
    """Corpus BLEU-1..4 with the closest reference length (Papineni et al. 2002)."""
    counts = [bleu_counts(h, refs) for h, refs in zip(hypotheses, references, strict=True)]
    return bleu_of([sum(column) for column in zip(*counts, strict=True)])


def bleu_counts(hypothesis: Tokens, references: list[Tokens]) -> list[int]:
    """What a caption adds to corpus BLEU: matches and n-grams of 1 to 4 words, its length and the closest reference's."""
    correct, guessed = [], []
    for n in range(1, 5):
        counts, most = _ngrams(hypothesis, n), Counter()
        for r in references:
            most |= _ngrams(r, n)
        guessed.append(max(len(hypothesis) - n + 1, 0))
        correct.append(sum((counts & most).values()))
    return [*correct, *guessed, len(hypothesis), min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]]


def bleu_of(counts: Sequence[float]) -> dict[str, float]:
    """BLEU-1..4 of the sums of `bleu_counts`."""
    correct, guessed, (length, reference_length) = counts[:4], counts[4:8], counts[8:]
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    out, product = {}, 1.0
    for n in range(4):
        product *= (correct[n] + _TINY) / (guessed[n] + _SMALL)
        out[f"bleu{n + 1}"] = product ** (1 / (n + 1)) * brevity
    return out


def rouge_l(hypothesis: Tokens, references: list[Tokens]) -> float:
    """ROUGE-L F with beta 1.2; precision and recall are each the best over references (Lin 2004, as the scorer does)."""
    if not hypothesis:
        return 0.0
    common = [_longest_common(hypothesis, r) for r in references]
    precision = max(c / len(hypothesis) for c in common)
    recall = max((c / len(r) if r else 0.0) for c, r in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    b = _ROUGE_BETA**2
    return (1 + b) * precision * recall / (recall + b * precision)


def _longest_common(a: Tokens, b: Tokens) -> int:
    """The length of the longest common subsequence; a row of the table is the bits of a number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for j, y in enumerate(b):
        places[y] = places.get(y, 0) | (1 << j)
    whole = (1 << len(b)) - 1
    row = whole
    for x in a:
        match = row & places.get(x, 0)
        row = ((row + match) | (row - match)) & whole
    return len(b) - row.bit_count()


def document_frequency(references: list[list[Tokens]]) -> Counter:
    """In how many images' references each n-gram occurs, n = 1..4."""
    seen: Counter = Counter()
    for refs in references:
        seen.update({g for r in refs for n in range(1, _CIDER_N + 1) for g in _ngrams(r, n)})
    return seen


class CiderD:
    """CIDEr-D (Vedantam et al. 2015) against a set of references, whose own document frequencies weigh them, once."""

    def __init__(self, references: list[list[Tokens]]):
        self.frequency = document_frequency(references)
        self.log_documents = math.log(len(references))
        self._idf = {g: self.log_documents - math.log(max(1.0, n)) for g, n in self.frequency.items()}
        self.references = [[self._weigh(r) for r in refs] for refs in references]

    def _weigh(self, tokens: Tokens) -> tuple[list[dict[tuple, float]], list[float], int]:
        idf, unseen = self._idf, self.log_documents
        vectors = [{g: c * idf.get(g, unseen) for g, c in _ngrams(tokens, n).items()} for n in range(1, _CIDER_N + 1)]
        norms = [math.sqrt(sum(v * v for v in vec.values())) for vec in vectors]
        return vectors, norms, max(len(tokens) - 1, 0)  # the official "length" counts bigrams

    def __call__(self, hypotheses: list[Tokens]) -> list[float]:
        """The score of each image's hypothesis."""
        return [self._score(self._weigh(h), refs) for h, refs in zip(hypotheses, self.references, strict=True)]

    def constant(self, hypothesis: Tokens) -> float:
        """The mean score of one hypothesis said of every image."""
        weighed = self._weigh(hypothesis)
        return sum(self._score(weighed, refs) for refs in self.references) / len(self.references)

    @staticmethod
    def _score(hypothesis, references) -> float:
        vectors, norms, length = hypothesis
        total = 0.0
        for other, other_norms, other_length in references:
            penalty = math.exp(-((length - other_length) ** 2) / (2 * _CIDER_SIGMA**2))
            for n in range(_CIDER_N):
                theirs = other[n]
                value = sum(min(v, w) * w for g, v in vectors[n].items() if (w := theirs.get(g)))
                if norms[n] and other_norms[n]:
                    value /= norms[n] * other_norms[n]
                total += value * penalty
        return 10.0 * total / _CIDER_N / len(references)

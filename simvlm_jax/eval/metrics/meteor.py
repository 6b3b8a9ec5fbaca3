"""METEOR 1.5 (Denkowski & Lavie 2014) by the official program itself, which needs Java and the files inside `pycocoevalcap`.

The program is asked as the COCO caption scorer asks it: captions and references in PTB tokens, English, normalised. There is no
other METEOR here: its stages (exact, stem, synonym, paraphrase) and its beam search are not written anew. What it counts of a
caption is added up over images by its published formula, for the scores of drawn images.
"""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simvlm_jax.eval.metrics.bootstrap import Sums
from simvlm_jax.eval.metrics.caption import tokenized

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGES = (1.0, 0.6, 0.8, 0.6)
"""Weights of the program for English, of its task "rank": of exact words, stems, synonyms, paraphrases."""


def find_jar(given: str = "") -> Path:
    """The program: a path that is given, or that of the installed `pycocoevalcap`.

    Raises:
      ValueError: there is none, or no Java; the message says how to get them.
    """
    found = importlib.util.find_spec("pycocoevalcap")
    places = (
        [Path(given)]
        if given
        else [Path(p) / "meteor" / "meteor-1.5.jar" for p in (found and found.submodule_search_locations) or ()]
    )
    jar = next((p for p in places if p.is_file()), None)
    if jar is None:
        raise ValueError(
            f"METEOR needs the official program{f', which is not at {given!r}' if given else ''}; "
            "pip install pycocoevalcap, or name its meteor-1.5.jar"
        )
    if shutil.which("java") is None:
        raise ValueError(
            "METEOR needs Java (`java` is not on the path); install a Java runtime such as openjdk-17-jre-headless"
        )
    return jar


def meteor(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], jar: Path
) -> tuple[float, list[float], Sums]:
    """(the corpus score, each image's, what each image adds to the corpus score); scores are 0 to 1.

    Raises:
      ValueError: the program failed; the message has its last words.
    """
    tokens, refs = tokenized(hypotheses, references)
    lines = [" ||| ".join(["SCORE", *map(_plain, rs), _plain(h)]) for h, rs in zip(tokens, refs, strict=True)]
    stats = _run(jar, lines)
    answers = _run(jar, ["EVAL ||| " + " ||| ".join(stats)])
    scores = [float(v) for v in answers]
    if len(scores) != len(tokens) + 1 or not np.isfinite(scores).all():
        raise ValueError(f"METEOR gave {len(scores)} scores for {len(tokens)} captions")
    return scores[-1], scores[:-1], Sums(meteor_counts(stats), meteor_of)


def meteor_counts(stats: Sequence[str]) -> np.ndarray:
    """What each caption adds to the corpus score [n,23], of the program's lines of statistics.

    A line holds the words of caption and reference, the function words of each; for each of four stages of matching the content
    words matched of each and the function words matched of each; the chunks; the words matched of each. As in the program's
    sums, a caption that is its reference adds no chunk.

    Raises:
      ValueError: a line holds something else.
    """
    try:
        rows = np.asarray([line.split() for line in stats], np.float64).reshape(len(stats), 23)
    except ValueError as e:
        raise ValueError(f"METEOR gave other statistics than 23 numbers per caption: {stats[0]!r:.200}") from e
    rows[[_same(row) for row in rows], 20] = 0
    return rows


def _same(row: np.ndarray) -> bool:
    """Whether a caption is its reference, word for word or nearly so, in one chunk."""
    content, others = row[4:20].reshape(4, 2, 2).sum(0)
    return row[20] == 1 and bool((content + others == row[:2]).all())


def meteor_of(counts: np.ndarray) -> float:
    """METEOR 1.5 for English of the sums of `meteor_counts`."""
    stages = counts[4:20].reshape(4, 2, 2)  # content and function words, of caption and reference
    weighed = _DELTA * stages[:, 0] + (1 - _DELTA) * stages[:, 1]
    length = _DELTA * (counts[:2] - counts[2:4]) + (1 - _DELTA) * counts[2:4]
    matched = np.asarray(_STAGES) @ weighed
    if not matched.all() or not length.all():
        return 0.0
    precision, recall = matched / length
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    chunks = counts[20] / counts[21:].mean()
    return float(mean * (1 - _GAMMA * chunks**_BETA))


def _plain(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace("|||", "").replace("  ", " ")


def _run(jar: Path, lines: Sequence[str]) -> list[str]:
    """The program's answer lines."""
    command = ["java", "-jar", "-Xmx2G", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    done = subprocess.run(
        command, cwd=jar.parent, input="\n".join(lines) + "\n", capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise ValueError(f"METEOR failed (exit code {done.returncode}): {done.stderr.strip()[-300:]}")
    return done.stdout.splitlines()

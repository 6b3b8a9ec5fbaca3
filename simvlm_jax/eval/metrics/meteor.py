"""METEOR 1.5 (Denkowski & Lavie 2014) by the official program itself, which needs Java and the files inside `pycocoevalcap`.

The program is asked as the COCO caption scorer asks it: captions and references in PTB tokens, English, normalised. There is no
other METEOR here: its stages (exact, stem, synonym, paraphrase) and its beam search are not written anew.
"""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simvlm_jax.eval.metrics.caption import tokenized


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


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]], jar: Path) -> tuple[float, list[float]]:
    """(the corpus score, each image's), 0 to 1.

    Raises:
      ValueError: the program failed; the message has its last words.
    """
    said, refs = tokenized(hypotheses, references)
    lines = [" ||| ".join(["SCORE", *map(_plain, rs), _plain(h)]) for h, rs in zip(said, refs, strict=True)]
    stats = _ask(jar, lines)
    answers = _ask(jar, ["EVAL ||| " + " ||| ".join(stats)])
    scores = [float(v) for v in answers]
    if len(scores) != len(said) + 1 or not np.isfinite(scores).all():
        raise ValueError(f"METEOR gave {len(scores)} scores for {len(said)} captions")
    return scores[-1], scores[:-1]


def _plain(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace("|||", "").replace("  ", " ")


def _ask(jar: Path, lines: Sequence[str]) -> list[str]:
    """The program's answer lines."""
    command = ["java", "-jar", "-Xmx2G", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    done = subprocess.run(
        command, cwd=jar.parent, input="\n".join(lines) + "\n", capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise ValueError(f"METEOR failed (exit code {done.returncode}): {done.stderr.strip()[-300:]}")
    return done.stdout.splitlines()

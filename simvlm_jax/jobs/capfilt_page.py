"""What captioning and filtering did, for people: counts, precision and recall where the truth is known, and pictures."""

import html
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.files import write_whole
from simvlm_jax.data.images import decode
from simvlm_jax.data.source import Source
from simvlm_jax.jobs.capfilt import WEB, WRITTEN, decisions
from simvlm_jax.run.report import Card, gallery, page

REPORT, SCORES = "report.html", "scores.json"
SHOWN = 16
"""Cards of a section."""
RIGHT = "exact"
"""The kind of `scenes/noisy` texts that are right and whole; the others are kinds of noise."""


def truth_scores(folder: Path) -> dict[str, Any]:
    """What is known of the truth of texts, {} where nothing is.

    kinds: {kind of noise: {"in", "kept", "precision", "recall"}} of the texts that came with the pictures; precision is the share
    of this kind among dropped texts of this kind and right ones, recall the share of the kind that was dropped. true: {"web",
    "written": {"in", "kept", "true_in", "true_kept"}}, how many of the texts that came in and of those that stayed are true of the
    scene.
    """
    kinds: dict[str, Counter[str]] = {}
    true: dict[str, Counter[str]] = {}
    for d in decisions(folder):
        kept = bool(d["kept"])
        if "truth" in d:
            kinds.setdefault(d["truth"], Counter()).update({"in": 1, "kept": kept})
        if "true" in d:
            right = bool(d["true"])
            true.setdefault(d["of"], Counter()).update(
                {"in": 1, "kept": kept, "true_in": right, "true_kept": right and kept}
            )
    found: dict[str, Any] = {}
    if kinds:
        lost = kinds.get(RIGHT, Counter())["in"] - kinds.get(RIGHT, Counter())["kept"]
        found["kinds"] = {k: _measured(k, c, lost) for k, c in sorted(kinds.items())}
    if true:
        found["true"] = {k: dict(c) for k, c in sorted(true.items())}
    return found


def _measured(kind: str, counts: Counter[str], lost: int) -> dict[str, Any]:
    """precision and recall of a kind of noise; lost: right texts that were dropped."""
    dropped = counts["in"] - counts["kept"]
    shares = {"precision": dropped / max(dropped + lost, 1), "recall": dropped / max(counts["in"], 1)}
    return {"in": counts["in"], "kept": counts["kept"], **({} if kind == RIGHT else shares)}


def write_page(folder: Path, source: Source, counts: dict[str, Any], filters: list[str]) -> None:
    """Writes scores.json and report.html of a whole data set.

    source: of the pictures. filters: names of those whose scores the texts have.
    """
    scores = truth_scores(folder)
    write_whole(folder / SCORES, json.dumps(scores, indent=1), own=True)
    found = list(decisions(folder))
    least = lambda d: min(d.get("scores") or [0.0])  # noqa: E731

    def shown(of: str, kept: bool) -> list[dict[str, Any]]:
        mine = sorted((d for d in found if d["of"] == of and d["kept"] == kept and d["text"]), key=least)
        return [mine[i] for i in sorted(set(np.linspace(0, len(mine) - 1, SHOWN).astype(int).tolist()))] if mine else []

    about = ", ".join(filters)
    body = [
        f"<h1>{html.escape(folder.name)}</h1>",
        f"<p class=sub>{counts['in']:,} texts in, {counts['written']:,} written, {counts['kept']:,} kept</p>",
        "<h2>What became of the texts</h2>",
        _counts(counts),
        *_truth(scores),
    ]
    for title, of, kept in (
        ("Dropped: texts that came with the pictures", WEB, False),
        ("Written and kept", WRITTEN, True),
        ("Written and dropped", WRITTEN, False),
        ("Kept: texts that came with the pictures", WEB, True),
    ):
        if chosen := shown(of, kept):
            note = f"<p class=sub>An even spread by score, the lowest first{f'; scores of {html.escape(about)}' if about else ''}.</p>"
            cards = [_card(d, source) for d in chosen]
            body += [f"<h2>{title}</h2>", note, gallery(cards)]
    write_whole(folder / REPORT, page(folder.name, body), own=True)


def _card(decision: dict[str, Any], source: Source) -> Card:
    scores = [(f"score {i + 1}" if i else "score", s) for i, s in enumerate(decision["scores"])]
    judged = "" if "true" not in decision else "true of the scene" if decision["true"] else "not true of the scene"
    told = [decision["reason"], decision.get("truth") or judged]
    return Card(
        key=decision["key"],
        images=_picture(source, decision["row"]),
        answer=decision["text"],
        question="",
        references=[t for t in told if t],
        claims=[],
        right=decision.get("true"),
        words=[],
        n_best=scores,
    )


def _picture(source: Source, row: int) -> list[bytes]:
    """The picture as a small PNG; none where it cannot be read."""
    try:
        image = decode(source[row]["image"], at_least=224)
    except Exception:  # people's files fail in any way they like
        return []
    image.thumbnail((224, 224))
    file = io.BytesIO()
    image.save(file, "PNG")
    return [file.getvalue()]


def _counts(counts: dict[str, Any]) -> str:
    rows = [("in", counts["in"]), ("written", counts["written"]), ("kept", counts["kept"])]
    rows += [(f"dropped · {k}", n) for k, n in sorted(counts["dropped"].items(), key=lambda item: -item[1])]
    every = max(counts["in"] + counts["written"], 1)
    lines = "".join(f"<tr><th>{html.escape(k)}</th><td>{n:,}</td><td>{n / every:.1%}</td></tr>" for k, n in rows)
    return f"<table><tr><th></th><th>texts</th><th>of all</th></tr>{lines}</table>"


def _truth(scores: dict[str, Any]) -> list[str]:
    body: list[str] = []
    if "kinds" in scores:
        lines = "".join(
            f"<tr><th>{html.escape(kind)}</th><td>{c['in']:,}</td><td>{c['kept']:,}</td>"
            f"<td>{_share(c, 'precision')}</td><td>{_share(c, 'recall')}</td></tr>"
            for kind, c in scores["kinds"].items()
        )
        note = "precision: of dropped texts of this kind and right ones; recall: of this kind"
        body += ["<h2>By kind of noise</h2>", f"<p class=sub>{note}</p>"]
        body.append(
            f"<table><tr><th></th><th>in</th><th>kept</th><th>precision</th><th>recall</th></tr>{lines}</table>"
        )
    if "true" in scores:
        lines = "".join(
            f"<tr><th>{of}</th><td>{c['true_in'] / max(c['in'], 1):.3f}</td><td>{c['true_kept'] / max(c['kept'], 1):.3f}</td></tr>"
            for of, c in scores["true"].items()
        )
        body += ["<h2>Share of texts that are true of the scene</h2>"]
        body.append(f"<table><tr><th></th><th>before</th><th>kept</th></tr>{lines}</table>")
    return body


def _share(counts: dict[str, Any], name: str) -> str:
    return f"{counts[name]:.3f}" if name in counts else "–"

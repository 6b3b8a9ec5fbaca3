"""The page a run ends in: curves, scores by slice, pictures with what was said of them. One file, nothing to fetch."""

import base64
import dataclasses
import html
import json
from collections import Counter
from typing import Any

from simvlm_jax.core.files import write_whole
from simvlm_jax.run.directory import RunDir


@dataclasses.dataclass(frozen=True)
class Card:
    """One example of the gallery.

    question: the question, if there was one. claims: (claim, whether it is true); right: all of it true, None where
    truth is not known. words: each word of the answer with its attention over the image, rows of a grid of values between 0
    and 1. n_best: hypotheses with their scores.
    """

    key: str
    images: list[bytes]
    answer: str
    question: str
    references: list[str]
    claims: list[tuple[str, bool]]
    right: bool | None
    words: list[tuple[str, list[list[float]]]]
    n_best: list[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Section:
    """What a suite showed on a split: an even spread of examples, the worst mistakes, {(truth, said): how often}."""

    title: str
    cards: list[Card]
    mistakes: list[Card]
    confusion: dict[tuple[str, str], int]


def write_report(run: RunDir, entries: list[dict[str, Any]], sections: list[Section]) -> None:
    """Writes `report.html` from the run's metrics, its results and what each suite showed."""
    if run.process:
        return
    rows = run.rows()
    config = run.record()
    body = [
        f"<h1>{html.escape(run.path.name)}</h1>",
        f"<p class=sub>{html.escape(config['model']['target'])} · step {max((int(r['step']) for r in rows), default=0)}</p>",
        "<h2>Scores</h2>",
        _scores(entries),
        "<h2>Training</h2>",
        "<div class=curves>" + "".join(_curves(rows)) + "</div>",
    ]
    for section in sections:
        body += [f"<h2>{html.escape(section.title)}</h2>", _legend(section.cards), gallery(section.cards)]
        if section.confusion:
            body += ["<h3>What was answered (columns) where the truth was (rows)</h3>", _confusion(section.confusion)]
        if section.mistakes:
            body += ["<h3>The worst mistakes</h3>", gallery(section.mistakes)]
    text = json.dumps(config, indent=1)
    body += ["<h2>Config</h2>", f"<details><summary>all fields</summary><pre>{html.escape(text)}</pre></details>"]
    write_whole(run.report, page(run.path.name, body), own=True)


def page(title: str, body: list[str]) -> str:
    """A whole page of HTML, which fetches nothing."""
    head = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    return f"{head}<main>" + "\n".join(body) + f"</main><script>{_SCRIPT}</script>"


def gallery(cards: list[Card]) -> str:
    """Cards side by side, as HTML."""
    return "<div class=cards>" + "".join(map(_card, cards)) + "</div>"


def _confusion(counts: dict[tuple[str, str], int], most: int = 16) -> str:
    """The most frequent truths against the most frequent answers; the shade is the share of a row."""
    truths, answers = Counter[str](), Counter[str]()
    for (truth, answer), n in counts.items():
        truths[truth] += n
        answers[answer] += n
    rows = [t for t, _ in truths.most_common(most)]
    columns = sorted(
        {*[a for a, _ in answers.most_common(most)], *[t for t in rows if t in answers]},
        key=lambda a: (a not in rows, -answers[a]),
    )
    columns.sort(key=lambda a: rows.index(a) if a in rows else len(rows))
    rest = len(answers) - len(columns)
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns) + ("<th>others</th>" if rest else "")
    out = [f"<table class=confusion><tr><th></th>{head}<th>all</th></tr>"]
    for truth in rows:
        shown = [(counts.get((truth, c), 0), c == truth) for c in columns]
        if rest:
            shown.append((truths[truth] - sum(n for n, _ in shown), False))
        cells = "".join(
            f"<td style='background:{'#2a9c4a' if ok else '#dd3333'}{int(150 * n / truths[truth]):02x}'>{n or '·'}</td>"
            for n, ok in shown
        )
        out.append(f"<tr><th>{html.escape(truth)}</th>{cells}<td>{truths[truth]}</td></tr>")
    return "".join(out) + "</table>"


def _scores(entries: list[dict[str, Any]]) -> str:
    """A table a suite: headline scores; then one for the slices, where there are any."""
    out = ""
    for suite in dict.fromkeys(e["suite"] for e in entries):
        own = [e for e in entries if e["suite"] == suite]
        names = list(dict.fromkeys(name for e in own for name in e["scores"]))
        slices = [n for n in names if n.startswith("accuracy_")]
        out += f"<h3>{html.escape(suite)}</h3>" + _table(own, [n for n in names if n not in slices])
        if slices:
            what = "Share of true claims, by what they speak of" if "scene_accuracy" in names else "Accuracy by slice"
            out += f"<h3>{what}</h3>" + _table(own, slices)
        failed = [f"{e['split']} could not be run: {e['error']}" for e in own if "error" in e]
        out += "".join(f"<p class=no>{html.escape(text)}</p>" for text in failed)
        remarks = [f"{e['split']}: {remark}" for e in own for remark in e.get("remarks", ())]
        out += "".join(f"<p class=sub>{html.escape(text)}</p>" for text in remarks)
    if any(e.get("intervals") for e in entries):
        out += "<p class=sub>Small figures: 95 % intervals, by the bootstrap over images.</p>"
    return out


def _table(entries: list[dict[str, Any]], names: list[str]) -> str:
    cells = "".join(f"<th>{html.escape(n.removeprefix('accuracy_').replace('_', ' '))}</th>" for n in names)
    out = [f"<table><tr><th></th>{cells}</tr>"]
    for e in entries:
        label = e["split"] + (f" · {e['control']}" if e["control"] else "")
        values = "".join(_cell(e["scores"].get(n), e.get("intervals", {}).get(n)) for n in names)
        style = " class=control" if e["control"] else ""
        out.append(f"<tr{style}><th>{html.escape(label)}</th>{values}</tr>")
    return "".join(out) + "</table>"


def _cell(score: float | None, interval: tuple[float, float] | None) -> str:
    """A score, and below it between what it lies in 95 of 100 draws of the images."""
    if score is None:
        return "<td>–</td>"
    between = f"<small>{interval[0]:.3f}–{interval[1]:.3f}</small>" if interval else ""
    return f"<td>{score:.3f}{between}</td>"


def _curves(rows: list[dict[str, Any]]) -> list[str]:
    """One small chart a measurement; validation is drawn over training where both have it."""
    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "split", "samples"):
                series.setdefault(name, {}).setdefault(row["split"], []).append((row["step"], value))
    charts, drawn = [], []
    for name in sorted(series, key=lambda name: name != "loss"):
        lines = series[name]
        shape = {split: [(x, f"{y:.4g}") for x, y in line] for split, line in lines.items()}
        if any(len(v) > 1 for v in lines.values()) and shape not in drawn:  # a loss of one term is that term
            drawn.append(shape)
            title = html.escape(name.replace("_", " "))
            charts.append(f"<figure><figcaption>{title}</figcaption>{chart(lines)}</figure>")
    return charts


def chart(lines: dict[str, list[tuple[int, float]]], width: int = 300, height: int = 150) -> str:
    """An SVG of (step, value) curves by split."""
    points = [p for line in lines.values() for p in line]
    x1 = max(x for x, _ in points) or 1
    ys = sorted(y for _, y in points)
    low, high = ys[0], ys[min(len(ys) - 1, int(len(ys) * 0.995))]  # one early spike must not flatten the curve
    low, high = (low, high) if high > low else (low - 1, high + 1)
    left, bottom = 46, 18

    def place(x: float, y: float) -> str:
        px = left + (width - left - 6) * x / x1
        py = 6 + (height - bottom - 6) * (1 - (min(max(y, low), high) - low) / (high - low))
        return f"{px:.1f},{py:.1f}"

    colours = {"train": "#2864c8", "validation": "#d06414"}
    paths = "".join(
        f'<polyline fill="none" stroke="{colours.get(split, "#555")}" stroke-width="1.6" '
        f'points="{" ".join(place(x, y) for x, y in line)}"/>'
        for split, line in lines.items()
    )
    labels = "".join(
        f'<text x="{left - 4}" y="{y:.0f}" text-anchor="end">{_short(v)}</text>'
        for v, y in ((high, 13), (low, height - bottom + 2))
    )
    labels += f'<text x="{width - 6}" y="{height - 3}" text-anchor="end">step {x1}</text>'
    frame = f'<path d="M{left},6V{height - bottom}H{width - 6}" stroke="#999" fill="none"/>'
    return f'<svg viewBox="0 0 {width} {height}">{frame}{paths}{labels}</svg>'


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:.1f}k"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}" if abs(value) >= 1e-4 else "0"


def _legend(cards: list[Card]) -> str:
    known = [c for c in cards if c.right is not None]
    right = f" {sum(bool(c.right) for c in known)} of the {len(known)} shown are right." if known else ""
    hint = " Point at a word to see where the model looked while writing it." if any(c.words for c in cards) else ""
    return f"<p class=sub>{right}{hint}</p>"


def _card(card: Card) -> str:
    mark = {True: "right", False: "wrong", None: ""}[card.right]
    pictures = "".join(
        f"<img alt='{html.escape(card.key)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
        for png in card.images
    )
    words = "".join(
        f"<span class=w data-a='{html.escape(json.dumps(grid))}'>{html.escape(word)}</span> "
        for word, grid in card.words
    )
    claims = "".join(
        f"<span class={'yes' if ok else 'no'}>{'✓' if ok else '✗'} {html.escape(claim)}</span>"
        for claim, ok in card.claims
    )
    question = f"<p class=asked>{html.escape(card.question)}</p>" if card.question else ""
    others = "".join(f"<li>{html.escape(text)} <b>{score:.2f}</b></li>" for text, score in card.n_best)
    others = f"<ol>{others}</ol>" if others else ""
    references = "".join(f"<li>{html.escape(r)}</li>" for r in card.references)
    return (
        f"<div class='card {mark}'><div class=pic style='--n:{max(len(card.images), 1)}'>{pictures}<div class=heat></div></div>"
        f"{question}<p class=cap>{words or html.escape(card.answer)}</p><p class=claims>{claims}</p>{others}"
        f"<ul>{references}</ul><p class=key>{html.escape(card.key)}</p></div>"
    )


_STYLE = """
body{margin:0;background:#f6f6f4;color:#1c1c1c;font:15px/1.45 system-ui,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:auto;padding:24px}h1{margin:0}h2{margin:32px 0 8px}h3{margin:16px 0 4px;font-size:15px}
.sub{color:#666;margin:2px 0 10px}td small{display:block;white-space:nowrap;color:#999;font-size:10px}table{border-collapse:collapse;background:#fff;font-size:13px;display:block;overflow-x:auto;width:max-content;max-width:100%}
th,td{padding:5px 10px;border-bottom:1px solid #e4e4e0;text-align:right;font-variant-numeric:tabular-nums}
th:first-child{text-align:left}.control{color:#888}.curves{display:flex;flex-wrap:wrap;gap:12px}
figure{margin:0;background:#fff;padding:8px;width:270px}figcaption{font-size:13px;color:#444}svg text{font-size:10px;fill:#666}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(215px,1fr));gap:14px}
.card{background:#fff;border-top:5px solid #bbb;padding:10px}.right{border-color:#2a9c4a}.wrong{border-color:#d33}
.pic{position:relative;display:grid;grid-template-columns:repeat(var(--n),1fr);gap:4px}.pic img{width:100%;display:block;image-rendering:auto}
.asked{margin:8px 0 0;color:#444}.asked+.cap{margin-top:2px}ol{margin:4px 0;padding-left:18px;font-size:12px;color:#555}ol b{font-weight:400;color:#aaa}
.confusion td{text-align:center;min-width:24px}.confusion th{white-space:nowrap}
.heat{position:absolute;inset:0;display:grid;pointer-events:none}.cap{font-weight:600;margin:8px 0 4px}
.w{cursor:default;border-radius:3px}.w.on{background:#ffe08a}.claims span{display:inline-block;font-size:12px;margin:0 6px 2px 0}
.yes{color:#1c7a38}.no{color:#c22}ul{margin:6px 0;padding-left:16px;font-size:12px;color:#666}.key{font-size:10px;color:#aaa;margin:0}
pre{font-size:12px;overflow-x:auto}
"""

_SCRIPT = """
function show(w){const c=w.closest('.card'),h=c.querySelector('.heat'),a=JSON.parse(w.dataset.a);
c.querySelectorAll('.w.on').forEach(x=>x.classList.remove('on'));w.classList.add('on');
h.style.gridTemplateColumns='repeat('+a[0].length+',1fr)';h.replaceChildren(...a.flat().map(v=>{
const d=document.createElement('div');d.style.background='rgba(10,10,30,'+(0.72*(1-v))+')';return d}))}
function hide(w){const c=w.closest('.card');w.classList.remove('on');c.querySelector('.heat').replaceChildren()}
document.querySelectorAll('.w').forEach(w=>{w.onmouseenter=()=>show(w);w.onmouseleave=()=>hide(w)});
document.querySelectorAll('.cards').forEach(g=>{const w=g.querySelectorAll('.card:first-child .w');if(w.length)show(w[Math.min(2,w.length-1)])});
"""

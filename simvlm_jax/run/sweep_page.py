"""The page of a sweep: its table of arms, its figure, and what became of its claims."""

import dataclasses
import html
import math
from typing import Any

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores of an arm by seed: {score: {seed: value}}, and what a seed costs."""

    arm: str
    title: str
    scores: dict[str, dict[int, float]]
    flops: float
    steps: str
    parameters: int
    seconds: float


def spread(values: dict[int, float]) -> tuple[float, float]:
    """(mean, standard deviation with n - 1) over seeds; NaN where there are too few."""
    v = list(values.values())
    return (float(np.mean(v)) if v else math.nan), (float(np.std(v, ddof=1)) if len(v) > 1 else math.nan)


def verdict(better: dict[int, float], worse: dict[int, float]) -> tuple[str, float, float]:
    """Whether one arm beats another: (word, mean difference, half its 95 % confidence interval), paired by seed.

    "holds" or "reversed" when the interval (Student's t, for seeds are few) leaves out 0, else "not separated".
    """
    pairs = [better[s] - worse[s] for s in sorted({*better} & {*worse})]
    if len(pairs) < 2:
        return "too few seeds" if better and worse else "no score", math.nan, math.nan
    mean, error = float(np.mean(pairs)), float(np.std(pairs, ddof=1) / math.sqrt(len(pairs)))
    half = float(stats.t.ppf(0.975, len(pairs) - 1)) * error
    if abs(mean) <= half:
        return "not separated", mean, half
    return ("holds" if mean > 0 else "reversed"), mean, half


def markdown(sweep: Any, summaries: list[Summary], figure: str) -> str:
    """The page: the table of arms, the figure, the claims."""
    by_arm = {s.arm: s for s in summaries}
    head = ["arm", *[title for _, title in sweep.scores], "seeds", "steps", "TFLOP", "parameters", "time"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for s in summaries:
        cells = []
        seeds = max(map(len, s.scores.values()))
        for name, _ in sweep.scores:
            mean, deviation = spread(s.scores[name])
            if not s.scores[name]:
                cells.append("–")
                continue
            few = f" ({len(s.scores[name])})" if len(s.scores[name]) < seeds else ""
            cells.append(f"{mean:.3f}" + (f" ± {deviation:.3f}" if math.isfinite(deviation) else "") + few)
        cells += [
            str(seeds),
            s.steps,
            f"{s.flops / 1e12:.1f}",
            f"{s.parameters:,}",
            f"{s.seconds:.0f} s",
        ]
        lines.append(f"| {s.title} | " + " | ".join(cells) + " |")
    if missing := [name for name, _ in sweep.scores if not any(s.scores[name] for s in summaries)]:
        lines += ["", f"No arm has a score {', '.join(f'`{name}`' for name in missing)}."]
    out = [*lines, "", f"![{sweep.name}]({figure})", ""]
    out += ["| the paper's direction | difference, 95 % interval | here |", "|---|---|---|"]
    titles = dict(sweep.scores)
    for claim in sweep.claims:
        if claim.better in by_arm and claim.worse in by_arm:
            name = claim.get("score") or sweep.scores[0][0]
            word, mean, error = verdict(by_arm[claim.better].scores[name], by_arm[claim.worse].scores[name])
            gap = f"{mean:+.3f} ± {error:.3f}" if math.isfinite(mean) else "–"
            by = f" ({titles[name]})" if claim.get("score") else ""
            out.append(f"| {claim.text}{by} | {gap} | {word} |")
    return "\n".join(out) + "\n"


def figure(sweep: Any, summaries: list[Summary]) -> str:
    """An SVG: a panel a score of `sweep.figure` (by default the first score), one below the other."""
    titles, panels, top, wide = dict(sweep.scores), [], 0, 0
    for name in sweep.get("figure", ()) or (sweep.scores[0][0],):
        if not any(s.scores[name] for s in summaries):
            continue
        drawn, width, height = _panel(sweep, summaries, name, titles[name])
        panels.append(f'<g transform="translate(0,{top})">{drawn}</g>')
        top, wide = top + height, max(wide, width)
    size = f'viewBox="0 0 {wide} {top}" width="{wide}" height="{top}"'
    style = "<style>text{font:12px system-ui,sans-serif;fill:#333}</style>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}{''.join(panels)}</svg>\n"


def _panel(sweep: Any, summaries: list[Summary], main: str, title: str) -> tuple[str, int, int]:
    """(drawing, width, height): one arm per row, every seed a dot and their mean a bar, the baseline's mean a dashed line."""
    rows = [s for s in summaries if s.scores[main]]
    values = [v for s in rows for v in s.scores[main].values()]
    at = ticks(min(values), max(values))
    low, high = at[0], at[-1]
    decimals = max(-math.floor(math.log10(at[1] - at[0]) + 1e-6), 0)
    left, width, line = 24 + 7 * max(len(s.title) for s in summaries), 520, 26
    bottom = line * len(rows) + 34

    def x(v: float) -> float:
        return left + width * (v - low) / (high - low)

    base = spread(next((s.scores[main] for s in rows if s.arm == sweep.arms[0].name), {}))[0]
    marks = "dots: seeds · bar: mean" + (" · dashed: mean of the first arm" if math.isfinite(base) else "")
    legend = f'<tspan dx="12" fill="#777" font-weight="normal">{marks}</tspan>'
    parts = [f'<text x="{left}" y="18" font-weight="bold">{html.escape(title)}{legend}</text>']
    for tick in at:
        parts.append(f'<path d="M{x(tick):.1f},28V{bottom}" stroke="#e4e4e0"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:.{decimals}f}</text>')
    if math.isfinite(base):
        parts.append(f'<path d="M{x(base):.1f},28V{bottom}" stroke="#2864c8" stroke-dasharray="4 3"/>')
    for i, s in enumerate(rows):
        y = 42 + i * line
        mean, _ = spread(s.scores[main])
        parts.append(f'<text x="{left - 14}" y="{y + 4}" text-anchor="end">{html.escape(s.title)}</text>')
        parts.append(f'<path d="M{x(mean):.1f},{y - 8}v16" stroke="#1c1c1c" stroke-width="2.5"/>')
        parts += [
            f'<circle cx="{x(v):.1f}" cy="{y}" r="4.5" fill="#d06414" fill-opacity="0.65"/>'
            for v in s.scores[main].values()
        ]
    return "".join(parts), left + width + 24, bottom + 26


def ticks(low: float, high: float) -> list[float]:
    """At least two round numbers, evenly spaced, the first at most `low` and the last at least `high`."""
    rough = max(high - low, 1e-3) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    spacing = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    first = math.floor(low / spacing)
    return [spacing * i for i in range(first, max(math.ceil(high / spacing), first + 1) + 1)]

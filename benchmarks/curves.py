"""Draws a run's curves side by side: python benchmarks/curves.py RUN OUT.svg loss cider"""

import html
import sys

from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.report import chart

WIDTH, HEIGHT = 420, 200


def main(run: str, out: str, *names: str) -> None:
    panels = []
    for i, name in enumerate(names):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in RunDir(run).rows():
            if name in row:
                lines.setdefault(row["split"], []).append((row["step"], row[name]))
        if not lines:
            raise SystemExit(f"{run} has no measurement {name!r}")
        title = f"{name} ({', '.join(lines)})"
        drawn = chart(lines, WIDTH, HEIGHT).replace(
            "<svg", f'<svg x="{i * WIDTH}" y="24" width="{WIDTH}" height="{HEIGHT}"', 1
        )
        panels.append(drawn)
        panels.append(f'<text x="{i * WIDTH + 46}" y="18" font-weight="bold">{html.escape(title)}</text>')
    width, height = WIDTH * len(names), HEIGHT + 24
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = "<style>text{font:12px sans-serif;fill:#444}</style>"
    ground = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    with open(out, "w") as f:
        f.write(f"{head}>{style}{ground}{''.join(panels)}</svg>\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

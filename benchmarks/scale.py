"""What the paper's models cost on TPU pods: python benchmarks/scale.py [--only NAME] [--report-only]

Every row is `simvlm plan`, compiled by TPU's own compiler on this machine; what has been compiled is kept in
benchmarks/scale.jsonl, so that an interrupted table goes on. Writes docs/scale.md and docs/scale.svg.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT, PAGE, FIGURE = ROOT / "benchmarks" / "scale.jsonl", ROOT / "docs" / "scale.md", ROOT / "docs" / "scale.svg"
BEGIN, END = "<!-- begin: made by benchmarks/scale.py -->", "<!-- end -->"
PAIR = "--config.mesh.tensor=2"  # 1,024 shards do not divide 512 documents

TABLE = [
    (f"configs/prefixlm.py:{size}", target, PAIR if target.startswith("v3") else "")
    for target in ("v3:16x32", "v5e:16x16", "v5p:8x8x8", "v6e:16x16")
    for size in ("base", "large", "huge")
]
PAIRS = [
    (config, target, "")
    for target in ("v4:8x16x16", "v5p:8x8x8", "v6e:16x16")
    for config in ("configs/clip.py:L/14", "configs/siglip.py:So400m/14", "configs/coca.py:2b")
]
ACCUMULATED = [("configs/clip.py:L/14", "v5e:4x4", f"--config.train.accumulate={n}") for n in (1, 4, 16, 64)]
WEAK = [
    (
        "configs/prefixlm.py:base",
        f"v5p:{shape}",
        f"--config.train.batch_size={16 * n} --config.data.parts.documents.rows={2 * n} --effort=low",
    )
    for shape, n in (("2x2x4", 16), ("4x4x4", 64), ("8x8x4", 256), ("8x8x16", 1024), ("16x16x16", 4096))
]


def command(config: str, target: str, more: str) -> list[str]:
    return ["plan", "--config", config, "--target", target, *more.split(), "--no-suggestion"]


def kept() -> dict[str, dict]:
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    return {row["command"]: row for row in rows}


def compile_rows(only: str) -> None:
    for row in [*TABLE, *WEAK, *PAIRS, *ACCUMULATED]:
        words = command(*row)
        name = "simvlm " + " ".join(words)
        if name in kept() or only not in name:
            continue
        call = f"import sys; from simvlm_jax.cli import main; sys.exit(main({[*words, '--json']!r}))"
        done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if not done.stdout.strip():
            raise SystemExit(f"{name} failed")
        with KEPT.open("a") as f:
            f.write(json.dumps({"command": name, **json.loads(done.stdout)}) + "\n")
        print(name, "done", flush=True)


def table(found: dict[str, dict], rows: list[tuple[str, str, str]]) -> list[str]:
    lines = [
        "| model | target | mesh (data x fsdp x tensor) | GiB a device | of | TFLOPs | traffic GB | links GB | step at best "
        "| bound by | compiled in |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for config, target, more in rows:
        r = found.get("simvlm " + " ".join(command(config, target, more)))
        if r is None:
            continue
        links = sum(c["received"] for c in r["collectives"] or ()) / 1e9
        lines.append(
            f"| {config.partition('configs/')[2]} | {target} | {' x '.join(str(n) for n in r['mesh'].values())} | "
            f"{r['bytes_per_device'] / 2**30:.2f}{'' if r['fits'] else ' **does not fit**'} | {r['hbm_bytes'] / 2**30:.0f} | "
            f"{r['flops_per_device'] / 1e12:.1f} | {(r['bytes_accessed_per_device'] or 0) / 1e9:.0f} | {links:.1f} | "
            f"{1e3 * (r['step_time_estimate_s'] or 0):.0f} ms | {r['bound_by']} | {r['compile_s']:.0f} s |"
        )
    commands = [c for row in rows if (c := "simvlm " + " ".join(command(*row))) in found]
    commands = [f"    {c}" for c in commands]
    return [*lines, "", "The commands:", "", *commands]


def weak_rows(found: dict[str, dict]) -> list[tuple[int, dict]]:
    rows = [found.get("simvlm " + " ".join(command(*row))) for row in WEAK]
    return [(math.prod(r["mesh"].values()), r) for r in rows if r]


def weak_table(found: dict[str, dict]) -> list[str]:
    lines = ["| chips | GiB a device | TFLOPs | traffic GB | links GB | compiled in |", "|---|---|---|---|---|---|"]
    for chips, r in weak_rows(found):
        links = sum(c["received"] for c in r["collectives"]) / 1e9
        lines.append(
            f"| {chips} | {r['bytes_per_device'] / 2**30:.2f} | {r['flops_per_device'] / 1e12:.2f} | "
            f"{r['bytes_accessed_per_device'] / 1e9:.0f} | {links:.2f} | {r['compile_s']:.0f} s |"
        )
    return lines


def accumulated_table(found: dict[str, dict]) -> list[str]:
    lines = [
        "| micro-batches | rows a chip at once | GiB a device | of | TFLOPs | compiled in |",
        "|---|---|---|---|---|---|",
    ]
    for row in ACCUMULATED:
        r = found.get("simvlm " + " ".join(command(*row)))
        if r:
            lines.append(
                f"| {r['accumulate']} | {32_768 // 16 // r['accumulate']:,} | {r['bytes_per_device'] / 2**30:.2f}"
                f"{'' if r['fits'] else ' **does not fit**'} | {r['hbm_bytes'] / 2**30:.0f} | {r['flops_per_device'] / 1e12:.0f} | "
                f"{r['compile_s']:.0f} s |"
            )
    return [*lines, "", "Such as:", "", f"    simvlm {' '.join(command(*ACCUMULATED[-1]))}"]


def figure(found: dict[str, dict]) -> str:
    """Four quantities of a device against the number of chips, each over its value at the smallest."""
    rows = weak_rows(found)
    of = {
        "memory": ("#2864c8", lambda r: r["bytes_per_device"]),
        "FLOPs": ("#1c1c1c", lambda r: r["flops_per_device"]),
        "memory traffic": ("#2a9054", lambda r: r["bytes_accessed_per_device"]),
        "received over links": ("#d06414", lambda r: sum(c["received"] for c in r["collectives"])),
    }
    left, top, width, height = 60, 50, 520, 240
    chips = [n for n, _ in rows]
    series = {name: [get(r) / get(rows[0][1]) for _, r in rows] for name, (_, get) in of.items()}
    high = max(1.5, *(v for values in series.values() for v in values)) * 1.05

    def x(n: float) -> float:
        return left + width * math.log(n / chips[0]) / math.log(chips[-1] / chips[0])

    def y(v: float) -> float:
        return top + height * (1 - v / high)

    parts = ['<text x="60" y="20" font-weight="bold">Weak scaling: base, 16 + 2 rows a chip, TPU v5p, fsdp 8</text>']
    parts.append('<text x="60" y="38" fill="#777">cost of a device as compiled, over that on 16 chips</text>')
    for i in range(int(high / 0.5) + 1):
        parts.append(f'<path d="M{left},{y(i / 2):.1f}h{width}" stroke="#e4e4e0"/>')
        parts.append(f'<text x="{left - 8}" y="{y(i / 2) + 4:.1f}" text-anchor="end">{i / 2:.1f}</text>')
    for n in chips:
        parts.append(f'<text x="{x(n):.1f}" y="{top + height + 18}" text-anchor="middle">{n:,}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">chips</text>')
    for i, (name, (colour, _)) in enumerate(of.items()):
        points = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in zip(chips, series[name], strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3.5" fill="{colour}"/>' for p in points.split()
        ]
        at = left + width + 16
        parts.append(f'<path d="M{at},{top + 10 + 20 * i}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{at + 24}" y="{top + 14 + 20 * i}">{name}</text>')
    size = f'viewBox="0 0 {left + width + 190} {top + height + 50}" width="{left + width + 190}" height="{top + height + 50}"'
    style = "<style>text{font:12px system-ui,sans-serif;fill:#333}</style>"
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{ground}{"".join(parts)}</svg>\n'


def write() -> None:
    found = kept()
    if len(weak_rows(found)) > 1:
        FIGURE.write_text(figure(found))
    made = [*table(found, TABLE), "", "## Weak scaling", "", "![weak scaling](scale.svg)", "", *weak_table(found)]
    made += ["", "## Contrastive models at their papers' batches", "", *table(found, PAIRS)]
    made += ["", "## A global batch of 32,768 on 16 chips, in micro-batches", "", *accumulated_table(found)]
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n\n" + "\n".join(made) + "\n\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="compile only rows whose command holds this")
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    if not args.report_only:
        compile_rows(args.only)
    write()

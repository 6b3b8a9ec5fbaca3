"""Memory of the contrastive core against the global batch, beside the dense loss: python benchmarks/contrastive.py

Loss and gradients of features that are there (width 768, fp32) are compiled by TPU's own compiler for v5p:8x8x8, 512 chips, at
global batches of 1k to 1M pairs, and what a chip holds is read off. "Dense" is the loss as it is mostly written: every chip
compares its own images with all texts, gathered, and keeps the logits for the backward pass. A second table keeps 1,024 pairs a
chip on 16 to 1,024 chips. Writes benchmarks/contrastive.md and contrastive.svg; compiled rows are kept in contrastive.jsonl.
"""

import argparse
import json
import math
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT, PAGE, FIGURE = (HERE / f"contrastive.{kind}" for kind in ("jsonl", "md", "svg"))
WIDTH, POD, A_CHIP = 768, "v5p:8x8x8", 1024
BATCHES = [2**n for n in range(10, 21)]
LOSSES = ("softmax", "sigmoid", "dense")
WEAK = {"v5p:2x2x4": 16, "v5p:4x4x4": 64, "v5p:8x8x4": 256, "v5p:8x8x16": 1024}
COLOURS = {"softmax": "#2864c8", "sigmoid": "#2a9054", "dense": "#d06414", "features": "#999"}


def loss_of(kind: str):
    import jax.numpy as jnp

    from simvlm_jax.core.sharding import constrain
    from simvlm_jax.objectives.contrastive import info_nce, sigmoid_pairs, softmax_pairs

    def loss(scale, images, texts):
        rows = len(images)
        if kind == "dense":
            gathered = constrain(texts, (None, None))
            logits = constrain(scale * images @ gathered.T, "BT")
            return info_nce(logits, jnp.eye(rows, dtype=images.dtype))[0] / rows
        weight = constrain(jnp.ones(rows, images.dtype), "B")
        sides = [{"features": x, "weight": weight} for x in (images, texts)]
        if kind == "softmax":
            return softmax_pairs({"scale": scale}, *sides).loss / rows
        return sigmoid_pairs({"scale": scale, "bias": -10.0 * jnp.ones(())}, *sides)[0] / rows

    return loss


def compile_row(kind: str, target: str, rows: int) -> dict:
    import jax
    import jax.numpy as jnp

    from simvlm_jax.core.platform import compiled_for
    from simvlm_jax.core.sharding import with_sharding
    from simvlm_jax.parallel.mesh import by_row, make_mesh, replicated, sharding_rules
    from simvlm_jax.parallel.targets import parse_target

    mesh = make_mesh(parse_target(target).devices())
    features = jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32, sharding=by_row(mesh))
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    began = time.perf_counter()
    with compiled_for("tpu"):
        gradient = jax.jit(
            with_sharding(sharding_rules(mesh), jax.value_and_grad(loss_of(kind), (0, 1, 2))),
            out_shardings=(replicated(mesh), (replicated(mesh), by_row(mesh), by_row(mesh))),
        )
        try:
            stats = gradient.lower(scale, features, features).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e) and "memory" not in str(e):
                raise
            return {"kind": kind, "target": target, "rows": rows, "error": str(e).partition("\n")[0][:200]}
    return {
        "kind": kind,
        "target": target,
        "rows": rows,
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "compile_s": round(time.perf_counter() - began, 1),
    }


def kept() -> dict[tuple, dict]:
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    return {(r["kind"], r["target"], r["rows"]): r for r in rows}


def make_rows() -> None:
    wanted = [(kind, POD, rows) for rows in BATCHES for kind in LOSSES]
    wanted += [(kind, target, A_CHIP * chips) for target, chips in WEAK.items() for kind in LOSSES]
    for row in wanted:
        if row not in kept():
            made = compile_row(*row)
            with KEPT.open("a") as f:
                f.write(json.dumps(made) + "\n")
            print(made, flush=True)


def mib(found: dict | None) -> str:
    if found is None:
        return ""
    return f"{found['temporaries'] / 2**20:,.1f}" if "temporaries" in found else "does not fit"


def table(rows: dict[tuple, dict], of: list[tuple[str, str, int]]) -> list[str]:
    lines = [
        "| pairs | pairs a chip | features and their gradients, MiB | softmax, ring | sigmoid, ring | dense |",
        "|---|---|---|---|---|---|",
    ]
    for _, target, pairs in of:
        found = [rows.get((kind, target, pairs)) for kind in LOSSES]
        chips = math.prod(int(n) for n in target.partition(":")[2].split("x"))
        own = 4 * WIDTH * 4 * pairs / chips / 2**20
        lines.append(f"| {pairs:,} | {pairs // chips:,} | {own:,.2f} | " + " | ".join(map(mib, found)) + " |")
    return lines


def figure(rows: dict[tuple, dict]) -> str:
    """Temporaries a chip against the global batch, both by powers of two: on one pod, and at as many pairs a chip."""
    pod = [(POD, n, 512) for n in BATCHES]
    weak = [(target, A_CHIP * chips, chips) for target, chips in WEAK.items()]
    left = panel(rows, pod, "on 512 chips", 0)
    right = panel(rows, weak, f"{A_CHIP:,} pairs a chip, 16 to 1,024 chips", 430)
    legend = "".join(
        f'<path d="M{70 + 110 * i},360h18" stroke="{colour}" stroke-width="2"/><text x="{94 + 110 * i}" y="364">{name}</text>'
        for i, (name, colour) in enumerate(COLOURS.items())
    )
    title = '<text x="70" y="20" font-weight="bold">What a chip needs beside its features (TPU v5p, as compiled)</text>'
    style = "<style>text{font:12px system-ui,sans-serif;fill:#333}</style>"
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 375" width="880" height="375">'
    return f"{head}{style}{ground}{title}{left}{right}{legend}</svg>\n"


def panel(rows: dict[tuple, dict], points: list[tuple[str, int, int]], title: str, shift: int) -> str:
    left, top, width, height, low, high = 70 + shift, 60, 340, 230, 13, 35
    first, last = points[0][1], points[-1][1]

    def x(n: float) -> float:
        return left + width * math.log2(n / first) / math.log2(last / first)

    def y(v: float) -> float:
        return top + height * (1 - (math.log2(v) - low) / (high - low))

    parts = [f'<text x="{left}" y="{top - 14}" fill="#777">{title}</text>']
    for e in range(low + 1, high + 1, 4):
        name = f"{2**e // 2**30} GiB" if e >= 30 else f"{2**e // 2**20} MiB" if e >= 20 else f"{2**e // 2**10} KiB"
        parts.append(f'<path d="M{left},{y(2**e):.1f}h{width}" stroke="#e4e4e0"/>')
        parts.append(f'<text x="{left - 8}" y="{y(2**e) + 4:.1f}" text-anchor="end">{name}</text>')
    for _, n, _ in points[:: max(len(points) // 5, 1)]:
        name = f"{n // 2**20}M" if n >= 2**20 else f"{n // 2**10}k"
        parts.append(f'<text x="{x(n):.1f}" y="{top + height + 18}" text-anchor="middle">{name}</text>')
    parts.append(
        f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">pairs in the global batch</text>'
    )
    for name, colour in COLOURS.items():
        if name == "features":
            line = [(n, 16 * WIDTH * n / chips) for _, n, chips in points]
        else:
            line = [
                (n, rows[name, target, n]["temporaries"])
                for target, n, _ in points
                if "temporaries" in rows[name, target, n]
            ]
        drawn = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in line)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return "".join(parts)


def write() -> None:
    rows = kept()
    FIGURE.write_text(figure(rows))
    text = [
        "# Memory of the contrastive core",
        "",
        "MiB of temporaries a chip while loss and gradients are made, by TPU's own compiler (`python benchmarks/contrastive.py`).",
        "Features and their gradients come with every loss; the ring adds two travelling copies and one tile of logits.",
        "",
        "![memory against the global batch](contrastive.svg)",
        "",
        f"On {POD}, 512 chips:",
        "",
        *table(rows, [("", POD, n) for n in BATCHES]),
        "",
        f"{A_CHIP:,} pairs a chip, on more and more chips:",
        "",
        *table(rows, [("", target, A_CHIP * chips) for target, chips in WEAK.items()]),
    ]
    PAGE.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report-only", action="store_true")
    if not parser.parse_args().report_only:
        import os

        from simvlm_jax.parallel.targets import parse_target

        os.environ.update(parse_target(POD).environment())
        make_rows()
    write()

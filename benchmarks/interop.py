"""The table of docs/interop.md: every family's small random models beside the reference implementation.

    python -m benchmarks.interop

imports, compares, trains a step, exports and imports again what tests/interop does, and writes the errors between the marks of the
page. It needs `.[parity]`.
"""

import functools
import importlib
import logging
import tempfile
from pathlib import Path

import numpy as np

from simvlm_jax.jobs.weights import export_run
from tests.interop import harness

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "interop.md"
START, END = "<!-- table: benchmarks/interop.py -->", "<!-- end -->"
MODULES = (
    "test_dual_encoders",
    "test_coca",
    "test_blip",
    "test_vision",
    "test_efficientnet",
    "test_bert",
    "test_t5",
    "test_decoders",
)


def row(module, name: str) -> str:
    """A line of the table."""
    case = module.case(name)
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        theirs, run, report = harness.imported(case, tmp)
        reference = harness.families()[case.family].reference[case.layout]
        exact = case.family != "mistral"  # whose masks are NaN in fp64
        errors = harness.outputs(case, theirs, run, case.layout, exact)
        loss = gradient = None
        learns = run.labels or not hasattr(run.model, "classes") or case.family == "coca"
        if case.loss and learns and getattr(run.model.sizes, "head", True):
            rows = reference.rows(run.model)
            rows |= {"seed": np.arange(len(rows["text"]), dtype=np.uint32)} if case.family == "bert" else {}
            loss, gradient = harness.gradients(case, theirs, run, tmp / "theirs", rows)
        formats = "/".join(f for f in harness.families()[case.family].write if exports(tmp, case.family, f))
        learned = "-" if loss is None else f"{loss:.1e} / {gradient:.1e}"
    parity = report["compared"]["weights"]
    directions, worst = f"in from {case.layout}, out as {formats}", f"{max(errors.values()):.1e}"
    return f"| `{case.family}` | {name} | {directions} | {', '.join(errors)} | {worst} | {learned} | {parity:g} |"


def exports(tmp: Path, family: str, format: str) -> bool:
    """Whether the run in a folder can be written so: a library has not all of what another has."""
    try:
        export_run(str(tmp / "run"), str(tmp / f"out_{format}"), family, format)
    except ValueError:
        return False
    return True


def main() -> None:
    """Writes the table."""
    logging.disable(logging.WARNING)
    head = "| `--family` | model | directions | compared | largest error | loss / gradient | weights |\n|---|---|---|---|---|---|---|"
    lines = [head]
    for name in MODULES:
        module = importlib.import_module(f"tests.interop.{name}")
        for line in map(functools.partial(row, module), module.MODELS):
            print(line, flush=True)
            lines.append(line)
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    PAGE.write_text(before + START + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()

"""`simvlm eval-diff A.json B.json`: which scores differ, and what they depend on that differs too."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import printable, read_json
from simvlm_jax.core.schema import check
from simvlm_jax.run.schema import Results


def main(argv: list[str]) -> int:
    """Compares two files of entries (results.json, or what `simvlm eval --out` wrote; a run directory means its own)."""
    parser = argparse.ArgumentParser(
        prog="simvlm eval-diff", description="Say what differs between two sets of scores."
    )
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="differences up to this are none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if not 0 <= args.tolerance < math.inf:
        parser.error(f"--tolerance {args.tolerance} must be 0 or more")

    a, b = read_entries(args.a), read_entries(args.b)
    if not set(a) & set(b):
        raise ValueError(
            f"{args.a} and {args.b} have no suite, split and control in common: {_names(a)} and {_names(b)}"
        )
    compared = [compare(key, a[key], b[key], args.tolerance) for key in a if key in b]
    alone = {"only_in_a": [k for k in a if k not in b], "only_in_b": [k for k in b if k not in a]}
    trained = trained_otherwise(args.a, args.b)
    if args.json:
        print(json.dumps({"compared": compared, "training": trained, **alone}))
    else:
        print("\n".join(printable(line) for one in compared for line in _lines(one)))
        if trained:
            print("the runs were trained otherwise:")
            print("\n".join(printable(f"  {field}: {a!r} -> {b!r}") for field, (a, b) in trained.items()))
        for name, keys in alone.items():
            if keys:
                print(printable(f"{name.replace('_', ' ')}: {', '.join(_name(*k) for k in keys)}"))
    return 0


Key = tuple[str, str, str | None]


def read_entries(path: str) -> dict[Key, dict[str, Any]]:
    """Entries by (suite, split, control).

    Raises:
      ValueError: the file holds no entries.
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    found = read_json(file)
    try:
        check(found, Results, "it")
    except ValueError as e:
        raise ValueError(
            f'{file} is no file of scores ({{"entries": [{{"suite", "split", "control", ...}}]}}): {e}'
        ) from e
    entries: dict[Key, dict[str, Any]] = {}
    for e in found["entries"]:
        key = (e["suite"], e["split"], e["control"])
        if key in entries:
            raise ValueError(f"{file} has {_name(*key)} more than once; remove all but one")
        entries[key] = e
    return entries


def trained_otherwise(a: str, b: str) -> dict[str, list[Any]]:
    """{field: [a, b]} of the configs of the two runs, as far as these are still there."""
    from simvlm_jax.run.directory import RunDir, flat

    configs = []
    for path in map(Path, (a, b)):
        folder = path if path.is_dir() else path.parent
        if not path.is_dir() and (of := read_json(path).get("run")):
            folder = Path(of)
        if not (folder / "config.json").is_file():
            return {}
        configs.append(flat(RunDir(folder).record()))
    x, y = configs
    names = [k for k in sorted({*x, *y}) if x.get(k) != y.get(k) and not k.startswith(("eval.", "log."))]
    return {k: [x.get(k), y.get(k)] for k in names}


def compare(key: Key, a: dict[str, Any], b: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """{suite, split, control, scores: {name: [a, b]} that differ, provenance: {field: [a, b]} that differ, errors, verdict}.

    errors: [a's, b's], None for the one that has scores; empty where both have.
    """
    from simvlm_jax.eval.provenance import differences

    x, y = a["scores"], b["scores"]
    names = [k for k in {**x, **y} if not _close(x.get(k), y.get(k), tolerance)]
    why = {field: [p, q] for field, p, q in differences(a.get("provenance", {}), b.get("provenance", {}))}
    errors = [e.get("error") for e in (a, b)]
    if any(errors):
        verdict = "both failed" if all(errors) else "one failed"
    elif not names:
        verdict = "the same scores" + (", though other things differ" if why else "")
    else:
        verdict = "explained by what differs" if why else "nothing recorded explains the difference"
    scores = {k: [x.get(k), y.get(k)] for k in names}
    return {
        "intervals": _paired(a, b),
        "suite": key[0],
        "split": key[1],
        "control": key[2],
        "scores": scores,
        "provenance": {} if any(errors) else why,
        "errors": errors if any(errors) else [],
        "verdict": verdict,
    }


def _paired(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[float]]:
    """{score: [low, high]} of b minus a, image by image, where both keep scores of the same images.

    Entries that do not say which picture a score is about are taken to have one each.
    """
    from simvlm_jax.eval.metrics.bootstrap import paired

    of = [e.get("provenance", {}).get("data", {}) for e in (a, b)]
    same = all(isinstance(d, dict) for d in of) and of[0].get("fingerprint") == of[1].get("fingerprint") is not None
    x, y = a.get("samples", {}), b.get("samples", {})
    pictures = a.get("pictures") or b.get("pictures") or []
    names = [k for k in x if same and k in y and len(x[k]) == len(y[k]) and len(pictures) in (0, len(x[k]))]
    found = {k: list(paired(x[k], y[k], of=pictures)) for k in names}
    return {k: pair for k, pair in found.items() if math.isfinite(pair[0])}


def _close(a: float | None, b: float | None, tolerance: float) -> bool:
    return a is not None and b is not None and math.isclose(a, b, rel_tol=0, abs_tol=tolerance)


def _lines(one: dict[str, Any]) -> list[str]:
    out = [f"{_name(one['suite'], one['split'], one['control'])}: {one['verdict']}"]
    for name, (a, b) in one["scores"].items():
        change = f"{b - a:+.4f}" if a is not None and b is not None else "only one has it"
        between = one["intervals"].get(name)
        sure = f" (95 % of draws of the images: {between[0]:+.4f} to {between[1]:+.4f})" if between else ""
        out.append(f"  {name:24} {_number(a):>10} -> {_number(b):>10}   {change}{sure}")
    out += [f"  {which} could not be run: {error}" for which, error in zip("ab", one["errors"], strict=False) if error]
    out += [f"  because {field}: {a!r} -> {b!r}" for field, (a, b) in one["provenance"].items()]
    return out


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _name(suite: str, split: str, control: str | None) -> str:
    return f"{suite} · {split}" + (f", {control}" if control else "")


def _names(entries: dict[Key, Any]) -> str:
    return "; ".join(_name(*k) for k in entries) or "nothing"

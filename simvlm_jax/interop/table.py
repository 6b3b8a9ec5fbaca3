"""Weights from one naming to another by a table, both ways.

A table has a row for each kind of array: what it is called there, what it is called here, and the transform between. `*` in a name
stands for a number, as of a layer, and means the same number on both sides. Every array of a source is used once or listed as
dropped, every parameter of the model is filled once, and all that is wrong is told at once.

Names here are paths of parameters with layers one by one ("decoder/layer_3/mlp/up"); of a model that scans its layers they are
stacked afterwards. State that is not trained has "extra/" before its path.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from simvlm_jax.interop.formats.tensors import Tensors
from simvlm_jax.interop.transforms import SAME, Transform

STATISTICS = "extra/statistics/"
_SHOWN = 12
"""Most problems of a kind that an error lists."""


class Row(NamedTuple):
    """theirs: a name, with `*` for numbers. ours: a path, or several where the transform makes several."""

    theirs: str
    ours: str | tuple[str, ...]
    transform: Transform = SAME

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


class Table(NamedTuple):
    """rows: of arrays that are taken over. dropped: {name with `*`: why nothing is lost with it}. same: {name: other name} of arrays
    that hold the same as another, as tied tables do. optional: beginnings of names that a source may have or leave out. own: {path,
    or the beginning of one that ends in "/": its value} of parameters that the other naming has no word for: they are not written,
    and have this value where they are read."""

    rows: tuple[Row, ...]
    dropped: Mapping[str, str] = {}
    same: Mapping[str, str] = {}
    optional: tuple[str, ...] = ()
    own: Mapping[str, float] = {}

    def of_its_own(self, path: str) -> float | None:
        """The value of a parameter that the other naming has no word for; None for the others."""
        return next((x for k, x in self.own.items() if path == k or (k.endswith("/") and path.startswith(k))), None)


class Mismatch(ValueError):
    """Weights that do not fit a table or a model; the message lists every name."""


class Taken(NamedTuple):
    """arrays: fp32 by path. dropped: {name: why} of what was left out."""

    arrays: dict[str, np.ndarray]
    dropped: dict[str, str]


def take(table: Table, source: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> Taken:
    """Weights of a source as parameters of `shapes`.

    source: arrays by name, read one by one. where: the source, for errors.

    Raises:
      Mismatch: arrays without a place, parameters without an array, shapes that differ, values that are not finite.
    """
    names = canonical(table, source)
    wrong: dict[str, list[str]] = {}
    found: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    dropped: dict[str, str] = {}

    def problem(kind: str, what: str) -> None:
        wrong.setdefault(kind, []).append(what)

    for name, key in names.items():
        if (twin := table.same.get(name)) is not None and twin in names:
            if not np.array_equal(np.asarray(source[key]), np.asarray(source[names[twin]])):
                problem("differ from the array that they must equal", f"{key} ({names[twin]})")
            dropped[key] = f"equals {names[twin]}"
            continue
        if (why := _reason(table, name)) is not None:
            dropped[key] = why
            continue
        placed = _placed(table, name)
        if placed is None:
            problem("have no place in this model", f"{key} {_shape(source, key)}")
            continue
        row, targets = placed
        array = np.asarray(source[key])
        if array.dtype.kind not in "fV" and array.dtype.name not in ("bfloat16",):
            problem("are no floating-point numbers", f"{key} ({array.dtype})")
            continue
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            problem("hold NaN or infinity", f"{key} ({int((~np.isfinite(array)).sum()):,} of {array.size:,} values)")
            continue
        try:
            made = row.transform.take(array)
        except (ValueError, IndexError) as e:
            problem("have another shape than the model's", f"{key} {list(array.shape)} ({e})")
            continue
        for target, part in zip(targets, made if isinstance(made, tuple) else (made,), strict=True):
            if target not in shapes:
                problem("have no place in this model", f"{key} -> {target}")
            elif target in found:
                problem("are there twice", f"{target}: {origin[target]} and {key}")
            elif part.shape != shapes[target]:
                problem(
                    "have another shape than the model's", f"{key} {list(array.shape)}, {target} {list(shapes[target])}"
                )
            else:
                found[target], origin[target] = np.asarray(part, order="C"), key
    for name, shape in shapes.items():
        if name not in found and (value := table.of_its_own(name)) is not None:
            found[name] = np.full(shape, value, np.float32)
    missing = [name for name in shapes if name not in found]
    if missing and not wrong.get("have another shape than the model's"):
        wrong["are missing"] = [f"{name} {list(shapes[name])}" for name in missing]
    if wrong:
        raise Mismatch(f"the weights of {where} do not fit:\n" + "\n".join(_told(k, v) for k, v in wrong.items()))
    return Taken(found, dropped)


def give(table: Table, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by path as weights of the other naming.

    Raises:
      Mismatch: a parameter that no row of the table names.
    """
    inverse = [(row, [_pattern(target) for target in row.targets]) for row in table.rows]
    out: dict[str, np.ndarray] = {}
    unplaced = []
    for name in arrays:
        for row, patterns in inverse:
            first = patterns[0].fullmatch(name)
            if first is not None:
                own = [_filled(target, first.groups()) for target in row.targets]
                theirs = _filled(row.theirs, first.groups())
                if all(target in arrays for target in own) and theirs not in out:
                    out[theirs] = np.asarray(row.transform.give(*(arrays[target] for target in own)), order="C")
                    break
            elif any(p.fullmatch(name) for p in patterns[1:]):
                break
        else:
            if table.of_its_own(name) is None:
                unplaced.append(f"{name} {list(arrays[name].shape)}")
    if unplaced:
        raise Mismatch("no name is known for:\n" + _told("of this run have none", unplaced))
    return out


def under(theirs: str, ours: str, rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows with a beginning before both of their names; of statistics in extra it comes after "extra/statistics/"."""

    def place(target: str) -> str:
        return STATISTICS + ours + target.removeprefix(STATISTICS) if target.startswith(STATISTICS) else ours + target

    return tuple(Row(theirs + r.theirs, tuple(map(place, r.targets)), r.transform) for r in rows)


def canonical(table: Table, source: Mapping[str, Any]) -> dict[str, str]:
    """{name in the table: name in the source} of every array; what a source leaves out of `optional` beginnings is put back."""
    keys = list(source)
    for beginning in table.optional:
        if not any(key.startswith(beginning) for key in keys):
            return {_with(table, beginning, key): key for key in keys}
    return {key: key for key in keys}


def _with(table: Table, beginning: str, key: str) -> str:
    """A name with a beginning before it, where the table knows it so and not otherwise."""
    known = _placed(table, key) or _reason(table, key) is not None or key in table.same
    return key if known else beginning + key


def _placed(table: Table, name: str) -> tuple[Row, list[str]] | None:
    for row in table.rows:
        if match := _pattern(row.theirs).fullmatch(name):
            return row, [_filled(target, match.groups()) for target in row.targets]
    return None


def _reason(table: Table, name: str) -> str | None:
    return next((why for pattern, why in table.dropped.items() if _pattern(pattern).fullmatch(name)), None)


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(map(re.escape, name.split("*"))))


def _filled(name: str, numbers: Iterable[str]) -> str:
    """A name with numbers in the place of its stars."""
    parts, numbers = name.split("*"), list(numbers)
    return parts[0] + "".join(n + part for n, part in zip(numbers, parts[1:], strict=True))


def _shape(source: Mapping[str, Any], key: str) -> str:
    if isinstance(source, Tensors):
        return str(list(source.shape(key)))
    return str(list(np.shape(source[key])))


def _told(kind: str, names: list[str]) -> str:
    more = f"\n    and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"  {len(names)} {kind}:\n    " + "\n    ".join(names[:_SHOWN]) + more


# ---- layers --------------------------------------------------------------------------------------------------------


def stacked(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Parameters whose layers stand one by one as a model has them whose `shapes` may be of scanned layers."""
    out = {}
    for name, shape in shapes.items():
        if name in arrays:
            out[name] = arrays[name]
        else:
            layers = [arrays[name.replace("/layers/", f"/layer_{i}/", 1)] for i in range(shape[0])]
            out[name] = np.stack(layers)
    return out


def unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `stacked`: scanned layers one by one."""
    out = {}
    for name, array in arrays.items():
        if "/layers/" in name:
            out |= {name.replace("/layers/", f"/layer_{i}/", 1): x for i, x in enumerate(array)}
        else:
            out[name] = array
    return out

"""What a compiled program moves: its collectives and its memory traffic, read from its text, loops as often as they run."""

import dataclasses
import math
import re
from collections.abc import Iterator

_WIDTH = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_FREE = {  # names for what is already there
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id", "replica-id",
    "opt-barrier",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind as XLA names it; bytes of the whole array a device takes part in; group: devices that take part; times per step."""

    kind: str
    bytes: float
    group: int
    times: float

    @property
    def received(self) -> float:
        """Bytes into one device per step, by the best algorithm on a ring."""
        passes = 2 if self.kind == "all-reduce" else 1
        share = 1 if self.kind == "collective-permute" else (self.group - 1) / max(self.group, 1)
        return passes * share * self.bytes * self.times


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str

    def called(self, what: str) -> str:
        found = re.search(rf"\b{what}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


class Program:
    """The text of a compiled program (`compiled.as_text()`) of `devices` devices."""

    def __init__(self, text: str, devices: int):
        self._devices = devices
        self._computations: dict[str, dict[str, _Instruction]] = {}
        self._entry, here = "", None
        for line in text.splitlines():
            if line[:1] in ("%", "E") and line.endswith("{"):
                name = re.search(r"%?([\w.\-]+) ", line.removeprefix("ENTRY "))
                here = self._computations.setdefault(name[1], {}) if name else None
                if line.startswith("ENTRY") and name:
                    self._entry = name[1]
            elif here is not None and line.startswith("  ") and (found := _parse(line)):
                here[found.name] = found

    def collectives(self) -> list[Collective]:
        """Every collective once, with how often it runs."""
        found, seen = [], set()
        for inside, i, times in self._walk(self._entry, 1.0):
            kind = i.op.removesuffix("-start")
            if kind not in _COLLECTIVES:
                continue
            channel = re.search(r"channel_id=(\d+)", i.rest)
            if channel and kind != "collective-permute":  # those of a ring share one
                if channel[1] in seen:  # asynchronous ones are written down in each of their parts
                    continue
                seen.add(channel[1])
            if "all-reduce-scatter" in inside:  # TPU's name for a reduce-scatter
                kind = "reduce-scatter"
            whole = _total(_result(i))
            group = self._group(i.rest)
            if kind == "reduce-scatter" and i.op.startswith("reduce-scatter"):
                whole *= group
            if group > 1:
                found.append(Collective(kind, whole, group, times))
        return found

    def traffic(self) -> float:
        """Bytes a device reads from and writes to its main memory in one run, fused operations taken as one."""
        return self._traffic(self._entry)

    def _traffic(self, computation: str) -> float:
        total, here = 0.0, self._computations.get(computation, {})
        for i in here.values():
            if i.op == "while":
                total += self._trips(i) * self._traffic(i.called("body"))
            elif i.op in ("call", "async-start"):
                total += self._traffic(i.called("to_apply") or i.called("calls"))
            elif i.op == "conditional":
                total += max((self._traffic(b) for b in self._branches(i)), default=0.0)
            elif i.op == "dynamic-slice":
                total += 2 * _main(i.type)
            elif i.op == "dynamic-update-slice":
                total += 2 * _main(here[i.operands[1]].type) if i.operands[1] in here else 0.0
            elif i.op.endswith("-start"):  # counted once: it comes to main memory, or goes from there to scratch memory
                total += _total(_result(i))
            elif i.op not in _FREE and not i.op.endswith(("-done", "-update")):
                read, written = self._fused(i.called("calls")) if i.op == "fusion" else ({}, None)
                types = [here[o].type if o in here else "" for o in i.operands]
                total += sum(min(read.get(n, math.inf), _main(t)) for n, t in enumerate(types))
                total += _main(i.type) if written is None else min(written, _main(i.type))
        return total

    def _fused(self, computation: str) -> tuple[dict[int, float], float | None]:
        """What a fusion reads of the operands that it only takes slices of, and writes where it only updates a slice."""
        here = self._computations.get(computation, {})
        read: dict[int, float] = {}
        last = next(reversed(here.values()), None)
        updated = last.operands[0] if last and last.op == "dynamic-update-slice" else None
        for p in here.values():
            if p.op != "parameter":
                continue
            users = [i for i in here.values() if p.name in i.operands]
            number = int(re.sub(r"\D", "", p.rest.partition(")")[0]) or 0)
            if users and all(u.op == "dynamic-slice" for u in users):
                read[number] = sum(_total(u.type) for u in users)
            elif p.name == updated and len(users) == 1:
                read[number] = 0.0
        written = _total(here[last.operands[1]].type) if last and updated and last.operands[1] in here else None
        return read, written

    def _walk(self, computation: str, times: float) -> Iterator[tuple[str, _Instruction, float]]:
        for i in self._computations.get(computation, {}).values():
            yield computation, i, times
            if i.op == "while":
                yield from self._walk(i.called("body"), times * self._trips(i))
            elif i.op == "conditional":
                for branch in self._branches(i):
                    yield from self._walk(branch, times)
            elif i.op in ("fusion", "call", "async-start") or i.called("called_computations"):
                yield from self._walk(
                    i.called("calls") or i.called("to_apply") or i.called("called_computations"), times
                )

    def _branches(self, i: _Instruction) -> list[str]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
        names = listed[1].split(",") if listed else [i.called("true_computation"), i.called("false_computation")]
        return [n.strip().lstrip("%") for n in names if n.strip()]

    def _trips(self, i: _Instruction) -> float:
        """How often a loop runs: XLA's own word, or the bound in its condition; once where neither is known."""
        if known := re.search(r"known_trip_count\D*(\d+)", i.rest):
            return float(known[1])
        condition = self._computations.get(i.called("condition"), {}).values()
        bounds = [
            int(c.rest.partition(")")[0]) for c in condition if c.op == "constant" and re.match(r"s\d+\[\]", c.type)
        ]
        return float(max(bounds, default=1))

    def _group(self, rest: str) -> int:
        """Devices in one group of a collective."""
        if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
            return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", mesh[2]))
        if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
            return int(iota[1])
        if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
            return len(listed[1].split(","))
        return self._devices


def _result(i: _Instruction) -> str:
    """The type of what an operation leaves: of an asynchronous one, which speaks of its operands too, the results alone."""
    if not i.op.endswith("-start") or not i.type.startswith("("):
        return i.type
    parts = _elements(i.type)
    if i.op == "all-reduce-start":
        return i.type
    second = parts[1] if len(parts) > 1 else i.type
    return parts[0] if i.op == "copy-start" else second


def _elements(kind: str) -> list[str]:
    """The elements of a tuple type."""
    parts, depth, begun = [], 0, 1
    for n, c in enumerate(kind):
        depth += (c in "([{") - (c in ")]}")
        if (c == "," and depth == 1) or depth == 0:
            parts.append(kind[begun:n].strip())
            begun = n + 1
    return [p for p in parts if p]


def _parse(line: str) -> _Instruction | None:
    head, mark, text = line.strip().removeprefix("ROOT ").partition(" = ")
    if not mark:
        return None
    end = _closing(text) + 1 if text.startswith("(") else text.find(" ")
    kind, rest = text[:end], text[end:].lstrip()
    op, _, rest = rest.partition("(")
    operands = re.findall(r"%([\w.\-]+)", rest[: _closing("(" + rest)])
    return _Instruction(head.lstrip("%"), kind, op, tuple(operands), rest)


def _closing(text: str) -> int:
    """Where the first bracket closes."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return i
    return len(text)


def _bytes(array: re.Match) -> float:
    size = math.prod(int(n) for n in array[2].split(",") if n)
    digits = re.sub(r"\D.*", "", array[1].lstrip("abcdefghijklmnopqrstuvwxyz"))
    return size * _WIDTH.get(array[1], int(digits or 0) / 8)


def _total(kind: str) -> float:
    return sum(_bytes(a) for a in _ARRAY.finditer(kind))


def _main(kind: str) -> float:
    """Bytes of an array or tuple in main memory: S(n) is a scratch memory on the chip."""
    return sum(_bytes(a) for a in _ARRAY.finditer(kind) if "S(" not in (a[3] or ""))

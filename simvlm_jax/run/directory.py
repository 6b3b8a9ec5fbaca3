"""What a run leaves on disk: config, metrics, results, quarantine. Files are replaced whole or appended line by line."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from simvlm_jax.core.files import (
    MOST_BYTES,
    MOST_RECORD,
    BadFile,
    followed,
    open_own,
    parse_json,
    read_json,
    read_text,
    write_whole,
)
from simvlm_jax.core.letters import Letterbook
from simvlm_jax.core.schema import check
from simvlm_jax.core.trust import check_targets
from simvlm_jax.run import schema
from simvlm_jax.run.upgrade import upgraded

MAY_CHANGE = (
    *("train.steps", "data.quarantine", "data.threads", "mesh.", "hosts.", "eval.", "log."),
    *("checkpoint.every", "checkpoint.latest", "checkpoint.keep_every"),
)
"""Fields of a config that may differ when a run is continued."""


OWN = re.compile(
    r"(config|environment|labels|letters|parity|results)\.json|(metrics|quarantine)(-\d+)?\.jsonl|results-\d+\.json|report\.html"
    r"|running\.lock|events\.out\.tfevents.*"
)
"""Names of the files that a run directory is made of."""
PARITY = "parity.json"
"""What was compared when weights were imported; a run that has it was not trained here."""
OWN_FOLDERS = ("checkpoints", "tokenizer", "hosts")
MOST_LINE = 2**20
"""Characters of a row of metrics."""


class RunDir:
    """A run directory: `config.json`, `metrics.jsonl`, `results.json`, `quarantine.jsonl`, `checkpoints/`, `tokenizer/`."""

    def __init__(self, path: str | Path, process: int = 0):
        """process: of several that share a run; those other than 0 read it and write nothing but their own quarantine."""
        if "://" in str(path):
            raise ValueError(
                f"run directory {str(path)!r} is not a folder; mount the bucket (gcsfuse) and name its folder"
            )
        self.path, self.process = Path(path).expanduser(), process
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self.report = self.path / "report.html"

    @property
    def begun(self) -> bool:
        """Whether there is anything to continue: a row of metrics, a checkpoint, or weights that were imported."""
        metrics = self.path / "metrics.jsonl"
        return (metrics.exists() and metrics.stat().st_size > 0) or self.newest_step() > 0 or self.imported

    @property
    def imported(self) -> bool:
        """Whether its weights were imported, so that there is nothing to train on from."""
        return (self.path / PARITY).exists()

    def newest_step(self) -> int:
        """The step of the newest checkpoint, 0 without any."""
        steps = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return max((int(p.name) for p in steps if p.name.isdigit() and p.name.isascii()), default=0)

    def set_aside(self) -> str:
        """Where no checkpoint is left, keeps the metrics and results of the run under other names; what to say of it, else ""."""
        if self.process or self.newest_step():
            return ""
        metrics, results, rows = self.path / "metrics.jsonl", self.path / "results.json", self.rows()
        left = [*([metrics] if rows else []), *([results] if results.exists() else [])]
        if not left:
            return ""
        came = rows[-1]["step"] if rows else self.results().get("trained") or 0
        number = 1
        while any(_aside(p, number).exists() for p in left):
            number += 1
        for p in left:
            p.replace(_aside(p, number))
        kept = " and ".join(str(_aside(p, number)) for p in left)
        return f"no checkpoint is left of a run that came to step {came}: it begins anew; what it has measured is kept in {kept}"

    def check(self, config: ConfigDict, variant: str) -> None:
        """Compares a config with that of the run that has begun here, if one has.

        A field that the record lacks is younger than the run and no change; a further object in a list is one.

        Raises:
          ValueError: a field other than MAY_CHANGE differs; the message names the fields and their values.
        """
        if not self.begun:
            return
        a, b = flat(self.record()), flat(recorded(config, variant))
        for one, other in ((a, b), (b, a)):  # None, it has no fields that could differ
            if one.get("text", "") is None:
                other.setdefault("text", "a tokenizer")
        known = {k for k in {*a, *b} if k in a or k.endswith(".target")}
        changed = [k for k in sorted(known) if a.get(k) != b.get(k) and not k.startswith(MAY_CHANGE)]
        if changed:
            lines = "\n".join(f"  {k}: {a.get(k)!r} in the run, {b.get(k)!r} now" for k in changed)
            raise ValueError(f"{self.path} holds a run with another config; use another --workdir, or mend\n{lines}")

    def start(self, config: ConfigDict, variant: str) -> None:
        """Records the config of a run that begins or goes on. What an attempt left that never began goes."""
        if self.process:
            return
        if not self.begun:
            if self.tokenizer.is_symlink():  # what it leads to is not the run's
                self.tokenizer.unlink()
            shutil.rmtree(self.tokenizer, ignore_errors=True)
            (self.path / "labels.json").unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self._write("config.json", json.dumps(recorded(config, variant), indent=1))
        self._write("environment.json", json.dumps(environment(), indent=1))

    def moved(self) -> list[str]:
        """How this machine and its software differ from those the run was last trained on: results may differ in bits."""
        path = self.path / "environment.json"
        before, now = self._read(path.name, schema.Environment) if path.exists() else {}, environment()
        return [f"{k}: {before[k]} before, {now[k]} now" for k in now if k in before and before[k] != now[k]]

    def record(self) -> dict[str, Any]:
        """The recorded config, in the words of today (run/upgrade.py), to compare and to show; what is built comes from `config`.

        Raises:
          FileNotFoundError: the folder is not a run directory.
          BadValue: what it holds is no config.
        """
        if not (self.path / "config.json").is_file():
            raise FileNotFoundError(f"{self.path} is not a run directory (it has no config.json)")
        found = read_json(self.path / "config.json", most=MOST_RECORD)
        found = upgraded(found) if isinstance(found, dict) else found
        check(found, schema.Config, f"{self.path / 'config.json'}: config")
        return found

    def config(self) -> dict[str, Any]:
        """The recorded config, in which nothing is named that a file may not have built (core/trust.py).

        Raises:
          NotAllowed: a constructor that files may not name. FileNotFoundError, BadValue: as `record`.
        """
        found = self.record()
        check_targets(found, str(self.path / "config.json"))
        if "target" not in found["model"]:
            raise BadFile(f"{self.path / 'config.json'}: config.model names no class (it has no target)")
        return found

    def _read(self, name: str, kind: Any, most: int = MOST_RECORD) -> Any:
        """A JSON file of the run, checked against its type."""
        value = read_json(self.path / name, most=most)
        check(value, kind, f"{self.path / name}: it")
        return value

    def _write(self, name: str, text: str) -> None:
        """Writes a file of the run whole, in the place of what stands there."""
        write_whole(self.path / name, text, own=True)

    def labels(self) -> tuple[str, ...]:
        """The answers the run classifies into; () if it does not."""
        path = self.path / "labels.json"
        return tuple(self._read(path.name, schema.Answers)) if path.exists() else ()

    def write_labels(self, labels: tuple[str, ...]) -> None:
        """Records the answer list, which travels with the weights of the head."""
        if labels and not self.process:
            self._write("labels.json", json.dumps(labels, ensure_ascii=False, indent=1))

    def letters(self) -> dict[str, tuple[str | None, ...]]:
        """The letters of the axes of every parameter; {} of a run that is older than their record."""
        path = self.path / "letters.json"
        return {k: tuple(v) for k, v in self._read(path.name, schema.Letters).items()} if path.exists() else {}

    def write_letters(self, letters: Letterbook) -> None:
        """Records them, so that the weights can be put on any mesh without knowing the model."""
        if not self.process:
            self._write("letters.json", json.dumps(letters, indent=0))

    def results(self) -> dict[str, Any]:
        """The recorded results, `{"entries": []}` when there are none yet."""
        path = self.path / "results.json"
        if not path.exists():
            return {"entries": []}
        return self._read(path.name, schema.Results, MOST_BYTES)  # with scores of single images

    def write_results(self, step: int, trained: int | None, entries: list[dict[str, Any]]) -> None:
        """Records the scores of the weights of `step`; `trained` is the last step the run has done, None until all is written."""
        record = {"step": step, "trained": trained, "entries": entries}
        if not self.process:
            self._write("results.json", json.dumps(record, indent=1))

    def quarantine(self, row: dict[str, Any]) -> None:
        """Records a bad example, once however often the run is resumed."""
        own = f"quarantine-{self.process}.jsonl" if self.process else "quarantine.jsonl"
        path, line = self.path / own, json.dumps(row)
        if not path.exists() or line not in read_text(path).splitlines():
            with open_own(path, "a") as f:
                f.write(line + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return list(map(json.loads, whole_rows(path))) if path.exists() else []


class Metrics:
    """`metrics.jsonl` and TensorBoard events; rows are `{"step", "split", name: number}`.

    Raises:
      OSError: from any method; the disk is full, for instance.
    """

    def __init__(self, run: RunDir, resume_step: int):
        """Drops the rows after `resume_step`, also a last line cut short by a crash."""
        self._file: Any = None
        if run.process:
            return
        from tensorboardX import SummaryWriter

        self._path = run.path / "metrics.jsonl"
        lines = whole_rows(self._path) if self._path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= resume_step]
        with self._written():
            write_whole(self._path, "".join(line + "\n" for line in kept), own=True)
            self._file = open_own(self._path, "a")
            self._events = SummaryWriter(str(run.path), purge_step=resume_step + 1)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise OSError(
                f"metrics could not be written to {self._path} ({e.strerror or e}); mend that, and the same command continues "
                "from the newest checkpoint"
            ) from e

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        if self._file is None:
            return
        values = {k: v for k, v in values.items() if math.isfinite(v)}  # a slice without a claim has no score
        with self._written():
            self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._events.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """Puts all rows on the disk; a checkpoint may be written after this."""
        if self._file is None:
            return
        with self._written():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes; a second time it does nothing."""
        if self._file is None:
            return
        try:
            self.flush()
        finally:
            file, self._file = self._file, None
            with self._written():
                file.close()
                self._events.close()


def not_of_a_run(path: str | Path) -> None:
    """Refuses a place for results where a file of a run directory is, or would be.

    Raises:
      ValueError: it is one.
    """
    path = followed(path)
    path = Path(os.path.realpath(path.parent)) / path.name
    inside = next((p.parent for p in path.parents if p.name in OWN_FOLDERS and is_run(p.parent)), None)
    if inside or (OWN.fullmatch(path.name) and is_run(path.parent)):
        raise ValueError(f"{path} is a file of the run {inside or path.parent} itself; name another place to write to")


def is_run(folder: Path) -> bool:
    """Whether a folder looks like a run: config.json beside a folder of its tokenizer or its checkpoints."""
    return (folder / "config.json").is_file() and any((folder / name).is_dir() for name in ("tokenizer", "checkpoints"))


def environment() -> dict[str, str]:
    """What the bits of a result depend on beside the config."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow", "sentencepiece")
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "cpu": names[0] if names else platform.processor(),
        "python": platform.python_version(),
        **{p: importlib.metadata.version(p) for p in packages},
    }


def recorded(config: ConfigDict, variant: str = "") -> dict[str, Any]:
    """A config as config.json keeps it."""
    return {"variant": variant, **plain(config)}


def plain(config: ConfigDict) -> dict[str, Any]:
    """The values of a config, or of a section of it, as JSON has them."""
    return json.loads(config.to_json_best_effort())


def _aside(path: Path, number: int) -> Path:
    """Where a file of a run that begins anew is kept: metrics-1.jsonl."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def whole_rows(path: Path) -> list[str]:
    """The lines of a metrics.jsonl, but for a last one that a crash has cut short.

    Raises:
      BadFile, BadValue: another line is no row of metrics; the message has its number.
    """
    lines = read_text(path).split("\n")
    kept = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if len(line) > MOST_LINE:
            raise BadFile(f"{path}, line {number} has {len(line):,} characters, more than the limit of {MOST_LINE:,}")
        try:
            row = parse_json(line, f"{path}, line {number}")
        except BadFile:
            if number == len(lines):
                continue
            raise
        check(row, schema.Row, f"{path}, line {number}: it")
        check({k: v for k, v in row.items() if k != "split"}, dict[str, float], f"{path}, line {number}: it")
        kept.append(line)
    return kept


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"name.of.field": value} of nested records, those in lists by their number."""
    if isinstance(tree, list) and any(isinstance(v, dict) for v in tree):
        tree = {str(i): v for i, v in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    out: dict[str, Any] = {}
    for k, v in tree.items():
        out.update(flat(v, f"{prefix}{k}."))
    return out

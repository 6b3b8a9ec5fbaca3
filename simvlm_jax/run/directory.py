"""What a run leaves on disk: config, metrics, results, quarantine. Files are replaced whole or appended line by line."""

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

MAY_CHANGE = ("train.steps", "eval.", "log.")
"""Fields of a config that may differ when a run is continued."""


class RunDir:
    """A run directory: `config.json`, `metrics.jsonl`, `results.json`, `quarantine.jsonl`, `checkpoints/`, `tokenizer/`."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self.report = self.path / "report.html"

    def start(self, config: ConfigDict, variant: str) -> None:
        """Records the config, or checks it against the one recorded.

        Raises:
          ValueError: a field other than MAY_CHANGE differs; the message names the fields and their values.
        """
        new = {"variant": variant, **json.loads(config.to_json_best_effort())}
        recorded = self.path / "config.json"
        if recorded.exists():
            old = self.config()
            a, b = _flat(old), _flat(new)
            changed = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k) and not k.startswith(MAY_CHANGE)]
            if changed:
                lines = "\n".join(f"  {k}: {a.get(k)!r} in the run, {b.get(k)!r} now" for k in changed)
                raise ValueError(
                    f"{self.path} holds a run with another config; use another --workdir, or mend\n{lines}"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(recorded, json.dumps(new, indent=1))

    def config(self) -> dict[str, Any]:
        """The recorded config.

        Raises:
          FileNotFoundError: the folder is not a run directory.
        """
        recorded = self.path / "config.json"
        if not recorded.is_file():
            raise FileNotFoundError(f"{self.path} is not a run directory (it has no config.json)")
        return json.loads(recorded.read_text())

    def results(self) -> dict[str, Any]:
        """The recorded results, `{"entries": []}` when there are none yet."""
        path = self.path / "results.json"
        return json.loads(path.read_text()) if path.exists() else {"entries": []}

    def write_results(self, step: int, entries: list[dict[str, Any]]) -> None:
        write_whole(self.path / "results.json", json.dumps({"step": step, "entries": entries}, indent=1))

    def quarantine(self, row: dict[str, Any]) -> None:
        """Records a bad example, once however often the run is resumed."""
        path, line = self.path / "quarantine.jsonl", json.dumps(row)
        if not path.exists() or line not in path.read_text().splitlines():
            with path.open("a") as f:
                f.write(line + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Metrics:
    """`metrics.jsonl` and TensorBoard events; rows are `{"step", "split", name: number}`."""

    def __init__(self, run: RunDir, resume_step: int):
        """Drops the rows after `resume_step`, also a last line cut short by a crash."""
        from tensorboardX import SummaryWriter

        self._path = run.path / "metrics.jsonl"
        kept = []
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["step"] <= resume_step:
                kept.append(line)
        write_whole(self._path, "".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        self._events = SummaryWriter(str(run.path), purge_step=resume_step + 1)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """Puts all rows on the disk; a checkpoint may be written after this."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        self.flush()
        self._file.close()
        self._events.close()


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader sees all of it or the old one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    with partial.open("r+b") as f:
        os.fsync(f.fileno())
    partial.replace(path)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    out: dict[str, Any] = {}
    for k, v in tree.items():
        out.update(_flat(v, f"{prefix}{k}."))
    return out

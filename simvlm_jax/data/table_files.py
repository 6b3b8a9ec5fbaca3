"""Files of tables, read by their suffix: JSONL here, CSV and TSV in delimited.py, Parquet in parquet.py."""

from collections import Counter
from pathlib import Path

from simvlm_jax.core.files import BadFile, parse_json, read_text
from simvlm_jax.data.delimited import read_delimited
from simvlm_jax.data.parquet import read_parquet
from simvlm_jax.data.tables import Table, tidy


def parse_columns(columns: str) -> dict[str, str]:
    """{name here: name in the table} of "image=filepath,caption=title".

    Raises:
      ValueError: it is spelt otherwise.
    """
    found = {}
    for pair in filter(None, columns.split(",")):
        ours, mark, theirs = (part.strip().lower() for part in pair.partition("="))
        if not (mark and ours and theirs) or ours in found:
            raise ValueError(f'columns {columns!r} is not "image=filepath,caption=title" or the like')
        found[ours] = theirs
    return found


def read_table(path: Path, columns: str = "") -> Table:
    """Reads a JSONL, CSV, TSV or Parquet file.

    columns: as `parse_columns`; those columns get the names they have here, and columns that had these names are dropped.

    Raises:
      ValueError: what is not such a file, or has a column twice or lacks one that is named, with the line where there is one.
    """
    kind = path.suffix.lower()
    renamed = {theirs: ours for ours, theirs in parse_columns(columns).items()}
    read = {".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": read_parquet}.get(kind, read_delimited)
    table = read(path, renamed)
    replaced = set(renamed.values())
    if "caption" in replaced:
        replaced.add("captions")  # which is looked at first
    names: dict[str, str] = {}
    for name in table.columns:
        own = tidy(name)
        if own in renamed or own not in replaced:
            names[name] = renamed.get(own, own)
    there = [*table.columns, *([table.pictures.column] if table.pictures else [])]
    if lacking := [t for t in renamed if t not in set(map(tidy, there))]:
        raise ValueError(f"table {str(path)!r} has no column {lacking[0]!r}; it has {', '.join(there)}")
    if twice := [n for n, k in Counter(names[c] for c in table.columns if c in names).items() if k > 1]:
        raise ValueError(f"table {str(path)!r} has the column {twice[0]!r} more than once; rename or remove one")
    rows = [
        (line, {names[k]: v for k, v in row.items() if k in names} if isinstance(row, dict) else row)
        for line, row in table.rows
    ]
    return Table(path, rows, list(names.values()), table.pictures)


def _jsonl(path: Path, _: dict[str, str]) -> Table:
    table = Table(path, [])
    columns: dict[str, None] = {}
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = parse_json(text, f"table {str(path)!r}, line {line}:", unique=True)
        except BadFile as e:
            table.rows.append((line, ValueError(str(e).replace(": is not JSON", ": not JSON"))))
            continue
        if not isinstance(row, dict):
            table.rows.append((line, table.error(line, f"must be an object, not {row!r:.100}")))
            continue
        columns.update(dict.fromkeys(row))
        table.rows.append((line, row))
    return Table(path, table.rows, list(columns))

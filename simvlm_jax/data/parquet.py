"""Parquet: rows of text within bounds, pictures in a column, and names of classes as Hugging Face's data sets have them."""

import threading
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import MOST_BYTES, MOST_TABLE, BadFile, open_regular, parse_json
from simvlm_jax.data.tables import BYTES_COLUMNS, IMAGE_COLUMNS, Table, tidy


def read_parquet(path: Path, renamed: dict[str, str]) -> Table:
    import pyarrow
    import pyarrow.parquet

    open_regular(path, 2**50).close()  # an error where it is a pipe, which would be waited for
    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        schema = file.schema_arrow
        held = [
            name
            for name in schema.names
            if (pyarrow.types.is_struct(t := schema.field(name).type) and t.get_field_index("bytes") >= 0)
            or (
                (pyarrow.types.is_binary(t) or pyarrow.types.is_large_binary(t))
                and renamed.get(tidy(name), tidy(name)) in (*IMAGE_COLUMNS, *BYTES_COLUMNS)
            )
        ]
        plain = [name for name in schema.names if name not in held]
        size = sum(
            file.metadata.row_group(g).column(c).total_uncompressed_size
            for g in range(file.metadata.num_row_groups)
            for c in range(file.metadata.num_columns)
            if file.metadata.row_group(g).column(c).path_in_schema.partition(".")[0] in plain
        )
        if file.metadata.num_rows > max(path.stat().st_size, 1_000_000):
            raise BadFile(
                f"table {str(path)!r} claims {file.metadata.num_rows:,} rows in {path.stat().st_size:,} bytes"
            )
        if size > MOST_TABLE:
            raise _too_much(path, size, MOST_TABLE)
        rows = _plain_rows(path, plain, schema) if plain else [{} for _ in range(file.metadata.num_rows)]
    except (pyarrow.lib.ArrowException, OSError, ValueError) as e:
        if isinstance(e, BadFile) or (isinstance(e, OSError) and not path.is_file()):
            raise
        raise ValueError(
            f"table {str(path)!r} is not Parquet, or is damaged: {str(e).partition(chr(10))[0]:.200}"
        ) from e
    column = _of_pictures(path, held, plain, renamed)
    table = Table(path, [], plain, Embedded(path, column) if column else None)
    classes = {c: names for c, names in _classes(schema.metadata).items() if c in plain}
    table.rows.extend((line, _with_classes(table, line, row, classes)) for line, row in enumerate(rows, 1))
    return table


def _too_much(path: Path, size: int, most: int) -> BadFile:
    return BadFile(f"table {str(path)!r} unpacks to {size:,} bytes of text, more than the limit of {most:,}")


def _plain_rows(path: Path, plain: list[str], schema: Any) -> list[dict[str, Any]]:
    """The rows of the columns that hold no pictures.

    Raises:
      BadFile: they are far larger than the file; a few texts may stand for millions, so they are counted before they are made.
    """
    import pyarrow
    import pyarrow.parquet

    group = pyarrow.parquet.read_metadata(path)
    columns = [group.row_group(0).column(c) for c in range(group.num_columns)] if group.num_row_groups else []
    packed = [c.path_in_schema for c in columns if c.physical_type == "BYTE_ARRAY"]
    data = pyarrow.parquet.ParquetFile(path, memory_map=True, read_dictionary=packed).read(columns=plain)
    most = min(MOST_TABLE, max(MOST_BYTES, 200 * path.stat().st_size))
    size = sum(_unpacked(chunk) for column in data.columns for chunk in column.chunks)
    if size > most:
        raise _too_much(path, size, most)
    try:
        return data.cast(pyarrow.schema([schema.field(name) for name in data.column_names])).to_pylist()
    except pyarrow.lib.ArrowNotImplementedError:  # of some types, such as views
        return pyarrow.parquet.ParquetFile(path, memory_map=True).read(columns=plain).to_pylist()


def _unpacked(array: Any) -> int:
    """Bytes of the texts in an array of Arrow, once each is one of its own."""
    import pyarrow
    import pyarrow.compute

    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        lengths = pyarrow.compute.binary_length(array.dictionary).take(array.indices)
        return pyarrow.compute.sum(lengths.cast(pyarrow.int64())).as_py() or 0
    if pyarrow.types.is_struct(kind):
        return sum(_unpacked(array.field(i)) for i in range(kind.num_fields))
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return _unpacked(array.values)
    return array.nbytes


def _of_pictures(path: Path, held: list[str], plain: list[str], renamed: dict[str, str]) -> str | None:
    """The one of the columns that hold pictures that is meant; None where none is, or `renamed` names a plain one in its place.

    Raises:
      ValueError: there are several, none of which has a usual name.
    """
    names = {name: renamed.get(tidy(name), tidy(name)) for name in held}
    chosen = next((t for t, ours in renamed.items() if ours == "image"), None)
    if any(tidy(c) == chosen for c in plain):
        return None
    usual = [c for n in (*IMAGE_COLUMNS, *BYTES_COLUMNS) for c in held if names[c] == n]
    if named := [c for c in held if tidy(c) == chosen] or usual:
        return named[0]
    if len(held) > 1:
        several = ", ".join(map(repr, held))
        raise ValueError(
            f'table {str(path)!r} has pictures in the columns {several}; name one with columns="image={tidy(held[0])}"'
        )
    return held[0] if held else None


def _classes(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """{column: names of its classes} of a schema of Hugging Face's data sets; what is not written so is passed over."""
    try:
        features = parse_json((metadata or {}).get(b"huggingface", b"{}"), "metadata")
    except BadFile:
        return {}
    for name in ("info", "features"):
        features = features.get(name) if isinstance(features, dict) else None
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if names and isinstance(names, list) and all(isinstance(n, str) for n in names):
                found[column] = names
    return found


def _with_classes(
    table: Table, line: int, row: dict[str, Any], classes: dict[str, list[str]]
) -> dict[str, Any] | ValueError:
    """A row with the names of classes for their numbers (-1 is none); the error where a number has no name."""
    for column, names in classes.items():
        value = row[column]
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if not -1 <= value < len(names):
            return table.error(
                line, f"{column!r} is {value}, and the file names {len(names)} classes (0 to {len(names) - 1})"
            )
        row[column] = names[value] if value >= 0 else None
    return row


class Embedded:
    """The pictures in a column of a Parquet file: bytes, or {bytes, path} as Hugging Face's data sets have them.

    Row groups are read when they are asked for, and the last of them stay in memory.
    """

    def __init__(self, path: Path, column: str, keep: int = 4):
        self.path, self.column, self._keep = path, column, keep
        self._kept: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._file: Any = None
        self._ends: list[int] = []

    def __call__(self, index: int) -> bytes:
        value = self._group(index)
        found = value.get("bytes") if isinstance(value, dict) else value
        if found is None and isinstance(value, dict) and value.get("path"):
            from simvlm_jax.core.files import read_bytes

            return read_bytes(self.path.parent / value["path"])
        if not isinstance(found, bytes):
            raise ValueError(f"row {index + 1} of {self.path.name} has no picture in the column {self.column!r}")
        return found

    def name(self, index: int) -> str:
        """The file name that a row's picture had, "" where it is not told."""
        value = self._group(index)
        return str(value.get("path") or "") if isinstance(value, dict) else ""

    def _group(self, index: int) -> Any:
        import bisect

        import pyarrow.parquet

        with self._lock:
            if self._file is None:
                self._file = pyarrow.parquet.ParquetFile(self.path, memory_map=True)
                total = 0
                for g in range(self._file.metadata.num_row_groups):
                    total += self._file.metadata.row_group(g).num_rows
                    self._ends.append(total)
            group = bisect.bisect_right(self._ends, index)
            if group not in self._kept:
                while len(self._kept) >= self._keep:
                    del self._kept[next(iter(self._kept))]
                self._kept[group] = self._file.read_row_group(group, columns=[self.column]).column(0)
            start = self._ends[group - 1] if group else 0
            return self._kept[group][index - start].as_py()

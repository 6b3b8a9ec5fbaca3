"""Tables that people have: CSV and TSV as spreadsheets and scripts write them, JSONL, Parquet; and the texts that stand in them."""

import ast
import csv
import dataclasses
import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import MOST_BYTES, MOST_TABLE, BadFile, open_regular, parse_json, read_text
from simvlm_jax.data.rows import PICTURES
from simvlm_jax.text.tokenizer import clean

TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
IMAGE_COLUMNS = (
    "image",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "image_path",
    "image_name",
    "file",
    "path",
    "img",
)
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "sentence", "sentences", "title", "raw")
BYTES_COLUMNS = ("jpg", "jpeg", "png", "webp")
"""Columns of encoded pictures, as img2dataset's Parquet form has them."""
_NUMBERED = re.compile(r"(caption|text|sentence)s?[ _]?\d+")
_TOKENS = re.compile(r"""(?P<text>[bu]?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))|(?P<cut>\.\.\.)|(?P<comma>,)|\s+""")
"""What Python and NumPy write between the brackets of a list of texts."""
_LEAVES = ("text", "caption", "raw", "sentence")
MARKS = (",", "\t", ";", "|")


def texts(value: Any) -> list[str]:
    """Captions as data sets spell them: nothing, a text, several texts, or several {"text": ...} (or "raw", "caption").

    Raises:
      ValueError: anything else, a number for instance.
    """
    if isinstance(value, dict | bytes | str) or value is None:
        value = [value]
    if not isinstance(value, Sequence) and not hasattr(value, "tolist"):
        raise ValueError(f"a caption must be text, not {value!r:.100}")
    found = []
    for item in value:
        if isinstance(item, dict):
            name = next((k for k in _LEAVES if k in item), None)
            if name is None:
                raise ValueError(f"a caption must be text, or a record with {', '.join(_LEAVES)}, not {item!r:.100}")
            item = item[name]
        if item is not None and not isinstance(item, bytes | str):
            raise ValueError(f"a caption must be text, not {item!r:.100}")
        found.append(item)
    return [clean(v) for v in found if v is not None]


def captions_of(row: dict[str, Any]) -> list[str]:
    """The texts of the first caption column that holds any, and of columns such as caption_1, caption_2.

    Raises:
      ValueError: what stands there is not text.
    """
    for name in caption_columns(row):
        value = row.get(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = listed(value, name, strict=name == "captions")
        if found := [t for t in texts(value) if t]:
            rest = [c for c in row if _NUMBERED.fullmatch(c) and c != name]
            return found + [t for c in rest for t in texts(row[c]) if t]
    return []


def caption_columns(columns: Any) -> list[str]:
    """Those of a table's columns that hold captions, in the order in which they are looked at."""
    return [c for c in CAPTION_COLUMNS if c in columns] + [c for c in columns if _NUMBERED.fullmatch(c)]


def listed(value: str, name: str, strict: bool = True) -> Any:
    """A list of texts in JSON's, Python's or NumPy's spelling; without `strict`, a text that is none stays a text.

    Raises:
      ValueError: it is none, or was cut when it was written.
    """
    for read in (json.loads, lambda v: _neighbours(v, name), ast.literal_eval):
        try:
            found = read(value)
        except BadFile:
            raise
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and (strict or all(isinstance(v, str) for v in found)):
            return found
    if strict and value.rstrip().endswith("]"):
        raise ValueError(f'`{name}` must be a list such as ["one", "two"], not {value!r:.100}')
    return value


def _neighbours(value: str, name: str) -> list[str | bytes] | None:
    """The texts of a list as NumPy prints it, without commas (Python would join them); None where it is no such list.

    Raises:
      BadFile: the list was cut when it was written, or has commas between some of the texts only.
    """
    value = value.strip()
    if not (value.startswith("[") and value.endswith("]")):
        return None
    found: list[tuple[str, str]] = []
    place = 1
    while place < len(value) - 1:
        token = _TOKENS.match(value, place, len(value) - 1)
        if token is None:
            return None
        if token.lastgroup:
            found.append((token.lastgroup, token[0]))
        place = token.end()
    kinds = [kind for kind, _ in found]
    if "text" not in kinds:
        return None
    if "cut" in kinds:
        raise BadFile(
            f"`{name}` is a list that was cut where it was written (...): {value!r:.100}; write all of it, as JSON for instance"
        )
    if ("text", "text") not in itertools.pairwise(kinds):
        return None
    if "comma" in kinds:
        raise BadFile(f"`{name}` has commas between some of its texts only: {value!r:.100}; put one between any two")
    return [ast.literal_eval(text) for _, text in found]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table's rows, each with its line (or row) number; a row that cannot be read is the error. Column names in lower case.

    pictures: (row number from 0) -> encoded picture, where the table holds them.
    """

    path: Path
    rows: list[tuple[int, dict[str, Any] | ValueError]]
    columns: list[str] = dataclasses.field(default_factory=list)
    pictures: "Embedded | None" = None

    def error(self, line: int, message: str) -> ValueError:
        return ValueError(f"table {str(self.path)!r}, line {line}: {message}")

    @property
    def good(self) -> list[tuple[int, dict[str, Any]]]:
        """The rows that could be read."""
        return [(line, row) for line, row in self.rows if isinstance(row, dict)]


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
    read = {".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}.get(kind, _delimited)
    table = read(path, renamed)
    replaced = set(renamed.values())
    if "caption" in replaced:
        replaced.add("captions")  # which is looked at first
    names: dict[str, str] = {}
    for name in table.columns:
        tidy = _tidy(name)
        if tidy in renamed or tidy not in replaced:
            names[name] = renamed.get(tidy, tidy)
    there = [*table.columns, *([table.pictures.column] if table.pictures else [])]
    if lacking := [t for t in renamed if t not in set(map(_tidy, there))]:
        raise ValueError(f"table {str(path)!r} has no column {lacking[0]!r}; it has {', '.join(there)}")
    if twice := [n for n, k in Counter(names[c] for c in table.columns if c in names).items() if k > 1]:
        raise ValueError(f"table {str(path)!r} has the column {twice[0]!r} more than once; rename or remove one")
    rows = [
        (line, {names[k]: v for k, v in row.items() if k in names} if isinstance(row, dict) else row)
        for line, row in table.rows
    ]
    return Table(path, rows, list(names.values()), table.pictures)


def _tidy(name: str) -> str:
    return name.strip().lower()


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


def _delimited(path: Path, renamed: dict[str, str]) -> Table:
    """CSV and TSV. The mark between fields is that of a first line "sep=;", else the one that finds columns in the header."""
    text = read_text(path)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first, mark = 0, ""
    if found := re.fullmatch(r'"?sep=(.)"?', lines[0].strip(" ")):
        first, mark = 1, found[1]
    if first >= len(lines) or not lines[first].strip():
        raise ValueError(f"table {str(path)!r} has no header line")
    mark = mark or _mark(lines[first], "\t" if path.suffix.lower() == ".tsv" else ",")
    csv.field_size_limit(max(csv.field_size_limit(), MOST_BYTES))
    try:
        header = next(csv.reader([lines[first]], delimiter=mark, skipinitialspace=True, strict=True))
    except csv.Error as e:
        raise ValueError(f"table {str(path)!r} has a header that cannot be read: {e}") from e
    while header and not header[-1].strip():  # spreadsheets end lines in marks
        header.pop()
    table = Table(path, [], header)
    body = lines[first + 1 :]
    parsed: Iterable[tuple[int, Any]] | None = None
    if mark == "\t":
        parsed = _all_quoted(header, body, first + 1, mark)
        parsed = _by_lines(table, body, first + 2, mark) if parsed is None else parsed
    if parsed is None:
        parsed = _quoted(table, body, first + 1, mark, _image_at([renamed.get(n, n) for n in map(_tidy, header)]))
    for line, fields in parsed:
        if isinstance(fields, ValueError):
            table.rows.append((line, fields))
            continue
        fields = _without_trailing(fields, len(header))
        if not fields or fields == [""]:
            continue
        if len(fields) > len(header):
            message = f"has more fields than the header ({fields[len(header) :]}); put captions with {mark!r} in quotes"
            table.rows.append((line, table.error(line, message)))
            continue
        table.rows.append((line, dict(zip(header, fields + [""] * (len(header) - len(fields)), strict=True))))
    return table


def _mark(header: str, usual: str) -> str:
    """What stands between the fields of a header."""
    known = {*IMAGE_COLUMNS, *CAPTION_COLUMNS, "url", "question", "answer", "label", "key"}

    def fit(mark: str) -> tuple[int, bool, int]:
        names = [n.strip().strip('"').lower() for n in header.split(mark)]
        return sum(n in known for n in names) if len(names) > 1 else -1, mark == usual, len(names)

    return max(MARKS, key=fit)


def _without_trailing(fields: list[str], most: int) -> list[str]:
    """Fields without the empty ones at the end that go beyond a header of `most`."""
    while len(fields) > most and not fields[-1].strip():
        fields = fields[:-1]
    return fields


def _all_quoted(header: list[str], lines: list[str], before: int, mark: str) -> list[tuple[int, Any]] | None:
    """The fields of a table that a writer of CSV made, which quotes what has quotes or line breaks in it.

    None where some row is none of such a table, or a quoted field goes over lines that have marks, which may be rows.
    """
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=mark, skipinitialspace=True, strict=True)
    out: list[tuple[int, Any]] = []
    try:
        for fields in reader:
            if len(_without_trailing(fields, len(header))) > len(header):
                return None
            if any("\n" in f and mark in f.partition("\n")[2] for f in fields):
                return None
            if any(f.strip() for f in fields):
                out.append((before + reader.line_num, [f.strip() for f in fields]))
    except csv.Error:
        return None
    return out


def _by_lines(table: Table, lines: list[str], start: int, mark: str) -> list[tuple[int, Any]] | None:
    """The fields of a table whose rows are lines, where that is so of nearly all; in those, a quote that is not closed is text.

    A line of more fields is the error; so is one of a single field in a table with quotes, as it may be a part of a row.
    """
    out: list[tuple[int, Any]] = []
    ragged = 0
    quotes = any('"' in line for line in lines)
    for number, line in enumerate(lines, start):
        if not line.strip():
            continue
        fields: Any = _without_trailing([unquoted(f) for f in line.split(mark)], len(table.columns))
        if len(fields) > len(table.columns) or (quotes and len(fields) == 1 < len(table.columns)):
            ragged += 1
            fields = table.error(number, f"has {len(fields)} fields where the header has {len(table.columns)}")
        out.append((number, fields))
    return out if ragged * 10 <= len(out) or not quotes else None


def unquoted(field: str) -> str:
    """A field without the quotes around it, where these are a pair and quotes within are written twice."""
    field = field.strip()
    if len(field) > 1 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', ""):
        return field[1:-1].replace('""', '"')
    return field


def _quoted(table: Table, lines: list[str], before: int, mark: str, image: int | None) -> Iterator[tuple[int, Any]]:
    """The fields of a table whose quoted fields may hold marks and line breaks; a row with a fault of its own is the error.

    image: the number of the column that names pictures, where one is known.

    Raises:
      ValueError: a quote that swallows what would be rows of their own.
    """
    width = len(table.columns)
    end = 0
    while end < len(lines):
        start = end
        rest = (f"{lines[i]}\n" for i in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=mark, skipinitialspace=True, strict=True)
        try:
            for fields in reader:
                end = start + reader.line_num
                for at, field in enumerate(fields):
                    inside = field.split("\n")
                    if _holds_rows(inside, at, fields, width, mark, image):
                        raise _not_closed(table, before + end - len(inside) + 1, f"line {before + end}", field)
                yield before + end, fields
            return
        except csv.Error as e:
            begin, end = end, start + reader.line_num
            if "end of data" in str(e):
                raise _not_closed(table, before + begin + 1, "the end", lines[begin]) from e
            cells = lines[begin].split(mark)
            at = next((i for i, c in enumerate(cells) if c.lstrip().startswith('"') and c.count('"') % 2), 0)
            inside = [mark.join(cells[at:]).lstrip(' "'), *lines[begin + 1 : end - 1], lines[end - 1].partition('"')[0]]
            if end - begin > 1 and _holds_rows(inside, at, cells, width, mark, image):
                raise _not_closed(table, before + begin + 1, f"line {before + end}", "\n".join(inside)) from e
            yield before + end, table.error(before + end, f"{e}; a quote inside a quoted field is written twice")


def _not_closed(table: Table, line: int, until: str, text: str) -> ValueError:
    return table.error(line, f"a quote is opened and not closed before {until}: {text[:60]!r}")


def _image_at(names: list[str]) -> int | None:
    """The number of the column that names pictures, by the names of all; None where no name is known."""
    return next((names.index(n) for n in (*IMAGE_COLUMNS, "url", "key") if n in names), None)


def _holds_rows(inside: list[str], at: int, row: list[str], width: int, mark: str, image: int | None) -> bool:
    """Whether the lines of a quoted field, number `at` of its row, are rows that a quote which nobody closed has swallowed.

    The first line is then a row from that field on, and the last one a row up to it. They are rows if they have as many fields
    as these and most name a picture, or a thing such as the row's own picture; or, where that is called by words, if they are
    many and nearly all have as many fields. Marks before a space or at the end of a line are those of prose, except after the
    name of a picture.
    """
    if width < 2 or len(inside) < 2:
        return False
    spans = [(at, width), *[(0, width)] * (len(inside) - 2), (0, at + 1)]
    fit = [
        len(re.split(rf"{re.escape(mark)}(?=\S)", line.rstrip(f"{mark} "))) == end - first
        for line, (first, end) in zip(inside, spans, strict=True)
    ]
    own = "" if image is None else (inside[0].split(mark)[0] if image == at else "".join(row[image : image + 1]))
    told = []
    for number, (line, (first, end)) in enumerate(zip(inside, spans, strict=True)):
        if (number == 0 and (image is None or image <= at)) or (image is not None and not first <= image < end):
            continue  # such a part does not name the picture
        fields = _without_trailing(line.split(mark), end - first)
        names = [f.strip().strip('"') for f in (fields if image is None else fields[image - first :][:1])]
        pictured = (number > 0 or fit[0]) and any(n.lower().endswith(PICTURES) for n in names)
        like = fit[number] and own.strip() and any(_shape(n) == _shape(own) for n in names)
        told.append(len(fields) == end - first and bool(pictured or like))
    if sum(told) * 2 > len(told):
        return True
    words = _shape(own) not in ("0", "://") and not own.strip().lower().endswith(PICTURES)
    return words and len(inside) > 5 and fit[0] and sum(fit[1:]) * 10 >= len(fit[1:]) * 9


def _shape(name: str) -> str:
    """What names of a kind have in common: the marks between their letters and digits, or that they are addresses or numbers."""
    name = name.strip()
    if name.isdigit():
        return "0"
    return "://" if re.match(r"\w+://", name) else re.sub(r"[^\W_]+", "a", name)


def _parquet(path: Path, renamed: dict[str, str]) -> Table:
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
                and renamed.get(_tidy(name), _tidy(name)) in (*IMAGE_COLUMNS, *BYTES_COLUMNS)
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
    names = {name: renamed.get(_tidy(name), _tidy(name)) for name in held}
    chosen = next((t for t, ours in renamed.items() if ours == "image"), None)
    if any(_tidy(c) == chosen for c in plain):
        return None
    usual = [c for n in (*IMAGE_COLUMNS, *BYTES_COLUMNS) for c in held if names[c] == n]
    if named := [c for c in held if _tidy(c) == chosen] or usual:
        return named[0]
    if len(held) > 1:
        several = ", ".join(map(repr, held))
        raise ValueError(
            f'table {str(path)!r} has pictures in the columns {several}; name one with columns="image={_tidy(held[0])}"'
        )
    return held[0] if held else None


def _classes(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """{column: names of its classes} of a schema of Hugging Face's data sets; what is not written so is passed over."""
    try:
        told = parse_json((metadata or {}).get(b"huggingface", b"{}"), "metadata")
    except BadFile:
        return {}
    for name in ("info", "features"):
        told = told.get(name) if isinstance(told, dict) else None
    found = {}
    for column, feature in told.items() if isinstance(told, dict) else ():
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

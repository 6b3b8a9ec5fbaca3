"""CSV and TSV as spreadsheets and scripts write them; a quote that nobody closes swallows no rows."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import MOST_BYTES, read_text
from simvlm_jax.data.folders import PICTURES
from simvlm_jax.data.tables import CAPTION_COLUMNS, IMAGE_COLUMNS, Table, tidy

MARKS = (",", "\t", ";", "|")


def read_delimited(path: Path, renamed: dict[str, str]) -> Table:
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
        parsed = _quoted(table, body, first + 1, mark, _image_at([renamed.get(n, n) for n in map(tidy, header)]))
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
    like_rows = []
    for number, (line, (first, end)) in enumerate(zip(inside, spans, strict=True)):
        if (number == 0 and (image is None or image <= at)) or (image is not None and not first <= image < end):
            continue  # such a part does not name the picture
        fields = _without_trailing(line.split(mark), end - first)
        names = [f.strip().strip('"') for f in (fields if image is None else fields[image - first :][:1])]
        pictured = (number > 0 or fit[0]) and any(n.lower().endswith(PICTURES) for n in names)
        like = fit[number] and own.strip() and any(_shape(n) == _shape(own) for n in names)
        like_rows.append(len(fields) == end - first and bool(pictured or like))
    if sum(like_rows) * 2 > len(like_rows):
        return True
    words = _shape(own) not in ("0", "://") and not own.strip().lower().endswith(PICTURES)
    return words and len(inside) > 5 and fit[0] and sum(fit[1:]) * 10 >= len(fit[1:]) * 9


def _shape(name: str) -> str:
    """What names of a kind have in common: the marks between their letters and digits, or that they are addresses or numbers."""
    name = name.strip()
    if name.isdigit():
        return "0"
    return "://" if re.match(r"\w+://", name) else re.sub(r"[^\W_]+", "a", name)

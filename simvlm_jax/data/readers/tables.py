"""Folders of pictures with tables: CSV, TSV, JSONL, Parquet and lists in JSON.

Among them open_clip's CSV (filepath, title), Hugging Face's imagefolder (metadata.csv or .jsonl) and Parquet with the pictures
inside, img2dataset's Parquet and LAVIS's and BLIP's lists. Rows are captions of pictures, or questions about them (one example a row).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from simvlm_jax.data.rows import Pictures, Row, Rows, Understood, by_picture
from simvlm_jax.data.tables import CAPTION_COLUMNS, IMAGE_COLUMNS, Table, caption_columns, captions_of, listed

_ONE_TEXT = ("question", "hypothesis", "instruction")
_KEPT = ("label", "domain", "kind")
"""Columns that stay beside captions."""


def asks(columns: set[str]) -> bool:
    """Whether a table is read row by row, a row being an example and not one more caption of its picture.

    It is when it has a question or hypothesis, or a label or answer and no captions.
    """
    captions = set(caption_columns(columns)) - {"sentence", "sentences"}
    answered = columns & {"label", "answer", "answers", "conversations"}
    return bool(columns & set(_ONE_TEXT) or (answered and not captions) or "conversations" in columns)


def from_tables(
    folder: Path, tables: list[Table], split: str = "", more: tuple[Path, ...] = (), kind: str = ""
) -> Rows:
    """The rows of tables whose pictures lie in `folder`, or in `more` folders, or in the tables themselves."""
    columns = list(dict.fromkeys(c for table in tables for c in table.columns))
    left_out: Counter[str] = Counter()
    read = _reader_of(tables, Pictures(folder, folder / "images", *more))
    if "status" in columns and "key" in columns and {"url", "jpg", "png", "webp"} & {*columns, *_held(tables)}:
        kind = kind or "img2dataset table"
    asked = asks(set(columns))
    rows = list(_questions(tables, left_out)) if asked else by_picture(_captions(tables, left_out))
    if not rows:
        gone = "; ".join(f"{n} {why}" for why, n in left_out.items())
        raise ValueError(f"table {str(tables[0].path)!r} has no rows" + (f" (left out: {gone})" if gone else ""))
    kind = kind or f"{tables[0].path.suffix.lower().removeprefix('.')} table"
    understood = Understood(kind, [t.path.name for t in tables], 0, _used(columns, tables), split, left_out)
    return Rows(
        f"table/{folder.name}" if asked else folder.name, rows, read, understood, "table" if asked else "folder"
    )


def _used(columns: list[str], tables: list[Table]) -> list[str]:
    """The columns that rows are made of."""
    images = _held(tables) or [c for c in ("images", *IMAGE_COLUMNS) if c in columns][:1]
    if asks(set(columns)):
        return [*images, *(c for c in columns if c not in images)]
    captions = caption_columns(columns)
    return [*images, *captions[:1], *(c for c in captions[1:] if c[-1].isdigit())]


def _held(tables: list[Table]) -> list[str]:
    return list(dict.fromkeys(t.pictures.column for t in tables if t.pictures))


def _reader_of(tables: list[Table], files: Pictures) -> Callable[[Any], bytes]:
    def read(name: Any) -> bytes:
        if isinstance(name, tuple):
            held = tables[name[0]].pictures
            assert held is not None
            return held(name[1])
        return files(str(name))

    return read


def _named(table: Table, number: int, line: int, row: Row) -> Any:
    """What a row calls its picture: a file's name, or (number of the table, row) of one that holds it.

    Raises:
      ValueError: nothing.
    """
    name = next((row[k] for k in IMAGE_COLUMNS if row.get(k)), None)
    if isinstance(name, dict):  # as datasets writes it to JSON
        name = name.get("path")
    if table.pictures is not None:
        return (number, line - 1)
    if name is None or isinstance(name, list):
        raise table.error(line, f"needs an image ({', '.join(IMAGE_COLUMNS)}); it has {_short(row)}")
    return str(name)


def _short(row: Row) -> str:
    return f"{row!r:.300}"


def _skipped(row: Row, left_out: Counter[str]) -> bool:
    """Whether img2dataset tells that it could not fetch the picture."""
    status = row.get("status")
    if isinstance(status, str) and "key" in row and status != "success":
        left_out[f"of status {status}"] += 1
        return True
    return False


def _captions(tables: list[Table], left_out: Counter[str]) -> Iterator[tuple[str, Any, Any, Row]]:
    """(key, picture, its captions or what is wrong, what more there is) of every row."""
    for number, table in enumerate(tables):
        for line, row in table.rows:
            here = f"{table.path.name}:{line}"
            if isinstance(row, ValueError):
                yield here, None, row, {}
                continue
            if _skipped(row, left_out):
                continue
            try:
                name = _named(table, number, line, row)
                if not caption_columns(row):
                    raise table.error(line, f"needs a caption ({', '.join(CAPTION_COLUMNS)}); it has {_short(row)}")
                try:
                    found = captions_of(row)
                except ValueError as e:
                    raise table.error(line, str(e)) from e
            except ValueError as e:
                yield here, None, e, {}
                continue
            inside = isinstance(name, tuple)
            more = {k: row[k] for k in _KEPT if row.get(k) not in (None, "")}
            yield str(row.get("key") or f"{table.path.stem}/{line}") if inside else name, name, found, more


def _questions(tables: list[Table], left_out: Counter[str]) -> Iterator[Row | tuple[str, Exception]]:
    """An example a row; every column is a field of it."""
    for number, table in enumerate(tables):
        for line, row in table.rows:
            if isinstance(row, dict) and _skipped(row, left_out):
                continue
            try:
                if isinstance(row, ValueError):
                    raise row
                yield _question(table, number, line, {k: v for k, v in row.items() if v is not None and v != ""})
            except ValueError as e:
                yield f"{table.path.name}:{line}", e


def _question(table: Table, number: int, line: int, row: Row) -> Row:
    for name in {"images", "answers"} & set(row):
        row[name] = _list(table, line, name, row[name])
    if isinstance(row.get("answer"), list):  # LAVIS: everybody's answers
        row["answers"] = row.pop("answer")
    if isinstance(row.get("image"), list):
        row["images"] = row.pop("image")
    if "images" not in row:
        row["image"] = _named(table, number, line, row)
    for name in _ONE_TEXT:
        if name in row and not isinstance(row[name], str | bytes):
            raise table.error(line, f"`{name}` must be text, not {row[name]!r:.100}")
    if "conversations" in row:
        row |= _turns(table, line, row.pop("conversations"))
    if caption_columns(row) and ("caption" in row or "captions" in row):
        row["captions"] = captions_of(row)
    for name in ("id", "question_id"):
        if "key" not in row and name in row and isinstance(row[name], str | int):
            row["key"] = f"{row[name]}" if name == "question_id" else f"{table.path.stem}/{row[name]}"
    return row


def _turns(table: Table, line: int, turns: Any) -> Row:
    """question, answer (the first exchange) and texts (all turns) of a conversation as LLaVA writes it.

    Raises:
      ValueError: it is another.
    """
    fits = isinstance(turns, list) and all(isinstance(t, dict) and isinstance(t.get("value"), str) for t in turns)
    if not fits or len(turns) < 2:
        raise table.error(
            line, f'`conversations` must be a list of {{"from", "value"}}, two at least, not {turns!r:.100}'
        )
    said = [t["value"].replace("<image>", "").strip() for t in turns]
    return {"question": said[0], "answer": said[1], "texts": said}


def _list(table: Table, line: int, name: str, value: Any) -> list[Any]:
    try:
        found = listed(value, name) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise table.error(line, f'`{name}` must be a list such as ["one", "two"], not {value!r:.100}')
    return found


def as_table(path: Path, rows: list[Any]) -> Table:
    """The records of a list in JSON as a table."""
    table = Table(path, [])
    columns: dict[str, None] = {}
    for line, row in enumerate(rows, 1):
        if isinstance(row, dict):
            row = {str(k).strip().lower(): v for k, v in row.items()}
            columns.update(dict.fromkeys(row))
            table.rows.append((line, row))
        else:
            table.rows.append((line, table.error(line, f"must be an object, not {json.dumps(row)[:100]}")))
    return Table(path, table.rows, list(columns))

"""Folders of pictures with tables: CSV, TSV, JSONL, Parquet and lists in JSON.

Among them open_clip's CSV (filepath, title), Hugging Face's imagefolder (metadata.csv or .jsonl) and Parquet with the pictures
inside, img2dataset's Parquet and LAVIS's and BLIP's lists. Rows are captions of pictures, or questions about them (one example
per row).
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from simvlm_jax.data.folders import visible
from simvlm_jax.data.reader import How
from simvlm_jax.data.readers import flickr
from simvlm_jax.data.readers.texts import TextSource
from simvlm_jax.data.rows import Pictures, Row, Rows, Understood, by_picture
from simvlm_jax.data.source import Source
from simvlm_jax.data.splits import (
    NoSuchSplit,
    Refused,
    group_of,
    is_of,
    of_split,
    part_of,
    split_named,
    split_of_all,
    unnamed,
)
from simvlm_jax.data.table_files import read_table
from simvlm_jax.data.tables import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    TABLE_SUFFIXES,
    Table,
    caption_columns,
    captions_of,
    listed,
)

_ONE_TEXT = ("question", "hypothesis", "instruction")
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot"), "model"),
    "system": "system",
}
_KEPT = ("label", "domain", "kind")
"""Columns that stay beside captions."""


def accepts(path: Path, how: How) -> str:
    """The name of a table, or of the first in a folder."""
    return next((p.name for p in _tables(path, how)), "")


def read(path: Path, how: How) -> Source:
    """A table, or those of a folder that are of the split."""
    return read_files(_tables(path, how), path, how)


def read_files(tables: list[Path], here: Path, how: How) -> Source:
    """Those of the tables, or of their rows where a column tells, that are of the split; of those that were named and all tell
    one split it is that, whatever was asked."""
    split = how.split if here.is_dir() else split_of_all(tables) or how.split
    folder = here if here.is_dir() else here.parent
    try:
        found, name, rest = of_split(tables, split, here)
    except NoSuchSplit:
        opened = [read_table(p, how.columns) for p in tables]
        if not how.images or not any("split" in t.columns for t in opened):
            raise
        source = from_tables(folder, opened, wanted_split=split)
        if not is_of(source.split, split):
            raise
        return source
    opened = [read_table(p, how.columns) for p in found]
    source = from_tables(folder, opened, name, wanted_split=split) if how.images else TextSource(here, opened, name)
    source.understood.left_out.update(unnamed(rest, "tables"))
    return source


def _tables(path: Path, how: How) -> list[Path]:
    """The tables of a folder, but for captions one per line, and img2dataset's, which tell what became of its addresses."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in TABLE_SUFFIXES else []
    files = [p for p in visible(path) if p.is_file()]
    lines = flickr.files_in(path) if how.images and not how.columns else []
    found = [p for p in files if p.suffix.lower() in TABLE_SUFFIXES and p not in lines]
    if not how.images:
        return found
    fetched = {p for p in found if p.suffix == ".parquet" and p.with_name(f"{p.stem}_stats.json").exists()}
    if any(p.suffix.lower() == ".tar" for p in files) or any((path / p.stem).is_dir() for p in fetched):
        found = [p for p in found if p not in fetched]
    return found


def is_examples(columns: set[str]) -> bool:
    """Whether a table is read row by row, a row being an example and not one more caption of its picture.

    It is when it has a question or hypothesis, or a label or answer and no captions.
    """
    captions = set(caption_columns(columns)) - {"sentence", "sentences"}
    answered = columns & {"label", "answer", "answers", "conversations"}
    return bool(columns & set(_ONE_TEXT) or (answered and not captions) or "conversations" in columns)


def from_tables(
    folder: Path,
    tables: list[Table],
    split: str = "",
    pictures: Pictures | None = None,
    kind: str = "",
    wanted_split: str = "",
) -> Rows:
    """The rows of tables whose pictures lie in `folder`, or where `pictures` has them, or in the tables themselves.

    split: which the names of the files tell. wanted_split: the one that is wanted, where the rows themselves tell.

    Raises:
      NoSuchSplit: the rows tell others. Refused: some tables hold questions and some captions, or the same rows.
    """
    of_kind = {is_examples(set(t.columns)): t.path.name for t in tables}
    if len(of_kind) > 1:
        raise Refused(
            f"{str(folder)!r} holds captions ({of_kind[False]}) and questions or labels ({of_kind[True]}); name the file that is meant"
        )
    _once(tables)
    tables, split = _of_split(tables, split, wanted_split, folder)
    columns = list(dict.fromkeys(c for table in tables for c in table.columns))
    left_out: Counter[str] = Counter()
    files = pictures or Pictures(folder, folder / "images", split=split)
    read = _reader_of(tables, files)
    if "status" in columns and "key" in columns and {"url", "jpg", "png", "webp"} & {*columns, *_held(tables)}:
        kind = kind or "img2dataset table"
    examples = next(iter(of_kind))
    rows = list(_questions(tables, left_out)) if examples else by_picture(_captions(tables, left_out))
    if not rows:
        gone = "; ".join(f"{n} {why}" for why, n in left_out.items())
        raise ValueError(f"table {str(tables[0].path)!r} has no rows" + (f" (left out: {gone})" if gone else ""))
    files.serve(rows)
    kind = kind or f"{tables[0].path.suffix.lower().removeprefix('.')} table"
    understood = Understood(kind, [t.path.name for t in tables], 0, _used(columns, tables), split, left_out)
    return Rows(
        f"table/{folder.name}" if examples else folder.name, rows, read, understood, "table" if examples else "folder"
    )


def _once(tables: list[Table]) -> None:
    """Nothing, where no table has the rows of an earlier one again.

    Raises:
      Refused: one does, as a copy or in another format.
    """
    seen: dict[Any, str] = {}
    for table in tables if len(tables) > 1 else ():
        again = Counter[str]()
        mine = {_what(row) for _, row in table.good} - {None}
        for what in mine:
            again[seen.setdefault(what, table.path.name)] += 1
        del again[table.path.name]
        if again and again.total() * 2 > len(mine):
            raise Refused(
                f"{table.path.name} holds rows of {next(iter(again))} again; remove one, or name the file that is meant"
            )


def _what(row: Row) -> tuple[str, str] | None:
    """What tells that two rows are one: the picture's name and all of its texts."""
    name = next((row[k] for k in ("images", *IMAGE_COLUMNS) if row.get(k)), None)
    texts = [row.get(k) for k in (*caption_columns(row), *_ONE_TEXT, "conversations", "answer", "label")]
    return None if name is None else (str(name), str([v for v in texts if v]))


def _of_split(tables: list[Table], split: str, wanted_split: str, folder: Path) -> tuple[list[Table], str]:
    """(the tables with the rows of a split alone, its name) where a column `split` or the pictures' folders tell several."""
    for split_in in (_split_in_column, _split_in_folder):
        found = [[split_in(row) if isinstance(row, dict) else "" for _, row in t.rows] for t in tables]
        each = {s for line in found for s in line} - {""}
        names = sorted(filter(None, each))
        if not names or None in each:
            continue
        if len(names) == 1:
            return tables, split or names[0]
        if split_in is _split_in_folder and split:
            continue
        if not (wanted := {s for s in names if is_of(s, wanted_split)}):
            raise NoSuchSplit(f"{str(folder)!r} has no split {wanted_split!r}; its rows are of {', '.join(names)}")
        kept = [
            dataclasses.replace(t, rows=[pair for pair, s in zip(t.rows, line, strict=True) if not s or s in wanted])
            for t, line in zip(tables, found, strict=True)
        ]
        return kept, next(iter(wanted))
    return tables, split


def _split_in_column(row: Row) -> str | None:
    value = row.get("split")
    return group_of(value.strip().lower()) if isinstance(value, str) else None


def _split_in_folder(row: Row) -> str | None:
    """The split of the folder that a picture lies in, of none that is named by a year: those of COCO are of other splits too."""
    name = next((row[k] for k in IMAGE_COLUMNS if isinstance(row.get(k), str)), "")
    parts = name.replace("\\", "/").split("/")[:-1]
    return next((g for p in parts if (g := split_named(p)) and not part_of(p)), None)


def _used(columns: list[str], tables: list[Table]) -> list[str]:
    """The columns that rows are made of."""
    images = _held(tables) or [c for c in ("images", *IMAGE_COLUMNS) if c in columns][:1]
    if is_examples(set(columns)):
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
    return json.dumps(row, ensure_ascii=False, default=lambda v: f"{len(v)} bytes" if isinstance(v, bytes) else str(v))[
        :300
    ]


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
    """One example per row; every column is a field of it."""
    for number, table in enumerate(tables):
        for line, row in table.rows:
            if isinstance(row, dict) and _skipped(row, left_out):
                continue
            if (
                isinstance(row, dict)
                and "conversations" in row
                and table.pictures is None
                and not any(row.get(k) for k in ("images", *IMAGE_COLUMNS))
            ):
                left_out["conversations without a picture"] += 1
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
    spoken = [(_SPEAKERS.get(str(t.get("from", "")).lower()), t["value"].replace("<image>", "").strip()) for t in turns]
    if unknown := [t["from"] for t in turns if t.get("from") and str(t["from"]).lower() not in _SPEAKERS]:
        raise table.error(line, f"`conversations` has a speaker {unknown[0]!r}; known are {', '.join(_SPEAKERS)}")
    if not any(who for who, _ in spoken):  # nobody is named: they take turns
        spoken = [(("human", "model")[i % 2], text) for i, (_, text) in enumerate(spoken)]
    first = next((i for i, (who, _) in enumerate(spoken) if who == "human"), len(spoken))
    reply = next((text for who, text in spoken[first:] if who == "model"), None)
    if reply is None:
        raise table.error(line, f"`conversations` has no turn of a person that a model answers: {turns!r:.100}")
    return {"question": spoken[first][1], "answer": reply, "texts": [text for who, text in spoken if who != "system"]}


def _list(table: Table, line: int, name: str, value: Any) -> list[Any]:
    try:
        found = listed(value, name) if isinstance(value, str) else value
    except ValueError as e:
        raise table.error(line, str(e)) from e
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

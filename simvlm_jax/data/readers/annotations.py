"""Data sets as one JSON file a split: COCO's captions and instances, Karpathy's splits, VQA and OK-VQA, GQA, lists of records.

A file is known by what it holds, not by its name; its name tells the split.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import MOST_TABLE, read_json
from simvlm_jax.data.folders import PICTURES, visible
from simvlm_jax.data.reader import How
from simvlm_jax.data.readers.tables import as_table, from_tables
from simvlm_jax.data.rows import Pictures, Row, Rows, Understood, by_picture
from simvlm_jax.data.splits import NoSuchSplit, Refused, group_of, names_of, of_split, part_of, split_of_all, unnamed
from simvlm_jax.data.tables import IMAGE_COLUMNS, texts

_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "features.json", "config.json", "state.json", "package.json")


_OF_COCO = ("instances_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
"""What lies beside COCO's captions."""
_INSIDE = ("annotations", "questions")
"""Folders of JSON files whose pictures lie beside the folder."""


def files_in(folder: Path) -> list[Path]:
    """The JSON files of a folder that may hold annotations: its own, and those of `annotations/`; none that is beside a picture."""
    found = [p for where in (folder, folder / "annotations") if where.is_dir() for p in visible(where)]
    pictures = {p.with_suffix("") for p in found if p.suffix.lower() in PICTURES}
    return [
        p
        for p in found
        if p.suffix.lower() == ".json"
        and p.name not in _NOT_DATA
        and not p.name.endswith("_stats.json")
        and p.with_suffix("") not in pictures
    ]


def accepts(path: Path, how: How) -> str:
    """The name of a JSON file of annotations, or of the first in a folder; beside another layout, of those of a known kind alone."""
    if not how.images:
        return ""
    if not path.is_dir():
        return path.name if path.suffix.lower() == ".json" else ""
    return next((p.name for p in (files_in(path) if how.alone else known_in(path))), "")


def read(path: Path, how: How) -> Rows:
    """A file of annotations, or the split of a folder of them."""
    return read_folder(path, how.split) if path.is_dir() else read_file(path, how.split)


def known_in(folder: Path) -> list[Path]:
    """Those of a folder's JSON files that are of a known kind and name pictures."""
    return [
        p
        for p in files_in(folder)
        if _kind(value := _loaded(p)) not in ("", "answers", "list") or _names_picture(value)
    ]


def _names_picture(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and bool({"images", *IMAGE_COLUMNS} & set(value[0]))


def read_folder(folder: Path, split: str) -> Rows:
    """The split of a folder of annotations.

    Raises:
      NoSuchSplit: its files name others. Refused: they are of no known kind, or of two.
    """
    files = files_in(folder)
    pairs = [p for p in files if p.name.endswith("_complementary_pairs.json")]  # of VQAv2, numbers of questions
    files = [p for p in files if p not in pairs]
    if any(p.name.startswith("captions_") for p in files):
        files = [p for p in files if not p.name.startswith(_OF_COCO[1:])]
    of_one_file = len(files) == 1 and _kind(value := _loaded(files[0])) == "karpathy"
    if of_one_file:
        return _karpathy(files[0], value, split, folder)
    files, name, rest = of_split(files, split, folder)
    source = _read(files, name, folder, split)
    source.understood.left_out.update(unnamed(rest, "files"))
    if pairs:
        source.understood.left_out["files of complementary pairs"] += len(pairs)
    return source


def read_file(path: Path, split: str) -> Rows:
    """A file of annotations, with its pictures in its folder or in the one above `annotations/`."""
    folder = path.parent.parent if path.parent.name in _INSIDE else path.parent
    value = _loaded(path)
    if _kind(value) == "karpathy":
        return _karpathy(path, value, split, folder)
    return _read([path], split_of_all([path]), folder, split, {path: value})


def _loaded(path: Path) -> Any:
    return read_json(path, most=MOST_TABLE)


def _kind(value: Any) -> str:
    """What a JSON value is: "captions", "instances", "karpathy", "questions", "answers", "gqa", "list", "" for unknown."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "list"
    if not isinstance(value, dict) or not value:
        return ""
    images, notes = value.get("images"), value.get("annotations")
    first = notes[0] if isinstance(notes, list) and notes and isinstance(notes[0], dict) else {}
    if isinstance(images, list):
        if images and isinstance(images[0], dict) and "sentences" in images[0]:
            return "karpathy"
        if "caption" in first:
            return "captions"
        if "category_id" in first and isinstance(value.get("categories"), list):
            return "instances"
    if isinstance(value.get("questions"), list):
        return "questions"
    if "question_id" in first and "answers" in first:
        return "answers"
    one = next(iter(value.values()))
    if isinstance(one, dict) and "imageId" in one and "question" in one:
        return "gqa"
    return ""


def _read(
    files: list[Path], split: str, folder: Path, wanted_split: str, loaded: dict[Path, Any] | None = None
) -> Rows:
    of_kind: dict[str, list[tuple[Path, Any]]] = {}
    for path in files:
        value = (loaded or {}).get(path, None) or _loaded(path)
        of_kind.setdefault(_kind(value), []).append((path, value))
    if unknown := of_kind.pop("", None):
        raise Refused(
            f"{str(unknown[0][0])!r} is of no kind that is known: COCO's captions or instances, Karpathy's splits, questions of "
            "VQA or GQA, or a list of records with an image and a caption or question"
        )
    kinds = frozenset(of_kind)
    reader = READERS.get(kinds)
    if reader is None:
        raise Refused(
            f"{str(folder)!r} holds {' and '.join(f'{v[0][0].name} ({k})' for k, v in of_kind.items())}; name the file that is meant"
        )
    around = [folder, folder.parent] if folder.name in _INSIDE else [folder]
    around = [place for f in around for place in (f, f / "images")]
    pictures = Pictures(*around, split=next(filter(None, (part_of(p.stem) for p in files)), split))
    if reader is _list:
        reader = functools.partial(_list, wanted_split=wanted_split)
    try:
        return reader(of_kind, split, folder, pictures)
    except (KeyError, TypeError, AttributeError) as e:
        raise Refused(f"{', '.join(str(p) for p in files)}: a record of another form than the rest ({e!r})") from e


Found = dict[str, list[tuple[Path, Any]]]


def _coco(found: Found, split: str, folder: Path, pictures: Pictures) -> Rows:
    """COCO (Lin et al., ECCV 2014): captions of pictures, and the names of the classes that are in them."""
    names: dict[Any, str] = {}
    captions: dict[Any, list[str]] = {}
    classes: dict[Any, list[str]] = {}
    left_out: Counter[str] = Counter()
    broken: list[tuple[str, Exception]] = []
    _once(found.get("captions", ()), lambda value: (note.get("id") for note in value["annotations"]))
    for path, value in [*found.get("captions", ()), *found.get("instances", ())]:
        for image in value["images"]:
            names.setdefault(image["id"], image["file_name"])
        known = {c["id"]: c["name"] for c in value.get("categories", ())}
        for note in value["annotations"]:
            of = note["image_id"]
            if of not in names:
                left_out["annotations of pictures that are not listed"] += 1
            elif "caption" in note:
                try:
                    captioned = [t for t in texts(note["caption"]) if t]
                    captions.setdefault(of, []).extend(captioned)
                    if not captioned:
                        left_out["empty captions"] += 1
                except ValueError as e:
                    broken.append((f"{path.name}/{note.get('id')}", e))
            elif "category_id" in note:
                classes.setdefault(of, []).append(str(known.get(note["category_id"], note["category_id"])))
    rows: list[Any] = list(broken)
    for of, name in names.items():
        if found.get("captions") and not captions.get(of):
            left_out["pictures without a caption"] += 1
            continue
        row: Row = {"key": str(name), "image": str(name)}
        if found.get("captions"):
            row["captions"] = captions[of]
        if found.get("instances"):
            row["labels"] = sorted(set(classes.get(of, ())))
            if len(row["labels"]) == 1:
                row["label"] = row["labels"][0]
        rows.append(row)
    files = [p.name for of_kind in found.values() for p, _ in of_kind]
    columns = ["file_name", *(["caption"] if "captions" in found else []), *(["name"] if "instances" in found else [])]
    return Rows(
        folder.name,
        rows,
        pictures,
        Understood(f"COCO {' and '.join(found)}", files, 0, columns, split, left_out),
        "coco",
    )


def _karpathy(path: Path, value: Any, split: str, folder: Path) -> Rows:
    """Karpathy's splits (Karpathy & Fei-Fei, CVPR 2015) of Flickr8k, Flickr30k and COCO; restval counts as train."""
    there = list(dict.fromkeys(str(i.get("split")) for i in value["images"]))
    wanted = {split, *names_of(split)}
    chosen = [i for i in value["images"] if i.get("split") in wanted]
    left_out: Counter[str] = Counter()
    if not chosen:
        raise NoSuchSplit(f"{str(path)!r} has no split {split!r}; it has {', '.join(there)}")

    def triples():
        for i in chosen:
            name = "/".join(filter(None, (i.get("filepath"), i["filename"])))
            try:
                captioned = texts(i["sentences"])
            except ValueError as e:
                yield name, None, e, {}
                continue
            if bare := sum(not t for t in captioned):
                left_out["empty captions"] += bare
            if any(captioned):
                yield name, name, [t for t in captioned if t], {}
            else:
                left_out["pictures without a caption"] += 1

    rows = by_picture(triples())
    name = split if split == "restval" else group_of(split) or split
    understood = Understood("Karpathy's splits", [path.name], 0, ["filename", "raw"], name, left_out)
    return Rows(folder.name, rows, Pictures(folder, folder / "images"), understood, "karpathy")


def _once(files: Sequence[tuple[Path, Any]], ids: Callable[[Any], Iterable[Any]]) -> None:
    """Nothing, where no record stands in two files.

    Raises:
      Refused: one does, so that both are of one set of records.
    """
    seen: dict[Any, Path] = {}
    for path, value in files if len(files) > 1 else ():
        for key in ids(value):
            if key is not None and seen.setdefault(key, path) != path:
                raise Refused(
                    f"the record {key!r} stands in {seen[key].name} and in {path.name}; name the file that is meant"
                )


def _questions(found: Found, split: str, folder: Path, pictures: Pictures) -> Rows:
    """VQA and VQAv2 (Goyal et al., CVPR 2017) and OK-VQA (Marino et al., CVPR 2019), as downloaded; test has no answers."""
    notes = {a["question_id"]: a for _, value in found.get("answers", ()) for a in value["annotations"]}
    rows: list[Any] = []
    left_out: Counter[str] = Counter()
    _once(found["questions"], lambda value: (q["question_id"] for q in value["questions"]))
    for path, value in found["questions"]:
        subset = str(value.get("data_subtype") or path.stem.removesuffix("_questions").rpartition("_")[2]).replace(
            "test-dev", "test"
        )
        for q in value["questions"]:
            row: Row = {"question": q["question"], "question_id": q["question_id"], "key": str(q["question_id"])}
            row["image"] = (
                f"{subset}/COCO_{subset}_{q['image_id']:012d}.jpg"
                if isinstance(q["image_id"], int)
                else str(q["image_id"])
            )
            if note := notes.get(q["question_id"]):
                row["answers"] = [a["answer"] for a in note["answers"]]
                row |= {"kind": note["answer_type"]} if "answer_type" in note else {}
            elif notes:
                left_out["questions without an answer"] += 1
                continue
            rows.append(row)
    files = [p.name for of_kind in found.values() for p, _ in of_kind]
    understood = Understood(
        "VQA questions", files, 0, ["image_id", "question", *(["answers"] if notes else [])], split, left_out
    )
    return Rows(f"vqa/{split or folder.name}", rows, pictures, understood, "questions")


def _gqa(found: Found, split: str, folder: Path, pictures: Pictures) -> Rows:
    """GQA (Hudson & Manning, CVPR 2019): questions by their number."""
    rows: list[Any] = []
    _once(found["gqa"], lambda value: value)
    for _, value in found["gqa"]:
        for key, q in value.items():
            row: Row = {"question": q["question"], "image": f"{q['imageId']}.jpg", "key": str(key)}
            if q.get("answer") is not None:
                row["answer"] = str(q["answer"])
            kinds = q.get("types")
            if isinstance(kinds, dict) and kinds.get("structural"):
                row["kind"] = str(kinds["structural"])
            rows.append(row)
    files = [p.name for p, _ in found["gqa"]]
    return Rows(
        f"gqa/{split}",
        rows,
        pictures,
        Understood("GQA questions", files, 0, ["imageId", "question", "answer"], split),
        "questions",
    )


def _list(found: Found, split: str, folder: Path, pictures: Pictures, wanted_split: str = "") -> Rows:
    """Lists of records: LAVIS's and BLIP's captions and questions, LLaVA's conversations, and one's own."""
    tables = [as_table(path, value) for path, value in found["list"]]
    talks = any("conversations" in t.columns for t in tables)
    return from_tables(folder, tables, split, pictures, "LLaVA conversations" if talks else "JSON list", wanted_split)


READERS: dict[frozenset[str], Callable[[Found, str, Path, Pictures], Rows]] = {
    frozenset({"captions"}): _coco,
    frozenset({"instances"}): _coco,
    frozenset({"captions", "instances"}): _coco,
    frozenset({"questions"}): _questions,
    frozenset({"questions", "answers"}): _questions,
    frozenset({"gqa"}): _gqa,
    frozenset({"list"}): _list,
}

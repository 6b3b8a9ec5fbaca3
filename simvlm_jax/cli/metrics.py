"""`simvlm metrics caption | vqa`: BLEU, ROUGE-L and CIDEr-D as the COCO scorer has them, accuracy as the VQA scorer has it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import MOST_TABLE, can_be_written, read_json, write_whole
from simvlm_jax.run.directory import not_of_a_run


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="simvlm metrics", description="Score answers as the official tools do.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    caption = kinds.add_parser("caption", help="BLEU-1..4, ROUGE-L, CIDEr-D")
    caption.add_argument("--hypotheses", required=True, help='COCO results: [{"image_id", "caption"}]')
    caption.add_argument("--references", required=True, help='{"image_id": [captions]}, or COCO annotations')
    caption.add_argument(
        "--meteor",
        nargs="?",
        const="",
        metavar="JAR",
        help="METEOR 1.5 too, by its own program: needs Java, and pip install pycocoevalcap (or the path of meteor-1.5.jar)",
    )
    caption.add_argument(
        "--intervals", action="store_true", help="95 %% confidence intervals too, by the bootstrap over images"
    )
    caption.add_argument("--json", action="store_true", help="print one JSON object")
    caption.add_argument("--per-image", metavar="OUT", help="write each image's scores to this JSON file")
    vqa = kinds.add_parser("vqa", help="VQA accuracy")
    vqa.add_argument("--predictions", required=True, help='[{"question_id", "answer"}]')
    vqa.add_argument(
        "--annotations",
        required=True,
        help='[{"question_id", "answers": [10 texts]}], or the official file with {"annotations": [...]}',
    )
    vqa.add_argument(
        "--intervals",
        action="store_true",
        help="95 %% confidence intervals too, by the bootstrap over images; needs the annotations' image_id",
    )
    vqa.add_argument("--json", action="store_true", help="print one JSON object")
    vqa.add_argument("--per-question", metavar="OUT", help="write each question's accuracy to this JSON file")
    args = parser.parse_args(argv)
    return _vqa(args) if args.kind == "vqa" else _caption(args)


def _caption(args) -> int:
    from simvlm_jax.eval.metrics.bootstrap import intervals
    from simvlm_jax.eval.metrics.caption import caption_scores_per_image, caption_sums
    from simvlm_jax.eval.metrics.meteor import find_jar, meteor

    _may_be_written(args.per_image, args.hypotheses, args.references)
    ids, hypotheses, references = read_caption_files(args.hypotheses, args.references)
    jar = None if args.meteor is None else find_jar(args.meteor)
    scores, sums = caption_sums(hypotheses, references)
    each: list[float] = []
    if jar is not None:
        scores["meteor"], each, sums["meteor"] = meteor(hypotheses, references, jar)
    sure = intervals(sums) if args.intervals else {}
    if args.per_image:
        rows = caption_scores_per_image(hypotheses, references)
        rows = [{**row, "meteor": m} for row, m in zip(rows, each, strict=True)] if each else rows
        write_whole(args.per_image, json.dumps(dict(zip(ids, rows, strict=True)), indent=1))
    if args.json:
        print(json.dumps({**scores, **({"intervals": sure} if sure else {})}))
    else:
        between = {k: f"   {low:.4f} to {high:.4f}" for k, (low, high) in sure.items()}
        print("\n".join(f"{k:8} {v:.4f}{between.get(k, '')}" for k, v in scores.items()))
    return 0


def _vqa(args) -> int:
    from simvlm_jax.eval.metrics.vqa import vqa_accuracy

    _may_be_written(args.per_question, args.predictions, args.annotations)
    answers, annotations = read_vqa_files(args.predictions, args.annotations)
    each = {key: 100 * vqa_accuracy(answer, annotations[key]["answers"]) for key, answer in answers.items()}

    def mean(keys: list[str]) -> float:
        return round(sum(each[k] for k in keys) / len(keys), 2)  # the official scorer prints two digits

    scores: dict[str, Any] = {"accuracy": mean(list(each)), "questions": len(each)}
    for name in ("answer_type", "question_type"):
        kinds = sorted({str(a[name]) for a in annotations.values() if a.get(name) is not None})
        if kinds:
            scores[name] = {kind: mean([k for k in each if str(annotations[k].get(name)) == kind]) for kind in kinds}
    sure = _vqa_intervals(each, annotations, args.annotations, list(scores)[2:]) if args.intervals else {}
    few = sum(len(annotations[k]["answers"]) < 4 for k in each)
    if few:
        print(
            f"{few} of {len(each)} questions have fewer than four answers; leaving one out, the official formula gives no "
            "prediction full marks there",
            file=sys.stderr,
        )
    if args.per_question:
        write_whole(args.per_question, json.dumps({k: round(v, 2) for k, v in each.items()}, indent=1))
    if args.json:
        print(json.dumps({**scores, **({"intervals": sure} if args.intervals else {})}))
    else:
        print(f"accuracy  {scores['accuracy']:.2f}{_between(sure.get('accuracy'))}\nquestions {scores['questions']}")
        for name in ("answer_type", "question_type"):
            for kind, value in scores.get(name, {}).items():
                print(f"  {kind:20} {value:.2f}{_between(sure.get(name, {}).get(kind))}")
    return 0


def _vqa_intervals(
    each: dict[str, float], annotations: dict[str, dict[str, Any]], path: str, names: list[str]
) -> dict[str, Any]:
    """{"accuracy": (low, high), and for each of `names` {kind: (low, high)}}; nothing of what is about one image alone.

    Raises:
      ValueError: a question does not say which image it is about.
    """
    from simvlm_jax.eval.metrics.bootstrap import intervals, mean_of

    if without := [k for k in each if annotations[k].get("image_id") is None]:
        raise ValueError(
            f"{path}: question {without[0]!r} has no image_id ({len(without)} in all); questions about one image are drawn "
            "together, so that intervals need it. Leave --intervals out, or add it"
        )

    def of(keys: list[str]) -> Any:
        return mean_of([each[k] for k in keys], [str(annotations[k]["image_id"]) for k in keys])

    found: dict[str, Any] = _rounded(intervals({"accuracy": of(list(each))}))
    for name in names:
        kinds: dict[str, list[str]] = {}
        for k in each:
            kinds.setdefault(str(annotations[k].get(name)), []).append(k)
        found[name] = _rounded(intervals({kind: of(keys) for kind, keys in kinds.items()}))
    if "accuracy" not in found:
        print("all questions are about one image, so that there are no intervals", file=sys.stderr)
    return found


def _rounded(pairs: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    return {k: (round(low, 2), round(high, 2)) for k, (low, high) in pairs.items()}


def _between(pair: tuple[float, float] | None) -> str:
    return f"   {pair[0]:.2f} to {pair[1]:.2f}" if pair else ""


def _may_be_written(out: str | None, *inputs: str) -> None:
    """Refuses a place for scores that cannot be written, or is one of the files that are scored."""
    if out:
        can_be_written(out)
        not_of_a_run(out)
        if any(Path(out).resolve() == Path(given).resolve() for given in inputs):
            raise ValueError(f"{out} is one of the files that are scored; name another place for the scores")


def read_vqa_files(predictions: str, annotations: str) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """(answers, annotations) by question id, checked against each other; `answers` of an annotation are texts.

    Raises:
      ValueError: a file of another form; a question twice, without annotation, or without an answer.
    """
    rows, notes = (
        read_json(predictions, unique=True, most=MOST_TABLE),
        read_json(annotations, unique=True, most=MOST_TABLE),
    )
    notes = notes.get("annotations", notes) if isinstance(notes, dict) else notes
    _rows_with(rows, predictions, "question_id", "answer")
    _rows_with(notes, annotations, "question_id", "answers")
    truth: dict[str, dict[str, Any]] = {}
    for note in notes:
        key, given = _id(note["question_id"], annotations), note["answers"]
        given = [a.get("answer") if isinstance(a, dict) else a for a in given] if isinstance(given, list) else []
        if not given or not all(isinstance(a, str) for a in given):
            raise ValueError(f"{annotations}: `answers` of question {key!r} must be a list of texts, ten as a rule")
        if key in truth:
            raise ValueError(f"{annotations}: question {key!r} is annotated more than once")
        truth[key] = {**note, "answers": given}
    answers = _once(rows, predictions, "question_id", "answer", "question")
    if unknown := [k for k in answers if k not in truth]:
        raise ValueError(f"{annotations}: no annotation for question {unknown[0]!r} ({len(unknown)} in all)")
    if missing := [k for k in truth if k not in answers]:
        raise ValueError(f"{predictions}: no answer to question {missing[0]!r} ({len(missing)} in all)")
    return answers, truth


def _rows_with(rows: Any, path: str, *names: str) -> None:
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) and set(names) <= set(r) for r in rows):
        wanted = ", ".join(f'"{n}"' for n in names)
        raise ValueError(f"{path}: expected a list of {{{wanted}}}, with at least one")


def _once(rows: list[dict[str, Any]], path: str, key: str, text: str, what: str) -> dict[str, str]:
    """{id: text} of rows that name every id once."""
    texts: dict[str, str] = {}
    for row in rows:
        if not isinstance(row[text], str):
            raise ValueError(f"{path}: the {text} of {row[key]!r} is not text")
        if (name := _id(row[key], path)) in texts:
            raise ValueError(f"{path}: {what} {name!r} has more than one {text}")
        texts[name] = row[text]
    return texts


def _id(value: Any, path: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{path}: {value!r:.80} is no id; ids are texts or whole numbers")
    return str(value)


def read_caption_files(hypotheses: str, references: str) -> tuple[list[str], list[str], list[list[str]]]:
    """(image ids, captions, references), checked against each other.

    Captions are COCO's results or {id: [caption]}; references {id: [captions]} (a caption being a text or {"caption": text}, as
    pycocoevalcap takes them) or COCO's annotations.

    Raises:
      ValueError: a file of another form; an id twice, without references, or without a caption.
    """
    rows: Any = read_json(hypotheses, unique=True, most=MOST_TABLE)
    truth = _references(references)
    if isinstance(rows, dict) and rows and all(isinstance(v, list) and len(v) == 1 for v in rows.values()):
        rows = [{"image_id": k, "caption": v[0]} for k, v in rows.items()]
        rows = [
            {**r, "caption": _caption_of(r["caption"], f"{hypotheses}: the caption of {r['image_id']!r}")} for r in rows
        ]
    _rows_with(rows, hypotheses, "image_id", "caption")
    listed: Any = rows
    captions = _once(listed, hypotheses, "image_id", "caption", "image")
    if unknown := [k for k in captions if k not in truth]:
        raise ValueError(f"{references}: no references for image {unknown[0]!r} ({len(unknown)} in all)")
    if missing := [k for k in truth if k not in captions]:
        raise ValueError(f"{hypotheses}: no caption for image {missing[0]!r} ({len(missing)} in all)")
    ids = list(captions)
    return ids, [captions[k] for k in ids], [truth[k] for k in ids]


def _references(path: str) -> dict[str, list[str]]:
    """{image id: captions}."""
    value = read_json(path, unique=True, most=MOST_TABLE)
    if isinstance(value, dict) and isinstance(notes := value.get("annotations"), list):
        _rows_with(notes, path, "image_id", "caption")
        value = {}
        for note in notes:
            value.setdefault(str(note["image_id"]), []).append(note["caption"])
    if not isinstance(value, dict) or not value or not all(isinstance(v, list) and v for v in value.values()):
        raise ValueError(f'{path}: expected {{"image_id": [captions]}} with at least one caption each')
    return {k: [_caption_of(c, f"{path}: a caption of {k!r}") for c in v] for k, v in value.items()}


def _caption_of(value: Any, what: str) -> str:
    found = value.get("caption") if isinstance(value, dict) else value
    if not isinstance(found, str):
        raise ValueError(f"{what} is {value!r:.80}, not text")
    return found

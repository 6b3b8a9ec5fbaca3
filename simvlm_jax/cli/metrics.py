"""`simvlm metrics caption | vqa`: BLEU, ROUGE-L and CIDEr-D as the COCO scorer has them, accuracy as the VQA scorer has it."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="simvlm metrics", description="Score answers as the official tools do.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    caption = kinds.add_parser("caption", help="BLEU-1..4, ROUGE-L, CIDEr-D")
    caption.add_argument("--hypotheses", required=True, help='COCO results: [{"image_id", "caption"}]')
    caption.add_argument("--references", required=True, help='{"image_id": [captions]}')
    caption.add_argument("--json", action="store_true", help="print one JSON object")
    caption.add_argument("--per-image", metavar="OUT", help="write each image's scores to this JSON file")
    vqa = kinds.add_parser("vqa", help="VQA accuracy")
    vqa.add_argument("--predictions", required=True, help='[{"question_id", "answer"}]')
    vqa.add_argument(
        "--annotations",
        required=True,
        help='[{"question_id", "answers": [10 texts]}], or the official file with {"annotations": [...]}',
    )
    vqa.add_argument("--json", action="store_true", help="print one JSON object")
    vqa.add_argument("--per-question", metavar="OUT", help="write each question's accuracy to this JSON file")
    args = parser.parse_args(argv)
    return _vqa(args) if args.kind == "vqa" else _caption(args)


def _caption(args) -> int:
    from simvlm_jax.eval.metrics.caption import caption_scores, caption_scores_per_image

    ids, hypotheses, references = read_caption_files(args.hypotheses, args.references)
    scores = caption_scores(hypotheses, references)
    if args.per_image:
        rows = caption_scores_per_image(hypotheses, references)
        Path(args.per_image).write_text(json.dumps(dict(zip(ids, rows, strict=True)), indent=1))
    print(json.dumps(scores) if args.json else "\n".join(f"{k:8} {v:.4f}" for k, v in scores.items()))
    return 0


def _vqa(args) -> int:
    from simvlm_jax.eval.metrics.vqa import vqa_accuracy

    answers, annotations = read_vqa_files(args.predictions, args.annotations)
    each = {key: 100 * vqa_accuracy(answer, annotations[key]["answers"]) for key, answer in answers.items()}

    def mean(keys: list[str]) -> float:
        return round(sum(each[k] for k in keys) / len(keys), 2)  # the official scorer prints two digits

    scores: dict[str, Any] = {"accuracy": mean(list(each)), "questions": len(each)}
    for name in ("answer_type", "question_type"):
        kinds = sorted({str(a[name]) for a in annotations.values() if a.get(name) is not None})
        if kinds:
            scores[name] = {kind: mean([k for k in each if str(annotations[k].get(name)) == kind]) for kind in kinds}
    few = sum(len(annotations[k]["answers"]) < 4 for k in each)
    if few:
        print(
            f"{few} of {len(each)} questions have fewer than four answers; leaving one out, the official formula gives no "
            "prediction full marks there",
            file=sys.stderr,
        )
    if args.per_question:
        Path(args.per_question).write_text(json.dumps({k: round(v, 2) for k, v in each.items()}, indent=1))
    if args.json:
        print(json.dumps(scores))
    else:
        print(f"accuracy  {scores['accuracy']:.2f}\nquestions {scores['questions']}")
        for name in ("answer_type", "question_type"):
            for kind, value in scores.get(name, {}).items():
                print(f"  {kind:20} {value:.2f}")
    return 0


def read_vqa_files(predictions: str, annotations: str) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """(answers, annotations) by question id, checked against each other; `answers` of an annotation are texts.

    Raises:
      ValueError: a file of another form; a question twice, without annotation, or without an answer.
    """
    rows, notes = _load(predictions), _load(annotations)
    notes = notes.get("annotations", notes) if isinstance(notes, dict) else notes
    _rows_with(rows, predictions, "question_id", "answer")
    _rows_with(notes, annotations, "question_id", "answers")
    truth: dict[str, dict[str, Any]] = {}
    for note in notes:
        key, given = str(note["question_id"]), note["answers"]
        given = [a.get("answer") if isinstance(a, dict) else a for a in given] if isinstance(given, list) else []
        if not given or not all(isinstance(a, str) for a in given):
            raise ValueError(f"{annotations}: `answers` of question {key!r} must be a list of texts, ten as a rule")
        if key in truth:
            raise ValueError(f"{annotations}: question {key!r} is annotated more than once")
        truth[key] = {**note, "answers": given}
    said = _once(rows, predictions, "question_id", "answer", "question")
    if unknown := [k for k in said if k not in truth]:
        raise ValueError(f"{annotations}: no annotation for question {unknown[0]!r} ({len(unknown)} in all)")
    if missing := [k for k in truth if k not in said]:
        raise ValueError(f"{predictions}: no answer to question {missing[0]!r} ({len(missing)} in all)")
    return said, truth


def _rows_with(rows: Any, path: str, *names: str) -> None:
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) and set(names) <= set(r) for r in rows):
        wanted = ", ".join(f'"{n}"' for n in names)
        raise ValueError(f"{path}: expected a list of {{{wanted}}}, with at least one")


def _once(rows: list[dict[str, Any]], path: str, key: str, text: str, what: str) -> dict[str, str]:
    """{id: text} of rows that name every id once."""
    said: dict[str, str] = {}
    for row in rows:
        if not isinstance(row[text], str):
            raise ValueError(f"{path}: the {text} of {row[key]!r} is not text")
        if str(row[key]) in said:
            raise ValueError(f"{path}: {what} {str(row[key])!r} has more than one {text}")
        said[str(row[key])] = row[text]
    return said


def read_caption_files(hypotheses: str, references: str) -> tuple[list[str], list[str], list[list[str]]]:
    """(image ids, captions, references), checked against each other.

    Raises:
      ValueError: a file of another form; an id twice, without references, or without a caption.
    """
    rows, truth = _load(hypotheses), _load(references)
    _rows_with(rows, hypotheses, "image_id", "caption")
    if not isinstance(truth, dict) or not all(isinstance(v, list) and v for v in truth.values()):
        raise ValueError(f'{references}: expected {{"image_id": [captions]}} with at least one caption each')
    said = _once(rows, hypotheses, "image_id", "caption", "image")
    if unknown := [k for k in said if k not in truth]:
        raise ValueError(f"{references}: no references for image {unknown[0]!r} ({len(unknown)} in all)")
    if missing := [k for k in truth if k not in said]:
        raise ValueError(f"{hypotheses}: no caption for image {missing[0]!r} ({len(missing)} in all)")
    ids = list(said)
    return ids, [said[k] for k in ids], [[str(c) for c in truth[k]] for k in ids]


def _load(path: str) -> Any:
    try:
        return json.loads(
            Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=lambda pairs: _unique(path, pairs)
        )
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 (byte {e.start}); save it as UTF-8") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"{path} is not JSON: {e}") from e


def _unique(path: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names stand once each; JSON itself would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
        raise ValueError(f"{path}: {twice!r} stands more than once")
    return found

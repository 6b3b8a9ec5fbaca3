"""`simvlm metrics caption --hypotheses H.json --references R.json`: BLEU, ROUGE-L and CIDEr-D as the COCO scorer has them."""

import argparse
import json
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
    args = parser.parse_args(argv)

    from simvlm_jax.eval.metrics.caption import caption_scores, caption_scores_per_image

    ids, hypotheses, references = read_caption_files(args.hypotheses, args.references)
    scores = caption_scores(hypotheses, references)
    if args.per_image:
        rows = caption_scores_per_image(hypotheses, references)
        Path(args.per_image).write_text(json.dumps(dict(zip(ids, rows, strict=True)), indent=1))
    print(json.dumps(scores) if args.json else "\n".join(f"{k:8} {v:.4f}" for k, v in scores.items()))
    return 0


def read_caption_files(hypotheses: str, references: str) -> tuple[list[str], list[str], list[list[str]]]:
    """(image ids, captions, references), checked against each other.

    Raises:
      ValueError: a file of another form; an id twice, without references, or without a caption.
    """
    rows, truth = _load(hypotheses), _load(references)
    if not isinstance(rows, list) or not all(isinstance(r, dict) and {"image_id", "caption"} <= set(r) for r in rows):
        raise ValueError(f'{hypotheses}: expected a list of {{"image_id", "caption"}}')
    if not isinstance(truth, dict) or not all(isinstance(v, list) and v for v in truth.values()):
        raise ValueError(f'{references}: expected {{"image_id": [captions]}} with at least one caption each')
    if bad := [r["image_id"] for r in rows if not isinstance(r["caption"], str)]:
        raise ValueError(f"{hypotheses}: the caption of {bad[0]!r} is not text")
    said: dict[str, str] = {}
    for row in rows:
        key = str(row["image_id"])
        if key in said:
            raise ValueError(f"{hypotheses}: image {key!r} has more than one caption")
        said[key] = row["caption"]
    if unknown := [k for k in said if k not in truth]:
        raise ValueError(f"{references}: no references for image {unknown[0]!r} ({len(unknown)} in all)")
    if missing := [k for k in truth if k not in said]:
        raise ValueError(f"{hypotheses}: no caption for image {missing[0]!r} ({len(missing)} in all)")
    ids = list(said)
    return ids, [said[k] for k in ids], [[str(c) for c in truth[k]] for k in ids]


def _load(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path} is not JSON: {e}") from e

"""`simvlm data show PATH`: what a path is understood as, and its rows, one JSON object per line, without their pictures."""

import argparse
import json
import sys
from typing import Any

FIELDS = ("label", "labels", "question", "answer", "answers", "texts", "text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="what config.data.parts.pairs.path would be")
    parser.add_argument("--split", help="the split to show (default: train, or the only one there is)")
    parser.add_argument("--limit", type=int, default=0, help="so many rows (default: all)")
    parser.add_argument("--columns", default="", help="names of a table's columns: image=filepath,caption=title")
    parser.add_argument("--truncated", action="store_true", help="take a tar that was cut for what it still holds")
    parser.add_argument("--json", action="store_true", help="what was understood as a JSON object too")


def show(args) -> int:
    """Prints what was understood on stderr and the rows on stdout; returns 1 if a row of those shown cannot be read."""
    from simvlm_jax.data.source import Source, understood, without_pictures
    from simvlm_jax.data.sources import open_one_split

    if args.limit < 0:
        raise ValueError(f"--limit {args.limit} must not be negative")
    source: Source = open_one_split(args.path, args.split, columns=args.columns, truncated=args.truncated)
    summary, bad = understood(source), 0
    if args.json:
        print(
            json.dumps({**vars(summary), "left_out": dict(summary.left_out)}, ensure_ascii=False),
            file=sys.stderr,
            flush=True,
        )
    else:
        print(f"{args.path}: {summary.line()}", file=sys.stderr, flush=True)
    for i in range(min(args.limit, len(source)) if args.limit else len(source)):
        try:
            print(json.dumps(_row(source.key(i), without_pictures(source, i)), ensure_ascii=False))
        except Exception as e:  # people's files fail in any way they like
            bad += 1
            print(f"left out {source.key(i)!r}: {e}", file=sys.stderr)
    return 1 if bad else 0


def _row(key: str, example: dict[str, Any]) -> dict[str, Any]:
    """What is shown of an example: plain values alone."""
    row: dict[str, Any] = {"key": key, "captions": list(example.get("captions", ()))}
    return row | {k: _plain(example[k]) for k in FIELDS if example.get(k) is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value

"""`simvlm data web`: lists or tars of web pictures, cleaned into a TFDS data set, on one machine or many."""

import argparse
import dataclasses
import json
import logging
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments; those it does not know go to Beam (--runner=DataflowRunner ...)."""
    parser.description = (
        "Check, filter, shrink and de-duplicate pictures with captions, and write them as array_record shards that "
        "--config.data.parts.pairs.path=OUT reads. Inputs are WebDataset tars, or tables (.jsonl, .csv, .tsv, .parquet) with a column "
        "url or image and a column caption. Run it again to continue. Further flags are Beam's (--runner=FlinkRunner ...)."
    )
    parser.add_argument(
        "inputs", nargs="+", help="files or patterns, also of gs:// and other file systems that Beam knows"
    )
    parser.add_argument("--out", required=True, help="the folder of the data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--side", type=int, default=256, help="shorter side of a stored picture")
    parser.add_argument("--smallest", type=int, default=64, help="shorter side of what is accepted")
    parser.add_argument("--aspect", type=float, default=4.0, help="longest side over the shortest, at most")
    parser.add_argument("--words", default="2-60", help="of a caption, LEAST-MOST")
    parser.add_argument(
        "--near", type=int, default=3, help="bits of 64 in which near duplicates may differ (-1: keep them)"
    )
    parser.add_argument("--quality", type=int, default=90, help="of JPEG")
    parser.add_argument("--rows", type=int, default=10_000, help="of a shard, before filtering")
    parser.add_argument(
        "--timeout", type=float, default=10.0, help="seconds for a server to answer, and again for the picture"
    )
    parser.add_argument("--json", action="store_true", help="the counts as one JSON object")


def prepare(args: argparse.Namespace, options: list[str]) -> int:
    """Runs the pipeline and says what became of the rows."""
    logging.disable(logging.WARNING)  # Beam tells of Google's packages, which it does without
    try:
        from simvlm_jax.jobs import web_pipeline
    except ModuleNotFoundError as e:
        if "apache_beam" not in str(e):
            raise
        raise ValueError("simvlm data web needs Apache Beam; pip install -e .[beam]") from e
    finally:
        logging.disable(logging.NOTSET)
    from simvlm_jax.jobs.web import Settings

    least, mark, most = args.words.partition("-")
    if not (mark and least.isdigit() and most.isdigit()):
        raise ValueError(f"--words {args.words!r} is not LEAST-MOST, such as 2-60")
    fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(Settings) if f.name != "words"}
    settings = Settings(**fields, words=(int(least), int(most)))
    counts = web_pipeline.prepare(args.inputs, args.out, settings, args.split, options)
    if args.json:
        print(json.dumps(counts))
        return 0
    print(f"{counts['in']:,} rows in, {counts['out']:,} out to {args.out} ({args.split})")
    for reason, n in sorted(counts["dropped"].items(), key=lambda item: -item[1]):
        print(f"  {n:>9,}  {reason}")
    print(f"train on it: --config.data.parts.pairs.path={args.out}", file=sys.stderr)
    return 0

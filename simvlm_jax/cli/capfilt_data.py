"""`simvlm data capfilt CAPTIONER FILTER --data PATH --out DIR`: captions written, texts filtered, a data set of what stays."""

import argparse
import json
import sys
from pathlib import Path

NOBODY = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write captions of a data set's pictures, drop the texts (its own and the written ones) that do not match, and write what "
        "stays as tars that --config.data.parts.pairs.path=OUT reads (CapFilt, arXiv 2201.12086). The same command continues."
    )
    parser.add_argument("captioner", help=f"a run that writes, or {NOBODY} for none")
    parser.add_argument(
        "filter",
        help=f"a run that scores pairs (score_pair) or compares them (similarity, with --threshold), or {NOBODY} for none",
    )
    parser.add_argument("--data", required=True, help="the data set: tars, a folder, a table, a TFDS name")
    parser.add_argument("--split", help="of --data (default: train, or the only one there is)")
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument(
        "--captioner", action="append", default=[], dest="captioners", metavar="RUN", help="one more that writes"
    )
    parser.add_argument(
        "--filter", action="append", default=[], dest="filters", metavar="RUN", help="one more that filters"
    )
    parser.add_argument("--captions", type=int, default=1, help="written a picture by each captioner")
    parser.add_argument(
        "--prompt", default="", help='what captioners continue, such as "a picture of"; it is no part of the caption'
    )
    parser.add_argument("--top-p", type=float, default=0.9, help="nucleus of the sampling")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.1)
    parser.add_argument("--min-length", type=int, default=0, help="pieces before a caption may end")
    parser.add_argument(
        "--max-length", type=int, default=0, help="pieces of a caption (default: all there is room for)"
    )
    parser.add_argument("--beams", type=int, default=1, help="a beam search in place of sampling")
    parser.add_argument(
        "--threshold", type=float, help="least cosine of a match, of filters that compare by similarity"
    )
    parser.add_argument(
        "--odds", type=float, default=0.0, help="least log odds of a match, of filters that have score_pair"
    )
    parser.add_argument("--agree", type=int, help="filters that must find a match (default: more than half)")
    parser.add_argument("--drop-web", action="store_true", help="keep none of the data's own texts")
    parser.add_argument("--bad", type=float, default=0.05, help="share of pictures that may be unreadable")
    parser.add_argument("--rows", type=int, default=1000, help="pictures of a part, one tar")
    parser.add_argument("--shard", default="0/1", help="I/N: do every N-th part, from I on; whoever comes last sums up")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of sampled captions")
    parser.add_argument("--json", action="store_true", help="the counts as one JSON object")


def capfilt(args: argparse.Namespace) -> int:
    """Makes this process' parts, and where they were the last ones counts.json and the page."""
    from simvlm_jax.core.files import printable, write_whole
    from simvlm_jax.core.lock import held
    from simvlm_jax.data.assemble import eval_pixels
    from simvlm_jax.data.source import understood
    from simvlm_jax.data.sources import open_one_split
    from simvlm_jax.decode.decoding import Decoding
    from simvlm_jax.decode.sampling import Sampler
    from simvlm_jax.eval.provenance import weights_hash
    from simvlm_jax.infer.engine import load_engine
    from simvlm_jax.jobs.capfilt import COUNTS, Member, Settings, capfilt_parts, check_filter, check_folder, summary
    from simvlm_jax.jobs.capfilt_page import REPORT, write_page
    from simvlm_jax.jobs.embed import stamp
    from simvlm_jax.parallel.environment import setup_jax
    from simvlm_jax.run.directory import not_of_a_run

    index, _, shards = args.shard.partition("/")
    if not (index.isdigit() and shards.isdigit() and int(index) < int(shards)):
        raise ValueError(f"--shard {args.shard!r} is not I/N with I below N, such as 0/4")
    captioners = [r for r in (args.captioner, *args.captioners) if r != NOBODY]
    filters = [r for r in (args.filter, *args.filters) if r != NOBODY]
    if not captioners and not filters:
        raise ValueError("with neither captioner nor filter nothing would change; name one of them")
    if args.drop_web and not captioners:
        raise ValueError("--drop-web without a captioner leaves no text; name a captioner")
    folder = Path(args.out).expanduser()
    not_of_a_run(folder / COUNTS)
    agree = len(filters) // 2 + 1 if args.agree is None else args.agree
    if filters and not 1 <= agree <= len(filters):
        raise ValueError(f"--agree {agree} of {len(filters)} filters; name 1 to {len(filters)}")
    sampler = Sampler() if args.beams > 1 or not args.temperature else Sampler(args.temperature, 0, args.top_p)
    how = Decoding(
        args.max_length, args.min_length, args.beams, repetition_penalty=args.repetition_penalty, sampler=sampler
    )
    settings = Settings(
        captions=args.captions if captioners else 0,
        how=how,
        prompt=args.prompt,
        agree=max(agree, 1),
        rows=args.rows,
        seed=args.seed,
        keep_web=not args.drop_web,
        bad=args.bad,
    )
    if settings.captions > 1 and not how.sampler.temperature:
        raise ValueError(
            f"--captions {settings.captions} without sampling would be the same caption so many times; leave out --beams, or set "
            "--temperature"
        )
    check_folder(folder)
    setup_jax()
    source = open_one_split(args.data, args.split)
    print(printable(f"{args.data}: {understood(source).line()}"), file=sys.stderr, flush=True)
    engines, weights, pixels = {}, {}, {}
    for run in dict.fromkeys((*captioners, *filters)):
        engines[run], loaded = load_engine(run, None, args.batch_size)
        weights[run] = f"step {loaded.step} {weights_hash((loaded.params, loaded.extra))}"
        pixels[run] = eval_pixels(loaded.config.data)

    def least(run: str) -> float:
        """The score from which on a filter finds a match."""
        return args.odds if engines[run].has("score_pair") or args.threshold is None else args.threshold

    writing = [Member(run, engines[run], pixels[run]) for run in captioners]
    scoring = [Member(run, engines[run], pixels[run], least(run)) for run in filters]
    for member in writing:
        member.engine.require("captioning", "prefill", "extend")
    for member in scoring:
        check_filter(member, args.threshold is not None)
    about = {
        "captioners": [weights[run] for run in captioners],
        "filters": [weights[run] for run in filters],
        "thresholds": [least(run) for run in filters],
        "pixels": [repr(pixels[run]) for run in (*captioners, *filters)],
        "tokenizers": [engines[run].tokenizer.sha256 for run in (*captioners, *filters)],
        "files": stamp(args.data, folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    mine = lambda part: part % int(shards) == int(index)  # noqa: E731
    split = args.split or "train"
    with held(folder, "captions and filters into", f"running-{index}-of-{shards}.lock"):
        notes = capfilt_parts(source, writing, scoring, settings, folder, about, mine, split)
    if notes["answers_cut"]:
        print(f"{notes['answers_cut']:,} captions ended for want of room; see --max-length", file=sys.stderr)
    if notes["texts_cut"]:
        print(
            f"{notes['texts_cut']:,} texts are longer than the filter's, and were judged by their beginning",
            file=sys.stderr,
        )
    counts = summary(folder)
    if counts is None:
        print(f"this shard's parts are in {folder}; whoever makes the last one sums up", file=sys.stderr)
        return 0
    write_page(folder, source, counts, filters)
    write_whole(folder / COUNTS, json.dumps(counts, indent=1), own=True)
    if args.json:
        print(json.dumps(counts))
        return 0
    print(f"{counts['in']:,} texts in, {counts['written']:,} written, {counts['kept']:,} kept in {folder}")
    for reason, n in sorted(counts["dropped"].items(), key=lambda item: -item[1]):
        print(f"  {n:>9,}  {reason}")
    if not counts["kept"]:
        print("no text was kept, so there is nothing to train on; is the filter trained?", file=sys.stderr)
    print(f"look at it: {folder / REPORT}; train on it: --config.data.parts.pairs.path={folder}", file=sys.stderr)
    return 0

"""`simvlm eval RUN --suite NAME [--out results.json]`: scores a trained run, with everything a score depends on."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    """Evaluates a run by one suite and prints (or writes) the entries of results.json."""
    parser = argparse.ArgumentParser(prog="simvlm eval", description="Score a trained run.")
    parser.add_argument("run", nargs="?", help="a run directory")
    parser.add_argument("--suite", help="one of the run's own suites or of those of --list")
    parser.add_argument("--list", action="store_true", help="list the suites")
    parser.add_argument("--data", help="data to evaluate on (default: the suite's, or the run's)")
    parser.add_argument(
        "--split",
        action="append",
        help="a split of --data or of the suite's own data, else one that the run's config names; may be given more than once",
    )
    parser.add_argument("--limit", type=int, help="so many of an even spread of examples, 0: all (default: the run's)")
    parser.add_argument("--step", type=int, help="the checkpoint's step (default: the best, or the newest)")
    parser.add_argument("--batch-size", type=int, help="rows a call; results do not depend on it")
    parser.add_argument("--seed", type=int, help="of sampled answers (default: the run's)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the suite, such as how.beams=4"
    )
    parser.add_argument("--no-controls", action="store_true", help="leave out the blind and the constant control")
    parser.add_argument("--out", help="write {step, entries} to this JSON file")
    parser.add_argument("--json", action="store_true", help="print {step, entries} as one JSON object")
    args = parser.parse_args(argv)

    from simvlm_jax.eval.suites import known

    if args.list:
        print("\n".join(f"{name:20} {what}" for name, (what, _) in known().items()))
        return 0
    if not args.run or not args.suite:
        parser.error("name a run and a --suite (see --list)")

    from simvlm_jax.core.build import assign, build
    from simvlm_jax.core.files import is_stream, printable, printable_lines, write_whole
    from simvlm_jax.core.schema import Seed, check
    from simvlm_jax.data import assemble
    from simvlm_jax.data.sources import open_split
    from simvlm_jax.eval.final import evaluate, make_examples, suite_sources
    from simvlm_jax.infer.engine import Engine
    from simvlm_jax.parallel.environment import setup_jax
    from simvlm_jax.run.directory import RunDir
    from simvlm_jax.run.load import load_run

    if args.seed is not None:
        check(args.seed, Seed, "--seed")
    if args.out:
        may_be_replaced(Path(args.out))
    config = RunDir(args.run).config()
    own = config["eval"].get("suites", {})
    if args.suite not in own and args.suite not in known():
        raise ValueError(f"no suite {args.suite!r}; the run has {', '.join(own) or 'none'}, and --list shows more")
    setup_jax()
    run = load_run(args.run, args.step)
    spec = run.config.eval.suites[args.suite] if args.suite in own else known()[args.suite][1]
    for assignment in args.set:
        assign(spec, assignment)
    if args.data:
        spec.path = args.data
    if args.split:
        for name in args.split if spec.path else ():
            open_split(spec.path, name)  # an error where it has none of that name
        spec.splits = {name: name for name in args.split}
    suite = build(spec, args.suite, tokenizer=run.tokenizer, labels=run.labels)
    rows = run.config.eval.batch_size if args.batch_size is None else args.batch_size
    seed: Any = run.config.seed if args.seed is None else args.seed
    limit = (suite.limit or run.config.eval.examples) if args.limit is None else args.limit
    engine = Engine(run.model, run.tokenizer, run.mesh, run.params, run.extra, run.labels, batch_size=rows, seed=seed)

    def log(text: str) -> None:
        print(printable_lines(text), file=sys.stderr, flush=True)

    seen = set()

    def left_out(bad: dict[str, Any]) -> None:
        if (bad["part"], bad["key"]) not in seen:  # a control reads everything again
            log(printable(f"left out {bad['key']!r}: {bad['error']}"))
        seen.add((bad["part"], bad["key"]))

    def texts() -> list[str]:
        return list(assemble.constant_captions(assemble.part_sources(run.config.data)))

    entries, found = [], {}
    sources = {} if suite.path else assemble.eval_sources(run.config.data)
    parts = suite_sources(suite, sources)
    for i, (split, source) in enumerate(parts.items()):
        examples = make_examples(
            suite, split, source, assemble.eval_pixels(run.config.data), limit, run.config.data.quarantine, left_out
        )
        controls = i == 0 and not args.no_controls
        made, _ = evaluate(engine, args.suite, suite, examples, run.step, controls=controls, texts=texts, log=log)
        entries += made
        found = {"run": str(args.run), "step": run.step, "entries": entries}
        if args.out and (i + 1 == len(parts) or not is_stream(args.out)):  # a pipe gets them all at once
            write_whole(Path(args.out), json.dumps(found, indent=1, default=str))
    if args.json:
        print(json.dumps(found, default=str))
    elif not args.out:
        for entry in entries:
            control = f", {entry['control']}" if entry["control"] else ""
            print(printable(f"{entry['suite']} · {entry['split']}{control}"))
            print("\n".join(f"  {printable(name):24} {value:.4f}" for name, value in entry["scores"].items()))
    return 0


def may_be_replaced(out: Path) -> None:
    """Refuses a place for scores where something else is, before any are made.

    Raises:
      ValueError: it is a file of a run directory, or holds something else than scores. OSError: it cannot be written.
    """
    from simvlm_jax.core.files import can_be_written, followed, read_json
    from simvlm_jax.core.schema import check
    from simvlm_jax.run.directory import not_of_a_run
    from simvlm_jax.run.schema import Results

    can_be_written(out)
    not_of_a_run(out)
    target = followed(out)
    if not target.is_file() or not target.stat().st_size:
        return
    try:
        check(read_json(target), Results, "it")
    except ValueError as e:
        raise ValueError(f"{out} exists and is not a file of scores ({e}); remove it, or name another place") from e

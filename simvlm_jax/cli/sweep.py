"""`simvlm sweep configs/sweeps/X.py [--out DOC.md]`: arms and seeds at equal compute, resumable, one table and figure."""

import argparse
import functools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import MOST_RECORD, can_be_written, printable, read_json, read_text, write_whole

BEGIN, END = "<!-- begin: made by simvlm sweep -->", "<!-- end -->"


def make_tokenizer(wanted: Any, folder: Path) -> Path:
    """The one tokenizer of all arms, trained on texts of all data sets that any of them reads."""
    from simvlm_jax.core.lock import turn
    from simvlm_jax.data.assemble import spread_texts
    from simvlm_jax.data.sources import open_source
    from simvlm_jax.text.tokenizer import CONTRACT, Tokenizer

    made_for = json.loads(json.dumps({k: wanted[k] for k in ("paths", "vocabulary", "length")}))
    say = functools.partial(print, file=sys.stderr, flush=True)
    with turn(folder.with_name(".tokenizer.lock"), say):  # another sweep may run other arms
        record = folder.with_name("tokenizer.json")
        if (folder / CONTRACT).exists() and record.exists() and read_json(record, most=MOST_RECORD) != made_for:
            raise ValueError(
                f"{folder} was trained for {read_json(record)}, and the sweep now wants {made_for}; remove the sweep's folder, or use "
                "another --workdir"
            )
        if not (folder / CONTRACT).exists():
            record.parent.mkdir(parents=True, exist_ok=True)
            write_whole(record, json.dumps(made_for), own=True)
            texts = [
                t for path, images in wanted["paths"] for t in spread_texts(open_source(path, images=images), 10_000)
            ]
            Tokenizer.train(texts, wanted["vocabulary"], wanted["length"]).save(folder)
    return folder


def _may_be_replaced(page: Path) -> None:
    """Refuses a page that has no place for the table, a figure that belongs to no page, and files of a run.

    Raises:
      ValueError, OSError: it is one, or cannot be written.
    """
    from simvlm_jax.run.directory import not_of_a_run

    for path in (page, page.with_suffix(".svg")):
        can_be_written(path, stream=False)
        not_of_a_run(path)
    if page.exists() and not {BEGIN, END} <= set(re.findall(r"<!--.*?-->", read_text(page))):
        raise ValueError(
            f"{page} exists and has no place for the table; add the lines {BEGIN!r} and {END!r}, or name another page"
        )
    if not page.exists() and page.with_suffix(".svg").exists():
        raise ValueError(f"{page.with_suffix('.svg')} exists and belongs to no page; remove it, or name another page")


def main(argv: list[str]) -> int:
    """Runs what is missing of a sweep, then writes its page."""
    parser = argparse.ArgumentParser(
        prog="simvlm sweep", description="Run a sweep, or go on with it, and write its page."
    )
    parser.add_argument("config", help="a file of configs/sweeps/")
    parser.add_argument("--workdir", help="where its runs lie (default: runs/sweeps/NAME)")
    parser.add_argument(
        "--out", help="a Markdown page to write the table into, the figure beside it (default: in the workdir)"
    )
    parser.add_argument("--seeds", type=int, help="only so many of its seeds")
    parser.add_argument("--arms", help="only these of its arms, with commas; the baseline is always one of them")
    parser.add_argument(
        "--steps-factor", type=float, default=1.0, help="train for so much of the steps, to try a sweep out"
    )
    parser.add_argument("--report-only", action="store_true", help="write the page of what has been run")
    args = parser.parse_args(argv)

    from simvlm_jax.core.build import load_config
    from simvlm_jax.experiment import run
    from simvlm_jax.parallel.environment import EXIT_INTERRUPTED, setup_jax, setup_xla
    from simvlm_jax.run.directory import RunDir
    from simvlm_jax.run.progress import duration
    from simvlm_jax.run.sweep import Clock, check, figure, markdown, summarise, trials
    from simvlm_jax.train.loop import Interrupted, NonFiniteLoss

    setup_xla()
    setup_jax()
    sweep: Any = load_config(args.config)
    check(sweep, args.config)
    if args.steps_factor <= 0:
        parser.error(f"--steps-factor {args.steps_factor:g} must be above 0")
    folder = Path(args.workdir or f"runs/sweeps/{sweep.name}").resolve()  # runs record where they started from
    if args.steps_factor != 1:
        folder = folder / f"steps-x{args.steps_factor:g}"
    if args.report_only and not folder.is_dir():
        raise ValueError(f"nothing of the sweep has been run in {folder}")
    if args.seeds is not None:
        if not 1 <= args.seeds <= len(sweep.seeds):
            parser.error(f"--seeds {args.seeds}: the sweep has {len(sweep.seeds)}, and one at least is needed")
        sweep.seeds = tuple(sweep.seeds)[: args.seeds]
    if args.arms:
        names = [arm.name for arm in sweep.arms]
        wanted = {names[0], *args.arms.split(",")}
        if unknown := wanted - set(names):
            parser.error(f"no arm {', '.join(sorted(unknown))}; the arms are {', '.join(names)}")
        sweep.arms = tuple(arm for arm in sweep.arms if arm.name in wanted)
    page = Path(args.out) if args.out else folder / "report.md"
    _may_be_replaced(page)
    every = trials(sweep, folder, make_tokenizer(sweep.tokenizer, folder / "tokenizer"), args.steps_factor)
    clock = Clock(folder)
    for i, trial in enumerate(every if not args.report_only else ()):
        took = [sum(clock.seconds.get(str(s.path), 0.0) for s in t.stages) for t in every if t.finished]
        left = sum(not t.finished for t in every[i:]) * sum(took) / max(len(took), 1)
        eta = f", about {duration(left)} left" if took and left else ""
        print(f"== {trial.arm}, seed {trial.seed} ({i + 1} of {len(every)}{eta})", file=sys.stderr, flush=True)
        for stage in trial.stages:
            began = time.perf_counter()
            try:
                stage.check()
                run(stage.config, str(stage.path), f"{sweep.name}:{stage.name}")
            except (Interrupted, KeyboardInterrupt):
                print("stopped; the same command continues", file=sys.stderr)
                return EXIT_INTERRUPTED
            except NonFiniteLoss as e:
                print(f"{trial.arm}, seed {trial.seed} is left out: {printable(str(e))}", file=sys.stderr)
                break
            finally:
                if time.perf_counter() - began > 1:  # a finished stage returns at once
                    clock.add(stage.path, time.perf_counter() - began)
    done = [t for t in every if t.finished]
    if not done:
        raise ValueError(f"nothing of the sweep has finished in {folder}")
    for stage in (s for t in done for s in t.stages):
        RunDir(stage.path).check(stage.config, f"{sweep.name}:{stage.name}")  # of the sweep as it is now
    summaries = summarise(sweep, done, clock.seconds)
    drawn = page.with_suffix(".svg")
    write_whole(drawn, figure(sweep, summaries))
    made = f"{BEGIN}\n\n{markdown(sweep, summaries, drawn.name)}\n{END}"
    before = read_text(page) if page.exists() else f"# {sweep.name}\n\n{BEGIN}{END}\n"
    start, rest = before.split(BEGIN, 1)  # what people wrote around the table stays
    write_whole(page, start + made + rest.split(END, 1)[1])
    print(f"{len(done)} of {len(every)} trials; {page} and {drawn}")
    return 0

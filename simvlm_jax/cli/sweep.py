"""`simvlm sweep configs/sweeps/X.py [--out DOC.md]`: arms and seeds at equal compute, resumable, one table and figure."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from simvlm_jax.core.files import can_be_written, read_text, write_whole

BEGIN, END = "<!-- begin: made by simvlm sweep -->", "<!-- end -->"


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
    parser, args = _parse(argv)

    from simvlm_jax.core.build import load_config
    from simvlm_jax.parallel.environment import EXIT_INTERRUPTED, setup_jax, setup_xla

    setup_xla()
    setup_jax()
    from simvlm_jax.sweep import Clock, check, make_tokenizer, run_trials, trials
    from simvlm_jax.train.loop import Interrupted

    sweep: Any = load_config(args.config)
    check(sweep, args.config)
    folder = _folder(parser, args, sweep)
    _choose(parser, args, sweep)
    page = Path(args.out) if args.out else folder / "report.md"
    _may_be_replaced(page)
    every = trials(sweep, folder, make_tokenizer(sweep.tokenizer, folder / "tokenizer"), args.steps_factor)
    clock = Clock(folder)
    try:
        run_trials([] if args.report_only else every, sweep.name, clock)
    except (Interrupted, KeyboardInterrupt):
        print("stopped; the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED
    done = [t for t in every if t.finished]
    if not done:
        raise ValueError(f"nothing of the sweep has finished in {folder}")
    _write_page(page, sweep, done, clock.seconds)
    print(f"{len(done)} of {len(every)} trials; {page} and {page.with_suffix('.svg')}")
    return 0


def _parse(argv: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
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
    return parser, parser.parse_args(argv)


def _folder(parser: argparse.ArgumentParser, args: argparse.Namespace, sweep: Any) -> Path:
    """Returns where the runs of a sweep lie; a fraction of the steps has a folder of its own."""
    if args.steps_factor <= 0:
        parser.error(f"--steps-factor {args.steps_factor:g} must be above 0")
    folder = Path(args.workdir or f"runs/sweeps/{sweep.name}").resolve()  # runs record where they started from
    if args.steps_factor != 1:
        folder = folder / f"steps-x{args.steps_factor:g}"
    if args.report_only and not folder.is_dir():
        raise ValueError(f"nothing of the sweep has been run in {folder}")
    return folder


def _choose(parser: argparse.ArgumentParser, args: argparse.Namespace, sweep: Any) -> None:
    """Leaves only the seeds and arms of a sweep that were asked for."""
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


def _write_page(page: Path, sweep: Any, done: list[Any], seconds: dict[str, float]) -> None:
    """Writes table and figure of finished trials; what people wrote around the table stays."""
    from simvlm_jax.run.directory import RunDir
    from simvlm_jax.run.sweep_page import figure, markdown
    from simvlm_jax.sweep import summarise

    for stage in (s for t in done for s in t.stages):
        RunDir(stage.path).check(stage.config, f"{sweep.name}:{stage.name}")  # of the sweep as it is now
    summaries = summarise(sweep, done, seconds)
    drawn = page.with_suffix(".svg")
    write_whole(drawn, figure(sweep, summaries))
    made = f"{BEGIN}\n\n{markdown(sweep, summaries, drawn.name)}\n{END}"
    before = read_text(page) if page.exists() else f"# {sweep.name}\n\n{BEGIN}{END}\n"
    start, rest = before.split(BEGIN, 1)
    write_whole(page, start + made + rest.split(END, 1)[1])

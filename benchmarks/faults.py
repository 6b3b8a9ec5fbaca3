"""What a run survives: python benchmarks/faults.py [--kills 50] [--only NAME] [--report-only]

Each fault is really made: processes are killed and stopped, disks filled, files deleted and damaged. It must end in a run
that continues exactly (parameters, optimizer, random key, metrics and samples equal, bit for bit, to those of a run that
nothing happened to) or in an error that names the thing and the mend. Keeps its rows in benchmarks/faults.jsonl and writes
the table of docs/reliability.md. Filling a disk needs the right to mount a small one; without it that row is left out.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simvlm_jax.cli.verify_resume import Drill
from simvlm_jax.run.compare import compare_rows, compare_states

ROOT = Path(__file__).resolve().parent.parent
KEPT, PAGE = ROOT / "benchmarks" / "faults.jsonl", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: made by benchmarks/faults.py -->", "<!-- end -->"
CONFIG = f"{ROOT / 'configs' / 'prefixlm.py'}:smoke"
STEPS = 240
EXACT, ERROR, LOST = "continues exactly", "clear error", "LOST SOMETHING"


class Bench:
    """A folder of runs, and the run that nothing happens to."""

    def __init__(self, folder: Path):
        self.folder = folder

    def drill(self, name: str, steps: int = STEPS, *more: str) -> Drill:
        fixed = [f"--config.train.steps={steps}", "--config.log.every=1", "--config.checkpoint.every=4"]
        return Drill(CONFIG, self.folder / name, [*fixed, "--config.checkpoint.latest=3", *more], 1)

    def whole(self, steps: int = STEPS) -> Path:
        """The undisturbed run of so many steps."""
        drill = self.drill(f"whole-{steps}", steps)
        if drill.kept() < steps:
            drill.finish()
        return drill.workdir

    def exact(self, drill: Drill, steps: int = STEPS) -> str:
        """Whether a run is the undisturbed one."""
        whole = self.whole(steps)
        differing = sum(d.differing for d in compare_states(whole, drill.workdir, steps).values())
        return EXACT if not differing and compare_rows(whole, drill.workdir).equal else LOST

    def log(self, drill: Drill) -> str:
        return drill.workdir.with_suffix(".log").read_text()


def said(text: str, *needed: str) -> str:
    """The last line of a log that begins with "error:", if it holds all that it must."""
    lines = [line.partition("] ")[2] if line.startswith("[") else line for line in text.splitlines()]
    errors = [line for line in lines if line.startswith("error:")]
    if not errors or not all(n in errors[-1] for n in needed):
        raise SystemExit(f"no clear error with {needed}: {errors} in\n{text[-2000:]}")
    return errors[-1]


def sigkill(bench: Bench, kills: int) -> dict:
    """SIGKILL at random moments of a process's life: imports, data, compiling, steps, saves.

    A run that came to its end is compared, and another begins, until there are as many kills.
    """
    rng, killed, saving, outcomes = random.Random(0), 0, 0, []
    drill = bench.drill("killed-0")
    while killed < kills:
        process = drill.start()
        before = drill.saving()
        until = time.monotonic() + (rng.uniform(0.5, 6) if killed % 3 == 0 else 120)
        steps = drill.logged() + rng.randint(1, 2 * STEPS // kills + 3)
        wait_for_save = killed % 5 == 4
        while time.monotonic() < until and process.poll() is None:
            if killed % 3 and drill.logged() >= steps and (not wait_for_save or drill.saving()):
                break
            time.sleep(0.001)
        in_save = drill.saving() and not before
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed, saving = killed + 1, saving + in_save
            print(f"  kill {killed}/{kills}: step {drill.logged()}, checkpoint {drill.kept()}", flush=True)
        else:
            drill.check(process)
        if drill.kept() >= STEPS:
            outcomes.append(bench.exact(drill))
            drill = bench.drill(f"killed-{len(outcomes)}")
    if drill.kept() or not outcomes:
        drill.finish()
        outcomes.append(bench.exact(drill))
    what = f"SIGKILL at random moments ({saving} of them while a checkpoint was written)"
    return {"fault": what, "times": kills, "outcome": EXACT if set(outcomes) == {EXACT} else LOST, "said": ""}


def disk_full(bench: Bench, _: int) -> dict | None:
    """The disk is full when a checkpoint is saved; then there is room again."""
    place = bench.folder / "small"
    place.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(place)], capture_output=True).returncode:
        return None
    try:
        (place / "run.log").symlink_to(bench.folder / "small.log")  # the log is on another disk
        drill = Drill(CONFIG, place / "run", bench.drill("x", 24).overrides, 1)
        drill.kill_at(lambda: drill.kept() >= 4, "once it has a checkpoint")
        free = shutil.disk_usage(place).free
        (place / "ballast").write_bytes(bytes(max(free - 2**20, 0)))
        process = drill.start()
        code = process.wait()
        line = said(drill.workdir.with_suffix(".log").read_text() if free else "", "space")
        assert code == 1, code
        (place / "ballast").unlink()
        drill.finish()
        kept = bench.folder / "disk"
        shutil.copytree(drill.workdir, kept)
        outcome = bench.exact(Drill(CONFIG, kept, [], 1), 24)
    finally:
        subprocess.run(["umount", str(place)], check=False)
    return {
        "fault": "disk full during a save, then room again",
        "times": 1,
        "outcome": f"{ERROR}, then {outcome}",
        "said": line,
    }


def half_deleted(bench: Bench, _: int) -> dict:
    """Every second file of the newest checkpoint is gone."""
    drill = bench.drill("deleted", 24)
    drill.kill_at(lambda: drill.kept() >= 12, "after three checkpoints")
    newest = drill.workdir / "checkpoints" / str(drill.kept())
    files = sorted(p for p in newest.rglob("*") if p.is_file())
    for path in files[::2]:
        path.unlink()
    process = drill.start()
    assert process.wait() == 1
    line = said(bench.log(drill), str(newest.name), "remove that folder")
    shutil.rmtree(newest)
    drill.finish()
    outcome = f"{ERROR}, then {bench.exact(drill, 24)}"
    return {"fault": "half of the newest checkpoint's files deleted; then the folder, as the error says", "times": 1,
            "outcome": outcome, "said": line}  # fmt: skip


def corrupted_shard(bench: Bench, _: int) -> dict:
    """Bytes of a training shard are overwritten."""
    data = bench.folder / "data"
    source = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser() / "scenes"
    shutil.copytree(source / "captions-80_8_32_16", data / "scenes" / "captions-80_8_32_16")
    shard = next(data.rglob("scenes-train.array_record*"))
    content = bytearray(shard.read_bytes())
    at = len(content) // 2
    content[at : at + 200] = bytes(200)
    shard.write_bytes(content)
    drill = bench.drill("shard", 40, "--config.data.quarantine=0.1")
    before = os.environ.get("TFDS_DATA_DIR")
    os.environ["TFDS_DATA_DIR"] = str(data)
    try:
        drill.finish()
        listed = (drill.workdir / "quarantine.jsonl").read_text().splitlines()
        first, last = len(content) // 2, len(content) * 9 // 10
        content[first:last] = bytes(last - first)
        shard.write_bytes(content)
        strict = bench.drill("strict", 40)
        process = strict.start()
        assert process.wait() == 1
        line = said(bench.log(strict), "cannot be read", "data.parts.pairs.path")
    finally:
        if before is None:
            del os.environ["TFDS_DATA_DIR"]
        else:
            os.environ["TFDS_DATA_DIR"] = before
    outcome = f"{len(listed)} of 80 examples replaced and listed; where four tenths of the shard are gone: {ERROR}"
    return {"fault": "200 bytes of a training shard overwritten", "times": 1, "outcome": outcome, "said": line}


def clock_jumps(bench: Bench, _: int) -> dict:
    """The wall clock jumps a day forward and two back while a run trains and saves."""
    folder = bench.folder / "jump"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import time\n_real, _began = time.time, time.monotonic()\n"
        "def jumping():\n"
        "    gone = int(time.monotonic() - _began)\n"
        "    return _real() + (86400, 0, -172800)[gone % 3]\n"
        "time.time = jumping\n"
    )
    drill = bench.drill("clock", 24)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}" if before else str(folder)
    try:
        drill.kill_at(lambda: drill.kept() >= 4, "after a checkpoint")
        errors, line = 0, ""
        while drill.start().wait():  # a save that Orbax believes to have taken a day is an error
            errors, line = errors + 1, said(bench.log(drill), "the same command continues")
            assert errors < 20, line
    finally:
        os.environ["PYTHONPATH"] = before
    outcome = bench.exact(drill, 24)
    return {"fault": "Python's wall clock jumps by days, every second, and a kill", "times": 1,
            "outcome": f"{errors} x {ERROR}, then {outcome}" if errors else outcome, "said": line}  # fmt: skip


def two(bench: Bench, name: str, *more: str) -> tuple[Path, subprocess.Popen]:
    """A run of two processes, and what started it."""
    path = bench.folder / name
    fixed = bench.drill(name, 24, "--config.hosts.patience=8", "--config.hosts.late=2", *more).overrides
    launcher = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", "2", "--devices", "1", "--"]
    command = [*launcher, "--config", CONFIG, "--workdir", str(path), "--mode", "fit", *fixed]
    with path.with_suffix(".log").open("a") as log:
        return path, subprocess.Popen(command, stdout=log, stderr=log)


def wait_for_step(path: Path, step: int) -> int:
    """Waits for a run of two processes to come to a step; gives the second's process id."""
    metrics = path / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
        time.sleep(0.01)
    return json.loads((path / "hosts" / "1.json").read_text())["pid"]


def slow_host(bench: Bench, _: int) -> dict:
    """One of two processes stands still for five seconds."""
    path, process = two(bench, "slow")
    late = wait_for_step(path, 6)
    os.kill(late, signal.SIGSTOP)
    time.sleep(5)
    os.kill(late, signal.SIGCONT)
    assert process.wait() == 0, path.with_suffix(".log").read_text()[-2000:]
    named = [
        line
        for line in path.with_suffix(".log").read_text().splitlines()
        if f"(pid {late})" in line and "waiting" in line
    ]
    assert named, path.with_suffix(".log").read_text()[-2000:]
    rows = compare_rows(bench.whole(24), path)
    assert rows.samples and rows.loss_gap < 1e-4, rows
    outcome = f"named; goes on with the same samples, loss within {rows.loss_gap:.0e}"
    return {"fault": "one of two processes stands still for 5 s (of 8 allowed)", "times": 1, "outcome": outcome,
            "said": named[0].partition("] ")[2]}  # fmt: skip


def lost_host(bench: Bench, _: int) -> dict:
    """One of two processes stands still for good; then one process goes on alone."""
    path, process = two(bench, "lost")
    gone = wait_for_step(path, 6)
    os.kill(gone, signal.SIGSTOP)
    began = time.monotonic()
    while "was ended" not in (text := path.with_suffix(".log").read_text()) and "exit code" not in text:
        time.sleep(0.05)
    seconds = time.monotonic() - began
    os.kill(gone, signal.SIGKILL)
    process.wait()
    line = said(path.with_suffix(".log").read_text(), "process 1", "the same command continues")
    alone = Drill(CONFIG, path, bench.drill("lost", 24).overrides, 2)
    alone.finish()
    rows = compare_rows(bench.whole(24), path)
    assert rows.samples and rows.loss_gap < 1e-4, rows
    outcome = (
        f"{ERROR} after {seconds:.0f} s; one process goes on with the same samples, loss within {rows.loss_gap:.0e}"
    )
    return {
        "fault": "one of two processes stands still for good (8 s allowed)",
        "times": 1,
        "outcome": outcome,
        "said": line,
    }


FAULTS = (sigkill, disk_full, half_deleted, corrupted_shard, clock_jumps, slow_host, lost_host)


def write() -> None:
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()]
    lines = ["| fault | times | outcome | what it says |", "|---|---|---|---|"]
    for r in sorted(rows, key=lambda r: [f.__name__ for f in FAULTS].index(r["name"])):
        words = r["said"].replace("|", "/")
        lines.append(f"| {r['fault']} | {r['times']} | {r['outcome']} | {f'`{words}`' if words else ''} |")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + rest.split(END)[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", default="", help="only the faults with this in their name, anew")
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    if not args.report_only:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder))
            for fault in FAULTS:
                if args.only not in fault.__name__:
                    continue
                print(fault.__name__, "...", flush=True)
                row = fault(bench, args.kills)
                if row is None:
                    print("  cannot be made here", flush=True)
                    continue
                row = {"name": fault.__name__, **row, "said": row["said"].replace(str(folder), "runs")}
                rows = [*(r for r in rows if r["name"] != fault.__name__), row]
                KEPT.write_text("".join(json.dumps(r) + "\n" for r in rows))
                print(f"  {row['outcome']}  {row['said']}", flush=True)
    write()
    sys.exit(any(LOST in row["outcome"] for row in rows))


if __name__ == "__main__":
    main()

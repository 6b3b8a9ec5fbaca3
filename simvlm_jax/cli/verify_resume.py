"""`simvlm verify-resume --config C`: kills a run at random moments, resumes it, and certifies that nothing was lost."""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from simvlm_jax.core.children import with_parent
from simvlm_jax.core.files import open_own

BOUND = 1e-4
"""Largest relative difference of the loss where the devices changed, over 50 steps."""
STATE_BOUND = 1e-2
"""Largest relative difference of all parameters, and of all optimizer state, in the same case.

Adam turns rounding in gradients near zero into whole steps.
"""


@dataclasses.dataclass
class Drill:
    """One run directory that processes of a config train, one after the other."""

    config: str
    workdir: Path
    overrides: list[str]
    devices: int
    kills: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _before: set[Any] = dataclasses.field(default_factory=set)

    def start(self) -> subprocess.Popen:
        """A process that begins or continues the run on `devices` devices."""
        env = {**os.environ, **visible(self.devices), **with_parent()}
        command = [sys.executable, "-m", "simvlm_jax.main", "--config", self.config, "--workdir", str(self.workdir)]
        command += ["--mode", "fit", *self.overrides]
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        self._before = {self._metrics_file(), *self._saves()}
        with open_own(self.workdir.parent / f"{self.workdir.name}.log", "a") as log:
            return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def kill_at(self, moment: Callable[[], bool], name: str, patience: float = 900, soft: bool = False) -> bool:
        """Starts the run and ends it by SIGKILL (or SIGTERM) as soon as `moment` has come; False if it ended before."""
        process, began = self.start(), time.monotonic()
        with _ended_on_error(process):
            return self._killed(process, moment, name, began, patience, soft)

    def _killed(
        self,
        process: subprocess.Popen,
        moment: Callable[[], bool],
        name: str,
        began: float,
        patience: float,
        soft: bool,
    ) -> bool:
        while process.poll() is None:
            if moment():
                os.killpg(process.pid, signal.SIGTERM if soft else signal.SIGKILL)
                process.wait()
                self._check_devices()
                self.kills.append(
                    {"moment": name, "devices": self.devices, "logged": self.logged(), "kept": self.kept()}
                )
                return True
            if time.monotonic() - began > patience:
                os.killpg(process.pid, signal.SIGKILL)
                raise ValueError(
                    f"{self.workdir} did not come to {name!r} within {patience:.0f} s; see its log beside it"
                )
            time.sleep(0.002)
        self.check(process)
        return False

    def finish(self) -> None:
        """Runs it to its end."""
        process = self.start()
        with _ended_on_error(process):
            process.wait()
        self.check(process)

    def check(self, process: subprocess.Popen) -> None:
        """An error where a process ended with one."""
        if process.returncode:
            log = self.workdir.parent / f"{self.workdir.name}.log"
            raise ValueError(f"the run in {self.workdir} failed:\n{log.read_text()[-2000:]}")
        self._check_devices()

    def _check_devices(self) -> None:
        """An error where the newest process has not found the devices that it was to have."""
        found = json.loads((self.workdir / "environment.json").read_text())["devices"]
        if int(found.partition(" ")[0]) != self.devices:
            raise ValueError(f"the run in {self.workdir} was to have {self.devices} devices and found {found}")

    def _metrics_file(self) -> Any:
        """Which file the metrics are now: a process that continues a run replaces it."""
        metrics = self.workdir / "metrics.jsonl"
        return ("metrics", metrics.stat().st_ino) if metrics.exists() else None

    def _saves(self) -> set[Any]:
        """Checkpoints that are being written, or that a kill left half written."""
        found = set()
        for path in (self.workdir / "checkpoints").glob("*tmp*"):
            with contextlib.suppress(OSError):  # it was just finished
                found.add((path.name, path.stat().st_ino, path.stat().st_ctime_ns))
        return found

    def logged(self) -> int:
        """The newest step that the process at hand has logged or taken over; 0 before it has come to that."""
        metrics = self.workdir / "metrics.jsonl"
        if not metrics.exists() or self._metrics_file() in self._before:
            return 0
        for line in reversed(metrics.read_text().splitlines()):
            with contextlib.suppress(json.JSONDecodeError, KeyError):
                return int(json.loads(line)["step"])
        return 0

    def kept(self) -> int:
        """The newest complete checkpoint."""
        folder = self.workdir / "checkpoints"
        return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)

    def saving(self) -> bool:
        """Whether the process at hand is writing a checkpoint."""
        return bool(self._saves() - self._before)


@contextlib.contextmanager
def _ended_on_error(process: subprocess.Popen) -> Iterator[None]:
    """Ends a process, which has a session of its own, where what is inside does not come to its end: Ctrl-C, for one."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


@functools.cache
def machine() -> tuple[str, int]:
    """What a process finds here, ("cpu", "gpu" or "tpu", devices), asked of another one: an accelerator has one owner."""
    ask = "import jax; print(jax.default_backend(), jax.local_device_count())"
    found = subprocess.run([sys.executable, "-P", "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    return found[-2], int(found[-1])


def visible(devices: int) -> dict[str, str]:
    """The environment in which a process sees so many devices: made ones on CPU, the first of the visible GPUs, all TPUs."""
    if machine()[0] == "tpu":
        return {}
    if machine()[0] == "gpu":
        given = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(machine()[1])))
        return {"CUDA_VISIBLE_DEVICES": ",".join(given.split(",")[:devices])}
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
    return {"XLA_FLAGS": " ".join([f"--xla_force_host_platform_device_count={devices}", *flags])}


def device_counts(given: str) -> list[int]:
    """The device counts between which a run can move here; none on TPUs, which a process has all of.

    Raises:
      ValueError: counts that the machine has not got.
    """
    platform, there = machine()
    try:
        counts = [int(n) for n in given.split(",") if n] or ([] if platform == "tpu" else [1, 2, 4])
    except ValueError as e:
        raise ValueError(f"--devices {given!r} is not numbers with commas") from e
    if platform == "cpu":
        return counts
    if given and (platform == "tpu" or max(counts) > there):
        raise ValueError(f"--devices {given} cannot be had of {there} {platform} devices")
    return [n for n in counts if n <= there]


def drill_still(drill: Drill, steps: int, kills: int, mid_save: bool, rng: random.Random) -> None:
    """Kills a run at random steps and lets it finish; with `mid_save` every second kill waits for a save under way."""
    for leg, step in enumerate(sorted(rng.sample(range(1, steps), kills))):
        saving = mid_save and leg % 2 == 0

        def moment(step=step, saving=saving) -> bool:
            return drill.logged() >= step and (not saving or drill.saving())

        if not drill.kill_at(moment, "while saving" if saving else "at a random step"):
            return
    drill.finish()


def drill_moved(drill: Drill, kills: int, counts: list[int], rng: random.Random) -> None:
    """Changes the devices at every kill, which waits for a checkpoint that was made on those of the leg."""
    for leg in range(kills):
        drill.devices = counts[leg % len(counts)]
        before, more = drill.kept(), rng.randint(0, 2)

        def moment(before=before, more=more) -> bool:
            return drill.kept() > before and drill.logged() >= drill.kept() + more

        if not drill.kill_at(moment, "after a checkpoint"):
            return
    drill.devices = counts[kills % len(counts)]
    drill.finish()


def main(argv: list[str]) -> int:
    """Certifies a config; exit code 1 where something was lost."""
    parser = argparse.ArgumentParser(
        prog="simvlm verify-resume",
        description="Kill a run at random moments, resume it, and certify that nothing was lost.",
    )
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:VARIANT; --config.FIELD=VALUE sets fields")
    parser.add_argument("--kills", type=int, default=3, help="of each run that is killed (default 3)")
    parser.add_argument("--mid-save", action="store_true", help="every second one while a checkpoint is being written")
    parser.add_argument("--steps", type=int, default=24, help="that the runs train for (default 24)")
    parser.add_argument(
        "--devices", default="", help="device counts of the run that moves, with commas (1,2,4 as far as there are)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", default="runs/verify-resume", help="where the runs and the certificate go")
    args, overrides = parser.parse_known_args(argv)
    if args.steps < 4 or not 1 <= args.kills < args.steps:
        parser.error("--steps is at least 4, and --kills at least 1 and below it")

    import jax

    from simvlm_jax.core.build import assign_flags, load_config
    from simvlm_jax.core.files import write_whole
    from simvlm_jax.core.schema import Seed, check
    from simvlm_jax.parallel.mesh import mesh_shape
    from simvlm_jax.run.directory import environment

    check(args.seed, Seed, "--seed")
    config: Any = load_config(args.config)
    assign_flags(config, overrides)
    counts = device_counts(args.devices)
    jax.config.update("jax_platforms", "cpu")  # in this process; the runs need the accelerator
    for n in counts:
        mesh_shape(n, **config.mesh)  # an error where the mesh cannot be made of them
    folder = Path(args.workdir)
    if (folder / "certificate.json").exists() or (folder / "whole").exists():
        raise ValueError(f"{folder} holds an earlier verification; remove it or name another --workdir")
    every = max(args.steps // 8, 1)
    fixed = [f"--config.train.steps={args.steps}", "--config.log.every=1", f"--config.checkpoint.every={every}"]
    rng = random.Random(args.seed)
    base = counts[-1] if counts else machine()[1]

    def drill(name: str) -> Drill:
        return Drill(args.config, folder / name, [*overrides, *fixed], base)

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    log(f"the run without interruption, {args.steps} steps on {base} devices ...")
    whole = drill("whole")
    whole.finish()
    log(f"the same, killed {args.kills} times on {base} devices ...")
    still = drill("killed")
    drill_still(still, args.steps, args.kills, args.mid_save, rng)
    moved = None
    if len(counts) > 1:
        log(f"the same, killed {args.kills} times while the devices change among {counts} ...")
        moved = drill("moved")
        drill_moved(moved, args.kills, counts, rng)

    here = {k: v for k, v in environment().items() if k != "devices"}
    certificate = certify(args, whole, still, moved) | {"environment": here}
    write_whole(folder / "certificate.json", json.dumps(certificate, indent=1))
    write_whole(folder / "certificate.md", markdown(certificate))
    print(markdown(certificate))
    log(f"certificate: {folder / 'certificate.md'}")
    return 0 if certificate["holds"] else 1


def certify(args: argparse.Namespace, whole: Drill, still: Drill, moved: Drill | None) -> dict[str, Any]:
    """What was compared and whether it holds."""
    from simvlm_jax.run.compare import compare_rows, compare_states

    rows = []
    state = compare_states(whole.workdir, still.workdir, args.steps)
    for part, d in state.items():
        rows.append(
            {
                "run": "killed",
                "what": part,
                "wanted": "bit for bit",
                "found": f"{d.differing} of {d.leaves} leaves differ",
            }
            | {"holds": d.differing == 0}
        )
    same = compare_rows(whole.workdir, still.workdir)
    rows.append(
        {"run": "killed", "what": "metrics and samples", "wanted": f"equal at all {args.steps} steps"}
        | {"found": "equal" if same.equal else f"loss differs by {same.loss_gap:.1e}", "holds": same.equal}
    )
    for name, drill in (("killed", still), ("moved", moved)):
        if drill is not None:
            made = {"run": name, "what": "kills", "wanted": str(args.kills), "found": str(len(drill.kills))}
            rows.append(made | {"holds": len(drill.kills) == args.kills})
    if moved is not None:
        for part, d in compare_states(whole.workdir, moved.workdir, args.steps).items():
            exact = part in ("rng", "step")
            wanted = "bit for bit" if exact else f"within {STATE_BOUND:.0e} of its norm"
            rows.append(
                {"run": "moved", "what": part, "wanted": wanted, "found": f"{d.apart:.1e}"}
                | {"holds": d.differing == 0 if exact else d.apart <= STATE_BOUND}
            )
        other = compare_rows(whole.workdir, moved.workdir)
        rows.append(
            {"run": "moved", "what": "samples", "wanted": "equal at all steps"}
            | {"found": "equal" if other.samples else "different", "holds": other.samples}
        )
        rows.append(
            {
                "run": "moved",
                "what": "loss",
                "wanted": f"within {BOUND:.0e}, relative",
                "found": f"{other.loss_gap:.1e}",
            }
            | {"holds": other.loss_gap <= BOUND}
        )
    kills = [{"run": name, **k} for name, d in (("killed", still), ("moved", moved)) if d for k in d.kills]
    return {
        "config": args.config,
        "steps": args.steps,
        "holds": all(r["holds"] for r in rows),
        "rows": rows,
        "kills": kills,
    }


def markdown(c: dict[str, Any]) -> str:
    """A certificate for people."""
    lines = [
        f"# Resume certificate: {c['config']}",
        "",
        f"{'HOLDS' if c['holds'] else 'DOES NOT HOLD'} over {c['steps']} steps.",
    ]
    lines += ["", "| run | what | wanted | found | |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['run']} | {r['what']} | {r['wanted']} | {r['found']} | {'ok' if r['holds'] else 'LOST'} |"
        for r in c["rows"]
    ]
    lines += ["", "| run | killed | devices | logged step | checkpoint it went on from |", "|---|---|---|---|---|"]
    lines += [f"| {k['run']} | {k['moment']} | {k['devices']} | {k['logged']} | {k['kept']} |" for k in c["kills"]]
    lines += ["", *(f"{k}: {v}  " for k, v in c.get("environment", {}).items())]
    return "\n".join(lines) + "\n"

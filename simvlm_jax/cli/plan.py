"""`simvlm plan --config C --target v5e:16x16`: what a training step costs on a machine that need not be here."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import simvlm_jax
from simvlm_jax.core.children import with_parent

_CHILD = "SIMVLM_PLAN_CHILD"


def main(argv: list[str]) -> int:
    """Compiles the training step of a config for a machine and prints what it takes; exit code 1 where it does not fit."""
    parser = argparse.ArgumentParser(
        prog="simvlm plan",
        description="Compile the training step of a config for a machine that need not be here, and say what it costs.",
    )
    parser.add_argument("--config", required=True, help="FILE.py or FILE.py:VARIANT")
    parser.add_argument("--target", required=True, help="v5e:4x4, v5p:4x4x4, v3:16x32, tpu7x:4x4x8, h200x8, cpux8 ...")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--search", action="store_true", help="try other shardings, remat and accumulation, and rank them"
    )
    parser.add_argument(
        "--no-suggestion", action="store_true", help="where it does not fit, do not look for what would"
    )
    parser.add_argument(
        "--effort",
        choices=("full", "low"),
        default="full",
        help="of the TPU compiler; low is several times faster and takes somewhat more memory (search and suggestions use it)",
    )
    args, overrides = parser.parse_known_args(argv)

    from simvlm_jax.parallel.targets import parse_target

    target = parse_target(args.target)
    if target.platform == "tpu" and _CHILD not in os.environ:
        return _in_a_process(argv, target)
    os.environ.update(target.environment())

    from simvlm_jax.core.build import assign_flags, load_config
    from simvlm_jax.train.advise import Changes, flags, try_changes

    config: Any = load_config(args.config)
    assign_flags(config, overrides)

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    planner = _Planner(config, target)
    log(f"compiling for {target.name} ...")
    plan = planner.plan({}, args.effort)
    suggestion, tried = None, []
    if args.search or not (plan.fits or args.no_suggestion):

        def attempt(changes: Changes):
            return planner.plan(changes, "low")

        tried = try_changes(plan, attempt, planner.kept, args.search, log)
        fitting = [t for t in tried if t.plan is not None and t.plan.fits]
        best = min(fitting, key=lambda t: t.plan.step_time_estimate_s or 0.0, default=None) if args.search else None
        chosen = best or next(iter(fitting), None)
        if chosen and (not plan.fits or (chosen.plan.step_time_estimate_s or 0) < (plan.step_time_estimate_s or 0)):
            suggestion = flags(chosen.changes)
    record = {**dataclasses.asdict(plan), "config": args.config, "suggestion": suggestion}
    if args.search:
        record["tried"] = [
            {"change": flags(t.changes), "fits": bool(t.plan and t.plan.fits), "why": t.why}
            | (
                {"step_time_estimate_s": t.plan.step_time_estimate_s, "bytes_per_device": t.plan.bytes_per_device}
                if t.plan
                else {}
            )
            for t in tried
        ]
    print(json.dumps(record) if args.json else table(record))
    return 0 if plan.fits else 1


def _in_a_process(argv: list[str], target: Any) -> int:
    """Runs the command in a process of its own: a compiler that crashes takes its process with it.

    Raises:
      ValueError: it has crashed.
    """
    call = "import sys; from simvlm_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    home = str(Path(simvlm_jax.__file__).resolve().parents[1])  # also where the package is not installed
    env = {
        **os.environ,
        **with_parent(),
        _CHILD: "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")])),
    }
    words = [sys.executable, "-P", "-c", call, "plan", *argv]
    done = subprocess.run(words, env=env, check=False)
    if done.returncode < 0:
        raise ValueError(
            f"the compiler for {target.name} was ended by {signal.Signals(-done.returncode).name}; that is a fault of libtpu "
            f"{importlib.metadata.version('libtpu')}, which another mesh, size or version may not have"
        )
    return done.returncode


class _Planner:
    """Plans of one config with changes."""

    def __init__(self, config: Any, target: Any):
        from simvlm_jax.data.shapes import stand_in_tokenizer

        self._config, self._target = config, target
        self._tokenizer = stand_in_tokenizer(config.text, config.data)  # once, for the texts may have to be read

    def _draft(self, changes: dict[str, Any]):
        from ml_collections import ConfigDict

        from simvlm_jax.materials import outline
        from simvlm_jax.train.plan import draft

        config: Any = ConfigDict(self._config.to_dict())
        config.update_from_flattened_dict(changes)
        made = outline(config, self._tokenizer)
        made = draft(
            made.model, made.optimizer, made.batch, self._target, dict(config.mesh), steps=config.train.steps,
            accumulate=config.train.accumulate, trainable=config.train.trainable,
        )  # fmt: skip
        return made, config.model.get("compute", {}).get("remat", "")

    def plan(self, changes: dict[str, Any], effort: str):
        made, remat = self._draft(changes)
        return made.plan(remat, effort)

    def kept(self, changes: dict[str, Any]) -> float:
        made, _ = self._draft(changes)
        if undivided := made.undivided():
            raise ValueError(f"tensor does not divide {', '.join(undivided)}")
        return sum(made.held().values())


def table(record: dict[str, Any]) -> str:
    """A plan for people."""
    mesh = " x ".join(f"{k} {v}" for k, v in record["mesh"].items())
    gib = 2.0**30
    lines = [
        f"{record['config']} on {record['target']}: {mesh}, accumulate {record['accumulate']}, remat {record['remat'] or '-'}",
        f"  {'FITS' if record['fits'] else 'DOES NOT FIT'}: {record['bytes_per_device'] / gib:.2f} of "
        f"{record['hbm_bytes'] / gib:.2f} GiB a device (compiled as {record['compiled_as']} in {record['compile_s']:.0f} s)",
        "",
        *(f"  {name:<22}{value / gib:9.3f} GiB" for name, value in record["memory"].items()),
        "",
        f"  {'FLOPs a device':<22}{record['flops_per_device'] / 1e12:9.3g} T  "
        f"(the model's own {record['model_flops_per_device'] / 1e12:.3g} T)",
    ]
    if record["seconds"]:
        lines += [f"  {'memory traffic':<22}{record['bytes_accessed_per_device'] / 1e9:9.3g} GB", ""]
        lines += [
            f"  {c['kind']:<18} of {c['group']:>4} devices  x{c['count']:<5} {c['received'] / 1e6:10.1f} MB received"
            for c in record["collectives"]
        ]
        at_best = record["seconds"]
        mfu = record["model_flops_per_device"] / record["flops_per_device"] * at_best["compute"]
        lines += [
            "",
            "  at best: " + ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in at_best.items()),
            f"  step time at least {1e3 * record['step_time_estimate_s']:.3g} ms, bound by {record['bound_by']} "
            f"(model FLOPs utilisation at most {100 * mfu / record['step_time_estimate_s']:.0f} %)",
        ]
    if record["compiled_as"] == "cpu" and not record["target"].startswith("cpu"):
        lines += ["", "  compiled for CPU devices that stand in for it: its own compiler fuses more and needs less"]
    if record["whole"]:
        lines += [
            "",
            "  whole on every device, for the mesh does not divide them:",
            *(f"    {w}" for w in record["whole"]),
        ]
    if record["undivided"]:
        lines += [
            "",
            f"  tensor does not divide {', '.join(record['undivided'])}: every device does that work whole, although the FLOPs "
            "above count it as split",
        ]
    if record["mixes_rows"]:
        lines += ["", "  examples look at other rows of their micro-batch: accumulated otherwise, it is another step"]
    if record["error"]:
        lines += ["", f"  the compiler: {record['error']}"]
    for t in record.get("tried", ()):
        took = f"{1e3 * t['step_time_estimate_s']:.3g} ms" if t.get("step_time_estimate_s") else t["why"][:80]
        lines.append(f"  {'fits' if t['fits'] else 'no':<5} {t['change']:<70} {took}")
    if record["suggestion"]:
        lines += ["", f"  {'fits' if not record['fits'] else 'faster'} with {record['suggestion']}"]
    elif not record["fits"]:
        lines += ["", "  nothing tried makes it fit; take more devices or a smaller batch"]
    return "\n".join(lines)

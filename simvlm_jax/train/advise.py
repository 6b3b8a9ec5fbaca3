"""Which change makes a step fit: candidates in the order of what they cost, tried by compiling them."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from simvlm_jax.train.plan import Plan

Changes = dict[str, Any]
"""Fields of a config and their new values."""
REMATS = ("none", "dots", "full")


def flags(changes: Changes) -> str:
    """The changes as the command line takes them."""
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())


def candidates(plan: Plan) -> Iterator[Changes]:
    """Changes to a step, cheapest first: sharding the state costs links, rematerialising FLOPs, splitting the work of a layer
    more of the links, accumulating the efficiency of every product.

    Sharding the state is proposed only while the state weighs at least a tenth of the memory, and accumulation only for models
    whose step stays the same with it (see `Model.mixes_rows`).
    """
    devices = plan.mesh["data"] * plan.mesh["fsdp"] * plan.mesh["tensor"]
    state = plan.memory["parameters"] + plan.memory["optimizer"]
    shards = [plan.mesh["fsdp"]]
    while state * plan.mesh["fsdp"] / shards[-1] > plan.hbm_bytes / 10 and devices % (shards[-1] * 2) == 0:
        shards.append(shards[-1] * 2)
    remats = REMATS[REMATS.index(plan.remat) :] if plan.remat in REMATS else (plan.remat,)
    for parts in (1, 2, 4, 8, 16, 32):
        if parts == 2:
            yield from _split_layers(plan, devices, shards[-1], remats[-1])
            if plan.mixes_rows:  # in more micro-batches it would be another step
                return
        for remat in remats:
            for fsdp in shards:
                changes: Changes = {}
                if fsdp != plan.mesh["fsdp"]:
                    changes["mesh.data"], changes["mesh.fsdp"] = -1, fsdp
                if remat != plan.remat:
                    changes["model.compute.remat"] = remat
                if parts > 1:
                    changes["train.accumulate"] = plan.accumulate * parts
                if changes:
                    yield changes


def _split_layers(plan: Plan, devices: int, fsdp: int, remat: str) -> Iterator[Changes]:
    """Tensor parallelism, with all that is cheaper."""
    for tensor in (2, 4, 8):
        if devices % (tensor * fsdp) == 0 and tensor > plan.mesh["tensor"]:
            more = {} if remat == plan.remat else {"model.compute.remat": remat}
            yield {"mesh.data": -1, "mesh.fsdp": fsdp, "mesh.tensor": tensor, **more}


@dataclasses.dataclass(frozen=True)
class Tried:
    """A change and its plan, or the reason why it cannot be."""

    changes: Changes
    plan: Plan | None
    why: str = ""


def try_changes(
    plan: Plan,
    attempt: Callable[[Changes], Plan],
    kept: Callable[[Changes], float],
    every: bool,
    log: Callable[[str], None],
) -> list[Tried]:
    """Compiles candidates until one fits; with `every` all that do not accumulate, and then until one more fits.

    kept: bytes of state that a change leaves a device with; one that is over the memory by that alone is not compiled.
    """
    tried: list[Tried] = []
    for changes in candidates(plan):
        try:
            least = kept(changes)
        except ValueError as e:
            tried.append(Tried(changes, None, str(e)))
            continue
        if least > plan.hbm_bytes:
            tried.append(Tried(changes, None, f"keeps {least / 2**30:.1f} GiB"))
            continue
        log(f"trying {flags(changes)} ...")
        found = attempt(changes)
        tried.append(Tried(changes, found, "" if found.fits else (found.error or "does not fit")))
        if found.fits and (not every or "train.accumulate" in changes):
            break
    return tried

"""What a training step costs on a machine that need not be here: compiled for it, then read."""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.flops import count_flops
from simvlm_jax.core.platform import compiled_for
from simvlm_jax.core.trees import merge, partition, path_name
from simvlm_jax.core.types import Batch, Model
from simvlm_jax.parallel.mesh import ACTIVATIONS, TENSOR, by_row, check_parts, make_mesh, row_shards
from simvlm_jax.parallel.program import Collective, Program
from simvlm_jax.parallel.targets import Target
from simvlm_jax.train.optimizer import Optimizer
from simvlm_jax.train.state import Prepared, prepare

_UNITS = {"": 1, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cost of one step. Bytes and FLOPs are of one device; times in seconds.

    memory: by kind. "activations" are what the backward pass keeps, as traced; "temporaries" the rest of what the compiler
    allots while it runs. whole, undivided: parameters and letters that the mesh does not split. mixes_rows: whether another
    `accumulate` is another step. flops: all that is computed; model_flops: without what is computed again (see core.flops).
    seconds: of computing, of memory traffic and of links, each alone and at its best; the
    longest binds. What is missing of a program that does not fit is None.
    """

    target: str
    mesh: dict[str, int]
    accumulate: int
    remat: str
    fits: bool
    bytes_per_device: float
    hbm_bytes: float
    memory: dict[str, float]
    flops_per_device: float
    model_flops_per_device: float
    bytes_accessed_per_device: float | None
    collectives: list[dict[str, Any]] | None
    seconds: dict[str, float] | None
    step_time_estimate_s: float | None
    bound_by: str | None
    compile_s: float
    compiled_as: str
    whole: list[str] = dataclasses.field(default_factory=list)
    undivided: list[str] = dataclasses.field(default_factory=list)
    mixes_rows: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Draft:
    """A training step on a target, before it is compiled. rows: the shapes of the global batch, placed."""

    ready: Prepared
    rows: Batch
    target: Target
    accumulate: int

    def held(self) -> dict[str, float]:
        """Bytes that a device holds all the time, by kind: the least that the step takes."""
        state = self.ready.abstract
        return {
            "parameters": _shard_bytes(state.params),
            "optimizer": _shard_bytes(state.opt),
            "other state": _shard_bytes((state.extra, state.rng)),
            "batch": _shard_bytes(self.rows),
        }

    def undivided(self) -> list[str]:
        """Letters of parameters that `tensor` should split and does not divide: that work is done whole by every device."""
        size, params = self.ready.mesh.shape[TENSOR], self.ready.abstract.params
        found = {
            f"{letter} of {n}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            for letter, n in zip(self.ready.letters[path_name(path)], leaf.shape, strict=True)
            if TENSOR in ACTIVATIONS.get(letter or "", ()) and n % size
        }
        return sorted(found)

    def plan(self, remat: str = "", effort: str = "full") -> Plan:
        """Compiles the very step that training runs. remat: to be told with the plan. effort: of TPU's compiler."""
        began, ready, mesh = time.perf_counter(), self.ready, self.ready.mesh
        devices = list(mesh.devices.flat)
        figures, memory = self.target.figures(devices), self.held()
        options: Any = (
            {"exec_time_optimization_effort": -1.0} if (self.target.platform, effort) == ("tpu", "low") else None
        )
        with compiled_for(self.target.platform):
            train_step = ready.train_step(self.accumulate)
            flops = count_flops(train_step, ready.abstract, self.rows) / mesh.size
            kept = _activations(ready, self.rows, self.accumulate)
            lowered = train_step.lower(ready.abstract, self.rows)
            try:
                compiled, error = lowered.compile(compiler_options=options), ""
            except jax.errors.JaxRuntimeError as e:
                if "RESOURCE_EXHAUSTED" not in str(e) and "Ran out of memory" not in str(e):
                    raise
                compiled, error = None, str(e)
        common: dict[str, Any] = dict(
            target=self.target.name,
            mesh=dict(mesh.shape),
            accumulate=self.accumulate,
            remat=remat,
            flops_per_device=flops,
            model_flops_per_device=ready.model.train_flops(self.rows, ready.flags) / mesh.size,
            compile_s=time.perf_counter() - began,
            compiled_as=devices[0].platform,
            whole=_unsplit(ready),
            undivided=self.undivided(),
            mixes_rows=ready.model.mixes_rows,
        )
        if compiled is None:
            temporaries, available = _out_of_memory(error, sum(memory.values()))
            memory |= {"activations": kept, "temporaries": max(temporaries - kept, 0.0)}
            return Plan(
                **common, hbm_bytes=available or figures.hbm, fits=False, bytes_per_device=sum(memory.values()), memory=memory,
                bytes_accessed_per_device=None, collectives=None, seconds=None, step_time_estimate_s=None, bound_by=None,
                error=error.partition("\n")[0],
            )  # fmt: skip
        stats: Any = compiled.memory_analysis()
        total = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        total += stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
        memory["activations"] = min(kept, stats.temp_size_in_bytes)
        memory["temporaries"] = max(stats.temp_size_in_bytes - kept, 0.0)
        memory["program and outputs"] = max(total - sum(memory.values()), 0.0)
        program = Program(compiled.as_text(), mesh.size)
        moved, traffic = program.collectives(), program.traffic()
        seconds = {
            "compute": flops / (figures.tflops * 1e12),
            "memory": traffic / figures.hbm_rate,
            "links": sum(c.received for c in moved) / figures.link_rate,
        }
        binding = max(seconds, key=lambda k: seconds[k])
        return Plan(
            **common, hbm_bytes=figures.hbm, fits=total <= figures.hbm, bytes_per_device=total, memory=memory,
            bytes_accessed_per_device=traffic, collectives=_by_kind(moved), seconds=seconds,
            step_time_estimate_s=seconds[binding], bound_by=binding,
        )  # fmt: skip


def draft(
    model: Model,
    optimizer: Optimizer,
    batch: Batch,
    target: Target,
    sizes: dict[str, int],
    *,
    steps: int,
    accumulate: int = 1,
    trainable: Sequence[tuple[str, bool]] = (),
) -> Draft:
    """A step of `model` on a target's devices; batch: shapes of the global batch, sizes: of the mesh. Nothing is compiled.

    Raises:
      ValueError: mesh or batch do not divide.
    """
    mesh = make_mesh(target.devices(), **sizes)
    for a in jax.tree.leaves(batch):
        check_parts(a.shape[0], mesh, accumulate)
    rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=by_row(mesh)), batch)
    with compiled_for(target.platform):
        ready = prepare(model, optimizer, rows, mesh, seed=0, steps=steps, trainable=trainable)
    return Draft(ready, rows, target, accumulate)


def _activations(ready: Prepared, batch: Batch, accumulate: int) -> float:
    """Bytes a device keeps for the backward pass of one micro-batch: what jax saves, less the parameters themselves."""
    micro = jax.tree.map(lambda a: jax.ShapeDtypeStruct((a.shape[0] // accumulate, *a.shape[1:]), a.dtype), batch)
    trainable, frozen = partition(ready.abstract.params, ready.flags)

    def pullback(trainable, frozen, extra, micro):
        def half(trainable):
            params = merge(trainable, frozen)
            features, terms, _ = ready.model.per_example(params, extra, micro, rngs=rng, step=0, train=True)
            return features, terms

        rng = jax.random.key(0)
        return jax.vjp(half, trainable)[1]

    saved = jax.tree.leaves(jax.eval_shape(pullback, trainable, frozen, ready.abstract.extra, micro))
    weights = {a.shape for a in jax.tree.leaves(ready.abstract.params)}
    bytes_ = sum(a.size * a.dtype.itemsize for a in saved if a.shape not in weights)
    return bytes_ / row_shards(ready.mesh)


def _shard_bytes(tree: Any) -> float:
    leaves = [a for a in jax.tree.leaves(tree) if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)]
    return float(sum(np.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves))


def _unsplit(ready: Prepared) -> list[str]:
    """Parameters of four mebibytes or more that every device holds whole although the mesh has an axis to split them."""
    shape = ready.mesh.shape
    if shape["fsdp"] * shape["tensor"] == 1:
        return []
    leaves = jax.tree_util.tree_leaves_with_path(ready.abstract.params)
    big = [(p, a) for p, a in leaves if a.size * a.dtype.itemsize >= 2**22 and a.sharding.is_fully_replicated]
    return ["/".join(str(k.key) for k in p) + f" {list(a.shape)}" for p, a in big]


def _by_kind(moved: list[Collective]) -> list[dict[str, Any]]:
    """Collectives of one kind and group together: how many per step, their bytes, and what a device receives."""
    out: dict[tuple[str, int], dict[str, Any]] = {}
    for c in moved:
        row = out.setdefault((c.kind, c.group), dict(kind=c.kind, group=c.group, count=0, bytes=0.0, received=0.0))
        row["count"] += int(c.times)
        row["bytes"] += c.bytes * c.times
        row["received"] += c.received
    return sorted(out.values(), key=lambda r: -r["received"])


def _out_of_memory(message: str, held: float) -> tuple[float, float]:
    """(bytes of temporaries, bytes there are) in the compiler's own words; 0 for what it does not say.

    It speaks either of temporaries alone or of all that it would use, which includes what is `held` anyway.
    """
    found = [float(n) * _UNITS[u] for n, u in re.findall(r"([\d.]+)([KMGT])i?B?\b", message)][:2]
    needed, available = [*found, 0.0, 0.0][:2]
    return (needed if "temporaries" in message else max(needed - held, 0.0)), available

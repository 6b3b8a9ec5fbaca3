"""Many processes as one run: joining the cluster, barriers, and values that must agree (heartbeats: heartbeat.py)."""

import contextlib
import functools
import importlib.util
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

_DAY_MS = 86_400_000


def cluster_arguments() -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize` for the cluster this process is part of; None if it is alone.

    Three variables of `launch/local.py` name a cluster outright; SLURM, Kubernetes and TPU pods are left to jax.
    """
    env = os.environ
    given = [env.get(k) for k in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    if all(given):
        return {"coordinator_address": given[0], "num_processes": int(given[1] or 0), "process_id": int(given[2] or 0)}
    slurm = int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in env
    kubernetes = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    pod = len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    return {} if slurm or kubernetes or pod or _on_tpu_vm() else None


def _on_tpu_vm() -> bool:
    """Whether this machine has TPUs: then it may be one of a pod, which its metadata server knows."""
    if os.environ.get("JAX_PLATFORMS", "tpu").partition(",")[0] != "tpu" or importlib.util.find_spec("libtpu") is None:
        return False
    return any(any(Path(folder).glob(name)) for folder, name in (("/dev", "accel[0-9]*"), ("/dev/vfio", "[0-9]*")))


def join_cluster(patience: float) -> None:
    """Joins the cluster this process is part of, if any; call it before anything else asks jax for devices.

    patience: seconds after which a silent process counts as lost (see `Heartbeat`); jax's own limit lies above it.
    """
    arguments = cluster_arguments()
    if arguments is None or arguments.get("num_processes") == 1:
        return
    if os.environ.get("JAX_PLATFORMS", "") in ("", "cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    seconds = int(max(100, 5 * patience))  # our own heartbeats speak first, and name what is missing
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=seconds)
    except ValueError:
        if arguments or not _on_tpu_vm():
            raise  # a notebook's TPU, otherwise, which has no metadata server and no peers


@contextlib.contextmanager
def main_process_first(name: str) -> Iterator[bool]:
    """Runs the block on process 0 before the other processes run it; yields whether this is process 0."""
    main = jax.process_index() == 0
    if not main:
        wait_for_all(name)
    yield main
    if main:
        wait_for_all(name)


def require_equal(value: int | None, what: str) -> int | None:
    """Returns a value that every process has read for itself, after a check that all have read the same.

    Raises:
      ValueError: they have not; the message names `what` and every process's value.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        found = multihost_utils.process_allgather(np.int32(-1 if value is None else value)).ravel().tolist()
        if len(set(found)) > 1:
            raise ValueError(f"the processes see different {what}: {found}; is their file system one, and up to date?")
    return value


def warm_up_collectives(mesh: jax.sharding.Mesh) -> None:
    """Runs one collective over each group of devices that a collective over the mesh may name.

    Gloo, by which processes on CPUs talk, gives a group 30 seconds to come together for the first time, of which one process
    may spend more compiling; a group that has met waits for longer.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    split = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    everywhere = jax.sharding.PartitionSpec(mesh.axis_names)
    place = jax.sharding.NamedSharding(mesh, everywhere)
    ones = jax.make_array_from_callback((mesh.size,), place, lambda _: np.ones((1,), np.float32))
    sums = []
    for axes in (group for n in range(len(split)) for group in itertools.combinations(split, n + 1)):
        total = functools.partial(jax.lax.psum, axis_name=axes)
        part = jax.shard_map(total, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)
        sums.append(jax.jit(part).lower(ones).compile())
    wait_for_all("collectives")
    for program in sums:
        jax.block_until_ready(program(ones))


def wait_for_all(name: str) -> None:
    """Waits until all processes call this with the same name: through the coordination service, which has no time limit."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=name, timeout_ms=_DAY_MS)


class SharedFlag:
    """A flag that any process may raise and all see at the same step: whether any of them was asked to stop.

    The answer comes one call late, so that no process ever waits for it.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._pending: Any = None
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._any = jax.jit(lambda x: x.any(), out_shardings=everywhere)

    def any(self, flag: bool) -> bool:
        """Returns whether any process's flag was raised at the last call; all processes must call this equally often."""
        if jax.process_count() == 1:
            return flag
        answer = self._pending is not None and bool(self._pending)
        flags = jax.make_array_from_callback(
            (self._sharding.mesh.size,), self._sharding, lambda index: np.full((1,), flag)
        )
        self._pending = self._any(flags)
        return answer

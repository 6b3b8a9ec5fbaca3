"""Many processes as one run: joining them, who goes first, agreeing to stop, and knowing which one is late or lost."""

import contextlib
import functools
import importlib.util
import itertools
import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from simvlm_jax.core.files import BadFile, open_own, parse_json, printable, printable_lines, read_bytes

EXIT_STOPPED, EXIT_HOST_LOST = 75, 76
"""Exit codes of a process that leaves because another was stopped, or was lost (see main)."""
MOST_BYTES = 2**16
"""Of a heartbeat."""
_DAY_MS = 86_400_000


def detected() -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize` for the cluster this process is part of; None if it is alone.

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


def join(patience: float) -> None:
    """Joins the cluster this process is part of, if any; to be called before anything else asks jax for devices."""
    arguments = detected()
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
def one_first(name: str) -> Iterator[bool]:
    """Process 0 does what is inside before the others do; yields whether this is process 0."""
    lead = jax.process_index() == 0
    if not lead:
        _barrier(name)
    yield lead
    if lead:
        _barrier(name)


def agreed(value: int | None, what: str) -> int | None:
    """A value that every process has read for itself.

    Raises:
      ValueError: they have not read the same.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        found = multihost_utils.process_allgather(np.int32(-1 if value is None else value)).ravel().tolist()
        if len(set(found)) > 1:
            raise ValueError(f"the processes see different {what}: {found}; is their file system one, and up to date?")
    return value


def meet(mesh: jax.sharding.Mesh) -> None:
    """Brings each group of devices that a collective over the mesh may name together once.

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
    _barrier("meet")
    for program in sums:
        jax.block_until_ready(program(ones))


def _barrier(name: str) -> None:
    """Waits for all processes, as long as it takes: through the coordination service, which no collective's time limit binds."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=name, timeout_ms=_DAY_MS)


class Ask:
    """A question that all hosts answer at the same step: whether any of them was asked to stop.

    The answer comes one call late, so that no host ever waits for it.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._pending: Any = None
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._any = jax.jit(lambda x: x.any(), out_shardings=everywhere)

    def any(self, flag: bool) -> bool:
        """Whether any host's flag was up; every host must call this equally often."""
        if jax.process_count() == 1:
            return flag
        answer = self._pending is not None and bool(self._pending)
        flags = jax.make_array_from_callback(
            (self._sharding.mesh.size,), self._sharding, lambda index: np.full((1,), flag)
        )
        self._pending = self._any(flags)
        return answer


class Heart:
    """Says where this process is, and watches the others: each writes a small file into a folder that all share.

    A file counts as alive while its number of beats goes up, so that no clock has to agree with another. All processes come
    to the same stages (start, data, compile, collective, checkpoint, eval) in the same order, so the number of stages that
    one has come to tells who is behind. With one process nothing is written and nobody is watched.

    patience: seconds without a beat after which a process is lost. late: seconds of waiting for the others after which the
    ones that are not waiting are named.
    """

    def __init__(self, folder: Path, patience: float = 60.0, late: float = 30.0):
        self.index, self.count = jax.process_index(), jax.process_count()
        self._folder, self._patience, self._late = folder, patience, late
        self._stage, self._step, self._turn, self._since = "start", 0, 0, time.monotonic()
        self._beats, self._session, self._ended = 0, 0, ""
        self._seen: dict[int, tuple[Any, float]] = {}
        self._stopped: dict[int, float] = {}
        self._mute = False
        self._stop = threading.Event()
        if self.count > 1:
            from jax.experimental import multihost_utils

            folder.mkdir(parents=True, exist_ok=True)
            _barrier("session")
            draw = np.int32(int.from_bytes(os.urandom(3), "little"))
            self._session = int(multihost_utils.broadcast_one_to_all(draw))
            self._beat()
            self._check_shared()
            self._thread = threading.Thread(target=self._watch, name="heart", daemon=True)
            self._thread.start()

    def _check_shared(self) -> None:
        """An error where the processes do not see one folder."""
        _barrier("hearts")
        until = time.monotonic() + 90  # directory caches of network file systems
        while len(self._others()) < self.count - 1:
            if time.monotonic() > until:
                raise ValueError(
                    f"{self._folder.parent} is not one folder that all {self.count} processes see; put --workdir on a file "
                    "system that they share (NFS, Lustre, a bucket mounted by gcsfuse --metadata-cache-ttl-secs=0)"
                )
            time.sleep(0.2)

    def at(self, stage: str, step: int | None = None) -> None:
        """This process is at a stage of a step now."""
        self._stage, self._turn, self._since = stage, self._turn + 1, time.monotonic()
        self._step = self._step if step is None else step

    def end(self, how: str) -> None:
        """This process is about to leave, "finished", "stopped" or with an error that the others should hear of."""
        self._ended = how
        if self.count > 1 and not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._beat()

    def others_ended(self) -> bool:
        """Waits until all others have said that they end; False where they have not while they could have heard of it."""
        until = time.monotonic() + 1.5 * self._patience
        while sum(bool(r["ended"]) for r in self._others()) < self.count - 1:
            if time.monotonic() > until:
                return False
            time.sleep(self._interval)
        return True

    def lost(self) -> "Verdict | None":
        """Waits as long as it takes to be sure whether another process is gone."""
        until = time.monotonic() + 1.5 * self._patience
        while time.monotonic() < until:
            if verdict := self._verdict():
                return verdict
            time.sleep(self._interval)
        return None

    @property
    def _interval(self) -> float:
        return min(2.0, self._patience / 10)

    def _beat(self) -> None:
        self._beats += 1
        record = {
            "beat": self._beats,
            "session": self._session,
            "process": self.index,
            "host": socket.gethostname() or platform.node(),
            "pid": os.getpid(),
            "stage": self._stage,
            "step": self._step,
            "turn": self._turn,
            "seconds": round(time.monotonic() - self._since, 1),
            "ended": self._ended,
        }
        path = self._folder / f"{self.index}.json"
        partial = path.with_suffix(".partial")
        try:
            with open_own(partial, "w") as file:
                file.write(json.dumps(record))
            partial.replace(path)
            self._mute = False
        except (OSError, BadFile) as e:  # then the others cannot write either, and silence says nothing
            if not self._mute:
                print(f"heartbeats cannot be written: {e}", file=sys.stderr, flush=True)
            self._mute = True

    def _watch(self) -> None:
        told, last = 0.0, time.monotonic()
        while not self._stop.wait(self._interval):
            self._beat()
            if (gap := time.monotonic() - last) > 3 * self._interval:  # this process itself stood still: nobody's fault
                self._seen = {i: (beat, since + gap) for i, (beat, since) in self._seen.items()}
            last = time.monotonic()
            if verdict := self._verdict():
                leave(*verdict)
            waiting = time.monotonic() - self._since
            if waiting > self._late and waiting - told > self._late:
                told = waiting
                if slow := [r for r in self._others() if self._behind(r)]:
                    told_of = printable(", ".join(map(_name, slow)))
                    print(f"waiting {waiting:.0f} s for {told_of}", file=sys.stderr, flush=True)
            told = min(told, waiting)

    def _behind(self, record: dict[str, Any]) -> bool:
        """Whether a process keeps this one waiting: it has not come as far, is silent, or saves what all save together."""
        together = record["turn"] == self._turn and self._stage == "checkpoint"
        return not record["ended"] and (record["turn"] < self._turn or together or self._quiet(record))

    def _quiet(self, record: dict[str, Any]) -> bool:
        """Whether a process has missed a beat or two."""
        beat, since = self._seen.get(record["process"], (0, time.monotonic()))
        return beat == record["beat"] and time.monotonic() - since > 3 * self._interval

    def _others(self) -> list[dict[str, Any]]:
        """The newest beats of the others, where there are any of this session."""
        found = []
        for i in range(self.count):
            path = self._folder / f"{i}.json"
            with contextlib.suppress(OSError, BadFile):
                record = parse_json(read_bytes(path, MOST_BYTES), path.name)
                if i != self.index and isinstance(record, dict) and record.get("session") == self._session:
                    found.append(record)
        return found

    def _verdict(self) -> "Verdict | None":
        """What to leave with, if another process is gone. A lost one comes first: it is why the others have errors."""
        now, records = time.monotonic(), {r["process"]: r for r in self._others()}
        again = "; the same command continues, with any number of processes"
        lost, failed, stopped = [], [], []
        for i in set(range(self.count)) - {self.index}:
            record = records.get(i)
            beat = record["beat"] if record else None
            if i not in self._seen or self._seen[i][0] != beat:
                self._seen[i] = (beat, now)
            silent = now - self._seen[i][1]
            who = _name(record) if record else f"process {i}"
            ended = record["ended"] if record else ""
            if not ended and silent > self._patience and not self._mute:
                lost.append(Verdict(f"error: {who} has not been heard of for {silent:.0f} s{again}", EXIT_HOST_LOST))
            elif ended == "stopped" and now - self._stopped.setdefault(i, now) > self._patience:
                stopped.append(Verdict(f"{who} was stopped{again}", EXIT_STOPPED))
            elif ended not in ("", "finished", "stopped"):
                failed.append(Verdict(f"error: {who} has ended: {ended}", 1))
        return next(iter([*lost, *failed, *stopped]), None)


class Verdict(NamedTuple):
    """Why a process should leave, and its exit code."""

    why: str
    code: int


def _name(record: dict[str, Any]) -> str:
    return (
        f"process {record['process']} on {record['host']} (pid {record['pid']}), {record['seconds']:.0f} s in stage "
        f"{record['stage']!r} of step {record['step']}"
    )


def leave(why: str, code: int = EXIT_HOST_LOST) -> None:
    """Ends this process at once: with a peer gone, an orderly end would wait for it for ever."""
    print(printable_lines(why), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)

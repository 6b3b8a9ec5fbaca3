"""Heartbeats of the processes of a run: each says where it is, watches the others, and leaves when one of them is gone."""

import contextlib
import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from simvlm_jax.core.files import BadFile, open_own, parse_json, printable, printable_lines, read_bytes
from simvlm_jax.parallel.environment import EXIT_HOST_LOST, EXIT_INTERRUPTED
from simvlm_jax.parallel.hosts import wait_for_all

MOST_BYTES = 2**16
"""Most bytes of a heartbeat's file."""


class Heartbeat:
    """Records where this process is, and watches the others: each writes a small file into a folder that all share.

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
            wait_for_all("session")
            draw = np.int32(int.from_bytes(os.urandom(3), "little"))
            self._session = int(multihost_utils.broadcast_one_to_all(draw))
            self._beat()
            self._check_shared()
            self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
            self._thread.start()

    def _check_shared(self) -> None:
        """An error where the processes do not see one folder."""
        wait_for_all("heartbeats")
        until = time.monotonic() + 90  # directory caches of network file systems
        while len(self._others()) < self.count - 1:
            if time.monotonic() > until:
                raise ValueError(
                    f"{self._folder.parent} is not one folder that all {self.count} processes see; put --workdir on a file "
                    "system that they share (NFS, Lustre, a bucket mounted by gcsfuse --metadata-cache-ttl-secs=0)"
                )
            time.sleep(0.2)

    def enter(self, stage: str, step: int | None = None) -> None:
        """Records that this process has come to a stage; step: None if it is still that of the last stage."""
        self._stage, self._turn, self._since = stage, self._turn + 1, time.monotonic()
        self._step = self._step if step is None else step

    def end(self, how: str) -> None:
        """Records how this process ends, "finished", "stopped" or by an error, for the others to read."""
        self._ended = how
        if self.count > 1 and not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._beat()

    def wait_for_others(self) -> bool:
        """Waits until all others have recorded how they end; returns False where one has not within 1.5 times `patience`."""
        until = time.monotonic() + 1.5 * self._patience
        while sum(bool(r["ended"]) for r in self._others()) < self.count - 1:
            if time.monotonic() > until:
                return False
            time.sleep(self._interval)
        return True

    def find_lost(self) -> "ExitReason | None":
        """Waits 1.5 times `patience` for another process to turn out lost, stopped or failed; None if none has."""
        until = time.monotonic() + 1.5 * self._patience
        while time.monotonic() < until:
            if reason := self._exit_reason():
                return reason
            time.sleep(self._interval)
        return None

    @contextlib.contextmanager
    def reporting(self, stop: type[BaseException]) -> Iterator[None]:
        """Records how the block ends, for the other processes, and exits at once where it fails because of a lost one.

        stop: what all processes raise together when they have agreed to stop. An interrupt of this process alone waits for
        the others to end, and exits at once if they do not, for jax would wait for them without end.
        """
        try:
            yield
        except stop:
            self.end("stopped")
            raise
        except KeyboardInterrupt:
            self.end("stopped")
            if not self.wait_for_others():
                exit_at_once("stopped; the same command continues", EXIT_INTERRUPTED)
            raise
        except BaseException as e:
            # a collective fails at once where a peer is gone, and does not say which
            if self.count > 1 and _caused_by(e, jax.errors.JaxRuntimeError) and (reason := self.find_lost()):
                exit_at_once(*reason)
            self.end(f"{type(e).__name__}: {str(e).partition(chr(10))[0]}")
            raise
        self.end("finished")

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
        named_at, last = 0.0, time.monotonic()
        while not self._stop.wait(self._interval):
            self._beat()
            if (gap := time.monotonic() - last) > 3 * self._interval:  # this process itself stood still: nobody's fault
                self._seen = {i: (beat, since + gap) for i, (beat, since) in self._seen.items()}
            last = time.monotonic()
            if reason := self._exit_reason():
                exit_at_once(*reason)
            waiting = time.monotonic() - self._since
            if waiting > self._late and waiting - named_at > self._late:
                named_at = waiting
                if slow := [r for r in self._others() if self._behind(r)]:
                    names = printable(", ".join(map(_name, slow)))
                    print(f"waiting {waiting:.0f} s for {names}", file=sys.stderr, flush=True)
            named_at = min(named_at, waiting)

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

    def _exit_reason(self) -> "ExitReason | None":
        """Why this process must exit, if another is gone. A lost one comes first: it is why the others have errors."""
        now, records = time.monotonic(), {r["process"]: r for r in self._others()}
        again = "; the same command continues, with any number of processes"
        lost, failed, stopped = [], [], []
        for i in set(range(self.count)) - {self.index}:
            record = records.get(i)
            beat = record["beat"] if record else None
            if i not in self._seen or self._seen[i][0] != beat:
                self._seen[i] = (beat, now)
            silent = now - self._seen[i][1]
            name = _name(record) if record else f"process {i}"
            ended = record["ended"] if record else ""
            if not ended and silent > self._patience and not self._mute:
                lost.append(
                    ExitReason(f"error: {name} has not been heard of for {silent:.0f} s{again}", EXIT_HOST_LOST)
                )
            elif ended == "stopped" and now - self._stopped.setdefault(i, now) > self._patience:
                stopped.append(ExitReason(f"{name} was stopped{again}", EXIT_INTERRUPTED))
            elif ended not in ("", "finished", "stopped"):
                failed.append(ExitReason(f"error: {name} has ended: {ended}", 1))
        return next(iter([*lost, *failed, *stopped]), None)


class ExitReason(NamedTuple):
    """Why a process must exit because of another, and its exit code."""

    message: str
    code: int


def _caused_by(error: BaseException | None, kind: type) -> bool:
    """Whether an error is of a kind, or was raised while one was handled."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _name(record: dict[str, Any]) -> str:
    return (
        f"process {record['process']} on {record['host']} (pid {record['pid']}), {record['seconds']:.0f} s in stage "
        f"{record['stage']!r} of step {record['step']}"
    )


def exit_at_once(message: str, code: int = EXIT_HOST_LOST) -> NoReturn:
    """Prints a message and ends this process at once: with a peer gone, an orderly end would wait for it for ever."""
    print(printable_lines(message), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)

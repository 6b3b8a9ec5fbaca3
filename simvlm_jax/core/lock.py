"""One process at a time: a lock that ends with its process, and a heartbeat for other machines.

`flock` tells processes of one machine apart, and ends with its process whatever ends that. On network file systems it may not
reach other machines, so the holder also counts up in the file while it lives; counts, not clocks, are compared.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from simvlm_jax.core.files import open_own, parse_json, read_bytes
from simvlm_jax.core.schema import Count, check

BEAT = 2.0
"""Seconds between two counts."""
MOST_BYTES = 4096
"""Longest record in a lock file, in bytes."""


class Taken(ValueError):
    """Another process trains here; the message says which."""


@contextlib.contextmanager
def held(folder: Path, what: str = "trains in", name: str = "running.lock") -> Iterator[None]:
    """Holds a folder while what is inside runs.

    Raises:
      Taken: somebody else holds it. BadFile: what stands in the lock's place is a link, a pipe or a device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    file = open_own(path, "a+")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Taken(_taken_message(folder, _record(path), what)) from e
        except OSError:  # a file system without locks: the heartbeat alone must do
            if (now := _record(path)) and not now.get("ended"):
                time.sleep(3 * BEAT)
                if (later := _record(path)) and later["beat"] != now["beat"]:
                    raise Taken(_taken_message(folder, later, what)) from None
        before = _record(path)
        if before and before["host"] != _here() and not before.get("ended"):  # of another machine: does it still count?
            time.sleep(3 * BEAT)
            if (now := _record(path)) and now["beat"] != before["beat"]:
                raise Taken(_taken_message(folder, now, what))
        stop = threading.Event()
        own = {"host": _here(), "pid": os.getpid(), "beat": 0, "ended": False}

        def beat() -> None:
            while not stop.wait(BEAT):
                _write(file, own | {"beat": own["beat"] + 1})
                own["beat"] += 1

        _write(file, own)
        thread = threading.Thread(target=beat, name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            _write(file, own | {"ended": True})
    finally:
        file.close()


@contextlib.contextmanager
def turn(path: Path, log: Callable[[str], None] = lambda text: None) -> Iterator[bool]:
    """Waits until no other process of this machine is inside, then does what is inside.

    Yields whether that is sure: False on a file system without locks.

    Raises:
      BadFile: what stands in the lock's place is a link, a pipe or a device.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_own(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another process that holds {path} ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield False
            return
        yield True


def _here() -> str:
    return socket.gethostname()


def _write(file: Any, record: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a full disk must not end what holds the lock
        file.seek(0)
        file.truncate()
        file.write(json.dumps(record) + "\n")
        file.flush()


class Record(Struct):
    """What a lock's file holds."""

    host: Annotated[str, Meta(max_length=255)]
    pid: Count
    beat: Count
    ended: bool = False


def _record(path: Path) -> dict[str, Any]:
    """What the holder has written; {} where nothing can be read, or it is no record."""
    with contextlib.suppress(OSError, ValueError):
        for _ in range(5):  # the holder empties the file before it writes
            if written := read_bytes(path, MOST_BYTES):
                break
            time.sleep(0.01)
        found = parse_json(written, path.name)
        check(found, Record, path.name)
        return found
    return {}


def _taken_message(folder: Path, record: dict[str, Any], what: str) -> str:
    who = f"process {record['pid']} on {record['host']}" if record else "another process"
    return f"{who} {what} {folder}; wait until it ends, stop it, or name another place"

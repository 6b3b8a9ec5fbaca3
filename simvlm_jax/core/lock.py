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
from typing import Any

BEAT = 2.0
"""Seconds between two counts."""


class Taken(ValueError):
    """Another process trains here; the message says which."""


@contextlib.contextmanager
def held(folder: Path, what: str = "trains in", name: str = "running.lock") -> Iterator[None]:
    """Holds a folder while what is inside runs.

    Raises:
      Taken: somebody else holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    file = path.open("a+", encoding="utf-8")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Taken(_told(folder, _record(path), what)) from e
        except OSError:  # a file system without locks: the heartbeat alone must do
            if (now := _record(path)) and not now.get("ended"):
                time.sleep(3 * BEAT)
                if (later := _record(path)) and later["beat"] != now["beat"]:
                    raise Taken(_told(folder, later, what)) from None
        before = _record(path)
        if before and before["host"] != _here() and not before.get("ended"):  # of another machine: does it still count?
            time.sleep(3 * BEAT)
            if (now := _record(path)) and now["beat"] != before["beat"]:
                raise Taken(_told(folder, now, what))
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
def turn(path: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Waits until no other process of this machine is inside, then does what is inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds {path} ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield


def _here() -> str:
    return socket.gethostname()


def _write(file: Any, record: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a full disk must not end what holds the lock
        file.seek(0)
        file.truncate()
        file.write(json.dumps(record) + "\n")
        file.flush()


def _record(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"host", "pid", "beat"} <= set(found):
            return found
    return {}


def _told(folder: Path, record: dict[str, Any], what: str) -> str:
    who = f"process {record['pid']} on {record['host']}" if record else "another process"
    return f"{who} {what} {folder}; wait until it ends, stop it, or name another place"

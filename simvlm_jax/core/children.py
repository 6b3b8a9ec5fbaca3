"""Processes that end with the one that started them, however that ends."""

import ctypes
import os
import signal
import sys

_PARENT = "SIMVLM_PARENT"
_PR_SET_PDEATHSIG = 1


def with_parent() -> dict[str, str]:
    """What a child must have in its environment to end with this process (see `end_with_parent`)."""
    return {_PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Has the kernel end this process when the one that started it dies, if that one asked for it. On Linux; elsewhere nothing."""
    parent = os.environ.pop(_PARENT, "")
    if not parent or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if str(os.getppid()) != parent:  # it has died in between
        os._exit(1)

"""Processes that end with the one that started them, however that ends."""

import ctypes
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def with_parent() -> dict[str, Any]:
    """Arguments of subprocess.Popen that end the child when its parent dies: on Linux by the kernel."""
    if sys.platform != "linux":
        return {}
    kernel = ctypes.CDLL(None, use_errno=True)

    def die_with_parent() -> None:
        kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return {"preexec_fn": die_with_parent}

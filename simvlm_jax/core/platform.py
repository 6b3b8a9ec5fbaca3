"""The platform that a program is traced for, which may be another than this machine's (`simvlm plan`, benchmarks)."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """Traces what is inside for "tpu", "gpu" or "cpu", whatever this machine has."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform() -> str:
    """The platform that is being traced for: "tpu", "gpu" or "cpu"."""
    return _PLATFORM.get() or jax.default_backend()

"""The platform that a program is traced for, which may be another than this machine's (`simvlm plan`, benchmarks)."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)
_COUNTED: ContextVar[bool] = ContextVar("counted", default=False)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """Traces what is inside for "tpu", "gpu" or "cpu", whatever this machine has."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Traces what is inside to count it: by products and convolutions, in the place of kernels that hide them."""
    token = _COUNTED.set(True)
    try:
        yield
    finally:
        _COUNTED.reset(token)


def is_counted() -> bool:
    """Whether what is being traced is only counted."""
    return _COUNTED.get()


def platform() -> str:
    """The platform that is being traced for: "tpu", "gpu" or "cpu"."""
    return _PLATFORM.get() or jax.default_backend()

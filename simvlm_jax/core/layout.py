"""Where arrays lie, said in letters where they are made; what a letter means is known to whoever traces.

Networks call `constrain` and `in_use`; without `laid_out` around them, or on one device, both leave arrays where they are.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, cast

import jax
from jax.ad_checkpoint import checkpoint_name

IN_USE = "parameter in use"
"""The name under which `jax.checkpoint` policies know parameters that were gathered to be used."""

Letters = Sequence[str | None]
"""One letter an axis (see core/types.py); None, or a letter that no table lists, is whole on every device."""


class Layout(Protocol):
    """What letters mean on a mesh."""

    @property
    def gathers(self) -> bool:
        """Whether parameters lie in parts that are gathered to be used."""
        ...

    def parameter(self, letters: Letters, shape: Sequence[int]) -> jax.sharding.NamedSharding:
        """Where a parameter is kept."""
        ...

    def activation(self, letters: Letters, shape: Sequence[int]) -> jax.sharding.NamedSharding:
        """Where an activation, or a parameter in use, lies."""
        ...


_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)
_PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)


@contextlib.contextmanager
def laid_out(layout: Layout | None) -> Iterator[None]:
    """What is traced inside has its arrays laid out so."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """What is traced inside is meant for "tpu", "gpu" or "cpu", whatever this machine has."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform() -> str:
    """What is being traced for: "tpu", "gpu" or "cpu"."""
    return _PLATFORM.get() or jax.default_backend()


def gathers() -> bool:
    """Whether parameters are gathered to be used, and should not be kept so for the backward pass."""
    layout = _LAYOUT.get()
    return layout is not None and layout.gathers


def constrain(x: jax.Array, letters: Letters) -> jax.Array:
    """An activation, laid out by its letters ("BTD")."""
    layout = _LAYOUT.get()
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.activation(letters, x.shape))


def activation_sharding(letters: Letters, shape: Sequence[int]) -> jax.sharding.NamedSharding | None:
    """Where an activation lies; None where every device has arrays to itself."""
    layout = _LAYOUT.get()
    return None if layout is None else layout.activation(letters, shape)


def constrain_gradient(x: jax.Array, letters: Letters) -> jax.Array:
    """A parameter's gradient, or a part of it, laid out as the parameter is kept: summed over devices into its shards."""
    layout = _LAYOUT.get()
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.parameter(letters, x.shape))


def row_split(rows: int) -> tuple[jax.sharding.Mesh, tuple[str, ...]] | None:
    """The mesh and the axes of it that split so many rows of a batch; None where every device holds them all."""
    layout = _LAYOUT.get()
    if layout is None:
        return None
    where = layout.activation("B", (rows,))
    axes = where.spec[0] if len(where.spec) else None
    if axes is None:
        return None
    return cast(jax.sharding.Mesh, where.mesh), (axes,) if isinstance(axes, str) else tuple(axes)


def in_use(parameter: Any, letters: Letters, dtype: Any = None) -> jax.Array:
    """A parameter as a computation takes it: cast first, then gathered from its shards (FSDP, arXiv 2304.11277).

    Its gradient goes back to the shards; over devices it is summed in the dtype of the computation, and kept in the
    parameter's own.
    """
    x = jax.numpy.asarray(parameter)
    dtype, layout = dtype or x.dtype, _LAYOUT.get()
    if layout is None:
        return x.astype(dtype)
    gathered = _gather(layout.parameter(letters, x.shape), layout.activation(letters, x.shape), x.astype(dtype))
    return checkpoint_name(gathered, IN_USE)


def _gathered(kept, used, x):
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(x, kept), used)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(kept, used, x):
    return _gathered(kept, used, x)


def _gather_forward(kept, used, x):
    return _gathered(kept, used, x), None


def _gather_backward(kept, used, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, kept),)


_gather.defvjp(_gather_forward, _gather_backward)


def with_layout(layout: Layout | None, function: Callable) -> Callable:
    """`function`, traced with a layout."""

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with laid_out(layout):
            return function(*args, **kwargs)

    return traced

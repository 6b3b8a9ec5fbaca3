"""Sharding annotations by letters: networks name the axes of their arrays, the mesh's rules say how each axis is split.

Networks call `constrain` and `in_use`; without `use_sharding` around them, or on one device, both leave arrays where they are.
The rules of a mesh are in parallel/mesh.py.
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


class ShardingRules(Protocol):
    """The sharding of an array by the letters of its axes."""

    @property
    def gathers(self) -> bool:
        """Whether parameters are kept in shards that are gathered to be used (FSDP)."""
        ...

    def parameter(self, letters: Letters, shape: Sequence[int]) -> jax.sharding.NamedSharding:
        """The sharding that a parameter is kept in."""
        ...

    def activation(self, letters: Letters, shape: Sequence[int]) -> jax.sharding.NamedSharding:
        """The sharding of an activation, or of a gathered parameter."""
        ...


_RULES: ContextVar[ShardingRules | None] = ContextVar("sharding_rules", default=None)


@contextlib.contextmanager
def use_sharding(rules: ShardingRules | None) -> Iterator[None]:
    """Applies sharding rules to everything that is traced inside; None: no annotation."""
    token = _RULES.set(rules)
    try:
        yield
    finally:
        _RULES.reset(token)


def gathers() -> bool:
    """Whether parameters are gathered to be used, and should not be kept so for the backward pass."""
    rules = _RULES.get()
    return rules is not None and rules.gathers


def constrain(x: jax.Array, letters: Letters) -> jax.Array:
    """Constrains an activation to the sharding of its letters ("BTD")."""
    rules = _RULES.get()
    return x if rules is None else jax.lax.with_sharding_constraint(x, rules.activation(letters, x.shape))


def activation_sharding(letters: Letters, shape: Sequence[int]) -> jax.sharding.NamedSharding | None:
    """The sharding of an activation; None without sharding rules."""
    rules = _RULES.get()
    return None if rules is None else rules.activation(letters, shape)


def constrain_gradient(x: jax.Array, letters: Letters) -> jax.Array:
    """Constrains a parameter's gradient, or a part of it, to the parameter's own sharding: summed over devices into its shards."""
    rules = _RULES.get()
    return x if rules is None else jax.lax.with_sharding_constraint(x, rules.parameter(letters, x.shape))


def is_split(letter: str, size: int) -> bool:
    """Whether devices split an axis of this letter and size among them."""
    split = activation_sharding(letter, (size,))
    return split is not None and split.spec[:1] not in ((), (None,))


def row_split(rows: int) -> tuple[jax.sharding.Mesh, tuple[str, ...]] | None:
    """The mesh and the axes of it that split so many rows of a batch; None where every device holds them all."""
    rules = _RULES.get()
    if rules is None:
        return None
    where = rules.activation("B", (rows,))
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
    dtype, rules = dtype or x.dtype, _RULES.get()
    if rules is None:
        return x.astype(dtype)
    gathered = _gather(rules.parameter(letters, x.shape), rules.activation(letters, x.shape), x.astype(dtype))
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


def with_sharding(rules: ShardingRules | None, function: Callable) -> Callable:
    """Returns `function` traced under sharding rules."""

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with use_sharding(rules):
            return function(*args, **kwargs)

    return traced

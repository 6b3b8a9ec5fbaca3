"""Checksums of arrays, the same on any mesh: so that one bit that a disk has changed is an error and not other weights.

Orbax's files do not tell: the compressed chunks they hold have no checksum. A sum here is over the bits of all elements, each times
an odd number that depends on its place, modulo 2^32; such sums may be taken in any order, and so in shards.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simvlm_jax.core.trees import path_name

_CHUNK = 2**22


def checksums(tree: Any) -> dict[str, int]:
    """{path of a leaf: checksum}, each below 2^32; every process that holds a part of the tree must call it."""
    leaves = {path_name(path): _numbers(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    shared = {n: x for n, x in leaves.items() if isinstance(x, jax.Array) and not x.is_fully_addressable}
    sums = jax.device_get(_on_devices(jax.block_until_ready(shared))) if shared else {}
    return {n: int(sums[n]) if n in sums else _on_host(np.asarray(x)) for n, x in leaves.items()}


def damaged(tree: Any, recorded: dict[str, int]) -> list[str]:
    """Leaves whose checksums are not those recorded, as far as there is a record."""
    return [name for name, value in checksums(tree).items() if recorded.get(name, value) != value]


def _numbers(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _on_host(x: np.ndarray) -> int:
    x = np.ascontiguousarray(x).reshape(-1)
    bits = x.view({1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32))
    total = 0
    for start in range(0, len(bits), _CHUNK):
        part = bits[start : start + _CHUNK].astype(np.uint32)
        places = np.arange(start, start + len(part), dtype=np.uint64).astype(np.uint32)
        total += int(np.sum(part * (places * np.uint32(2) + np.uint32(1)), dtype=np.uint32))
    return total % 2**32


@jax.jit
def _on_devices(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The same, where arrays lie in shards; the sums are everywhere.

    One program for all: programs of many processes that are in flight together can wait for each other for ever.
    """
    return {name: _on_device(x) for name, x in leaves.items()}


def _on_device(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32))
    places, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        places = places + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(bits.astype(jnp.uint32) * (places * jnp.uint32(2) + jnp.uint32(1)), dtype=jnp.uint32)

"""Rotary position embedding (Su et al., arXiv 2104.09864, section 3.2): queries and keys turned by where they stand.

A pair of components (a, b) of a head at position p becomes (a cos(p w) - b sin(p w), b cos(p w) + a sin(p w)), so that the
product of a query and a key depends on the distance of their positions alone. What a cache holds is turned already.
"""

import jax
import jax.numpy as jnp

from simvlm_jax.nn.sizes import Longer, Rotary, statistics_dtype


def rotate(x_BTHK: jax.Array, position_BT: jax.Array, rotary: Rotary) -> jax.Array:
    """Queries or keys [B,T,H,K], turned by their positions [B,T] (int32); angles and products in fp32 (or wider)."""
    R = rotary.width(x_BTHK.shape[-1])
    precise = statistics_dtype(x_BTHK.dtype)
    speed = rotary.base ** (jnp.arange(0, R, 2, dtype=precise) / -R)
    speed = speed if rotary.longer is None else _slowed(speed, rotary.longer)
    angle = position_BT.astype(precise)[:, :, None, None] * speed
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turning = x_BTHK[..., :R].astype(precise)
    half = rotary.pairing == "half"
    a, b = jnp.split(turning, 2, axis=-1) if half else (turning[..., 0::2], turning[..., 1::2])
    pairs = (a * cos - b * sin, b * cos + a * sin)
    turned = jnp.concatenate(pairs, axis=-1) if half else jnp.stack(pairs, axis=-1).reshape(turning.shape)
    return jnp.concatenate([turned.astype(x_BTHK.dtype), x_BTHK[..., R:]], axis=-1)


def _slowed(speed: jax.Array, longer: Longer) -> jax.Array:
    """Angles a position [R/2], slowed down as `longer` says."""
    if not longer.original:
        return speed / longer.factor
    turns = longer.original * speed / (2 * jnp.pi)
    kept = jnp.clip((turns - longer.slow) / (longer.fast - longer.slow), 0, 1)
    return speed * (kept + (1 - kept) / longer.factor)

"""Adafactor's second moments, factored by what axes mean (Shazeer & Stern, arXiv 1804.04235, sections 3 and 6).

The paper speaks of matrices. A kernel [L,D,H,K] is L matrices of D inputs and H*K outputs, so its second moment is the product
of [L,D] and [L,H,K], as if it were reshaped to [L, inputs, outputs]; by the two largest axes alone, as optax has it, a head
width of 64 is never long enough and the whole second moment is kept. Updates are clipped layer by layer, so that layers
which are scanned learn as layers which are not.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from simvlm_jax.core.letters import Axes

SMALLEST = 128
"""Sides of a matrix that are shorter are not factored (optax's figure): there is little to save."""
FLOOR = 1e-30
"""Added to squared gradients (the paper's epsilon 1)."""


class FactoredMoments(NamedTuple):
    """Second moments: means over the outputs and over the inputs of what is factored, whole for the rest, else of size 1."""

    count: Any
    over_outputs: Any
    over_inputs: Any
    whole: Any


class _Leaf(NamedTuple):
    update: Any
    over_outputs: Any
    over_inputs: Any
    whole: Any


def factored(axes: Axes, shape: tuple[int, ...]) -> bool:
    """Whether the second moment of a parameter is kept as a product: it has two sides, and both are long enough."""
    sides = [math.prod(shape[i] for i in side) for side in (axes.inputs, axes.outputs)]
    return bool(axes.inputs) and min(sides) >= SMALLEST


def scale_by_factored_moments(axes: Any, decay: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Divides gradients by the root of their second moments.

    Args:
      axes: `Axes` of every parameter, a tree like the parameters' with these as leaves.
      decay: the moments' decay rate at a step, counted from 0.
    """

    def init(params):
        def begin(p, a: Axes):
            nothing = jnp.zeros((1,), p.dtype)
            if not factored(a, p.shape):
                return _Leaf(nothing, nothing, nothing, jnp.zeros_like(p))
            return _Leaf(nothing, jnp.zeros_like(p).mean(a.outputs), jnp.zeros_like(p).mean(a.inputs), nothing)

        return _state(jnp.zeros((), jnp.int32), jax.tree.map(begin, params, axes))

    def update(updates, state, params=None):
        rate = decay(state.count)

        def moved(old, new):
            return (rate * old + (1.0 - rate) * new).astype(old.dtype)

        def scaled(g, over_outputs, over_inputs, whole, a: Axes):
            square = jnp.square(g) + FLOOR
            if not factored(a, g.shape):
                whole = moved(whole, square)
                return _Leaf(g * whole**-0.5, over_outputs, over_inputs, whole)
            over_outputs = moved(over_outputs, square.mean(a.outputs))
            over_inputs = moved(over_inputs, square.mean(a.inputs))
            of_inputs = jnp.expand_dims(over_outputs, a.outputs)
            of_outputs = jnp.expand_dims(over_inputs, a.inputs)
            share = of_inputs / of_inputs.mean(a.inputs, keepdims=True)
            return _Leaf(g * share**-0.5 * of_outputs**-0.5, over_outputs, over_inputs, whole)

        found = jax.tree.map(scaled, updates, state.over_outputs, state.over_inputs, state.whole, axes)
        return _part(found, "update"), _state(optax.safe_increment(state.count), found)

    return optax.GradientTransformation(init, update)


def limit_layer_rms(axes: Any, threshold: float) -> optax.GradientTransformation:
    """Scales updates down whose root mean square is above a threshold, each layer of a scanned stack by itself (section 6)."""

    def limited(u, a: Axes):
        own = tuple(i for i in range(u.ndim) if i not in a.layers)
        rms = jnp.sqrt(jnp.square(u).mean(own, keepdims=True))
        return u / jnp.maximum(1.0, rms / threshold)

    return optax.stateless(lambda updates, _: jax.tree.map(limited, updates, axes))


def _part(leaves: Any, name: str) -> Any:
    return jax.tree.map(lambda leaf: getattr(leaf, name), leaves, is_leaf=lambda leaf: isinstance(leaf, _Leaf))


def _state(count, leaves: Any) -> FactoredMoments:
    return FactoredMoments(count, *(_part(leaves, name) for name in ("over_outputs", "over_inputs", "whole")))

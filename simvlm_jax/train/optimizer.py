"""Optimizers and schedules by config: AdamW, Adafactor or Muon, warm-up and decay, clipping, regex lists, weight EMA.

What is a matrix, of which inputs and outputs, and what is decayed, is read from the letters of a parameter's axes
(core/letters.py), never from its name.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from simvlm_jax.core.letters import Axes, Letterbook, axes_of, decays
from simvlm_jax.core.schema import AboveZero, Meta, NotNegative, Pattern, Rate, Share
from simvlm_jax.core.trees import leaf_names, match, merge, partition
from simvlm_jax.core.trust import buildable
from simvlm_jax.train.adafactor import limit_layer_rms, scale_by_factored_moments

OPTIMIZERS = ("adamw", "adafactor", "muon")
SCHEDULES = ("linear", "cosine", "rsqrt", "constant")


@buildable("optimizer")
@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer in figures.

    Args:
      name: "adamw"; "adafactor" (Shazeer & Stern 2018, with decoupled weight decay, momentum b1, and a second moment whose
        decay is at most b2; of matrices and tables it is factored, see train/adafactor.py); or "muon" (Jordan et al. 2024;
        the matrices' momentum b1 is orthogonalised and given the root mean square 0.2 of Adam's updates, Liu et al. 2025,
        arXiv 2502.16982; every other parameter, also embeddings and heads, has Adam with Nesterov momentum).
      learning_rate: the peak. schedule: "linear", "cosine" (both to `final` x peak), "rsqrt" or "constant".
      warmup: steps, or a share of all steps when below 1.
      weight_decay: of matrices, embeddings, heads and learned queries; norms, biases, position tables and temperatures have
        none. decay: (regex, factor) of parameters that have another share of it; the first match goes before this rule.
      multipliers: (regex, factor) of the learning rate; 0 is not freezing (see `train.trainable`).
      epsilon: of adamw.
      clip: largest global gradient norm, None or 0 for no clipping. ema: decay of the weight average, 0 for none.
      bounds: (regex, (lowest, highest)) of parameters that each update is not to leave, such as a temperature.
    """

    name: str = "adamw"
    learning_rate: Annotated[float, Meta(ge=0, le=1e38)] = 1e-3
    schedule: str = "cosine"
    warmup: NotNegative = 0.02
    final: Share = 0.0
    b1: Rate = 0.9
    b2: Rate = 0.999
    epsilon: AboveZero = 1e-8
    weight_decay: Annotated[float, Meta(ge=0, le=1e3)] = 0.01
    decay: Sequence[tuple[Pattern, NotNegative]] = ()
    multipliers: Sequence[tuple[Pattern, NotNegative]] = ()
    clip: NotNegative | None = 1.0
    ema: Rate = 0.0
    bounds: Sequence[tuple[Pattern, tuple[float, float]]] = ()

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optimizer schedule {self.schedule!r} is not one of {', '.join(SCHEDULES)}")
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.name!r} is not one of {', '.join(OPTIMIZERS)}")
        for pattern, (lowest, highest) in self.bounds:
            if not lowest <= highest:
                raise ValueError(f"optimizer bounds of {pattern!r}: {lowest} to {highest} is no range")

    def schedule_for(self, steps: int) -> optax.Schedule:
        """The learning rate by step, over a run of `steps`."""
        warmup = int(self.warmup * steps if self.warmup < 1 else self.warmup)
        rest, peak = max(steps - warmup, 1), self.learning_rate
        after = {
            "linear": lambda: optax.linear_schedule(peak, peak * self.final, rest),
            "cosine": lambda: optax.cosine_decay_schedule(peak, rest, self.final),
            "constant": lambda: optax.constant_schedule(peak),
            "rsqrt": lambda: lambda n: peak * jnp.sqrt(max(warmup, 1) / (jnp.maximum(n, 0) + max(warmup, 1))),
        }
        if not warmup:
            return after[self.schedule]()
        return optax.join_schedules(
            [optax.linear_schedule(peak / warmup, peak, warmup), after[self.schedule]()], [warmup]
        )

    def _second_moment_decay(self, step: Any) -> Any:
        """1 - step^-0.8, and b2 from when that is larger (Zhai et al., arXiv 2106.04560, section 3.4)."""
        return jnp.minimum(1.0 - (step + 1.0) ** -0.8, self.b2)

    def make(self, params: Any, steps: int, letters: Letterbook, flags: Any = None) -> optax.GradientTransformation:
        """The optax transformation for those leaves of `params` whose flag is true (without flags, all).

        letters: of every parameter's axes, by its name; what the book lacks has none (see core.letters.axes_of).
        """
        schedule = self.schedule_for(steps)

        book = {
            name: tuple(letters.get(name, (None,) * len(p.shape)))
            for name, p in zip(leaf_names(params), jax.tree.leaves(params), strict=True)
        }

        def by_name(rules, what, default: Any = 1.0):
            values = match(params, rules, default, f"optimizer.{what}")
            return values if flags is None else partition(values, flags)[0]

        decay = by_name(self.decay, "decay", lambda name: float(decays(book[name])))
        scale = self._scaling(by_name((), "axes", lambda name: axes_of(book[name])))
        chain = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        chain += [*scale, _add_decay(self.weight_decay, decay)]
        if self.multipliers:
            factors = by_name(self.multipliers, "multipliers")
            chain.append(optax.stateless(lambda u, p: jax.tree.map(lambda x, f: x * f, u, factors)))
        chain.append(optax.scale_by_learning_rate(schedule))
        if self.bounds:
            limits = by_name(tuple((name, tuple(pair)) for name, pair in self.bounds), "bounds", (-math.inf, math.inf))
            chain.append(_kept_within(limits))
        if self.ema:
            chain.append(weight_ema(self.ema))
        return optax.chain(*chain)

    def _scaling(self, axes: Any) -> list[optax.GradientTransformation]:
        """What makes updates of gradients, before decay and learning rate; axes: a tree of `Axes`."""
        if self.name == "adamw":
            return [optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.epsilon)]
        if self.name == "adafactor":
            return [
                scale_by_factored_moments(axes, self._second_moment_decay),
                limit_layer_rms(axes, 1.0),
                optax.ema(self.b1, debias=False),
            ]
        muon = contrib.muon(
            1.0,
            beta=self.b1,
            adam_b1=self.b1,
            adam_b2=self.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=lambda _: jax.tree.map(_muon_axes, axes, is_leaf=_is_axes),
        )
        return [muon, optax.scale(-1.0)]  # optax's optimizers end in a descent, the chain of `make` has its own


def _is_axes(x: Any) -> bool:
    return isinstance(x, Axes)


def _muon_axes(axes: Axes) -> contrib.MuonDimensionNumbers | None:
    return contrib.MuonDimensionNumbers(axes.inputs, axes.outputs) if axes.kind == "matrix" else None


def _add_decay(weight_decay: float, factors: Any) -> optax.GradientTransformation:
    def add(updates, params):
        return jax.tree.map(lambda u, p, f: u + weight_decay * f * p, updates, params, factors)

    return optax.stateless(add)


def _kept_within(limits: Any) -> optax.GradientTransformation:
    """Cuts updates so that no parameter leaves its (lowest, highest)."""

    def cut(updates, params):
        return jax.tree.map(
            lambda u, p, b: u if math.inf == b[1] == -b[0] else jnp.clip(p + u, *b) - p, updates, params, limits
        )

    return optax.stateless(cut)


class WeightEma(NamedTuple):
    """The running average of the weights and the number of updates in it."""

    average: Any
    count: Any


def weight_ema(decay: float) -> optax.GradientTransformation:
    """Averages the weights after each update; early on the decay is (1 + n) / (10 + n), so that zeros never weigh in."""

    def init(params):
        return WeightEma(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        n = state.count + 1
        d = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
        new = jax.tree.map(lambda a, p, u: a + (1 - d) * (p + u - a), state.average, params, updates)
        return updates, WeightEma(new, n)

    return optax.GradientTransformation(init, update)


def averaged(params: Any, opt: Any) -> Any:
    """The parameters to evaluate: with the weight average, where the optimizer keeps one, in place of its leaves."""
    found = [s for s in jax.tree.leaves(opt, is_leaf=lambda s: isinstance(s, WeightEma)) if isinstance(s, WeightEma)]
    return merge(found[0].average, params) if found else params

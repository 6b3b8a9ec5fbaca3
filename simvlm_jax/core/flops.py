"""FLOPs of matrix products and convolutions, counted from jaxprs: functions are traced, never run.

`count_flops` counts all that a function does, recomputation included. `model_flops` counts what a training step needs, as in
the usual definition of model FLOPs utilisation (Chowdhery et al., arXiv 2204.02311, appendix B): each product of the forward
pass once, and once more in the backward pass for each of its operands through which a gradient reaches a trainable parameter.
So frozen parts cost their forward pass alone, targets under stop_gradient too, and what a backward pass makes again
(rematerialised blocks, logits in chunks, fused attention) is not counted, however it is made.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from simvlm_jax.core.platform import compiled_for, counted
from simvlm_jax.core.sharding import use_sharding
from simvlm_jax.core.terms import total_loss
from simvlm_jax.core.trees import match, merge, partition
from simvlm_jax.core.types import Batch

Bits = list[bool]


class ModelFlops(NamedTuple):
    """FLOPs of a training step on a global batch, without what is computed again."""

    forward: float
    backward: float


def count_flops(function: Callable, *args: Any) -> float:
    """FLOPs of matrix products and convolutions (2 a multiply-add) of `function(*args)`, loops as often as they run."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def model_flops(model: Any, batch: Batch, flags: dict | None = None) -> ModelFlops:
    """FLOPs of a model's loss over a global batch, and of the gradient by its trainable parameters.

    A model is traced once for shapes and flags, with the kernels of CPUs, whose products can be seen.

    Args:
      batch: arrays or ShapeDtypeStructs, of which the shapes count.
      flags: a tree like the parameters, which of them train; None: all.
    """
    leaves, shape = jax.tree.flatten(batch)
    flat, tree = jax.tree.flatten(flags)
    key = (tuple((tuple(x.shape), _dtype(x.dtype)) for x in leaves), shape, tuple(flat), tree)
    try:
        hash(model)
    except TypeError:  # a model with fields that change
        return _traced.__wrapped__(model, *key)
    return _traced(model, *key)


def trainable_flags(model: Any, batch: Batch, rules: Sequence[tuple[str, bool]]) -> dict:
    """Which parameters train by a list of (regex, bool), the first match first: a tree like the parameters'. Nothing is made."""
    import flax.linen as nn

    shapes = jax.eval_shape(lambda key: model.init(key, batch), jax.random.key(0))[0]
    return match(nn.unbox(shapes), list(rules), True, "train.trainable")


def _dtype(dtype: Any) -> str:
    return jax.dtypes.canonicalize_dtype(dtype).name


@functools.lru_cache(maxsize=128)
def _traced(model: Any, leaves: tuple, shape: Any, flat: tuple, tree: Any) -> ModelFlops:
    import flax.linen as nn

    batch = jax.tree.unflatten(shape, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    flags = jax.tree.unflatten(tree, flat)

    def loss(trainable, frozen, extra, batch, rng, step):
        params, how = merge(trainable, frozen), {"step": step, "train": True}
        features, terms, _ = model.per_example(params, extra, batch, rngs=rng, **how)
        return total_loss({**terms, **model.across_batch(params, extra, features, **how)[0]})

    with compiled_for("cpu"), counted(), use_sharding(None):
        rng = jax.eval_shape(lambda: jax.random.key(0))
        params, extra = nn.unbox(jax.eval_shape(lambda key: model.init(key, batch), rng))
        trainable, frozen = (params, {}) if flags is None else partition(params, flags)
        step = jax.ShapeDtypeStruct((), "int32")
        jaxpr = jax.make_jaxpr(loss)(trainable, frozen, extra, batch, rng, step).jaxpr
    learned = len(jax.tree.leaves(trainable))
    varies = [i < learned for i in range(len(jaxpr.invars))]
    return _needed(jaxpr, varies, [True], _varying(jaxpr, varies)[0])[0]


def _product(eqn: Any) -> float:
    """FLOPs of a matrix product or convolution; 0 of anything else."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, spec = eqn.invars[1].aval, params["dimension_numbers"].rhs_spec
        taps = math.prod(kernel.shape[i] for i in spec[1:])  # input features and window
        dilated = math.prod(params["lhs_dilation"])  # holes that a strided convolution's gradient puts in
        return 2.0 * eqn.outvars[0].aval.size * taps / dilated
    return 0.0


def _inside(eqn: Any) -> tuple[list[Any], list[Any], float]:
    """(functions called, the branches of which one is, how often) by an equation."""
    params, times = eqn.params, 1.0
    if eqn.primitive.name == "scan":
        times = float(params["length"])
    elif eqn.primitive.name == "shard_map":  # written for one device, run by each of the mesh
        times = float(params["mesh"].size)
    elif (
        eqn.primitive.name == "pallas_call"
    ):  # written for a block; what a mask skips counts, as it does in a dense product
        times = float(math.prod(params["grid_mapping"].grid))
    called = [v for k, v in params.items() if k in ("jaxpr", "call_jaxpr", "body_jaxpr", "fun_jaxpr")]
    opened = [[getattr(j, "jaxpr", j) for j in some] for some in (called, params.get("branches", ()))]
    return opened[0], opened[1], times


def _count(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        called, branches, times = _inside(eqn)
        total += _product(eqn) + times * sum(map(_count, called)) + max(map(_count, branches), default=0.0)
    return total


# ---- which products a gradient needs: what varies with the parameters, then, backwards, what the loss depends on -----------


def _bits(variables: Sequence[Any], found: set[Any]) -> Bits:
    return [not hasattr(v, "val") and v in found for v in variables]  # literals have a value, and cannot be looked up


def _varying(jaxpr: Any, varies: Bits) -> tuple[Bits, set[Any]]:
    """(which results, which variables) of a jaxpr vary with those of its arguments that are marked."""
    found = {v for v, bit in zip(jaxpr.invars, varies, strict=True) if bit}
    for eqn in jaxpr.eqns:
        if any(given := _bits(eqn.invars, found)) and eqn.primitive.name not in ("stop_gradient", "while"):
            out = _results(eqn, given)
            found |= {v for v, bit in zip(eqn.outvars, out, strict=True) if bit and _real(v)}
    return _bits(jaxpr.outvars, found), found


def _real(variable: Any) -> bool:
    return jax.numpy.issubdtype(variable.aval.dtype, jax.numpy.inexact)


def _results(eqn: Any, given: Bits) -> Bits:
    """Which results of an equation vary with its marked arguments."""
    called, branches, _ = _inside(eqn)
    if eqn.primitive.name == "scan":
        return _varying(called[0], _settled(eqn, given))[0]
    functions = called or branches
    if not functions:
        return [True] * len(eqn.outvars)
    each = [_varying(f, _arguments(f, given))[0] for f in functions]
    return [any(bits) for bits in zip(*each, strict=True)]


def _arguments(jaxpr: Any, given: Bits) -> Bits:
    """The marks of an equation's arguments as those of the function it calls (a branch lacks the index in front)."""
    n = len(jaxpr.invars)
    return given[-n:] if len(given) - n in (0, 1) and n else [any(given)] * n


def _settled(eqn: Any, given: Bits) -> Bits:
    """The marks of a scan's arguments, where what is carried varies from the first pass on or by a later one."""
    body, first, n = _inside(eqn)[0][0], eqn.params["num_consts"], eqn.params["num_carry"]
    while True:
        carried = [a or b for a, b in zip(given[first : first + n], _varying(body, given)[0][:n], strict=True)]
        if carried == given[first : first + n]:
            return given
        given = [*given[:first], *carried, *given[first + n :]]


def _needed(jaxpr: Any, varies: Bits, used: Bits, wanted: Bits) -> tuple[ModelFlops, Bits, Bits]:
    """FLOPs of a function, and which of its arguments are used, and wanted.

    used: results that the loss depends on. wanted: those whose gradient reaches a parameter.
    """
    _, varying = _varying(jaxpr, varies)
    alive = {v for v, bit in zip(jaxpr.outvars, used, strict=True) if bit and not hasattr(v, "val")}
    live = {v for v, bit in zip(jaxpr.outvars, wanted, strict=True) if bit and not hasattr(v, "val")} & varying
    forward = backward = 0.0
    for eqn in reversed(jaxpr.eqns):
        if not any(uses := _bits(eqn.outvars, alive)):
            continue
        gives, given = _bits(eqn.outvars, live), _bits(eqn.invars, varying)
        flops, reads, leads = _needed_by(eqn, given, uses, gives)
        forward, backward = forward + flops.forward, backward + flops.backward
        alive |= {v for v, bit in zip(eqn.invars, reads, strict=True) if bit and not hasattr(v, "val")}
        live |= {v for v, bit, varied in zip(eqn.invars, leads, given, strict=True) if bit and varied}
    return ModelFlops(forward, backward), _bits(jaxpr.invars, alive), _bits(jaxpr.invars, live)


def _needed_by(eqn: Any, given: Bits, used: Bits, wanted: Bits) -> tuple[ModelFlops, Bits, Bits]:
    """`_needed` of one equation. given: arguments that vary."""
    called, branches, times = _inside(eqn)
    every, own = [True] * len(eqn.invars), _product(eqn)
    if eqn.primitive.name == "scan":
        return _needed_by_scan(eqn, given, used, wanted)
    if eqn.primitive.name == "while" or not (called or branches):  # a while loop has no gradient
        forward = own + sum(map(_count, called))
        return ModelFlops(forward, own * sum(given) * any(wanted)), every, [any(wanted)] * len(every)
    found = [_needed(f, _arguments(f, given), used, wanted) for f in called or branches]
    flops = max((f for f, _, _ in found), key=sum)
    marks = [[any(bits) for bits in zip(*(f[i] for f in found), strict=True)] for i in (1, 2)]
    if len(marks[0]) != len(every):  # a branch lacks the index in front
        marks = [[True, *marks[0]], [False, *marks[1]]] if len(every) == len(marks[0]) + 1 else [every, every]
    return ModelFlops(times * flops.forward, times * flops.backward), marks[0], marks[1]


def _needed_by_scan(eqn: Any, given: Bits, used: Bits, wanted: Bits) -> tuple[ModelFlops, Bits, Bits]:
    (body,), _, times = _inside(eqn)
    first, n = eqn.params["num_consts"], eqn.params["num_carry"]
    given = _settled(eqn, given)
    while True:  # what a later pass needs of an earlier one
        flops, reads, leads = _needed(body, given, used, wanted)
        more = [
            [a or b for a, b in zip(x[:n], y[first : first + n], strict=True)]
            for x, y in ((used, reads), (wanted, leads))
        ]
        if more == [used[:n], wanted[:n]]:
            return ModelFlops(times * flops.forward, times * flops.backward), reads, leads
        used, wanted = [*more[0], *used[n:]], [*more[1], *wanted[n:]]

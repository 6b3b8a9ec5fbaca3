"""FLOPs of a traced function, counted from its jaxpr: loops as often as they run, recomputation included."""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable, *args: Any) -> float:
    """FLOPs of matrix products and convolutions (2 a multiply-add) of `function(*args)`, which is only traced."""
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr: Any) -> float:
    return sum(_of_equation(e) for e in jaxpr.eqns)


def _of_equation(e: Any) -> float:
    name, params = e.primitive.name, e.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * e.outvars[0].aval.size * math.prod(e.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, spec = e.invars[1].aval, params["dimension_numbers"].rhs_spec
        taps = math.prod(kernel.shape[i] for i in spec[1:])  # input features and window
        dilated = math.prod(params["lhs_dilation"])  # holes that a strided convolution's gradient puts in
        return 2.0 * e.outvars[0].aval.size * taps / dilated
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":  # written for one device, run by each of the mesh
        times = params["mesh"].size
    branches = [_of(b.jaxpr) for b in params.get("branches", ())]
    inner = [v for k, v in params.items() if k in ("jaxpr", "call_jaxpr", "body_jaxpr", "fun_jaxpr")]
    return times * sum(_of(getattr(j, "jaxpr", j)) for j in inner) + max(branches, default=0.0)

"""L2-regularised logistic regression by L-BFGS, as linear probes of CLIP have it (arXiv 2103.00020, appendix A.3)."""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

STEPS_A_DECADE = 8
MOST_TRIED = 7 + 2 * 4
THREADED = 2**27
"""Multiplications of a product from which it is worth more than a thread."""
SEARCHED = 1e-7
"""The tolerance of fits that are only compared."""


@dataclasses.dataclass(frozen=True)
class Logistic:
    """Class scores `x @ weights + bias`; weights [D,A], bias [A]."""

    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weights + self.bias


def fit(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    c: float,
    start: Logistic | None = None,
    iterations: int = 1000,
    tolerance: float = 64 * np.finfo(float).eps,
) -> Logistic:
    """The minimum of `c * sum of cross-entropies + |weights|^2 / 2`; the bias is free. x [N,D], y [N] ints, in float64.

    start: where to begin; the minimum is one, so that it changes the time alone, as far as `tolerance` goes: the change of the
    mean loss in a step (of a loss above 1, relative) that is none any more.
    """
    n, d = x.shape
    scale = 1.0 / (c * n)
    # In coordinates u in which features do not hang together the same minimum is found in far fewer steps: x is centred, for
    # the bias is free, and turned by `turn`, whose columns are orthogonal, so that |weights|^2 stays a sum over u.
    middle = x.astype(np.float64).mean(0)
    centred = x - middle
    spread, directions = np.linalg.eigh(centred.T @ centred / n)
    stretch = 1 / np.sqrt(np.maximum(spread, 0) / 4 + scale)  # a softmax's curvature is a quarter at most
    turn = directions * stretch
    z, penalty = centred @ turn, scale * stretch[:, None] ** 2

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        u, b = flat[: d * classes].reshape(d, classes), flat[d * classes :]
        logits = z @ u + b
        top = logits.max(1, keepdims=True)
        p = np.exp(logits - top)
        total = p.sum(1, keepdims=True)
        loss = (np.log(total[:, 0]) + top[:, 0] - logits[np.arange(n), y]).mean() + 0.5 * (penalty * u * u).sum()
        p /= total
        p[np.arange(n), y] -= 1
        p /= n
        return loss, np.concatenate([(z.T @ p + penalty * u).ravel(), p.sum(0)])

    begin = np.zeros((d + 1) * classes)
    if start is not None:
        weights = (directions / stretch).T @ start.weights
        begin = np.concatenate([weights.ravel(), start.bias + middle @ start.weights])
    options = {"maxiter": iterations, "ftol": tolerance, "gtol": 1e-6, "maxfun": 2 * iterations}
    # threads that wait for each other made small fits nine times slower
    few = 1 if n * d * classes < THREADED else None
    with threadpool_limits(few, user_api="blas"):
        found = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options).x
    weights = turn @ found[: d * classes].reshape(d, classes)
    return Logistic(weights, found[d * classes :] - middle @ weights)


def best_c(
    x: np.ndarray,
    y: np.ndarray,
    x_validation: np.ndarray,
    y_validation: np.ndarray,
    classes: int,
    report: Callable[[int], None] = lambda tried: None,
) -> tuple[float, dict[float, float]]:
    """(c, validation accuracy by c tried): CLIP's search for c between 1e-6 and 1e6, 96 steps.

    Starts from every second decade and halves the distance around the best until there are 8 steps a decade, which takes
    MOST_TRIED fits at most. report: is called with how many were made.
    """
    accuracy: dict[int, float] = {}
    fitted: dict[int, Logistic] = {}

    def try_out(step: int) -> None:
        if step in accuracy or abs(step) > 6 * STEPS_A_DECADE:
            return
        near = min(fitted, key=lambda s: abs(s - step)) if fitted else None
        start = None if near is None else fitted[near]
        fitted[step] = fit(x, y, classes, 10 ** (step / STEPS_A_DECADE), start, tolerance=SEARCHED)
        report(len(fitted))
        accuracy[step] = float((fitted[step](x_validation).argmax(1) == y_validation).mean())

    distance = 2 * STEPS_A_DECADE
    for step in range(-6 * STEPS_A_DECADE, 6 * STEPS_A_DECADE + 1, distance):
        try_out(step)
    while distance > 1:
        distance //= 2
        peak = max(accuracy, key=lambda s: (accuracy[s], -abs(s)))
        try_out(peak - distance)
        try_out(peak + distance)
    peak = max(accuracy, key=lambda s: (accuracy[s], -abs(s)))
    return 10 ** (peak / STEPS_A_DECADE), {10 ** (s / STEPS_A_DECADE): a for s, a in sorted(accuracy.items())}

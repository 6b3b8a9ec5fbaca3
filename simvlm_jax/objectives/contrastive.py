"""Contrastive objectives between the images and the texts of a global batch, as sums and counts.

`info_nce` and `nce` are the textbook's, of logits that are there. `softmax_pairs` and `sigmoid_pairs` are the same of features
that lie on any mesh, over all pairs of the global batch and in flat memory (see pairs.py); the logit of a pair is
that of a function, by default the scaled cosine.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simvlm_jax.objectives.pairs import TILE, OfTile, log_normalisers, pair_sum

HIDDEN = -1e30
"""The logit of a pair that does not count."""


def info_nce(
    logits_BB: jax.Array, targets_BB: jax.Array, weight_B: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(sum of both directions' losses, sum of weights): cross-entropies over rows and over columns (arXiv 1807.03748, eq. 4).

    targets_BB: of the rows' direction and, transposed, of the columns', each normalised here: an identity for pairs, several
    ones for several positives, anything in between for soft targets. Losses are in nats. weight_B: of losses alone; a row of
    weight 0 is still a negative of the others.
    """
    weight = jnp.ones(logits_BB.shape[0]) if weight_B is None else weight_B
    loss = 0.0
    for logits, targets in ((logits_BB, targets_BB), (logits_BB.T, targets_BB.T)):
        total = targets.sum(1, keepdims=True)
        share = targets / jnp.where(weight[:, None] > 0, total, 1)  # padding has no target
        loss += jnp.where(weight > 0, weight * (jax.nn.logsumexp(logits, axis=1) - (share * logits).sum(1)), 0).sum()
    return loss, weight.sum()


def nce(positive: jax.Array, negative: jax.Array, log_noise_ratio: jax.Array | float = 0.0) -> jax.Array:
    """Noise-contrastive estimation (Gutmann & Hyvarinen 2010): data against noise by logistic regression; a sum, in nats.

    positive, negative: unnormalised log-densities of data and of noise samples, any shapes. log_noise_ratio: log(k q(x)) of k
    noise samples of density q a data sample.
    """
    return jax.nn.softplus(log_noise_ratio - positive).sum() + jax.nn.softplus(negative - log_noise_ratio).sum()


def cosine_logits(params: dict[str, jax.Array], rows: dict[str, Any], columns: dict[str, Any]) -> jax.Array:
    """scale * x.y + bias of unit vectors `features` [r,E] and [c,E]: [r,c], at full precision."""
    cosine = jnp.einsum("rE,cE->rc", rows["features"], columns["features"], precision=jax.lax.Precision.HIGHEST)
    return params["scale"] * cosine + params.get("bias", 0.0)


Side = dict[str, Any]
"""The images, or the texts, of a batch or of a tile of it: arrays by name, [B,...]."""


class Contrast(NamedTuple):
    """loss: the sum of both directions. count: of pairs. image_right, text_right: how many find their own, or tie with it."""

    loss: jax.Array
    count: jax.Array
    image_right: jax.Array
    text_right: jax.Array


def softmax_pairs(
    params: Any,
    images: Side,
    texts: Side,
    *,
    logits: OfTile = cosine_logits,
    smoothing: float = 0.0,
    teacher: Any = None,
    teacher_share: float = 0.5,
    tile: int = TILE,
) -> Contrast:
    """InfoNCE in both directions (CLIP, arXiv 2103.00020, figure 3) over all pairs of the global batch.

    Args:
      params: what `logits` takes ("scale").
      images, texts: `weight` [B] (0: no pair), and what `logits` takes (`features`), leaves [B,...]. Optionally `group` [B]
        int: rows with the same number are each other's positives, in equal shares. Optionally `teacher`: what
        `logits(teacher, ...)` takes.
      smoothing: share of the target that is spread over all pairs.
      teacher: params of a teacher, whose softmax is `teacher_share` of the target.
    """
    normal = log_normalisers(_among_pairs(logits), params, images, texts, tile)
    weight = images["weight"].astype(normal.rows.dtype)
    matched, real = _matched(logits, params, images, texts), weight > 0
    most = [largest - 1e-5 * jnp.abs(largest) for largest in (normal.row_max, normal.column_max)]  # but for rounding
    right = [(real & (matched >= m)).sum() for m in most]
    soft = "group" in images or smoothing or teacher is not None
    # row by row against a row's own logit, for sums over the batch would cancel; soft targets are added relative to it below
    beside = jax.lax.stop_gradient(matched) if soft else matched
    losses = jnp.where(real, weight * (normal.rows + normal.columns - 2 * beside), 0).sum()
    if not soft:
        return Contrast(losses, weight.sum(), *right)

    sides: list[Side] = [{"of": side} for side in (images, texts)]
    if "group" in images:
        alike: Any = log_normalisers(_among_pairs(_alike), {}, images, texts, tile)
        sides = [{**side, "alike": n} for side, n in zip(sides, alike[:2], strict=True)]
    else:
        place = jnp.arange(len(weight))
        sides = [{"of": {**side["of"], "group": place}, "alike": jnp.zeros_like(weight)} for side in sides]
    if teacher is not None:
        teacher_normal: Any = log_normalisers(_teacher_logits(logits), teacher, images, texts, tile)
        sides = [{**side, "teacher": n} for side, n in zip(sides, teacher_normal[:2], strict=True)]
    sides = [{**jax.lax.stop_gradient({k: v for k, v in s.items() if k != "of"}), "of": s["of"]} for s in sides]
    sides = [{**side, "weight": side["of"]["weight"], "matched": beside} for side in sides]

    def attraction(params: Any, r: Side, c: Side) -> jax.Array:
        """The sum of target * (logit - matched logit), of rows and of columns."""

        def target(beside: str, by: jax.Array) -> tuple[jax.Array, jax.Array]:
            """weight * target of each pair by its row and by its column, where `exp(by - its normaliser)` is the share."""
            rows = r["weight"][:, None] * jnp.exp(by - r[beside][:, None])
            return rows, c["weight"][None] * jnp.exp(by - c[beside][None])

        def mixed(first: Sequence[jax.Array], second: Sequence[jax.Array], share: float) -> list[jax.Array]:
            return [(1 - share) * a + share * b for a, b in zip(first, second, strict=True)]

        every = [jnp.where(_counts(r, c), w, 0) / params["pairs"] for w in (r["weight"][:, None], c["weight"][None])]
        targets = mixed(target("alike", _among_pairs(_alike)({}, r["of"], c["of"])), every, smoothing)
        if "teacher" in params:
            teacher_targets = target("teacher", _teacher_logits(logits)(params["teacher"], r["of"], c["of"]))
            targets = mixed(targets, teacher_targets, teacher_share)
        by_row, by_column = jax.lax.stop_gradient(targets)
        block = _among_pairs(logits)(params["own"], r["of"], c["of"])
        return (by_row * (block - r["matched"][:, None]) + by_column * (block - c["matched"][None])).sum()

    known = {"own": params, "pairs": jnp.maximum(real.sum(), 1).astype(weight.dtype)} | (
        {} if teacher is None else {"teacher": teacher}
    )
    attracted: Any = pair_sum(attraction, known, *sides, tile)
    return Contrast(losses - attracted, weight.sum(), *right)


def sigmoid_pairs(
    params: Any, images: Side, texts: Side, *, logits: OfTile = cosine_logits, tile: int = TILE
) -> tuple[jax.Array, jax.Array]:
    """(sum of losses, count of pairs): every image with every text, a binary question each (arXiv 2303.15343, eq. 1).

    The logit is scale * x.y + bias, with a negative bias at the start: that is what the authors' code does, though the printed
    equation can be read with the other sign. A loss is a row's sum over all texts, not its mean: the whole is divided by B.
    Arguments are those of `softmax_pairs`; rows of one `group` are all positives.
    """

    def binary(params: Any, r: Side, c: Side) -> jax.Array:
        alike = r["group"][:, None] == c["group"][None]
        sign = jnp.where(alike, 1.0, -1.0)
        both = jnp.where(_counts(r, c), r["weight"][:, None] * c["weight"][None], 0)
        return (both * jax.nn.softplus(-sign * logits(params, r, c))).sum()

    if "group" not in images:
        place = jnp.arange(len(images["weight"]))
        images, texts = {**images, "group": place}, {**texts, "group": place}
    return pair_sum(binary, params, images, texts, tile), images["weight"].sum()


def _matched(logits: OfTile, params: Any, images: Side, texts: Side) -> jax.Array:
    """The logits [B] of an image and its own text."""
    alone = lambda tree: jax.tree.map(lambda x: x[None], tree)  # noqa: E731
    return jax.vmap(lambda r, c: logits(params, alone(r), alone(c))[0, 0])(images, texts)


def _counts(r: Side, c: Side) -> jax.Array:
    return (r["weight"] > 0)[:, None] & (c["weight"] > 0)[None]


def _among_pairs(logits: OfTile) -> OfTile:
    """Logits in which pairs that do not count are hidden."""
    return lambda params, r, c: jnp.where(_counts(r, c), logits(params, r, c), HIDDEN)


def _alike(_: Any, r: Side, c: Side) -> jax.Array:
    """0 for positives, hidden for the rest."""
    return jnp.where(r["group"][:, None] == c["group"][None], 0.0, HIDDEN)


def _teacher_logits(logits: OfTile) -> OfTile:
    """The teacher's logits."""
    return _among_pairs(lambda params, r, c: logits(params, r["teacher"], c["teacher"]))

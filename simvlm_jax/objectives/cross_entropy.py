"""Cross-entropies over a vocabulary or a list of answers, as sums and counts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from simvlm_jax.core.sharding import constrain, constrain_gradient

CHUNK = 8192
"""The most pieces whose logits are held at once; a smaller vocabulary is never cut."""


def cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, weight_BT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sum of weighted losses, sum of weights, weighted correct guesses), all fp32 scalars.

    Padding is whatever has weight 0: its targets may be any id. Losses are in nats.
    """
    logits = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets_BT[..., None], axis=-1)[..., 0]
    return _sums(normaliser - target, logits.argmax(-1) == targets_BT, weight_BT)


def linear_cross_entropy(
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weight_BT: jax.Array,
    chunk: int = CHUNK,
    smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`cross_entropy` of the logits `vocabulary_logits(x_BTD, table_VD)`, without keeping them for the backward pass.

    A vocabulary of more than `chunk` pieces is gone through in parts of at most so many: the forward pass keeps a running
    log-sum-exp, the backward pass computes each part's logits again, so that of [B,T,V] one part lives at a time. That is a
    third more work in this layer (8 BTVD FLOPs, not 6). Up to `chunk` pieces it is the dense loss itself, bit for bit.

    Parts of the vocabulary, and not of the tokens, because the batch is what meshes split most: the table's gradient is then
    summed over devices once, a part at a time, where parts of tokens would sum all of it for each. Part i of n holds the
    pieces i, n + i, 2n + i, ..., so that every device of a table that is split over V works on every part. (What tensor
    parallelism pays is one sum of x's gradient a part.)

    Args:
      x_BTD: states, after the last norm; their dtype is that of the products, which are summed in fp32.
      table_VD: the softmax's weights, of any float dtype.
      targets_BT: int. weight_BT: 0 where there is nothing to predict.
      smoothing: share of the target that is spread over all pieces (Szegedy et al., arXiv 1512.00567, section 7).

    Returns:
      (sum of weighted losses in nats, sum of weights, weighted correct guesses), scalars in fp32 (or wider).
    """
    if len(table_VD) <= chunk:
        loss, count, right = cross_entropy(vocabulary_logits(x_BTD, table_VD), targets_BT, weight_BT)
    else:
        found: Any = _in_parts(x_BTD, table_VD, targets_BT, parts_of(len(table_VD), chunk))
        loss, count, right = _sums(-found[0], found[1], weight_BT)
    if smoothing:
        loss = loss + smoothing * _sums(_above_mean(x_BTD, table_VD, targets_BT), targets_BT, weight_BT)[0]
    return loss, count, right


def _above_mean(x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """How far the logit of each target is above the mean of all pieces' [B,T], which is a product with the mean of the table."""
    precise = _precise(x_BTD)
    table = table_VD.astype(x_BTD.dtype).astype(precise)
    return jnp.einsum("BTD,BTD->BT", x_BTD.astype(precise), table[targets_BT] - table.mean(0))


def token_log_likelihood(x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, chunk: int = CHUNK) -> jax.Array:
    """Log-probabilities [B,T] in nats, fp32 (or wider), of the targets; arguments and memory as `linear_cross_entropy`."""
    if len(table_VD) <= chunk:
        likely = jax.nn.log_softmax(vocabulary_logits(x_BTD, table_VD), axis=-1)
        return jnp.take_along_axis(likely, targets_BT[..., None], axis=-1)[..., 0]
    found: Any = _in_parts(x_BTD, table_VD, targets_BT, parts_of(len(table_VD), chunk))
    return found[0]


def vocabulary_logits(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """Logits [B,T,V] in fp32 (or wider) of states: products in their dtype, in the backward pass too, summed in fp32."""
    table = table_VD.astype(x_BTD.dtype)
    precise = _precise(x_BTD)
    product = _product if precise == x_BTD.dtype else _narrow_product
    return constrain(product(x_BTD, table), "BTV")


def soft_cross_entropy(
    logits_BV: jax.Array, scores_BV: jax.Array, weight_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sum of weighted losses, sum of weights, weighted score of the best guess), all fp32 scalars.

    Each answer is a sigmoid of its own against its score in [0, 1], as VQA classifiers are trained on answers that several
    people gave (Teney et al., arXiv 1708.02711, section 3.5). A row's loss is the sum over answers, in nats.
    """
    logits = logits_BV.astype(jnp.promote_types(logits_BV.dtype, jnp.float32))
    weight = weight_B.astype(logits.dtype)
    loss = (jnp.logaddexp(0.0, logits) - scores_BV * logits).sum(-1)
    best = jnp.take_along_axis(scores_BV, logits.argmax(-1)[:, None], axis=-1)[:, 0]
    return (loss * weight).sum(), weight.sum(), (best * weight).sum()


def parts_of(vocabulary: int, chunk: int) -> int:
    """In how many parts a vocabulary is gone through: as few as `chunk` allows, or a few more that divide it evenly."""
    fewest = -(-vocabulary // chunk)
    return next((n for n in range(fewest, 2 * fewest) if vocabulary % n == 0), fewest)


def _sums(losses: jax.Array, right: jax.Array, weight_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    weight = weight_BT.astype(losses.dtype)
    return jnp.where(weight > 0, losses * weight, 0).sum(), weight.sum(), (right * weight).sum()


def _precise(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _product(x: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.einsum("...D,VD->...V", x, table, preferred_element_type=_precise(x))


def _pulled_back(gradient: jax.Array, x: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of `_product`, in fp32 (or wider), from products in the dtype of `x`."""
    gradient = gradient.astype(x.dtype)
    to_x = jnp.einsum("...V,VD->...D", gradient, table, preferred_element_type=_precise(x))
    return to_x, jnp.einsum("...V,...D->VD", gradient, x, preferred_element_type=_precise(x))


@jax.custom_vjp
def _narrow_product(x: jax.Array, table: jax.Array) -> jax.Array:
    return _product(x, table)


_narrow_product.defvjp(
    lambda x, table: (_product(x, table), (x, table)),
    lambda kept, gradient: tuple(g.astype(k.dtype) for g, k in zip(_pulled_back(gradient, *kept), kept, strict=True)),
)


class _Parts:
    """A table [V,D] as n parts of `rows` pieces each, the last of them short by what is `missing`."""

    def __init__(self, table: jax.Array, n: int, dtype: Any):
        self.n, self.vocabulary, self.dtype = n, len(table), dtype
        self.rows = -(-self.vocabulary // n)
        self.missing = self.rows * n - self.vocabulary
        padded = jnp.pad(table, ((0, self.missing), (0, 0))) if self.missing else table
        self.table = constrain(padded.reshape(self.rows, n, table.shape[1]), ("V", None, None))

    def logits(self, x: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(logits [B,T,rows], table [rows,D]) of part i; the logits of rows that are not there are -inf."""
        table = jax.lax.dynamic_index_in_dim(self.table, i, axis=1, keepdims=False).astype(self.dtype)
        logits = constrain(_product(x, table), "BTV")
        if self.missing:
            logits = jnp.where(jnp.arange(self.rows) * self.n + i < self.vocabulary, logits, -jnp.inf)
        return logits, table


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _in_parts(x: jax.Array, table: jax.Array, targets: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """(log-likelihood of the targets [B,T], whether they are the likeliest [B,T])."""
    return _forward(x, table, targets, n)[0]


def _forward(x: jax.Array, table: jax.Array, targets: jax.Array, n: int) -> Any:
    parts, shape, precise = _Parts(table, n, x.dtype), targets.shape, _precise(x)

    def part(carry, i):
        top, total, target, best = carry
        logits, _ = parts.logits(x, i)
        here, row = logits.max(-1), logits.argmax(-1)
        new = jnp.maximum(top, here)
        total = total * jnp.exp(top - new) + jnp.exp(logits - new[..., None]).sum(-1)
        found = jnp.take_along_axis(logits, (targets // n)[..., None], axis=-1)[..., 0]
        target = jnp.where(targets % n == i, found, target)
        piece = row.astype(jnp.int32) * n + i
        better = (here > top) | ((here == top) & (piece < best))  # of equals the first, as argmax does
        return (new, total, target, jnp.where(better, piece, best)), None

    start = (jnp.full(shape, -jnp.inf, precise), *2 * (jnp.zeros(shape, precise),), jnp.full(shape, -1, jnp.int32))
    (top, total, target, best), _ = jax.lax.scan(part, start, jnp.arange(n, dtype=jnp.int32))
    normaliser = top + jnp.log(total)
    return (target - normaliser, best == targets), (x, table, targets, normaliser)


def _backward(
    n: int, kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, Any]
) -> tuple[jax.Array, jax.Array, None]:
    x, table, targets, normaliser = kept
    parts, gradient = _Parts(table, n, x.dtype), gradients[0][..., None]

    def part(carry, i):
        to_x, to_table = carry
        logits, piece = parts.logits(x, i)
        is_target = jnp.arange(parts.rows) * n + i == targets[..., None]
        slope = gradient * (is_target - jnp.exp(logits - normaliser[..., None]))
        slope = jnp.where(gradient != 0, slope, 0)  # what nobody asks of is not to spread its infinities
        more, to_piece = _pulled_back(slope, x, piece)
        to_piece = constrain_gradient(to_piece, "VD").astype(table.dtype)
        return (to_x + more, jax.lax.dynamic_update_index_in_dim(to_table, to_piece, i, axis=1)), None

    start = (jnp.zeros(x.shape, _precise(x)), jnp.zeros(parts.table.shape, table.dtype))
    (to_x, to_table), _ = jax.lax.scan(part, start, jnp.arange(n, dtype=jnp.int32))
    return to_x.astype(x.dtype), to_table.reshape(-1, table.shape[1])[: len(table)], None


_in_parts.defvjp(_forward, _backward)

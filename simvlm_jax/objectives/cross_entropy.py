"""Cross-entropies over a vocabulary or a list of answers, as sums and counts."""

import jax
import jax.numpy as jnp


def cross_entropy(logits_BTV, targets_BT, weight_BT):
    """(sum of weighted losses, sum of weights, weighted correct guesses), all fp32 scalars.

    Padding is whatever has weight 0: its targets may be any id. Losses are in nats.
    """
    logits = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets_BT[..., None], axis=-1)[..., 0]
    weight = weight_BT.astype(logits.dtype)
    loss = jnp.where(weight > 0, (normaliser - target) * weight, 0)
    correct = (logits.argmax(-1) == targets_BT) * weight
    return loss.sum(), weight.sum(), correct.sum()


def soft_cross_entropy(logits_BV, scores_BV, weight_B):
    """(sum of weighted losses, sum of weights, weighted score of the best guess), all fp32 scalars.

    Each answer is a sigmoid of its own against its score in [0, 1], as VQA classifiers are trained on answers that several
    people gave (Teney et al., arXiv 1708.02711, section 3.5). A row's loss is the sum over answers, in nats.
    """
    logits = logits_BV.astype(jnp.promote_types(logits_BV.dtype, jnp.float32))
    weight = weight_B.astype(logits.dtype)
    loss = (jnp.logaddexp(0.0, logits) - scores_BV * logits).sum(-1)
    best = jnp.take_along_axis(scores_BV, logits.argmax(-1)[:, None], axis=-1)[:, 0]
    return (loss * weight).sum(), weight.sum(), (best * weight).sum()

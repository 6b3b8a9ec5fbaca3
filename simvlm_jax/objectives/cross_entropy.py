"""Cross-entropy over a vocabulary, as sums and counts."""

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

"""Classification by a head: loss and accuracy of rows that have a label, or soft scores of several people's answers."""

from typing import Any

import jax
import jax.numpy as jnp

from simvlm_jax.core.types import Term
from simvlm_jax.objectives.cross_entropy import cross_entropy, soft_cross_entropy


def class_terms(logits_BA: jax.Array, rows: dict[str, Any]) -> tuple[dict[str, Term], dict[str, Term]]:
    """(terms, measurements) of logits [B,A]: a softmax over `label` [B], or a sigmoid per answer against `scores` [B,A].

    Label -1 is an answer outside the list and trains nothing.
    """
    if "scores" in rows:
        loss, count, right = soft_cross_entropy(logits_BA, rows["scores"], rows["weight"])
    else:
        label = jnp.asarray(rows["label"])
        weight = jnp.asarray(rows["weight"]) * (label >= 0)
        loss, count, right = cross_entropy(logits_BA[:, None], jnp.maximum(label, 0)[:, None], weight[:, None])
    return {"classify": Term(loss, count)}, {"classify_accuracy": Term(right, count)}

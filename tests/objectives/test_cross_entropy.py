"""Cross-entropy against optax, and what padding may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simvlm_jax.objectives.cross_entropy import cross_entropy


def test_it_is_that_of_optax_over_what_has_weight():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(4, 6, 9)).astype(np.float32), rng.integers(0, 9, (4, 6))
    weight = (rng.random((4, 6)) < 0.5).astype(np.float32)
    loss, count, correct = cross_entropy(logits, targets, weight)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(loss, (each * weight).sum(), rtol=1e-6)
    assert count == weight.sum() and correct == ((logits.argmax(-1) == targets) * weight).sum()


def test_padding_reaches_neither_loss_nor_gradient():
    logits = jnp.zeros((1, 3, 5)).at[0, 1].set(jnp.inf).at[0, 2].set(jnp.nan)
    weight = jnp.asarray([[1.0, 0.0, 0.0]])
    loss, count, _ = cross_entropy(logits, jnp.asarray([[2, 4, 0]]), weight)
    assert loss == np.log(5).astype(np.float32) and count == 1
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.asarray([[2, 4, 0]]), weight)[0])(jnp.zeros((1, 3, 5)))
    assert not gradient[0, 1:].any() and gradient[0, 0].any()


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 1, 50_000), jnp.bfloat16)  # exp(0) added up in bf16 stops at 256
    loss, _, _ = cross_entropy(logits, jnp.zeros((1, 1), int), jnp.ones((1, 1)))
    np.testing.assert_allclose(loss, np.log(50_000), rtol=1e-6)

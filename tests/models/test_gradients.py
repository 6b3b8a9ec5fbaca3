"""Gradients in bfloat16: every leaf is near that of float32 (tests/laws has that no sum is written in it)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.trees import leaf_names
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.models.siglip import SigLIP
from simvlm_jax.models.simvlm import SimVLM
from simvlm_jax.nn.linear import add
from simvlm_jax.nn.sizes import Compute
from tests.laws.steps import started

V = Vocabulary(50, 12)
MODELS = {
    "simvlm": lambda c: SimVLM(V, 32, compute=c),
    "siglip": lambda c: SigLIP(V, 32, compute=c),
}


def loss_of(make, dtype, batch):
    model = make(Compute(dtype, scan=False))
    params, extra = started(model, {"pairs": batch}, "float32")

    def loss(params):
        features, own, _ = model.per_example(
            params, extra, {"pairs": batch}, rngs=jax.random.key(1), step=0, train=True
        )
        between, _ = model.across_batch(params, extra, features, step=0, train=True)
        return sum(t.weight * t.sum / jnp.maximum(t.count, 1) for t in {**own, **between}.values())

    return loss, params


@pytest.mark.parametrize("name", MODELS)
def test_every_leaf_is_near_that_of_float32(name, text_batch):
    """Rounding of activations remains: a percent as a rule, more where convolutions of few channels add up pixels."""
    batch = text_batch(64)
    loss, params = loss_of(MODELS[name], "float32", batch)
    wide, narrow = (jax.jit(jax.grad(f))(params) for f in (loss, loss_of(MODELS[name], "bfloat16", batch)[0]))
    whole = float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(wide))))
    for leaf, a, b in zip(leaf_names(wide), jax.tree.leaves(wide), jax.tree.leaves(narrow), strict=True):
        allowed = 0.12 if "root" in leaf else 0.06
        assert float(jnp.linalg.norm(a - b)) <= allowed * max(float(jnp.linalg.norm(a)), 1e-4 * whole), leaf


def test_a_bias_of_many_rows_gets_its_gradient_in_its_own_dtype():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20_000, 8)), jnp.bfloat16)
    weight = jnp.asarray(rng.uniform(0.5, 1.5, (20_000, 8)), jnp.bfloat16)
    bias = jnp.zeros(8, jnp.float32)
    exact = np.asarray(weight, np.float64).sum(0)
    made = jax.grad(lambda b: (add(x, b) * weight).astype(jnp.float32).sum())(bias)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, exact, rtol=1e-5)
    table = jax.grad(lambda p: add(jnp.zeros((5, 3, 2)), p).sum())(jnp.zeros((3, 2)))
    np.testing.assert_array_equal(table, 5.0)

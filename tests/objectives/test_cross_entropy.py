"""Cross-entropy against optax, in parts against the whole, and what padding may not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simvlm_jax.core.sharding import in_use, with_sharding
from simvlm_jax.objectives.cross_entropy import cross_entropy, linear_cross_entropy, token_log_likelihood
from simvlm_jax.parallel.mesh import MeshShardingRules, make_mesh
from simvlm_jax.parallel.program import Program


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


def problem(vocabulary: int, dtype=np.float64, rows: int = 4, width: int = 8):
    """States [B,T,D], a table [V,D], targets and weights [B,T], a fifth of which is padding."""
    rng = np.random.default_rng(vocabulary)
    x, table = rng.normal(size=(rows, 6, width)), rng.normal(size=(vocabulary, width))
    weight = rng.random((rows, 6)) * (rng.random((rows, 6)) < 0.8)
    return (
        *(jnp.asarray(a, dtype) for a in (x, table)),
        jnp.asarray(rng.integers(0, vocabulary, (rows, 6))),
        jnp.asarray(weight, dtype),
    )


def measured(loss, x, table, targets, weight):
    """What a loss gives, and its gradients by states, table and weights."""
    value, count, right = loss(x, table, targets, weight)
    gradients = jax.grad(lambda *a: loss(a[0], a[1], targets, a[2])[0] * 3.0, (0, 1, 2))(x, table, weight)
    return value, count, right, *gradients


def dense(x, table, targets, weight):
    return cross_entropy(jnp.einsum("BTD,VD->BTV", x, table), targets, weight)


@pytest.mark.parametrize(("vocabulary", "chunk"), [(23, 8), (16, 15)])
def test_in_parts_it_is_the_dense_loss(vocabulary, chunk):
    """Also where the parts do not divide the vocabulary, and inside a scan that is computed again."""
    with jax.enable_x64(True):
        x, table, targets, weight = problem(vocabulary)
        parts = functools.partial(linear_cross_entropy, chunk=chunk)

        def twice(x, table, targets, weight):
            """The same within jit, scan and remat: two halves of the rows, summed."""
            halves = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), (x, targets, weight))
            body = jax.checkpoint(lambda c, h: (jax.tree.map(jnp.add, c, parts(h[0], table, *h[1:])), None))
            return jax.lax.scan(body, (jnp.zeros(()),) * 3, halves)[0]

        expected = measured(dense, x, table, targets, weight)
        for loss in (parts, jax.jit(twice)):
            for a, b in zip(measured(loss, x, table, targets, weight), expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        likely = jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", x, table))
        likely = jnp.take_along_axis(likely, targets[..., None], -1)[..., 0]
        np.testing.assert_allclose(token_log_likelihood(x, table, targets, chunk), likely, rtol=1e-12)


def test_of_equal_logits_the_first_is_the_guess():
    x, table = jnp.ones((1, 24, 1)), jnp.zeros((24, 1)).at[5].set(1.0).at[10].set(1.0)
    right = [linear_cross_entropy(x, table, jnp.arange(24)[None], jnp.ones((1, 24)), chunk=c)[2] for c in (24, 8, 5)]
    first = linear_cross_entropy(x, table, jnp.full((1, 24), 5), jnp.ones((1, 24)), chunk=8)[2]
    assert right == [1.0, 1.0, 1.0] and first == 24


def test_a_small_vocabulary_is_not_cut():
    """Bit for bit the dense loss and its gradients."""
    x, table, targets, weight = problem(300, np.float32)
    for a, b in zip(
        measured(linear_cross_entropy, x, table, targets, weight),
        measured(dense, x, table, targets, weight),
        strict=True,
    ):
        assert np.array_equal(a, b)


def test_padding_spreads_nothing_in_parts_either():
    x, table, targets, weight = problem(24, np.float32)
    gradient = jax.grad(lambda x: linear_cross_entropy(x * 1e30, table, targets, weight * 0, chunk=8)[0])(x)
    assert not np.any(gradient)


@pytest.mark.parametrize("chunk", [64, 24])
def test_products_are_bfloat16_both_ways_where_states_are(chunk):
    """Operands of every product, forward and backward, are bfloat16, every result float32; gradients are near float32's."""
    x, table, targets, weight = problem(48, np.float32)
    narrow = x.astype(jnp.bfloat16)

    def loss(x, table):
        return linear_cross_entropy(x, table, targets, weight, chunk=chunk)[0]

    found = equations(jax.make_jaxpr(jax.grad(loss, (0, 1)))(narrow, table).jaxpr)
    products = [e for e in found if e.primitive.name == "dot_general"]
    assert len(products) == (3 if chunk == 64 else 4)
    for e in products:
        assert [v.aval.dtype for v in (*e.invars, *e.outvars)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for a, b in zip(jax.grad(loss, (0, 1))(narrow, table), jax.grad(loss, (0, 1))(x, table), strict=True):
        # the states themselves are rounded to 8 bits, and so are logits of about 3
        assert np.linalg.norm(a.astype(np.float32) - b) < 0.02 * np.linalg.norm(b)


def equations(jaxpr):
    for e in jaxpr.eqns:
        yield e
        for value in e.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 8)])
def test_it_is_the_same_on_any_mesh(sizes):
    """And no part of the table, nor its logits, is ever gathered from the devices that `tensor` splits it over."""
    x, table, targets, weight = problem(64, np.float32, rows=8, width=64)
    mesh = make_mesh(None, *sizes)
    rules = MeshShardingRules(mesh)

    def loss(x, table, targets, weight):
        found = linear_cross_entropy(x, in_use(table, "VD"), targets, weight, chunk=16)
        return found[0], found[1:]

    one = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, table, targets, weight)
    where = (
        rules.activation("BTD", x.shape),
        rules.parameter("VD", table.shape),
        *[rules.activation("BT", (8, 6))] * 2,
    )
    placed = [jax.device_put(a, s) for a, s in zip((x, table, targets, weight), where, strict=True)]
    step = jax.jit(with_sharding(rules, jax.value_and_grad(loss, (0, 1), has_aux=True))).lower(*placed).compile()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), step(*placed), one)
    gathered = [c for c in Program(step.as_text(), 8).collectives() if c.kind == "all-gather" and c.times > 1]
    guesses = 4 * 8 * 6 * sizes[2] / (sizes[0] * sizes[1])  # each device's best of a part, to find the best of all
    assert max((c.bytes for c in gathered), default=0) <= guesses, gathered

"""Contrastive losses against the dense textbook ones, on one device and on rings of them. In float64 unless said."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.sharding import use_sharding
from simvlm_jax.objectives.contrastive import cosine_logits, info_nce, nce, sigmoid_pairs, softmax_pairs
from simvlm_jax.objectives.pairs import log_normalisers, pair_sum
from simvlm_jax.parallel.mesh import make_mesh, sharding_rules

B, E = 48, 7


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def unit(*shape, seed=0, dtype=np.float64):
    x = np.random.default_rng((seed, *shape)).normal(size=shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype)


def sides(rows=B, dtype=np.float64, padding=5, **more):
    """Images and texts with a few rows of weight 0 in between."""
    weight = np.ones(rows, dtype)
    weight[3 : 3 + padding] = 0
    groups = np.random.default_rng(0).integers(0, rows // 3, rows)
    return [
        {
            "features": unit(rows, E, seed=seed, dtype=dtype),
            "weight": jnp.asarray(weight),
            **{k: jnp.asarray(groups) for k in more if k == "group"},
            **{k: {"features": unit(rows, E, seed=seed + 9, dtype=dtype)} for k in more if k == "teacher"},
        }
        for seed in (1, 2)
    ]


def params(dtype=np.float64):
    return {"scale": jnp.asarray(11.0, dtype), "bias": jnp.asarray(-2.5, dtype)}


def dense(images, texts):
    """Logits and weights of the rows that count."""
    real = np.flatnonzero(np.asarray(images["weight"]))
    cut = [jax.tree.map(lambda x: x[real], side) for side in (images, texts)]
    return real, *cut


def dense_softmax(p, images, texts, smoothing=0.0, teacher=None):
    real, images, texts = dense(images, texts)
    logits = cosine_logits(p, images, texts)
    if "group" in images:
        targets = (images["group"][:, None] == texts["group"][None]).astype(logits.dtype)
    else:
        targets = jnp.eye(len(real), dtype=logits.dtype)
    if smoothing or teacher is not None:  # soft targets are not symmetric: a direction at a time
        total = 0.0
        for x, t in ((logits, targets), (logits.T, targets.T)):
            target = (1 - smoothing) * t / t.sum(1, keepdims=True) + smoothing / len(real)
            if teacher is not None:
                known = cosine_logits(teacher, images["teacher"], texts["teacher"])
                known = known if x is logits else known.T
                target = 0.7 * target + 0.3 * jax.nn.softmax(known, axis=1)
            total += (jax.nn.logsumexp(x, axis=1) - (target * x).sum(1)).sum()
        return total
    return info_nce(logits, targets)[0]


def dense_sigmoid(p, images, texts):
    _, images, texts = dense(images, texts)
    logits = cosine_logits(p, images, texts)
    same = images["group"][:, None] == texts["group"][None] if "group" in images else jnp.eye(len(logits), dtype=bool)
    return nce(jnp.where(same, logits, jnp.inf), jnp.where(same, -jnp.inf, logits))


def mixture_logits(p, rows, columns):
    """Each text mixes the K tokens of an image for itself (as Llip does)."""
    asked = jax.nn.softmax(jnp.einsum("rKE,cE->rcK", rows["features"], columns["features"] @ p["query"]), axis=-1)
    mixed = jnp.einsum("rcK,rKE->rcE", asked, rows["features"])
    mixed = mixed / jnp.sqrt(jnp.square(mixed).sum(-1, keepdims=True) + 1e-12)
    return p["scale"] * jnp.einsum("rcE,cE->rc", mixed, columns["features"]) + p["bias"]


def with_gradients(loss, devices, *args):
    """(value, gradients), features split over a mesh of so many devices, of two axes where they allow."""
    mesh = make_mesh(jax.devices()[:devices], fsdp=2 if devices > 2 else 1)
    with use_sharding(sharding_rules(mesh)):
        return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(args)))))(*args)


def check(value, reference, tolerance):
    for ours, theirs in zip(jax.tree.leaves(value), jax.tree.leaves(reference), strict=True):
        largest = max(float(jnp.abs(theirs).max()), 1e-12)
        assert float(jnp.abs(ours - theirs).max()) <= tolerance * largest


KINDS = {
    "softmax": ({}, {}),
    "several positives": ({"group": 1}, {}),
    "smoothed": ({}, {"smoothing": 0.2}),
    "smoothed positives": ({"group": 1}, {"smoothing": 0.2}),
    "distilled": ({"teacher": 1}, {"teacher": {"scale": 5.0}}),
}


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_softmax_is_the_dense_one(kind, devices):
    more, how = KINDS[kind]
    images, texts = sides(**more)

    def loss(function, p, x, y):
        return function(p, {**images, "features": x}, {**texts, "features": y})

    ours = functools.partial(
        loss, lambda *a: softmax_pairs(*a, **how, **({"teacher_share": 0.3} if "teacher" in how else {}), tile=10).loss
    )
    theirs = functools.partial(loss, functools.partial(dense_softmax, **how))
    inputs = ({"scale": params()["scale"]}, images["features"], texts["features"])
    check(with_gradients(ours, devices, *inputs), with_gradients(theirs, 1, *inputs), 1e-10)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("more", [{}, {"group": 1}], ids=["pairs", "several positives"])
def test_sigmoid_is_the_dense_one(more, devices):
    images, texts = sides(**more)

    def loss(function, p, x, y):
        return function(p, {**images, "features": x}, {**texts, "features": y})

    inputs = (params(), images["features"], texts["features"])
    ours = functools.partial(loss, lambda *a: sigmoid_pairs(*a, tile=7)[0])
    check(
        with_gradients(ours, devices, *inputs),
        with_gradients(functools.partial(loss, dense_sigmoid), 1, *inputs),
        1e-10,
    )


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_a_mixture_a_pair_is_the_dense_one(devices):
    """Logits that are no product of two vectors, with parameters of their own."""
    images, texts = sides(padding=0)
    images["features"] = unit(B, 3, E)
    p = {**params(), "query": unit(E, E, seed=5)}

    def loss(tile, p, x, y):
        sets = {**images, "features": x}, {**texts, "features": y}
        own = lambda logits: (jax.nn.softplus(-jnp.where(jnp.eye(B, dtype=bool), 1, -1) * logits)).sum()  # noqa: E731
        return sigmoid_pairs(p, *sets, logits=mixture_logits, tile=tile)[0] if tile else own(mixture_logits(p, *sets))

    inputs = (p, images["features"], texts["features"])
    check(
        with_gradients(functools.partial(loss, 5), devices, *inputs),
        with_gradients(functools.partial(loss, 0), 1, *inputs),
        1e-10,
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_in_float32(devices):
    images, texts = sides(64, np.float32, padding=0)
    inputs = ({"scale": params(np.float32)["scale"]}, images["features"], texts["features"])

    def ours(p, x, y):
        return softmax_pairs(p, {**images, "features": x}, {**texts, "features": y}, tile=16).loss / 128

    def theirs(p, x, y):
        logits = p["scale"] * jnp.einsum("rE,cE->rc", x, y, precision="highest")
        return info_nce(logits, jnp.eye(64, dtype=jnp.float32))[0] / 128

    with jax.enable_x64(False):
        found, reference = with_gradients(ours, devices, *inputs), with_gradients(theirs, 1, *inputs)
    assert found[0].dtype == jnp.float32
    check(found, reference, 2e-6)


def test_in_float32_with_features_that_agree():
    """At the largest scale a loss is a small difference of large numbers, which must not be summed first."""
    rows = 4096
    x = np.asarray(unit(rows, 64, seed=1))
    y = x + 1.2 * np.asarray(unit(rows, 64, seed=2))
    x, y = (np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True), np.float32) for v in (x, y))
    logits = 100 * x.astype(np.float64) @ y.astype(np.float64).T
    expected = -sum(np.diag(v - np.logaddexp.reduce(v, 1, keepdims=True)).sum() for v in (logits, logits.T))
    assert 1e-4 < expected / rows < 1
    weight = jnp.ones(rows, jnp.float32)
    with jax.enable_x64(False):
        sets = [{"features": jnp.asarray(v), "weight": weight} for v in (x, y)]
        for how in ({}, {"smoothing": 1e-9}):  # the two ways a loss is summed
            found = softmax_pairs({"scale": jnp.float32(100)}, *sets, **how).loss
            # a log-sum-exp of logits near 100 is itself rounded to 8e-6, against losses a pair of 1e-2 and less
            assert float(found) == pytest.approx(expected, rel=5e-5)


def test_right_answers_are_counted():
    images, texts = sides(padding=4)
    texts["features"] = images["features"].at[0].set(images["features"][1])
    found = softmax_pairs({"scale": jnp.asarray(10.0)}, images, texts, tile=9)
    assert (float(found.count), int(found.image_right), int(found.text_right)) == (B - 4, B - 5, B - 5)


def test_the_sign_of_the_sigmoid_bias():
    """papers.md: B = 512 random unit vectors at the start give about 10 + (B-1) e^-10; the other sign gives 10 B."""
    images, texts = ({"features": unit(512, 256, seed=s), "weight": jnp.ones(512)} for s in (1, 2))
    start = {"scale": jnp.asarray(10.0), "bias": jnp.asarray(-10.0)}
    loss, count = sigmoid_pairs(start, images, texts)
    assert float(loss / count) == pytest.approx(10.01, abs=0.06)
    other, _ = sigmoid_pairs({**start, "bias": jnp.asarray(10.0)}, images, texts)
    assert float(other / count) == pytest.approx(5110, rel=1e-2)


def test_nce_is_logistic_regression_and_info_nce_a_softmax():
    positive, negative = jnp.asarray([1.0, -0.5]), jnp.asarray([[0.3, 2.0], [-1.0, 0.0]])
    odds = lambda s: 1 / (1 + np.exp(-(np.asarray(s) - 0.7)))  # noqa: E731
    by_hand = -np.log(odds(positive)).sum() - np.log(1 - odds(negative)).sum()
    assert float(nce(positive, negative, 0.7)) == pytest.approx(by_hand, abs=1e-12)
    logits = np.asarray([[2.0, 0.0], [1.0, 1.0]])
    by_hand = -np.log([np.exp(2) / (np.exp(2) + 1), 0.5, np.exp(2) / (np.exp(2) + np.e), np.e / (np.e + 1)]).sum()
    assert float(info_nce(jnp.asarray(logits), jnp.eye(2))[0]) == pytest.approx(by_hand, abs=1e-12)


def test_rows_of_weight_zero_have_no_loss_and_are_negatives_still():
    logits, weight = jnp.asarray([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.5, 3.0, 0.0]]), jnp.asarray([1.0, 1.0, 0.0])
    loss, count = info_nce(logits, jnp.diag(weight), weight)
    rows, columns, both = np.logaddexp.reduce(logits, 1), np.logaddexp.reduce(logits, 0), np.diag(logits)
    by_hand = (rows + columns - 2 * both)[:2].sum()
    assert (float(loss), float(count)) == (pytest.approx(by_hand, abs=1e-12), 2)
    assert jnp.isnan(info_nce(logits, jnp.diag(weight))[0])  # a row that counts and has no target is no row of padding


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_single_pair_the_loss_is_zero_and_its_gradient_finite(kind):
    more, how = KINDS[kind]
    images, texts = sides(8, padding=5, **more)
    images["weight"] = texts["weight"] = jnp.zeros(8)

    def loss(x):
        found = softmax_pairs({"scale": jnp.asarray(9.0)}, {**images, "features": x}, texts, **how)
        return found.loss + sigmoid_pairs(params(), {**images, "features": x}, texts)[0]

    value, gradient = jax.value_and_grad(loss)(images["features"])
    assert float(value) == 0 and not np.asarray(gradient).any()


def test_memory_does_not_grow_with_the_batch():
    """Beyond the features and their gradients; the dense loss needs sixteen times as much for four times the batch."""

    def temporaries(function, rows):
        x = jax.ShapeDtypeStruct((rows, 64), jnp.float32)
        return jax.jit(jax.grad(function, (0, 1))).lower(x, x).compile().memory_analysis().temp_size_in_bytes

    def ours(x, y):
        weight = jnp.ones(len(x), x.dtype)
        return softmax_pairs(
            {"scale": jnp.asarray(9.0, x.dtype)}, *({"features": f, "weight": weight} for f in (x, y)), tile=256
        ).loss

    def theirs(x, y):
        return info_nce(9.0 * x @ y.T, jnp.eye(len(x), dtype=x.dtype))[0]

    with jax.enable_x64(False):
        small, large = (temporaries(ours, n) for n in (2048, 8192))
        dense_small, dense_large = (temporaries(theirs, n) for n in (2048, 8192))
    features = 2 * 64 * 4 * (8192 - 2048)
    assert large - small < 6 * features and dense_large - dense_small > 100 * features


def test_sums_of_a_tile_are_all_there_is():
    """The primitives alone: every pair once, whatever the tiles."""
    rows, columns = ({"x": jnp.arange(1.0, 12), "weight": jnp.ones(11)} for _ in range(2))
    total = pair_sum(lambda p, r, c: p * (r["x"][:, None] * c["x"][None]).sum(), jnp.asarray(2.0), rows, columns, 4)
    assert float(total) == 2 * 66**2

    def logits(p, r, c):
        return jnp.where(r["weight"][:, None] * c["weight"][None] > 0, r["x"][:, None] - c["x"][None], -1e30)

    found = log_normalisers(logits, {}, rows, columns, 4)
    every = rows["x"][:, None] - columns["x"][None]
    np.testing.assert_allclose(found.rows, jax.nn.logsumexp(every, 1), rtol=1e-12)
    np.testing.assert_allclose(found.column_max, every.max(0))

"""Laws of the step: accumulated = whole, frozen stays, the average follows, schedules hit their figures. In fp64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simvlm_jax.core.trees import match, merge, partition
from simvlm_jax.core.types import BaseModel, Term, TrainState
from simvlm_jax.train.optimizer import Optimizer, averaged
from simvlm_jax.train.step import make_train_step, split


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@dataclasses.dataclass(frozen=True)
class Toy(BaseModel):
    """A model with both halves: a masked regression, and a softmax over all pairs of the global batch."""

    noise: float = 0.1

    def init(self, rng, batch):
        k1, k2 = jax.random.split(rng)
        return {"a": {"kernel": jax.random.normal(k1, (5, 3))}, "b": {"kernel": jax.random.normal(k2, (5, 3))}}, {}

    def per_example(self, params, extra, batch, *, rngs, step, train):
        rows = batch["pairs"]
        x = rows["x"]
        f = {"a": x @ params["a"]["kernel"], "b": x @ params["b"]["kernel"]}
        error = ((f["a"] - rows["y"]) ** 2).sum(-1) * rows["weight"]
        return f, {"regression": Term(error.sum(), rows["weight"].sum(), 0.7)}, {"size": Term(error.sum(), 1.0)}

    def across_batch(self, params, extra, features, *, step, train):
        logits = features["a"] @ features["b"].T * params["a"]["kernel"][0, 0]
        loss = -jax.nn.log_softmax(logits).diagonal()
        return {"pairs": Term(loss.sum(), jnp.asarray(loss.shape[0], float), 2.0)}, {}


def toy_batch(rows=24):
    rng = np.random.default_rng(0)
    made = {
        "x": jnp.asarray(rng.normal(size=(rows, 5))),
        "y": jnp.asarray(rng.normal(size=(rows, 3))),
        "weight": jnp.asarray((rng.random(rows) < 0.6).astype(np.float64)),  # uneven counts a micro-batch
    }
    return {"pairs": made}


def one_step(accumulate, flags=None, optimizer=None):
    model, batch = Toy(), toy_batch()
    params, extra = model.init(jax.random.key(0), batch)
    flags = flags or jax.tree.map(lambda _: True, params)
    tx = optimizer or optax.sgd(1.0)
    state = TrainState(jnp.zeros((), int), params, tx.init(partition(params, flags)[0]), extra, jax.random.key(1))
    new, measured = jax.jit(make_train_step(model, tx, flags, accumulate))(state, batch)
    return params, new, measured


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_is_the_whole_batch(parts):
    _, whole, measured = one_step(1)
    _, cut, cut_measured = one_step(parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), whole.params, cut.params)
    np.testing.assert_allclose(measured["loss"], cut_measured["loss"], rtol=1e-12)
    np.testing.assert_allclose(measured["regression"].sum, cut_measured["regression"].sum, rtol=1e-12)


def test_a_mean_of_means_would_fail_this_law():
    """The counts of the micro-batches differ, so the law above has teeth."""
    counts = split(toy_batch(), 4)["pairs"]["weight"].sum(1)
    assert len(set(np.asarray(counts).tolist())) > 1


def test_rows_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="24 rows do not divide into 5"):
        one_step(5)


@pytest.mark.parametrize("parts", [1, 2])
def test_frozen_parameters_stay_and_have_no_optimizer_state(parts):
    old, new, _ = one_step(parts, {"a": {"kernel": False}, "b": {"kernel": True}}, optax.adam(0.1))
    assert (old["a"]["kernel"] == new.params["a"]["kernel"]).all()
    assert (old["b"]["kernel"] != new.params["b"]["kernel"]).any()
    moments: Any = new.opt[0].mu
    assert list(moments) == ["b"]


def test_partition_and_merge_are_inverse():
    tree = {"a": {"x": 1, "y": 2}, "b": {"z": {"w": 3}}, "c": 4}
    flags = {"a": {"x": True, "y": False}, "b": {"z": {"w": True}}, "c": False}
    kept, rest = partition(tree, flags)
    assert kept == {"a": {"x": 1}, "b": {"z": {"w": 3}}} and rest == {"a": {"y": 2}, "c": 4}
    assert merge(kept, rest) == tree


@pytest.mark.parametrize("schedule", ["linear", "cosine", "rsqrt", "constant"])
def test_schedules(schedule):
    rate = Optimizer(learning_rate=0.5, schedule=schedule, warmup=0.1).schedule_for(100)
    assert float(rate(9)) == pytest.approx(0.5, rel=0.11) and float(rate(10)) == pytest.approx(0.5)
    assert float(rate(0)) == pytest.approx(0.05)
    end = {"linear": 0.0, "cosine": 0.0, "constant": 0.5, "rsqrt": 0.5 * (10 / 100) ** 0.5}[schedule]
    assert float(rate(100)) == pytest.approx(end, abs=1e-6)
    with pytest.raises(ValueError, match="schedule 'square'"):
        Optimizer(schedule="square").schedule_for(10)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_optimizers_decay_only_what_they_should(name):
    params = {"mlp": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}, "norm": {"scale": jnp.ones(4)}}
    tx = Optimizer(name=name, learning_rate=0.1, warmup=0.0, weight_decay=0.5, schedule="constant").make(params, 10, {})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["mlp"]["kernel"], -0.05)
    assert not updates["mlp"]["bias"].any() and not updates["norm"]["scale"].any()


def test_adamw_is_optax_adamw():
    params = {"mlp": {"kernel": jnp.ones((4, 4)), "out": jnp.ones((4, 2))}}
    ours = Optimizer(learning_rate=0.1, warmup=0.0, weight_decay=0.5, schedule="constant", clip=None).make(
        params, 10, {}
    )
    theirs = optax.adamw(0.1, b1=0.9, b2=0.999, weight_decay=0.5)
    grads = jax.tree.map(lambda p: p * 0.3, params)
    a, b = (tx.update(grads, tx.init(params), params)[0] for tx in (ours, theirs))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), a, b)


def test_epsilon_and_the_decay_of_second_moments():
    kwargs = dict(learning_rate=0.1, warmup=0.0, weight_decay=0.0, schedule="constant", clip=None)
    params = {"mlp": {"kernel": jnp.full((4, 4), 1e-4)}}
    ours, theirs = (
        Optimizer(epsilon=1e-3, **kwargs).make(params, 10, {}),
        optax.adamw(0.1, b2=0.999, eps=1e-3, weight_decay=0.0),
    )
    a, b = (tx.update(params, tx.init(params), params)[0]["mlp"]["kernel"] for tx in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    decay = Optimizer(name="adafactor", b2=0.95)._second_moment_decay
    # 1 - t^-0.8 of the step t that is made, and b2 where that is smaller
    assert [float(decay(t - 1)) for t in (1, 10, 1000)] == pytest.approx([0.0, 1 - 10**-0.8, 0.95])


def test_muon_is_orthogonal_on_matrices_and_adam_elsewhere():
    """Singular values of its updates lie near one value, also of scanned layers; biases get what Adam gives them."""
    rng = np.random.default_rng(0)
    shapes = {
        "attention": {"query": (16, 2, 8), "out": (2, 8, 16), "query_bias": (2, 8)},
        "layers": {"mlp": {"up": (3, 16, 24), "up_bias": (3, 24)}},
        "stem": {"conv_0": {"kernel": (3, 3, 4, 8), "bias": (8,)}},
        "embedding": (20, 16),
    }
    grads = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    params = jax.tree.map(jnp.zeros_like, grads)
    kwargs = dict(learning_rate=0.1, warmup=0.0, schedule="constant", clip=None, b1=0.9, b2=0.98)
    letters = {
        "attention/query": "DHK",
        "attention/out": "HKD",
        "attention/query_bias": "HK",
        "layers/mlp/up": "LDF",
        "layers/mlp/up_bias": "LF",
        "stem/conv_0/kernel": "YXIC",
        "stem/conv_0/bias": "C",
        "embedding": "VD",
    }
    tx, nadam = Optimizer(name="muon", **kwargs).make(params, 10, letters), optax.nadam(0.1, b1=0.9, b2=0.98)
    muon, theirs = (t.update(grads, t.init(params), params)[0] for t in (tx, nadam))
    matrices = {
        "query": (muon["attention"]["query"].reshape(16, 16), 16),
        "out": (muon["attention"]["out"].reshape(16, 16), 16),
        "up": (muon["layers"]["mlp"]["up"][1], 24),
        "conv": (muon["stem"]["conv_0"]["kernel"].reshape(36, 8), 36),
    }
    for name, (matrix, longest) in matrices.items():
        values = np.linalg.svd(matrix, compute_uv=False) / (0.1 * 0.2 * longest**0.5)
        # five Newton-Schulz steps leave singular values between about 0.7 and 1.2 (Jordan et al. 2024)
        assert values.min() > 0.6 and values.max() < 1.25, (name, values)
    for path in (("embedding",), ("attention", "query_bias"), ("layers", "mlp", "up_bias"), ("stem", "conv_0", "bias")):
        a, b = muon, theirs
        for key in path:
            a, b = a[key], b[key]
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_multipliers_scale_the_rate():
    params = {"mlp": {"kernel": jnp.ones((4, 4))}, "stem": {"kernel": jnp.ones((4, 4))}}
    kwargs = dict(learning_rate=0.1, warmup=0.0, schedule="constant", clip=None)
    tx = Optimizer(multipliers=(("stem", 0.1),), **kwargs).make(params, 10, {})
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["stem"]["kernel"], 0.1 * updates["mlp"]["kernel"])


def test_weight_average():
    flags = {"a": {"kernel": False}, "b": {"kernel": True}}
    tx = Optimizer(learning_rate=0.1, warmup=0.0, ema=0.9).make({"b": {"kernel": jnp.ones((5, 3))}}, 10, {})
    old, new, _ = one_step(1, flags, tx)
    d = min(0.9, 2 / 11)
    mean = averaged(new.params, new.opt)
    np.testing.assert_allclose(
        mean["b"]["kernel"], d * old["b"]["kernel"] + (1 - d) * new.params["b"]["kernel"], rtol=1e-6
    )
    assert (mean["a"]["kernel"] == new.params["a"]["kernel"]).all()


def test_an_idle_pattern_is_an_error():
    with pytest.raises(ValueError, match="no parameter is left for"):
        match({"a": 1}, [("b", 2)], 0)


def test_bounds_hold_after_every_update():
    """A parameter is stopped at its bound, and comes back as soon as its gradient turns."""
    params = {"logit_scale": {"log": jnp.asarray(4.0)}, "kernel": jnp.asarray([4.0, -9.0])}
    tx = Optimizer(
        learning_rate=1.0,
        schedule="constant",
        warmup=0,
        weight_decay=0.0,
        bounds=(("logit_scale", (-1.0, 4.5)),),
    ).make(params, 10, {})
    state = tx.init(params)

    def update(params, state, sign):
        gradients = jax.tree.map(lambda x: sign * jnp.ones_like(x), params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = update(params, state, -1.0)
    assert float(params["logit_scale"]["log"]) == 4.5 and float(params["kernel"][0]) > 5.5
    for _ in range(4):
        params, state = update(params, state, 1.0)
    assert float(params["logit_scale"]["log"]) < 4.5
    with pytest.raises(ValueError, match=r"optimizer\.bounds"):
        Optimizer(bounds=(("nothing", (0, 1)),)).make(params, 10, {})


def test_features_may_hold_labels():
    """Integers among the features carry no gradient, and rows keep their order, with and without accumulation."""

    class Labelled(Toy):
        def per_example(self, params, extra, batch, **how):
            features, terms, aux = super().per_example(params, extra, batch, **how)
            return {**features, "label": batch["pairs"]["label"]}, terms, aux

        def across_batch(self, params, extra, features, **how):
            alike = features["label"][:, None] == features["label"][None]
            loss = (alike * (features["a"] @ features["b"].T)).sum() + (features["label"] * features["a"][:, 0]).sum()
            order = (jnp.arange(len(features["label"])) * features["label"]).sum()
            return {"alike": Term(loss, jnp.asarray(3.0))}, {"order": Term(order.astype(float), 1.0)}

    batch = {"pairs": {**toy_batch()["pairs"], "label": jnp.arange(24) % 5}}
    model = Labelled()
    params, extra = model.init(jax.random.key(0), batch)
    tx, flags = optax.sgd(1.0), jax.tree.map(lambda _: True, params)
    state = TrainState(jnp.zeros((), int), params, tx.init(params), extra, jax.random.key(1))
    (whole, told), (cut, also) = (jax.jit(make_train_step(model, tx, flags, n))(state, batch) for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), whole.params, cut.params)
    assert told["order"].sum == also["order"].sum

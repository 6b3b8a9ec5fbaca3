"""What the train step asks of a model's two halves: Terms, names that differ, features with rows, extra that keeps its shape."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simvlm_jax.core.types import BaseModel, Term, TrainState
from simvlm_jax.train.step import make_train_step


class Halves(BaseModel):
    """A model of one number that returns what it is given."""

    def __init__(self, first=None, second=None, aux=None, features=None, after=lambda extra: extra):
        self.first, self.second, self.aux, self.features, self.after = first, second, aux, features, after

    def per_example(self, params, extra, batch, *, rngs, step, train):
        features = {"rows": batch["pairs"]["x"] * params["w"]} if self.features is None else self.features
        return features, self.first or {}, self.aux or {}

    def across_batch(self, params, extra, features, *, step, train):
        return self.second or {"across": Term(params["w"], jnp.ones(()))}, {}

    def after_update(self, params, extra, features, *, step, rng):
        return self.after(extra)


def traced(accumulate, **kwargs):
    """The measurements of a step, traced alone."""
    params, tx, extra = {"w": jnp.ones(())}, optax.sgd(0.1), {"n": jnp.zeros(3)}
    step = make_train_step(Halves(**kwargs), tx, {"w": True}, accumulate)
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), extra, jax.random.key(0))
    return jax.eval_shape(step, state, {"pairs": {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}})[1]


@pytest.fixture(params=[1, 2], ids=["whole", "accumulated"])
def accumulate(request):
    return request.param


def test_both_halves_are_measured(accumulate):
    measured = traced(accumulate, first={"one": Term(jnp.ones(()), 1.0)}, aux={"two": Term(jnp.ones(()), 1.0)})
    assert set(measured) == {"one", "two", "across", "loss", "grad_norm"}


@pytest.mark.parametrize(
    ("halves", "message"),
    [
        ({"first": {"across": Term(jnp.ones(()), 1.0)}}, "Halves returns across twice"),
        ({"aux": {"across": Term(jnp.ones(()), 1.0)}}, "Halves returns across twice"),
        ({"first": {"a": Term(jnp.ones(()), 1.0)}, "aux": {"a": Term(jnp.ones(()), 1.0)}}, "Halves returns a twice"),
        ({"first": {"loss": Term(jnp.ones(()), 1.0)}}, "Halves returns loss, a name that the train step uses"),
        ({"features": {"mean": jnp.ones(())}}, r"Halves\.per_example returns features without rows, mean"),
        (
            {"after": lambda extra: {}},
            r"Halves\.after_update changes the shapes of extra: n: nothing, not float32\[3\]",
        ),
        ({"after": lambda extra: {"n": extra["n"][:2]}}, r"n: float32\[2\], not float32\[3\]"),
        ({"after": lambda extra: {"n": extra["n"].astype(jnp.bfloat16)}}, r"n: bfloat16\[3\], not float32\[3\]"),
    ],
)
def test_what_would_be_lost_is_an_error_while_tracing(accumulate, halves, message):
    with pytest.raises(ValueError, match=message):
        traced(accumulate, **halves)


@pytest.mark.parametrize("where", ["first", "second", "aux"])
def test_a_number_is_no_term(accumulate, where):
    half = "across_batch" if where == "second" else "per_example"
    with pytest.raises(TypeError, match=rf"Halves\.{half} returns 'mean' as \w+; it must be a core\.types\.Term"):
        traced(accumulate, **{where: {"mean": np.float32(1.0)}})

"""Choosing tokens: filters against their definitions, draws by the row's own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import Vocabulary
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.decode.sampling import Sampler, first_largest

LOGITS = jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]]))


def kept(sampler):
    return np.isfinite(np.asarray(sampler.filter(LOGITS))).tolist()


def test_top_k_keeps_the_likeliest():
    assert kept(Sampler(1.0, top_k=2))[0] == [True, True, False, False]
    assert kept(Sampler(1.0, top_k=9))[0] == [True] * 4


def test_nucleus_is_the_smallest_set_that_reaches_p():
    assert kept(Sampler(1.0, top_p=0.6)) == [[True, True, False, False], [False, False, False, True]]
    assert kept(Sampler(1.0, top_p=0.71))[0] == [True, True, True, False]
    assert kept(Sampler(1.0, top_p=1e-6))[0] == [True, False, False, False]


def test_temperature():
    np.testing.assert_allclose(Sampler(0.5).filter(LOGITS), LOGITS * 2, rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), 2)
    assert Sampler(0.0)(LOGITS, keys).tolist() == [0, 3]


def test_greedy_takes_the_first_of_the_largest():
    draw = np.random.default_rng(0).integers(0, 9, (50, 7)).astype(np.float32)  # many are equal
    assert first_largest(jnp.asarray(draw)).tolist() == draw.argmax(-1).tolist()
    hidden = np.where(draw < draw.max(-1, keepdims=True), -np.inf, draw)
    assert first_largest(jnp.asarray(hidden)).tolist() == draw.argmax(-1).tolist()
    assert first_largest(jnp.full((2, 7), jnp.nan)).tolist() == [6, 6]


def test_samples_follow_the_distribution():
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    drawn = np.asarray(Sampler(1.0)(jnp.tile(LOGITS[:1], (n, 1)), keys))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / n, [0.4, 0.3, 0.2, 0.1], atol=0.015)  # 4 deviations


@pytest.mark.parametrize("bad", [dict(temperature=-1.0), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5)])
def test_bad_settings(bad):
    ((field, value),) = bad.items()
    with pytest.raises(ValueError, match=f"Sampler.{field} is {value}: expected "):
        Sampler(**bad)


def counting_model(stop_at):
    """A model that says 3, 4, 5, ... from its first token on, and EOS (2) after `stop_at` of the row."""

    def logits(last):
        following = jnp.where(last >= stop_at, 2, last + 1)
        return jax.nn.one_hot(following, 16) * 9.0

    prefill = lambda params, extra, batch, n: (logits(batch["start"]), {"n": batch["start"]})  # noqa: E731
    extend = lambda params, extra, cache, t: (logits(t[:, 0])[:, None], {"n": t[:, 0]})  # noqa: E731
    return {"prefill": prefill, "extend": extend}


def test_generation_stops_row_by_row():
    start = jnp.asarray([2, 4, 6])
    made = generate(
        counting_model(6), None, None, {"start": start}, vocabulary=Vocabulary(16, 8), decoding=Decoding(max_length=6)
    )
    assert made.tokens[:, 0].tolist() == [[3, 4, 5, 6, 2, 0], [5, 6, 2, 0, 0, 0], [2, 0, 0, 0, 0, 0]]
    each = jax.nn.log_softmax(jax.nn.one_hot(0, 16) * 9.0)[0]
    np.testing.assert_allclose(made.score[:, 0], each * jnp.asarray([5, 3, 1]), atol=2e-6)


def test_sampling_depends_on_the_rows_id_not_on_its_place():
    flat = lambda b: jnp.zeros((b, 16)).at[:, :3].set(-jnp.inf)  # noqa: E731
    model = {
        "prefill": lambda p, e, batch, n: (flat(len(batch["id"])), {"n": batch["id"]}),
        "extend": lambda p, e, cache, t: (flat(len(t))[:, None], cache),
    }
    kwargs = dict(vocabulary=Vocabulary(16, 8), decoding=Decoding(max_length=5, sampler=Sampler(1.0)), seed=3)
    together = generate(model, None, None, {"id": jnp.asarray([7, 8, 9])}, **kwargs).tokens
    alone = generate(model, None, None, {"id": jnp.asarray([8])}, **kwargs).tokens
    assert together[1].tolist() == alone[0].tolist() and together[0].tolist() != together[1].tolist()
    other = generate(model, None, None, {"id": jnp.asarray([8])}, **{**kwargs, "seed": 4}).tokens
    assert other[0].tolist() != alone[0].tolist()

"""Compiled calls: one a computation and shape, whatever the values, and results that no batch size changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import BaseModel
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.sampling import Sampler
from simvlm_jax.infer import programs
from simvlm_jax.infer.programs import Capability, Gathered, Programs, padded
from simvlm_jax.parallel.mesh import make_mesh
from tests.eval.stub import Stub, engine, tokenizer

IMAGES = np.zeros((5, 1, 8, 8, 3), np.uint8)
IMAGES[:, 0, 0, 0, 0] = range(5)


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


class Counted(Stub):
    """Counts how often `prefill` and `extend` are traced."""

    traced = stepped = 0

    def prefill(self, params, extra, batch, max_length):
        self.traced += 1
        return super().prefill(params, extra, batch, max_length)

    def extend(self, params, extra, cache, tokens):
        self.stepped += 1
        return super().extend(params, extra, cache, tokens)


def test_another_answer_list_of_equal_shape_compiles_nothing(tok):
    model = Counted(tok, says=("yes", "red"))
    asked = engine(model, tok)
    found = [asked.likelihoods(IMAGES, ["?"] * 5, names).values for names in (("yes", "red"), ("red", "yes"))]
    assert model.traced == 1
    np.testing.assert_array_equal(found[0], found[1][:, ::-1])
    assert found[0].argmax(1).tolist() == [0, 1, 0, 1, 0]
    asked.likelihoods(IMAGES, ["?"] * 5, ("yes", "a blue cat"))  # longer ones do
    assert model.traced == 2


def test_another_seed_and_other_weights_compile_nothing_and_other_decoding_does(tok):
    import dataclasses

    model = Counted(tok, says=("yes", "red"))
    asked, how = engine(model, tok), Decoding(max_length=6, sampler=Sampler(3.0))
    texts = []
    for seed in (0, 1, 2**32 - 1, 0):
        texts.append(asked.generate(IMAGES, [""] * 5, np.arange(5), how, seed=seed).values)
    assert dataclasses.replace(asked, seed=1).generate(IMAGES, [""] * 5, np.arange(5), how).values == texts[1]
    assert model.traced == 1 and texts[0] == texts[3] and texts[0] != texts[1] != texts[2]
    asked.with_weights({"w": np.zeros(3)}, {}).generate(IMAGES, [""] * 5, np.arange(5), how)
    assert model.traced == 2  # a tree of another structure, not other values
    asked.with_weights({"w": np.ones(3)}, {}).generate(IMAGES, [""] * 5, np.arange(5), how)
    assert model.traced == 2
    before = model.stepped
    asked.generate(IMAGES, [""] * 5, np.arange(5), Decoding(max_length=6))
    assert model.traced == 2 and model.stepped > before  # the prompt is read as before
    asked.generate(IMAGES, [""] * 5, np.arange(5), Decoding(max_length=5))
    assert model.traced == 3


class LaidOut(Counted):
    """Decodes with parameters that were laid out for it, and with no others."""

    def capabilities(self):
        return {**super().capabilities(), "decoding_params": self.decoding_params}

    def decoding_params(self, params, extra):
        self.laid_out = getattr(self, "laid_out", 0) + ("ready" not in params)
        return {**params, "ready": jnp.zeros(())}

    def prefill(self, params, extra, batch, max_length):
        assert "ready" in params
        return super().prefill(params, extra, batch, max_length)


def test_weights_are_laid_out_for_decoding_once(tok):
    model = LaidOut(tok, says=("yes", "red"))
    asked, how = engine(model, tok), Decoding(max_length=6)
    for weights in ({"w": np.zeros(3)}, {"w": np.ones(3)}):
        now = asked.with_weights(weights, {})
        for _ in range(2):
            assert now.generate(IMAGES, [""] * 5, np.arange(5), how).values[1][0][0] == "red"
            now.likelihoods(IMAGES, ["?"] * 5, ("yes", "red"))
        np.testing.assert_array_equal(now.decoding_params["w"], weights["w"])
    assert model.laid_out == 1 and model.traced == 2


def test_capabilities_are_told_apart_by_model_and_name(tok):
    a, b = Stub(tok, 2), Stub(tok, 3)
    assert Capability(a, "classify") == Capability(a, "classify") != Capability(a, "features")
    asked = engine(a, tok)
    rows = {"image": IMAGES[:2]}
    assert asked.apply("naming", "classify", rows).shape == (2, 2)
    assert asked.apply("naming", "features", rows).shape == (2, 3)
    other = engine(b, tok)
    object.__setattr__(other, "programs", asked.programs)
    assert other.apply("naming", "classify", rows).shape == (2, 3)


def test_the_next_batch_is_sent_before_results_are_taken(monkeypatch):
    order = []
    call, fetched = programs._call, programs._fetched
    monkeypatch.setattr(programs, "_call", lambda *args: (order.append("call"), call(*args))[1])
    monkeypatch.setattr(programs, "_fetched", lambda *args: (order.append("fetch"), fetched(*args))[1])

    def twice(params, extra, batch, factor):
        return factor * batch["x"]

    mesh = make_mesh(jax.devices()[:1])
    rows = {"x": np.arange(7)}
    found = Programs().over(mesh, twice, {}, {}, rows, (np.int32(2),), most=3)
    assert found.tolist() == list(range(0, 14, 2))
    assert order == ["call", "call", "fetch", "call", "fetch", "fetch"]


def test_gathered_rows_are_those_of_the_array():
    array, index = np.arange(12).reshape(4, 3), np.asarray([3, 0, 0, 2])
    rows = Gathered(array, index)
    assert rows.shape == (4, 3) and len(rows) == 4 and rows.dtype == array.dtype
    np.testing.assert_array_equal(rows[1:9], array[index][1:9])
    np.testing.assert_array_equal(padded(rows[2:], 4), array[[0, 2, 2, 2]])


def test_a_key_that_rows_lack_is_named(tok):
    class Seeing(BaseModel):
        def capabilities(self):
            return {"embed_text": lambda params, extra, batch: batch["image"].mean()}

    with pytest.raises(ValueError, match=r"Seeing needs 'image' in every row, and these rows have text, text_mask"):
        engine(Seeing(), tok).embed_texts(["red"])

    class Writing(BaseModel):
        def capabilities(self):
            return {"prefill": lambda params, extra, batch, room: batch["image"].mean(), "extend": None}

    with pytest.raises(
        ValueError, match=r"Writing needs 'image' in every row, and these rows have id, text, text_mask"
    ):
        engine(Writing(), tok).generate(None, ["red"], np.arange(1), Decoding(max_length=2))


def test_outputs_may_be_trees(tok):
    def both(params, extra, batch):
        return {"a": batch["x"] + 1, "b": jnp.stack([batch["x"]] * 2, 1)}

    found = engine(Stub(tok), tok, (), 2, jax.devices()[:1]).over(both, {"x": np.arange(5)})
    assert found["a"].tolist() == [1, 2, 3, 4, 5] and found["b"].shape == (5, 2)

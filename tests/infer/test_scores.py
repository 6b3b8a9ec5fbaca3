"""Scores of images with texts: pairs of either, matching, and Monte-Carlo likelihoods that depend on a row alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.infer.engine import MissingCapability
from tests.eval.stub import Judge, Stub, engine, tokenizer

TEXTS = ("a red dog", "a blue cat", "red")
IMAGES = np.zeros((3, 1, 8, 8, 3), np.uint8)
IMAGES[:, 0, 0, :2, 0] = [(0, 3), (1, 2), (0, 2)]  # red dog, blue cat, red cat


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.mark.parametrize("devices", [1, 8])
def test_pairs_are_scored_in_any_order_and_at_any_batch_size(tok, devices):
    pairs = np.asarray([(0, 0), (0, 1), (2, 2), (1, 1), (2, 0), (0, 2), (1, 0)])
    wanted = [2, -2, 1, 2, 0, 1, -2]  # words shared, less words that the image lacks
    for batch_size in (2, 100):
        asked = engine(Judge(tok), tok, (), batch_size, jax.devices()[:devices])
        assert asked.score_pair(IMAGES, TEXTS, pairs).values.tolist() == wanted
        assert asked.score_pair(IMAGES, ("a red dog", "a blue cat", "red cat")).values.tolist() == [2, 2, 2]
        by_text = asked.score_text(IMAGES, TEXTS, pairs).values
        assert by_text.tolist() == [asked.score_text(IMAGES[[i]], [TEXTS[j]]).values[0] for i, j in pairs]
    with pytest.raises(ValueError, match="3 images with 2 texts; give as many, or name their pairs"):
        asked.score_pair(IMAGES, TEXTS[:2])


def test_a_text_of_several_pairs_is_noted_once(tok):
    asked = engine(Judge(tok), tok)
    pairs = np.asarray([(0, 0), (1, 0), (2, 0), (0, 1)])
    assert asked.score_pair(IMAGES, ("red " * 40, "dog"), pairs).notes == {"texts_cut": 1}


def test_likelihoods_of_images_draw_from_the_seed_and_the_image_alone(tok):
    ids = np.asarray([7, 8, 9])
    pairs = np.stack(np.mgrid[:3, :3], -1).reshape(-1, 2)

    def scores(batch_size=100, samples=1, seed=0, order=slice(None), noise=1.0):
        asked = engine(Judge(tok, noise), tok, (), batch_size, jax.devices()[:1])
        asked = dataclasses.replace(asked, seed=seed)
        found = asked.score_image(IMAGES[order], TEXTS, ids[order], pairs, samples)
        return found.values.reshape(3, 3)

    one, exact = scores(), scores(noise=0.0)
    noise = one - exact
    np.testing.assert_allclose(noise, np.broadcast_to(noise[:, :1], (3, 3)), atol=1e-6)  # the same for every text
    assert len(set(noise[:, 0].tolist())) == 3
    np.testing.assert_array_equal(scores(batch_size=2), one)
    np.testing.assert_array_equal(scores(order=[2, 0, 1]), one[[2, 0, 1]])
    assert not np.allclose(scores(seed=1), one)
    many = scores(samples=400) - exact
    assert np.abs(many).max() < 0.2 < np.abs(noise).max()  # four standard deviations of a mean of 400


def test_what_a_model_lacks_is_named(tok):
    asked = engine(Stub(tok), tok)
    for call, name in (
        (lambda: asked.score_pair(IMAGES, TEXTS), "matching images with texts needs score_pair"),
        (lambda: asked.score_image(IMAGES, TEXTS, np.arange(3)), "the likelihood of images needs score_image"),
        (lambda: asked.score_text(IMAGES, TEXTS), "the likelihood of texts needs score_text"),
    ):
        with pytest.raises(MissingCapability, match=f"{name}, which Stub lacks"):
            call()


def test_scores_that_are_not_finite_are_refused(tok):
    class Diverged(Judge):
        def score_pair(self, params, extra, batch):
            return super().score_pair(params, extra, batch) * jnp.nan

    with pytest.raises(ValueError, match="3 of 3 matching scores are not finite"):
        engine(Diverged(tok), tok).score_pair(IMAGES, TEXTS)

"""Llip: every caption sees an image of its own, and the loss is the paper's."""

import jax
import numpy as np
import pytest

from simvlm_jax.models.llip import SIZES, Llip
from tests.laws.cases import V
from tests.laws.steps import make


def test_the_loss_is_a_sigmoid_over_mixtures_written_out(float64, text_batch):
    """Image i, mixed for text j, against text j; in plain numpy."""
    batch = text_batch(6)
    model, params = make(Llip(V, 32), batch)
    features, _, _ = model.per_example(params, {}, {"pairs": batch}, rngs=jax.random.key(0), step=0, train=True)
    terms, _ = model.across_batch(params, {}, features, step=0, train=True)
    x, t = (np.asarray(features[k]["features"]) for k in ("image", "text"))
    _, _, _, E, K, heads, _ = SIZES["tiny"]
    assert x.shape == (6, K, 2 * E)
    query, out = (np.asarray(params[k]["kernel"]) for k in ("query", "out"))
    scale, bias = np.exp(params["logit_scale"]["log"]), params["logit_scale"]["bias"]
    loss = 0.0
    for i in range(6):
        key, value = (part.reshape(K, heads, -1) for part in np.split(x[i], 2, axis=-1))
        for j in range(6):
            q = (E**0.5 * t[j] @ query).reshape(heads, -1)
            weights = np.exp(np.einsum("he,khe->hk", q, key) / model.temperature)
            weights /= weights.sum(1, keepdims=True)
            z = np.einsum("hk,khe->he", weights, value).reshape(E) @ out
            logit = scale * (z / np.linalg.norm(z)) @ t[j] + bias
            loss += np.log1p(np.exp(-logit if i == j else logit))
    assert float(terms["contrastive"].sum) == pytest.approx(loss, rel=1e-10)


def test_an_image_looks_different_to_every_caption(float64, text_batch):
    batch = text_batch(4)
    model, params = make(Llip(V, 32), batch)
    image, text = (model.capabilities()[k](params, {}, batch) for k in ("embed_image", "embed_text"))
    mixed = np.asarray(model.apply(params, "mixed", image, text))
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=-1), 1, atol=1e-10)
    assert np.abs(mixed[:, 0] - mixed[:, 1]).max() > 1e-3


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="size 'B' is not one of tiny"):
        Llip(V, 32, size="B")

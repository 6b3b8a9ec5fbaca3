"""Towers: every way to pool, what padding may and may not change, positions at another resolution, activations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.nn.depthwise import convolved, depthwise
from simvlm_jax.nn.mlp import ACTIVATIONS
from simvlm_jax.nn.pool import AttentionalPool, MapHead
from simvlm_jax.nn.sizes import Compute, Size, Style
from simvlm_jax.nn.text import TextTower
from simvlm_jax.nn.vit import ViT, resize_positions

SIZE, COMPUTE = Size(16, 2, 2, 24), Compute("float64", scan=False)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def made(module, *inputs):
    """(parameters moved off their start, apply)."""
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), *inputs))["params"]
    leaves, shape = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [0.2 * jax.random.normal(k, x.shape, jnp.float64) + x for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(shape, moved)


def images(side=16, rows=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(rows, side, side, 3)))


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_an_image_pooled(pool):
    tower = ViT(SIZE, 8, 16, COMPUTE, pool=pool)
    params = made(tower, images())
    pooled = tower.apply({"params": params}, images())
    tokens, first, learned = tower.apply({"params": params}, images(), method="encode")
    assert pooled.shape == (3, 16) and tokens.shape == (3, 4, 16) and learned.shape == (3, 0, 16)
    if pool == "cls":
        np.testing.assert_array_equal(pooled, first)
    elif pool == "mean":
        np.testing.assert_allclose(pooled, tokens.mean(1), atol=1e-12)
    else:
        head = MapHead(2, 24, COMPUTE)
        np.testing.assert_allclose(pooled, head.apply({"params": params["head"]}, tokens), atol=1e-12)
    with pytest.raises(ValueError, match="takes 16 x 16 px; got 24 x 24"):
        tower.apply({"params": params}, images(24))


def test_learned_tokens_come_after_the_image():
    tower = ViT(SIZE, 8, 16, COMPUTE, pool="mean", learned=5)
    params = made(tower, images())
    tokens, _, learned = tower.apply({"params": params}, images(), method="encode")
    assert (tokens.shape, learned.shape) == ((3, 4, 16), (3, 5, 16))
    assert np.abs(np.asarray(learned[:, 0] - learned[:, 1])).max() > 1e-3


def test_pixels_that_no_patch_holds_are_not_seen():
    tower = ViT(SIZE, 8, 20, COMPUTE, pool="mean")
    image = images(20)
    params = made(tower, image)
    other = image.at[:, 16:].set(9.0).at[:, :, 16:].set(-9.0)
    np.testing.assert_array_equal(tower.apply({"params": params}, image), tower.apply({"params": params}, other))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pool", ["eos", "last", "first"])
def test_a_text_pooled(pool, causal):
    tower = TextTower(SIZE, 20, 6, COMPUTE, causal=causal, pool=pool)
    tokens = jnp.asarray([[1, 5, 6, 2, 0, 0], [1, 7, 8, 9, 3, 2]])
    valid = jnp.asarray([[1, 1, 1, 1, 0, 0], [1] * 6], bool)
    params = made(tower, tokens, valid)
    states, pooled = tower.apply({"params": params}, tokens, valid)
    at = {"eos": [3, 5], "last": [5, 5], "first": [0, 0]}[pool]
    np.testing.assert_array_equal(pooled, states[jnp.arange(2), jnp.asarray(at)])
    padded = tower.apply({"params": params}, tokens.at[0, 4:].set(11), valid)[0]  # what stands in the padding
    np.testing.assert_allclose(padded[0, :4], states[0, :4], atol=1e-12)
    later = tower.apply({"params": params}, tokens.at[:, 3].set(12), valid)[0]
    assert (np.abs(np.asarray(later - states))[:, 0].max() < 1e-12) == causal
    if pool == "last":
        with pytest.raises(ValueError, match="needs all 6 of them; got 5"):
            tower.apply({"params": params}, tokens[:, :5], valid[:, :5])


def test_a_pooler_looks_only_at_what_is_there():
    pool = AttentionalPool(3, 16, 2, COMPUTE)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)))
    params = made(pool, x)
    seen = jnp.asarray([[1, 1, 1, 0, 0]] * 2, bool)
    found = pool.apply({"params": params}, x, seen)
    np.testing.assert_allclose(found, pool.apply({"params": params}, x[:, :3]), atol=1e-12)
    np.testing.assert_allclose(found, pool.apply({"params": params}, x.at[:, 3:].set(7.0), seen), atol=1e-12)


def test_positions_at_another_resolution():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(1 + 16, 4)))
    np.testing.assert_array_equal(resize_positions(table, 16), table)
    larger = resize_positions(table, 64)
    assert larger.shape == (65, 4)
    np.testing.assert_array_equal(larger[0], table[0])  # the class token's
    flat = jnp.concatenate([table[:1], jnp.ones((16, 1)) * table[1]])  # what is the same everywhere stays so
    np.testing.assert_allclose(resize_positions(flat, 64)[1:], jnp.broadcast_to(table[1], (64, 4)), atol=1e-6)
    assert resize_positions(table[1:], 4).shape == (4, 4)


def test_activations_are_the_fields():
    torch = pytest.importorskip("torch")
    x = np.linspace(-4, 4, 41)
    theirs = {
        "gelu": torch.nn.functional.gelu(torch.tensor(x), approximate="tanh"),
        "gelu_exact": torch.nn.functional.gelu(torch.tensor(x)),
        "relu": torch.nn.functional.relu(torch.tensor(x)),
        "silu": torch.nn.functional.silu(torch.tensor(x)),
        "quick_gelu": torch.tensor(x) * torch.sigmoid(1.702 * torch.tensor(x)),
    }
    assert set(theirs) == set(ACTIVATIONS)
    for name, value in theirs.items():
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), value, atol=1e-12)
    with pytest.raises(ValueError, match="activation 'tanh'"):
        Style("tanh")


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 7), (3, 2, 8), (5, 2, 9), (5, 1, 4)])
def test_a_depthwise_convolution_is_xlas(float64, size, stride, side):
    """Forward and backward, at odd and even sizes."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, side, side + 1, 3)), rng.normal(size=(size, size, 1, 3))
    found, expected = (f(x, kernel, stride) for f in (depthwise, convolved))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    loss = lambda f: lambda x, k: (f(x, k, stride) ** 3).sum()  # noqa: E731
    for a, b in zip(*(jax.grad(loss(f), (0, 1))(x, kernel) for f in (depthwise, convolved)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_a_grid_that_is_no_square_is_not_guessed():
    """36 rows of 5 x 7 places and a class token are no 6 x 6."""
    with pytest.raises(ValueError, match="36 positions, 1 of them in front, is of no square grid"):
        resize_positions(jnp.zeros((36, 4)), (10, 14), 1)
    assert resize_positions(jnp.zeros((36, 4)), (10, 14), 0).shape == (140, 4)

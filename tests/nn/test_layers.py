"""Layers against those of jax.nn and flax, in float64 where a tolerance should mean something."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.nn.attention import Attention
from simvlm_jax.nn.block import drop_branch
from simvlm_jax.nn.conv_stem import ConvStem, ConvStemSize, Patches, stage_strides
from simvlm_jax.nn.kernels import dense
from simvlm_jax.nn.linear import FEW_ROWS, multiply_transposed
from simvlm_jax.nn.masks import Mask, Sight, bidirectional, causal, join, self_mask, visible
from simvlm_jax.nn.mlp import gelu
from simvlm_jax.nn.norm import GroupNorm, LayerNorm
from simvlm_jax.nn.position import RelativeBias2D, resize_grid, resize_relative
from simvlm_jax.nn.sizes import Compute

B, T, S, H, K = 2, 5, 7, 3, 4


@pytest.fixture(autouse=True)
def float64():
    """x64 for this file alone."""
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape))


def anything(batch, queries, keys):
    """A mask of random blocks and segments, in which every query sees a key."""
    draw = np.random.default_rng(0)
    side = lambda n: Sight(*(jnp.asarray(draw.integers(a, 3, (batch, n))) for a in (0, -1)))  # noqa: E731
    query, key = side(queries), side(keys)
    first = Sight(key.block.at[:, :3].set(0), key.segment.at[:, :3].set(jnp.arange(3)))
    return Mask(query._replace(segment=jnp.maximum(query.segment, 0)), first)


def test_attention_is_that_of_jax():
    q, k, v = normal(B, T, H, K), normal(B, S, H, K), normal(B, S, H, K, seed=1)
    mask, bias = anything(B, T, S), normal(B, H, T, S)
    seen = mask.visible
    assert seen.any(-1).all() and not seen.all()  # jax.nn gives NaN to a row that sees nothing
    ours, weights = dense(q, k, v, mask, bias)
    theirs = jax.nn.dot_product_attention(q, k, v, bias, seen[:, None])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)  # theirs has its softmax in float32 even here
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-12)
    assert not np.asarray(weights)[~np.broadcast_to(seen[:, None], weights.shape)].any()


def test_a_query_that_sees_nothing_gives_zeros_and_a_finite_gradient():
    q, k, v = normal(B, T, H, K), normal(B, S, H, K), normal(B, S, H, K, seed=1)
    mask = Mask(bidirectional(jnp.ones((B, T), bool).at[0, 1].set(False)), bidirectional(jnp.ones((B, S), bool)))
    assert not dense(q, k, v, mask)[0][0, 1].any()
    gradient = jax.grad(lambda *qkv: dense(*qkv, mask)[0].sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(jnp.isfinite(g).all() for g in gradient)


def test_softmax_is_float32_whatever_the_activations():
    q, k, v = (normal(B, T, H, K, seed=i).astype(jnp.bfloat16) for i in range(3))
    out, weights = dense(q, k, v)
    assert out.dtype == jnp.bfloat16 and weights.dtype == jnp.float32


def test_multi_head_attention_is_that_of_flax():
    x, seen = normal(B, T, H * K), jnp.tril(jnp.ones((T, T), bool))
    ours = Attention(H * K, H, jnp.float64)
    params = nn.meta.unbox(ours.init(jax.random.key(0), x, x, None))["params"]
    params = {name: normal(*leaf.shape, seed=9) for name, leaf in params.items()}  # biases too
    theirs = {
        name: {"kernel": params[name], "bias": params.get(f"{name}_bias", jnp.zeros((H, K)))}
        for name in ("query", "key", "value", "out")
    }
    expected = nn.MultiHeadDotProductAttention(H, dtype=jnp.float64, param_dtype=jnp.float64).apply(
        {"params": theirs}, x, mask=jnp.broadcast_to(seen, (B, 1, T, T))
    )
    got = ours.apply({"params": params}, x, x, self_mask(causal(jnp.ones((B, T), bool))))
    np.testing.assert_allclose(got, expected, atol=1e-11)


@pytest.mark.parametrize("rows", [(3, 1), (FEW_ROWS + 1, 2)], ids=["few", "many"])
@pytest.mark.parametrize("inputs", [1, 2])
def test_a_product_with_a_transposed_kernel(rows, inputs):
    """Few rows, whose matrix is the left factor, and many."""
    output, input = (4, 3)[: 3 - inputs], (3, 5)[2 - inputs :]
    kernel, x = normal(*output, *input), normal(*rows, *input)
    multiply = jax.jit(multiply_transposed, static_argnums=(2, 3))
    np.testing.assert_allclose(
        multiply(x, kernel, inputs), np.tensordot(x, kernel, [range(-inputs, 0)] * 2), rtol=1e-13
    )
    half = multiply(x.astype("bfloat16"), kernel.astype("bfloat16"), inputs, jnp.float32)
    assert (half.shape, half.dtype) == ((*rows, *output), jnp.float32)


def test_gelu_is_that_of_jax_with_its_derivatives():
    x = normal(50) * 3
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x), atol=1e-12)
    for ours, theirs in (
        (jax.grad(gelu), jax.grad(jax.nn.gelu)),
        (jax.grad(jax.grad(gelu)), jax.grad(jax.grad(jax.nn.gelu))),
    ):
        np.testing.assert_allclose(jax.vmap(ours)(x), jax.vmap(theirs)(x), atol=1e-12)


def test_norms_are_those_of_flax():
    x = normal(B, 4, 6, 32) * 3 + 1
    scale, bias = normal(32), normal(32, seed=1)
    variables = {"params": {"scale": scale, "bias": bias}}
    theirs = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float64).apply(variables, x)
    np.testing.assert_allclose(LayerNorm(jnp.float64).apply(variables, x), theirs, atol=1e-12)
    theirs = nn.GroupNorm(num_groups=2, epsilon=1e-6, dtype=jnp.float64).apply(variables, x)
    np.testing.assert_allclose(GroupNorm(jnp.float64).apply(variables, x), theirs, atol=1e-11)


def test_norm_statistics_are_float32():
    x = (normal(B, 256) + 300).astype(jnp.bfloat16)  # in bf16 the mean alone would be off by more than the spread
    variables = {"params": {"scale": jnp.ones(256, jnp.float32), "bias": jnp.zeros(256, jnp.float32)}}
    out = LayerNorm(jnp.bfloat16).apply(variables, x)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float64), exact, atol=2e-2)  # bf16 has 8 bits: 2^-8 of values up to 4


def test_sight():
    valid = jnp.asarray([[True, True, False]])
    assert visible(bidirectional(valid), bidirectional(valid))[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert visible(causal(valid), causal(valid))[0].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    prefix_lm = join(bidirectional(valid), Sight(1 + jnp.arange(2)[None], jnp.zeros((1, 2), jnp.int32)))
    assert visible(prefix_lm, prefix_lm)[0].tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


def test_relative_bias_by_hand():
    Y, X, text = 2, 3, 2
    layer = RelativeBias2D((Y, X), H)
    table = normal(H, 2 * Y - 1, 2 * X - 1)
    bias = np.asarray(layer.apply({"params": {"table": table}}, Y * X + text, Y * X + text))[0]
    for a in range(Y * X):
        for b in range(Y * X):
            dy, dx = a // X - b // X, a % X - b % X
            np.testing.assert_array_equal(bias[:, a, b], table[:, dy + Y - 1, dx + X - 1])
    assert not bias[:, Y * X :].any() and not bias[:, :, Y * X :].any()
    with pytest.raises(ValueError, match="2 x 3 image tokens"):
        layer.apply({"params": {"table": table}}, 5, 6)


def test_resizing_tables():
    plane = jnp.stack(jnp.meshgrid(jnp.linspace(0, 1, 4), jnp.linspace(0, 1, 4), indexing="ij"), -1).reshape(16, 2)
    assert resize_grid(plane, (4, 4), (4, 4)) is plane
    larger = resize_grid(plane, (4, 4), (8, 8)).reshape(8, 8, 2)
    assert (jnp.diff(larger[..., 0], axis=0) >= 0).all() and not jnp.diff(larger[..., 0], axis=1).any()
    table = normal(H, 7, 7)
    assert resize_relative(table, (4, 4)) is table
    peak = jnp.zeros((1, 7, 7)).at[0, 3, 3].set(1.0)
    wider = resize_relative(peak, (8, 8))
    assert wider.shape == (1, 15, 15) and jnp.unravel_index(wider.argmax(), wider.shape) == (0, 7, 7)


def test_stochastic_depth_keeps_the_mean_and_drops_whole_samples():
    h = jnp.ones((4000, 2, 3))
    out = drop_branch(jax.random.key(0), h, 0.25)
    per_sample = out.reshape(4000, -1)
    assert (per_sample == per_sample[:, :1]).all()
    assert set(np.unique(per_sample).round(6)) == {0.0, round(1 / 0.75, 6)}
    assert abs(float(out.mean()) - 1) < 0.03  # three standard deviations of 4000 draws


def test_patches_are_row_by_row():
    image = normal(1, 4, 6, 3)
    layer = Patches(5, 2, jnp.float64)
    params = {"kernel": normal(12, 5), "bias": normal(5)}
    out = layer.apply({"params": params}, image)
    expected = image[0, 2:4, 4:6].reshape(-1) @ params["kernel"] + params["bias"]
    assert out.shape == (1, 6, 5)
    np.testing.assert_allclose(out[0, 5], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("stages", "patch", "strides"), [(3, 16, (1, 2, 2)), (4, 16, (1, 2, 2, 1)), (2, 16, (1, 2)), (3, 8, (1, 2, 1))]
)
def test_strides_never_pass_the_patch(stages, patch, strides):
    assert stage_strides(stages, patch) == strides


@pytest.mark.parametrize(
    "size",
    [
        ConvStemSize(("conv7", 16), (32, 64, 64), (1, 2, 1)),
        ConvStemSize(("conv3", 16), (16, 32, 32, 48), (0, 1, 1, 1), bottleneck=False),
    ],
)
def test_stem_gives_a_token_a_patch(size):
    layer = ConvStem(size, 24, 16, Compute("float32"))
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), image)
    assert jax.eval_shape(layer.apply, params, image).shape == (1, 256, 24)

"""One law of attention: every kernel gives what the dense reference gives, and a mask's kind says what its vectors say."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.flops import count_flops
from simvlm_jax.core.platform import compiled_for
from simvlm_jax.core.sharding import use_sharding
from simvlm_jax.nn import kernel_tpu
from simvlm_jax.nn.kernel_gpu import fused
from simvlm_jax.nn.kernel_tpu import splash
from simvlm_jax.nn.kernels import attend, chosen, dense
from simvlm_jax.nn.masks import DENSE, Kind, Mask, Sight, bidirectional, causal, self_mask
from simvlm_jax.parallel.mesh import MeshShardingRules, make_mesh
from tests.nn.kinds import KINDS, check_kind, drawn

B, T, S, H, G, K = 2, 136, 200, 4, 2, 8
NAMES = [f"{k.order}{k.prefix if k.order == 'prefix' else ''}-{k.padding}" for k in KINDS]


def inputs(keys, dtype=jnp.float32, kv_heads=G, rows=B):
    draw = np.random.default_rng(keys)
    shapes = (rows, T, H, K), (rows, keys, kv_heads, K), (rows, keys, kv_heads, K), (rows, T, H, K)
    return [jnp.asarray(draw.normal(size=shape), dtype) for shape in shapes]


def outcome(attention, q, k, v, weight):
    """[output, gradients of q, k and v] of an attention whose output is weighted and summed."""

    def total(q, k, v):
        out = attention(q, k, v)
        return (out * weight).astype(jnp.float32).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


def agree(found, expected, tolerance):
    for name, a, b in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        assert np.isfinite(a).all(), name
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), err_msg=name)


def reference(*qkv, mask):
    return dense(*qkv, mask)[0]


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_all_kernels_agree_for_every_kind(kind, monkeypatch):
    mask = drawn(kind, np.random.default_rng(0), B, T, S)
    check_kind(mask)
    if kind.padding == "any":  # several blocks, of which a causal order skips some
        monkeypatch.setattr(kernel_tpu, "BLOCK", 128)
    given = inputs(mask.key.block.shape[1])
    vectors_only = functools.partial(reference, mask=Mask(mask.query, mask.key, DENSE))
    expected = outcome(vectors_only, *given)
    seen = np.asarray(mask.visible.any(-1))
    assert kind.padding == "none" or not seen.all()
    assert not expected[0][~seen].any()  # a query that sees no key
    agree(outcome(functools.partial(attend, mask=mask), *given), expected, 0)  # on CPU, the same computation
    # sums in another order; 1e-6 is eight roundings of the largest value
    agree(outcome(functools.partial(splash, mask=mask, interpret=True), *given), expected, 2e-6)
    if kind.padding != "any":
        agree(outcome(functools.partial(fused, mask=mask, implementation="xla"), *given), expected, 2e-6)


def test_all_kernels_agree_without_a_mask():
    given = inputs(S)
    expected = outcome(functools.partial(reference, mask=None), *given)
    agree(outcome(functools.partial(fused, mask=None, implementation="xla"), *given), expected, 2e-6)
    agree(outcome(functools.partial(splash, mask=None, interpret=True), *given), expected, 2e-6)


def test_all_kernels_agree_in_bfloat16():
    """bfloat16 has 8 bits, 2**-8 a rounding: of the weights in dense attention, of the scaled query in splash attention."""
    mask = drawn(Kind("causal", "right"), np.random.default_rng(0), B, T, T)
    exact = outcome(functools.partial(reference, mask=mask), *inputs(T))
    for kernel in (
        reference,
        functools.partial(fused, implementation="xla"),
        functools.partial(splash, interpret=True),
    ):
        agree(outcome(functools.partial(kernel, mask=mask), *inputs(T, jnp.bfloat16)), exact, 4 * 2**-8)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.padding == "right"], ids=lambda k: f"{k.order}{k.prefix}")
def test_what_cudnn_leaves_in_padding_reaches_nothing(kind, monkeypatch):
    """A stand-in that writes NaN wherever cuDNN promises nothing, in results and in gradients."""
    plain = jax.nn.dot_product_attention

    def careless(q, k, v, *, query_seq_lengths, key_value_seq_lengths, implementation, is_causal):
        queries, keys = query_seq_lengths, key_value_seq_lengths

        def spoiled(x, lengths):
            return jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None, None], x, jnp.nan)

        @jax.custom_vjp
        def call(q, k, v):
            out = plain(q, k, v, query_seq_lengths=queries, key_value_seq_lengths=keys, is_causal=is_causal)
            return spoiled(out, queries)

        def forward(q, k, v):
            return call(q, k, v), (q, k, v)

        def backward(kept, gradient):
            def clean(q, k, v):
                return plain(q, k, v, query_seq_lengths=queries, key_value_seq_lengths=keys, is_causal=is_causal)

            dq, dk, dv = jax.vjp(clean, *kept)[1](gradient)
            return spoiled(dq, queries), spoiled(dk, keys), spoiled(dv, keys)

        call.defvjp(forward, backward)
        assert (queries > 0).all() and (keys > 0).all()
        return call(q, k, v)

    mask = drawn(kind, np.random.default_rng(1), B, T, S)
    given = inputs(mask.key.block.shape[1])
    expected = outcome(functools.partial(reference, mask=mask), *given)
    monkeypatch.setattr(jax.nn, "dot_product_attention", careless)
    with jax.disable_jit():
        out, back = jax.vjp(lambda q, k, v: fused(q, k, v, mask), *given[:3])
        found = [out, *back(given[3])]
    agree([np.asarray(x) for x in found], expected, 2e-6)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_on_a_mesh_every_device_computes_its_rows_and_heads(kv_heads):
    mask = drawn(Kind("causal", "any"), np.random.default_rng(0), 4, T, T)
    given = inputs(T, kv_heads=kv_heads, rows=4)
    expected = outcome(functools.partial(reference, mask=mask), *given)
    mesh = make_mesh(jax.devices()[:8], data=2, fsdp=2, tensor=2)
    with use_sharding(MeshShardingRules(mesh)):
        attention = functools.partial(splash, mask=mask, interpret=True)
        agree(outcome(attention, *given), expected, 2e-6)
        text = str(jax.make_jaxpr(attention)(*given[:3]))
    assert f"f32[1,{H // 2},256,{K}]" in text  # a row and half of the heads, whose 136 slots are a block of 256


def test_the_first_call_of_a_kernel_may_be_in_a_scan_of_layers():
    """Flax traces such a body by a partial evaluation that `jax.ensure_compile_time_eval` does not leave."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + splash(x, x, x, None, interpret=True) * self.param("scale", nn.initializers.ones, ()), None

    kernel_tpu._kernel.cache_clear()
    layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()
    x = inputs(T)[0]
    made, _ = jax.eval_shape(layers.init_with_output, jax.random.key(0), x, None)
    assert made[0].shape == x.shape


def test_a_layer_on_a_tpu_is_lowered_to_the_splash_kernel(monkeypatch):
    shape = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)
    vectors = [jax.ShapeDtypeStruct((2, 256), jnp.int32)] * 2

    def loss(q, k, v, block, segment):
        return attend(q, k, v, self_mask(Sight(block, segment), Kind("causal", "right"))).astype(jnp.float32).sum()

    with compiled_for("tpu"):
        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        lowered = jax.export.export(step, platforms=["tpu"])(*[shape] * 3, *vectors)
    assert lowered.mlir_module().count("tpu_custom_call") == 2  # forward, and all gradients in one pass


def test_the_flops_of_a_kernel_are_counted():
    q, k, v, _ = (jax.ShapeDtypeStruct((2, 256, n, 8), jnp.float32) for n in (4, 2, 2, 4))
    expected = count_flops(lambda *qkv: dense(*qkv)[0], q, k, v)
    assert count_flops(lambda *qkv: splash(*qkv, None), q, k, v) == expected == 2 * 2 * 2 * 4 * 256 * 256 * 8


BF16, FP32 = jnp.bfloat16, jnp.float32
FULL, NONE = Kind("full", "right"), Kind("full", "none")
LONG, SHORT = (8, 512, 4, 64), (8, 64, 4, 64)


@pytest.mark.parametrize(
    ("platform", "dtype", "query", "key", "kind", "more", "name"),
    [
        ("cpu", BF16, LONG, LONG, NONE, {}, "dense"),
        ("gpu", BF16, SHORT, LONG, NONE, {}, "cudnn"),
        ("gpu", jnp.float16, LONG, LONG, FULL, {}, "cudnn"),
        ("gpu", BF16, LONG, (8, 512, 2, 64), Kind("causal", "right"), {}, "cudnn"),
        ("gpu", BF16, LONG, LONG, Kind("prefix", "none", 9), {}, "cudnn"),
        ("gpu", BF16, LONG, LONG, Kind("prefix", "right", None), {}, "cudnn"),
        ("gpu", FP32, LONG, LONG, NONE, {}, "dense"),
        ("gpu", BF16, LONG, LONG, NONE, {"bias": True}, "dense"),
        ("gpu", BF16, LONG, LONG, Kind("causal", "any"), {}, "dense"),
        ("gpu", BF16, LONG, LONG, DENSE, {}, "dense"),
        ("gpu", BF16, (8, 512, 4, 60), (8, 512, 4, 60), NONE, {}, "dense"),
        ("gpu", BF16, (8, 512, 4, 256), (8, 512, 4, 256), NONE, {}, "dense"),
        ("gpu", BF16, (8, 512, 4, 256), (8, 512, 4, 256), NONE, {"widest": 256}, "cudnn"),
        ("tpu", BF16, LONG, LONG, NONE, {}, "splash"),
        ("tpu", FP32, LONG, LONG, Kind("causal", "any"), {}, "splash"),
        ("tpu", BF16, LONG, (8, 512, 1, 64), Kind("prefix", "any", None), {}, "splash"),
        ("tpu", BF16, LONG, LONG, NONE, {"bias": True}, "dense"),
        ("tpu", BF16, LONG, LONG, DENSE, {}, "dense"),
        ("tpu", BF16, SHORT, SHORT, NONE, {}, "dense"),
        ("tpu", BF16, (8, 1, 4, 64), LONG, NONE, {}, "dense"),
        ("tpu", jnp.float16, LONG, LONG, NONE, {}, "dense"),
        ("tpu", BF16, LONG, (8, 600, 4, 64), Kind("causal", "any"), {}, "dense"),  # contradicts itself: T = S
    ],
)
def test_which_kernel_is_chosen(platform, dtype, query, key, kind, more, name):
    assert chosen(platform, jnp.dtype(dtype), query, key, kind, **more) == name


def test_a_mask_whose_vectors_contradict_its_kind_is_found():
    valid = jnp.arange(6) < jnp.array([[4], [6]])
    front, holes = bidirectional(valid), bidirectional(valid.at[:, 1].set(False))
    for sight, kind in [
        (causal(valid), Kind("full", "right")),
        (front, Kind("causal", "right")),
        (front, Kind("full", "none")),
        (holes, Kind("full", "right")),
        (causal(valid), Kind("prefix", "right", 3)),
        (front._replace(segment=jnp.arange(6) // 3 + jnp.zeros((2, 1), jnp.int32)), Kind("full", "right")),
        (Sight(jnp.array([[0, 0, 1, 1]]), jnp.zeros((1, 4), jnp.int32)), Kind("prefix", "none", None)),
    ]:
        check_kind(self_mask(sight))
        with pytest.raises(AssertionError):
            check_kind(self_mask(sight, kind))

"""Each family of decoders and encoders that the parts of nn/ can be: the network of transformers, scanned, and cached."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.nn.block import Shared
from simvlm_jax.nn.cache import empty_layers, empty_slots, write
from simvlm_jax.nn.embed import TokenEmbedding
from simvlm_jax.nn.kernels import chosen
from simvlm_jax.nn.masks import Kind
from simvlm_jax.nn.position import sin_cos, sin_cos_grid
from simvlm_jax.nn.rotary import rotate
from simvlm_jax.nn.sizes import Compute, Rotary, Size, Style
from simvlm_jax.nn.stack import Stack, decoding_layers
from simvlm_jax.nn.vit import ViT
from tests.models import from_torch
from tests.nn.rows import ROWS, VOCABULARY, Network, Row, copied, inputs, network, shapes, stacked, vit_params

T, PROMPT = 7, 4


def random_params(row: Row):
    """Parameters moved off their start, so that zeros and ones hide nothing."""
    leaves, tree = jax.tree.flatten(shapes(row))
    draw = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(draw.normal(0.3, 0.3, x.shape), jnp.float32) for x in leaves])


@pytest.mark.parametrize("name", ROWS)
def test_it_is_the_network_of_transformers(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    row = ROWS[name]
    kind, config = row.theirs
    kind = getattr(transformers, kind)
    special = dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager")
    kwargs = {"add_pooling_layer": False} if name.startswith("bert") else {}
    theirs = from_torch.perturbed(kind(kind.config_class(**{**special, **config}), **kwargs))
    tokens, valid, given = inputs(row, T)
    position = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    extra = {}
    if given:
        context, seen = map(np.asarray, given)
        key = "cross_attention" if name == "mllama" else "encoder"
        extra = {"cross_attention_states" if name == "mllama" else "encoder_hidden_states": torch.tensor(context)}
        if name == "mllama":  # theirs is added to the logits
            hidden = np.where(seen, 0, -1e9)[:, None, None].repeat(T, axis=2)
            extra["cross_attention_mask"] = torch.tensor(hidden, dtype=torch.float32)
        else:
            extra[f"{key}_attention_mask"] = torch.tensor(seen)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(np.asarray(tokens)).long(),
            attention_mask=torch.tensor(np.asarray(valid)).long(),
            position_ids=torch.tensor(position).long(),
            **extra,
        )
    states, logits = jax.jit(network(row).apply)({"params": copied(row, theirs)}, tokens, valid, *given)
    ours, expected = (logits, out.logits) if hasattr(out, "logits") else (states, out.last_hidden_state)
    assert float(jnp.std(ours)) > 0.1
    np.testing.assert_allclose(np.asarray(ours)[valid], expected.numpy()[valid], atol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_scanned_is_unrolled(name):
    row = ROWS[name]
    tokens, valid, given = inputs(row, T)
    params = random_params(row)
    unrolled = jax.jit(network(row).apply)({"params": params}, tokens, valid, *given)[0]
    piled = stacked(row, params)
    assert jax.tree.map(jnp.shape, piled) == jax.tree.map(jnp.shape, shapes(row, scan=True))
    scanned = jax.jit(network(row, scan=True).apply)({"params": piled}, tokens, valid, *given)[0]
    np.testing.assert_allclose(scanned, unrolled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.causal])
def test_cached_is_uncached(name):
    """A prompt with padding on either side in one go, then token by token, are the same tokens side by side; some of the tokens
    by parameters that are laid out for decoding."""
    row = ROWS[name]
    scanned = network(row, scan=True)
    tokens, _, given = inputs(row, T)
    fed = jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]], bool)
    variables = {"params": stacked(row, random_params(row))}
    lengths = fed.sum(1) + T - PROMPT
    together = [
        jnp.concatenate([t[:PROMPT][f], t[PROMPT:], jnp.zeros(T, jnp.int32)])[:T]
        for t, f in zip(tokens, fed, strict=True)
    ]
    there = jnp.arange(T) < lengths[:, None]
    expected = jax.jit(scanned.apply)(variables, jnp.stack(together), there, *given)[1]

    step = jax.jit(lambda v, *args: scanned.apply(v, *args, method="step"))
    params = variables["params"]
    laid_out = {"params": {**params, "stack": decoding_layers(params["stack"], row.size.depth, jnp.float32)}}
    slots = empty_slots(3, T)
    layers = empty_layers(3, row.size.depth, T, row.size, jnp.float32)
    look = (scanned.apply(variables, given[0], method="look"), given[1]) if given else ()
    new = write(slots, fed)
    (_, logits), layers = step(laid_out, tokens[:, :PROMPT], new, layers, *look)
    got = [[logits[b, t] for t in range(PROMPT) if fed[b, t]] for b in range(3)]
    for t in range(PROMPT, T):
        new = write(new.state, jnp.ones((3, 1), bool))
        (_, logits), layers = step(variables if t == PROMPT else laid_out, tokens[:, t : t + 1], new, layers, *look)
        for b in range(3):
            got[b].append(logits[b, 0])
    for b in range(3):
        np.testing.assert_allclose(jnp.stack(got[b]), expected[b, : lengths[b]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mllama", "bert_decoder"])
def test_dropout_and_stochastic_depth_act_where_there_is_randomness(name):
    row = ROWS[name]
    tokens, valid, given = inputs(row, PROMPT)
    wild = Network(row, Compute("float32"), dropout=0.5, drop_path=0.5)
    variables = {"params": stacked(row, random_params(row))}
    calm = network(row, scan=True).apply(variables, tokens, valid, *given)[0]
    np.testing.assert_array_equal(wild.apply(variables, tokens, valid, *given)[0], calm)
    draws = [wild.apply(variables, tokens, valid, *given, rngs={"dropout": jax.random.key(i)})[0] for i in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any() and (draws[0] != calm).any()


def test_a_text_alone_passes_over_layers_of_cross_attention():
    row = ROWS["mllama"]
    tokens, valid, given = inputs(row, PROMPT)
    params = random_params(row)
    alone = row._replace(cross=False, style=dataclasses.replace(row.style, cross_every=0, cross_gate=False))
    blocks = {name: p for name, p in params["stack"].items() if name.startswith("layer_")}
    expected = network(alone).apply({"params": {**params, "stack": blocks}}, tokens, valid)[0]
    np.testing.assert_array_equal(network(row).apply({"params": params}, tokens, valid)[0], expected)
    closed = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if "gate_" in path[-1].key else x, params)
    np.testing.assert_array_equal(network(row).apply({"params": closed}, tokens, valid, *given)[0], expected)


def test_a_window_by_hand():
    """Keys less than `window` tokens behind the query, wherever padding stands between them."""
    valid = jnp.asarray([[1, 1, 0, 1, 1, 1]], bool)
    new = write(empty_slots(1, 6), valid)
    places = [0, 1, None, 2, 3, 4]
    seen = new.mask.within(2).visible[0]
    for q, at in enumerate(places):
        for k, behind in enumerate(places):
            assert bool(seen[q, k]) == (at is not None and behind is not None and 0 <= at - behind < 2)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_window_is_left_to_the_dense_kernel(platform):
    for window, fused in ((0, True), (3, False)):
        kind = Kind("causal", "none", window=window)
        name = chosen(platform, jnp.bfloat16, (1, 1024, 4, 64), (1, 1024, 4, 64), kind)
        assert (name != "dense") == fused


def test_angles_are_float32_whatever_the_activations():
    """At position 30,000 an angle in bfloat16 is off by up to 64 radians."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 2, 8)), jnp.bfloat16)
    got = rotate(x, jnp.full((1, 1), 30_000), Rotary(share=0.5))
    a, b, rest = np.split(np.asarray(x, np.float64), [2, 4], axis=-1)
    angle = 30_000 * np.asarray([1.0, 0.01])
    exact = [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle), rest]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(got, np.float64), np.concatenate(exact, -1), atol=2e-2
    )  # 2^-8 of values up to 4


def test_sin_cos_positions_are_those_of_transformers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import ViTMAEConfig
    from transformers.models.roformer.modeling_roformer import RoFormerSinusoidalPositionalEmbedding
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

    line = RoFormerSinusoidalPositionalEmbedding(9, 12).create_weight()
    np.testing.assert_allclose(sin_cos(jnp.arange(9), 12), line, atol=1e-6)
    config = ViTMAEConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config.image_size, config.patch_size = 24, 8
    theirs = ViTMAEEmbeddings(config)
    theirs.initialize_weights()
    plane = theirs.position_embeddings[0, 1:].detach()
    np.testing.assert_allclose(sin_cos_grid((3, 3), 16), plane, atol=1e-6)
    wide = sin_cos_grid((2, 5), 8).reshape(2, 5, 8)
    np.testing.assert_array_equal(
        wide[1, 3], jnp.concatenate([sin_cos(jnp.asarray(3.0), 4), sin_cos(jnp.asarray(1.0), 4)])
    )
    for table in (lambda: sin_cos(jnp.arange(3), 5), lambda: sin_cos_grid((2, 2), 6)):
        with pytest.raises(ValueError, match="width"):
            table()


def test_the_vision_transformer_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.ViTConfig(**shape, image_size=16, patch_size=8, attn_implementation="eager")
    theirs = from_torch.perturbed(transformers.ViTModel(config, add_pooling_layer=False))
    state = from_torch.numpy_state(theirs)
    style = Style("gelu_exact", epsilon=1e-12, key_bias=True)
    ours = ViT(Size(32, 2, 4, 48), 8, 16, Compute("float32", scan=False), style=style)
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    target = nn.unbox(jax.eval_shape(ours.init, jax.random.key(0), image))["params"]
    params = vit_params(state, target)
    with torch.no_grad():
        expected = theirs(torch.tensor(image.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    tokens, first, _ = ours.apply({"params": params}, image, method="encode")
    np.testing.assert_allclose(tokens, expected[:, 1:], atol=1e-5)
    np.testing.assert_allclose(first, expected[:, 0], atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_network_may_keep_both_ends_at_its_top(tied):
    """So that models whose parameters lie there can take the module without a change of their paths."""

    class Model(nn.Module):
        def setup(self):
            self.ends = TokenEmbedding(7, 4, jnp.float32, tied, bias=True)
            nn.share_scope(self, self.ends)

        def __call__(self, tokens):
            return self.ends.logits(self.ends(tokens))

    tokens = jnp.asarray([[1, 6]])
    params = nn.unbox(Model().init(jax.random.key(0), tokens))["params"]
    assert params.keys() == {"embedding", "softmax_bias"} | (set() if tied else {"softmax"})
    params["softmax_bias"] = jnp.arange(7.0)
    expected = params["embedding"][tokens] @ params["embedding" if tied else "softmax"].T + jnp.arange(7.0)
    np.testing.assert_allclose(Model().apply({"params": params}, tokens), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Size(32, 2, 3, 48), "width 32 is not a multiple of heads 3; .* set head_width"),
        (lambda: Size(32, 2, 4, 48, kv_heads=3), "kv_heads 3 does not divide heads 4"),
        (lambda: Size(32, 2, 4, 48, head_width=-1), "head_width -1"),
        (lambda: Style(norm="batch"), "norm 'batch' is not layer or rms"),
        (lambda: Style(block="both"), "block 'both' is not pre, post or parallel"),
        (lambda: Style(qk_norm="all"), "qk_norm 'all' is not none, self, cross or both"),
        (lambda: Style(window=-1), "window -1 is negative"),
        (lambda: Style(cross_gate=True), "cross_gate=True .* set cross_every"),
        (lambda: Rotary(pairing="thirds"), "pairing 'thirds' is not half or interleaved"),
        (lambda: Rotary(share=1.5), "share 1.5 is not in"),
        (lambda: Rotary(base=0), "base 0 is not above 1"),
        (lambda: Rotary(share=0.3).width(10), "share 0.3 of a head width of 10 is 3 components"),
        (lambda: shapes(ROWS["gptj"]._replace(cross=True)), "block 'parallel' .* set cross_every"),
        (lambda: shapes(ROWS["mllama"]._replace(size=Size(32, 3, 4, 48))), "cross_every 2 does not divide depth 3"),
        (
            lambda: _stack(ROWS["mistral"], Shared(None, position=jnp.zeros((1, 2), int))),
            "window 3 .* there is no mask",
        ),
        (lambda: _stack(ROWS["qwen2"], Shared(None)), "there are none; give positions"),
        (lambda: _stack(ROWS["bert_decoder"], Shared(None)), "give Shared.context"),
    ],
)
def test_what_cannot_be_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _stack(row: Row, shared: Shared):
    stack = Stack(row.size, Compute("float32", scan=False), row.cross, style=row.style)
    return jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((1, 2, row.size.width)), shared)

"""Optimizers by letters: the matrices that names once told, scanned layers as unrolled ones, factored second moments."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from simvlm_jax.core.build import load_config
from simvlm_jax.core.letters import axes_of, decays
from simvlm_jax.core.trees import leaf_names
from simvlm_jax.core.types import TrainState, Vocabulary
from simvlm_jax.parallel.mesh import letters_of
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.load import build_model
from simvlm_jax.train.adafactor import factored, scale_by_factored_moments
from simvlm_jax.train.optimizer import OPTIMIZERS, Optimizer
from tests.conftest import ROOT
from tests.test_golden import read

NO_DECAY = r"(^|/)(scale|bias|\w*_bias)$|position|relative|logit_scale|temperature"
MATRICES = (  # (name, axes in, axes out), counted from the end
    (r"(^|/)(query|key|value)$", (-3,), (-2, -1)),
    (r"attention(_\d)?/out$", (-3, -2), (-1,)),
    (r"(conv|root)\w*/kernel$", (-4, -3, -2), (-1,)),
    (r"(^|/)(up|gate|down|merge|kernel)$", (-2,), (-1,)),
)
"""What the optimizer once went by: names. Letters must say the same of every parameter that there is."""


def golden(path):
    """(name, letters) of every parameter of a config and its variants."""
    for line in {line for lines in read(path.read_text()).values() for line in lines}:
        found = re.fullmatch(r"(\S+) \[[\d, ]*\]((?: [A-Z-])*) ?", line)
        assert found, line
        yield found[1], tuple(None if c == "-" else c for c in found[2].split())


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "golden").glob("*.txt")), ids=lambda p: p.stem)
def test_letters_say_what_names_said(path):
    """One exception: a head of answers is no matrix to Muon, as the head of fine-tuning never was (nor any softmax)."""
    rows = list(golden(path))
    assert len(rows) > 20
    for name, letters in rows:
        old = next(((i, o) for p, i, o in MATRICES if re.search(p, name)), None)
        axes = axes_of(letters)
        new = None
        if axes.kind == "matrix":
            new = tuple(tuple(i - len(letters) for i in side) for side in (axes.inputs, axes.outputs))
        assert new == (None if name in ("probe_head/kernel", "head/kernel") else old), (name, letters)
        assert decays(letters) == (not re.search(NO_DECAY, name)), (name, letters)


def test_the_meaning_of_letters():
    assert axes_of(("L", "H", "K", "D")) == ("matrix", (0,), (1, 2), (3,))
    assert axes_of(("Y", "X", "I", "C")) == ("matrix", (), (0, 1, 2), (3,))
    assert axes_of(("D", "D")) == ("matrix", (), (0,), (1,))
    assert axes_of((None, None)) == ("matrix", (), (0,), (1,))
    assert axes_of(("V", "D")).kind == axes_of(("D", "A")).kind == axes_of(("Q", "D")).kind == "table"
    assert axes_of((None, "D")).kind == "positions" and not decays((None, "D"))
    for letters in ((), ("D",), ("L", "H", "K"), ("H", None, None), (None, None, None)):
        assert axes_of(letters).kind == "other"
    assert decays((None, None, None)) and not decays(("L", None)) and not decays(("H", None, None))


LETTERS = {"query": "DHK", "query_bias": "HK", "up": "DF", "scale": "D", "conv/kernel": "YXIC", "table": "QD"}
SHAPES = {
    "query": (128, 2, 64),
    "query_bias": (2, 64),
    "up": (128, 160),
    "scale": (128,),
    "conv/kernel": (3, 3, 16, 128),
    "table": (4, 8),
}
LAYERS = 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scanned_layers_learn_as_unrolled_ones(name):
    """With everything that an optimizer may do; a spike in one layer's gradient is that layer's alone."""
    rng = np.random.default_rng(0)

    def stack(n):
        return {k: jnp.asarray(rng.normal(size=(n, *shape)), jnp.float64) for k, shape in SHAPES.items()}

    def unrolled(tree):
        return {f"layer_{i}": {k: v[i] for k, v in tree.items()} for i in range(LAYERS)}

    optimizer = Optimizer(
        name=name,
        learning_rate=0.1,
        warmup=0.0,
        weight_decay=0.1,
        decay=(("up$", 0.5),),
        multipliers=(("query$", 0.3),),
        bounds=(("scale$", (-1.0, 1.0)),),
        ema=0.9,
    )
    book = {f"layers/{k}": f"L{v}" for k, v in LETTERS.items()}
    book |= {f"layer_{i}/{k}": v for i in range(LAYERS) for k, v in LETTERS.items()}
    with jax.enable_x64(True):
        params = stack(LAYERS)
        trees = {"layers": params}, unrolled(params)
        steps = [optimizer.make(tree, 10, book) for tree in trees]
        states = [tx.init(tree) for tx, tree in zip(steps, trees, strict=True)]
        for t in range(4):
            gradient = stack(LAYERS)
            spiked = {k: v.at[1].mul(100.0 if t == 2 else 1.0) for k, v in gradient.items()}
            moved = []
            for tx, tree, state, g in zip(steps, trees, states, ({"layers": spiked}, unrolled(spiked)), strict=True):
                updates, state = jax.jit(tx.update)(g, state, tree)
                moved.append((optax.apply_updates(tree, updates), state))
            trees, states = tuple(m[0] for m in moved), [m[1] for m in moved]
            for k, v in unrolled(trees[0]["layers"]).items():
                jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), v, trees[1][k])


def test_factored_moments_are_those_of_optax_on_matrices():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = {
            k: jnp.zeros(s) for k, s in {"a": (128, 200), "b": (200, 128), "small": (100, 300), "v": (300,)}.items()
        }
        axes = jax.tree.map(lambda p: axes_of((None,) * p.ndim), params)
        decay = lambda step: 1.0 - (step + 1.0) ** -0.8  # noqa: E731
        ours, theirs = (
            scale_by_factored_moments(axes, decay),
            optax.scale_by_factored_rms(decay_rate_fn=lambda t, _: decay(t)),
        )
        states = [tx.init(params) for tx in (ours, theirs)]
        for _ in range(3):
            gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
            (a, one), (b, two) = (tx.update(gradients, s, params) for tx, s in zip((ours, theirs), states, strict=True))
            states = [one, two]
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), a, b)


def test_a_kernel_of_heads_is_factored_as_its_matrix():
    rng = np.random.default_rng(0)
    gradient = jnp.asarray(rng.normal(size=(2, 128, 4, 32)), jnp.float32)
    axes = axes_of("LDHK")
    tx = scale_by_factored_moments({"w": axes}, lambda step: 0.5)
    update, state = tx.update({"w": gradient}, tx.init({"w": gradient}), None)
    assert state.over_outputs["w"].shape == (2, 128) and state.over_inputs["w"].shape == (2, 4, 32)
    for layer in range(2):
        flat = scale_by_factored_moments({"w": axes_of("DF")}, lambda step: 0.5)
        matrix = {"w": gradient[layer].reshape(128, 128)}
        alone, _ = flat.update(matrix, flat.init(matrix), None)
        np.testing.assert_allclose(update["w"][layer].reshape(128, 128), alone["w"], rtol=1e-6)


@pytest.mark.parametrize(("name", "least"), [("coca:base", 0.998), ("coca:2b", 0.999), ("prefixlm:huge", 0.998)])
def test_nearly_all_second_moments_of_large_models_are_factored(name, least):
    """By the two largest axes alone it was 64 to 71 % of the parameters."""
    file, _, variant = name.partition(":")
    config = load_config(f"{ROOT / 'configs' / file}.py:{variant}")

    class Tokenizer:
        vocabulary = Vocabulary(config.text.vocabulary, config.text.length)

    side, T = config.data.image_size, config.text.length
    batch = {"image": np.zeros((1, 1, side, side, 3), np.uint8), "text": np.zeros((1, T), np.int32)}
    batch |= {"text_mask": np.ones((1, T), bool), "prefix_length": np.zeros(1, np.int32)}
    model = build_model(config.model, config.data.image_size, Tokenizer())  # pyright: ignore[reportArgumentType]
    boxed, _ = jax.eval_shape(model.init, jax.random.key(0), {"pairs": batch})
    book, params = letters_of(boxed), nn.unbox(boxed)
    leaves = dict(zip(leaf_names(params), jax.tree.leaves(params), strict=True))
    whole = {k: p.size for k, p in leaves.items() if not factored(axes_of(book[k]), p.shape)}
    total = sum(p.size for p in leaves.values())
    assert 1 - sum(whole.values()) / total > least, sorted(whole.items(), key=lambda kv: -kv[1])[:5]
    state = jax.eval_shape(Optimizer(name="adafactor").make(params, 10, book).init, params)
    moments = sum(a.size for a in jax.tree.leaves(state[1]))
    assert moments < (1 - least) * total * 3


def test_states_of_adamw_and_muon_are_laid_out_as_ever():
    """Their leaves have the paths under which runs of earlier versions saved them."""
    params = {"up": jnp.ones((4, 6)), "bias": jnp.ones(6)}
    found = {}
    for name in ("adamw", "muon"):
        state = Optimizer(name=name, ema=0.9).make(params, 10, {"up": "DF", "bias": "F"}).init(params)
        found[name] = leaf_names(state)
    average = ["average/bias", "average/up", "count"]
    adam = ["1/count", "1/mu/bias", "1/mu/up", "1/nu/bias", "1/nu/up"]
    assert found["adamw"] == [*adam, "3/count", *(f"4/{k}" for k in average)]
    inner = (
        ("adam/inner_state/0/{}", ("count", "mu/bias", "nu/bias")),
        ("muon/inner_state/0/{}", ("count", "mu/up", "ns_coeffs")),
    )
    muon = [f"1/inner_states/{where.format(k)}" for where, names in inner for k in names]
    assert found["muon"] == [*muon, "4/count", *(f"5/{k}" for k in average)]


def test_an_adafactor_state_of_earlier_versions_is_named(tmp_path):
    """And one of the same layout is restored."""
    params = {"up": jnp.ones((128, 160)), "bias": jnp.ones(6)}
    old = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_factored_rms(), optax.ema(0.9))
    new = Optimizer(name="adafactor").make(params, 10, {"up": "DF", "bias": "F"})
    states = [TrainState(jnp.zeros((), int), params, tx.init(params), {}, jax.random.key(0)) for tx in (old, new)]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), states[1])
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for step, state in enumerate(states, 1):
        checkpoints.save(step, state, (params, {}))
    checkpoints.wait()
    with pytest.raises(
        ValueError, match=r"Adafactor as it was before.*init_from(.|\n)*over_inputs/bias: nothing in the ch"
    ):
        checkpoints.restore(1, abstract)
    assert jax.tree.structure(checkpoints.restore(2, abstract)) == jax.tree.structure(states[1])
    checkpoints.close()

"""Laws that every model obeys, chosen by what it is and can do, over the models of all configs (see tests/laws/cases.py)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from simvlm_jax.core.trees import match
from simvlm_jax.nn.sizes import Compute
from simvlm_jax.nn.vit import resize_positions
from tests.laws import language
from tests.laws.cases import EXACT, KINDS, SMALLEST, V, batch_of, model_of, parts_read, trainable_of
from tests.laws.steps import one_step, same, stacked, started

pytestmark = pytest.mark.usefixtures("float64")


def over(variants, *needs):
    """Parametrises a law over those variants whose models can do what it needs."""
    able = [v for v in variants if not needs or set(needs) <= set(model_of(v).capabilities())]
    assert able, f"no model has {', '.join(needs)}"
    return pytest.mark.parametrize("variant", able)


def compute_of(variant):
    """Layers one by one in the smallest models; stacked in the other kinds, which differ from them elsewhere."""
    return EXACT if variant in SMALLEST else Compute("float64")


@functools.cache
def state_of(variant):
    return started(model_of(variant, compute_of(variant)), batch_of(variant))


def step(variant, state=None, batch=None, **how):
    model, trainable = model_of(variant, compute_of(variant)), trainable_of(variant)
    return one_step(model, state or state_of(variant), batch or batch_of(variant), trainable=trainable, **how)


@functools.cache
def whole(variant):
    """A step on one device, on the whole batch at once."""
    return step(variant)


@over(KINDS)
def test_every_parameter_learns(variant):
    """A finite loss whose gradient reaches every parameter that is not frozen, but for biases of keys that no softmax sees."""
    gradients, measured = whole(variant)
    assert np.isfinite(measured["loss"])
    params, extra = state_of(variant)
    learned, unseen = match(params, trainable_of(variant), True), set()
    for (path, g), trains in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(learned), strict=True):
        name, moves = jax.tree_util.keystr(path), np.abs(g).max() > 1e-12
        if trains and not moves and name.endswith("['key_bias']"):
            unseen.add(name)
            continue
        assert moves == trains, name

    def move(path, x):
        return x + np.random.default_rng(0).normal(size=x.shape) * (jax.tree_util.keystr(path) in unseen)

    if unseen:
        state = jax.tree_util.tree_map_with_path(move, params), extra
        moved = step(variant, state)
        assert abs(moved.measured["loss"] - measured["loss"]) <= 1e-12 * abs(measured["loss"]), unseen


@over([*SMALLEST, *(v for v in KINDS if v not in SMALLEST and len(parts_read(v)) > 1)])
def test_accumulated_is_the_whole_batch(variant):
    """In a loop, of which each turn has one row of the smallest part."""
    smallest = min(len(rows["weight"]) for rows in batch_of(variant).values())
    same(step(variant, accumulate=smallest, looped=True), whole(variant))


@over(SMALLEST)
@pytest.mark.parametrize(
    ("mesh", "accumulate"),
    [
        pytest.param((2, 2, 2), 2, id="2x2x2, accumulated"),
        *(
            pytest.param(mesh, 1, id="x".join(map(str, mesh)), marks=pytest.mark.slow)
            for mesh in ((2, 1, 1), (4, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 4, 2))
        ),
    ],
)
def test_any_mesh_is_one_device(variant, mesh, accumulate):
    same(step(variant, mesh=mesh, accumulate=accumulate), whole(variant))


@over(SMALLEST)
def test_rows_of_weight_zero_are_nothing(variant):
    """Padding rows may hold anything: loss and gradients are those of the others."""

    def batch(seed):
        rng, parts = np.random.default_rng(seed), {}
        for part, rows in batch_of(variant).items():
            weight, last = rows["weight"].copy(), len(rows["weight"]) - 4
            weight[last:] = 0
            order = np.r_[:last, last + rng.permutation(4)] if seed else np.r_[: len(weight)]
            parts[part] = {**{k: x[order] for k, x in rows.items()}, "weight": weight}
        return parts

    found = [step(variant, batch=batch(seed)) for seed in (0, 1)]
    same(*found)
    assert abs(found[0].measured["loss"] - whole(variant).measured["loss"]) > 1e-6


@over([v for v in SMALLEST if hasattr(model_of(v), "compute")])
def test_scanned_is_unrolled(variant):
    """The same from stacked layers, whose activations are made again."""
    scanned, (params, extra) = model_of(variant, Compute("float64", "full", True)), state_of(variant)
    shapes, _ = jax.eval_shape(scanned.init, jax.random.key(0), batch_of(variant))
    assert jax.tree.map(jnp.shape, stacked(params)) == jax.tree.map(jnp.shape, nn.unbox(shapes))
    state = stacked(params), stacked(extra)
    found = one_step(scanned, state, batch_of(variant), trainable=trainable_of(variant))
    reference = whole(variant)
    same(found, reference._replace(gradients=stacked(reference.gradients)))


@over([v for v in SMALLEST if hasattr(model_of(v), "image_size")])
def test_positions_follow_a_larger_image_and_a_longer_text(variant):
    """Grids are resized, text rows that were learned stay, fresh ones come after them, and nothing else changes."""
    params, _ = state_of(variant)

    def shapes(**how):
        made, _ = jax.eval_shape(model_of(variant, **how).init, jax.random.key(0), batch(**how))
        return jax.tree.map(lambda x: jnp.full(x.shape, 7.0), nn.unbox(made))

    def batch(enlarge=1, length=V.length):
        rows = batch_of(variant)["pairs"]
        image = {"image": np.repeat(np.repeat(rows["image"], enlarge, 2), enlarge, 3)} if "image" in rows else {}
        text = {k: np.zeros((len(rows[k]), length), rows[k].dtype) for k in ("text", "text_mask") if k in rows}
        return {"pairs": {**rows, **image, **text}}

    def tables(target):
        names = flatten_dict(target, sep="/")
        return {k for k, x in flatten_dict(params, sep="/").items() if x.shape != names[k].shape}

    of_images, of_texts = tables(shapes(enlarge=2)), tables(shapes(length=V.length + 4))
    assert of_images and of_texts and not of_images & of_texts
    target = shapes(enlarge=2, length=V.length + 4)
    fitted = model_of(variant, enlarge=2, length=V.length + 4).adapt(params, target)
    assert jax.tree.map(jnp.shape, fitted) == jax.tree.map(jnp.shape, target)
    found, learned = flatten_dict(fitted, sep="/"), flatten_dict(params, sep="/")
    for name, x in learned.items():
        if name in of_texts:
            np.testing.assert_array_equal(found[name][: len(x)], x)
            assert len(found[name]) > len(x) and (np.asarray(found[name][len(x) :]) == 7).all()
        elif name in of_images and x.ndim == 2:  # twice as wide, so three times as many tokens more
            np.testing.assert_array_equal(found[name], resize_positions(x, (len(found[name]) - len(x)) // 3 * 4))
        elif name not in of_images:
            np.testing.assert_array_equal(found[name], x)
    again = model_of(variant).adapt(params, jax.tree.map(lambda x: jnp.full(x.shape, 7.0), params))
    jax.tree.map(np.testing.assert_array_equal, again, params)


@over(SMALLEST, "embed_image", "embed_text", "similarity")
def test_a_vector_is_its_own_rows(variant):
    """An image's and a text's vector are their own, whatever stands in the other rows or after the EOS."""
    able, (params, extra), rows = model_of(variant).capabilities(), state_of(variant), batch_of(variant)["pairs"]
    embed = {k: jax.jit(able[f"embed_{k}"]) for k in ("image", "text")}
    image, text = (np.asarray(embed[k](params, extra, rows)) for k in ("image", "text"))
    noise = np.where(rows["text_mask"], rows["text"], np.random.default_rng(0).integers(4, V.size, rows["text"].shape))
    alone = {k: x[1:2] for k, x in {**rows, "text": noise.astype(np.int32)}.items()}
    np.testing.assert_allclose(embed["image"](params, extra, alone), image[1:2], atol=1e-12)
    np.testing.assert_allclose(embed["text"](params, extra, alone), text[1:2], atol=1e-12)
    alike = able["similarity"](params, extra, image, text)
    assert alike.shape == (len(image), len(text)) and np.abs(alike).max() <= 1 + 1e-9


WRITING = [
    v for v in SMALLEST if "label" not in batch_of(v)["pairs"]
]  # what learns to classify writes as it did before


@over(WRITING, "prefill", "extend", "score_text")
def test_cached_decoding_is_uncached(variant):
    rows = {k: x[:4] for k, x in batch_of(variant)["pairs"].items()}
    language.cached_is_uncached(model_of(variant), *state_of(variant), rows, 1e-12)


@over(WRITING, "prefill", "extend")
@pytest.mark.parametrize(
    ("how", "pieces"),
    [pytest.param(language.SAMPLED, 0, id="sampled, no prompt"), pytest.param(language.BEAMS, 2, id="beams")],
)
def test_a_text_is_written_for_its_own_row(variant, how, pieces):
    rows = batch_of(variant)["pairs"]
    language.a_text_is_written_for_its_own_row(model_of(variant), *state_of(variant), rows, how, pieces)


@over(WRITING, "prefill", "extend")
def test_decoding_on_a_mesh_is_that_of_one_device(variant):
    language.decoding_on_a_mesh_is_that_of_one_device(model_of(variant), *state_of(variant), batch_of(variant)["pairs"])

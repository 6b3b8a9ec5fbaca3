"""Laws that every model of two towers obeys; its own test file calls them with its model."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from simvlm_jax.core.sharding import with_sharding
from simvlm_jax.core.types import TrainState, Vocabulary
from simvlm_jax.nn.sizes import Compute
from simvlm_jax.nn.vit import resize_positions
from simvlm_jax.parallel.mesh import letters_of, make_mesh, place_batch, placed, sharding_rules
from simvlm_jax.train.step import make_train_step

V = Vocabulary(size=50, length=12)


def make(model, batch, dtype="float64"):
    """(model, params) in a dtype, every parameter moved off its initial value, so that zeros hide nothing."""
    model = dataclasses.replace(model, compute=Compute(dtype, scan=False))
    params, _ = jax.jit(model.init)(jax.random.key(0), {"pairs": batch})
    leaves, shape = jax.tree.flatten(nn.unbox(params))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.03 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.map(lambda x: x.astype(dtype), jax.tree.unflatten(shape, moved))


def one_step(model, params, batch, accumulate=1, devices=1, tensor=1):
    """(gradients, measurements) of a step."""
    mesh = make_mesh(jax.devices()[:devices], fsdp=2 if devices > 4 else 1, tensor=tensor)
    tx = optax.sgd(1.0)
    batch = {"pairs": batch}
    boxed, _ = jax.eval_shape(model.init, jax.random.key(0), batch)
    step = make_train_step(model, tx, jax.tree.map(lambda _: True, params), accumulate)
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), {}, jax.random.key(1))
    laid = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), params, placed(mesh, letters_of(boxed), params))
    state = state._replace(params=laid)
    new, measured = jax.jit(with_sharding(sharding_rules(mesh), step))(state, place_batch(mesh, batch))
    gradients = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, new.params)
    return gradients, jax.tree.map(np.asarray, measured)


def same(found, reference, tolerance=1e-10):
    """Equal within a tolerance of each leaf, or of a hundredth of all."""
    gradients, measured = found
    theirs, also = reference
    norm = functools.partial(np.linalg.norm, axis=None)
    every = np.sqrt(sum(norm(x) ** 2 for x in jax.tree.leaves(theirs)))
    assert abs(measured["loss"] - also["loss"]) <= tolerance * abs(also["loss"])
    pairs = zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(theirs), strict=True)
    for (path, a), b in pairs:
        assert norm(a - b) <= tolerance * max(norm(b), 1e-2 * every), jax.tree_util.keystr(path)


def all_hold(make_model, batch, still=()):
    """Every law but that of meshes. make_model: of a vocabulary and an image size. still: parameters that need not learn."""
    model = make_model(V, 32)
    every_parameter_learns(model, batch, still)
    accumulated_is_whole(model, batch)
    neighbours_and_padding_do_not_matter(model, batch)
    adapts_to_another_size(make_model, batch)
    scanned_is_unrolled(model, batch)


def every_parameter_learns(model, batch, still=()):
    """A finite loss whose gradient reaches every parameter but those named."""
    model, params = make(model, batch)
    gradients, measured = one_step(model, params, batch)
    assert np.isfinite(measured["loss"])
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert (np.abs(g).max() > 1e-12) != any(s in name for s in still), name


def accumulated_is_whole(model, batch, parts=8):
    model, params = make(model, batch)
    same(one_step(model, params, batch, parts), one_step(model, params, batch))


MESHES = [  # devices, of which `tensor` share a layer; micro-batches
    pytest.param(8, 2, 2, id="2x2x2, accumulated"),
    *(pytest.param(n, 1, 1, id=f"{n} devices", marks=pytest.mark.slow) for n in (2, 4, 8)),
    pytest.param(8, 2, 1, id="2x2x2", marks=pytest.mark.slow),
]


def any_mesh_is_one_device(model, batch, devices, tensor, accumulate):
    model, params = make(model, batch)
    same(one_step(model, params, batch, accumulate, devices, tensor), one_step(model, params, batch))


def neighbours_and_padding_do_not_matter(model, batch):
    """An image's and a text's vector are their own, whatever stands in the other rows or after the EOS."""
    model, params = make(model, batch)
    able = model.capabilities()
    image, text = (np.asarray(able[k](params, {}, batch)) for k in ("embed_image", "embed_text"))
    noise = np.where(batch["text_mask"], batch["text"], np.random.default_rng(0).integers(4, 50, batch["text"].shape))
    alone = {
        "image": batch["image"][1:2],
        "text": noise[1:2].astype(np.int32),
        "text_mask": batch["text_mask"][1:2],
    }
    np.testing.assert_allclose(able["embed_image"](params, {}, alone), image[1:2], atol=1e-12)
    np.testing.assert_allclose(able["embed_text"](params, {}, alone), text[1:2], atol=1e-12)
    alike = able["similarity"](params, {}, image, text)
    assert alike.shape == (len(image), len(text)) and np.abs(alike).max() <= 1 + 1e-9


def adapts_to_another_size(make_model, batch):
    """Positions follow a larger image and a longer text: a grid is resized, learned text rows stay, fresh ones come after."""
    small, params = make(make_model(V, 32), batch)
    larger = dataclasses.replace(make_model(dataclasses.replace(V, length=16), 64), compute=small.compute)
    target, _ = jax.eval_shape(larger.init, jax.random.key(0), {"pairs": batch})
    target = jax.tree.map(lambda x: jnp.full(x.shape, 7.0), nn.unbox(target))
    fitted = larger.adapt(params, target)
    assert jax.tree.map(jnp.shape, fitted) == jax.tree.map(jnp.shape, target)
    found, learned = flatten_dict(fitted, sep="/"), flatten_dict(params, sep="/")
    tables = {k for k in learned if k.endswith("position")}
    assert len(tables) == 2
    for name in tables:
        if "text" in name:
            kept = len(learned[name])
            np.testing.assert_array_equal(found[name][:kept], learned[name])
            assert len(found[name]) > kept and (np.asarray(found[name][kept:]) == 7).all()
        else:
            resized = resize_positions(learned[name], larger.image_tokens)
            np.testing.assert_array_equal(found[name], resized)
    for name in set(learned) - tables:
        np.testing.assert_array_equal(found[name], learned[name])
    again = small.adapt(params, jax.tree.map(lambda x: jnp.full(x.shape, 7.0), params))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def scanned_is_unrolled(model, batch):
    """The same loss from stacked layers, whose activations are made again."""
    unrolled, params = make(model, batch)
    scanned = dataclasses.replace(model, compute=Compute("float64", "full", True))
    stacked = _stacked(params)
    shapes, _ = jax.eval_shape(scanned.init, jax.random.key(0), {"pairs": batch})
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, nn.unbox(shapes))
    losses = [float(one_step(m, p, batch)[1]["loss"]) for m, p in ((unrolled, params), (scanned, stacked))]
    assert abs(losses[0] - losses[1]) <= 1e-10 * abs(losses[0])


def _stacked(tree):
    """Parameters of unrolled layers as those of scanned ones."""
    if not isinstance(tree, dict):
        return tree
    layers = [tree[k] for k in sorted((k for k in tree if k.startswith("layer_")), key=lambda k: int(k[6:]))]
    rest = {k: _stacked(v) for k, v in tree.items() if not k.startswith("layer_")}
    return {**rest, "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)} if layers else rest


def count(model) -> int:
    """Parameters, of shapes alone."""
    shapes, _ = jax.eval_shape(lambda key: model.init(key, {}), jax.random.key(0))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))

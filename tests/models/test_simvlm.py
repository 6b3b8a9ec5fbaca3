"""SimVLM's laws: cached = uncached, neighbours and padding do not matter, 1 device = 8, and the paper's sizes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.sharding import with_sharding
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.decode.sampling import Sampler
from simvlm_jax.families.text_layout import prefix_layout, span_layout
from simvlm_jax.models import simvlm
from simvlm_jax.models.simvlm import SimVLM
from simvlm_jax.nn.sizes import Compute
from simvlm_jax.parallel.mesh import letters_of, make_mesh, place_batch, placed, sharding_rules
from simvlm_jax.train.step import accumulated, split

V = Vocabulary(size=50, length=12)
VARIANTS = {
    "default": {},
    "decoder_only": {"decoder_only": True},
    "lm": {"objective": "lm"},
    "lm_decoder_only": {"objective": "lm", "decoder_only": True},
    "span": {"objective": "span_corruption"},
    "span_decoder_only": {"objective": "span_corruption", "decoder_only": True},
    "patches": {"stem_stages": 0},
    "stem2": {"stem_stages": 2},
    "stem4": {"stem_stages": 4},
}


def make(text_batch, rows=4, **kwargs):
    model = SimVLM(V, image_size=32, **kwargs)
    batch = text_batch(rows)
    params, _ = jax.jit(model.init)(jax.random.key(0), {"pairs": batch})
    params = jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, model.compute.activation_dtype)), nn.unbox(params)
    )
    return model, params, batch


def loss_of(model, params, batch, **parts):
    _, terms, _ = model.per_example(params, {}, {"pairs": batch, **parts}, rngs=jax.random.key(1), step=0, train=False)
    return terms["lm"].sum / terms["lm"].count


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_ablation_has_a_finite_loss_and_reaches_every_parameter(text_batch, variant):
    model, params, batch = make(text_batch, **VARIANTS[variant])
    documents = text_batch(2, image=0, seed=5)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: loss_of(model, p, batch, documents=documents)))(params)
    assert np.isfinite(loss)
    still = [
        jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_flatten_with_path(grads)[0] if not np.abs(g).max() > 0
    ]
    assert not still, still


@pytest.mark.parametrize("variant", ["default", "decoder_only", "lm", "lm_decoder_only"])
def test_cached_decoding_is_uncached(text_batch, variant):
    model, params, batch = make(text_batch, **VARIANTS[variant])
    sizes, new = np.asarray([0, 1, 3, 4]), np.random.default_rng(0).integers(4, 50, (4, 6)).astype(np.int32)
    prompt, given = batch["text"][:, :4], np.arange(4) < sizes[:, None]
    logits, cache = model.prefill(params, {}, {"image": batch["image"], "text": prompt, "text_mask": given}, 8)
    cached = [logits]
    for i in range(5):
        logits, cache = model.extend(params, {}, cache, new[:, i : i + 1])
        cached.append(logits[:, 0])
    whole, mask = np.zeros((4, 12), np.int32), np.zeros((4, 12), bool)
    for r, n in enumerate(sizes):
        whole[r, :n], whole[r, n : n + 6], mask[r, : n + 6] = prompt[r, :n], new[r], True
    prefix = sizes if model.objective == "prefix_lm" else np.zeros(4, np.int32)
    layout = prefix_layout(jnp.asarray(whole), jnp.asarray(mask), jnp.asarray(prefix), V.bos)
    uncached = model.network.apply({"params": params}, {"image": batch["image"]}, layout, method="teacher_forced")
    for r, n in enumerate(sizes):
        ours = np.stack([c[r] for c in cached])
        np.testing.assert_allclose(ours, uncached[r, n : n + 6], rtol=0, atol=2e-5)


def test_extending_by_many_is_extending_one_by_one(text_batch):
    model, params, batch = make(text_batch)
    inputs = {"image": batch["image"], "text": batch["text"][:, :2], "text_mask": np.ones((4, 2), bool)}
    new = batch["text"][:, 2:7]
    _, cache = model.prefill(params, {}, inputs, 8)
    many, _ = model.extend(params, {}, cache, new)
    ones = []
    for i in range(5):
        logits, cache = model.extend(params, {}, cache, new[:, i : i + 1])
        ones.append(logits)
    np.testing.assert_allclose(many, jnp.concatenate(ones, 1), atol=2e-5)


@pytest.mark.parametrize(
    ("variant", "how"),
    [
        ("default", dict(sampler=Sampler(0.7, top_k=20))),
        ("decoder_only", dict(sampler=Sampler(0.7, top_k=20))),
        ("span", dict(sampler=Sampler(0.7, top_k=20))),
        ("default", dict(beams=3)),
    ],
)
def test_a_caption_depends_on_its_own_image_and_prompt_alone(text_batch, variant, how):
    model, params, batch = make(text_batch, rows=6, **VARIANTS[variant])
    params = jax.tree.map(lambda x: x * 1.5, params)  # sharper logits, so that captions differ
    kwargs = dict(vocabulary=V, decoding=Decoding(max_length=6, **how), seed=1)

    def run(rows, width):
        prompt = {"text": batch["text"][rows, :width], "text_mask": (np.arange(width) < 2)[None].repeat(len(rows), 0)}
        inputs = {"image": batch["image"][rows], "id": np.asarray(rows), **prompt}
        made = jax.jit(lambda p, b: generate(model.capabilities(), p, {}, b, **kwargs))(params, inputs)
        return np.asarray(made.tokens[:, 0]), np.asarray(made.score[:, 0])

    tokens, total = run([0, 1, 2, 3, 4, 5], 2)
    alone, alone_total = run([3], 2)
    padded, _ = run([5, 3], 5)  # three slots of padding in the prompt, another neighbour
    assert tokens[3].tolist() == alone[0].tolist() == padded[1].tolist()
    np.testing.assert_allclose(total[3], alone_total[0], atol=1e-4)


def test_prefix_length_zero_is_a_causal_lm(text_batch):
    """With nothing in the prefix, a logit depends on earlier pieces only; with a prefix, on all of it."""
    model, params, batch = make(text_batch)
    changed = batch["text"].copy()
    changed[:, 5] = (changed[:, 5] + 7) % 40 + 4
    mask = np.ones((4, 12), bool)

    def logits(text, prefix):
        layout = prefix_layout(jnp.asarray(text), jnp.asarray(mask), jnp.full((4,), prefix), V.bos)
        return model.network.apply({"params": params}, {"image": batch["image"]}, layout, method="teacher_forced")

    a, b = logits(batch["text"], 0), logits(changed, 0)
    np.testing.assert_allclose(a[:, :6], b[:, :6], atol=1e-6)
    assert np.abs(a[:, 6:] - b[:, 6:]).max() > 1e-3
    assert np.abs(logits(batch["text"], 8)[:, 8] - logits(changed, 8)[:, 8]).max() > 1e-3


def test_padding_rows_and_masked_images_are_safe(text_batch):
    model, params, batch = make(text_batch)
    batch["weight"][2:] = 0
    short = {k: v[:2] for k, v in batch.items()}
    np.testing.assert_allclose(loss_of(model, params, batch), loss_of(model, params, short), rtol=1e-6)
    nothing = {**batch, "weight": np.zeros(4, np.float32)}
    _, terms, _ = model.per_example(params, {}, {"pairs": nothing}, rngs=jax.random.key(0), step=0, train=False)
    assert terms["lm"].sum == 0 and terms["lm"].count == 0
    blind = {**batch, "image_mask": np.zeros((4, 1), bool)}
    other = {**blind, "image": 255 - batch["image"]}
    np.testing.assert_allclose(loss_of(model, params, blind), loss_of(model, params, other), rtol=1e-6)


def test_documents_never_touch_the_conv_stem(text_batch):
    model, params, _ = make(text_batch)
    documents = text_batch(4, image=0)
    grads = jax.grad(lambda p: loss_of(model, p, documents))(params)
    assert all(not g.any() for g in jax.tree.leaves(grads["stem"]))
    assert not grads["image_position"].any() and grads["text_position"].any()


def equal(a, b):
    (loss_a, grads_a), (loss_b, grads_b) = a, b
    np.testing.assert_allclose(loss_a, loss_b, rtol=1e-12)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-10), grads_a, grads_b)


def test_scan_and_remat_change_nothing(text_batch, float64):
    model, params, batch = make(text_batch, compute=Compute("float64"), stem_stages=0)  # the stem knows of neither
    towers = ("encoder", "decoder")
    unrolled = dict(params)
    for name in towers:
        layers = params[name]["layers"]
        unrolled[name] = {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], layers) for i in range(2)}

    def run(compute):
        other = dataclasses.replace(model, compute=compute)
        value = jax.jit(jax.value_and_grad(lambda p: loss_of(other, p, batch)))
        loss, grads = value(params if compute.scan else unrolled)
        for name in towers if not compute.scan else ():
            layers = [grads[name][f"layer_{i}"] for i in range(2)]
            grads[name] = {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
        return loss, grads

    expected = run(model.compute)
    for compute in (Compute(scan=False), Compute(remat="full"), Compute(scan=False, remat="dots")):
        equal(expected, run(dataclasses.replace(compute, dtype="float64")))


def test_any_mesh_is_one_device_and_eight_parts_are_the_whole(text_batch, float64):
    """Data parallel, FSDP, tensor parallel and their products; kept whole or not, rematerialised or not."""
    model, params, batch = make(text_batch, rows=16, compute=Compute("float64"))
    boxed, _ = jax.eval_shape(model.init, jax.random.key(0), {"pairs": batch})
    book = letters_of(boxed)

    def on(mesh, model):
        everything = jax.jit(
            with_sharding(sharding_rules(mesh), jax.value_and_grad(lambda p, b: loss_of(model, p, b))),
        )
        shardings = jax.tree.map(lambda a: a.sharding, placed(mesh, book, params))
        loss, grads = everything(jax.device_put(params, shardings), place_batch(mesh, batch))
        return jax.device_get((loss, grads))

    values = [on(make_mesh(jax.devices()[:1]), model)]
    rematerialised = dataclasses.replace(model, compute=Compute("float64", remat="full"))
    for sizes, same in (((8, 1, 1), model), ((2, 4, 1), model), ((2, 2, 2), model), ((1, 4, 2), rematerialised)):
        equal(values[0], on(make_mesh(None, *sizes), same))

    def per_example(p, micro, rng):
        return model.per_example(p, {}, {"pairs": micro}, rngs=rng, step=0, train=False)

    keys = jax.random.split(jax.random.key(0), 8)
    loss, *_, grads = jax.jit(lambda p: accumulated(per_example, lambda p, f: ({}, {}), p, split(batch, 8), keys))(
        params
    )
    equal(values[0], (loss, grads))


def test_span_corruption_gives_back_every_piece(text_batch):
    batch = text_batch(64)
    layout = span_layout(batch["text"], batch["text_mask"], jnp.asarray(batch["seed"]), V)
    for r in range(64):
        real = batch["text"][r][batch["text_mask"][r]].tolist()
        left = np.asarray(layout.tokens[r])[np.asarray(layout.given[r])].tolist()
        told = np.asarray(layout.targets[r])[np.asarray(layout.predicted[r])].tolist()
        spans, current = {}, None
        for token in told[:-1]:
            if token >= V.size:
                current = spans.setdefault(token, [])
            else:
                current.append(token)
        rebuilt = [t for token in left for t in (spans[token] if token >= V.size else [token])]
        # EOS is no part of any span: it ends the targets
        assert told[-1] == V.eos and rebuilt == real[:-1] and spans, (real, left, told)


def test_another_resolution_resizes_both_tables(text_batch):
    model, params, _ = make(text_batch)
    same = model.adapt(params, params)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    larger = dataclasses.replace(model, image_size=64)
    big = text_batch(2, image=64)
    fresh = nn.unbox(jax.jit(larger.init)(jax.random.key(0), {"pairs": big})[0])
    adapted = larger.adapt(params, fresh)
    assert jax.tree.map(jnp.shape, adapted) == jax.tree.map(jnp.shape, fresh)
    np.testing.assert_allclose(adapted["image_position"].mean(0), params["image_position"].mean(0), atol=1e-6)
    table, old = (p["encoder"]["layers"]["relative"]["table"] for p in (adapted, params))
    np.testing.assert_allclose(table[..., 3, 3], old[..., 1, 1], atol=1e-6)  # offset (0, 0) stays in the centre
    assert np.isfinite(loss_of(larger, adapted, big))


def test_dropout_and_stochastic_depth_act_only_while_training(text_batch):
    model, params, batch = make(text_batch, dropout=0.3, drop_path=0.3)

    def run(seed, train):
        return model.per_example(params, {}, {"pairs": batch}, rngs=jax.random.key(seed), step=0, train=train)[1][
            "lm"
        ].sum

    assert run(0, True) != run(1, True) and run(0, True) == run(0, True) and run(0, False) == run(1, False)


def test_attention_of_words_is_a_share_of_the_image(text_batch):
    for kwargs in ({}, {"decoder_only": True}, {"compute": Compute(scan=False)}):
        model, params, batch = make(text_batch, **kwargs)
        weights = np.asarray(model.attention(params, {}, batch))
        assert weights.shape == (4, 12, 4) and (weights >= 0).all() and (weights.sum(-1) <= 1 + 1e-5).all()
        assert (weights[batch["text_mask"]].sum(-1) > 0).all()


@pytest.mark.parametrize(("size", "millions"), [("base", (245, 265)), ("large", (770, 800))])
def test_paper_sizes(size, millions):
    """papers.md section 1.1 derives about 250M and 781M with decoder depth = encoder depth."""
    model = SimVLM(Vocabulary(32_000, 256), size=size, image_size=224)
    batch = {
        "image": jnp.zeros((1, 1, 224, 224, 3), jnp.uint8),
        "text": jnp.zeros((1, 256), jnp.int32),
        "text_mask": jnp.ones((1, 256), bool),
        "prefix_length": jnp.zeros((1,), jnp.int32),
    }
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), {"pairs": batch})[0])
    count = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
    assert millions[0] < count < millions[1], count
    assert shapes["image_position"].shape == (196, model.sizes[0].width)


def test_unknown_sizes_and_images_are_named(text_batch):
    with pytest.raises(ValueError, match="size 'giant'"):
        SimVLM(V, image_size=32, size="giant")
    with pytest.raises(ValueError, match="not a multiple of patch"):
        SimVLM(V, image_size=50)
    model, params, batch = make(text_batch)
    with pytest.raises(ValueError, match="one image of 32 px"):
        loss_of(model, params, text_batch(2, image=64))
    with pytest.raises(ValueError, match="leaves room for 8"):
        model.prefill(params, {}, {**batch, "text": batch["text"][:, :4], "text_mask": batch["text_mask"][:, :4]}, 9)
    assert simvlm.SIZES["tiny"]

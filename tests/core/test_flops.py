"""FLOPs: counted through loops and rematerialisation, equal to closed forms for every model, cheaper where parts are frozen."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.flops import ModelFlops, count_flops, model_flops
from simvlm_jax.core.trees import match
from simvlm_jax.core.types import BaseModel, Term, Vocabulary
from simvlm_jax.models.clip import CLIP
from simvlm_jax.models.coca import CoCa
from simvlm_jax.models.llip import Llip
from simvlm_jax.models.siglip import SigLIP
from simvlm_jax.models.simvlm import SimVLM
from simvlm_jax.nn.conv_stem import stage_strides
from simvlm_jax.nn.resnet import ResNetSize
from simvlm_jax.nn.sizes import Compute
from tests.toy_momentum import D, E, ToyMomentum, toy_batch

V = Vocabulary(size=50, length=12)


# ---- what is counted ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Loss(BaseModel):
    """`function(params, x)` as a loss of parameters that are matrices [8,8], for x [4,8]."""

    function: object
    names: tuple[str, ...] = ("w",)

    def init(self, rng, batch):
        return {name: jnp.zeros((8, 8)) for name in self.names}, {}

    def per_example(self, params, extra, batch, *, rngs, step, train):
        return {}, {"loss": Term(self.function(params, batch["x"]).sum(), 1.0)}, {}


def of(function, names=("w",), flags=None):
    """Products [4,8] x [8,8] of the forward and of the backward pass."""
    found = model_flops(Loss(function, names), {"x": jax.ShapeDtypeStruct((4, 8), jnp.float32)}, flags)
    return tuple(n / (2 * 4 * 8 * 8) for n in found)


def test_a_product_costs_once_more_for_each_operand_that_learns():
    assert of(lambda p, x: x @ p["w"]) == (1, 1)
    assert of(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"]) == (2, 3)
    assert of(lambda p, x: x) == (0, 0)


def test_what_gradients_do_not_reach_costs_its_forward_pass():
    stop = jax.lax.stop_gradient
    assert of(lambda p, x: stop(x @ p["w"]) @ p["w"]) == (2, 1)
    assert of(lambda p, x: stop(jnp.tanh(x @ p["w"]) @ p["w"])) == (2, 0)
    assert of(lambda p, x: ((x @ p["w"]) > 0) @ jnp.ones((8, 8))) == (2, 0)
    both = ("a", "b")
    assert of(lambda p, x: x @ p["a"] @ p["b"], both, {"a": False, "b": True}) == (2, 1)
    assert of(lambda p, x: x @ p["a"] @ p["b"], both, {"a": True, "b": False}) == (2, 2)


def test_what_the_loss_does_not_depend_on_costs_nothing():
    def unused(p, x):
        _ = x @ p["w"] @ p["w"]
        return x @ p["w"]

    assert of(unused) == of(jax.jit(unused)) == (1, 1)


def test_loops_and_branches():
    def loop(step, start=lambda p, x: x):
        return lambda p, x: jax.lax.scan(lambda x, _: (step(p, x), None), start(p, x), None, length=5)[0]

    assert of(loop(lambda p, x: jnp.tanh(x @ p["w"]))) == (5, 10)  # what is carried varies from the second pass on
    assert of(loop(lambda p, x: jnp.tanh(x @ jnp.ones((8, 8))), lambda p, x: x @ p["w"])) == (6, 6)
    assert of(loop(lambda p, x: x @ jnp.ones((8, 8)))) == (5, 0)
    branch = {"a": lambda p, x: x, "b": lambda p, x: x @ p["w"] @ p["w"]}
    assert of(lambda p, x: jax.lax.cond(x.sum() > 0, branch["a"], branch["b"], p, x)) == (2, 3)


def test_what_is_computed_again_is_not_counted():
    def block(p, x):
        return jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"])

    assert of(jax.checkpoint(block)) == of(block) == (2, 3)

    @jax.custom_vjp
    def product(x, w):
        return x @ w

    def backward(kept, gradient):
        again = kept[0] @ kept[1]
        return gradient @ kept[1].T + 0 * again, kept[0].T @ gradient

    product.defvjp(lambda x, w: (x @ w, (x, w)), backward)
    assert of(lambda p, x: product(x, p["w"])) == (1, 1)


def test_everything_is_counted_through_loops_and_recomputation():
    a, w = jnp.ones((8, 16)), jnp.ones((5, 16, 16))

    def loop(layer):
        return lambda a, w: jax.lax.scan(lambda x, w: (layer(x, w), None), a, w)[0].sum()

    def layer(x, w):
        return jnp.tanh(x @ w)

    once = 2.0 * 8 * 16 * 16
    assert count_flops(loop(layer), a, w) == 5 * once
    # nothing flows to `a` at the first pass
    assert count_flops(jax.grad(loop(layer), 1), a, w) == pytest.approx(3 * 5 * once, rel=0.08)
    remat = jax.grad(loop(jax.checkpoint(layer)), 1)
    assert count_flops(remat, a, w) == pytest.approx(4 * 5 * once, rel=0.08)
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert count_flops(convolve, image, kernel) == 2.0 * 2 * 64 * 4 * 27


# ---- closed forms of the models, forward and for one row -----------------------------------------------------------------


def stack(size, tokens, context=0):
    """A stack of blocks; `context` keys of cross-attention, 0 for none."""
    layer = tokens * (8.0 * size.width**2 + 4.0 * size.width * size.mlp) + 4.0 * tokens**2 * size.width
    if context:
        layer += 4.0 * size.width**2 * (tokens + context) + 4.0 * tokens * context * size.width
    return size.depth * layer


def pool(queries, width, tokens, into=None):
    """An attentional pooler, without its mlp."""
    return 4.0 * width * (width * queries + (into or width) * tokens) + 4.0 * queries * tokens * width


def root(size, side):
    """(first convolution, all of the root) of a conv stem."""
    kind, channels = size.root
    if kind == "conv7":
        return (2.0 * (side // 2) ** 2 * channels * 3 * 49,) * 2
    first = 2.0 * 9 * (side // 2) ** 2 * 3 * (channels // 2)
    return first, first + 2.0 * 9 * (side // 4) ** 2 * (channels // 2) * channels


def conv_stem(size, width, patch, side):
    total, here, channels = root(size, side)[1], side // 4, size.root[1]
    strides = stage_strides(len(size.widths), patch)
    for out, depth, stage_stride in zip(size.widths, size.depths, strides, strict=True):
        for j in range(depth):
            stride = stage_stride if j == 0 else 1
            before, here = here, here // stride
            if size.bottleneck:
                inner = out // 4
                total += 2.0 * (before**2 * channels * inner + here**2 * (9 * inner**2 + inner * out))
            else:
                total += 2.0 * here**2 * 9 * (channels * out + out**2)
            if channels != out or stride != 1:
                total += 2.0 * here**2 * channels * out * (1 if size.bottleneck else stride**2)
            channels = out
    rest = patch // (4 * int(np.prod(strides)))
    return total + 2.0 * (side // patch) ** 2 * rest**2 * channels * width


def pixels(size, patch, side, stem):
    """(the first product, of which no gradient goes to the pixels; all of what makes tokens of an image)."""
    plain = 2.0 * (side // patch) ** 2 * patch**2 * 3 * size.width
    return (root(stem, side)[0], conv_stem(stem, size.width, patch, side)) if stem else (plain, plain)


def resnet(size, side, width):
    """(the first convolution, all) of CLIP's ResNet with its attention pool."""
    half, here, channels = (side // 2) ** 2, side // 4, size.width
    first = 2.0 * half * 9 * 3 * (channels // 2)
    total = first + 2.0 * half * 9 * (channels**2 // 4 + channels**2 // 2)
    for i, depth in enumerate(size.depths):
        inner = size.width * 2**i
        for j in range(depth):
            before, here = here, here // (2 if i and not j else 1)
            total += 2.0 * (before**2 * (channels * inner + 9 * inner**2) + here**2 * 4 * inner**2)
            if not j:
                total += 2.0 * here**2 * channels * 4 * inner
            channels = 4 * inner
    places = here**2 + 1
    return (
        first,
        total + 4.0 * places * channels**2 + 2.0 * channels**2 + 4.0 * places * channels + 2.0 * channels * width,
    )


def vit(size, patch, side, stem, more=0, head=0.0):
    first, into = pixels(size, patch, side, stem)
    return first, into + stack(size, (side // patch) ** 2 + more) + head


def clip(m, B, T):
    s = m.sizes
    image, patch, text, E, stem = s.image, s.patch, s.text, s.width, s.stem
    if isinstance(image, ResNetSize):
        first, seen = resnet(image, m.image_size, E)
    else:
        first, seen = vit(image, patch, m.image_size, stem, 1, 2.0 * image.width * E)
    return first, B * (seen + stack(text, T + 1) + 2.0 * text.width * E) + pairs(B, E)


def pairs(B, E):
    """Scores of all pairs for a softmax, and each row's own once more."""
    return 2.0 * B * B * E + 2.0 * B * E


def siglip(m, B, T):
    size, patch, stem = m.sizes.tower, m.sizes.patch, m.sizes.stem
    D, P = size.width, m.image_tokens
    first, seen = vit(size, patch, m.image_size, stem, 0, pool(1, D, P) + 4.0 * D * size.mlp)
    return first, B * (seen + stack(size, T) + 2.0 * D * D) + 2.0 * B * B * D


def llip(m, B, T):
    image, patch, text, E, Q, _, stem = m.sizes
    first, seen = vit(image, patch, m.image_size, stem, Q, 4.0 * Q * image.width * E)
    own = seen + stack(text, T + 1) + 2.0 * text.width * E + 2.0 * E * E
    return first, B * own + B * B * (4.0 * Q * E + 2.0 * E * E + 2.0 * E)


def coca(m, B, T):
    s = m.sizes
    encoder, patch, lower, upper, Q, stem = s.encoder, s.patch, s.lower, s.upper, s.queries, s.stem
    D, W, P = lower.width, encoder.width, m.image_tokens
    first, seen = vit(encoder, patch, m.image_size, stem)
    each = seen + pool(Q, D, P, W) + pool(1, D, Q) + stack(lower, T + 1) + stack(upper, T, Q)
    return first, B * (each + 2.0 * T * m.vocabulary.size * D) + pairs(B, D)


def simvlm(m, B, T, pictured=True):
    encoder, decoder, stem = m.sizes
    P = m.grid[0] * m.grid[1] if pictured else 0
    first, into = pixels(encoder, m.patch, m.image_size, stem.first(m.stem_stages) if m.stem_stages else None)
    each = into if pictured else 0.0
    if m.decoder_only:
        deep = dataclasses.replace(decoder, depth=encoder.depth + decoder.depth)
        each += stack(deep, P + T)
    else:
        each += stack(encoder, P + T) + stack(decoder, T, P + T)
    return first if pictured else 0.0, B * (each + 2.0 * T * m.vocabulary.size * decoder.width)


def rows(model, B, T=12, **more):
    side = model.image_size
    shapes = {"image": ((B, 1, side, side, 3), "uint8"), "text": ((B, T), "int32"), "text_mask": ((B, T), "bool")}
    shapes |= {"prefix_length": ((B,), "int32"), "weight": ((B,), "float32"), **more}
    return {"pairs": {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}}


@pytest.mark.parametrize(
    ("model", "closed"),
    [
        (CLIP(V, 32), clip),
        (CLIP(V, 64, size="B/32"), clip),
        (CLIP(V, 64, size="RN50"), clip),
        (SigLIP(V, 32), siglip),
        (SigLIP(V, 32, size="B/16"), siglip),
        (Llip(V, 32), llip),
        (Llip(V, 64, size="B/32"), llip),
        (CoCa(V, 32), coca),
        (CoCa(V, 36, size="base"), coca),
        (SimVLM(V, 32), simvlm),
        (SimVLM(V, 32, decoder_only=True, stem_stages=0), simvlm),
        (SimVLM(V, 64, size="base"), simvlm),
    ],
    ids=lambda x: f"{type(x).__name__}-{x.size}" if hasattr(x, "size") else "",
)
def test_models_cost_what_their_closed_forms_say(model, closed):
    """Forward as the form says; backward twice that, but for the gradient that would go to the pixels."""
    first, forward = closed(model, 3, 12)
    found = model.train_flops(rows(model, 3))
    assert model_flops(model, rows(model, 3)).forward == pytest.approx(forward, rel=1e-9)
    assert found == pytest.approx(3 * forward - 3 * first, rel=1e-9)


def test_documents_have_rows_of_their_own():
    model = SimVLM(V, 32)
    batch = rows(model, 3) | {"documents": {k: v for k, v in rows(model, 5)["pairs"].items() if k != "image"}}
    forward = simvlm(model, 3, 12)[1] + simvlm(model, 5, 12, pictured=False)[1]
    assert model_flops(model, batch).forward == pytest.approx(forward, rel=1e-9)


@pytest.mark.parametrize("images", [1, 2])
def test_a_classifier_has_no_softmax_over_the_vocabulary(images):
    model = SimVLM(V, 32, classes=9, images=images)
    batch = rows(model, 3, label=((3,), "int32"), image=((3, images, 32, 32, 3), "uint8"))
    width = model.sizes[1].width
    forward = images * (simvlm(model, 3, 12)[1] - 2.0 * 3 * 12 * V.size * width) + 2.0 * 3 * images * width * 9
    assert model_flops(model, batch).forward == pytest.approx(forward, rel=1e-9)


def test_a_frozen_encoder_costs_its_forward_pass():
    """The attentional probe of CoCa learns a pooler and a head on an encoder that is frozen."""
    model = CoCa(V, 32, classes=9)
    batch = rows(model, 3, label=((3,), "int32"))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch)[0])
    flags = match(shapes, (("probe_", True),), False)
    encoder, patch, stem = model.sizes.encoder, model.sizes.patch, model.sizes.stem
    D, P = encoder.width, model.image_tokens
    head = 2.0 * D * 9
    seen = vit(encoder, patch, 32, stem)[1]
    found = model_flops(model, batch, flags)
    assert found.forward == pytest.approx(3 * (seen + pool(1, D, P) + head), rel=1e-9)
    # twice the pooler and the head, but no gradient goes to the tokens that keys and values are made of
    assert found.backward == pytest.approx(3 * (2 * (pool(1, D, P) + head) - 4.0 * D * D * P), rel=1e-9)
    assert model.train_flops(batch, flags) == sum(found) < 0.5 * model.train_flops(batch)


def test_targets_under_stop_gradient_cost_their_forward_pass():
    B, model = 16, ToyMomentum()
    scores = 2.0 * B * (B + model.slots) * E
    assert model_flops(model, toy_batch(0)) == ModelFlops(2 * 2.0 * B * D * E + scores, 2.0 * B * D * E + scores)


def test_the_figure_does_not_depend_on_how_it_is_computed():
    """Scanned or not, rematerialised or not; and it is what the traced gradient has where nothing is computed again."""
    plain = SimVLM(V, 32, compute=Compute("float32", "none", False))
    batch = rows(plain, 2)
    costs = {dataclasses.replace(plain, compute=Compute("float32", remat, scan)).train_flops(batch)
             for remat in ("none", "full", "dots") for scan in (True, False)}  # fmt: skip
    assert len(costs) == 1

    def gradient(model):
        params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch)[0])

        def loss(params):
            terms = model.per_example(params, {}, jax.tree.map(jnp.zeros_like, batch), rngs=rng, step=0, train=True)[1]
            return terms["lm"].sum

        rng = jax.random.key(0)
        return count_flops(jax.grad(loss), params)

    again = dataclasses.replace(plain, compute=Compute("float32", "full", True))
    assert gradient(plain) == pytest.approx(costs.pop(), rel=1e-3)
    assert gradient(again) > 1.2 * gradient(plain)


def test_a_model_is_traced_once():
    calls = []

    class Counted(Loss):
        def per_example(self, *args, **kwargs):
            calls.append(1)
            return super().per_example(*args, **kwargs)

    model, batch = Counted(lambda p, x: x @ p["w"]), {"x": np.zeros((4, 8), np.float32)}
    assert model.train_flops(batch) == model.train_flops(batch) == model.train_flops({"x": batch["x"] + 1})
    assert len(calls) == 1
    assert model.train_flops({"x": np.zeros((8, 8), np.float32)}) == 2 * model.train_flops(batch)
    assert len(calls) == 2

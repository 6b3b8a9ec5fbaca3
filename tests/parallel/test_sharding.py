"""Where things lie: letters to axes, states made in their shards, no collective that was not meant."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simvlm_jax.core.flops import count_flops
from simvlm_jax.core.sharding import constrain, in_use, use_sharding
from simvlm_jax.core.types import BaseModel, Term, Vocabulary
from simvlm_jax.models.simvlm import SimVLM
from simvlm_jax.nn.kernels import dense
from simvlm_jax.nn.sizes import Compute
from simvlm_jax.objectives.contrastive import softmax_pairs
from simvlm_jax.parallel.mesh import MeshShardingRules, make_mesh, mesh_shape, place_batch, placement, sharding_rules
from simvlm_jax.parallel.program import Program
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.train.optimizer import Optimizer
from simvlm_jax.train.state import prepare


@pytest.mark.parametrize(
    ("letters", "shape", "expected"),
    [
        (("D", "H", "K"), (16, 4, 8), P("fsdp", "tensor", None)),
        (("L", "D", "F"), (3, 16, 32), P(None, "fsdp", "tensor")),
        (("V", "D"), (101, 16), P(None, "fsdp")),  # 2 does not divide 101
        (("D", "F"), (15, 32), P(None, "tensor")),  # and fsdp finds no other axis
        ((None, None, None, "C"), (3, 3, 7, 16), P(None, None, None, "fsdp")),
        ((None, None, None, "C"), (1, 1, 8, 9), P(None, None, "fsdp", None)),  # the first axis that it divides
        (("D",), (16,), P(None)),  # vectors stay whole
        (("L", "D"), (4, 16), P(None, None)),
        (("F",), (32,), P("tensor")),
        (("H", "K"), (4, 8), P("tensor", None)),  # a bias
    ],
)
def test_the_first_claim_wins(letters, shape, expected):
    assert MeshShardingRules(make_mesh(None, 2, 2, 2)).parameter(letters, shape).spec == expected


def test_activations_and_parameters_in_use_are_whole_over_fsdp():
    rules = MeshShardingRules(make_mesh(None, 2, 2, 2))
    assert rules.activation("BTD", (8, 5, 16)).spec == P(("data", "fsdp"), None, None)
    assert rules.activation("BTHK", (8, 5, 4, 8)).spec == P(("data", "fsdp"), None, "tensor", None)
    assert rules.activation(("D", "H", "K"), (16, 4, 8)).spec == P(None, "tensor", None)
    assert rules.activation("BT", (3, 5)).spec == P(None, None)


@pytest.mark.parametrize("T", [1, 4])
def test_attention_over_a_cache_moves_nothing_between_devices(T):
    """Rows are some devices', heads are others': no key has to be seen elsewhere."""
    mesh = make_mesh(jax.devices()[:4], 2, 1, 2)
    rules, draw = sharding_rules(mesh), np.random.default_rng(0)
    q, k, v = (draw.normal(size=(4, *x, 8)).astype(np.float32) for x in ((T, 2), (2, 6), (2, 6)))
    on_mesh = [jax.device_put(q, rules.activation("BTHK", q.shape))]
    on_mesh += [jax.device_put(x, rules.activation("BHSK", x.shape)) for x in (k, v)]

    def look(q, k, v):
        return constrain(dense(q, k, v, heads_first=True)[0], "BTHK")

    with use_sharding(rules):
        compiled = jax.jit(look).lower(*on_mesh).compile()
    assert not Program(compiled.as_text(), 4).collectives()
    np.testing.assert_allclose(compiled(*on_mesh), look(q, k, v), atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 1, 1), (8, 1, 1)), ((-1, 4, 1), (2, 4, 1)), ((1, -1, 2), (1, 4, 2)), ((2, 2, 2), (2, 2, 2))],
)
def test_mesh_shapes(sizes, shape):
    assert mesh_shape(8, *sizes) == shape
    assert tuple(make_mesh(None, *sizes).shape.values()) == shape


@pytest.mark.parametrize("sizes", [(-1, 3, 1), (4, 1, 1), (-1, -1, 1), (0, 1, 1), (16, 1, 1)])
def test_meshes_that_do_not_fit_say_so(sizes):
    with pytest.raises(ValueError, match=r"config\.mesh data="):
        mesh_shape(8, *sizes)


def test_a_parameter_in_use_is_gathered_and_its_gradient_goes_back_to_the_shards():
    mesh = make_mesh(None, 2, 4, 1)
    rules, letters = MeshShardingRules(mesh), ("D", "F")
    w = jax.device_put(jnp.arange(128.0).reshape(8, 16) / 100, rules.parameter(letters, (8, 16)))
    x = jax.device_put(jnp.ones((8, 8)), rules.activation("BD", (8, 8)))

    def loss(w, x):
        with use_sharding(rules):
            return (constrain(x @ in_use(w, letters), "BF") ** 2).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(w, x)
    expected = jax.value_and_grad(lambda w, x: ((x @ w) ** 2).sum())(np.asarray(w), np.asarray(x))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-6)
    assert gradient.sharding.is_equivalent_to(w.sharding, 2)


def tiny(**compute):
    return SimVLM(Vocabulary(64, 12), 32, compute=Compute("float32", **compute))


def prepared(mesh, text_batch, model=None, **optimizer):
    batch = {"pairs": text_batch(16)}
    return prepare(model or tiny(), Optimizer(**optimizer), batch, mesh, seed=0, steps=10), batch


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_states_are_made_where_they_lie(text_batch, name):
    """Every leaf, moments and averages too, has a device's share of its parameter, and the same values on any mesh."""
    whole = prepared(make_mesh(jax.devices()[:1]), text_batch, name=name, ema=0.9)[0].make()
    ready, _ = prepared(make_mesh(None, 1, 4, 2), text_batch, name=name, ema=0.9)
    state = ready.make()
    big = [x for x in jax.tree.leaves(state) if x.size > 2**14]
    assert len(big) > 20 and all(x.addressable_shards[0].data.size <= x.size / 4 for x in big)
    assert {x.addressable_shards[0].data.size * 8 == x.size for x in big} == {True, False}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole.params), jax.device_get(state.params))


def test_states_are_restored_where_they_lie(text_batch, tmp_path):
    """Saved on one mesh, restored on others: each leaf comes in the shards of its mesh, with the values it had."""
    saved = prepared(make_mesh(None, 2, 2, 2), text_batch, name="adamw", ema=0.9)[0].make()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, saved, (saved.params, saved.extra))
    checkpoints.wait()
    for sizes in ((1, 4, 2), (8, 1, 1)):
        ready, _ = prepared(make_mesh(None, *sizes), text_batch, name="adamw", ema=0.9)
        state = checkpoints.restore(1, ready.abstract)
        jax.tree.map(
            lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim) or pytest.fail(a), state, ready.abstract
        )
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(saved.params), jax.device_get(state.params))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(saved.opt), jax.device_get(state.opt))


def test_a_state_that_begins_anew_takes_no_second_place(text_batch):
    ready, _ = prepared(make_mesh(None, 1, 4, 2), text_batch, name="adamw")
    state = ready.make()
    before = jax.device_get(state.opt)
    again = ready.restart(state)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.opt)) and again.params is state.params
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(again.opt))
    jax.tree.map(
        lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim) or pytest.fail(a), again.opt, ready.abstract.opt
    )


def test_what_stands_beside_parameters_lies_as_they_do():
    mesh = make_mesh(None, 1, 8, 1)
    place = placement(mesh, {"encoder/mlp/up": ("D", "F")})
    assert place("0/mu/encoder/mlp/up", (16, 32)).spec == P("fsdp", "tensor")
    assert place("momentum/encoder/mlp/up", (16, 32)).spec == P("fsdp", "tensor")
    assert place("0/v_row/encoder/mlp/up", (16,)).spec == P()
    assert place("count", ()).spec == P()


def test_fsdp_gathers_a_layer_at_a_time_and_data_parallel_nothing(text_batch):
    """From the compiled program: no all-gather of a whole stack, and none at all where parameters are whole."""
    model = tiny(scan=True)
    deep = dataclasses.replace(model, decoder_only=True)  # one stack of 4 layers
    collectives = {}
    for sizes in ((8, 1, 1), (1, 8, 1)):
        mesh = make_mesh(None, *sizes)
        ready, batch = prepared(mesh, text_batch, deep)
        compiled = ready.train_step().lower(ready.abstract, place_batch(mesh, batch)).compile()
        collectives[sizes] = Program(compiled.as_text(), 8).collectives()
    assert {c.kind for c in collectives[8, 1, 1]} == {"all-reduce"}
    gathers = [c for c in collectives[1, 8, 1] if c.kind == "all-gather"]
    layer, embedding = 128 * 256 * 4, 64 * 128 * 4  # the largest matrix of a layer
    stem = 3 * 3 * 128 * 128 * 4
    assert gathers and max(c.bytes for c in gathers) <= max(layer, embedding, stem)
    in_loops = [c.bytes for c in gathers if c.times == 4]
    assert sorted(in_loops) == sorted(
        2 * [4 * 128 * 128] * 4 + 2 * [layer] * 2
    )  # a layer's matrices, forward and again backward
    outside = {k: v for k, v in ready.abstract.params.items() if k != "decoder"}  # stem, embedding, positions
    once = sum(x.size * 4 for x in jax.tree.leaves(outside))
    assert sum(c.bytes for c in gathers if c.times == 1) <= 2 * once


def test_a_pmap_step_is_the_jit_step(text_batch):
    """Data parallel by pmap with psum: the loss and the gradients are those of jit over the mesh."""
    mesh = make_mesh()
    ready, batch = prepared(mesh, text_batch, name="adamw", clip=None)
    state = ready.make()

    def device_step(params, rows):
        def terms(params):
            _, t, _ = ready.model.per_example(params, {}, rows, rngs=jax.random.key(0), step=0, train=True)
            count = jax.lax.psum(t["lm"].count, "i")
            return t["lm"].sum / count

        loss, grads = jax.value_and_grad(terms)(params)
        return jax.lax.psum(loss, "i"), jax.lax.psum(grads, "i")

    shards = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
    params = jax.device_get(state.params)
    loss, grads = jax.pmap(device_step, axis_name="i", in_axes=(None, 0))(params, shards)
    value, mine = jax.jit(jax.value_and_grad(lambda p: total(ready.model, p, batch)))(params)
    np.testing.assert_allclose(loss[0], value, rtol=2e-6)
    whole = float(jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(mine))))
    for a, b in zip(jax.tree.leaves(jax.tree.map(lambda g: g[0], grads)), jax.tree.leaves(mine), strict=True):
        assert np.linalg.norm(a - b) <= 5e-6 * max(np.linalg.norm(b), 1e-2 * whole)
    _, sharded = ready.train_step()(state, place_batch(mesh, batch))
    np.testing.assert_allclose(sharded["loss"], loss[0], rtol=2e-6)


def total(model, params, batch):
    _, t, _ = model.per_example(params, {}, batch, rngs=jax.random.key(0), step=0, train=True)
    return t["lm"].sum / t["lm"].count


# ---- what programs are read for -----------------------------------------------------------------------------------


def test_flops_are_counted_through_loops_and_recomputation():
    a = jnp.ones((8, 16))

    def loop(a, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), a, w)[0].sum()

    w = jnp.ones((5, 16, 16))
    once = 2.0 * 8 * 16 * 16
    assert count_flops(loop, a, w) == 5 * once
    assert count_flops(jax.grad(loop, 1), a, w) == pytest.approx(
        3 * 5 * once, rel=0.08
    )  # nothing flows to `a` at the first
    remat = jax.grad(lambda a, w: jax.lax.scan(jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None)), a, w)[0].sum(), 1)
    assert count_flops(remat, a, w) == pytest.approx(4 * 5 * once, rel=0.08)
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert count_flops(convolve, image, kernel) == 2.0 * 2 * 64 * 4 * 27


def test_flops_of_a_program_that_is_written_for_a_device_are_those_of_all():
    x = jnp.ones((64, 16))
    side = {"features": x, "weight": jnp.ones(64)}

    def loss(x):
        return softmax_pairs({"scale": jnp.asarray(9.0)}, {**side, "features": x}, side, tile=8).loss

    alone = count_flops(jax.grad(loss), x)
    with use_sharding(sharding_rules(make_mesh(jax.devices()[:8]))):
        assert count_flops(jax.grad(loss), x) == pytest.approx(alone, rel=0.02)


def test_a_program_is_read_as_the_compiler_counts_it():
    """Without loops, traffic is XLA's own bytes accessed; with one, the body counts as often as it runs."""
    f = jax.jit(lambda a, b: jnp.tanh(a @ b) @ b)
    a, b = jnp.ones((64, 128)), jnp.ones((128, 128))
    compiled = f.lower(a, b).compile()
    program = Program(compiled.as_text(), 1)
    assert program.traffic() == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.05)
    looped = jax.jit(lambda a, b: jax.lax.scan(lambda x, _: (jnp.tanh(x @ b), None), a, None, length=50)[0])
    many = Program(looped.lower(a, b).compile().as_text(), 1).traffic()
    body = 4 * (64 * 128 + 128 * 128 + 3 * 64 * 128)
    assert many == pytest.approx(50 * body, rel=0.3)


def test_collectives_are_read_with_kind_size_group_and_times():
    mesh = make_mesh(None, 2, 4, 1)
    w = jax.ShapeDtypeStruct((3, 64, 32), jnp.float32, sharding=jax.NamedSharding(mesh, P(None, "fsdp", None)))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=jax.NamedSharding(mesh, P(("data", "fsdp"), None)))

    def f(x, w):
        def body(x, w):
            w = jax.lax.with_sharding_constraint(w, jax.NamedSharding(mesh, P()))
            return jnp.tanh(x @ w @ w.T), None

        return jax.lax.scan(body, x, w)[0].sum()

    found = Program(jax.jit(f).lower(x, w).compile().as_text(), 8).collectives()
    gather = next(c for c in found if c.kind == "all-gather")
    assert (gather.bytes, gather.group, gather.times) == (64 * 32 * 4, 4, 3)
    assert gather.received == pytest.approx(3 / 4 * 64 * 32 * 4 * 3)
    reduce = next(c for c in found if c.kind == "all-reduce")
    assert (reduce.group, reduce.bytes, reduce.times) == (8, 4, 1)


TPU = """
%body (p: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %p = (s32[]{:T(128)}, bf16[64]{0:T(256)(128)(2,1)}) parameter(0)
  %x = bf16[64]{0:T(256)(128)(2,1)} get-tuple-element(%p), index=1
  %ag = bf16[512]{0:T(256)S(1)} all-gather(%x), channel_id=7, replica_groups=mesh['a'=4,'b'=8], device_ids=([8,4]T(1,0)) {'b'}
  %c = bf16[64]{0:T(256)(128)(2,1)} copy(%x)
}

%cond (p: (s32[], bf16[64])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
}

%all-reduce-scatter.1 (a: f32[256]) -> f32[32] {
  %ar = f32[256]{0:T(256)} all-reduce(%a), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
}

ENTRY %main (q: bf16[64]) -> bf16[64] {
  %q = (s32[]{:T(128)}, bf16[64]{0:T(256)}) parameter(0)
  %w = (s32[]{:T(128)}, bf16[64]{0:T(256)}) while(%q), condition=%cond, body=%body
  %rs = f32[32]{0:T(256)} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1
  %again = bf16[512]{0:T(256)} all-gather(%q), channel_id=7, replica_groups=[4,8]<=[32], dimensions={0}
}
"""


def test_the_dialect_of_tpu_programs_is_read():
    found = Program(TPU, 32).collectives()
    assert [(c.kind, c.bytes, c.group, c.times) for c in found] == [
        ("all-gather", 1024, 8, 12),
        ("reduce-scatter", 1024, 8, 1),
    ]
    body = (
        128 + 128 + 128
    )  # the gather reads its part and leaves the whole in scratch memory; the copy reads and writes
    entry = 1024 + 128 + 32 * 4 + 128
    assert Program(TPU, 32).traffic() == pytest.approx(12 * body + entry, abs=300)


ASYNCHRONOUS = """
ENTRY %main (q: bf16[64], w: bf16[512]) -> bf16[64] {
  %q = bf16[64]{0:T(256)} parameter(0)
  %w = bf16[512]{0:T(256)} parameter(1)
  %cp = (bf16[64]{0:T(256)}, bf16[64]{0:T(256)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%q), channel_id=1
  %cpd = bf16[64]{0:T(256)} collective-permute-done(%cp)
  %cp2 = (bf16[64]{0:T(256)}, bf16[64]{0:T(256)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%cpd), channel_id=1
  %cpd2 = bf16[64]{0:T(256)} collective-permute-done(%cp2)
  %ag = ((bf16[64]{0}, bf16[64]{0}), (bf16[512]{0}, bf16[512]{0})) all-gather-start(%q, %q), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}
  %agd = (bf16[512]{0}, bf16[512]{0}) all-gather-done(%ag)
  %c = (bf16[512]{0:T(256)S(1)}, bf16[512]{0:T(256)}, u32[]{:S(2)}) copy-start(%w)
  %cd = bf16[512]{0:T(256)S(1)} copy-done(%c)
  %s = ((bf16[512]{0:T(256)}), bf16[128]{0:T(256)S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:128]}
  %sd = bf16[128]{0:T(256)S(1)} slice-done(%s)
}
"""  # noqa: E501


def test_asynchronous_operations_count_once():
    found = [(c.kind, c.bytes) for c in Program(ASYNCHRONOUS, 8).collectives()]
    # hops of a ring share a channel, and each is one
    assert found == [("collective-permute", 128), ("collective-permute", 128), ("all-gather", 2048)]
    slices = 256  # of the operand, the part that goes to scratch memory
    assert Program(ASYNCHRONOUS, 8).traffic() == 2 * 128 + 2048 + 1024 + slices


@dataclasses.dataclass(frozen=True)
class Wide(BaseModel):
    """A model whose state is mostly one matrix."""

    width: int = 512

    def init(self, rng, batch):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("D", "F"))
        return {"w": init(rng, (self.width, self.width))}, {}

    def per_example(self, params, extra, batch, *, rngs, step, train):
        y = constrain(batch["pairs"]["x"] @ in_use(params["w"], ("D", "F")), "BF")
        return {}, {"lm": Term((y**2).sum(), jnp.asarray(y.shape[0], jnp.float32))}, {}


def test_one_device_needs_no_sharding_rules():
    assert sharding_rules(make_mesh(jax.devices()[:1])) is None and sharding_rules(make_mesh()) is not None

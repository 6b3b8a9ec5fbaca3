"""State beside the parameters: saved, sharded, restored and started from other runs, for a loss that needs all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simvlm_jax.parallel.mesh import make_mesh, place_batch
from simvlm_jax.run.checkpoints import Checkpoints
from simvlm_jax.run.directory import RunDir
from simvlm_jax.train.init_from import initialiser
from simvlm_jax.train.loop import LoopOptions, train
from simvlm_jax.train.optimizer import Optimizer
from simvlm_jax.train.state import prepare
from tests.toy_momentum import Normalised, Plain, ToyMomentum, ToyPipeline, toy_batch

SGD = Optimizer(learning_rate=0.1, schedule="constant", warmup=0.0, decay=(), ema=0.9)


def prepared(model, mesh):
    return prepare(model, SGD, toy_batch(0), mesh, seed=0, steps=9)


def steps(accumulate=1, devices=1, model=None, **sizes):
    """The state, as numpy, and the losses of three steps."""
    mesh = make_mesh(jax.devices()[:devices], **sizes)
    ready = prepared(model or ToyMomentum(), mesh)
    state, step, losses = ready.start(), ready.train_step(accumulate), []
    for n in range(3):
        state, measured = step(state, place_batch(mesh, toy_batch(n)))
        losses.append(float(measured["loss"]))
    return jax.device_get((state.params, state.extra)), losses


def same(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, wanted)


@pytest.fixture(scope="module")
def whole():
    """Three steps on one device in fp64, whose queue was filled and whose momentum encoder has moved."""
    with jax.enable_x64(True):
        found = steps()
    (params, extra), _ = found
    for n in range(3):  # the queue's slots in the order of the rows
        assert not np.allclose(extra["queue"][16 * n], extra["queue"][16 * n + 1])
    assert extra["next"] == 0 and extra["queue"].dtype == np.float64
    assert not np.allclose(extra["target"]["encoder"]["kernel"], params["encoder"]["kernel"], atol=1e-3)
    return found


def test_the_queue_holds_the_batches_in_their_order():
    with jax.enable_x64(True):
        model, mesh = ToyMomentum(), make_mesh(jax.devices()[:1])
        ready = prepared(model, mesh)
        state = ready.start()
        expected = np.asarray(model.encode(state.extra["target"], toy_batch(0)["pairs"]["y"]))
        state, _ = ready.train_step(4)(state, place_batch(mesh, toy_batch(0)))
        np.testing.assert_allclose(state.extra["queue"][:16], expected, rtol=1e-12)
        assert state.extra["next"] == 16


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_is_the_whole_batch(whole, parts):
    with jax.enable_x64(True):
        same(steps(parts), whole)


@pytest.mark.parametrize(
    ("accumulate", "sizes"),
    [(1, {}), (2, {"fsdp": 2, "tensor": 2}), (1, {"fsdp": 8}), (1, {"data": 4, "tensor": 2})],
    ids=["data", "2x2x2, accumulated", "fsdp", "tensor"],
)
def test_any_mesh_is_one_device(whole, accumulate, sizes):
    with jax.enable_x64(True):
        same(steps(accumulate, 8, **sizes), whole)


def test_a_model_that_mixes_rows_is_compared_at_equal_micro_batches(tmp_path, capsys):
    """The same micro-batches on any mesh, which are not the whole batch; the run says so."""
    with jax.enable_x64(True):
        alone, spread, at_once = (steps(n, d, Normalised()) for n, d in ((2, 1), (2, 8), (1, 1)))
        same(spread, alone)
        assert abs(alone[1][-1] - at_once[1][-1]) > 1e-6
    run(tmp_path, 2, make_mesh(jax.devices()[:1]), model=Normalised(), accumulate=2)
    assert "look at other rows: with train.accumulate=2" in capsys.readouterr().err


def test_extra_lies_by_its_letters_and_copies_as_what_they_copy():
    ready = prepared(ToyMomentum(), make_mesh(None, 2, 2, 2))
    state = ready.start()
    state, _ = ready.train_step()(state, place_batch(ready.mesh, toy_batch(0)))
    assert state.extra["queue"].sharding.spec == P("fsdp", None)
    assert state.params["encoder"]["kernel"].sharding.spec == P("fsdp", "tensor")
    assert state.extra["target"]["encoder"]["kernel"].sharding.spec == P("fsdp", "tensor")
    assert ready.letters == {"encoder/kernel": ("D", "F"), "extra/queue": ("N", "E")}


def test_a_step_donates_extra():
    ready = prepared(ToyMomentum(), make_mesh(jax.devices()[:1]))
    old = ready.start()
    ready.train_step()(old, toy_batch(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.extra)))


def test_begin_keeps_shapes():
    class Grows(ToyMomentum):
        def begin(self, params, extra):
            return {**extra, "queue": extra["queue"][1:]}

    with pytest.raises(
        ValueError, match=r"Grows\.begin changes the shapes of extra: queue: float32\[47, 8\], not float32"
    ):
        prepared(Grows(), make_mesh(jax.devices()[:1]))


def run(path, steps, mesh, sources=(), model=None, **options):
    """(params, extra) of a run that is stopped or finished at `steps`."""
    model = model or ToyMomentum()
    checkpoints = Checkpoints(path / "checkpoints", latest=9)
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    initialise = initialiser(model, "", (), sources, mesh)
    try:
        train(
            model,
            ToyPipeline(),
            SGD,
            RunDir(path),
            checkpoints,
            mesh,
            LoopOptions(steps, **options),
            initialise=initialise,
        )
        return jax.device_get(checkpoints.restore(steps, prepared(model, mesh).abstract))
    finally:
        checkpoints.close()


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path):
    mesh = make_mesh(None, 2, 2, 2)
    straight = run(tmp_path / "straight", 6, mesh)
    run(tmp_path / "stopped", 3, mesh)
    resumed = run(tmp_path / "stopped", 6, mesh)
    for a, b in zip(
        *(jax.tree.leaves(s._replace(rng=jax.random.key_data(s.rng))) for s in (straight, resumed)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run directories of the momentum model and of the plain one, of two steps each."""
    base, mesh = tmp_path_factory.mktemp("sources"), make_mesh()
    run(base / "momentum", 2, mesh)
    run(base / "plain", 2, mesh, model=Plain())
    return base


def started(source, model=None, **fields):
    """(state of step 0 on another mesh than the source's, the source's (params, extra))."""
    mesh = make_mesh(None, 2, 2, 2)
    model = model or ToyMomentum()
    ready = prepared(model, mesh)
    initialise = initialiser(model, "", (), ({"run": str(source), **fields},), mesh)
    state = ready.start(initialise)
    reader = Checkpoints(source / "checkpoints", read_only=True)
    weights = reader.restore_weights(2, lambda name, shape: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    wanted, found = ready.abstract, jax.tree.map(lambda x: x.sharding, state)
    assert jax.tree.map(lambda x: x.sharding, wanted) == found
    ready.train_step()(jax.tree.map(jnp.copy, state), place_batch(mesh, toy_batch(0)))  # no buffer stands in two places
    return jax.device_get(state), jax.device_get(weights)


def test_a_run_that_starts_from_plain_weights_copies_them(trained):
    state, (params, _) = started(trained / "plain")
    np.testing.assert_array_equal(state.params["encoder"]["kernel"], params["encoder"]["kernel"])
    np.testing.assert_array_equal(state.extra["target"]["encoder"]["kernel"], params["encoder"]["kernel"])
    assert state.extra["next"] == 0


def test_a_run_that_starts_from_a_momentum_run_goes_on_with_its_extra(trained):
    state, (params, extra) = started(trained / "momentum")
    np.testing.assert_array_equal(state.params["encoder"]["kernel"], params["encoder"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, state.extra, extra)
    assert state.extra["next"] == 32
    assert not np.array_equal(extra["target"]["encoder"]["kernel"], params["encoder"]["kernel"])


def test_a_map_drops_extra(trained):
    state, (params, extra) = started(trained / "momentum", map=[("^extra/target", None)])
    np.testing.assert_array_equal(state.extra["target"]["encoder"]["kernel"], params["encoder"]["kernel"])
    np.testing.assert_array_equal(state.extra["queue"], extra["queue"])


def test_a_model_without_the_state_takes_the_weights_alone(trained):
    state, (params, _) = started(trained / "momentum", Plain())
    np.testing.assert_array_equal(state.params["encoder"]["kernel"], params["encoder"]["kernel"])
    assert state.extra == {}


def test_a_queue_of_another_length_is_an_error(trained):
    with pytest.raises(
        ValueError, match=r"use `map` to rename or drop\n  extra/queue: \(48, 8\) loaded, \(32, 8\) in the model"
    ):
        started(trained / "momentum", ToyMomentum(slots=32))
    state, _ = started(trained / "momentum", ToyMomentum(slots=32), map=[("^extra/(queue|next)", None)])
    assert state.extra["queue"].shape == (32, 8) and state.extra["next"] == 0

"""EfficientNet-lite: timm's networks, with batch statistics, become runs that see, learn and are written the same."""

import json

import jax
import numpy as np
import pytest

from simvlm_jax.interop.reference import tensor
from tests.interop import harness
from tests.interop.harness import Case

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

MODELS = {"efficientnet-narrow": (0.25, 1.0), "efficientnet-deep": (0.3, 1.2)}


def build(width, depth):
    """A small network, whose statistics are moved off their start too."""
    from timm.models.efficientnet import _gen_efficientnet_lite

    ways = dict(pad_type="same", bn_eps=1e-3)  # of the tf_ variants
    made = _gen_efficientnet_lite("tf_efficientnet_lite0", width, depth, num_classes=5, **ways)
    torch.manual_seed(1)
    for name, x in made.named_buffers():
        if name.endswith("running_mean"):
            x.add_(0.1 * torch.randn_like(x))
        elif name.endswith("running_var"):
            x.mul_(torch.rand_like(x) + 0.5)
    return made


def save(module, folder):
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(module.state_dict(), folder / "model.safetensors")
    said = dict(input_size=[3, 48, 40], crop_pct=0.875, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    config = dict(architecture="tf_efficientnet_lite0", num_classes=5, pretrained_cfg=said)
    (folder / "config.json").write_text(json.dumps(config))


def loss(module, model, extra, rows):
    label = np.arange(len(rows["image"]), dtype=np.int32) % model.classes
    batch = {"pairs": {"image": rows["image"], "label": label, "weight": np.ones(len(label), np.float32)}}

    def ours(params):
        _, terms, _ = model.per_example(params, extra, batch, rngs=jax.random.key(0), step=0, train=False)
        return terms["classify"].sum / terms["classify"].count

    return torch.nn.functional.cross_entropy(module(tensor(rows["pixels"])), tensor(label)), ours


def case(name):
    return Case("efficientnet", lambda: build(*MODELS[name]), save, loss=loss, layout="timm")


@pytest.fixture(params=MODELS, scope="module")
def made(request, tmp_path_factory):
    own, tmp = case(request.param), tmp_path_factory.mktemp("interop")
    return own, *harness.imported(own, tmp), tmp


def test_outputs_are_theirs(made):
    own, module, run, report, _ = made
    assert report["compared"] == {"weights": 0.0} and run.extra["statistics"]
    found = harness.outputs(own, module, run, "timm")
    # the deepest multiplies by 40 frozen statistics one after another: timm's own fp32 is 1.2e-5 from its fp64 there
    deep = sum(stage[4] for stage in run.model.sizes.stages) > 16
    assert set(found) == {"maps", "pooled", "logits"} and found["maps"] <= (2e-5 if deep else 1e-5), found
    assert max(found["pooled"], found["logits"]) <= 1e-5, found


def test_losses_and_gradients_are_theirs(made):
    own, module, run, _, tmp = made
    rows = harness.families()[own.family].reference["timm"].rows(run.model)
    found, gradient = harness.gradients(own, module, run, tmp / "theirs", rows)
    assert found <= 1e-5 and gradient <= 1e-4, (found, gradient)


def test_what_is_exported_is_theirs(made, tmp_path):
    own, module, run, _, tmp = made

    def load(folder):
        from safetensors.torch import load_file

        found = own.build()
        missing = found.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        assert all(k.endswith("num_batches_tracked") for k in missing.missing_keys) and not missing.unexpected_keys
        return found

    harness.round_trip(own, module, run, tmp, load, format="timm")


@pytest.mark.slow
def test_fine_tuning_leaves_the_statistics_as_they_came(made, tmp_path):
    """One step of the trainer from an imported run moves every parameter, and no mean or variance."""
    from simvlm_jax import experiment
    from simvlm_jax.core.build import load_config, spec
    from simvlm_jax.run.load import load_run

    _, _, run, _, tmp = made
    own = tmp_path / "configs" / "own.py"
    own.parent.mkdir()
    own.write_text(
        f"from configs import parts\n\n\ndef get_config():\n    return parts.from_run({str(tmp / 'run')!r})\n"
    )
    config = load_config(str(own))
    steps = [spec("simvlm_jax.data.transforms:Pixels", size=config.data.image_size)]
    steps += [
        spec("simvlm_jax.data.transforms:Label"),
        spec("simvlm_jax.data.transforms:Keep", keys=("image", "label")),
    ]
    config.data.parts.pairs.update(path="scenes/classes", transforms=tuple(steps))
    config.data.labels.size = 4
    config.train.update(steps=1, batch_size=8)
    config.train.init_from = ({"run": str(tmp / "run"), "map": (("^head", None),)},)  # to answers of its own
    config.eval.examples, config.log.every = 8, 1
    experiment.run(config, str(tmp_path / "tuned"), mode="fit")
    tuned = load_run(tmp_path / "tuned")
    jax.tree.map(np.testing.assert_array_equal, tuned.extra, run.extra)
    before, after = ({k: v for k, v in x.params.items() if k != "head"} for x in (run, tuned))
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), after, before)
    assert all(jax.tree.leaves(moved)) and tuned.config.data.image_size == run.config.data.image_size

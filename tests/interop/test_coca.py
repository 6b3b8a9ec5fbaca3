"""CoCa of open_clip: its models become runs that caption, contrast and learn the same, and are written the same."""

import json

import jax
import numpy as np
import pytest

from simvlm_jax.core.types import Vocabulary
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.interop.reference import tensor
from simvlm_jax.models.coca_open_clip import OpenCoCa
from tests.interop import harness
from tests.interop.harness import PIECES, Case

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

VISION = dict(image_size=24, width=24, layers=3, head_width=8, patch_size=8, attentional_pool=True, output_tokens=True)
VISION |= dict(attn_pooler_queries=7, attn_pooler_heads=2)
WORDS = dict(context_length=12, vocab_size=PIECES, width=32, heads=4)
MODELS = {
    "coca": dict(vision_cfg=VISION),
    "coca-one-width": dict(
        vision_cfg={**VISION, "width": 32}, quick_gelu=True
    ),  # torch keeps the pooler's maps together
}


def build(fields):
    text = {**WORDS, "layers": 2, "embed_cls": True, "output_tokens": True}
    config = dict(embed_dim=32, text_cfg=text, multimodal_cfg={**WORDS, "layers": 3}, **fields)
    module = open_clip.CoCa(**config)
    torch.nn.init.normal_(module.text_decoder.text_projection, std=0.1)  # which it leaves as memory was
    module.config = config
    return module


def save(module, folder):
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(module.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": module.config}))
    harness.byte_tokenizer(folder)


def loss(module, model, extra, rows):
    out = module(tensor(rows["pixels"]), tensor(rows["tokens"]))
    own = open_clip.loss.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)
    theirs = sum(own(**{k: out[k] for k in ("image_features", "text_features", "logits", "labels", "logit_scale")}))
    batch = {"pairs": {**rows, "weight": np.ones(len(rows["image"]), np.float32)}}

    def ours(params):
        given = dict(rngs=jax.random.key(0), step=0, train=False)
        features, terms, _ = model.per_example(params, extra, batch, **given)
        terms |= model.across_batch(params, extra, features, step=0, train=False)[0]
        return sum(t.weight * t.sum / t.count for t in terms.values())

    return theirs, ours


def case(name):
    return Case("coca", lambda: build(MODELS[name]), save, loss=loss, layout="open_clip")


@pytest.fixture(params=MODELS, scope="module")
def made(request, tmp_path_factory):
    own, tmp = case(request.param), tmp_path_factory.mktemp("interop")
    return own, *harness.imported(own, tmp), tmp


def test_outputs_are_theirs(made):
    own, module, run, report, _ = made
    assert report["compared"] == {"weights": 0.0}
    found = harness.outputs(own, module, run, own.layout)
    assert set(found) == {"image_embeds", "text_embeds", "logits", "caption_logits"} and max(found.values()) <= 1e-5, (
        found
    )


def test_losses_and_gradients_are_theirs(made):
    own, module, run, _, tmp = made
    rows = harness.families()[own.family].reference[own.layout].rows(run.model)
    found, gradient = harness.gradients(own, module, run, tmp / "theirs", rows)
    assert found <= 1e-5 and gradient <= 1e-4, (found, gradient)


@pytest.mark.parametrize("prompt", ["", "a c"])
def test_captions_are_theirs(made, prompt):
    """The same pieces as the likeliest one by one of their forward pass, which has no cache."""
    own, module, run, _, _ = made
    rows = harness.families()[own.family].reference[own.layout].rows(run.model)
    v, able = run.model.vocabulary, run.model.capabilities()
    ids = run.tokenizer.encode(prompt)
    text = np.tile(np.asarray(ids, np.int32), (4, 1))
    given = {"image": rows["image"], "text": text, "text_mask": np.ones(text.shape, bool)}
    how = Decoding(max_length=7)
    write = jax.jit(lambda params: generate(able, params, run.extra, given, vocabulary=v, decoding=how))
    found = np.asarray(write(run.params).tokens[:, 0])
    for row in range(4):
        pieces = [v.bos, *ids]
        for piece in found[row]:
            with torch.no_grad():
                out = module(tensor(rows["pixels"][row : row + 1]), torch.tensor([pieces]), output_labels=False)
            logits = out["logits"][0, -1]
            logits[[v.bos, v.pad]] = -torch.inf
            assert int(logits.argmax()) == piece
            pieces.append(int(piece))
            if piece == v.eos:
                break


def test_what_is_exported_is_theirs(made):
    own, module, run, _, tmp = made

    def load(folder):
        return harness.families()["coca"].reference["open_clip"].load(folder)

    harness.round_trip(own, module, run, tmp, load, format="open_clip")


def test_cached_is_uncached(made):
    """A law of models that write, for this one that no config builds."""
    _, _, run, _, _ = made
    rng = np.random.default_rng(0)
    rows = {"image": rng.integers(0, 256, (4, 1, 24, 24, 3), dtype=np.uint8), "text": np.zeros((4, 10), np.int32)}
    rows["text"][:, :6] = rng.integers(4, 50, (4, 6))
    able = run.model.capabilities()
    _, cache = able["prefill"](
        run.params, {}, {**rows, "text": rows["text"][:, :3], "text_mask": np.ones((4, 3), bool)}, 4
    )
    for t in range(3, 6):
        step, cache = able["extend"](run.params, {}, cache, rows["text"][:, t : t + 1])
        whole = {**rows, "text": rows["text"][:, : t + 1], "text_mask": np.ones((4, t + 1), bool)}
        fresh, _ = able["prefill"](run.params, {}, whole, 4)
        np.testing.assert_allclose(step[:, 0], fresh, atol=2e-5)


def test_the_position_of_cls_stays_with_other_lengths():
    """The last row of the table is [CLS]'s, however long texts are."""
    model = OpenCoCa(Vocabulary(50, 14), image_size=32)
    learned, fresh = np.arange(12.0)[:, None], -np.ones((16, 1))
    longer = model.adapt({"text_position": learned}, {"text_position": fresh})["text_position"][:, 0]
    assert longer.tolist() == [*range(11), *[-1] * 4, 11]
    shorter = model.adapt({"text_position": learned}, {"text_position": fresh[:10]})["text_position"][:, 0]
    assert shorter.tolist() == [*range(9), 11]


def test_what_open_clips_coca_refuses():
    with pytest.raises(ValueError, match="no way without a cascade"):
        OpenCoCa(Vocabulary(50, 14), image_size=32, cascade=False)
    with pytest.raises(ValueError, match="contrastive_weight"):
        OpenCoCa(Vocabulary(50, 14), image_size=32, contrastive_weight=-1.0)

"""BLIP: transformers' captioner, matcher and answerer become runs that look, read and write the same, and are written as they were."""

import numpy as np
import pytest

from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.interop.reference import tensor
from tests.interop import harness
from tests.interop.harness import PIECES, Case

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = dict(hidden_size=24, encoder_hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3)
TEXT |= dict(vocab_size=PIECES + 2, max_position_embeddings=40, bos_token_id=PIECES, sep_token_id=257, pad_token_id=258)
VISION = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
)
MODELS = {
    "captions": ("BlipForConditionalGeneration", "logits"),
    "matching": ("BlipForImageTextRetrieval", "odds"),
    "answers": ("BlipForQuestionAnswering", "logits"),
}


def save(module, folder):
    module.save_pretrained(folder)
    harness.byte_tokenizer(folder, PIECES)


def case(name):
    kind, _ = MODELS[name]
    wide = {"hidden_size": 36, "num_attention_heads": 3} if name != "answers" else {}

    def build():
        text = {**TEXT, "encoder_hidden_size": wide.get("hidden_size", 24)}
        config = transformers.BlipConfig(
            text_config=text, vision_config={**VISION, **wide}, image_text_hidden_size=20, attn_implementation="eager"
        )
        return getattr(transformers, kind)(config)

    return Case("blip", build, save)


@pytest.fixture(params=MODELS, scope="module")
def made(request, tmp_path_factory):
    """(name, case, module, run, report, folder)."""
    own, tmp = case(request.param), tmp_path_factory.mktemp("interop")
    return request.param, own, *harness.imported(own, tmp), tmp


def test_outputs_are_theirs(made):
    name, own, module, run, report, _ = made
    assert report["compared"] == {"weights": 0.0}
    found = harness.outputs(own, module, run, "hf")
    assert MODELS[name][1] in found and max(found.values()) <= 1e-5, found


def test_what_is_exported_is_theirs(made):
    _, own, module, run, _, tmp = made
    harness.round_trip(own, module, run, tmp, type(module).from_pretrained)


def test_captions_of_beam_search_are_theirs(made):
    """Three beams, five pieces to twelve: piece by piece the same."""
    name, _, module, run, _, _ = made
    if name != "captions":
        pytest.skip("it writes no captions")
    from simvlm_jax.decode.generate import generate

    rows = harness.families()["blip"].reference["hf"].rows(run.model)
    with torch.no_grad():
        out = module.generate(
            pixel_values=tensor(rows["pixels"]).float(), num_beams=3, min_length=5, max_length=13, early_stopping=False
        )
    theirs = out.numpy()[:, 1:]  # after [DEC]
    empty = {"text": np.zeros((4, 0), np.int32), "text_mask": np.zeros((4, 0), bool)}
    how = Decoding(max_length=12, min_length=4, beams=3)
    made = generate(
        run.model.capabilities(),
        run.params,
        run.extra,
        {"image": rows["image"], **empty},
        vocabulary=run.model.vocabulary,
        decoding=how,
    )
    ours = np.asarray(made.tokens[:, 0])
    np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)

"""T5 of both versions: transformers' models become runs that read, write, learn and are written the same."""

import jax
import numpy as np
import pytest

from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.interop.maps.t5 import shifted
from simvlm_jax.interop.reference import tensor
from tests.interop import harness
from tests.interop.harness import PIECES, Case

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = dict(d_model=24, d_kv=8, d_ff=40, num_layers=5, num_decoder_layers=3, num_heads=3, vocab_size=PIECES)
SHAPE |= dict(decoder_start_token_id=258, pad_token_id=258, eos_token_id=257, relative_attention_max_distance=10)
MODELS = {
    "t5": {"relative_attention_num_buckets": 8},
    "t5-v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, d_kv=6),
}


def save(module, folder):
    from safetensors.torch import save_file

    module.save_pretrained(folder)
    if module.lm_head.weight is not module.shared.weight:  # which transformers 5 does not write
        state = {k: v.clone() for k, v in module.state_dict().items() if "embed_tokens" not in k}
        save_file(state, folder / "model.safetensors")
    harness.byte_tokenizer(folder)


def loss(module, model, extra, rows):
    inputs, there = shifted(rows)
    out = module(
        input_ids=tensor(rows["tokens"]), attention_mask=tensor(rows["given"]).long(), decoder_input_ids=tensor(inputs)
    )
    targets = tensor(rows["text"][rows["segment"] >= 0])
    given = {k: rows[k] for k in ("text", "text_mask", "prefix_length")}
    batch = {"documents": {**given, "weight": np.ones(len(inputs), np.float32)}}

    def ours(params):
        _, terms, _ = model.per_example(params, extra, batch, rngs=jax.random.key(0), step=0, train=False)
        return terms["lm"].sum / terms["lm"].count

    return torch.nn.functional.cross_entropy(out.logits[torch.tensor(there)], targets), ours


def case(name):
    def build():
        config = transformers.T5Config(**{**SHAPE, **MODELS[name]})
        config._attn_implementation = "eager"
        module = transformers.T5ForConditionalGeneration(config)
        if not config.scale_decoder_outputs:
            module.lm_head.weight = torch.nn.Parameter(torch.randn_like(module.lm_head.weight))
        return module

    return Case("t5", build, save, loss=loss)


@pytest.fixture(params=MODELS, scope="module")
def made(request, tmp_path_factory):
    own, tmp = case(request.param), tmp_path_factory.mktemp("interop")
    return own, *harness.imported(own, tmp), tmp


def test_outputs_are_theirs(made):
    own, module, run, report, _ = made
    assert report["compared"] == {"weights": 0.0}
    found = harness.outputs(own, module, run, "hf")
    assert set(found) == {"encoder_states", "decoder_states", "logits"} and max(found.values()) <= 1e-5, found


def test_losses_and_gradients_are_theirs(made):
    own, module, run, _, tmp = made
    rows = harness.families()[own.family].reference["hf"].rows(run.model)
    found, gradient = harness.gradients(own, module, run, tmp / "theirs", rows)
    assert found <= 1e-5 and gradient <= 1e-4, (found, gradient)


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_theirs(made, beams):
    _, module, run, _, _ = made
    rows, v = harness.tokens_of(["a cat", "dogs!", "12345"], run), run.model.vocabulary
    given = np.pad(rows["text"], ((0, 0), (0, 1)), constant_values=v.eos)
    with torch.no_grad():
        theirs = module.generate(
            tensor(given),
            max_new_tokens=9,
            num_beams=beams,
            do_sample=False,
            early_stopping="never" if beams > 1 else False,
            suppress_tokens=[258],
        )[:, 1:].numpy()
    able, how = run.model.capabilities(), Decoding(max_length=9, beams=beams)
    write = jax.jit(lambda params: generate(able, params, run.extra, rows, vocabulary=v, decoding=how))
    ours = np.asarray(write(run.params).tokens[:, 0])
    np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)


def test_what_is_exported_is_theirs(made):
    own, module, run, _, tmp = made

    def load(folder):
        from safetensors.torch import load_file

        found = own.build()
        missing = found.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        assert not missing.unexpected_keys
        assert all("embed_tokens" in k or k == "lm_head.weight" for k in missing.missing_keys)
        assert (
            transformers.T5Config.from_pretrained(folder).scale_decoder_outputs == module.config.scale_decoder_outputs
        )
        return found

    harness.round_trip(own, module, run, tmp, load)

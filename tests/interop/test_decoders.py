"""Decoders of text: transformers' models of every family become runs that say, learn and write the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import Term
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.interop.reference import tensor
from tests.interop import harness
from tests.interop.harness import PIECES, Case

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SPECIAL = dict(vocab_size=PIECES, bos_token_id=256, eos_token_id=257, pad_token_id=258, attn_implementation="eager")
MODERN = dict(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=5,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=64,
)
OLD = dict(n_embd=24, n_inner=40, n_layer=5, n_head=3, n_positions=64)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
MODELS = {  # name: (family, its config there, what it takes)
    "gpt2": ("gpt2", "GPT2Config", OLD),
    "gptj": ("gptj", "GPTJConfig", {**OLD, "rotary_dim": 4}),
    "opt": (
        "opt",
        "OPTConfig",
        dict(hidden_size=24, ffn_dim=40, num_hidden_layers=5, num_attention_heads=3)
        | dict(word_embed_proj_dim=24, max_position_embeddings=64),
    ),
    "opt-350m": (
        "opt",
        "OPTConfig",
        dict(hidden_size=24, ffn_dim=40, num_hidden_layers=3, num_attention_heads=3, do_layer_norm_before=False)
        | dict(word_embed_proj_dim=16, max_position_embeddings=64),
    ),
    "llama": ("llama", "LlamaConfig", {**MODERN, "rms_norm_eps": 1e-5, "head_dim": 6, "tie_word_embeddings": False}),
    "llama-biased": (
        "llama",
        "LlamaConfig",
        {**MODERN, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "llama-longer": (
        "llama",
        "LlamaConfig",
        {**MODERN, "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}},
    ),
    "llama-interpolated": (
        "llama",
        "LlamaConfig",
        {**MODERN, "rope_parameters": dict(rope_type="linear", rope_theta=500.0, factor=2.0)},
    ),
    "smollm2": ("smollm2", "LlamaConfig", {**MODERN, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", "Qwen2Config", {**MODERN, "tie_word_embeddings": True}),
    "mistral": ("mistral", "MistralConfig", {**MODERN, "sliding_window": 5, "head_dim": 8}),
}
BEGINS = ("opt", "llama", "llama-longer", "mistral")
"""Whose texts begin with a BOS here."""


def loss(module, model, extra, rows):
    """The mean over pieces: theirs over a sequence that we lay out for it, ours as it is trained."""
    text, there = rows["text"], rows["text_mask"]
    inputs, labels = text, np.where(there, text, -100)
    if model.sizes.begins:
        first = np.full((len(text), 1), model.vocabulary.bos)
        inputs, labels = (np.concatenate([x, y], axis=1) for x, y in ((first, text), (0 * first - 100, labels)))
    mask = np.concatenate([np.ones((len(text), inputs.shape[1] - text.shape[1]), bool), there], axis=1)
    theirs = module(input_ids=tensor(inputs), attention_mask=tensor(mask).long(), labels=tensor(labels)).loss
    batch = {"documents": {**rows, "weight": np.ones(len(text), np.float32)}}

    def ours(params):
        _, terms, _ = model.per_example(params, extra, batch, rngs=jax.random.key(0), step=0, train=False)
        term: Term = terms["lm"]
        return term.sum / term.count

    return theirs, ours


def case(name):
    family, config, fields = MODELS[name]

    def build():
        made = getattr(transformers, config)(**{**SPECIAL, **fields})
        return transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager")

    def save(module, folder):
        module.save_pretrained(folder)
        harness.byte_tokenizer(folder, begins=name in BEGINS)

    return Case(family, build, save, loss=loss)


@pytest.fixture(params=MODELS, scope="module")
def made(request, tmp_path_factory):
    """(case, module, run, report, folder)."""
    own, tmp = case(request.param), tmp_path_factory.mktemp("interop")
    module, run, report = harness.imported(own, tmp)
    return own, module, run, report, tmp


def test_outputs_are_theirs(made):
    own, module, run, report, _ = made
    assert report["compared"] == {"weights": 0.0}
    exact = own.family != "mistral"  # whose masks of padding and window are NaN in fp64
    found = harness.outputs(own, module, run, "hf", exact)
    assert set(found) == {"states", "logits"} and max(found.values()) <= 1e-5, found


def test_losses_and_gradients_are_theirs(made):
    own, module, run, _, tmp = made
    from simvlm_jax.interop.reference import random_texts

    loss, gradient = harness.gradients(own, module, run, tmp / "theirs", random_texts(run.model.vocabulary))
    assert loss <= 1e-5 and gradient <= 1e-4, (loss, gradient)


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_theirs(made, beams):
    """The same pieces after prompts of equal lengths, greedily and by beam search; there padding would stand on the left."""
    _, module, run, _, _ = made
    rows = harness.tokens_of(["a cat", "dogs!", "12345"], run)
    prompt = rows["text"]
    if run.model.sizes.begins:
        prompt = np.concatenate([np.full((3, 1), run.model.vocabulary.bos), prompt], axis=1)
    with torch.no_grad():
        theirs = module.generate(
            tensor(prompt),
            attention_mask=torch.ones(prompt.shape, dtype=torch.long),
            max_new_tokens=9,
            num_beams=beams,
            do_sample=False,
            early_stopping="never" if beams > 1 else False,
            pad_token_id=258,
            suppress_tokens=[256, 258],  # a text holds neither BOS nor padding
        )[:, prompt.shape[1] :].numpy()
    how = Decoding(max_length=9, beams=beams)
    able, v = run.model.capabilities(), run.model.vocabulary
    write = jax.jit(lambda params: generate(able, params, run.extra, rows, vocabulary=v, decoding=how))
    ours = np.asarray(write(run.params).tokens[:, 0])
    np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)
    assert (ours[:, theirs.shape[1] :] == v.pad).all()


def test_what_is_exported_is_theirs(made):
    own, module, run, _, tmp = made

    def load(folder):
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    harness.round_trip(own, module, run, tmp, load)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp / "out")
    text = "Cats & dogs\n  bark."
    assert theirs.encode(text, add_special_tokens=False) == run.tokenizer.encode(text)


def test_an_empty_prompt_goes_on_from_bos(made):
    _, _, run, _, _ = made
    model, v = run.model, run.model.vocabulary
    empty = {"text": np.zeros((1, 2), np.int32), "text_mask": np.zeros((1, 2), bool)}
    logits, _ = model.prefill(run.params, {}, empty, 4)
    place = np.zeros((1, 1), np.int32)
    expected = model.apply(run.params, "inspected", np.full((1, 1), v.bos), place, place)[1]
    np.testing.assert_allclose(logits[0], expected[0, 0], atol=1e-5)
    assert dataclasses.is_dataclass(model) and jnp.isfinite(logits).all()

"""BERT and sentence encoders: transformers' models become runs that read, learn and are written the same."""

import json

import jax
import numpy as np
import pytest

from simvlm_jax.interop.reference import tensor
from simvlm_jax.run.load import load_run
from tests.interop import harness
from tests.interop.harness import PIECES, Case

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = dict(hidden_size=24, num_hidden_layers=5, num_attention_heads=3, intermediate_size=40)
SHAPE |= dict(vocab_size=PIECES, max_position_embeddings=40, pad_token_id=258)
MODELS = {  # name: (family, class, config)
    "bert": ("bert", "BertForMaskedLM", SHAPE),
    "bert-pooler": ("bert", "BertModel", {**SHAPE, "hidden_act": "gelu_new", "layer_norm_eps": 1e-6}),
    "minilm": ("minilm", "BertModel", SHAPE),
}


def save(module, folder):
    module.save_pretrained(folder)
    harness.byte_tokenizer(folder)


def loss(module, model, extra, rows):
    """Of masked language modelling: theirs of the text that we hide pieces of."""
    rows = {**rows, "text": np.asarray(model.ended(rows["text"], rows["text_mask"]))}
    hidden, predicted = (np.asarray(x) for x in model.hidden(rows))
    tokens, valid = (np.asarray(x) for x in model.lay_out(hidden, rows["text_mask"]))
    labels = np.where(np.pad(predicted, ((0, 0), (1, 0))), np.pad(rows["text"], ((0, 0), (1, 0))), -100)
    theirs = module(input_ids=tensor(tokens), attention_mask=tensor(valid).long(), labels=tensor(labels)).loss
    batch = {"documents": {**rows, "weight": np.ones(len(labels), np.float32)}}

    def ours(params):
        _, terms, _ = model.per_example(params, extra, batch, rngs=jax.random.key(0), step=0, train=False)
        return terms["mlm"].sum / terms["mlm"].count

    return theirs, ours


def case(name):
    family, kind, fields = MODELS[name]

    def build():
        made = getattr(transformers, kind)
        return made(made.config_class(attn_implementation="eager", **fields))

    return Case(family, build, save, loss=loss)


@pytest.fixture(params=MODELS, scope="module")
def made(request, tmp_path_factory):
    """(case, module, run, report, folder)."""
    own, tmp = case(request.param), tmp_path_factory.mktemp("interop")
    return own, *harness.imported(own, tmp), tmp


def test_outputs_are_theirs(made):
    own, module, run, report, _ = made
    assert report["compared"] == {"weights": 0.0}
    found = harness.outputs(own, module, run, "hf")
    expected = {"states", "mean", "logits"} if run.model.sizes.head else {"states", "mean", "pooler"}
    assert set(found) == expected and max(found.values()) <= 1e-5, found


def test_losses_and_gradients_are_theirs(made):
    own, module, run, _, tmp = made
    if not run.model.sizes.head:
        pytest.skip("it has no head to learn with")
    rows = harness.families()["bert"].reference["hf"].rows(run.model)
    rows = {k: rows[k] for k in ("text", "text_mask")} | {"seed": np.arange(len(rows["text"]), dtype=np.uint32)}
    found, gradient = harness.gradients(own, module, run, tmp / "theirs", rows)
    assert found <= 1e-5 and gradient <= 1e-4, (found, gradient)


def test_what_is_exported_is_theirs(made):
    own, module, run, _, tmp = made
    harness.round_trip(own, module, run, tmp, type(module).from_pretrained)


def test_a_text_is_pooled_as_its_folder_says(made, tmp_path):
    """sentence-transformers' 1_Pooling and max_seq_length, written and read."""
    own, _, run, _, tmp = made
    pool = {"bert": "cls", "minilm": "mean"}[own.family]
    pool = "pooler" if run.model.sizes.pooler and own.family == "bert" else pool
    assert run.model.sizes.pool == pool and run.model.vocabulary.length == 39
    if pool == "pooler":
        return
    said = json.loads((tmp / "out" / "1_Pooling" / "config.json").read_text())
    assert said[f"pooling_mode_{'cls_token' if pool == 'cls' else 'mean_tokens'}"] is True
    (tmp / "out" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    harness.import_run(str(tmp / "out"), str(tmp_path / "run"), "bert")
    again = load_run(tmp_path / "run").model
    assert again.sizes.pool == pool and again.vocabulary.length == 19


def test_pieces_are_hidden_as_the_paper_says(made):
    """About 15 % are predicted, of every text one at least, and never its EOS; 80 % of them become [MASK]."""
    _, _, run, _, _ = made
    model, rng = run.model, np.random.default_rng(0)
    text = rng.integers(0, 256, (2000, 30)).astype(np.int32)
    mask = np.arange(30) < rng.integers(2, 31, (2000, 1))
    last = mask.sum(1) - 1
    text[np.arange(2000), last] = model.vocabulary.eos
    rows = {"text": text, "text_mask": mask, "seed": np.arange(2000, dtype=np.uint32)}
    hidden, predicted = (np.asarray(x) for x in model.hidden(rows))
    assert predicted.any(1).all() and not predicted[~mask].any() and not predicted[np.arange(2000), last].any()
    np.testing.assert_array_equal(hidden[~predicted], text[~predicted])
    assert 0.14 < predicted.sum() / (mask.sum() - 2000) < 0.2  # a little more, for short texts have one
    masked = (hidden == model.sizes.mask)[predicted].mean()
    stayed = (hidden == text)[predicted].mean()
    assert abs(masked - 0.8) < 0.03 and abs(stayed - 0.1) < 0.03


def test_a_cut_text_is_ended_before_pieces_are_hidden(made):
    """The place of the [SEP] of a text that fills its row is never predicted: there is nothing there to be learned."""
    _, _, run, _, _ = made
    if not run.model.sizes.head:
        pytest.skip("it has no head to learn with")
    model, text = run.model, np.random.default_rng(0).integers(0, 256, (64, 6)).astype(np.int32)
    rows = {
        "text": text,
        "text_mask": text >= 0,
        "seed": np.arange(64, dtype=np.uint32),
        "weight": np.ones(64, np.float32),
    }
    _, free = model.hidden(rows)
    _, predicted = model.hidden({**rows, "text": model.ended(text, text >= 0)})
    assert np.asarray(free)[:, -1].any() and not np.asarray(predicted)[:, -1].any()
    _, terms, _ = model.per_example(run.params, {}, {"pairs": rows}, rngs=jax.random.key(0), step=0, train=False)
    assert int(terms["mlm"].count) == np.asarray(predicted).sum()

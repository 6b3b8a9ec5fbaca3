"""Imported weights are runs like any other: scored, fine-tuned, asked, begun from. No reference implementation is needed."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from configs import parts
from simvlm_jax import api, experiment
from simvlm_jax.cli import main
from simvlm_jax.core.build import load_config
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.eval.perplexity import Perplexity
from simvlm_jax.infer.engine import load_engine
from simvlm_jax.jobs.weights import import_run
from simvlm_jax.run.load import load_run
from tests.conftest import ROOT, SCENES
from tests.interop import harness

TOWER = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
CLIP = dict(
    model_type="clip",
    projection_dim=8,
    vision_config=dict(TOWER, image_size=16, patch_size=8),
    text_config=dict(TOWER, vocab_size=harness.PIECES, max_position_embeddings=60),
)
VIT = dict(TOWER, model_type="vit", image_size=[16, 24], patch_size=8, id2label={"0": "cat", "1": "dog", "2": "owl"})
LLAMA = dict(TOWER, model_type="llama", vocab_size=harness.PIECES, max_position_embeddings=64, hidden_act="silu")
T5 = dict(model_type="t5", d_model=128, d_kv=64, num_heads=2, d_ff=256, num_layers=2, num_decoder_layers=2)
T5 |= dict(vocab_size=harness.PIECES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs(family, config)`: a run of random weights of that shape."""
    made = {}

    def run(family, config, **tokenizer):
        key = json.dumps([family, config, tokenizer])
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            harness.random_source(folder / "theirs", family, config, **tokenizer)
            import_run(str(folder / "theirs"), str(folder / "run"), family)
            made[key] = folder / "run"
        return made[key]

    return run


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


# ---- CLIP ----------------------------------------------------------------------------------------------------------


def test_an_imported_clip_is_scored_without_training(runs, capsys):
    run = runs("clip", CLIP)
    words = ["eval", str(run), "--suite", "retrieval", "--data", SCENES, "--split", "test", "--limit", "8"]
    assert main(words) == 0
    assert "image_to_text_r1" in capsys.readouterr().out


def test_an_imported_clip_is_fine_tuned(runs, tmp_path):
    """By its own pixels and tokenizer; the weights begin as imported and go on."""
    run = runs("clip", CLIP)
    config = parts.from_run(str(run))
    config.data.parts.pairs.update(
        path=SCENES, transforms=parts.image_text_transforms(config.data.get_ref("image_size"))
    )
    config.train.update(steps=2, batch_size=8)
    config.eval.update(batch_size=8)
    config.log.every = 1
    experiment.run(config, str(tmp_path / "tuned"))
    before, after = load_run(run), load_run(tmp_path / "tuned")
    assert after.tokenizer.sha256 == before.tokenizer.sha256 and after.config.data.fit == before.config.data.fit
    assert after.model.sizes == before.model.sizes and after.step == 2
    moved = np.abs(after.params["image_projection"]["kernel"] - before.params["image_projection"]["kernel"]).max()
    assert 0 < moved < 1e-3


# ---- a classifier --------------------------------------------------------------------------------------------------


def test_an_imported_classifier_names_pictures_by_its_own_head(runs, picture, capsys):
    run = runs("vit", VIT, classes=3)
    assert main(["classify", str(run), picture, "--json"]) == 0
    named = json.loads(capsys.readouterr().out)["labels"]
    assert sorted(n["label"] for n in named) == ["cat", "dog", "owl"]
    assert math.isclose(sum(n["probability"] for n in named), 1, abs_tol=1e-3)
    found = api.load(str(run))
    assert found.can == ["embed", "classify"]
    assert set(found.classify(picture)) == {"cat", "dog", "owl"} and set(found.classify(picture, ["owl", "cat"])) == {
        "owl",
        "cat",
    }
    with pytest.raises(ValueError, match="'cow' is none of the 3 answers of this classifier"):
        found.classify(picture, ["cow", "cat"])


def test_images_that_are_not_square_are_gone_on_with(runs):
    assert parts.from_run(str(runs("vit", VIT, classes=3))).data.image_size == (16, 24)


# ---- a language model ----------------------------------------------------------------------------------------------


def test_texts_are_continued_and_scored(runs, capsys):
    run = runs("llama", LLAMA)
    assert main(["complete", str(run), "a cat", "b", "--max-length", "4", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["prompt"] for r in rows] == ["a cat", "b"] and rows[0]["log_likelihood"] < 0 == rows[1]["log_likelihood"]
    found = api.load(str(run))
    assert found.can == ["complete"] and found.complete("a cat", max_length=4) == rows[0]["text"]
    with pytest.raises(ValueError, match="has no template of chats"):
        found.chat("hi")
    engine, _ = load_engine(str(run))
    assert engine.score_prompts(["", "a"]).values.tolist() == [0, 0] and engine.score_prompts([""]).values.tolist() == [
        0
    ]


def test_a_chat_has_one_bos(runs, tmp_path):
    folder = tmp_path / "theirs"
    harness.random_source(folder, "llama", LLAMA, begins=True)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}>")
    import_run(str(folder), str(tmp_path / "run"))
    found = api.load(str(tmp_path / "run"))
    assert found.engine.model.sizes.begins and found.engine.chat_of([{"role": "user", "content": "hi"}]) == "hi</s>>"
    assert found.can == ["complete", "chat"]
    (answer,) = found.engine.generate(None, ["hi</s>>"], np.zeros(1, np.int64), Decoding(4)).values
    assert (
        found.chat("hi", max_length=4) == answer[0][0].strip() != ""
    )  # what comes after the EOS of a turn is not lost


def test_perplexity_counts_what_it_scores(runs, tmp_path):
    """Pieces and bytes after the first piece; of a text that is cut those of its end."""
    engine, _ = load_engine(str(runs("llama", LLAMA)))
    texts = ["a cat sat", "x", "no " * 40]
    made = []
    for text in texts:
        first, *rest = engine.tokenizer.ids_of(text)[-16:]
        made.append((len(rest), len(bytes(engine.tokenizer.decode_after([first], rest), "utf-8"))))
    assert made == [(8, 8), (0, 0), (15, 15)]  # a piece a byte

    class Rows:
        def chunks(self, size):
            yield [{"text": t} for t in texts], None

    suite = object.__new__(Perplexity)
    object.__setattr__(suite, "field", "text")
    object.__setattr__(suite, "longest", 16)
    answered = suite.answers(engine, Rows()).values  # pyright: ignore[reportArgumentType]
    assert [(e["pieces"], e["bytes"]) for e, _ in answered] == made
    scores = suite.outcome(engine, answered).scores
    total = -float(np.sum(engine.score_prompts(texts, 16).values))
    assert scores["nats_per_piece"] == pytest.approx(total / 23) and scores["perplexity"] == pytest.approx(
        math.exp(total / 23)
    )
    assert scores["bits_per_byte"] == pytest.approx(total / math.log(2) / 23)


# ---- T5 as a start -------------------------------------------------------------------------------------------------


def test_a_t5_starts_a_simvlm(runs, tmp_path):
    """The recipe of prefixlm:base_t5 at a small size: stacks and embedding begin as the T5's, scaled, the rest anew."""
    from configs.prefixlm import from_t5, model

    run = runs("t5", T5)
    config = load_config(f"{ROOT / 'configs' / 'prefixlm.py'}:smoke")
    config.model = model("tiny", remat="none")
    config.data.parts.pairs.path = SCENES
    config.train.update(steps=1, batch_size=8)
    config.eval.update(batch_size=8, examples=8)
    config.optimizer.learning_rate = 1e-9
    experiment.run(from_t5(config, str(run), width=128, head=64), str(tmp_path / "started"))
    theirs, ours = load_run(run), load_run(tmp_path / "started")
    assert ours.tokenizer.sha256 == theirs.tokenizer.sha256
    np.testing.assert_allclose(ours.params["embedding"], theirs.params["embedding"] / 128**0.5, atol=1e-6)
    for stack in ("encoder", "decoder"):
        own, old = (p.params[stack]["layers"] for p in (ours, theirs))
        np.testing.assert_allclose(own["attention"]["query"], old["attention"]["query"] * 64**0.5, atol=1e-6)
        np.testing.assert_allclose(own["mlp"]["up"], old["mlp"]["up"], atol=1e-6)

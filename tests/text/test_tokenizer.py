"""Tokenizers: the encodings of sentencepiece's own models, and errors instead of training on nothing."""

import json

import pytest

from simvlm_jax.text.tokenizer import Tokenizer, clean


@pytest.mark.parametrize("name", ["test_model.model", "t5_seqio_test_sentencepiece.model", "test_ja_model.model"])
def test_golden_encodings(shared, name):
    folder = shared("sentencepiece_ref")
    golden = json.loads((folder / "golden_encodings.json").read_text())
    tokenizer = Tokenizer.from_file(folder / name, 16)
    special = {tokenizer.vocabulary.pad, tokenizer.vocabulary.bos, tokenizer.vocabulary.eos}
    for text, expected in zip(golden["texts"], golden["models"][name], strict=True):
        assert tokenizer.encode(text) == expected["ids"]
        if not special & set(expected["ids"]):  # a text that spells "</s>" may hold one
            assert tokenizer.decode(expected["ids"]) == expected["decoded"]


def test_models_without_pad_or_bos_never_train_on_them(shared):
    t5 = Tokenizer.from_file(shared("sentencepiece_ref") / "t5_seqio_test_sentencepiece.model", 16).vocabulary
    assert (t5.pad, t5.bos, t5.eos) == (0, 0, 1)  # no bos: starts from pad
    plain = Tokenizer.from_file(shared("sentencepiece_ref") / "test_model.model", 16).vocabulary
    assert (plain.pad, plain.bos, plain.eos) == (2, 1, 2)  # no pad: pads with eos, which the mask leaves out


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(
        [f"a {c} {s} number {i}" for i in range(9) for c in ("red", "blue") for s in ("cube", "ball")], 60, 8
    )


def test_own_models(tokenizer):
    v = tokenizer.vocabulary
    assert (v.pad, v.bos, v.eos, v.length) == (0, 1, 2, 8) and v.size <= 60
    ids = tokenizer.encode("a red cube")
    assert tokenizer.decode([v.bos, *ids, v.eos, *ids, v.pad]) == "a red cube"
    assert tokenizer.decode([*ids, v.size + 5, -1]) == "a red cube"
    assert "".join(tokenizer.pieces(ids)) == " a red cube"


def test_a_corpus_too_small_for_its_vocabulary_gets_what_it_holds():
    assert 4 < Tokenizer.train(["ab ba"] * 5, 100, 8).vocabulary.size < 20
    # 197 with sentencepiece 0.2.1 and 0.2.2, which learn pieces of the line of ASCII that they need
    assert 98 < Tokenizer.train(["ab ba"] * 5, 5000, 8).vocabulary.size < 200


def test_ascii_is_known_whatever_the_corpus():
    tokenizer = Tokenizer.train(["a red circle", "two blue squares"] * 9, 200, 8)
    text = "Quick, brown & (jumpy) fox #7: what's up?"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bad_models_are_named(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.from_file(tmp_path / "nowhere.model", 8)
    (tmp_path / "x.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        Tokenizer.from_file(tmp_path / "x.model", 8)
    with pytest.raises(ValueError, match="no room"):
        Tokenizer(tokenizer.model, 1)


def test_the_contract_is_kept(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).contract() == tokenizer.contract()
    other = Tokenizer.train(["some other words entirely"] * 9, 30, 8)
    (tmp_path / "tokenizer.model").write_bytes(other.model)
    with pytest.raises(ValueError, match="breaks its contract"):
        Tokenizer.load(tmp_path)
    (tmp_path / "contract.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"contract\.json"):
        Tokenizer.load(tmp_path)


def test_clean():
    assert clean(b"a \xff\n\tdog  ") == "a � dog" and clean(" x\u00a0y ") == "x y"


@pytest.mark.parametrize(
    ("spelling", "alike"),
    [("", "a Red, dog!"), ("lower", "a red, dog!"), ("plain", "a red dog")],
    ids=["as is", "lower", "plain"],
)
def test_spelling_belongs_to_the_tokenizer(tmp_path, spelling, alike):
    texts = ["a Red, dog!", "a red dog", "blue: cat?"] * 30
    made = Tokenizer.train(texts, 130, 16, spelling)
    plain = Tokenizer(made.model, 16)
    assert made.encode("a Red, dog!") == plain.encode(alike)
    made.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.spelling == spelling and loaded.encode("A red dog!") == made.encode("A red dog!")
    assert (made.sha256 == plain.sha256) == (spelling == "")  # another spelling is another tokenizer
    with pytest.raises(ValueError, match="spelling 'upper' is not one of"):
        Tokenizer(made.model, 16, "upper")


def test_a_folder_that_is_a_file_is_named(tokenizer, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(NotADirectoryError, match="file is a file, where a tokenizer needs a folder"):
            tokenizer.save(path)
    assert (tmp_path / "file").read_text() == "mine"

"""Tokenizers that come with weights: the encodings of their own libraries, on all texts that there is truth for."""

import json

import numpy as np
import pytest

from simvlm_jax.core.files import BadFile
from simvlm_jax.interop.source import Source
from simvlm_jax.interop.tokenizers import byte_letters, found_in, gguf_tokenizer, tokenizer_of
from simvlm_jax.text.built import byte_pairs, word_pieces
from simvlm_jax.text.chat import rendered
from simvlm_jax.text.pieces import Roles
from simvlm_jax.text.tokenizer import Tokenizer


def bare(folder):
    return Source(folder / "w", folder, "hf", None, {})  # pyright: ignore[reportArgumentType]


def test_clips_byte_pairs_are_its_authors(shared):
    """All 1,110 encodings and decodings of OpenAI's own tokenizer."""
    folder = shared("clip_ref")
    found = found_in(folder / "bpe_simple_vocab_16e6.txt.gz", {}, {})
    tokenizer = found.tokenizer(77, "mended")
    assert (found.roles.size, found.roles.bos, found.roles.eos) == (49_408, 49_406, 49_407)
    golden = json.loads((folder / "clip_bpe_golden.json").read_text())
    assert len(golden) == 1110
    for case in golden:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        special = {found.roles.bos, found.roles.eos}
        if not special & set(case["ids"]):  # a text that spells one of them
            assert tokenizer.decode(case["ids"]) == case["decoded"]


@pytest.mark.parametrize(
    "name",
    ["test_model.model", "t5_seqio_test_sentencepiece.model", "test_ja_model.model", "hf_fixture_spiece.model"],
)
def test_sentencepieces_are_its_own(shared, name):
    """All encodings of every model, in the folder of someone's weights under the name that it has there."""
    folder = shared("sentencepiece_ref")
    golden = json.loads((folder / "golden_encodings.json").read_text())
    said = {"eos_token": "[SEP]", "bos_token": "[CLS]"} if name.startswith("hf") else {}
    tokenizer = found_in(folder / name, said, {}).tokenizer(64, "exact")
    for text, expected in zip(golden["texts"], golden["models"][name], strict=True):
        assert tokenizer.encode(text) == expected["ids"], text


TEXTS = [
    "Hello World!",
    "it's 3.14 o'clock\n\n  don't",
    "naïve café — “quotes” 日本語",
    "  spaces\tand tabs ",
    "a1b22c333",
]


@pytest.fixture(scope="module")
def corpus():
    words = [
        f"the {a} {b} isn't {n}, é{n} but {b}s" for n in range(40) for a in ("red", "blue") for b in ("cat", "dog")
    ]
    return [*words, *TEXTS]


def test_byte_pairs_by_vocab_and_merges(corpus, tmp_path):
    """vocab.json and merges.txt of GPT-2's kind are what the tokenizer they came from says."""
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(corpus, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    theirs.save_model(str(tmp_path))
    found = tokenizer_of(bare(tmp_path))
    ours = found.tokenizer(64, "exact")
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.pieces([found.roles.eos]) == ["<|endoftext|>"] and ours.encode("<|endoftext|>a")[0] == found.roles.eos


def test_word_pieces_by_vocab(corpus, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.BertWordPieceTokenizer(lowercase=True)
    theirs.train_from_iterator(corpus, vocab_size=200, show_progress=False)
    theirs.save_model(str(tmp_path))
    found = tokenizer_of(bare(tmp_path))
    ours = found.tokenizer(64, "")
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    names = dict(
        zip(("pad", "bos", "eos"), ours.pieces([found.roles.pad, found.roles.bos, found.roles.eos]), strict=True)
    )
    assert names == {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]"}


def test_a_cased_vocabulary_stays_cased():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Cat", "cat"]
    cased, lower = (Tokenizer(word_pieces(pieces, lower), 8) for lower in (False, True))
    assert cased.encode("Cat cat") == [5, 6] and lower.encode("Cat cat") == [6, 6]


def test_transformers_says_the_same_of_a_folder(corpus, tmp_path):
    """tokenizer.json with tokenizer_config.json: pieces, special ids and the chat of transformers' own class."""
    transformers = pytest.importorskip("transformers")
    import tokenizers

    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(corpus, vocab_size=400, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False)
    theirs.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}{{ bos_token + m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ bos_token + 'assistant: ' }}{% endif %}"
    said = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<s>",
        eos_token={"__type": "AddedToken", "content": "</s>"},
        pad_token="<pad>",
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**said, "chat_template": template}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = tokenizer_of(bare(tmp_path))
    ours = found.tokenizer(64, "exact", 410)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = (reference.pad_token_id, reference.bos_token_id, reference.eos_token_id)
    assert found.roles[1:] == ids and ours.vocabulary.size == 410
    for text in TEXTS:
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi\n there"}]
    expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.chat_of(messages) == expected == "<s>system: be brief</s><s>user: hi\n there</s><s>assistant: "


def test_a_tokenizer_travels_with_its_run(tmp_path):
    letters = [*byte_letters().values(), "<s>", "</s>"]
    vocabulary = {p: i for i, p in enumerate(letters)}
    made = byte_pairs(vocabulary, [], {"<s>": 256, "</s>": 257})
    own = Tokenizer(made, 16, "exact", Roles(260, 257, 256, 257), "{{ messages[0]['content'] }}!")
    own.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.contract() == own.contract() and again.vocabulary == own.vocabulary
    assert again.chat_of([{"role": "user", "content": "hi"}]) == "hi!"
    assert again.ids_of(" a\n b") == own.encode(" a\n b") and again.decode(own.encode(" a\n b")) == " a\n b"
    assert again.with_length(8).vocabulary.length == 8 and again.with_length(8).roles == own.roles
    contract = json.loads((tmp_path / "contract.json").read_text())
    (tmp_path / "contract.json").write_text(json.dumps({**contract, "eos": 300}))
    with pytest.raises(ValueError, match="needs as many ids at least, and its special ids among them"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(made.replace(b'"</s>"', b'"<\\/s>"'))
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    with pytest.raises(ValueError, match="breaks its contract"):
        Tokenizer.load(tmp_path)


# ---- chats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered"),
        ("{% for x in range(10**9) %}a{% endfor %}", "cannot be rendered"),
        ("{% for x in range(99999) %}" + "a" * 100 + "{% endfor %}", "writes more than"),
        ("{{ raise_exception('only one user') }}", "refuses these messages: only one user"),
        ("{% if %}", "cannot be rendered"),
        ("{{ nothing.at.all }}", "cannot be rendered"),
    ],
)
def test_a_template_of_chats_does_no_harm(template, told):
    with pytest.raises(ValueError, match=told):
        rendered(template, [{"role": "user", "content": "x"}], "<s>", "</s>")


def test_a_run_without_a_template_says_so():
    letters = {p: i for i, p in enumerate([*byte_letters().values(), "</s>"])}
    with pytest.raises(ValueError, match="has no template of chats"):
        Tokenizer(byte_pairs(letters, [], {"</s>": 256}), 8).chat_of([{"role": "user", "content": "x"}])


# ---- inside a GGUF -------------------------------------------------------------------------------------------------


def of_gguf(**fields):
    return {f"tokenizer.ggml.{k}": v for k, v in fields.items()}


def test_byte_pairs_inside_a_gguf(corpus):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(corpus, vocab_size=400, special_tokens=["<|end|>"], show_progress=False)
    made = json.loads(theirs.to_str())
    pieces = sorted(theirs.get_vocab(), key=theirs.get_vocab().get)
    merges = [" ".join(m) if isinstance(m, list) else m for m in made["model"]["merges"]]
    kinds = [3 if p == "<|end|>" else 1 for p in pieces]
    metadata = of_gguf(model="gpt2", pre="gpt-2", tokens=pieces, merges=merges, token_type=kinds, eos_token_id=0)
    ours = gguf_tokenizer(metadata).tokenizer(64, "exact")
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids
    with pytest.raises(BadFile, match="cuts words as 'falcon', which is not known"):
        gguf_tokenizer({**metadata, "tokenizer.ggml.pre": "falcon"})
    with pytest.raises(BadFile, match="a tokenizer of the kind 'rwkv'"):
        gguf_tokenizer({**metadata, "tokenizer.ggml.model": "rwkv"})


def test_sentencepieces_inside_a_gguf(corpus):
    """Pieces, scores and kinds as llama.cpp keeps them are the model that they were taken from."""
    import io

    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=made,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    ids = range(theirs.get_piece_size())

    def kind(i):
        named = ((theirs.is_unknown, 2), (theirs.is_control, 3), (theirs.is_byte, 6))
        return next((k for test, k in named if test(i)), 1)

    metadata = of_gguf(
        model="llama",
        tokens=[theirs.id_to_piece(i) for i in ids],
        scores=[theirs.get_score(i) for i in ids],
        token_type=[kind(i) for i in ids],
        bos_token_id=theirs.bos_id(),
        eos_token_id=theirs.eos_id(),
    )
    found = gguf_tokenizer(metadata)
    ours = found.tokenizer(64, "exact")
    assert found.begins and found.roles.bos == theirs.bos_id()
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    assert np.array_equal(ours.encode("猫"), theirs.encode("猫"))

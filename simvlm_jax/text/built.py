"""tokenizer.json made of the vocabularies that other formats have: byte pairs (GPT-2, CLIP, llama.cpp) and WordPiece (BERT)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
BARE_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How texts are cut into words, within which pieces are joined."""


def byte_pairs(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special: Mapping[str, int],
    words: str = GPT2_WORDS,
    digits: bool = False,
    whole: bool = False,
    composed: bool = False,
) -> bytes:
    """Byte pairs of GPT-2's kind (Sennrich et al., arXiv 1508.07909, on bytes), as a tokenizer.json.

    special: pieces that are matched whole. words: a regular expression. digits: whether every digit is a word (SmolLM2).
    whole: whether a word that is a piece stays one, whatever merges there are (LLaMA 3). composed: whether texts are brought into
    Unicode's NFC first (Qwen2).
    """
    cut: list[Any] = [{"type": "Digits", "individual_digits": True}] if digits else []
    if words != GPT2_WORDS:
        cut.append({"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False})
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": words == GPT2_WORDS,
    }
    return _json(
        special,
        normalizer={"type": "NFC"} if composed else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*cut, byte_level]},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model={**_bpe(vocabulary, merges), "ignore_merges": whole},
    )


def ending_pairs(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> bytes:
    """Byte pairs of lower-cased words, each of which ends in a piece with "</w>" (GPT, and CLIP: arXiv 2103.00020, section 2.4)."""
    special = {name: vocabulary[name] for name in ("<|startoftext|>", "<|endoftext|>") if name in vocabulary}
    normal = [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ]
    split = {"type": "Split", "pattern": {"Regex": BARE_WORDS}, "behavior": "Removed", "invert": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _json(
        special,
        normalizer={"type": "Sequence", "normalizers": normal},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]},
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                {"type": "Replace", "pattern": {"String": "</w>"}, "content": " "},
            ],
        },
        model={**_bpe(vocabulary, merges), "end_of_word_suffix": "</w>", "unk_token": "<|endoftext|>"},
    )


def word_pieces(
    vocabulary: Sequence[str], lower: bool = True, accents: bool | None = None, chinese: bool = True
) -> bytes:
    """BERT's WordPiece (Devlin et al., arXiv 1810.04805, section 3), by the lines of its vocab.txt.

    lower: whether texts are in lower case. accents: whether accents are taken off; None: as `lower`. chinese: whether each
    Chinese character is a word.
    """
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    special = {name: ids[name] for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in ids}
    return _json(
        special,
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": chinese,
            "strip_accents": accents,
            "lowercase": lower,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        model={
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    )


def _bpe(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocabulary),
        "merges": [list(pair) for pair in merges],
    }


def _json(special: Mapping[str, int], **parts: Any) -> bytes:
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for name, i in sorted(special.items(), key=lambda item: item[1])
    ]
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None}
    return json.dumps({**whole, **parts}, ensure_ascii=False).encode()

"""The tokenizer that came with someone's weights, in whatever files it lies."""

import gzip
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from simvlm_jax.core.files import MOST_UNPACKED, BadFile, decoded, read_bytes, read_json, read_text
from simvlm_jax.interop.source import Source
from simvlm_jax.text import built
from simvlm_jax.text.json_pieces import JsonPieces
from simvlm_jax.text.pieces import Roles
from simvlm_jax.text.sentencepieces import SentencePieces
from simvlm_jax.text.tokenizer import CONTRACT, Tokenizer

MERGES = 49_152 - 256 - 2
"""Merges that are read of a file of merges alone, which lists more than its vocabulary of 49,408 pieces has."""


class Found(NamedTuple):
    """A tokenizer's file, its special ids, its template of chats, and whether a BOS is meant to stand before every text."""

    model: bytes
    roles: Roles
    chat: str = ""
    begins: bool = False

    def tokenizer(self, length: int, spelling: str, rows: int = 0) -> Tokenizer:
        """The tokenizer for texts of a length. rows: of the embedding, which may be more than pieces.

        Raises:
          BadFile: the embedding has fewer rows than there are pieces.
        """
        if rows and rows < self.roles.size:
            raise BadFile(
                f"the tokenizer has {self.roles.size:,} pieces and the embedding {rows:,} rows, so they do not belong together; "
                "name the tokenizer of these weights with --tokenizer"
            )
        return Tokenizer(self.model, length, spelling, self.roles._replace(size=max(rows, self.roles.size)), self.chat)


def tokenizer_of(source: Source, named: str = "") -> Found:
    """The tokenizer beside someone's weights, or the one that a person named (a file or a folder).

    Raises:
      FileNotFoundError: there is none.
    """
    if named:
        path = Path(named).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"--tokenizer {named!r} does not exist")
        if path.is_file():
            return found_in(path, _said(path.parent), source.config)
        folder = path
    else:
        folder = source.folder
    if (folder / CONTRACT).is_file():
        own = Tokenizer.load(folder)
        return Found(own.model, own.roles, own.chat)
    said = _said(folder)
    names = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model")
    for name in (*names, "vocab.txt", "bpe_simple_vocab_16e6.txt.gz", "vocab.json"):
        if (folder / name).is_file():
            return found_in(folder / name, said, source.config)
    raise FileNotFoundError(
        f"{str(folder)!r} holds no tokenizer ({', '.join(names)}, vocab.json with merges.txt, or vocab.txt); name its file or "
        "folder with --tokenizer"
    )


def _said(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer say of it."""
    said = _record(folder / "tokenizer_config.json") | _record(folder / "special_tokens_map.json")
    for template in ("chat_template.jinja", "chat_template.json"):
        if (folder / template).is_file() and "chat_template" not in said:
            text = read_text(folder / template)
            said["chat_template"] = json.loads(text)["chat_template"] if template.endswith(".json") else text
    return said


def _record(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def found_in(path: Path, said: Mapping[str, Any], config: Mapping[str, Any]) -> Found:
    """The tokenizer in a file. said: a tokenizer_config.json. config: of the model."""
    chat = said.get("chat_template") or ""
    if isinstance(chat, list):  # several by name, of which one is the usual
        chat = next((c.get("template", "") for c in chat if c.get("name") == "default"), "")
    if path.name.endswith(".model"):
        pieces = SentencePieces(model := read_bytes(path))
        usual = config.get("model_type") in ("llama", "mistral")  # whose tokenizers put a BOS first unless told not to
        return Found(model, _roles(pieces, said, config), str(chat), bool(said.get("add_bos_token", usual)))
    model = _as_json(path, said)
    pieces = JsonPieces(model)
    return Found(model, _roles(pieces, said, config), str(chat), _begins(model, pieces, said, config))


def _as_json(path: Path, said: Mapping[str, Any]) -> bytes:
    if path.name == "tokenizer.json" or (path.suffix == ".json" and path.name != "vocab.json"):
        return read_bytes(path)
    if path.name.endswith(".gz") or path.name.startswith("bpe_simple_vocab"):
        return _of_merges(path)
    if path.suffix == ".txt":
        pieces = [line.rstrip("\r") for line in read_text(path).split("\n")]
        while pieces and not pieces[-1]:
            pieces.pop()
        if "[UNK]" not in pieces:
            raise BadFile(f"{path} has no line [UNK], so it is no vocabulary of word pieces")
        accents = said.get("strip_accents")
        chinese = bool(said.get("tokenize_chinese_chars", True))
        return built.word_pieces(pieces, bool(said.get("do_lower_case", True)), accents, chinese)
    vocabulary, lines = read_json(path), path.with_name("merges.txt")
    if not lines.is_file():
        raise FileNotFoundError(f"{path} needs merges.txt beside it")
    merges = [
        _pair(line, lines) for line in read_text(lines).split("\n") if line.strip() and not line.startswith("#version")
    ]
    if any(name.endswith("</w>") for name in vocabulary):
        return built.ending_pairs(vocabulary, merges)
    special = {n: i for n, i in vocabulary.items() if n in _texts(said).values() or n == "<|endoftext|>"}
    return built.byte_pairs(vocabulary, merges, special)


def _of_merges(path: Path) -> bytes:
    """CLIP's vocabulary as its authors publish it: a list of merges; pieces are the bytes, the bytes that end a word, the merges."""
    data = read_bytes(path)
    try:
        text = decoded(gzip.decompress(data) if len(data) < MOST_UNPACKED // 1032 else data, str(path))
    except (OSError, EOFError, zlib.error) as e:
        raise BadFile(f"{path} is not a whole gzip file ({e})") from e
    merges = [_pair(line, path) for line in text.split("\n")[1 : MERGES + 1] if line]
    letters = list(byte_letters().values())
    pieces = [*letters, *(c + "</w>" for c in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return built.ending_pairs({piece: i for i, piece in enumerate(pieces)}, merges)


def byte_letters() -> dict[int, str]:
    """The letter that GPT-2's byte pairs write for each byte: itself where it can be seen, one from U+0100 on elsewhere."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in seen]
    return {b: chr(b) for b in seen} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def _pair(line: str, path: Path) -> tuple[str, str]:
    first, _, second = line.rstrip("\r").partition(" ")
    if not first or not second or " " in second:
        raise BadFile(f"{path}: {line!r:.60} is no merge of two pieces")
    return first, second


def _texts(said: Mapping[str, Any]) -> dict[str, str]:
    """The special pieces that a tokenizer_config.json names, by role."""
    found = {}
    for role, names in (
        ("pad", ("pad_token",)),
        ("bos", ("bos_token", "cls_token")),
        ("eos", ("eos_token", "sep_token")),
    ):
        for name in names:
            value = said.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and role not in found:
                found[role] = text
    return found


def _roles(pieces: JsonPieces | SentencePieces, said: Mapping[str, Any], config: Mapping[str, Any]) -> Roles:
    """Special ids: by the names in tokenizer_config.json, else by the ids in config.json, else by usual names."""
    found = pieces.roles._asdict()
    for role in ("pad", "bos", "eos"):
        value = config.get(f"{role}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < pieces.count:
            found[role] = value
    for role, text in _texts(said).items():
        if (id := pieces.id_of(text)) is not None:
            found[role] = id
    return Roles(**found)


def _begins(model: bytes, pieces: JsonPieces, said: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts a BOS before every text."""
    import tokenizers

    if isinstance(said.get("add_bos_token"), bool):
        return bool(said["add_bos_token"])
    whole = tokenizers.Tokenizer.from_buffer(model)  # pyright: ignore[reportAttributeAccessIssue]
    return whole.encode("a").ids[:1] == [_roles(pieces, said, config).bos]


_PRE: dict[str, dict[str, Any]] = {  # of llama.cpp: how texts are cut into words
    "gpt-2": {},
    "smollm": dict(digits=True),
    "llama-bpe": dict(words=built.LLAMA3_WORDS, whole=True),
    "llama3": dict(words=built.LLAMA3_WORDS, whole=True),
    "qwen2": dict(words=built.QWEN2_WORDS, composed=True),
}
_CONTROL, _USER = 3, 4
"""Kinds of pieces in a GGUF that are matched whole."""


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Found:
    """The tokenizer inside a GGUF.

    Raises:
      BadFile: there is none, or one of a kind that is not known.
    """
    get = lambda name, default=None: metadata.get(f"tokenizer.ggml.{name}", default)  # noqa: E731
    pieces, kind, pre = get("tokens"), get("model"), get("pre")
    if not pieces or kind not in ("gpt2", "llama"):
        raise BadFile(f"the GGUF has a tokenizer of the kind {kind!r}; those that are read are gpt2 and llama")
    kinds = get("token_type") or [1] * len(pieces)
    special = {p: i for i, (p, k) in enumerate(zip(pieces, kinds, strict=True)) if k in (_CONTROL, _USER)}
    eos = int(get("eos_token_id", len(pieces) - 1))
    bos, pad = (int(get(f"{role}_token_id", eos)) for role in ("bos", "padding"))
    if kind == "llama":
        model = _sentencepiece(pieces, get("scores") or [], kinds, bool(get("add_space_prefix", True)), bos, eos)
        begins = bool(get("add_bos_token", True))
    else:
        if pre not in _PRE:
            raise BadFile(
                f"the GGUF cuts words as {pre!r}, which is not known; those that are are {', '.join(_PRE)}; name the "
                "tokenizer.json of these weights with --tokenizer"
            )
        merges = [_pair(line, Path("tokenizer.ggml.merges")) for line in get("merges") or []]
        model = built.byte_pairs({p: i for i, p in enumerate(pieces)}, merges, special, **_PRE[pre])
        begins = bool(get("add_bos_token", False))
    chat = metadata.get("tokenizer.chat_template") or ""
    return Found(model, Roles(len(pieces), pad, bos, eos), str(chat), begins)


def _sentencepiece(pieces: Any, scores: Any, kinds: Any, prefix: bool, bos: int, eos: int) -> bytes:
    """A byte-pair model of sentencepiece with the pieces, scores and kinds of a GGUF, whose kinds are sentencepiece's own.

    It is written as sentencepiece_model.proto says, by hand, for sentencepiece's own classes want one release of protobuf.
    """
    if not len(pieces) == len(scores) == len(kinds):
        raise BadFile(f"the GGUF has {len(pieces)} pieces, {len(scores)} scores and {len(kinds)} kinds")
    unknown = next((i for i, k in enumerate(kinds) if k == 2), 0)
    listed = b"".join(
        _field(1, _field(1, str(piece).encode()) + _number(2, float(score)) + _number(3, int(kind)))
        for piece, score, kind in zip(pieces, scores, kinds, strict=True)
    )
    ids = {40: unknown, 41: bos, 42: eos, 43: -1}
    trainer = b"".join(_number(k, v) for k, v in {3: 2, 4: len(pieces), 35: int(6 in set(kinds)), **ids}.items())
    normal = _field(1, b"identity") + b"".join(_number(k, v) for k, v in {3: int(prefix), 4: 0, 5: 1}.items())
    return listed + _field(2, trainer) + _field(3, normal)


def _field(number: int, data: bytes) -> bytes:
    """A field of protobuf that holds bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: float) -> bytes:
    """A field of protobuf that holds a float, or a whole number."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value % 2**64)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def special_files(tokenizer: Tokenizer, begins: bool = False) -> dict[str, Any]:
    """A tokenizer as the files that transformers reads: bytes, text or JSON values by name."""
    v = tokenizer.vocabulary
    names = dict(zip(("pad_token", "bos_token", "eos_token"), tokenizer.pieces([v.pad, v.bos, v.eos]), strict=True))
    record: dict[str, Any] = {**names, "add_bos_token": begins, "model_max_length": v.length}
    if tokenizer.is_json:
        record["tokenizer_class"] = "PreTrainedTokenizerFast"
        known = JsonPieces(tokenizer.model)
        for role, name in (("mask_token", "[MASK]"), ("unk_token", "[UNK]")):
            if known.id_of(name) is not None:
                record[role] = name
    files: dict[str, Any] = {"tokenizer_config.json": record}
    files["tokenizer.json" if tokenizer.is_json else "tokenizer.model"] = tokenizer.model
    if tokenizer.chat:
        files["chat_template.jinja"] = tokenizer.chat
    return files

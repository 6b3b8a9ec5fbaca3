"""Sentencepiece behind a contract: the tokenizer travels with the checkpoint, and a mismatch is an error.

A tokenizer folder holds `tokenizer.model` and `contract.json` (size, special ids, text length, sha256 of the model).
Ids of our own models: pad 0, bos 1, eos 2, unk 3.
"""

import hashlib
import io
import json
import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

from msgspec import Meta, Struct

from simvlm_jax.core.files import MOST_RECORD, read_bytes, read_json, write_whole
from simvlm_jax.core.schema import Count, Positive, check
from simvlm_jax.core.types import Vocabulary

MODEL, CONTRACT = "tokenizer.model", "contract.json"
ASCII = "".join(chr(c) for c in range(33, 127))
"""Characters every tokenizer trained here knows, unless it is tiny, so that a run can be fine-tuned on other English text."""


SPELLINGS = ("", "lower", "plain")
LONGEST = 2**17
"""Pieces of a text."""


class Contract(Struct):
    """contract.json of a tokenizer folder."""

    size: Positive
    length: Annotated[int, Meta(ge=2, le=LONGEST)]
    pad: Annotated[int, Meta(ge=-1)]
    bos: Annotated[int, Meta(ge=-1)]
    eos: Count
    sha256: str
    spelling: str = ""


class Tokenizer:
    """A sentencepiece model, the text length of the run, and how texts are spelt before they are cut into pieces.

    spelling: "" as they are, "lower" in lower case, "plain" in lower case without punctuation.

    A model without a pad piece pads with its eos, one without bos starts from its pad: neither is ever a target.
    """

    def __init__(self, model: bytes, length: int, spelling: str = ""):
        import sentencepiece

        if spelling not in SPELLINGS:
            raise ValueError(f"text spelling {spelling!r} is not one of {', '.join(map(repr, SPELLINGS))}")
        self.spelling = spelling

        if not 2 <= length <= LONGEST:
            why = (
                "leaves no room for a piece and the end-of-text id"
                if length < 2
                else f"is more than {LONGEST:,} pieces"
            )
            raise ValueError(f"text length {length} {why}")
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as e:
            raise ValueError(f"not a sentencepiece model ({len(model)} bytes): {e}") from e
        p = self._processor
        if p.eos_id() < 0:
            raise ValueError("the sentencepiece model has no eos piece; train one with eos_id set")
        pad = p.pad_id() if p.pad_id() >= 0 else p.eos_id()
        bos = p.bos_id() if p.bos_id() >= 0 else pad
        self.vocabulary = Vocabulary(size=p.get_piece_size(), length=length, pad=pad, bos=bos, eos=p.eos_id())

    @classmethod
    def from_file(cls, path: str | Path, length: int, spelling: str = "") -> "Tokenizer":
        """Reads a `.model` file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"tokenizer model {str(path)!r} does not exist")
        return cls(read_bytes(path), length, spelling)

    @classmethod
    def train(cls, texts: Iterable[str], size: int, length: int, spelling: str = "") -> "Tokenizer":
        """Trains a byte-pair model of `size` pieces, or of as many as the corpus holds."""
        import sentencepiece

        if not 8 <= size <= 2**24:
            raise ValueError(f"a vocabulary of {size} pieces is not between 8 and {2**24:,}")
        if not 2 <= length <= LONGEST:
            raise ValueError(f"a text length of {length} pieces is not between 2 and {LONGEST:,}")
        texts = [piece for t in texts for piece in _short_enough(spelt(whole(t), spelling))]
        if not texts:
            raise ValueError("there are no texts to train a tokenizer on")
        known = "".join(c for c in ASCII if spelt(c, spelling) == c) if size > len(ASCII) + 32 else ""
        if sentencepiece.__version__ in ("0.2.1", "0.2.2"):  # which abort where the corpus lacks a required character
            seen = set().union(*texts)
            texts += [" ".join(c for c in known if c not in seen)]

        def attempt(size: int) -> bytes:
            model = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=size,
                model_type="bpe",
                character_coverage=0.9999,
                required_chars=known,
                **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "unk_surface": "?"},
                minloglevel=2,
            )
            return model.getvalue()

        try:
            return cls(attempt(size), length, spelling)
        except RuntimeError as e:
            largest = re.search(r"value <= (\d+)", str(e))
            if largest is None:
                raise ValueError(f"a tokenizer of {size} pieces cannot be trained on {len(texts)} texts: {e}") from e
            return cls(attempt(int(largest[1])), length, spelling)

    def encode(self, text: str) -> list[int]:
        """Piece ids, without special ids; half a surrogate pair counts as U+FFFD."""
        return self._processor.encode(spelt(whole(text), self.spelling))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; stops at EOS, skips pad and bos, and ignores ids outside the vocabulary."""
        kept = []
        for i in ids:
            if i == self.vocabulary.eos:
                break
            if i not in (self.vocabulary.pad, self.vocabulary.bos) and 0 <= i < self.vocabulary.size:
                kept.append(int(i))
        return self._processor.decode(kept)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces behind ids, as a person reads them."""
        return [self._processor.id_to_piece(int(i)).replace("▁", " ") for i in ids]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.model + self.spelling.encode()).hexdigest()

    def contract(self) -> dict:
        """What must agree between a run and its tokenizer."""
        v = self.vocabulary
        own = {"size": v.size, "length": v.length, "pad": v.pad, "bos": v.bos, "eos": v.eos, "sha256": self.sha256}
        return own | ({"spelling": self.spelling} if self.spelling else {})

    def save(self, folder: str | Path) -> None:
        """Writes the model and then the contract; a folder without a contract is not a tokenizer.

        Raises:
          OSError: the folder is a file, or cannot be made.
        """
        folder = Path(folder)
        if blocked := next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None):
            raise NotADirectoryError(
                f"{blocked} is a file, where a tokenizer needs a folder; name another, or remove the file"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / MODEL, self.model, own=True)
        write_whole(folder / CONTRACT, json.dumps(self.contract(), indent=1), own=True)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads a saved tokenizer and checks it against its contract."""
        folder = Path(folder)
        if not (folder / CONTRACT).is_file():
            raise FileNotFoundError(f"{folder} holds no tokenizer ({CONTRACT} is missing)")
        contract = read_json(folder / CONTRACT, most=MOST_RECORD)
        check(contract, Contract, f"{folder / CONTRACT}: it")
        found = cls.from_file(folder / MODEL, contract["length"], contract.get("spelling", ""))
        own = found.contract()
        differing = {k: (contract[k], own.get(k)) for k in contract if contract[k] != own.get(k)}
        if differing:
            raise ValueError(f"tokenizer in {folder} breaks its contract (recorded, found): {differing}")
        return found


_SPACE = re.compile(r"\s+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class NoTokenizer(Tokenizer):
    """Stands in the place of a tokenizer in a run that reads no text (`config.text` is None); its hash is "".

    Raises:
      ValueError: from any use; it says so.
    """

    def __init__(self):
        pass

    @property
    def sha256(self) -> str:
        return ""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # of protocols such as copying
            raise AttributeError(name)
        raise ValueError(
            "this run reads no text (its config.text is None), so there is no tokenizer; give config.text its fields"
        )


def spelt(text: str, spelling: str) -> str:
    """A text as a tokenizer of that spelling reads it."""
    if spelling:
        text = text.lower()
    return " ".join(text.translate(_PUNCTUATION).split()) if spelling == "plain" else text


def clean(text: str | bytes) -> str:
    """One line of text: decoded, white space collapsed, without a byte order mark, broken characters as U+FFFD."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    return _SPACE.sub(" ", whole(text).removeprefix("\ufeff")).strip()


def whole(text: str) -> str:
    """A text whose surrogates are paired or U+FFFD, for what is cut in JSON or in a file's name is no text."""
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_LINE = 4000
"""Bytes of a text that sentencepiece learns from; it leaves out longer ones in silence (max_sentence_length 4192)."""


def _short_enough(text: str) -> Iterable[str]:
    """A text in parts that sentencepiece takes, cut at spaces as far as there are any."""
    if len(text) * 4 <= _LONGEST_LINE or len(text.encode()) <= _LONGEST_LINE:
        return [text]
    parts, rest = [], text
    while rest:
        part = rest[: _LONGEST_LINE // 4]
        if len(part) < len(rest) and (space := part.rfind(" ")) > 0:
            part = part[:space]
        parts.append(part.strip())
        rest = rest[len(part) :]
    return [p for p in parts if p]

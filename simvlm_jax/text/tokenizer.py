"""Tokenizers behind a contract: the tokenizer travels with the checkpoint, and a mismatch is an error.

A tokenizer folder holds the tokenizer itself, `tokenizer.model` (sentencepiece) or `tokenizer.json` (Hugging Face tokenizers),
`contract.json` (size, special ids, text length, sha256 of the tokenizer) and, of models that chat, `chat.jinja`.
Ids of our own models: pad 0, bos 1, eos 2, unk 3.
"""

import hashlib
import html
import io
import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

from msgspec import Meta, Struct

from simvlm_jax.core.files import MOST_RECORD, read_bytes, read_json, read_text, write_whole
from simvlm_jax.core.schema import Count, Positive, check
from simvlm_jax.core.types import Vocabulary
from simvlm_jax.text.chat import rendered
from simvlm_jax.text.json_pieces import JsonPieces
from simvlm_jax.text.pieces import Pieces, Roles
from simvlm_jax.text.sentencepieces import SentencePieces

MODEL, JSON, CONTRACT, CHAT = "tokenizer.model", "tokenizer.json", "contract.json", "chat.jinja"
ASCII = "".join(chr(c) for c in range(33, 127))
"""Characters every tokenizer trained here knows, unless it is tiny, so that a run can be fine-tuned on other English text."""


SPELLINGS = ("", "lower", "plain", "mended", "exact")
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
    given: bool = False


class Tokenizer:
    """A tokenizer, the text length of the run, and how texts are spelt before they are cut into pieces.

    Args:
      model: a sentencepiece `.model` or a tokenizer.json, as bytes.
      length: pieces of the longest text, T.
      spelling: "" as they are, on one line; "lower" in lower case, "plain" in lower case without punctuation, "mended" in
        lower case with broken encodings, curly quotes and HTML's entities mended (as CLIP's authors read texts); "exact" with
        all white space, as language models of other people read texts.
      roles: size and special ids, where they are not those that the file tells.
      chat: a Jinja template of chats (text/chat.py), "" for none.

    Raises:
      ValueError: it is no tokenizer, or the length, the spelling or the roles are not to be had.
    """

    def __init__(self, model: bytes, length: int, spelling: str = "", roles: Roles | None = None, chat: str = ""):
        if spelling not in SPELLINGS:
            raise ValueError(f"text spelling {spelling!r} is not one of {', '.join(map(repr, SPELLINGS))}")
        if not 2 <= length <= LONGEST:
            why = (
                "leaves no room for a piece and the end-of-text id"
                if length < 2
                else f"is more than {LONGEST:,} pieces"
            )
            raise ValueError(f"text length {length} {why}")
        self.model, self.spelling, self.chat = model, spelling, chat
        self.is_json = model.lstrip()[:1] == b"{"
        self._pieces: Pieces = JsonPieces(model) if self.is_json else SentencePieces(model)
        self.given = roles is not None
        self.roles = found = roles or self._pieces.roles
        if found.eos < 0:
            raise ValueError("the sentencepiece model has no eos piece; train one with eos_id set")
        if found.size < self._pieces.count or not all(0 <= i < found.size for i in found[1:]):
            raise ValueError(
                f"{found}: a tokenizer of {self._pieces.count} pieces needs as many ids at least, and its special ids among them"
            )
        self.vocabulary = Vocabulary(found.size, length, found.pad, found.bos, found.eos)

    def with_length(self, length: int, spelling: str | None = None) -> "Tokenizer":
        """The same tokenizer for texts of another length, and with another spelling where one is given."""
        spelling = self.spelling if spelling is None else spelling
        return Tokenizer(self.model, length, spelling, self.roles if self.given else None, self.chat)

    @classmethod
    def from_file(cls, path: str | Path, length: int, spelling: str = "") -> "Tokenizer":
        """Reads a `.model` file, or a tokenizer.json."""
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
        return self._pieces.encode(spelt(whole(text), self.spelling))

    def ids_of(self, text: str | bytes) -> list[int]:
        """Piece ids of a text as data and people give it: made one line, unless the spelling is exact."""
        if self.spelling != "exact":
            return self.encode(clean(text))
        return self.encode(text if isinstance(text, str) else text.decode("utf-8", errors="replace"))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; stops at EOS, skips pad and bos, and ignores ids without a piece."""
        kept = []
        for i in ids:
            if i == self.vocabulary.eos:
                break
            if i not in (self.vocabulary.pad, self.vocabulary.bos) and 0 <= i < self._pieces.count:
                kept.append(int(i))
        return self._pieces.decode(kept)

    def decode_after(self, before: Sequence[int], ids: Iterable[int]) -> str:
        """Text of ids that continue others, with the space that a word begins with where a sentence goes on."""
        ended = [
            i for i, piece in enumerate(before) if piece == self.vocabulary.eos
        ]  # turns of a chat, each with an EOS
        before = before[ended[-1] + 1 :] if ended else before
        first = self.decode(before)
        whole = self.decode([*before, *ids])
        return whole[len(first) :] if whole.startswith(first) else self.decode(ids)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces behind ids, as a person reads them."""
        return [self._pieces.piece(int(i)) if 0 <= i < self._pieces.count else "" for i in ids]

    def chat_of(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat as the text that its model continues. messages: {"role": "system", "user" or "assistant", "content"}.

        Raises:
          ValueError: the model has no template of chats, or the template refuses these messages.
        """
        if not self.chat:
            raise ValueError("this run's tokenizer has no template of chats (chat.jinja); give a plain text instead")
        bos, eos = self.pieces([self.vocabulary.bos, self.vocabulary.eos])
        return rendered(self.chat, messages, bos, eos)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.model + self.spelling.encode()).hexdigest()

    def contract(self) -> dict:
        """What must agree between a run and its tokenizer."""
        v = self.vocabulary
        own = {"size": v.size, "length": v.length, "pad": v.pad, "bos": v.bos, "eos": v.eos, "sha256": self.sha256}
        own |= {"spelling": self.spelling} if self.spelling else {}
        return own | ({"given": True} if self.given else {})

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer and then the contract; a folder without a contract is not a tokenizer.

        Raises:
          OSError: the folder is a file, or cannot be made.
        """
        folder = Path(folder)
        if blocked := next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None):
            raise NotADirectoryError(
                f"{blocked} is a file, where a tokenizer needs a folder; name another, or remove the file"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / (JSON if self.is_json else MODEL), self.model, own=True)
        if self.chat:
            write_whole(folder / CHAT, self.chat, own=True)
        write_whole(folder / CONTRACT, json.dumps(self.contract(), indent=1), own=True)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads a saved tokenizer and checks it against its contract."""
        folder = Path(folder)
        if not (folder / CONTRACT).is_file():
            raise FileNotFoundError(f"{folder} holds no tokenizer ({CONTRACT} is missing)")
        contract = read_json(folder / CONTRACT, most=MOST_RECORD)
        check(contract, Contract, f"{folder / CONTRACT}: it")
        path = folder / (JSON if (folder / JSON).is_file() else MODEL)
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer model {str(path)!r} does not exist")
        roles = Roles(*(contract[k] for k in Roles._fields)) if contract.get("given") else None
        chat = read_text(folder / CHAT, MOST_RECORD) if (folder / CHAT).is_file() else ""
        found = cls(read_bytes(path), contract["length"], contract.get("spelling", ""), roles, chat)
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
    if spelling == "mended":
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    if spelling in ("lower", "plain", "mended"):
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

"""A Hugging Face tokenizer.json as what a tokenizer cuts texts with, by their own library."""

from collections.abc import Sequence
from typing import Any

from simvlm_jax.text.pieces import Roles

_USUAL = {
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "bos": ("<s>", "<bos>", "[CLS]", "<|startoftext|>", "<|begin_of_text|>", "<|im_start|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "[SEP]", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"),
}
"""What special pieces are called, where nothing else says which they are."""


class JsonPieces:
    """A tokenizer.json file.

    Such a file does not say which ids begin, end and pad a text: a contract (text/tokenizer.py) or the files beside it do. Where
    none does, they are those with a usual name.

    Raises:
      ValueError: it is no such file.
    """

    def __init__(self, model: bytes):
        import tokenizers

        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(model)
        except Exception as e:  # the library raises Exception itself
            raise ValueError(f"not a tokenizer.json ({len(model)} bytes): {str(e)[:200]}") from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.count: int = max(vocabulary.values(), default=-1) + 1
        found = {role: [vocabulary[n] for n in names if n in vocabulary] for role, names in _USUAL.items()}
        eos = next(iter(found["eos"]), self.count - 1)
        pad = next(iter(found["pad"]), eos)
        self.roles = Roles(self.count, pad, next(iter(found["bos"]), pad), eos)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def piece(self, id: int) -> str:
        return self._tokenizer.decode([id], skip_special_tokens=False) or str(self._tokenizer.id_to_token(id) or "")

    def id_of(self, piece: str) -> int | None:
        """The id of a piece by its name, None where there is none."""
        return self._tokenizer.token_to_id(piece)

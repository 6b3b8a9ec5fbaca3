"""A sentencepiece model as what a tokenizer cuts texts with."""

from collections.abc import Sequence

from simvlm_jax.text.pieces import Roles


class SentencePieces:
    """A sentencepiece `.model` file.

    A model without a pad piece pads with its eos, one without bos starts from its pad: neither is ever a target. An eos that it
    does not have is -1.

    Raises:
      ValueError: it is no such model.
    """

    def __init__(self, model: bytes):
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as e:
            raise ValueError(f"not a sentencepiece model ({len(model)} bytes): {e}") from e
        p = self._processor
        pad = p.pad_id() if p.pad_id() >= 0 else p.eos_id()
        self.count: int = p.get_piece_size()
        self.roles = Roles(self.count, pad, p.bos_id() if p.bos_id() >= 0 else pad, p.eos_id())

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(list(ids))

    def piece(self, id: int) -> str:
        return self._processor.id_to_piece(id).replace("▁", " ")

    def id_of(self, piece: str) -> int | None:
        """The id of a piece by its name, None where there is none."""
        id = self._processor.piece_to_id(piece)
        return id if id != self._processor.unk_id() or self._processor.id_to_piece(id) == piece else None

"""A sentencepiece model as what a tokenizer cuts texts with."""

from collections.abc import Sequence

from simvlm_jax.text.pieces import Roles


class SentencePieces:
    """A sentencepiece `.model` file.

    A model without a pad piece pads with its eos, one without bos starts from its pad: neither is ever a target.

    Raises:
      ValueError: it is no such model, or has no eos.
    """

    def __init__(self, model: bytes):
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as e:
            raise ValueError(f"not a sentencepiece model ({len(model)} bytes): {e}") from e
        p = self._processor
        if p.eos_id() < 0:
            raise ValueError("the sentencepiece model has no eos piece; train one with eos_id set")
        pad = p.pad_id() if p.pad_id() >= 0 else p.eos_id()
        self.count: int = p.get_piece_size()
        self.roles = Roles(self.count, pad, p.bos_id() if p.bos_id() >= 0 else pad, p.eos_id())

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(list(ids))

    def piece(self, id: int) -> str:
        return self._processor.id_to_piece(id).replace("▁", " ")

"""Texts as rows of token ids: prompts that an answer follows, whole texts as in training, candidate answers.

Arrays are int32 `text` [N,T] and bool `text_mask` [N,T]; see core.types.Rows.
"""

from collections.abc import Sequence

import numpy as np

from simvlm_jax.core.types import Rows, Vocabulary
from simvlm_jax.infer.answered import Answered, counts
from simvlm_jax.text.padding import pad_rows
from simvlm_jax.text.tokenizer import Tokenizer

LONG = 128
"""Pieces up to which every row has the run's text length, so that one program does for all."""


def prompt_rows(tokenizer: Tokenizer, prompts: Sequence[str], width: int | None = None) -> Answered[Rows]:
    """Tokenized prompts, without EOS. width: T, by default that of the longest; a longer one loses its beginning (`prompts_cut`).

    Raises:
      ValueError: a prompt fills the whole text length, and no width says where to cut it.
    """
    vocabulary = tokenizer.vocabulary
    pieces = [tokenizer.ids_of(p) for p in prompts]
    longest = max(map(len, pieces))
    if width is None and longest >= vocabulary.length:
        raise ValueError(f"a prompt of {longest} pieces leaves no room for an answer in a text of {vocabulary.length}")
    width = longest if width is None else width
    text, mask = pad_rows([p[len(p) - min(len(p), width) :] for p in pieces], width, vocabulary.pad)
    return Answered({"text": text, "text_mask": mask}, counts(prompts_cut=sum(len(p) > width for p in pieces)))


def text_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> Answered[Rows]:
    """Tokenized texts with EOS; longer ones than the run's text length lose their end (`texts_cut`).

    T is the run's text length, or where that is above LONG the next power of two that holds the longest text.
    """
    vocabulary = tokenizer.vocabulary
    pieces = [[*tokenizer.ids_of(t), vocabulary.eos] for t in texts]
    width = vocabulary.length
    if width > LONG:
        width = min(width, max(LONG // 2, 1 << (max(map(len, pieces)) - 1).bit_length()))
    text, mask = pad_rows(pieces, width, vocabulary.pad)
    return Answered(
        {"text": text, "text_mask": mask}, counts(texts_cut=sum(len(p) > vocabulary.length for p in pieces))
    )


def candidate_table(tokenizer: Tokenizer, candidates: Sequence[str], room: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokenized answers with EOS: (ids [K,T] int32, mask [K,T] bool), T being the longest's.

    Raises:
      ValueError: the longest has more than `room` pieces.
    """
    vocabulary = tokenizer.vocabulary
    pieces = [[*tokenizer.ids_of(c), vocabulary.eos] for c in candidates]
    longest = max(map(len, pieces))
    if longest > room:
        raise ValueError(
            f"the longest answer is {longest} pieces, but a prompt of {vocabulary.length - room} leaves room for {room}; "
            "train with a longer config.text.length"
        )
    return pad_rows(pieces, longest, vocabulary.pad)


def longest_answer(tokenizer: Tokenizer, answers: Sequence[str]) -> int:
    """Number of pieces of the longest answer, EOS included."""
    return max(len(tokenizer.ids_of(a)) + 1 for a in answers)


def prompt_width(vocabulary: Vocabulary, answer: int) -> int:
    """Number of pieces left for a prompt when an answer of so many is to follow.

    Raises:
      ValueError: there are none, or the answer has no length of its own, which would then be the batch's to decide.
    """
    if answer < 1:
        raise ValueError(f"max_length {answer}: answers to questions need a length; set how.max_length, to 8 as a rule")
    left = vocabulary.length - answer
    if left < 1:
        raise ValueError(
            f"an answer of {answer} pieces leaves no room for a question in a text of {vocabulary.length}; set "
            "max_length, or train with a longer config.text.length"
        )
    return left

"""Values with notes: what came up while answering and belongs beside the scores."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
Notes = Mapping[str, Any]
"""Counts (`prompts_cut`, `texts_cut`, `answers_cut`), and what else a suite records."""


class Answered(NamedTuple, Generic[T]):
    """Answers of a model and the notes on them; those of several calls are summed by whoever makes them."""

    values: T
    notes: Notes


def counts(**noted: int) -> Counter[str]:
    """Counts that are not 0, to be summed by `Counter.update`."""
    return +Counter({name: int(count) for name, count in noted.items()})


def describe_cuts(notes: Notes, length: int) -> list[str]:
    """Sentences about what was cut, for people. length: pieces of the run's texts."""
    sentences = (
        ("texts_cut", f"of the texts lost their end, at {length} pieces"),
        ("prompts_cut", "of the prompts lost their beginning, for want of room before the answer"),
        ("answers_cut", "of the answers were ended by max_length"),
    )
    return [f"{notes[name]:,} {sentence}" for name, sentence in sentences if notes.get(name)]

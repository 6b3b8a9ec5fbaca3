"""What an experiment is made of, from its config: sources, tokenizer, answers, pipeline, and the shapes of a training step.

`experiment.open` puts them together; commands that need a part of it take it from here.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from simvlm_jax.core.build import build
from simvlm_jax.core.types import Batch, Model
from simvlm_jax.data import assemble
from simvlm_jax.data.pipeline import Pipeline
from simvlm_jax.data.shapes import abstract_batch, stand_in_labels, stand_in_tokenizer
from simvlm_jax.data.source import Source, understood
from simvlm_jax.parallel.hosts import main_process_first, require_equal
from simvlm_jax.run.directory import RunDir
from simvlm_jax.run.load import build_model, load_tokenizer
from simvlm_jax.text.tokenizer import NoTokenizer, Tokenizer
from simvlm_jax.train.init_from import tokenizer_of
from simvlm_jax.train.optimizer import Optimizer

Log = Callable[[str], None]
"""Prints a line for people."""


class Data(NamedTuple):
    """The opened sources of a run, and what is made of their texts and answers once.

    parts: what each part of a batch learns from, by its name. evaluation: by name of the split. changes: how this machine
    differs from the one that the run was last trained on.
    """

    parts: dict[str, Source]
    evaluation: dict[str, Source]
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    changes: list[str]


class Outline(NamedTuple):
    """A training step before it has data: its model, its optimizer, and the shapes of a global batch."""

    model: Model
    optimizer: Optimizer
    batch: Batch


def open_data(config: Any, directory: RunDir, variant: str, training: bool, log: Log) -> Data:
    """Opens all sources; reads tokenizer and answer list of the run, or makes and records them where it begins.

    Raises:
      ValueError: the processes of the run do not see the same data.
    """
    begun = bool(require_equal(directory.begun, "beginnings of the run"))
    origin = None if begun else tokenizer_of(config.train.init_from)  # an error where there is no such run
    with main_process_first("data") as first_process:
        parts, evaluation = assemble.part_sources(config.data), assemble.eval_sources(config.data)
        for name, source in [*parts.items(), *evaluation.items()]:
            if not repr(source).startswith("scenes/"):
                log(f"{name}: {understood(source).line()}")
        changes = directory.moved() if training and begun else []
        if begun or not first_process:
            tokenizer, labels = load_tokenizer(directory, config.text is not None), directory.labels()
        else:
            if origin and config.text is not None and not config.text.model:
                log(f"the tokenizer is that of {origin.parent}, as the weights are")
            tokenizer, labels = make_tokenizer_and_labels(config, parts, origin, log)
        if training:
            directory.start(config, variant)
        if training and first_process and not begun:
            directory.write_labels(labels)
            if not isinstance(tokenizer, NoTokenizer):
                tokenizer.save(directory.tokenizer)
    read = repr([*parts.values(), *evaluation.values(), tokenizer.sha256])
    require_equal(zlib.crc32(read.encode()) >> 1, "data (each is told by a number made of its files' names and sizes)")
    return Data(parts, evaluation, tokenizer, labels, changes)


def make_tokenizer_and_labels(
    config: Any, parts: dict[str, Source], origin: Any, log: Log = lambda text: None
) -> tuple[Tokenizer, tuple[str, ...]]:
    """Makes the tokenizer (none where `config.text` is None) and the answer list of a run that begins.

    origin: tokenizer folder of the run it starts from.
    """
    if config.text is None:
        tokenizer = NoTokenizer()
    else:
        tokenizer = assemble.make_tokenizer(config.text, config.data.parts, parts, origin=origin, log=log)
    return tokenizer, assemble.make_labels(config.data, parts)


def make_pipeline(
    config: Any,
    data: Data,
    record: Callable[[dict[str, Any]], None] | None = None,
    rows: Callable[[int], Sequence[int]] = range,
) -> Pipeline:
    """Builds the training pipeline; record: takes bad examples; rows: which of the n rows of a part this process makes."""
    return assemble.make_pipeline(
        config.data,
        data.tokenizer,
        data.labels,
        data.parts,
        batch_size=config.train.batch_size,
        seed=config.seed,
        record=record,
        mine=rows,
    )


def outline(config: Any, tokenizer: Any = None, labels: tuple[str, ...] | None = None) -> Outline:
    """Builds a config's model and optimizer, and the shapes of its batch, from made-up examples.

    tokenizer: anything with a `vocabulary`; by default that of a run of the config, for which its texts may be read.
    labels: by default as many answers as the config allows.
    """
    if tokenizer is None:
        tokenizer = stand_in_tokenizer(config.text, config.data)
    labels = stand_in_labels(config.data.labels.size) if labels is None else labels
    model = build_model(config.model, config.data.image_size, tokenizer, labels)
    images = config.model.get("images", 1)
    batch = abstract_batch(config.data, tokenizer, labels, batch_size=config.train.batch_size, images=images)
    return Outline(model, build(config.optimizer, "config.optimizer"), batch)

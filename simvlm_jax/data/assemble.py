"""From a config's `data` section to sources and a pipeline."""

import itertools
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from simvlm_jax.core.build import build
from simvlm_jax.data.pipeline import Part, Pipeline, Quarantine
from simvlm_jax.data.sources import Cached, HashSplit, Source, open_source
from simvlm_jax.text.tokenizer import Tokenizer


def is_scenes(path: str) -> bool:
    """Whether a path names the built-in data set."""
    return path.split("/")[0] == "scenes"


def train_source(config: ConfigDict) -> Source:
    """The training images; a share is held out where the evaluation names no data of its own."""
    data = config.data
    source = open_source(data.train.path, data.train.split)
    if data.eval.path is None and not is_scenes(data.train.path):
        return HashSplit(source, data.held_out, held_out=False)
    return source


def eval_sources(config: ConfigDict) -> dict[str, Source]:
    """Evaluation sources by split name: those of `scenes`, or the one "test" of any other data."""
    data = config.data
    path = data.eval.path or data.train.path
    if is_scenes(path):
        return {name: open_source(path, split) for name, split in data.eval.splits.items()}
    if data.eval.path is None:
        return {"test": HashSplit(open_source(path, data.train.split), data.held_out, held_out=True)}
    return {"test": open_source(path, data.eval.split)}


def validation_source(config: ConfigDict) -> Source:
    """What is evaluated while a run trains: the validation split of `scenes`, else the one evaluation source."""
    path = config.data.eval.path or config.data.train.path
    return open_source(path, config.data.eval.split) if is_scenes(path) else eval_sources(config)["test"]


def documents_source(config: ConfigDict) -> Source | None:
    """The text-only documents, if the config has any."""
    documents = config.data.documents
    return open_source(documents.path, documents.split) if documents.batch_size else None


def corpus(config: ConfigDict, *sources: Source | None) -> Iterator[str]:
    """The run's own text, for its tokenizer: an even spread of every source's captions and documents."""
    for source in sources:
        if source is None:
            continue
        count = min(len(source), config.text.corpus)
        for i in range(count):
            try:
                example = source[i * len(source) // count]
            except (ValueError, OSError):
                continue  # a bad item; the pipeline will report it when it is drawn
            yield from itertools.chain(example.get("captions", ()), [example["text"]] if "text" in example else [])


def make_tokenizer(config: ConfigDict, *sources: Source | None) -> Tokenizer:
    """The tokenizer a config names, or one trained on the run's own text.

    A text length of 0 in the config becomes that of the longest text read, rounded up to a multiple of 8.
    """
    text = config.text
    if text.model and text.length:
        return Tokenizer.from_file(text.model, text.length)
    texts = list(corpus(config, *sources))
    if not texts:
        raise ValueError(f"{config.data.train.path!r} holds no captions to make a tokenizer from; mend data.train.path")
    length = text.length or 8
    tokenizer = (
        Tokenizer.from_file(text.model, length) if text.model else Tokenizer.train(texts, text.vocabulary, length)
    )
    if text.length:
        return tokenizer
    longest = max(len(tokenizer.encode(t)) + 1 for t in texts)  # and EOS
    return Tokenizer(tokenizer.model, -(-longest // 8) * 8)


def make_pipeline(
    config: ConfigDict,
    tokenizer: Tokenizer,
    images: Source,
    documents: Source | None,
    record: Any = None,
    process: tuple[int, int] = (0, 1),
) -> Pipeline:
    """The training pipeline: `train.batch_size` image rows and `data.documents.batch_size` text-only rows a batch."""
    data = config.data
    steps = [build(t, tokenizer=tokenizer) for t in data.train.transforms]
    if data.train.cache:  # the first transform draws nothing, so its result can be kept
        images, steps = Cached(images, steps[:1]), steps[1:]
    parts = [Part("images", images, steps, config.train.batch_size)]
    if documents is not None:
        steps = [build(t, tokenizer=tokenizer) for t in data.documents.transforms]
        parts.append(Part("documents", documents, steps, data.documents.batch_size, "documents"))
    return Pipeline(parts, config.seed, Quarantine(data.quarantine, record), process)


def constant_captions(config: ConfigDict, images: Source, count: int = 200) -> Iterator[str]:
    """Training captions that may serve as the best constant caption: an even spread, one an image."""
    for i in range(min(count, len(images))):
        captions = images[i * len(images) // min(count, len(images))].get("captions", ())
        if captions:
            yield captions[0]

"""From a config's `data` section to sources and a pipeline."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from simvlm_jax.core.build import build
from simvlm_jax.data.pipeline import Part, Pipeline, Quarantine
from simvlm_jax.data.sources import Cached, HashSplit, Source, open_source, open_split, without_pictures
from simvlm_jax.data.splits import Refused, group_of, is_of
from simvlm_jax.data.transforms import Pixels, answers_of, is_answered, most_frequent
from simvlm_jax.text.tokenizer import Tokenizer

TEXT_FIELDS = ("text", "question", "answer", "hypothesis", "sentence", "source", "target")
"""Fields of an example that hold one text."""


def is_scenes(path: str) -> bool:
    """Whether a path names the built-in data set (and not a folder of that name)."""
    return path.split("/")[0] == "scenes" and not Path(path).exists()


def eval_path(config: ConfigDict) -> str:
    """The data that is evaluated: its own, or (a part of) the training data."""
    return config.data.eval.path or config.data.train.path


def _opened(how: ConfigDict, path: str, split: str, usual: str) -> Source:
    """The source of a path, read as a section of the config says; data that tells no splits apart has the `usual` one alone."""
    named = group_of(split.partition("[")[0]) != usual  # what the built-in data is cut to is usual too
    open_ = open_split if named else open_source
    return open_(path, split, columns=str(how.get("columns") or ""), truncated=bool(how.get("truncated")))


def _overlap(one: str, other: str) -> bool:
    """Whether one of two paths is the other, or within it."""
    a, b = Path(one).expanduser().resolve(), Path(other).expanduser().resolve()
    return a.is_relative_to(b) or b.is_relative_to(a)


def train_source(config: ConfigDict) -> Source:
    """The training images; a share is held out where the evaluation names no data of its own."""
    data = config.data
    source = _opened(data.train, data.train.path, data.train.split, "train")
    if data.eval.path is None and not is_scenes(data.train.path):
        return HashSplit(source, data.held_out, held_out=False)
    return source


def eval_sources(config: ConfigDict) -> dict[str, Source]:
    """Evaluation sources by split name: those of `scenes`; of other data the one that is named, "test" if it has no name."""
    data, path = config.data, eval_path(config)
    if is_scenes(path):
        return {name: open_source(path, split) for name, split in data.eval.splits.items()}
    if data.eval.path is None:
        return {"test": HashSplit(_opened(data.train, path, data.train.split, "train"), data.held_out, held_out=True)}
    source = _opened(data.eval, path, data.eval.split, "validation")
    if not is_of(getattr(source, "split", ""), data.eval.split) and _overlap(data.train.path, path):
        learned = _opened(data.train, data.train.path, data.train.split, "train")
        if repr(learned) == repr(source):
            raise Refused(
                f"config.data.eval.path {path!r} holds the rows of config.data.train.path again, for nothing tells splits apart in "
                f"them; leave data.eval.path out (then data.held_out={data.held_out} is held out), or name other data"
            )
    return {getattr(source, "split", "") or "test": source}


def eval_pixels(config: ConfigDict) -> Pixels:
    """How pictures are made ready for evaluation: as in training, without draws."""
    return Pixels(config.data.image_size, whole=config.data.whole)


def validation_source(config: ConfigDict) -> Source:
    """What is evaluated while a run trains: the validation split of `scenes`, else the one evaluation source.

    In the second case a checkpoint kept by `checkpoint.best` has been chosen on the data it is reported on.
    """
    path = eval_path(config)
    return open_source(path, config.data.eval.split) if is_scenes(path) else next(iter(eval_sources(config).values()))


def documents_source(config: ConfigDict) -> Source | None:
    """The text-only documents, if the config has any."""
    documents = config.data.documents
    return open_source(documents.path, documents.split, images=False) if documents.batch_size else None


def corpus(config: ConfigDict, *sources: Source | None) -> Iterator[str]:
    """The run's own text, for its tokenizer: an even spread of every source's captions and documents."""
    for source in sources:
        if source is not None:
            yield from spread_texts(source, config.text.corpus)


def spread_texts(source: Source, count: int) -> Iterator[str]:
    """All texts of an even spread of `count` examples."""
    for example in _spread(source, count):
        yield from texts_of(example)


def texts_of(example: dict[str, Any]) -> list[str]:
    """All texts of an example."""
    one = [example[k] for k in TEXT_FIELDS if isinstance(example.get(k), str)]
    return [*example.get("captions", ()), *one]


def _spread(source: Source, count: int) -> Iterator[dict[str, Any]]:
    """`count` examples at even distances; those that cannot be read are the pipeline's to report, when it draws them."""
    count = min(len(source), count)
    for i in range(count):
        with contextlib.suppress(Exception):
            yield without_pictures(source, i * len(source) // count)


def _unreadable(source: Source) -> str:
    """Why the first example cannot be read, if it cannot."""
    try:
        source[0]
    except Exception as e:
        return f" ({source.key(0)} cannot be read: {str(e).partition(chr(10))[0]:.200})"
    return ""


def make_tokenizer(
    config: ConfigDict,
    *sources: Source | None,
    origin: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Tokenizer:
    """The tokenizer a config names (a .model file or a tokenizer folder), else `origin`, that of the run it starts from,
    else one trained on the run's own text.

    A text length of 0 in the config is that of the folder or run; without one it becomes that of the longest text read,
    rounded up to a multiple of 8; of a few texts that are far longer than all others, only that of the others, which is said.
    """
    text = config.text
    origin = text.model or origin
    if origin and Path(origin).is_dir():
        found = Tokenizer.load(origin)
        return Tokenizer(found.model, text.length or found.vocabulary.length, found.spelling or text.spelling)
    if origin and text.length:
        return Tokenizer.from_file(origin, text.length, text.spelling)
    texts = list(corpus(config, *sources))
    if not texts:
        why = _unreadable(sources[0]) if sources[0] is not None else ""
        raise ValueError(
            f"{config.data.train.path!r} holds no captions to make a tokenizer from{why}; check data.train.path, or restore the file"
        )
    length = text.length or 8
    if origin:
        tokenizer = Tokenizer.from_file(origin, length, text.spelling)
    else:
        tokenizer = Tokenizer.train(texts, text.vocabulary, length, text.spelling)
    if text.length:
        return tokenizer
    lengths = sorted(len(tokenizer.encode(t)) + 1 for t in texts)  # and EOS
    longest, most = lengths[-1], lengths[int(0.99 * (len(lengths) - 1))]
    if longest > max(4 * most, 256):
        cut = sum(n > -(-most // 8) * 8 for n in lengths)
        say(
            f"the text length is {-(-most // 8) * 8} pieces, in which {cut:,} of {len(lengths):,} texts lose their end: the "
            f"longest, of {longest:,}, would make every row as long; config.text.length sets another"
        )
        longest = most
    return Tokenizer(tokenizer.model, -(-longest // 8) * 8, text.spelling)


def make_labels(config: ConfigDict, source: Source) -> tuple[str, ...]:
    """The answers a run classifies into: the most frequent `data.labels.size` of the training data, in that order.

    Answers to questions that differ in capitals alone are one, spelt as most often. Only those seen `at_least` so often count (VQA's
    3,129 answers were seen nine times or more); size 0: none are wanted.
    """
    wanted = config.data.labels
    if not wanted.size:
        return ()
    spelt, folded = Counter[str](), set[str]()
    for i in range(len(source)):
        with contextlib.suppress(
            ValueError
        ):  # of rows that cannot be read, which the pipeline tells when it draws them
            example = without_pictures(source, i)
            if given := answers_of(example):
                spelt[most_frequent(given)] += 1
                folded |= {most_frequent(given)} if is_answered(example) else set()

    def form(answer: str) -> str:
        return answer.lower() if answer in folded else answer

    spelling = {form(a): a for a, _ in reversed(spelt.most_common())}
    seen = Counter[str]()
    for a, n in spelt.items():
        seen[form(a)] += n
    found = [a for a, n in sorted(seen.items(), key=lambda item: (-item[1], item[0])) if n >= wanted.at_least]
    if not found:
        raise ValueError(f"{config.data.train.path!r} has no `answer`, `answers` or `label` to classify into")
    return tuple(spelling[a] for a in found[: wanted.size])


def make_pipeline(
    config: ConfigDict,
    tokenizer: Tokenizer,
    labels: tuple[str, ...],
    images: Source,
    documents: Source | None,
    record: Any = None,
    mine: Callable[[int], Sequence[int]] = range,
) -> Pipeline:
    """The training pipeline (of one host: see Pipeline).

    A batch has `train.batch_size` image rows and `data.documents.batch_size` text-only rows.
    """
    data, seed = config.data, config.seed
    assert isinstance(seed, int)
    steps = [build(t, tokenizer=tokenizer, labels=labels) for t in data.train.transforms]
    if data.train.cache:  # the first transform draws nothing, so its result can be kept
        images, steps = Cached(images, steps[:1]), steps[1:]
    parts = [Part("images", images, steps, config.train.batch_size)]
    if documents is not None:
        steps = [build(t, tokenizer=tokenizer) for t in data.documents.transforms]
        parts.append(Part("documents", documents, steps, data.documents.batch_size, "documents"))
    return Pipeline(parts, seed, Quarantine(data.quarantine, record), mine)


def constant_captions(config: ConfigDict, images: Source, count: int = 200) -> Iterator[str]:
    """Training captions that may serve as the best constant caption: an even spread, one an image."""
    for example in _spread(images, count):
        yield from example.get("captions", ())[:1]

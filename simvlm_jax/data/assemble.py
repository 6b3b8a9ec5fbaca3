"""Sources, tokenizer, answers and pipeline from the sections of a config: `data` is config.data, `parts` config.data.parts."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simvlm_jax.core.build import build
from simvlm_jax.core.parts import ordered
from simvlm_jax.data.fit import Fit
from simvlm_jax.data.mixture import Mixture
from simvlm_jax.data.packing import Packed
from simvlm_jax.data.pipeline import Part, Pipeline, Quarantine
from simvlm_jax.data.source import Cached, HashSplit, Source, without_pictures
from simvlm_jax.data.sources import open_source, open_split
from simvlm_jax.data.splits import Refused, group_of, is_of
from simvlm_jax.data.transforms import Pixels, answers_of, is_answered, most_frequent
from simvlm_jax.text.tokenizer import Tokenizer

TEXT_FIELDS = ("text", "question", "answer", "hypothesis", "sentence", "source", "target")
"""Fields of an example that hold one text."""


Section = Any
"""A section of a config: a ConfigDict, of whose fields a type checker knows nothing."""


def is_scenes(path: str) -> bool:
    """Whether a path names the built-in data set (and not a folder of that name)."""
    return path.split("/")[0] == "scenes" and not Path(path).exists()


def parts_in(parts: Section) -> dict[str, Section]:
    """The parts of a batch that have rows, by name: pairs first.

    Raises:
      ValueError: there is none.
    """
    found = {name: parts[name] for name in ordered(parts) if parts[name].get("rows") != 0}
    if not found:
        raise ValueError("no part has rows, so there is nothing to train on; set config.data.parts.pairs.rows")
    return found


def rows_of(part: Section, batch_size: int) -> int:
    """The number of rows of a part in a batch: its own `rows`, or `batch_size` where it states none."""
    rows = part.get("rows")
    return int(batch_size if rows is None else rows)


def _places(name: str, part: Section) -> dict[str, Section]:
    """{name: fields} of a part's sources: those in `sources`, else that of its `path`, under the name ""."""
    several = part.get("sources") or {}
    if bool(several) == bool(part.path):
        what = "both path and sources" if several else "neither path nor sources"
        raise ValueError(f"config.data.parts.{name} names {what}; give one path, or several sources and path=None")
    return {k: several[k] for k in sorted(several)} if several else {"": part}


def _main_part(parts: Section) -> tuple[str, Section]:
    """The part that is evaluated where no data is named for it, and that labels are of."""
    return next(iter(parts_in(parts).items()))


def eval_path(data: Section) -> str:
    """The data that is evaluated: its own, or (a part of) the training data, the first of several sources."""
    return data.eval.path or next(iter(_places(*_main_part(data.parts)).values())).path


def _where(parts: Section, name: str) -> str:
    """The paths of a part, for messages."""
    return ", ".join(repr(p.path) for p in _places(name, parts[name]).values())


def _opened(how: Section, path: str, split: str, usual: str, images: bool = True) -> Source:
    """The source of a path, read as a section of the config says; data that tells no splits apart has the `usual` one alone."""
    named = group_of(split.partition("[")[0]) != usual  # what the built-in data is cut to is usual too
    open_ = open_split if named else open_source
    return open_(
        path, split, images=images, columns=str(how.get("columns") or ""), truncated=bool(how.get("truncated"))
    )


def _overlap(one: str, other: str) -> bool:
    """Whether one of two paths is the other, or within it."""
    a, b = Path(one).expanduser().resolve(), Path(other).expanduser().resolve()
    return a.is_relative_to(b) or b.is_relative_to(a)


def part_sources(data: Section) -> dict[str, Source]:
    """What each part learns from; a share is held out of the first where the evaluation names no data of its own."""
    main, _ = _main_part(data.parts)
    out: dict[str, Source] = {}
    for name, part in parts_in(data.parts).items():
        held_out = data.held_out if name == main and data.eval.path is None else None
        found = {k: _learned(part, place, held_out) for k, place in _places(name, part).items()}
        weights = {k: float(place.get("weight", 1.0)) for k, place in _places(name, part).items()}
        out[name] = found[""] if "" in found else Mixture({k: (s, weights[k]) for k, s in found.items()})
    return out


def _learned(part: Section, place: Section, held_out: float | None) -> Source:
    """A source as a part learns from it; held_out: the share that is left out, None where nothing is."""
    source = _opened(place, place.path, place.split, "train", bool(part.get("images", True)))
    if held_out is not None and not is_scenes(place.path):
        return HashSplit(source, held_out, held_out=False)
    return source


def eval_sources(data: Section) -> dict[str, Source]:
    """Evaluation sources by split name: those of `scenes`; of other data the one that is named, "test" if it has no name.

    Where no data is named, what is held out of the training data: of several sources each under its name.
    """
    path = eval_path(data)
    name, part = _main_part(data.parts)
    places = _places(name, part)
    if data.eval.path is None and any(not is_scenes(p.path) for p in places.values()):
        return {
            k or "test": HashSplit(_opened(p, p.path, p.split, "train"), data.held_out, held_out=True)
            for k, p in places.items()
            if not is_scenes(p.path)
        }
    if is_scenes(path):
        return {name: open_source(path, split) for name, split in data.eval.splits.items()}
    source = _opened(data.eval, path, data.eval.split, "validation")
    for k, place in places.items():
        if not is_of(getattr(source, "split", ""), data.eval.split) and _overlap(place.path, path):
            learned = _opened(place, place.path, place.split, "train")
            if repr(learned) == repr(source):
                where = f"config.data.parts.{name}{f'.sources.{k}' if k else ''}.path"
                raise Refused(
                    f"config.data.eval.path {path!r} holds the rows of {where} again, for nothing tells splits apart in "
                    f"them; leave data.eval.path out (then data.held_out={data.held_out} is held out), or name other data"
                )
    return {getattr(source, "split", "") or "test": source}


def eval_pixels(data: Section) -> Pixels:
    """How pictures are made ready for evaluation: as `data.fit` says, else as in training, without draws."""
    said = dict(data.get("fit") or {})
    return Pixels(_size(data.image_size), whole=bool(data.whole), fit=Fit(**said) if said.get("how") else None)


def _size(image_size: Any) -> Any:
    return image_size if isinstance(image_size, int) else tuple(image_size)


def validation_source(data: Section) -> Source:
    """What is evaluated while a run trains: the validation split of `scenes`, else the one evaluation source.

    In the second case a checkpoint kept by `checkpoint.best` has been chosen on the data it is reported on.
    """
    path = eval_path(data)
    return open_source(path, data.eval.split) if is_scenes(path) else next(iter(eval_sources(data).values()))


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
    text: Section,
    parts: Section,
    sources: Mapping[str, Source],
    *,
    origin: str | Path | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Tokenizer:
    """The tokenizer a config names (a .model file or a tokenizer folder), else `origin`, that of the run it starts from,
    else one trained on the run's own text.

    A text length of 0 in the config is that of the folder or run; without one it becomes that of the longest text read,
    rounded up to a multiple of 8; of a few texts that are far longer than all others, only that of the others, which is said.
    """
    origin = text.model or origin
    if origin and Path(origin).is_dir():
        found = Tokenizer.load(origin)
        return found.with_length(text.length or found.vocabulary.length, found.spelling or text.spelling)
    if origin and text.length:
        return Tokenizer.from_file(origin, text.length, text.spelling)
    texts = [t for source in sources.values() for t in spread_texts(source, text.corpus)]
    if not texts:
        name, first = next(iter(sources.items()))
        raise ValueError(
            f"{_where(parts, name)} holds no captions to make a tokenizer from{_unreadable(first)}; check "
            f"data.parts.{name}.path, or restore the file"
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
        log(
            f"the text length is {-(-most // 8) * 8} pieces, in which {cut:,} of {len(lengths):,} texts lose their end: the "
            f"longest, of {longest:,}, would make every row as long; config.text.length sets another"
        )
        longest = most
    return tokenizer.with_length(-(-longest // 8) * 8)


def make_labels(data: Section, sources: Mapping[str, Source]) -> tuple[str, ...]:
    """The answers a run classifies into: the most frequent `data.labels.size` of the first part's, in that order.

    Answers to questions that differ in capitals alone are one, spelt as most often. Only those seen `at_least` so often count (VQA's
    3,129 answers were seen nine times or more); size 0: none are wanted.
    """
    wanted = data.labels
    if not wanted.size:
        return ()
    name, source = next(iter(sources.items()))
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
        raise ValueError(f"{_where(data.parts, name)} has no `answer`, `answers` or `label` to classify into")
    return tuple(spelling[a] for a in found[: wanted.size])


def make_pipeline(
    data: Section,
    tokenizer: Tokenizer,
    labels: tuple[str, ...],
    sources: Mapping[str, Source],
    *,
    batch_size: int,
    seed: int,
    record: Any = None,
    mine: Callable[[int], Sequence[int]] = range,
) -> Pipeline:
    """The training pipeline (of one host: see Pipeline). sources: of each part, as `part_sources` gives them."""
    made = []
    for name, part in parts_in(data.parts).items():
        source = sources[name]
        steps = [
            build(t, f"config.data.parts.{name}.transforms[{i}]", tokenizer=tokenizer, labels=labels)
            for i, t in enumerate(part.transforms)
        ]
        if part.get("packed"):
            source = _each(source, lambda s, p=part: Packed(s, tokenizer, chunked=bool(p.get("chunked", True))))
        if part.get("cache"):  # the first transform draws nothing, so its result can be kept
            source, steps = _each(source, lambda s, first=steps[:1]: Cached(s, first)), steps[1:]
        made.append(Part(name, source, steps, rows_of(part, batch_size)))
    return Pipeline(made, seed, Quarantine(data.quarantine, record), mine)


def _each(source: Source, change: Callable[[Source], Source]) -> Source:
    """A source changed; of a mixture each of its sources, so that the weights stay those of rows."""
    return source.with_each(change) if isinstance(source, Mixture) else change(source)


def constant_captions(sources: Mapping[str, Source], count: int = 200) -> Iterator[str]:
    """Training captions of the first part that may serve as the best constant caption: an even spread, one an image."""
    for example in _spread(next(iter(sources.values())), count):
        yield from example.get("captions", ())[:1]

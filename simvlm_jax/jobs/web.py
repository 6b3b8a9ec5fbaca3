"""From lists and tars of web pictures to clean shards: what is done to one part of the input, whoever runs it.

A part is a stretch of rows of one input. It becomes an array_record file of accepted examples and a record beside it: where
its rows came from, how many there were, why the others were dropped, and a hash of every picture. In is out plus the drops,
for every part and in all. A row is a line of a table or a sample of a tar, with or without a picture.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.files import MOST_BYTES as MOST_OF_A_MEMBER
from simvlm_jax.core.files import partial_of, read_bytes
from simvlm_jax.data.images import BadImage, decode
from simvlm_jax.data.readers.tars import Member, index_tar, picture_of, read_sample
from simvlm_jax.data.table_files import read_table
from simvlm_jax.data.tables import IMAGE_COLUMNS, TABLE_SUFFIXES, captions_of
from simvlm_jax.jobs.fetch import fetched

URL_COLUMNS = ("url", "image_url")
MOST_BYTES = 2**26
"""Most bytes of a picture's file from the web."""
_FETCHERS = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is kept, and how it is stored.

    side: the shorter side of a stored picture, in pixels (smaller ones are left as they are). smallest: shorter side of what
    is accepted. aspect: the longest side over the shortest at most. words: of a caption, at least and at most. near: bits of
    64 in which two pictures' hashes may differ and still be the same picture; -1 keeps duplicates. quality: of JPEG.
    rows: of a part. timeout: half of the seconds that fetching a picture may take, from the first word to the last byte.
    """

    side: int = 256
    smallest: int = 64
    aspect: float = 4.0
    words: tuple[int, int] = (2, 60)
    near: int = 3
    quality: int = 90
    rows: int = 10_000
    timeout: float = 10.0

    def __post_init__(self):
        if not -1 <= self.near <= 3:
            raise ValueError(f"near {self.near} is not -1 (off) or 0 to 3")
        if self.rows < 1 or self.side < 1 or self.words[0] > self.words[1]:
            raise ValueError(f"{self}: rows and side are positive, and words are (least, most)")
        if not (0 < self.timeout <= 3600 and self.aspect >= 1 and 1 <= self.quality <= 100 and self.smallest >= 1):
            raise ValueError(
                f"{self}: timeout is above 0 and at most an hour, aspect and smallest at least 1, quality 1 to 100"
            )


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows [start, stop) of an input. size and time of its last change tell one state of the input from another."""

    input: str
    start: int
    stop: int
    size: int
    changed: float = 0.0

    @property
    def stem(self) -> str:
        """The input's file name without its suffix."""
        return Path(self.input).name.split(".")[0]

    @property
    def name(self) -> str:
        """A file name of its own, in the order of the input."""
        return f"{self.stem}-{hashlib.sha256(self.input.encode()).hexdigest()[:8]}-{self.start:09d}"


class Dropped(Exception):
    """A row is left out; the message is the reason that is counted."""


Sample = tuple[str, bytes, list[str]] | Dropped
"""(key, encoded picture, captions) of a row, or why there is none."""

Rows = list[tuple[int, dict[str, Any] | ValueError]]
"""Rows of a table, each with its line; one that cannot be read is the error."""


def parts_of(path: Path, name: str, settings: Settings, changed: float = 0.0) -> Iterator[tuple[Part, Rows | None]]:
    """The parts of an input that lies at `path` and is called `name`; those of a table come with their rows.

    Raises:
      ValueError: it is neither a tar nor a table, or cannot be read.
    """
    if path.suffix == ".tar":
        rows, total = None, len(index_tar(path)[0])
    elif path.suffix in TABLE_SUFFIXES:
        rows = read_table(path).rows
        total = len(rows)
    else:
        raise ValueError(f"input {str(path)!r} is not a .tar or a table ({', '.join(TABLE_SUFFIXES)})")
    for start in range(0, total, settings.rows):
        stop = min(start + settings.rows, total)
        yield Part(name, start, stop, path.stat().st_size, changed), None if rows is None else rows[start:stop]


def build(part: Part, examples: Iterable[Sample], settings: Settings) -> tuple[list[bytes], dict[str, Any]]:
    """(examples as TFDS stores them, the record beside them) of a part; examples: of `tar_samples` or `table_samples`."""
    features = make_features()
    kept: list[bytes] = []
    keys: list[str] = []
    hashes: list[int] = []
    dropped = Counter[str]()
    for sample in examples:
        try:
            if isinstance(sample, Dropped):
                raise sample
            key, image, captions = sample
            captions = _good_captions(captions, settings)
            pixels, encoded = _stored(image, settings)
        except Dropped as e:
            dropped[str(e)] += 1
            continue
        example = {"key": key, "image": io.BytesIO(encoded), "captions": captions}
        kept.append(features.serialize_example(features.encode_example(example)))
        keys.append(key)
        hashes.append(difference_hash(pixels))
    record = {
        "part": part.name,
        **dataclasses.asdict(part),
        "settings": dataclasses.asdict(settings),
        "made": hashlib.sha256(b"".join(hashlib.sha256(e).digest() for e in kept)).hexdigest(),
        "in": part.stop - part.start,
        "out": len(kept),
        "dropped": dict(dropped),
        "keys": keys,
        "hashes": hashes,
    }
    return kept, record


def make_features() -> Any:
    """The features of a prepared data set, as TFDS knows them."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    image = tfds.features.Image(encoding_format="jpeg")
    return tfds.features.FeaturesDict({"key": text, "image": image, "captions": tfds.features.Sequence(text)})


def tar_samples(part: Part, path: Path) -> Iterator[Sample]:
    """The samples of a part of a tar that lies at `path`."""

    def read(member: Member) -> bytes:
        if member[2] > MOST_OF_A_MEMBER:
            raise Dropped("file too large")
        return os.pread(file.fileno(), member[2], member[1])

    with path.open("rb", buffering=0) as file:
        for key, files in index_tar(path)[0][part.start : part.stop]:
            if picture_of(files) is None:
                yield Dropped("no image")
                continue
            try:
                found = read_sample(key, files, read)
                yield f"{part.stem}/{key}", found["image"], found["captions"]
            except Dropped as e:
                yield e
            except Exception:  # people's files raise whatever they like
                yield Dropped("unreadable row")


def table_samples(part: Part, rows: Rows, folder: str, settings: Settings) -> Iterator[Sample]:
    """The samples of rows of a table, their pictures fetched many at a time.

    folder: where pictures without an address of their own lie.

    Raises:
      ValueError: that folder is not of this machine.
    """

    def sample(row: tuple[int, dict[str, Any] | ValueError]) -> Sample:
        if isinstance(row[1], ValueError):
            return Dropped("unreadable row")
        try:
            captions = captions_of(row[1])
            place = next((str(row[1][c]) for c in (*URL_COLUMNS, *IMAGE_COLUMNS) if row[1].get(c)), "")
        except Exception:  # people's files raise whatever they like
            return Dropped("unreadable row")
        if not place:
            return Dropped("no image")
        try:
            return f"{part.stem}/{row[0]}", _fetched(place, folder, settings.timeout), captions
        except Dropped as e:
            return e

    with concurrent.futures.ThreadPoolExecutor(_FETCHERS) as pool:
        for i in range(0, len(rows), 4 * _FETCHERS):
            yield from pool.map(sample, rows[i : i + 4 * _FETCHERS])


def _fetched(place: str, folder: str, timeout: float) -> bytes:
    """A picture from the web, or from below the folder of its table."""
    scheme = place.partition("://")[0].lower() if "://" in place else ""
    if not scheme and "://" in folder:
        raise ValueError(
            f"picture {place!r} lies in {folder}, which is no folder of this machine; give the table a url column"
        )
    if scheme and scheme not in ("http", "https"):
        raise Dropped("another scheme than http or https")
    try:
        if scheme:
            return fetched(place, 2 * timeout, MOST_BYTES)
        path, home = (Path(folder) / place).resolve(), Path(folder).resolve()
        if not path.is_relative_to(home):
            raise Dropped("outside of the table's folder")
        return read_bytes(path, MOST_BYTES)
    except Dropped:
        raise
    except OverflowError as e:
        raise Dropped("file too large") from e
    except Exception as e:  # the web fails in any way it likes
        raise Dropped("not fetched") from e


def _good_captions(captions: list[str], settings: Settings) -> list[str]:
    least, most = settings.words
    lengths = [len(c.split()) for c in captions]
    good = [c for c, n in zip(captions, lengths, strict=True) if least <= n <= most]
    if not good:
        longest = max(lengths, default=0)
        raise Dropped("no caption" if not longest else "caption too short" if longest < least else "caption too long")
    return good


def _stored(encoded: bytes, settings: Settings) -> tuple[np.ndarray, bytes]:
    """(pixels, JPEG) of a picture at its stored size."""
    from PIL import Image

    try:
        image = decode(encoded, at_least=max(settings.side, settings.smallest))
    except BadImage as e:
        raise Dropped("unreadable image") from e
    short, long = sorted(image.size)
    if short < settings.smallest:
        raise Dropped("image too small")
    if long > settings.aspect * short:
        raise Dropped("image too narrow")
    if short > settings.side:
        scale = settings.side / short
        size = tuple(max(round(n * scale), settings.side) for n in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=settings.quality)
    return np.asarray(image), file.getvalue()


def difference_hash(pixels: np.ndarray) -> int:
    """64 bits of a picture: where brightness grows from left to right on a grid of 8 x 9 (N. Krawetz, 2013)."""
    from PIL import Image

    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    return int(np.packbits(bits).view(">u8")[0])


BANDS = 4
"""Two hashes that differ in at most 3 bits agree in at least one of 4 bands of 16."""


def bands(record: dict[str, Any]) -> Iterator[tuple[tuple[int, int], tuple[str, int, str]]]:
    """((band, its bits), (part, hash, key)) of every picture of a part: near duplicates share at least one first half."""
    for key, number in zip(record["keys"], record["hashes"], strict=True):
        for b in range(BANDS):
            yield (b, (number >> (16 * b)) & 0xFFFF), (record["part"], number, key)


def near_duplicates(group: Iterable[tuple[str, int, str]], near: int) -> Iterator[tuple[str, str]]:
    """(part, key) of every picture of a band that is near an earlier one, in the order of (part, key).

    Earlier means smaller, not kept: which pictures go depends on nothing but the pictures.
    """
    seen: set[int] = set()
    ordered = sorted(set(group), key=lambda item: (item[0], item[2]))
    numbers = np.array([number for _, number, _ in ordered], np.uint64)
    first = np.empty_like(numbers)  # each number once, in the order in which it comes first
    for (part, number, key), packed in zip(ordered, numbers, strict=True):
        if number in seen:
            yield part, key
            continue
        if (np.bitwise_count(first[: len(seen)] ^ packed) <= near).any():
            yield part, key
        first[len(seen)] = packed
        seen.add(number)


def without(examples: list[bytes], record: dict[str, Any], duplicates: set[str]) -> tuple[list[bytes], dict[str, Any]]:
    """A part's examples and record after its near duplicates have gone."""
    stays = [key not in duplicates for key in record["keys"]]
    kept = [e for e, s in zip(examples, stays, strict=True) if s]
    gone = len(examples) - len(kept)
    dropped = {**record["dropped"], **({"near duplicate": gone} if gone else {})}
    small = {k: v for k, v in record.items() if k not in ("keys", "hashes")}
    return kept, {**small, "out": len(kept), "dropped": dropped, "bytes": sum(map(len, kept))}


def totals(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums over parts.

    Raises:
      ValueError: a part whose rows are not all accounted for.
    """
    dropped = Counter[str]()
    for r in records:
        if r["in"] != r["out"] + sum(r["dropped"].values()):
            raise ValueError(f"part {r['part']}: {r['in']} rows in are not {r['out']} out and {r['dropped']} dropped")
        dropped.update(r["dropped"])
    return {"in": sum(r["in"] for r in records), "out": sum(r["out"] for r in records), "dropped": dict(dropped)}


def write_records(path: Path, examples: list[bytes]) -> None:
    """Writes an array_record file whole or not at all.

    Raises:
      OSError: it cannot be written.
    """
    from array_record.python import array_record_module

    partial = partial_of(path)
    try:
        writer = array_record_module.ArrayRecordWriter(os.fspath(partial), "group_size:1")
        for example in examples:
            writer.write(example)
        writer.close()
        partial.replace(path)
    except Exception as e:  # array_record raises many kinds
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        message = str(e).partition(";")[0]
        raise OSError(
            f"{path} could not be written ({message:.200}); free some space or set TMPDIR to another place"
        ) from e


def read_records(path: Path) -> list[bytes]:
    """All examples of an array_record file."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    examples = reader.read_all() if reader.num_records() else []
    reader.close()
    return examples

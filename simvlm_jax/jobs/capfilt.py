"""Captioning and filtering: of a data set's texts, and of captions that a model writes, those that a model finds to match.

CapFilt (BLIP, arXiv 2201.12086, section 3.3): captioners write n captions a picture, by nucleus sampling; filters say of these and
of the texts that came with the picture whether they match it; what does stays. Any model writes that has `prefill` and `extend`, and
any filters that has `score_pair` or `similarity`.

The work is cut into parts of so many pictures, in the order of the source. A part is a WebDataset tar of the pictures that keep a
text, and beside it a record of every text with its scores, which is written last: a part with a record is done and not made again,
whoever was killed meanwhile. What a text's fate depends on is the text, its picture, the models and the seed: not on the parts, the
processes, or who came first.
"""

import dataclasses
import errno
import io
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.files import parse_json, partial_of, read_json, read_text, write_whole
from simvlm_jax.core.schema import Count, Positive, Seed, Share, check
from simvlm_jax.data.source import Source
from simvlm_jax.data.tables import captions_of
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.infer.answered import Answered
from simvlm_jax.infer.engine import Engine, MissingCapability
from simvlm_jax.infer.prefetch import prefetched
from simvlm_jax.run.progress import Countdown

MANIFEST, COUNTS, DECISIONS = "capfilt.json", "counts.json", "decisions"
WEB, WRITTEN = "web", "written"
TRUE = {"exact": True, "partial": True, "wrong": False, "unrelated": False}
"""Whether a text of a kind of `scenes/noisy` is true of its scene; the words around it ("stock image: ...") are not judged."""
MATCHES = 0.0
"""The log odds of `score_pair` from which on a text matches: it is likelier to than not."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is written and what stays.

    captions: written a picture by each captioner. how: the decoding. prompt: that captioners continue; it is no part of the caption.
    agree: filters that must find that a text matches. rows: pictures of a part. seed: of sampled captions. keep_web: whether the
    texts that came with the pictures may stay. bad: share of all pictures that may be unreadable.
    """

    captions: Count = 1
    how: Decoding = Decoding()
    prompt: str = ""
    agree: Positive = 1
    rows: Positive = 1000
    seed: Seed = 0
    keep_web: bool = True
    bad: Share = 0.05


@dataclasses.dataclass(frozen=True)
class Member:
    """A model at work: its name, its engine, and how its pictures are made ready; threshold: of a filter's score."""

    name: str
    engine: Engine
    pixels: Callable[[dict[str, Any], Any], dict[str, Any]]
    threshold: float = MATCHES

    def score(self, images: np.ndarray, texts: Sequence[str], pairs: np.ndarray) -> Answered[np.ndarray]:
        """Scores [P] of pairs [P,2] of an image and a text: log odds of a match, or cosines."""
        if self.engine.has("score_pair"):
            return self.engine.score_pair(images, texts, pairs)
        embedded, notes = self.engine.embed_texts(texts)
        seen = self.engine.embed_images(images)
        return Answered(self.engine.similarity_of_rows(seen[pairs[:, 0]], embedded[pairs[:, 1]]), notes)


def check_filter(member: Member, given: bool) -> None:
    """Refuses a filter that cannot score pairs, or whose scores have no threshold of their own.

    given: whether the threshold was named.

    Raises:
      MissingCapability, ValueError.
    """
    if member.engine.has("score_pair"):
        return
    if not member.engine.has("embed_image", "embed_text", "similarity"):
        raise MissingCapability(
            f"filtering needs score_pair, or similarity, and {type(member.engine.model).__name__} of {member.name} has neither"
        )
    if not given:
        raise ValueError(
            f"{type(member.engine.model).__name__} of {member.name} scores by similarity, and no cosine means a match by itself: "
            "name the least one that does with --threshold, such as 0.28"
        )


@dataclasses.dataclass
class Text:
    """A text of a picture: where from ("web" or "written"), by which captioner, scores of the filters, why it was dropped."""

    text: str
    of: str
    by: str = ""
    scores: list[float] = dataclasses.field(default_factory=list)
    dropped: str = ""


@dataclasses.dataclass
class Picture:
    """An example of the source: its row there, its texts, what else it tells, and why it cannot be read."""

    row: int
    key: str
    image: bytes
    texts: list[Text]
    more: dict[str, Any]
    pixels: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    error: str = ""


def capfilt_parts(
    source: Source,
    captioners: Sequence[Member],
    filters: Sequence[Member],
    settings: Settings,
    folder: Path,
    about: dict[str, Any],
    mine: Callable[[int], bool] = lambda part: True,
    split: str = "train",
) -> Counter[str]:
    """Makes those parts that are `mine` and are not there; returns counts of captions and texts that were cut.

    about: what else the result depends on, as the manifest has it.

    Raises:
      ValueError: the folder holds something else, or was begun otherwise; or too many rows cannot be read.
    """
    manifest = {
        "source": repr(source),
        "examples": len(source),
        "split": split,
        **about,
        **json.loads(json.dumps(dataclasses.asdict(settings))),
    }
    _check_manifest(folder, manifest)
    (folder / DECISIONS).mkdir(parents=True, exist_ok=True)
    parts = [p for p in range(-(-len(source) // settings.rows)) if mine(p) and not _record(folder, split, p).exists()]
    pace = Countdown("pictures", sum(len(_rows(source, p, settings)) for p in parts))
    done, bad, notes = 0, 0, Counter[str]()
    for part in parts:
        counts: Counter[str] = Counter()
        lines: list[str] = []
        with _Tar(folder / f"{split}-{part:05d}.tar") as out:
            reader = _read(source, _rows(source, part, settings), [*captioners, *filters])
            for pictures in prefetched(_chunks(reader, _size(captioners, filters))):
                readable = [p for p in pictures if not p.error]
                if readable:
                    notes += _caption(readable, captioners, settings)
                    notes += _filter(readable, captioners, filters, settings)
                for picture in pictures:
                    _write(out, picture, counts, lines)
                done, bad = done + len(pictures), bad + len(pictures) - len(readable)
                if bad > settings.bad * len(source) and (bad > 1 or not settings.bad):
                    raise ValueError(
                        f"{bad} of {done} pictures cannot be read, over the limit of {settings.bad:.1%} of all; the last: "
                        f"{next(p for p in reversed(pictures) if p.error).error}. Mend the data, or raise --bad"
                    )
                pace.at(done)
            out.finish(bool(counts["pictures"]))
        write_whole(_record(folder, split, part), "\n".join([json.dumps({"counts": counts}), *lines]) + "\n", own=True)
    pace.close()
    return notes


class _Tar:
    """A tar that takes its place once it is whole and on disk; nothing half written stays, of an earlier process neither."""

    def __init__(self, path: Path):
        self._path, self._partial = path, partial_of(path)
        for left in path.parent.glob(f"{path.name}.*.partial"):
            left.unlink(missing_ok=True)

    def __enter__(self) -> "_Tar":
        self._file = self._try(lambda: self._partial.open("wb"))
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    def add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # no times and no owners: the same command makes the same bytes
        member.size = len(data)
        self._try(lambda: self._tar.addfile(member, io.BytesIO(data)))

    def finish(self, keep: bool) -> None:
        """Puts it in its place, or where nothing is to be kept leaves no file."""

        def end() -> None:
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            if keep:
                self._partial.replace(self._path)

        self._try(end)

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError as e:
            raise OSError(
                f"{self._path} could not be written ({e.strerror or e}); free some space, and the same command continues"
            ) from e


def summary(folder: Path) -> dict[str, Any] | None:
    """{"in", "kept", "written", "dropped": {reason: n}} of all parts; None while some are missing.

    Raises:
      ValueError: a text is not accounted for.
    """
    records = records_of(folder)
    if records is None:
        return None
    total = Counter[str]()
    for path in records:
        with path.open() as file:
            total.update(parse_json(file.readline(), path.name)["counts"])
    dropped = {k.removeprefix("dropped: "): n for k, n in sorted(total.items()) if k.startswith("dropped: ")}
    found = {"in": total[WEB], "kept": total["kept"], "written": total[WRITTEN], "dropped": dropped}
    if found["in"] + found["written"] != found["kept"] + sum(dropped.values()):
        raise ValueError(f"{folder}: its texts do not add up: {found}; remove the folder, and make it again")
    return found


def records_of(folder: Path) -> list[Path] | None:
    """The records of all parts in order, if all are there."""
    manifest = read_json(folder / MANIFEST)
    paths = [_record(folder, manifest["split"], p) for p in range(-(-manifest["examples"] // manifest["rows"]))]
    return paths if all(p.exists() for p in paths) else None


def decisions(folder: Path) -> Iterator[dict[str, Any]]:
    """Every text in order: {"row", "key", "text", "of", "by", "scores", "kept", "reason"}, and what is known of its truth."""
    for path in records_of(folder) or ():
        for line in read_text(path).split("\n")[1:]:
            if line:
                yield parse_json(line, path.name)


# ---- a part --------------------------------------------------------------------------------------------------------

_MACHINE = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN)
"""Errors that are not a picture's fault: what cannot be read for them is read again by the same command."""


def _read(source: Source, indices: range, members: Sequence[Member]) -> Iterator[Picture]:
    """The pictures with their pixels for each way in which members have them; those that cannot be read say why."""
    ways = {i: m.pixels for i, m in enumerate(members) if repr(m.pixels) not in {repr(x.pixels) for x in members[:i]}}
    for index in indices:
        picture = Picture(index, str(source.key(index)), b"", [], {})
        try:
            example = source[index]
            picture.texts = _texts(example)
            picture.more = {k: example[k] for k in ("truth", "scene") if isinstance(example.get(k), str)}
            if "image" not in example:
                raise ValueError("it has no single picture (image), which is what is captioned")
            picture.image = _encoded(example["image"])
            for i, pixels in ways.items():
                made = pixels({"image": picture.image}, None)["image"]
                picture.pixels |= {j: made for j, m in enumerate(members) if repr(m.pixels) == repr(members[i].pixels)}
        except Exception as e:  # people's files fail in any way they like
            if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno in _MACHINE):
                raise
            picture.error = f"{type(e).__name__}: {e}"[:300]
            picture.texts = picture.texts or [Text("", WEB)]
            for text in picture.texts:
                text.dropped = text.dropped or "unreadable picture"
        yield picture


def _texts(example: dict[str, Any]) -> list[Text]:
    """The texts of an example; of equal ones the first stays."""
    found = example["captions"] if example.get("captions") is not None else captions_of(example)
    texts: list[Text] = []
    for text in (str(t).strip() for t in found):
        again = text in {t.text for t in texts}
        texts.append(Text(text, WEB, dropped="web: empty" if not text else "web: repeats another" if again else ""))
    return texts


def _encoded(image: Any) -> bytes:
    """A picture's file; of pixels a PNG."""
    if isinstance(image, bytes):
        return image
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint8)).save(file, "PNG")
    return file.getvalue()


def _size(captioners: Sequence[Member], filters: Sequence[Member]) -> int:
    return max((m.engine.batch_size for m in (*captioners, *filters)), default=64)


def _chunks(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    chunk: list[Picture] = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _caption(pictures: list[Picture], captioners: Sequence[Member], settings: Settings) -> Counter[str]:
    """Adds the captions of every captioner; one that says what is there already is dropped as a repetition.

    Returns how many ended for want of room.
    """
    cut = Counter[str]()
    for c, member in enumerate(captioners):
        images = np.stack([p.pixels[c] for p in pictures])
        ids = np.asarray([zlib.crc32(p.key.encode("utf-8", "surrogatepass")) for p in pictures], np.int64)
        for n in range(settings.captions):
            drawn = zlib.crc32(f"{settings.seed}/{c}/{n}".encode())
            made, notes = member.engine.generate(
                images, [settings.prompt] * len(pictures), ids, settings.how, seed=drawn
            )
            cut["answers_cut"] += int(notes.get("answers_cut", 0))
            for picture, hypotheses in zip(pictures, made, strict=True):
                text = Text(hypotheses[0][0].strip(), WRITTEN, member.name)
                if not text.text:
                    text.dropped = "written: empty"
                elif text.text in {t.text for t in picture.texts if settings.keep_web or t.of == WRITTEN}:
                    text.dropped = "written: repeats another"
                picture.texts.append(text)
    return +cut


def _filter(
    pictures: list[Picture], captioners: Sequence[Member], filters: Sequence[Member], settings: Settings
) -> Counter[str]:
    """Scores every text by every filter, and drops what too few of them find to match; returns how many texts were cut."""
    asked, cut = [(i, t) for i, p in enumerate(pictures) for t in p.texts if not t.dropped], Counter[str]()
    if asked and filters:
        pairs = np.stack([[i for i, _ in asked], np.arange(len(asked))], axis=1)
        texts = [t.text for _, t in asked]
        for f, member in enumerate(filters, len(captioners)):
            found, notes = member.score(np.stack([p.pixels[f] for p in pictures]), texts, pairs)
            cut["texts_cut"] += int(notes.get("texts_cut", 0))
            for (_, text), score in zip(asked, found, strict=True):
                text.scores.append(round(float(score), 6))
    for _, text in asked:
        agree = sum(s >= m.threshold for s, m in zip(text.scores, filters, strict=True))
        if filters and agree < settings.agree:
            text.dropped = f"{text.of}: does not match"
        elif text.of == WEB and not settings.keep_web:
            text.dropped = "web: written ones take its place"
    return +cut


def _write(out: _Tar, picture: Picture, counts: Counter[str], lines: list[str]) -> None:
    """Puts a picture into the tar if it keeps a text, and all of its texts into the record."""
    kept = [t.text for t in picture.texts if not t.dropped]
    for t in picture.texts:
        counts.update({t.of: 1, f"dropped: {t.dropped}" if t.dropped else "kept": 1})
        row = dict(row=picture.row, key=picture.key, text=t.text, of=t.of, by=t.by, scores=t.scores, kept=not t.dropped)
        row |= {"reason": t.dropped, **({"error": picture.error} if picture.error else {})}
        lines.append(json.dumps({**row, **_truth(picture, t)}))
    if kept:
        counts["pictures"] += 1
        out.add(f"{picture.row:09d}{_suffix(picture.image)}", picture.image)
        out.add(f"{picture.row:09d}.json", json.dumps({"captions": kept, **picture.more, "key": picture.key}).encode())


def _truth(picture: Picture, text: Text) -> dict[str, Any]:
    """What is known of a text: the kind of noise that it is, and whether it is true of the scene."""
    if text.of == WEB and "truth" in picture.more:
        kind = picture.more["truth"]
        return {"truth": kind, **({"true": TRUE[kind]} if kind in TRUE else {})}
    if "scene" not in picture.more or picture.error:
        return {}
    from simvlm_jax.data.scenes.graph import Scene
    from simvlm_jax.data.scenes.judge import judge

    try:
        return {"true": judge(Scene.from_json(picture.more["scene"]), text.text).accurate}
    except (ValueError, KeyError, TypeError, AttributeError):  # another data set's word for a place
        return {}


def _suffix(image: bytes) -> str:
    """The usual suffix of an encoded picture, by its first bytes."""
    for start, suffix in ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp")):
        if image.startswith(start):
            return suffix
    return ".webp" if image[8:12] == b"WEBP" else ".jpg"


def check_folder(folder: Path) -> None:
    """Refuses a folder that holds what is not this command's.

    Raises:
      ValueError: it does.
    """
    if folder.is_dir() and not (folder / MANIFEST).exists():
        own = (".lock", ".partial")
        strange = sorted(
            p.name for p in folder.iterdir() if p.name not in (MANIFEST, DECISIONS) and p.suffix not in own
        )
        if strange and not (folder / MANIFEST).exists():  # another process may just have written it
            raise ValueError(f"{folder} holds {strange[0]}, which is none of this command's; name an empty folder")


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes what the folder is of, or compares it with what is written.

    Raises:
      ValueError: it is of something else.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    if not path.exists():  # several processes may be here at once, with the same to say
        write_whole(path, json.dumps(manifest, indent=1), own=True)
    before = read_json(path)
    check(before, dict[str, Any], str(path))
    if changed := sorted(k for k in {*manifest, *before} if before.get(k) != manifest.get(k)):
        raise ValueError(
            f"{folder} was begun otherwise ({', '.join(changed)} differs); remove it, or name another folder"
        )


def _record(folder: Path, split: str, part: int) -> Path:
    return folder / DECISIONS / f"{split}-{part:05d}.jsonl"


def _rows(source: Source, part: int, settings: Settings) -> range:
    return range(part * settings.rows, min((part + 1) * settings.rows, len(source)))

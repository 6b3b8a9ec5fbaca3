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
import hashlib
import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simvlm_jax.core.files import parse_json, partial_of, read_json, read_text, write_whole
from simvlm_jax.core.schema import Count, Positive, Seed, check
from simvlm_jax.data.source import Source
from simvlm_jax.data.tables import captions_of
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.infer.engine import Engine, MissingCapability
from simvlm_jax.infer.prefetch import prefetched
from simvlm_jax.run.progress import Countdown

MANIFEST, COUNTS, DECISIONS = "capfilt.json", "counts.json", "decisions"
WEB, WRITTEN = "web", "written"
MATCHES = 0.0
"""The log odds of `score_pair` above which a text matches: it is likelier to than not."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is written and what stays.

    captions: written a picture by each captioner. how: the decoding. prompt: that captioners continue; it is no part of the caption.
    agree: filters that must find that a text matches. rows: pictures of a part. seed: of sampled captions. keep_web: whether the
    texts that came with the pictures may stay.
    """

    captions: Count = 1
    how: Decoding = Decoding()
    prompt: str = ""
    agree: Positive = 1
    rows: Positive = 1000
    seed: Seed = 0
    keep_web: bool = True


@dataclasses.dataclass(frozen=True)
class Member:
    """A model at work: its name, its engine, and how its pictures are made ready; threshold: of a filter's score."""

    name: str
    engine: Engine
    pixels: Callable[[dict[str, Any], Any], dict[str, Any]]
    threshold: float = MATCHES

    def score(self, images: np.ndarray, texts: Sequence[str], pairs: np.ndarray) -> np.ndarray:
        """Scores [P] of pairs [P,2] of an image and a text: log odds of a match, or cosines."""
        if self.engine.has("score_pair"):
            return self.engine.score_pair(images, texts, pairs).values
        embedded = self.engine.embed_texts(texts).values
        seen = self.engine.embed_images(images)
        return self.engine.similarity_of_rows(seen[pairs[:, 0]], embedded[pairs[:, 1]])


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
    """An example of the source, its texts, and what else it tells."""

    key: str
    image: bytes
    texts: list[Text]
    more: dict[str, Any]
    pixels: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


def capfilt_parts(
    source: Source,
    captioners: Sequence[Member],
    filters: Sequence[Member],
    settings: Settings,
    folder: Path,
    about: dict[str, Any],
    mine: Callable[[int], bool] = lambda part: True,
    split: str = "train",
) -> None:
    """Makes those parts that are `mine` and are not there.

    about: what else the result depends on, as the manifest has it.

    Raises:
      ValueError: the folder holds something else, or was begun otherwise.
    """
    (folder / DECISIONS).mkdir(parents=True, exist_ok=True)
    manifest = {
        "source": repr(source),
        "examples": len(source),
        "split": split,
        **about,
        **json.loads(json.dumps(dataclasses.asdict(settings))),
    }
    _check_manifest(folder, manifest)
    parts = [p for p in range(-(-len(source) // settings.rows)) if mine(p) and not _record(folder, split, p).exists()]
    pace = Countdown("pictures", sum(len(_rows(source, p, settings)) for p in parts))
    done = 0
    for part in parts:
        counts: Counter[str] = Counter()
        lines: list[str] = []
        names: set[str] = set()
        tar = folder / f"{split}-{part:05d}.tar"
        partial = partial_of(tar)
        try:
            with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as out:
                reader = _read(source, _rows(source, part, settings), [*captioners, *filters], counts, lines)
                for pictures in prefetched(_chunks(reader, _size(captioners, filters))):
                    _caption(pictures, captioners, settings)
                    _filter(pictures, captioners, filters, settings)
                    for picture in pictures:
                        _write(out, picture, counts, lines, names)
                    done += len(pictures)
                    pace.at(done)
            if counts["pictures"]:
                partial.replace(tar)
        except OSError as e:
            raise OSError(
                f"{tar} could not be written ({e.strerror or e}); free some space, and the same command continues"
            ) from e
        finally:
            partial.unlink(missing_ok=True)
        write_whole(_record(folder, split, part), "\n".join([json.dumps({"counts": counts}), *lines]) + "\n", own=True)
    pace.close()


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
    """Every text in order: {"key", "text", "of", "by", "scores", "kept", "reason"}, and what is known of its truth."""
    for path in records_of(folder) or ():
        for line in read_text(path).split("\n")[1:]:
            if line:
                yield parse_json(line, path.name)


# ---- a part --------------------------------------------------------------------------------------------------------


def _read(
    source: Source, indices: range, members: Sequence[Member], counts: Counter[str], lines: list[str]
) -> Iterator[Picture]:
    """The pictures that can be read, with their pixels for each way in which members have them; the others are counted."""
    ways = {i: m.pixels for i, m in enumerate(members) if repr(m.pixels) not in {repr(x.pixels) for x in members[:i]}}
    for index in indices:
        key, texts = str(source.key(index)), []
        try:
            example = source[index]
            texts = list(dict.fromkeys(filter(None, (t.strip() for t in _texts(example)))))
            more = {k: example[k] for k in ("truth", "scene") if isinstance(example.get(k), str)}
            picture = Picture(key, example["image"], [Text(t, WEB) for t in texts], more)
            for i, pixels in ways.items():
                made = pixels({"image": picture.image}, None)["image"]
                picture.pixels |= {j: made for j, m in enumerate(members) if repr(m.pixels) == repr(members[i].pixels)}
            yield picture
        except Exception as e:  # people's files fail in any way they like
            reason = "unreadable picture" if texts else "unreadable row"
            for text in texts or [""]:
                counts.update({WEB: 1, f"dropped: {reason}": 1})
                lines.append(json.dumps(dict(key=key, text=text, of=WEB, kept=False, reason=f"{reason}: {e}"[:300])))


def _texts(example: dict[str, Any]) -> list[str]:
    if example.get("captions") is not None:
        return [str(t) for t in example["captions"]]
    return captions_of(example)


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


def _caption(pictures: list[Picture], captioners: Sequence[Member], settings: Settings) -> None:
    """Adds the captions of every captioner; one that says what is there already is dropped as a repetition."""
    for c, member in enumerate(captioners):
        images = np.stack([p.pixels[c] for p in pictures])
        ids = np.asarray([zlib.crc32(p.key.encode("utf-8", "surrogatepass")) for p in pictures], np.int64)
        for n in range(settings.captions):
            drawn = zlib.crc32(f"{settings.seed}/{c}/{n}".encode())
            made, _ = member.engine.generate(images, [settings.prompt] * len(pictures), ids, settings.how, seed=drawn)
            for picture, hypotheses in zip(pictures, made, strict=True):
                text = Text(hypotheses[0][0].strip(), WRITTEN, member.name)
                if not text.text:
                    text.dropped = "written: empty"
                elif text.text in {t.text for t in picture.texts}:
                    text.dropped = "written: repeats another"
                picture.texts.append(text)


def _filter(
    pictures: list[Picture], captioners: Sequence[Member], filters: Sequence[Member], settings: Settings
) -> None:
    """Scores every text by every filter, and drops what too few of them find to match."""
    asked = [(i, t) for i, p in enumerate(pictures) for t in p.texts if not t.dropped]
    if asked and filters:
        pairs = np.stack([[i for i, _ in asked], np.arange(len(asked))], axis=1)
        texts = [t.text for _, t in asked]
        for f, member in enumerate(filters, len(captioners)):
            found = member.score(np.stack([p.pixels[f] for p in pictures]), texts, pairs)
            for (_, text), score in zip(asked, found, strict=True):
                text.scores.append(round(float(score), 6))
    for _, text in asked:
        agree = sum(s > m.threshold for s, m in zip(text.scores, filters, strict=True))
        if filters and agree < settings.agree:
            text.dropped = f"{text.of}: does not match"
        elif text.of == WEB and not settings.keep_web:
            text.dropped = "web: written ones take its place"


def _write(out: tarfile.TarFile, picture: Picture, counts: Counter[str], lines: list[str], names: set[str]) -> None:
    """Puts a picture into the tar if it keeps a text, and all of its texts into the record."""
    kept = [t.text for t in picture.texts if not t.dropped]
    for t in picture.texts:
        counts.update({t.of: 1, f"dropped: {t.dropped}" if t.dropped else "kept": 1})
        told = dict(
            key=picture.key, text=t.text, of=t.of, by=t.by, scores=t.scores, kept=not t.dropped, reason=t.dropped
        )
        lines.append(json.dumps({**told, **_truth(picture, t)}, ensure_ascii=False))
    if not kept:
        return
    counts["pictures"] += 1
    name = _name(picture.key, names)
    meta = {"captions": kept, **picture.more, "key": picture.key}
    for suffix, data in (
        (_suffix(picture.image), picture.image),
        (".json", json.dumps(meta, ensure_ascii=False).encode()),
    ):
        member = tarfile.TarInfo(f"{name}{suffix}")  # no times and no owners: the same command makes the same bytes
        member.size = len(data)
        out.addfile(member, io.BytesIO(data))


def _truth(picture: Picture, text: Text) -> dict[str, Any]:
    """What is known of a text: the kind of noise that it is, and whether it is true of the scene."""
    found: dict[str, Any] = {}
    if text.of == WEB and "truth" in picture.more:
        found["truth"] = picture.more["truth"]
    if "scene" in picture.more:
        from simvlm_jax.data.scenes.graph import Scene
        from simvlm_jax.data.scenes.judge import judge

        found["true"] = judge(Scene.from_json(picture.more["scene"]), text.text).accurate
    return found


def _name(key: str, names: set[str]) -> str:
    """A member's name of a key: letters, digits, - and _ stay, for a dot begins a suffix there and a slash a folder."""
    made = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in key)[-80:] or "_"
    if made in names or made != key:
        made = f"{made[:80]}-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    names.add(made)
    return made


def _suffix(image: bytes) -> str:
    """The usual suffix of an encoded picture, by its first bytes."""
    for start, suffix in ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp")):
        if image.startswith(start):
            return suffix
    return ".webp" if image[8:12] == b"WEBP" else ".jpg"


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes what the folder is of, or compares it with what is written.

    Raises:
      ValueError: it is of something else.
    """
    path = folder / MANIFEST
    if not path.exists():
        if strange := sorted(p.name for p in folder.iterdir() if p.name != DECISIONS and not p.name.endswith(".lock")):
            raise ValueError(f"{folder} holds {strange[0]}, which is none of this command's; name an empty folder")
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

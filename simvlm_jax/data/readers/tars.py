"""WebDataset tars: KEY.jpg beside KEY.json, KEY.txt or KEY.cls; as img2dataset, clip_benchmark and others write them.

Indexed once, read at random. What a tar holds and the rows do not is counted by reason.
"""

import functools
import os
import posixpath
import tarfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from simvlm_jax.core.files import MOST_BYTES, BadFile, decoded, open_regular, parse_json, read_json, read_text
from simvlm_jax.data.folders import PICTURES, visible
from simvlm_jax.data.reader import How
from simvlm_jax.data.readers.tar_headers import check_tar
from simvlm_jax.data.rows import Understood
from simvlm_jax.data.splits import of_split, split_of_all, unnamed
from simvlm_jax.data.table_files import read_table
from simvlm_jax.data.tables import captions_of
from simvlm_jax.text.lines import lines_of
from simvlm_jax.text.tokenizer import clean

_OPEN_SHARDS = 256
_TEXTS = (".json", ".txt", ".cls")
_FIELDS = ("question", "answer", "answers", "label")
CUT = "members cut at the end of a tar"

Member = tuple[Path, int, int]
"""A file inside a tar: the tar, offset and size in bytes."""


def accepts(path: Path, how: How) -> str:
    """The name of a tar, or of the first in a folder; "" of texts alone, which are in no tar."""
    return next((p.name for p in _tars(path)), "") if how.images else ""


def read(path: Path, how: How) -> "WebDatasetSource":
    """A tar, or those of a folder that are of the split."""
    return read_files(_tars(path), path, how)


def read_files(tars: list[Path], here: Path, how: How) -> "WebDatasetSource":
    """Those of the tars that are of the split; where all that were named tell one split it is that, whatever was asked."""
    split = how.split if here.is_dir() else split_of_all(tars) or how.split
    found, name, rest = of_split(tars, split, here)
    source = WebDatasetSource(found, name, how.truncated)
    source.understood.left_out.update(unnamed(rest, "tars"))
    return source


def _tars(path: Path) -> list[Path]:
    found = visible(path) if path.is_dir() else [path]
    return [p for p in found if p.suffix.lower() == ".tar" and p.is_file()]


class WebDatasetSource:
    """Samples of tars that have a picture: {"key", "image", "captions"}, and what else their JSON or .cls tells."""

    def __init__(self, paths: list[Path], split: str = "", truncated: bool = False):
        """truncated: takes a tar that ends too early for what it still holds."""
        self.split = split
        self.understood = Understood("WebDataset tars", [p.name for p in paths], split=split)
        left_out = self.understood.left_out
        self._rows = []
        for path in paths:
            stat = path.stat()
            rows, gone = _index(path, stat.st_size, stat.st_mtime_ns, truncated)
            left_out.update(gone)
            self._rows += [row for row in rows if picture_of(row[1])]
            if bare := len(rows) - sum(picture_of(row[1]) is not None for row in rows):
                left_out["samples without a picture"] += bare
        if not self._rows:
            gone = "; ".join(f"{n} {why}" for why, n in left_out.items())
            raise ValueError(
                f"no images in {', '.join(map(str, paths[:3]))}; expected members like KEY.jpg and KEY.json"
                + (f" (left out: {gone})" if gone else "")
            )
        folder = paths[0].parent
        self.classes = _class_names(folder)
        """Names of classes by number, where classnames.txt lies beside the tars."""
        _, templates = _lines(folder, "zeroshot_classification_templates.txt")
        self.templates = tuple(t.replace("{c}", "{name}") for t in templates if t)
        if self.classes:
            self.understood.reader = "tars of numbered classes"
        elif statuses := not_fetched(paths):
            self.understood.reader = "img2dataset tars"
            left_out.update(statuses)
        suffixes = sorted({s for _, files in self._rows[:1000] for s in files})
        self.understood.rows, self.understood.columns = len(self._rows), suffixes
        self._paths, self._files, self._lock = paths, {}, threading.Lock()

    def __len__(self):
        return len(self._rows)

    def key(self, index: int) -> str:
        return self._rows[index][0]

    def _read(self, member: Member) -> bytes:
        path, offset, size = member
        if size > MOST_BYTES:
            raise BadFile(f"a member of {path.name} has {size:,} bytes, more than the limit of {MOST_BYTES:,}")
        with self._lock:
            if path not in self._files and len(self._files) < _OPEN_SHARDS:
                self._files[path] = path.open("rb", buffering=0)
            file = self._files.get(path)
        if file is not None:
            return os.pread(file.fileno(), size, offset)
        with path.open("rb") as file:
            return os.pread(file.fileno(), size, offset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key, files = self._rows[index]
        return read_sample(key, files, self._read, self.classes)

    def text(self, index: int) -> dict[str, Any]:
        """A sample without its picture."""
        key, files = self._rows[index]
        return read_texts(key, files, self._read, self.classes)

    def close(self) -> None:
        """Closes the tars; they are opened again when they are read again."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def __repr__(self):
        sizes = ",".join(f"{p.name}:{p.stat().st_size}" for p in self._paths)
        return f"webdataset:{zlib.crc32(sizes.encode('utf-8', 'surrogatepass')):08x}:{len(self)}"


def picture_of(files: dict[str, Member]) -> Member | None:
    """The picture among the files of a sample."""
    return next((files[suffix] for suffix in PICTURES if suffix in files), None)


def read_sample(
    key: str, files: dict[str, Member], read: Callable[[Member], bytes], classes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A sample with a picture: {"key", "image", "captions"} and what else its texts tell."""
    image = picture_of(files)
    assert image is not None, key
    return {"key": key, "image": read(image), **read_texts(key, files, read, classes)}


def read_texts(
    key: str, files: dict[str, Member], read: Callable[[Member], bytes], classes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What the JSON, the text (one caption per line) and the class of a sample tell.

    Raises:
      ValueError: one of them cannot be read, or is of another kind.
    """
    example: dict[str, Any] = {"key": key, "captions": []}
    if ".json" in files:
        meta = parse_json(decoded(read(files[".json"]), f"{key}.json"), f"{key}.json")
        if not isinstance(meta, dict):
            raise ValueError(f"{key}.json must hold an object, not a {type(meta).__name__}")
        meta = {str(k).lower(): v for k, v in meta.items()}
        example["captions"] = captions_of(meta)
        example |= {k: meta[k] for k in _FIELDS if meta.get(k) is not None}
    if not example["captions"] and ".txt" in files:
        lines = map(clean, lines_of(decoded(read(files[".txt"]), f"{key}.txt")))
        example["captions"] = [line for line in lines if line]
    if ".cls" in files and "label" not in example:
        label = clean(decoded(read(files[".cls"]), f"{key}.cls"))
        if label.isdigit() and classes:
            if int(label) >= len(classes):
                raise ValueError(f"{key}.cls says class {label}, and classnames.txt has {len(classes)}")
            label = classes[int(label)]
        example["label"] = label
    return example


@functools.cache
def _index(
    path: Path, size: int, changed: int, truncated: bool
) -> tuple[list[tuple[str, dict[str, Member]]], Counter[str]]:
    """The index of a tar; `size` and `changed` tell one state of the file from another."""
    return index_tar(path, truncated)


def index_tar(path: Path, truncated: bool = False) -> tuple[list[tuple[str, dict[str, Member]]], Counter[str]]:
    """(key and members by suffix of every sample, what is left out by reason) of a tar.

    Of members with one name the last counts, as when unpacking; links count as what they lead to.

    Raises:
      ValueError: it is not an uncompressed tar, or (unless `truncated`) not whole.
    """
    check_tar(path)
    members: dict[str, tuple[int, int] | str] = {}
    gone: Counter[str] = Counter()
    with open_regular(path, 2**50) as file:
        try:
            _index_members(_Watched(file), truncated, members, gone)
        except (tarfile.TarError, OverflowError, ValueError, IndexError) as e:  # tarfile's, of what is damaged
            raise ValueError(
                f"{str(path)!r} is not a whole, uncompressed tar file: {e}; fetch or unpack it again"
                + ("" if truncated else " (config.data.parts.pairs.truncated=True takes what a cut one still holds)")
            ) from e
    return _samples(path, members, gone), gone


class _Watched:
    """A file that knows its size, and whether it `ended` before a read had all it asked for."""

    def __init__(self, file: BinaryIO):
        self.size, self.ended = os.fstat(file.fileno()).st_size, False
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        data = self._read(size) or b""
        self.ended |= len(data) < size
        return data


def _index_members(
    file: _Watched, truncated: bool, members: dict[str, tuple[int, int] | str], gone: Counter[str]
) -> None:
    """Puts (offset, size) of every file of a tar, or what a link leads to, into `members`, and counts the others in `gone`.

    truncated: where the file ends, be it in data, in the padding after it, in a header or before the end mark, the tar does.

    Raises:
      tarfile.TarError, OverflowError, ValueError, IndexError: it is damaged, or (unless `truncated`) not whole.
    """
    end = 0
    try:
        with tarfile.open(fileobj=cast(Any, file), mode="r:", errorlevel=1) as tar:
            for member in tar:
                end = tar.offset
                if member.size < 0 or member.offset_data < 0:
                    raise tarfile.ReadError(f"{member.name} claims {member.size} bytes")
                if (
                    member.isfile() and member.offset_data + member.size > file.size
                ):  # which tarfile passes over in silence
                    if not truncated:
                        raise tarfile.ReadError(f"it ends within {member.name}")
                    gone[CUT] += 1
                else:
                    _put_member(member, members, gone)
                tar.members = []  # which tarfile would keep all of
    except (tarfile.TarError, OverflowError, ValueError, IndexError):
        if not (truncated and file.ended):
            raise
    file.seek(end)
    if file.ended and truncated:
        gone.update([CUT] if file.read(512).strip(b"\0") else [])  # part of a header
        return
    after = file.read(512)
    if after.strip(b"\0"):  # a damaged header, or half a one, looks like the end
        raise tarfile.ReadError(f"there is no header at byte {end}")
    while not truncated and (more := file.read(2**20)):
        if more.strip(b"\0"):
            raise tarfile.ReadError("it goes on after its end mark, as several tars in one file do; part them again")
    if len(after) < 512 and not truncated:
        raise tarfile.ReadError(f"it has no end mark after byte {end}, so it was cut short there")


def _put_member(member: tarfile.TarInfo, members: dict[str, tuple[int, int] | str], gone: Counter[str]) -> None:
    if member.isfile():
        members[member.name] = (member.offset_data, member.size)
    elif member.issym():
        members[member.name] = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
    elif member.islnk():
        members[member.name] = member.linkname
    elif not member.isdir():
        gone["members that are no files"] += 1


def _samples(
    path: Path, members: dict[str, tuple[int, int] | str], gone: Counter[str]
) -> list[tuple[str, dict[str, Member]]]:
    """Members by key and suffix.

    A key ends at the first dot of a file's name, as WebDataset has it. Where what follows is more than one suffix ("a.v1.jpg"),
    it ends at the last dot instead, unless there is a sample of the shorter key, of which the member is then a further field.
    """
    plain: dict[str, dict[str, Member]] = {}
    longer: list[tuple[str, str, str, str, Member]] = []
    for name in members:
        place, hops = members[name], 0
        while isinstance(place, str) and hops < 32:
            place, hops = (
                members.get(place.removeprefix("./"), members.get(f"./{place.removeprefix('./')}", "")),
                hops + 1,
            )
        if isinstance(place, str):
            gone["links that lead to no file"] += 1
            continue
        folder, _, file = name.rpartition("/")
        entry = (path, *place)
        short, _, rest = file.partition(".")
        long, _, last = file.rpartition(".")
        before = f"{folder}/" if folder else ""
        if not short and rest:
            gone["hidden files"] += 1
        elif "." not in rest:
            _put(plain, before + short, rest, entry, gone)
        else:
            longer.append((before + short, rest, before + long, last, entry))
    keys = set(plain)
    for short, rest, long, last, entry in longer:
        if short in keys:
            gone[f"further members such as .{rest.lower()}"] += 1
        else:
            _put(plain, long, last, entry, gone)
    return list(plain.items())


def _put(samples: dict[str, dict[str, Member]], key: str, suffix: str, entry: Member, gone: Counter[str]) -> None:
    suffix = "." + suffix.lower()
    files = samples.setdefault(key, {})
    if suffix in PICTURES and (other := next((s for s in PICTURES if s in files and s != suffix), None)):
        gone[f"second pictures of a sample ({other} and {suffix})"] += 1
        return
    if suffix not in PICTURES and suffix not in _TEXTS:
        gone[f"members {suffix}"] += 1
        return
    files[suffix] = entry


def _class_names(folder: Path) -> tuple[str, ...]:
    """Names of classes by number, () if there is no file of them.

    Raises:
      ValueError: a line before the last name is empty, so that no one can say whether the numbers after it count it.
    """
    path, names = _lines(folder, "classnames.txt")
    if "" in names:
        raise ValueError(
            f"{str(path)!r}: line {names.index('') + 1} is empty, and the number of a class is its line; name the class "
            "there, or remove the line"
        )
    return names


def _lines(folder: Path, name: str) -> tuple[Path, tuple[str, ...]]:
    """(a file beside the tars or one folder up, its lines up to the last that is not empty); no lines if there is none."""
    for path in (folder / name, folder.parent / name):
        if path.is_file():
            lines = [line.strip() for line in lines_of(read_text(path))]
            while lines and not lines[-1]:
                lines.pop()
            return path, tuple(lines)
    return folder / name, ()


def not_fetched(paths: list[Path]) -> Counter[str]:
    """How many rows of img2dataset's tables never came into the tars, by their status."""
    gone: Counter[str] = Counter()
    for path in paths:
        stats = path.with_name(f"{path.stem}_stats.json")
        table = path.with_suffix(".parquet")
        if stats.is_file() and table.is_file():
            for _, row in read_table(table).good:
                if row.get("status") not in (None, "success"):
                    gone[f"of status {row['status']}"] += 1
        elif stats.is_file():
            counts = read_json(stats)
            failed = counts.get("count", 0) - counts.get("successes", 0) if isinstance(counts, dict) else 0
            if isinstance(failed, int) and failed > 0:
                gone["not fetched"] += failed
    return gone

"""Corrupt and hostile inputs by kind, one after the other, as a user would meet them:

    python benchmarks/hostile.py [--seed N] [--only KIND] [--out benchmarks/hostile.json]

trains a run of seconds, then gives the commands what other people's tools, full disks, cut downloads and malice leave: each input
must be taken for what it is (with the right answer, which is looked at) or refused in a line that names it. Counted as failures are
tracebacks and exceptions nobody foresaw, more than 60 seconds, more than 2 GiB, and answers that changed in silence.
docs/reliability.md has the table.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

BEGIN, END = "<!-- begin: made by benchmarks/hostile.py -->", "<!-- end of benchmarks/hostile.py -->"
SECONDS, MEMORY = 60, 2 * 2**30
UNFORESEEN = "SIMVLM_TRACEBACK=1 shows where"
Check = Callable[[str], bool]


class Case(NamedTuple):
    """An input and what is done with it. right: of what is printed, where the input is to be taken; None: it is to be refused."""

    kind: str
    name: str
    words: list[str]
    right: Check | None = None
    either: bool = False
    """Whether it may be taken too, for it may not matter what is broken."""


def picture(seed: int = 0, fmt: str = "PNG", size: tuple[int, int] = (32, 32), **save: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(out, fmt, **save)
    return out.getvalue()


class Place:
    """A folder for the inputs; `run()` gives a fresh copy of the trained run whose files are links to it."""

    def __init__(self, folder: Path, trained: Path, rng: random.Random):
        self.folder, self.trained, self.rng, self._count = folder, trained, rng, 0

    def new(self) -> Path:
        self._count += 1
        path = self.folder / f"{self._count:04d}"
        path.mkdir(parents=True)
        return path

    def put(self, name: str, data: Any) -> str:
        path = self.new() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            data
            if isinstance(data, bytes)
            else (data if isinstance(data, str) else json.dumps(data)).encode("utf-8", "surrogatepass")
        )
        return str(path)

    def run(self, changes: dict[str, Any] | None = None, whole: bool = False) -> str:
        """changes: {file: its new content}. whole: a copy, to damage."""
        path = self.new() / "run"
        if whole:
            shutil.copytree(self.trained, path)
        else:
            path.mkdir()
            for item in self.trained.iterdir():
                (path / item.name).symlink_to(item)
        for name, data in (changes or {}).items():
            target = path / name
            if not whole and "/" in name:
                inner = path / name.split("/")[0]
                inner.unlink()
                shutil.copytree(self.trained / inner.name, inner)
            target.unlink(missing_ok=True)
            if data is not None:
                target.write_bytes(
                    data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode()
                )
        return str(path)


NOT_JSON_OBJECTS = [
    "{}",
    "[]",
    "3",
    '"x"',
    "null",
    "{",
    "",
    "[" * 100_000,
    "\xff\xfe",
    '{"a": 1, "a": 2}',
    "NaN",
    "1e999",
]


def configs(p: Place) -> Iterator[Case]:
    """config.json: what is no config, fields of other types, constructors that files may not name, everywhere."""
    shot = str(p.put("a.png", picture()))
    good = json.loads((p.trained / "config.json").read_text())
    for i, text in enumerate(NOT_JSON_OBJECTS):
        yield Case("config.json", f"whole {i}", ["caption", p.run({"config.json": text}), shot])
    for section in ("model", "data", "eval", "checkpoint"):
        for wrong in (None, 3, [], "x", {}):
            config = json.loads(json.dumps(good))
            if wrong is None:
                del config[section]
            else:
                config[section] = wrong
            yield Case(
                "config.json",
                f"{section} {wrong!r}",
                ["caption", p.run({"config.json": config}), shot],
                either=wrong == {},
            )
    fields = [("data", "image_size"), ("data", "parts"), ("data", "whole"), ("model", "patch"), ("model", "size"), ("model", "compute"),
              ("model", "objective"), ("checkpoint", "best"), ("data", "quarantine"), ("mesh", "data"), ("eval", "batch_size"), ("seed",)]  # fmt: skip
    harmless = [
        (("seed",), 10**9),
        (("mesh", "data"), -1),
        (("checkpoint", "best"), "x"),
    ]  # of no account where nothing is trained
    for path in fields:
        for wrong in ("x", -1, 10**9, [], {"a": 1}, 1.5):
            config = json.loads(json.dumps(good))
            place = config
            for part in path[:-1]:
                place = place[part]
            place[path[-1]] = wrong
            yield Case(
                "config.json",
                f"{'.'.join(path)} {wrong!r}",
                ["caption", p.run({"config.json": config}), shot],
                either=(path, wrong) in harmless,
            )
    marker = p.folder / "ran"
    where = [("model",), ("model", "objective"), ("model", "compute"), ("optimizer",), ("data", "parts", "pairs", "transforms", 0), ("text",),
             ("eval", "suites", "captions"), ("eval", "suites", "captions", "how"), ("eval", "suites", "captions", "how", "sampler")]  # fmt: skip
    for target in (
        "os:system",
        "builtins:eval",
        "subprocess:run",
        "simvlm_jax.main:os",
        "simvlm_jax.core.build:importlib",
        "posix:system",
    ):
        for path in where:
            config = json.loads(json.dumps(good))
            place = config
            for part in path[:-1]:
                place = place[part]
            place[path[-1]] = {
                "target": target,
                "command": f"touch {marker}",
                "cmd": f"touch {marker}",
                "args": ["touch", str(marker)],
            }
            yield Case(
                "config.json that names code",
                f"{target} at {path}",
                ["caption", p.run({"config.json": config}), shot],
                None,
            )


def other_files(p: Place) -> Iterator[Case]:
    """letters.json, labels.json, the tokenizer and its contract."""
    shot = str(p.put("a.png", picture()))
    for i, text in enumerate(NOT_JSON_OBJECTS):
        for name in ("letters.json", "labels.json", "tokenizer/contract.json"):
            yield Case(name, f"{i}", ["caption", p.run({name: text}), shot], either=True)
    contract = json.loads((p.trained / "tokenizer" / "contract.json").read_text())
    for field, wrong in [(f, w) for f in contract for w in ("x", -5, 10**12, None, [])]:
        yield Case(
            "tokenizer/contract.json",
            f"{field} {wrong!r}",
            ["caption", p.run({"tokenizer/contract.json": {**contract, field: wrong}}), shot],
        )
    model = (p.trained / "tokenizer" / "tokenizer.model").read_bytes()
    for name, data in {"empty": b"", "cut": model[: len(model) // 2], "text": b"no model", "gone": None}.items():
        yield Case("tokenizer.model", name, ["caption", p.run({"tokenizer/tokenizer.model": data}), shot])


def checkpoints(p: Place) -> Iterator[Case]:
    """Checkpoints with files that are gone, empty, cut or changed in one place."""
    shot = str(p.put("a.png", picture()))
    files = sorted(f for f in (p.trained / "checkpoints").rglob("*") if f.is_file())
    newest = max(int(f.name) for f in (p.trained / "checkpoints").iterdir() if f.name.isdigit())
    for file in [f for f in files if f"/{newest}/" in str(f) and "/state/" not in str(f)]:
        for how in ("gone", "empty", "cut", "changed"):
            run = Path(p.run(whole=True))
            target = run / file.relative_to(p.trained)
            data = target.read_bytes()
            if how == "gone":
                target.unlink()
            elif how == "changed" and data:
                at = p.rng.randrange(len(data))
                target.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
            else:
                target.write_bytes(b"" if how == "empty" else data[: len(data) // 2])
            yield Case("checkpoint", f"{file.relative_to(p.trained)} {how}", ["caption", str(run), shot], either=True)
    run = Path(p.run(whole=True))
    shutil.rmtree(run / "checkpoints")
    yield Case("checkpoint", "none", ["caption", str(run), shot])


def pictures(p: Place) -> Iterator[Case]:
    """Pictures: cut at many places, bombs, other kinds of files, damaged tags."""
    run, said = str(p.trained), lambda out: '"caption"' in out
    for fmt in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        data = picture(1, fmt)
        yield Case("pictures", f"{fmt} whole", ["caption", run, p.put(f"a.{fmt.lower()}", data), "--json"], said)
        for cut in (0, 1, 10, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
            yield Case(
                "pictures", f"{fmt} cut at {cut}", ["caption", run, p.put(f"a.{fmt.lower()}", data[:cut]), "--json"]
            )
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch /tmp/x) system\nshowpage\n%%EOF\n"
    huge = io.BytesIO()
    Image.new("I;16", (13_000, 13_000)).save(huge, "PNG")
    bomb = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(bomb, "PNG")
    html = b"<html><body>404</body></html>"
    header = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)
        + b"\0" * 4
    )
    for name, data in {"a.eps": eps, "b.png": eps, "16bit.png": huge.getvalue(), "bomb.png": bomb.getvalue(), "page.jpg": html,
                       "svg.png": b"<svg/>", "huge-header.png": header, "zip.png": b"PK\3\4" + b"\0" * 99, "pdf.png": b"%PDF-1.4\n"}.items():  # fmt: skip
        yield Case("pictures", name, ["caption", run, p.put(name, data), "--json"])
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n      10\nzz")
    tags = {
        "exif.png": picture(exif=b"Exif\0\0\0\x08\0\x02\x01\x12"), "raw.png": picture(pnginfo=info),
        "exif.webp": picture(fmt="WEBP", exif=b"not exif"), "grey16.png": picture(),
    }  # fmt: skip
    for name, data in tags.items():
        yield Case("pictures", name, ["caption", run, p.put(name, data), "--json"], said)
    pipe = p.new() / "pipe.png"
    os.mkfifo(pipe)
    odd = p.new() / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes(picture())
    for command in (["caption"], ["classify", "--labels", "a,b"]):
        yield Case("pictures", f"pipe {command[0]}", [command[0], run, str(pipe), *command[1:]])
        yield Case("pictures", f"device {command[0]}", [command[0], run, "/dev/zero", *command[1:]])
        yield Case("pictures", f"folder {command[0]}", [command[0], run, str(p.new()), *command[1:]])
        yield Case(
            "pictures",
            f"name {command[0]}",
            [command[0], run, str(odd), *command[1:], "--json"],
            lambda out: "\udce9" in out,
        )
    escape = p.put("a\x1b]0;x\x07.png", picture())
    yield Case("pictures", "a name of control characters", ["caption", run, escape], lambda out: "\x1b" not in out)


def npz(members: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **members)
    return out.getvalue()


def indexes(p: Place, run: str) -> Iterator[Case]:
    """Files of vectors: other shapes, types and counts, damaged archives, headers that lie, bombs."""
    about = np.asarray(json.dumps({"of": "images", "run": "x", "step": 1, "weights": "x"}))
    keys, ones = np.asarray(["a", "b", "c"]), np.ones((3, 4), np.float32)
    good = dict(embeddings=ones, keys=keys, about=about)
    wrong: dict[str, Any] = {
        "more keys": {**good, "keys": np.asarray(list("abcd"))}, "fewer keys": {**good, "keys": keys[:2]},
        "no vectors": {**good, "embeddings": ones[:0], "keys": keys[:0]}, "NaN": {**good, "embeddings": ones * np.nan},
        "infinite": {**good, "embeddings": ones * np.inf}, "int8": {**good, "embeddings": ones.astype(np.int8)},
        "float64": {**good, "embeddings": ones.astype(float)}, "strings": {**good, "embeddings": np.asarray([["x"] * 4] * 3)},
        "a scalar": {**good, "embeddings": np.float32(3)}, "one axis": {**good, "embeddings": ones[:, 0]},
        "keys of numbers": {**good, "keys": np.arange(3)}, "keys in a square": {**good, "keys": keys[:, None]},
        "about no JSON": {**good, "about": np.asarray("x")}, "about a list": {**good, "about": np.asarray("[]")},
        "about deep": {**good, "about": np.asarray("[" * 5000)}, "of texts": {**good, "about": np.asarray('{"of": "texts"}')},
        "without keys": dict(embeddings=ones, about=about), "without about": dict(embeddings=ones, keys=keys), "nothing": {},
        "another run's": good,
    }  # fmt: skip
    for name, members in wrong.items():
        yield Case("indexes", name, ["search", run, "a cat", "--index", p.put("x.npz", npz(members))])
    whole = npz(good)
    raw = io.BytesIO()
    np.save(raw, ones)
    for name, data in {"empty": b"", "text": b"x" * 100, "an npy": raw.getvalue(), "pickled": npz({**good, "keys": np.asarray([{}], object)}),
                       **{f"cut {n}": whole[: len(whole) * n // 8] for n in range(1, 8)}}.items():  # fmt: skip
        yield Case("indexes", name, ["search", run, "a cat", "--index", p.put("x.npz", data)])
    for name, shape in {"1e12 rows": (10**12, 4), "negative": (-3, 4), "2**62": (2**62, 4)}.items():
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
            archive.writestr("embeddings.npy", header.getvalue() + b"\0" * 48)
            for key in ("keys", "about"):
                member = io.BytesIO()
                np.save(member, good[key])
                archive.writestr(f"{key}.npy", member.getvalue())
        yield Case(
            "indexes", f"a header of {name}", ["search", run, "a cat", "--index", p.put("x.npz", out.getvalue())]
        )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        rows = 600_000
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (rows, 1024)})
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(rows // 6000):
                member.write(bytes(6000 * 4096))
        for key in ("keys", "about"):
            member = io.BytesIO()
            np.save(member, good[key])
            archive.writestr(f"{key}.npy", member.getvalue())
    yield Case(
        "indexes",
        f"a bomb of {len(out.getvalue()):,} bytes",
        ["search", run, "a cat", "--index", p.put("x.npz", out.getvalue())],
    )
    for name in ("a.png", "x.txt"):
        yield Case(
            "indexes", f"embed over {name}", ["embed", run, p.put("b.png", picture()), "--out", p.put(name, b"mine")]
        )
    yield Case(
        "indexes", "embed over another npz", ["embed", run, p.put("b.png", picture()), "--out", p.put("x.npz", b"mine")]
    )


def scores(p: Place) -> Iterator[Case]:
    """Files of captions, references and scores."""
    said, truth = [{"image_id": 1, "caption": "a dog runs"}], {"1": ["a dog runs", "the dog"]}

    def caption(name: str, h: Any, r: Any, right: Check | None = None, *more: str) -> Case:
        return Case(
            "captions to score",
            name,
            [
                "metrics",
                "caption",
                "--hypotheses",
                p.put("h.json", h),
                "--references",
                p.put("r.json", r),
                "--json",
                *more,
            ],
            right,
        )

    yield caption("good", said, truth, lambda out: json.loads(out)["bleu1"] > 0.99)
    yield caption(
        "pycocoevalcap's own form",
        {"1": [{"caption": "a dog runs"}]},
        {"1": [{"caption": "a dog runs"}]},
        lambda out: json.loads(out)["bleu1"] > 0.99,
    )
    yield caption(
        "COCO's annotations",
        said,
        {"annotations": [{"image_id": 1, "caption": "a dog runs"}]},
        lambda out: json.loads(out)["bleu1"] > 0.99,
    )
    long = "zebra xylophone quartz " * 10_000
    yield caption(
        "30,000 words", [{"image_id": 1, "caption": long}], {"1": [long]}, lambda out: json.loads(out)["rouge_l"] > 0.99
    )
    yield caption(
        "half a character",
        [{"image_id": 1, "caption": "a dog \ud83d"}],
        truth,
        lambda out: json.loads(out)["bleu1"] > 0.9,
    )
    for i, text in enumerate(NOT_JSON_OBJECTS):
        yield caption(f"captions {i}", text, truth)
        yield caption(f"references {i}", said, text)
    for wrong in (None, 3, [["a"]], {"caption": 3}, {"a": 1}, True):
        yield caption(f"a reference that is {wrong!r}", said, {"1": [wrong]})
        yield caption(f"a caption that is {wrong!r}", [{"image_id": 1, "caption": wrong}], truth)
        yield caption(f"an id that is {wrong!r}", [{"image_id": wrong, "caption": "a"}], truth)
    yield caption("an id twice", said * 2, truth)
    yield caption("no caption", [], truth)
    yield caption("an image without references", said, {"1": []})
    path = p.put("h.json", said)
    yield Case(
        "captions to score",
        "over its input",
        ["metrics", "caption", "--hypotheses", path, "--references", p.put("r.json", truth), "--per-image", path],
    )
    entry = {"suite": "s", "split": "t", "control": None, "scores": {"a": 1.0}, "provenance": {}}
    good = p.put("a.json", {"entries": [entry]})
    for i, text in enumerate(NOT_JSON_OBJECTS):
        yield Case("files of scores", f"{i}", ["eval-diff", good, p.put("b.json", text)])
    wrongs: list[Any] = [[entry, entry], [3], "x", [{**entry, "scores": []}], [{**entry, "scores": {"a": "x"}}], [{**entry, "provenance": 3}], [{"suite": 1}],
                         [{**entry, "control": {}}], [{**entry, "samples": {"a": ["x"]}}]]  # fmt: skip
    for i, wrong in enumerate(wrongs):
        yield Case("files of scores", f"entries {i}", ["eval-diff", good, p.put("b.json", {"entries": wrong})])


def tables(p: Place) -> Iterator[Case]:
    """Tables, tars and annotations, as `simvlm data show` understands them."""

    def folder(files: dict[str, Any]) -> str:
        path = p.new()
        for name, data in {"0.png": picture(), "1.png": picture(1), **files}.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
        return str(path)

    def rows(n: int, text: str = "") -> Check:
        return lambda out: len(out.splitlines()) == n and text in out

    good = "image,caption\n0.png,a dog\n1.png,a cat\n"
    yield Case("tables", "good", ["data", "show", folder({"t.csv": good})], rows(2, "a dog"))
    for encoding in ("utf-8-sig", "utf-16"):
        yield Case("tables", encoding, ["data", "show", folder({"t.csv": good.encode(encoding)})], rows(2, "a dog"))
    for name, text in {
        "latin-1": "image,caption\n0.png,café\n".encode("latin-1"), "NUL": b"image,caption\n0.png,a\0b\n", "empty": "", "a header alone": "image,caption\n",
        "columns twice": "image,caption,caption\n0.png,a,b\n", "no columns known": "a,b\n1,2\n", "a quote left open": 'image,caption\n0.png,"a dog\n1.png,a cat\n1.png,b"\n',
        "a page": "<html>\n<body>\n", "binary": bytes(range(256)) * 40,
    }.items():  # fmt: skip
        yield Case("tables", name, ["data", "show", folder({"t.csv": text})], either=name == "NUL")
    for i, bad in enumerate(['{"image": "0.png", "caption": 3}', '{"image": "0.png"', "[]", "3", '{"caption": "a"}', '{"image": "0.png", "caption": NaN}',
                             '{"image": {"a": 1}, "caption": "a"}', "[" * 50_000, '{"image": "0.png", "caption": "a", "caption": "b"}']):  # fmt: skip
        text = '{"image": "0.png", "caption": "a dog"}\n' + bad + "\n"
        yield Case("tables", f"a bad row {i}", ["data", "show", folder({"t.jsonl": text})])
        yield Case("tables", f"bad rows alone {i}", ["data", "show", folder({"t.jsonl": bad + "\n"})])
    lone = '{"image": "0.png", "caption": "a dog \\ud83d"}\n'
    yield Case("tables", "half a character", ["data", "show", folder({"t.jsonl": lone})], rows(1, "\ufffd"))
    yield Case(
        "tables",
        "half a character in a tokenizer",
        ["data", "tokenizer", folder({"t.jsonl": lone * 30}), "--out", str(p.new() / "t"), "--vocabulary", "60"],
        lambda out: "pieces" in out,
    )
    for name, data in {"empty": b"", "text": b"PAR1" + b"x" * 50, "cut": b"PAR1\x15\x04\x15"}.items():
        yield Case("tables", f"parquet {name}", ["data", "show", folder({"t.parquet": data})])
    for name, files in {"tars and tables": {"a.tar": b"", "t.csv": good}, "two splits in a name": {"train_val.csv": good}, "an unknown list": {"a.json": '{"a": 1}'},
                        "captions that are none": {"captions_train.json": '{"images": [], "annotations": []}'}, "half of COCO": {"captions_train.json": '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}]}'},
                        "JSON nested deep": {"a.json": "[" * 99_999}, "one folder": {"images/2.png": picture()}}.items():  # fmt: skip
        yield Case("layouts", name, ["data", "show", folder(files)])
    yield Case("layouts", "shards without end", ["data", "show", "{0..99999999}.tar"])
    yield Case("layouts", "a device", ["data", "show", "/dev/zero"])
    yield Case("layouts", "nowhere", ["data", "show", "/nowhere"])
    for target in ("evil.Feature", "os.system", "tensorflow_datasets.core.features.os.path"):
        tree = {"pythonClassName": target, "content": ""}
        yield Case(
            "layouts",
            f"features.json {target}",
            [
                "data",
                "show",
                folder({"dataset_info.json": '{"name": "x", "version": "1.0.0"}', "features.json": json.dumps(tree)}),
            ],
        )

    def tar(members: list[tuple[str, Any]]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as t:
            for name, data in members:
                m = tarfile.TarInfo(name)
                if isinstance(data, bytes):
                    m.size = len(data)
                    t.addfile(m, io.BytesIO(data))
                else:
                    m.type, m.linkname = data
                    t.addfile(m)
        return out.getvalue()

    whole = tar([(f"{i}.{e}", b) for i in range(4) for e, b in (("jpg", picture(i, "JPEG")), ("txt", b"a dog"))])
    end = len(whole.rstrip(b"\0"))
    yield Case("tars", "whole", ["data", "show", p.put("x.tar", whole)], rows(4, "a dog"))
    for cut in range(0, end, max(end // 30, 1)):
        yield Case("tars", f"cut at {cut}", ["data", "show", p.put("x.tar", whole[:cut])])
        yield Case("tars", f"cut at the block of {cut}", ["data", "show", p.put("x.tar", whole[: cut // 512 * 512])])
    for name, data in {"gzip": b"\x1f\x8b\x08" + b"\0" * 600, "text": b"x" * 2000, "zeros": bytes(10_240)}.items():
        yield Case("tars", name, ["data", "show", p.put("x.tar", data)])
    links = [
        ("0.jpg", picture(0, "JPEG")),
        ("0.txt", b"a"),
        ("1.jpg", (tarfile.SYMTYPE, "1.jpg")),
        ("2.jpg", (tarfile.SYMTYPE, "../../etc/passwd")),
        ("3.jpg", (tarfile.LNKTYPE, "0.jpg")),
        ("3.txt", b"b"),
    ]
    yield Case("tars", "links to themselves and away", ["data", "show", p.put("x.tar", tar(links))], rows(2))
    negative = bytearray(whole)
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b" " * 8
    negative[148:156] = f"{sum(negative[:512]):06o}\0 ".encode()
    yield Case("tars", "a member of negative size", ["data", "show", p.put("x.tar", bytes(negative))])
    for n in range(20):
        at = p.rng.randrange(0, 400)
        yield Case(
            "tars",
            f"changed at {at} ({n})",
            ["data", "show", p.put("x.tar", whole[:at] + bytes([whole[at] ^ (1 << n % 8)]) + whole[at + 1 :])],
            either=True,
        )


def two_ways(p: Place) -> Iterator[Case]:
    """Data that could be read in two ways, or is read wrongly if nobody looks: taken for what it is, or refused."""

    def shown(name: str, files: dict[str, str], right: Check | None = None, *more: str) -> Case:
        folder = p.new()
        for file, text in {"0.png": picture(), "1.png": picture(1), **files}.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Case("two ways to read", name, ["data", "show", str(folder), *more], right)

    def of(*captions: Any) -> Check:
        return lambda out: [json.loads(line)["captions"] for line in out.splitlines()] == list(captions)

    head, good = "image,caption\n", "image,caption\n0.png,a dog\n"
    listed = json.dumps([{"image": "0.png", "caption": "a dog"}])
    coco = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    asked = {"q1": {"imageId": "0", "question": "what?", "answer": "a dog"}}
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    karpathy = {"images": [{"filename": "0.png", "split": "test", "sentences": [{"raw": "a dog"}]}]}
    for name, files in {
        "captions.txt and Karpathy's": {"captions.txt": good, "dataset_flickr8k.json": json.dumps(karpathy)},
        "texts beside pictures and a table": {"0.txt": "tags", "1.txt": "tags", "metadata.csv": good},
        "texts beside pictures and a list": {"0.txt": "tags", "1.txt": "tags", "captions.json": listed},
        "COCO and a table": {"captions.json": json.dumps(coco), "stats.csv": good},
        "captions and questions": {"a.csv": good, "b.csv": "image,question,answer\n0.png,q,a\n"},
        "a table twice": {"t.csv": good, "t (1).csv": good}, "a table in two formats": {"t.csv": good, "t.jsonl": '{"image": "0.png", "caption": "a dog"}'},
        "two years of COCO": {"captions_train2014.json": json.dumps(coco), "captions_train2017.json": json.dumps(coco)},
        "questions in two files": {"train_all_questions.json": json.dumps(asked), "train_balanced_questions.json": json.dumps(asked)},
        "LLaVA's data and its list": {"x.json": json.dumps([{"image": "0.png", "conversations": turns}]), "x_meta.json": listed},
        "folders of splits without classes": {"train/0.png": picture(), "test/1.png": picture()}, "folders of shards": {"00000/000000000.png": picture(), "00001/000010000.png": picture()},
        "pictures and masks": {"images/0.png": picture(), "masks/0.png": picture()}, "tables below classes": {"train/cat/0.png": picture(), "train/cat/metadata.csv": good},
        "a quote over rows": {"t.csv": head + '0.png,"a dog\n1.png,a cat\n0.png,b"\n'}, "a quote over rows, a column after it": {"t.csv": 'image,caption,label\n0.png,"a dog,x\n1.png,a cat,x\n0.png,b",x\n'},
        "a quote over rows without suffixes": {"t.csv": head + '0,"a dog\n1,a cat\n0,b"\n'}, "a list cut by NumPy": {"t.csv": head + "0.png,\"['a' ... 'b']\"\n"},
        "a name that two pictures may have": {"a/x.png": picture(), "b/x.png": picture(), "t.csv": head + "x.png,a dog\n"},
    }.items():  # fmt: skip
        yield Case(*shown(name, files)[:3], None, name == "a name that two pictures may have")
    for name, files in {"a table": {"t.csv": good}, "Flickr8k": {"captions.txt": good}, "texts beside": {"0.txt": "a dog", "1.txt": "b"}}.items():  # fmt: skip
        yield shown(f"a split of {name} that has none", files, None, "--split", "val")
    parted = {"t.csv": "image,caption,split\n0.png,a dog,train\n1.png,a cat,val\n"}
    yield shown("a column of splits", parted, of(["a cat"]), "--split", "val")
    named = {"captionsTrain.csv": good, "captionsVal.csv": head + "1.png,a cat\n"}
    yield shown("splits in names with capitals", named, of(["a cat"]), "--split", "val")
    for name, text, found in [
        ("a list in NumPy's spelling", "\"['a' 'b']\"", ["a", "b"]),
        ("a caption of two lines", '"a dog\nand, well, a cat"', ["a dog and, well, a cat"]),
        ("a caption with U+2028", "a\u2028b", ["a b"]),
    ]:
        yield shown(name, {"t.csv": f"{head}0.png,{text}\n"}, of(found))
    yield shown("UTF-16 without a mark", {"t.csv": good.encode("utf-16-le")}, of(["a dog"]))  # pyright: ignore
    yield shown("a TSV with trailing tabs", {"t.tsv": "image\tcaption\n0.png\ta dog\t\n"}, of(["a dog"]))
    yield shown("one caption per line, U+2028 within", {"0.txt": "a\u2028b\nc", "1.txt": "d"}, of(["a b", "c"], ["d"]))
    empty = {**coco, "annotations": [*coco["annotations"], {"image_id": 1, "caption": ""}]}
    yield shown("an empty caption", {"captions_train.json": json.dumps(empty)}, of(["a dog"]))
    yield shown("files of a Mac", {"t.csv": good, "._t.csv": "\0\5\x16", "__MACOSX/._0.png": "\0"}, of(["a dog"]))
    talk = json.dumps([{"image": "0.png", "conversations": [{"from": "system", "value": "You are"}, *turns]}])
    yield shown("a system's turn", {"t.json": talk}, lambda out: (r := json.loads(out))["question"] == "q" and r["answer"] == "a")  # fmt: skip


def bombs(p: Place, run: str, pairs: str) -> Iterator[Case]:
    """Small inputs that take all memory or time of a reader that trusts them."""
    import pyarrow as pa
    import pyarrow.parquet

    shot = p.put("a.png", picture())
    few = pa.DictionaryArray.from_arrays(pa.array([0] * 900_000, pa.int32()), ["x" * 20_000])
    for name, column in {"a text": few, "a list": pa.ListArray.from_arrays(pa.array([0, 900_000], pa.int32()), few)}.items():  # fmt: skip
        path = p.new() / "t.parquet"
        table = pa.table({"image": ["a.png"] * len(column), "caption": column})
        pyarrow.parquet.write_table(table, path, store_schema=False)
        yield Case("bombs", f"Parquet, {name} many times", ["data", "show", str(path)])
    yield Case("bombs", "200,000 faulty rows", ["data", "show", p.put("t.csv", "image,caption\n" + '"a"b,cap\n' * 200_000)], either=True)  # fmt: skip
    for name, kind, size, data in [
        ("a PAX header of digits", tarfile.XHDTYPE, 300_000, b"1" * 300_000),
        ("a PAX header of 3 GB", tarfile.XHDTYPE, 3 * 2**30, b"19 a=b\n"),
        ("a long name of 3 GB", tarfile.GNUTYPE_LONGNAME, 3 * 2**30, b"a"),
    ]:
        header = tarfile.TarInfo("x")
        header.type, header.size = kind, size
        block = header.tobuf(tarfile.GNU_FORMAT)
        path = Path(p.put("x.tar", block + data))
        with path.open("r+b") as file:
            file.truncate(len(block) + size + 10_240)  # a sparse file: it takes no room
        yield Case("bombs", f"tar, {name}", ["data", "show", str(path)])
    for text in ("#a" * 100_000, "\u200b" * 100_000, "&amp" * 60_000, "<a b='" * 100_000, "(1) 2-" * 100_000):
        files = [p.put("h.json", [{"image_id": 1, "caption": text}]), p.put("r.json", {"1": [text]})]
        words = ["metrics", "caption", "--hypotheses", files[0], "--references", files[1]]
        yield Case("bombs", f"captions of {len(text):,} characters, {text[:7]!r}", words, either=True)
    out = io.BytesIO()
    np.savez_compressed(out, embeddings=np.zeros((700, 2**19), np.float32), keys=np.arange(700).astype(str), about="{}")
    yield Case("bombs", "compressed vectors", ["search", pairs, "a cat", "--index", p.put("x.npz", out.getvalue())])
    many = '{"model": {}, "x": [' + "[]," * 5_000_000 + "[]]}"
    yield Case("bombs", "a config of 5 million lists", ["caption", p.run({"config.json": many}), shot])
    words = ["eval", run, "--suite", "captions", "--batch-size", "60000", "--limit", "4", "--no-controls"]
    yield Case("bombs", "a batch of 60,000", words, lambda out: "captions" in out)
    icon = io.BytesIO()
    Image.new("1", (13_300, 13_300)).save(icon, "PNG")
    entry = bytes([0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 32, 0]) + len(icon.getvalue()).to_bytes(4, "little") + (22).to_bytes(4, "little")  # fmt: skip
    yield Case("bombs", "an icon of 177 megapixels", ["caption", run, p.put("a.ico", entry + icon.getvalue())])


def flags(p: Place, run: str) -> Iterator[Case]:
    """Values of options."""
    shot = p.put("a.png", picture())
    for words in ("--temperature nan", "--temperature -1", "--top-p 0", "--top-k -1 --temperature 1", "--beams 0", "--beams 100000", "--n-best 3", "--max-length -1",
                  "--max-length 100000", "--repetition-penalty 0", "--batch-size 0", "--length-penalty nan --beams 2", "--step 7777", "--no-repeat-ngram -2"):  # fmt: skip
        yield Case("options", words, ["caption", run, shot, *words.split()])
    yield Case(
        "options",
        "--batch-size 200000",
        ["caption", run, shot, "--batch-size", "200000", "--json"],
        lambda out: '"caption"' in out,
    )
    for target in ("h200x1000000", "cpux100000", "v5e:0x0", "v9:2x2", "x", "h200x0", "cpux-1"):
        yield Case("options", f"plan {target}", ["plan", "--config", "configs/prefixlm.py", "--target", target])
    for config in (
        "nowhere.py",
        p.put("a.py", "x = ("),
        p.put("b.py", "x = 1"),
        p.put("c.txt", "x"),
        p.put("d.py", "def get_config(v=''): return 3"),
        p.put("e.py", b"\xff\xfe\0"),
        str(p.new()),
    ):
        yield Case("options", f"config {Path(config).name}", ["plan", "--config", config, "--target", "cpux1"])
    for words in ("--length 1e20", "--length 1", "--vocabulary 0", "--vocabulary 99999999999"):
        yield Case(
            "options",
            f"tokenizer {words}",
            [
                "data",
                "tokenizer",
                p.put("t.jsonl", '{"image": "a", "caption": "a dog"}\n'),
                "--out",
                str(p.new() / "t"),
                *words.split(),
            ],
        )
    for words in ("--suite nosuch", "--suite captions --limit -1", "--suite captions --out /dev/null/y.json", "--suite captions --batch-size 0", "--suite captions --set how.beams=0",
                  "--suite captions --set nosuch=1", "--suite captions --data /nowhere"):  # fmt: skip
        yield Case("options", f"eval {words}", ["eval", run, *words.split()])
    for command in ("caption", "embed", "classify", "search", "eval"):
        yield Case(
            "options",
            f"{command} of no run",
            [
                command,
                "/nowhere",
                *{
                    "caption": [shot],
                    "embed": [shot, "--out", "x.npz"],
                    "classify": [shot, "--labels", "a,b"],
                    "search": ["a", "--index", "x.npz"],
                    "eval": ["--suite", "captions"],
                }[command],
            ],
        )


def train(folder: Path, config: str) -> Path:
    """A run of seconds."""
    from simvlm_jax.core.build import load_config
    from simvlm_jax.experiment import run
    from simvlm_jax.parallel.environment import setup_jax

    setup_jax()
    made = load_config(config)
    made.train.steps = 2
    made.checkpoint.every = 2
    with contextlib.redirect_stderr(io.StringIO()):
        run(made, str(folder))
    return folder


class TooLong(BaseException):
    """An input took more than its seconds."""


def attempt(case: Case) -> dict[str, Any]:
    """What one input led to."""
    from simvlm_jax.cli import main

    def late(*_: Any) -> None:
        raise TooLong

    out, err = io.StringIO(), io.StringIO()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of this input
    began, escaped = time.monotonic(), ""
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(case.words))
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except TooLong:
        code, escaped = -1, "a hang"
    except BaseException as e:
        code, escaped = -1, f"a traceback: {type(e).__name__}: {e}"
    finally:
        signal.alarm(0)
    printed, said = out.getvalue(), err.getvalue()
    status = Path("/proc/self/status")
    line = (
        next((x for x in status.read_text().splitlines() if x.startswith("VmHWM")), "VmHWM: 0 kB")
        if status.exists()
        else ""
    )
    memory = int(line.split()[1]) * 1024 if line else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    failure = escaped
    if not failure and (UNFORESEEN in said or "Traceback" in said):
        failure = "a traceback: " + " / ".join(said.splitlines())[:700]
    if not failure and memory > MEMORY:
        failure = f"{memory / 2**30:.1f} GiB"
    if not failure and case.right is None and code == 0 and not case.either:
        failure = f"taken in silence: {printed[:200]!r}"
    if not failure and case.right is not None and (code != 0 or not case.right(printed)):
        failure = f"not taken for what it is (exit code {code}): {(printed + said)[-200:]!r}"
    if not failure and code not in (0, 1, 2):
        failure = f"exit code {code}"
    if (
        not failure
        and code
        and len([x for x in said.splitlines() if "rror" in x]) == 0
        and "left out" not in said
        and '"error"' not in printed
    ):
        failure = f"no error line: {said[-200:]!r}"
    return {
        "kind": case.kind,
        "name": case.name,
        "refused": code != 0,
        "seconds": time.monotonic() - began,
        "bytes": memory,
        "failure": failure,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds whose name holds this")
    parser.add_argument("--page", help="write the table between the marks of this page")
    parser.add_argument("--out", help="write the counts to this JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name)
        writer = train(folder / "writer", "configs/prefixlm.py:smoke")
        pairs = train(folder / "pairs", "configs/clip.py:smoke")
        place = Place(folder / "inputs", writer, random.Random(args.seed))
        cases = [
            *configs(place), *other_files(place), *checkpoints(place), *pictures(place), *indexes(place, str(pairs)), *scores(place),
            *tables(place), *two_ways(place), *bombs(place, str(writer), str(pairs)), *flags(place, str(writer)),
        ]  # fmt: skip
        cases = [c for c in cases if not args.only or args.only in c.kind]
        done = []
        for i, case in enumerate(cases):
            done.append(attempt(case))
            if done[-1]["failure"]:
                print(f"{case.kind} · {case.name}: {done[-1]['failure']}", file=sys.stderr, flush=True)
            if i % 50 == 49:
                print(f"{i + 1} of {len(cases)}", file=sys.stderr, flush=True)
        ran = (folder / "inputs" / "ran").exists()
    print(table(done))
    failures = [d for d in done if d["failure"]]
    told = f"{len(done)} inputs, {len(failures)} failures; code that a file names was {'RUN' if ran else 'not run'}"
    print(f"\n{told}")
    if args.page:
        before, _, rest = Path(args.page).read_text().partition(BEGIN)
        Path(args.page).write_text(f"{before}{BEGIN}\n\n{table(done)}\n\n{told}.\n\n{END}{rest.partition(END)[2]}")
    if args.out:
        Path(args.out).write_text(
            json.dumps({"inputs": len(done), "failures": failures, "code_was_run": ran, "kinds": kinds(done)}, indent=1)
        )
    return 1 if failures or ran else 0


def kinds(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts by kind."""
    out = []
    for kind in dict.fromkeys(d["kind"] for d in done):
        mine = [d for d in done if d["kind"] == kind]
        count = Counter("refused" if d["refused"] else "taken" for d in mine)
        out.append(
            {
                "kind": kind,
                "inputs": len(mine),
                "refused": count["refused"],
                "taken": count["taken"],
                "failures": sum(bool(d["failure"]) for d in mine),
            }
            | {"slowest_s": round(max(d["seconds"] for d in mine), 1), "most_bytes": max(d["bytes"] for d in mine)}
        )
    return out


def table(done: list[dict[str, Any]]) -> str:
    """The counts in Markdown."""
    lines = [
        "| kind | inputs | refused, in a line | taken for what they are | failures | slowest | most memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for k in kinds(done):
        lines.append(
            f"| {k['kind']} | {k['inputs']} | {k['refused']} | {k['taken']} | {k['failures']} | {k['slowest_s']} s | {k['most_bytes'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

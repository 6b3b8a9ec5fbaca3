"""Web pictures to clean shards: every row is accounted for, whatever is wrong with it, and a run that was cut goes on."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from simvlm_jax.data.sources import open_source
from simvlm_jax.jobs import web
from simvlm_jax.jobs.web import Part, Settings

beam = pytest.importorskip("apache_beam")
SETTINGS = Settings(side=48, smallest=32, rows=8, words=(2, 6))


def picture(seed, size=(64, 64), quality=95):
    """A smooth picture of its own; a second compression of the same seed is a near duplicate."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return file.getvalue()


ROWS = [  # (picture, captions, what becomes of it)
    *((picture(i), [f"picture number {i}"], "out") for i in range(9)),
    (picture(3, quality=60), ["picture three once more"], "near duplicate"),
    (picture(20)[:200], ["a torn picture"], "unreadable image"),
    (b"<html>not found</html>", ["no picture"], "unreadable image"),
    (picture(21, (20, 40)), ["a small picture"], "image too small"),
    (picture(22, (400, 40)), ["a narrow picture"], "image too narrow"),
    (picture(23), [""], "no caption"),
    (picture(24), ["one"], "caption too short"),
    (picture(25), ["much too long a caption for these settings"], "caption too long"),
    (picture(26), ["one", "but two captions"], "out"),
]
EXPECTED = {r: sum(what == r for _, _, what in ROWS) for r in {what for _, _, what in ROWS} if r != "out"}


@pytest.fixture
def tar(tmp_path):
    path = tmp_path / "in" / "web-0000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as f:
        for i, (data, captions, _) in enumerate(ROWS):
            for suffix, content in ((".jpg", data), (".json", json.dumps({"captions": captions}).encode())):
                member = tarfile.TarInfo(f"{i:04d}{suffix}")
                member.size = len(content)
                f.addfile(member, io.BytesIO(content))
    return path


def prepared(inputs, out, settings=SETTINGS, **kwargs):
    from simvlm_jax.jobs.web_pipeline import prepare

    return prepare([str(i) for i in inputs], str(out), settings, **kwargs)


def test_every_row_is_accounted_for(tar, tmp_path):
    counts = prepared([tar], tmp_path / "out")
    assert counts == {"in": len(ROWS), "out": 10, "dropped": EXPECTED}
    source = open_source(str(tmp_path / "out"), "train")
    assert len(source) == 10
    examples = {source[i]["key"]: source[i] for i in range(10)}
    assert examples["web-0000/0017"]["captions"] == ["but two captions"]
    assert Image.open(io.BytesIO(examples["web-0000/0000"]["image"])).size == (48, 48)
    provenance = json.loads((tmp_path / "out" / "train.provenance.json").read_text())
    assert [(s["input"], s["start"], s["stop"]) for s in provenance["shards"]] == [
        (str(tar), 0, 8), (str(tar), 8, 16), (str(tar), 16, 18),
    ]  # fmt: skip
    for shard in provenance["shards"]:
        assert (tmp_path / "out" / shard["shard"]).is_file()
        assert shard["in"] == shard["out"] + sum(shard["dropped"].values())


def test_a_list_with_a_second_split_and_a_training_run_reads_it(tar, tmp_path):
    folder = tar.parent
    lines = []
    for i, (data, captions, _) in enumerate(ROWS[:4]):
        (folder / f"{i}.jpg").write_bytes(data)
        lines.append(json.dumps({"image": f"{i}.jpg", "caption": captions[0]}))
    lines += [
        json.dumps({"image": "absent.jpg", "caption": "it is not there"}),
        json.dumps({"caption": "of nothing at all"}),
    ]
    (folder / "list.jsonl").write_text("\n".join(lines))
    prepared([tar], tmp_path / "out")
    counts = prepared([folder / "*.jsonl"], tmp_path / "out", split="validation")
    assert counts == {"in": 6, "out": 4, "dropped": {"not fetched": 1, "no image": 1}}
    assert [len(open_source(str(tmp_path / "out"), s)) for s in ("train", "validation")] == [10, 4]


def test_rows_added_to_a_list_are_counted_although_its_shard_stays(tmp_path):
    """A part whose kept examples are the same may still have other rows: its counts are those of now."""
    (tmp_path / "a.jpg").write_bytes(picture(1))
    table = tmp_path / "list.csv"
    table.write_text('image,captions\na.jpg,"[""one dog here"", ""two dogs there""]"\n')
    assert prepared([table], tmp_path / "out") == {"in": 1, "out": 1, "dropped": {}}
    assert open_source(str(tmp_path / "out"))[0]["captions"] == ["one dog here", "two dogs there"]
    table.write_text(table.read_text() + "absent.jpg,a picture that is gone\n")
    assert prepared([table], tmp_path / "out") == {"in": 2, "out": 1, "dropped": {"not fetched": 1}}
    (shard,) = json.loads((tmp_path / "out" / "train.provenance.json").read_text())["shards"]
    assert (shard["in"], shard["stop"], shard["size"]) == (2, 2, table.stat().st_size)


def test_samples_of_a_tar_without_a_picture_are_counted(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as f:
        files = [("0.jpg", picture(1)), ("0.txt", b"a picture"), ("1.txt", b"no picture"), ("2.jpg", picture(2))]
        for name, content in [*files, ("2.json", b"[1]")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            f.addfile(member, io.BytesIO(content))
    counts = prepared([path], tmp_path / "out")
    assert counts == {"in": 3, "out": 1, "dropped": {"no image": 1, "unreadable row": 1}}


@pytest.fixture
def server():
    """Pictures by http: /N.jpg is picture N; /slow never ends; /cut ends too early; /big is too big."""
    import http.server
    import threading
    import time

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            data = picture(int(name[:-4])) if name.endswith(".jpg") else bytes(1000)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) + 10**6 * (name in ("slow", "cut"))))
            self.end_headers()
            self.wfile.write(data)
            until = time.monotonic() + 120
            while name == "slow" and time.monotonic() < until and not stopped.is_set():
                self.wfile.write(b"x")
                time.sleep(0.05)

        def log_message(self, *_):
            pass

    stopped = threading.Event()
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    stopped.set()
    made.shutdown()
    made.server_close()


def test_pictures_from_the_web(server, tmp_path, monkeypatch):
    import time

    names = ["1.jpg", "slow", "2.jpg", "cut", "3.jpg"]
    rows = [{"url": f"{server}/{name}", "caption": f"this is {name}"} for name in names]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    began = time.monotonic()
    counts = prepared([tmp_path / "list.jsonl"], tmp_path / "out", Settings(side=48, smallest=32, timeout=2.0))
    assert counts == {"in": 5, "out": 3, "dropped": {"not fetched": 2}}
    assert time.monotonic() - began < 60  # the slow one would have gone on for two minutes
    keys = {open_source(str(tmp_path / "out"))[i]["key"] for i in range(3)}
    assert keys == {"list/1", "list/3", "list/5"}
    monkeypatch.setattr(web, "MOST_BYTES", 100)
    with pytest.raises(web.Dropped, match="file too large"):
        web._fetched(f"{server}/1.jpg", "", 1.0)


def test_a_cut_run_goes_on_and_gives_the_same_bytes(tar, tmp_path, monkeypatch):
    prepared([tar], tmp_path / "whole")
    made, build = [], web.build

    def cut(part, *args, **kwargs):
        if part.start == 16:
            raise KeyboardInterrupt
        return build(part, *args, **kwargs)

    monkeypatch.setattr(web, "build", cut)
    with pytest.raises(BaseException):  # noqa: B017 - Beam wraps what its workers raise
        prepared([tar], tmp_path / "out")
    assert not (tmp_path / "out" / "dataset_info.json").exists()

    def counted(part, *args, **kwargs):
        made.append(part.start)
        return build(part, *args, **kwargs)

    monkeypatch.setattr(web, "build", counted)
    (tmp_path / "out" / "web-train.array_record-00000-of-00003.0123abcd.partial").write_bytes(b"cut")
    prepared([tar], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.partial"))
    assert 16 in made and len(made) < 3  # what was finished was not made again
    shards = sorted(p.name for p in (tmp_path / "whole").glob("web-train*"))
    assert len(shards) == 3
    for name in shards:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    with pytest.raises(ValueError, match=r"begun with other settings: side 48 \(now 32\), smallest 32 \(now 64\)"):
        prepared([tar], tmp_path / "out", Settings(side=32))


def test_an_input_that_changed_is_read_again(tar, tmp_path):
    prepared([tar], tmp_path / "out")
    before = open_source(str(tmp_path / "out"))[0]["captions"]
    whole = tar.read_bytes()
    tar.write_bytes(whole.replace(b"picture number 0", b"picture number X"))  # of the same size
    os.utime(tar, (1, 1))
    prepared([tar], tmp_path / "out")
    assert before == ["picture number 0"] and open_source(str(tmp_path / "out"))[0]["captions"] == ["picture number X"]


def test_a_corrupted_input_is_named(tar, tmp_path):
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(Exception, match=r"web-0000\.tar.*not a whole"):
        prepared([tar], tmp_path / "out")
    with pytest.raises(ValueError, match=r"no input matches .*absent-\*\.tar$"):
        prepared([tar, tmp_path / "absent-*.tar"], tmp_path / "out")
    with pytest.raises(ValueError, match="nor Beam knows --smalest 4000"):
        prepared([tar], tmp_path / "out", options=["--runner=DirectRunner", "--smalest", "4000"])
    with pytest.raises(Exception, match=r"is not a \.tar or a table"):
        (tmp_path / "x.bin").write_bytes(b"1")
        prepared([tmp_path / "x.bin"], tmp_path / "other")


def test_errors_of_workers_are_a_line(tar, tmp_path, monkeypatch, capfd):
    """As they were raised, without the step and the traceback that Beam adds."""
    for name in ("fifo.tar", "fifo.csv"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}' is not a regular file \(a pipe, a device or a socket\)$"):
            prepared([tmp_path / name], tmp_path / "fifo")
    (tmp_path / "none.csv").write_text("image,caption\nabsent.jpg,it is not there\n")
    with pytest.raises(ValueError, match=r"^nothing is left of 1 rows for .*none \(1 not fetched\); mend"):
        prepared([tmp_path / "none.csv"], tmp_path / "none")

    def full(path, *_, **__):
        raise OSError(28, "No space left on device", path)

    with monkeypatch.context() as now:
        now.setattr("apache_beam.io.filesystems.FileSystems.rename", full)
        with pytest.raises(OSError, match=r"settings\.json could not be written \(No space left on device\); free"):
            prepared([tar], tmp_path / "claimed")
    rename = beam.io.filesystems.FileSystems.rename
    with monkeypatch.context() as now:
        now.setattr(
            "apache_beam.io.filesystems.FileSystems.rename",
            lambda old, new: full(new) if "array_record" in new[0] else rename(old, new),
        )
        with pytest.raises(
            OSError, match=r"\.array_record could not be written \(No space left on device\); free .* place$"
        ):
            prepared([tar], tmp_path / "full")
    with pytest.raises(OSError, match=r"records could not be written \(.*\); free some space or set TMPDIR"):
        web.write_records(tmp_path / "none.csv" / "records", [b"1"])
    assert not list(tmp_path.rglob("*.partial")) and "Traceback" not in capfd.readouterr().err


def test_errors_that_beam_wraps_are_those_that_were_raised():
    from simvlm_jax.jobs.web_pipeline import _as_raised

    def raised(error):
        found = _as_raised(error)
        return (type(found), str(found)) if found else None

    assert raised(RuntimeError("OSError: [Errno 28] No space left [while running 'x']")) == (
        OSError,
        "[Errno 28] No space left",
    )
    trace = (
        "Traceback (most recent call last):\n  File ...\nsimvlm_jax.core.files.BadFile: it is bad [while running 'x']\n"
    )
    assert raised(RuntimeError(trace)) == (ValueError, "it is bad")
    assert (
        raised(RuntimeError("KeyError: 'a' [while running 'x']")) is None
    )  # a mistake of the program keeps its traceback
    assert raised(ValueError("of something else")) is None


def test_members_of_a_tar_have_a_bound(tar, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "MOST_OF_A_MEMBER", max(len(data) for data, _, _ in ROWS[:9]))
    large = sum(len(data) > web.MOST_OF_A_MEMBER for data, _, _ in ROWS)
    counts = prepared([tar], tmp_path / "out")
    assert large and counts["dropped"]["file too large"] == large


def test_filters_see_the_picture_as_it_came():
    pixels, _ = web._stored(picture(1, (700, 700)), Settings(side=64, smallest=512))
    assert pixels.shape == (64, 64, 3)
    with pytest.raises(web.Dropped, match="image too small"):
        web._stored(picture(1, (400, 400)), Settings(side=64, smallest=512))


def test_hashes_of_alike_pictures_are_near_and_every_near_pair_shares_a_band():
    def number(data):
        return web.difference_hash(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    a, b = number(picture(3)), number(picture(3, (90, 90), quality=50))
    assert (a ^ b).bit_count() <= 3 < (a ^ number(picture(4))).bit_count()
    rng = np.random.default_rng(0)
    for _ in range(200):
        x = int(rng.integers(2**63))
        y = x
        for bit in rng.choice(64, 3, replace=False):
            y ^= 1 << int(bit)
        records = [{"part": p, "keys": [p], "hashes": [h]} for p, h in (("a", x), ("b", y))]
        shared = {band for band, _ in web.bands(records[0])} & {band for band, _ in web.bands(records[1])}
        assert shared
        assert list(web.near_duplicates([("b", y, "b"), ("a", x, "a")], 3)) == [("b", "b")]
        assert not list(web.near_duplicates([("b", y, "b"), ("a", x, "a")], 2))


def test_duplicates_are_found_however_many_share_a_band():
    numbers = np.random.default_rng(0).integers(2**62, size=5000).tolist()
    group = [("a", n, f"{i:05d}") for i, n in enumerate([*numbers, numbers[4000], numbers[4500] ^ 5])]
    assert list(web.near_duplicates(group, 3)) == [("a", "05000"), ("a", "05001")]


def test_what_does_not_add_up_is_an_error():
    record = {"part": "x", "in": 3, "out": 1, "dropped": {"no caption": 1}}
    with pytest.raises(ValueError, match="3 rows in are not 1 out"):
        web.totals([record])
    with pytest.raises(ValueError, match=r"picture 'a\.jpg' lies in gs://b, which is no folder"):
        web._fetched("a.jpg", "gs://b", 1.0)
    assert Part("gs://b/a.tar", 0, 5, 1).name != Part("gs://c/a.tar", 0, 5, 1).name


def test_the_command(tar, tmp_path, capsys):
    from simvlm_jax.cli import main

    words = [
        "data",
        "web",
        str(tar),
        "--out",
        str(tmp_path / "out"),
        "--side",
        "48",
        "--smallest",
        "32",
        "--words",
        "2-6",
    ]
    assert main([*words, "--json", "--direct_num_workers=1"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["out"] == 10 and "WARNING" not in said.err
    assert main([*words[:-1], "six"]) == 1 and "LEAST-MOST" in capsys.readouterr().err

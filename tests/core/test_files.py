"""Files are written whole, where a person says, without taking the place of a device; JSON of others takes no more than it may."""

import json
import os
import stat
import threading

import pytest

from simvlm_jax.core import files
from simvlm_jax.core.files import BadFile, can_be_written, is_stream, open_own, parse_json, read_json, write_whole


@pytest.fixture
def null(tmp_path):
    """A device like /dev/null, of this test alone."""
    path = tmp_path / "null"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.open("wb").close()
    except OSError:
        pytest.skip("devices cannot be made here")
    return path


def test_a_device_stays_a_device(null, tmp_path):
    (tmp_path / "link").symlink_to("null")
    for path in (null, tmp_path / "link"):
        can_be_written(path)
        write_whole(path, "x" * 1000)
        assert stat.S_ISCHR(path.stat().st_mode) and is_stream(path)
        with pytest.raises(OSError, match="is a pipe or a device"):
            can_be_written(path, stream=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "null"] and (tmp_path / "link").is_symlink()
    with pytest.raises(BadFile, match="is a link, a pipe or a device"):
        write_whole(null, "x", own=True)
    assert stat.S_ISCHR(null.stat().st_mode)


def test_a_pipe_gets_the_bytes_and_stays(tmp_path):
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    can_be_written(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    write_whole(path, "ä" * 100_000)
    reader.join(30)
    assert got == [("ä" * 100_000).encode()] and stat.S_ISFIFO(path.stat().st_mode)
    with pytest.raises(BadFile, match="is a link, a pipe or a device"):
        write_whole(path, "x", own=True)
    with pytest.raises(BadFile, match="is a link, a pipe or a device"):
        open_own(path, "a")


def test_what_a_process_has_open_is_written_to(tmp_path):
    """/dev/stdout is such a name, whether it is a pipe or a file."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe:
        for name in (f"/dev/fd/{writing}", f"/proc/self/fd/{writing}"):
            if os.path.exists(name):
                can_be_written(name)
                write_whole(name, "{}\n")
                assert pipe.readline() == "{}\n"
        os.close(writing)
    with (tmp_path / "out.txt").open("w") as file:
        name = f"/proc/self/fd/{file.fileno()}"
        if os.path.exists(name):
            number = os.fstat(file.fileno()).st_ino
            write_whole(name, "text")
            assert (tmp_path / "out.txt").read_text() == "text" and (tmp_path / "out.txt").stat().st_ino == number


def test_of_a_link_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.json").write_text("old")
    (tmp_path / "near").symlink_to("far/a.json")
    (tmp_path / "nearer").symlink_to("near")
    (tmp_path / "dangling").symlink_to(tmp_path / "far" / "deeper" / "b.json")
    for name, there in (("nearer", "a.json"), ("dangling", "deeper/b.json")):
        can_be_written(tmp_path / name)
        write_whole(tmp_path / name, "new")
        assert (tmp_path / "far" / there).read_text() == "new" and (tmp_path / name).is_symlink()
    assert sorted(p.name for p in (tmp_path / "far").iterdir()) == ["a.json", "deeper"]
    (tmp_path / "round").symlink_to("round")
    for write in (can_be_written, lambda path: write_whole(path, "x")):
        with pytest.raises(OSError, match=r"round (cannot|could not) be written"):
            write(tmp_path / "round")


def test_files_of_our_folders_are_written_through_no_link(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    for mode in ("a", "a+", "w"):
        (folder / "x").symlink_to("../precious.txt")
        with pytest.raises(BadFile, match=r"x' is a link, a pipe or a device.*remove it"):
            open_own(folder / "x", mode)
        (folder / "x").unlink()
    (folder / "x").symlink_to("../precious.txt")
    write_whole(folder / "x", "theirs", own=True)
    assert (folder / "x").read_text() == "theirs" and not (folder / "x").is_symlink()
    (folder / "y").symlink_to("../nothing.txt")
    with pytest.raises(BadFile):
        open_own(folder / "y", "a")
    assert precious.read_text() == "mine" and not (tmp_path / "nothing.txt").exists()
    for mode, text in (("w", "1"), ("a", "12"), ("a+", "122"), ("w", "1")):
        with open_own(folder / "z", mode) as file:
            file.write(text[-1])
        assert (folder / "z").read_text() == text


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match=r"x.json cannot be written"):
            can_be_written(tmp_path / "closed" / "x.json")
    with pytest.raises(OSError, match="is a folder"):
        can_be_written(tmp_path)
    with pytest.raises(OSError, match="could not be written"):
        write_whole(tmp_path / "no" / "x.json", "x")
    with pytest.raises(OSError, match="could not be written"):
        write_whole(tmp_path, "x")
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_json_of_many_small_values_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_PARSED", 2**20)
    for small in ("[]", "{}", '{"a":1}', '""'):
        text = "[" + ",".join([small] * (2**20 // len(small))) + "]"
        for form in (text, text.encode()):
            with pytest.raises(BadFile, match=r"x has .* bytes of JSON that would take about"):
                parse_json(form, "x")
    row = {"image_id": 123456, "caption": "a man riding a wave on top of a surfboard", "scores": [0.12345, 0.54321]}
    rows = json.dumps([row] * 20_000, separators=(",", ":"))
    assert len(parse_json(rows, "x")) == 20_000  # as honest files are, many times the bound
    (tmp_path / "config.json").write_text(" " * 100)
    with pytest.raises(BadFile, match="has 100 bytes, more than the limit of 64"):
        read_json(tmp_path / "config.json", most=64)

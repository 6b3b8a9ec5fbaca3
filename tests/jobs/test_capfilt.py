"""Captioning and filtering: every text is accounted for, whoever does it and whatever ends it, and what stays is a data set."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from simvlm_jax.cli import main
from simvlm_jax.data.scenes.builder import prepare
from simvlm_jax.data.sources import open_source
from simvlm_jax.infer.answered import Answered
from simvlm_jax.jobs import capfilt as job
from simvlm_jax.jobs.capfilt import COUNTS, Member, Settings, capfilt_parts, decisions, summary
from simvlm_jax.jobs.capfilt_page import REPORT, SCORES
from tests.conftest import ROOT

DATA = "scenes/noisy-24_8_8_8"
FEW = ["--rows", "5", "--batch-size", "8", "--max-length", "6"]


@pytest.fixture(scope="module")
def data():
    prepare("noisy-24_8_8_8")
    return DATA


def files(folder):
    """The bytes of all that a folder holds, but for locks."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith(".lock")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def adds_up(folder):
    counts = json.loads((folder / COUNTS).read_text())
    assert set(counts) == {"in", "kept", "written", "dropped"}
    assert counts["in"] + counts["written"] == counts["kept"] + sum(counts["dropped"].values())
    told = list(decisions(folder))
    assert len(told) == counts["in"] + counts["written"] and sum(d["kept"] for d in told) == counts["kept"]
    return counts


@pytest.fixture(scope="module")
def few(blip_run, data, tmp_path_factory):
    """Options by which half of the texts match: those of a model of four steps are all alike."""
    out = tmp_path_factory.mktemp("capfilt") / "all"
    every = [*FEW, "--odds", "-1000"]
    assert main(["data", "capfilt", str(blip_run), str(blip_run), "--data", data, "--out", str(out), *every]) == 0
    assert not any(k.endswith("match") for k in adds_up(out)["dropped"])
    scores = [d["scores"][0] for d in decisions(out) if d["scores"]]
    return [*FEW, "--odds", str(np.median(scores))]


@pytest.fixture(scope="module")
def whole(blip_run, data, few, tmp_path_factory):
    out = tmp_path_factory.mktemp("capfilt") / "out"
    assert main(["data", "capfilt", str(blip_run), str(blip_run), "--data", data, "--out", str(out), *few]) == 0
    return out


def test_every_text_is_accounted_for_and_what_stays_is_a_data_set(whole, few, data):
    counts, source = adds_up(whole), open_source(data)
    assert counts["in"] == counts["written"] == 24
    kept = {}
    for d in decisions(whole):
        if d["kept"]:
            assert min(d["scores"]) >= float(few[-1])
            kept.setdefault(d["key"], []).append(d["text"])
        elif d["scores"]:
            assert d["reason"].endswith("does not match") and max(d["scores"]) < float(few[-1])
    made = open_source(str(whole))
    assert [made[i]["captions"] for i in range(len(made))] == list(kept.values())
    pictures = {source.key(i): source[i]["image"] for i in range(len(source))}
    assert [made[i]["image"] for i in range(len(made))] == [pictures[k] for k in kept]
    page = (whole / REPORT).read_text()
    assert page.count("data:image/png") >= 2 and "By kind of noise" in page
    known = json.loads((whole / SCORES).read_text())
    assert sum(k["in"] for k in known["kinds"].values()) == 24 and known["true"]["written"]["in"] == 24
    right = sum(known["kinds"].get(kind, {"in": 0})["in"] for kind in ("exact", "partial"))
    assert known["true"]["web"]["true_in"] == right  # as the data tells, whatever stands around a text


def test_the_same_command_changes_nothing_and_another_is_refused(whole, few, blip_run, data, capsys):
    before = files(whole)
    command = ["data", "capfilt", str(blip_run), str(blip_run), "--data", data, "--out", str(whole), *few]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads((whole / COUNTS).read_text())
    assert files(whole) == before
    assert main([*command, "--seed", "1"]) == 1
    assert "was begun otherwise (seed differs)" in capsys.readouterr().err


def test_shards_make_the_same_whatever_ends_them(whole, few, blip_run, data, tmp_path, monkeypatch):
    """Two processes, one of which is ended between a part's tar and its record."""
    out = tmp_path / "out"
    command = ["data", "capfilt", str(blip_run), str(blip_run), "--data", data, "--out", str(out), *few]
    assert main([*command, "--shard", "1/2"]) == 0
    assert not (out / COUNTS).exists()
    write, ends = job.write_whole, []

    def killed(path, text, **how):
        if str(path).endswith("00002.jsonl") and not ends:
            ends.append(path)
            raise KeyboardInterrupt
        write(path, text, **how)

    monkeypatch.setattr(job, "write_whole", killed)
    assert main([*command, "--shard", "0/2"]) == 130
    assert not (out / COUNTS).exists() and (out / "train-00002.tar").exists()
    assert main([*command, "--shard", "0/2"]) == 0
    assert files(out) == files(whole)


def test_captions_do_not_depend_on_parts(whole, few, blip_run, data, tmp_path):
    out = tmp_path / "out"
    other = ["--rows", "11", "--batch-size", "3", *few[4:]]
    assert main(["data", "capfilt", str(blip_run), str(blip_run), "--data", data, "--out", str(out), *other]) == 0
    told = [[(d["key"], d["text"], d["kept"]) for d in decisions(folder)] for folder in (out, whole)]
    assert told[0] == told[1]


def test_a_captioner_or_a_filter_alone_and_several(blip_run, clip_run, data, tmp_path, capsys):
    command = ["--data", data, *FEW, "--out"]
    assert main(["data", "capfilt", str(blip_run), "-", *command, str(tmp_path / "written")]) == 0
    counts = adds_up(tmp_path / "written")
    assert counts["written"] == 24 and not any("match" in k for k in counts["dropped"])
    assert main(["data", "capfilt", "-", str(blip_run), *command, str(tmp_path / "filtered")]) == 0
    assert adds_up(tmp_path / "filtered")["written"] == 0
    more = [
        "--filter",
        str(clip_run),
        "--threshold",
        "0.0",
        "--agree",
        "2",
        "--captions",
        "2",
        "--captioner",
        str(blip_run),
    ]
    assert main(["data", "capfilt", str(blip_run), str(blip_run), *more, *command, str(tmp_path / "several")]) == 0
    assert adds_up(tmp_path / "several")["written"] == 4 * 24
    assert {len(d["scores"]) for d in decisions(tmp_path / "several")} <= {0, 2}
    capsys.readouterr()
    assert main(["data", "capfilt", "-", str(clip_run), *command, str(tmp_path / "x")]) == 1
    assert "name the least one that does with --threshold" in capsys.readouterr().err
    assert main(["data", "capfilt", str(clip_run), str(blip_run), *command, str(tmp_path / "x")]) == 1
    assert "captioning needs prefill, extend, which CLIP lacks" in capsys.readouterr().err
    assert main(["data", "capfilt", "-", "-", *command, str(tmp_path / "x")]) == 1
    assert not (tmp_path / "x").exists()


class Stub:
    """An engine whose captions and scores are said."""

    batch_size = 2
    model = None

    def has(self, *names):
        return set(names) <= {"score_pair", "prefill", "extend"}

    def generate(self, images, prompts, ids, how, seed):
        return [[("a picture", 0.0)] if int(i) else [("", 0.0)] for i in images[:, 0, 0, 0, 0]], {}

    def score_pair(self, images, texts, pairs):
        return Answered(np.asarray([1.0 if texts[j].startswith("a") else -1.0 for _, j in pairs]), {})


def test_reasons_are_told(tmp_path):
    """Empty and repeated captions, texts without a match, pictures that cannot be read, keys with dots and slashes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.x.png")
    (folder / "3.x.png").write_bytes(b"no picture")
    rows = [{"image": f"{i}.x.png", "caption": t} for i, t in enumerate(["a cat", "a picture", "a dog", "a bird"])]
    rows += [{"image": "2.x.png", "caption": "nothing"}]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def pixels(example, rng):
        return {"image": np.asarray(Image.open(__import__("io").BytesIO(example["image"])))[None]}

    member, out = Member("stub", Stub(), pixels), tmp_path / "out"
    capfilt_parts(open_source(str(folder)), [member], [member], Settings(rows=3), out, {})
    counts = summary(out)
    reasons = {"unreadable picture": 1, "web: does not match": 1, "written: empty": 1, "written: repeats another": 1}
    assert counts == {"in": 5, "written": 3, "kept": 4, "dropped": reasons}
    made = open_source(str(out))
    assert [made[i]["captions"] for i in range(3)] == [["a cat"], ["a picture"], ["a dog", "a picture"]]
    (broken,) = (d for d in decisions(out) if d["reason"] == "unreadable picture")
    assert broken["text"] == "a bird" and "error" in broken
    with pytest.raises(ValueError, match=r"1 of 4 pictures cannot be read, over the limit of 0\.0%"):
        capfilt_parts(open_source(str(folder)), [member], [member], Settings(rows=9, bad=0.0), tmp_path / "strict", {})


def test_a_folder_of_something_else_is_left_alone(blip_run, data, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    command = ["data", "capfilt", str(blip_run), "-", "--data", data, "--out", str(tmp_path), *FEW]
    assert main(command) == 1
    assert "holds thesis.tex, which is none of this command's" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "chapter 1"


@pytest.mark.slow
def test_a_killed_command_continues(whole, few, blip_run, data, tmp_path):
    import time

    out = tmp_path / "out"
    words = [
        sys.executable,
        "-c",
        "from simvlm_jax.cli import entry; entry()",
        "data",
        "capfilt",
        str(blip_run),
        str(blip_run),
    ]
    command = [*words, "--data", data, "--out", str(out), *few]
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT)
        began = len(list(out.glob("decisions/*.jsonl")))
        while process.poll() is None and len(list(out.glob("decisions/*.jsonl"))) == began:
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    assert files(out) == files(whole)

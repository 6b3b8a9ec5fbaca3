"""The commands as a user meets them: JSON on stdout, all else on stderr, one error an input, exit codes that tell."""

import json

import numpy as np
import pytest
from PIL import Image

from simvlm_jax.cli import main


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    phone = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((4000, 3000))
    phone.save(tmp_path / "phone.jpg", quality=80)
    Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / "gray.png")
    (tmp_path / "fake.jpg").write_text("I am text")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "phone.jpg").read_bytes()[:20_000])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


def test_caption_goes_on_past_bad_inputs(finished_run, pictures, capsys):
    names = ["phone.jpg", "fake.jpg", "empty.png", "cut.jpg", "bomb.png", "folder.jpg", "missing.jpg", "gray.png"]
    code = main(["caption", str(finished_run), *(str(pictures / n) for n in names), "--json", "--batch-size", "3"])
    out = capsys.readouterr()
    lines = [json.loads(line) for line in out.out.splitlines()]
    assert code == 1 and [line["image"] for line in lines] == [str(pictures / n) for n in names]
    assert all(set(line) == {"image", "caption"} for line in (lines[0], lines[-1]))
    reasons = ["not an image", "empty", "cannot be decoded", "more than the limit", "directory", "does not exist"]
    for line, reason in zip(lines[1:-1], reasons, strict=True):
        assert reason in line["error"] and line["image"] in out.err


def test_a_prompt_begins_the_caption(finished_run, pictures, capsys):
    image = str(pictures / "gray.png")
    assert main(["caption", str(finished_run), image, "--prompt", "a picture of", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["caption"].startswith("a picture of")
    assert main(["caption", str(finished_run), image, "--temperature", "1.0", "--top-k", "5", "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith(image + ": ")


def test_a_folder_that_is_no_run(tmp_path, pictures, capsys):
    assert main(["caption", str(tmp_path), str(pictures / "gray.png")]) == 1
    assert "is not a run directory" in capsys.readouterr().err


def test_metrics(tmp_path, capsys):
    (tmp_path / "h.json").write_text(
        json.dumps([{"image_id": 1, "caption": "A dog."}, {"image_id": 2, "caption": "two cats"}])
    )
    (tmp_path / "r.json").write_text(json.dumps({"1": ["a dog"], "2": ["two cats", "cats"]}))
    files = ["--hypotheses", str(tmp_path / "h.json"), "--references", str(tmp_path / "r.json")]
    assert main(["metrics", "caption", *files, "--json", "--per-image", str(tmp_path / "o.json")]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"}
    assert scores["bleu1"] == pytest.approx(1) and scores["rouge_l"] == pytest.approx(1)
    assert set(json.loads((tmp_path / "o.json").read_text())) == {"1", "2"}


def test_results_never_replace_a_file_of_a_run(finished_run, tmp_path, capsys):
    (tmp_path / "h.json").write_text(json.dumps([{"image_id": 1, "caption": "A dog."}]))
    (tmp_path / "r.json").write_text(json.dumps({"1": ["a dog"]}))
    files = ["--hypotheses", str(tmp_path / "h.json"), "--references", str(tmp_path / "r.json")]
    before = {p: p.read_bytes() for p in finished_run.rglob("*") if p.is_file()}
    assert main(["metrics", "caption", *files, "--per-image", str(finished_run / "config.json")]) == 1
    assert main(["data", "tokenizer", str(tmp_path / "h.json"), "--out", str(finished_run / "tokenizer")]) == 1
    assert capsys.readouterr().err.count("is a file of the run") == 2
    assert before == {p: p.read_bytes() for p in finished_run.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}], {"1": ["a"]}, "more than one caption"),
        ([{"image_id": 1, "caption": "a"}], {"1": ["a"], "2": ["b"]}, "no caption for image '2'"),
        ([{"image_id": 3, "caption": "a"}], {"1": ["a"]}, "no references for image '3'"),
        ({"1": "a"}, {"1": ["a"]}, "expected a list"),
        ([], {"1": ["a"]}, "with at least one"),
        ([{"image_id": 1, "caption": "a"}], {"1": []}, "at least one caption"),
        ([{"image_id": 1, "caption": None}], {"1": ["a"]}, "is not text"),
    ],
)
def test_metrics_on_bad_files(tmp_path, capsys, hypotheses, references, message):
    (tmp_path / "h.json").write_text(json.dumps(hypotheses))
    (tmp_path / "r.json").write_text(json.dumps(references))
    files = ["--hypotheses", str(tmp_path / "h.json"), "--references", str(tmp_path / "r.json")]
    assert main(["metrics", "caption", *files]) == 1
    assert message in capsys.readouterr().err


def test_metrics_on_files_json_would_pass(tmp_path, capsys):
    (tmp_path / "h.json").write_text('[{"image_id": 1, "caption": "a"}]')
    (tmp_path / "r.json").write_text('{"1": ["a"], "1": ["b"]}')
    files = ["--hypotheses", str(tmp_path / "h.json"), "--references", str(tmp_path / "r.json")]
    assert main(["metrics", "caption", *files]) == 1
    assert "'1' stands more than once" in capsys.readouterr().err
    (tmp_path / "r.json").write_bytes('{"1": ["caf\xe9"]}'.encode("latin-1"))
    assert main(["metrics", "caption", *files]) == 1
    assert "is not UTF-8" in capsys.readouterr().err


def test_empty_captions_and_unicode_are_scored(tmp_path, capsys):
    said = [{"image_id": 1, "caption": ""}, {"image_id": "\u732b", "caption": "\u732b on a caf\u00e9 table \U0001f600"}]
    (tmp_path / "h.json").write_text(json.dumps(said))
    (tmp_path / "r.json").write_text(json.dumps({"1": ["a dog"], "\u732b": ["\u732b on a caf\u00e9 table \U0001f600"]}))
    files = ["--hypotheses", str(tmp_path / "h.json"), "--references", str(tmp_path / "r.json")]
    assert main(["metrics", "caption", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rouge_l"] == pytest.approx(0.5)


def test_unknown_command_and_help(capsys):
    assert main(["fly"]) == 2 and "no command 'fly'" in capsys.readouterr().err
    assert main([]) == 0 and "caption" in capsys.readouterr().out


def test_prepare_prints_json_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert main(["data", "prepare", "classes-16_8_8_8", "pairs-16_8_8_8", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["name"] for r in rows] == ["classes-16_8_8_8", "pairs-16_8_8_8"] and rows[1]["splits"]["train"] == 16


def test_tokenizer(tmp_path, capsys):
    from simvlm_jax.text.tokenizer import Tokenizer
    from tests.conftest import SCENES

    out = tmp_path / "tok"
    assert (
        main(["data", "tokenizer", SCENES, "--out", str(out), "--vocabulary", "120", "--length", "20", "--json"]) == 0
    )
    contract = json.loads(capsys.readouterr().out)
    assert Tokenizer.load(out).contract() == contract and contract["length"] == 20
    (out / "tokenizer.model").write_bytes((out / "tokenizer.model").read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"breaks its contract|not a sentencepiece model"):
        Tokenizer.load(out)

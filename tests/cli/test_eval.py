"""Scores of a run by any suite, what differs between two of them, and batches as a person reads them."""

import json
import os
import shutil
import threading

import jax
import numpy as np
import pytest

from simvlm_jax.cli import main
from simvlm_jax.cli.inspect_data import describe
from simvlm_jax.data.transforms import Label, Tokenize
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.sampling import Sampler
from simvlm_jax.infer.engine import Engine
from simvlm_jax.parallel.mesh import make_mesh, replicated
from simvlm_jax.run.load import load_run
from simvlm_jax.text.tokenizer import Tokenizer
from tests.conftest import ROOT, SCENES


def evaluated(run, out, *words, limit=("--limit", "12")):
    assert main(["eval", str(run), *limit, "--out", str(out), *words]) == 0
    return json.loads(out.read_text())["entries"]


@pytest.fixture(scope="module")
def scored(finished_run, tmp_path_factory):
    """Two files of scores that differ in the width of the search alone."""
    folder = tmp_path_factory.mktemp("scores")
    evaluated(finished_run, folder / "greedy.json", "--suite", "captions", "--split", "test")
    evaluated(finished_run, folder / "beam.json", "--suite", "captions", "--split", "test", "--set", "how.beams=2")
    return folder


def test_eval_writes_scores_with_their_provenance(scored, finished_run):
    entries = json.loads((scored / "greedy.json").read_text())["entries"]
    assert [e["control"] for e in entries] == [None, "blind"]
    why = entries[0]["provenance"]
    assert why["data"]["examples"] == 12 and len(why["data"]["fingerprint"]) == 16 and why["checkpoint"] == 4
    assert why["decoding"]["beams"] == 1 and why["preprocessing"]["image_size"] == 64 and why["versions"]["jax"]
    final = json.loads((finished_run / "results.json").read_text())["entries"]
    assert {e["suite"] for e in final} == {"captions"} and final[0]["provenance"]["tokenizer"] == why["tokenizer"]


def test_what_is_not_said_is_as_in_the_run(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["eval"]["examples"], config["seed"] = 5, 7
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    words = ["--suite", "captions", "--split", "test", "--no-controls"]
    (same,) = evaluated(tmp_path / "run", tmp_path / "a.json", *words, limit=())
    assert same["provenance"]["data"]["examples"] == 5 and same["provenance"]["seed"] == 7


def test_soft_labels_train_rows_whose_best_answer_is_unknown():
    tokenizer = Tokenizer.train(["is it red?"] * 9, 20, 16)
    row = Tokenize(tokenizer, "question")({"question": "is it red?"}, None)
    labelled = {"answers": ["red"] * 3 + ["yes"] * 2 + ["blue"] * 5}
    for soft, says in ((True, "(not in the answer list)"), (False, "(not in the answer list: trains nothing)")):
        row |= Label(("yes", "no", "red"), soft)(labelled, None)
        lines, trains = describe(
            {k: v for k, v in row.items() if k != "question"}, tokenizer, ("yes", "no", "red"), None, False, False
        )
        assert trains is soft and any(line.endswith(says) for line in lines)
        row.pop("scores", None)


@pytest.mark.parametrize("how", [Decoding(beams=3, n_best=3), Decoding(sampler=Sampler(1.0))])
def test_captions_depend_neither_on_devices_nor_on_the_batch(finished_run, how):
    run = load_run(finished_run)
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 64, 64, 3), dtype=np.uint8)
    made = []
    for devices, batch_size in ((8, 8), (1, 3)):
        mesh = make_mesh(jax.devices()[:devices])
        params = jax.device_put(run.params, replicated(mesh))
        engine = Engine(run.model, run.tokenizer, mesh, params, run.extra, batch_size=batch_size)
        made.append(engine.generate(images, [""] * 5, np.arange(5) + 40, how).values)
    assert [[t for t, _ in row] for row in made[0]] == [[t for t, _ in row] for row in made[1]]
    scores = [np.asarray([[s for _, s in row] for row in one]) for one in made]
    np.testing.assert_allclose(*scores, atol=2e-4)


def test_eval_diff_names_what_differs(scored, capsys):
    greedy, beam = str(scored / "greedy.json"), str(scored / "beam.json")
    assert main(["eval-diff", greedy, beam]) == 0
    assert "because decoding.beams: 1 -> 2" in capsys.readouterr().out
    assert main(["eval-diff", greedy, greedy, "--json"]) == 0  # which also finds the runs' configs alike
    same = json.loads(capsys.readouterr().out)
    assert {c["verdict"] for c in same["compared"]} == {"the same scores"} and not same["only_in_a"]
    assert same["training"] == {}
    tampered = json.loads((scored / "greedy.json").read_text())
    tampered["entries"][0]["scores"]["cider"] += 0.5
    (scored / "tampered.json").write_text(json.dumps(tampered))
    assert main(["eval-diff", greedy, str(scored / "tampered.json")]) == 0
    out = capsys.readouterr().out
    assert "nothing recorded explains the difference" in out and "+0.5000" in out


def test_eval_diff_shows_errors(scored, tmp_path, capsys):
    failed = json.loads((scored / "greedy.json").read_text())
    failed["entries"][0] |= {"scores": {}, "error": "no memory left"}
    (tmp_path / "failed.json").write_text(json.dumps(failed))
    assert main(["eval-diff", str(scored / "greedy.json"), str(tmp_path / "failed.json")]) == 0
    out = capsys.readouterr().out
    assert "one failed" in out and "b could not be run: no memory left" in out and "because" not in out
    assert main(["eval-diff", str(tmp_path / "failed.json"), str(tmp_path / "failed.json"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["compared"][0]
    assert first["verdict"] == "both failed" and first["errors"] == ["no memory left"] * 2


def test_eval_diff_on_what_is_no_file_of_scores(scored, tmp_path, capsys):
    (tmp_path / "x.json").write_text("[]")
    assert main(["eval-diff", str(scored / "greedy.json"), str(tmp_path / "x.json")]) == 1
    assert "is no file of scores" in capsys.readouterr().err
    (tmp_path / "y.json").write_text('{"entries": []}')
    assert main(["eval-diff", str(scored / "greedy.json"), str(tmp_path / "y.json")]) == 1
    assert "no suite, split and control in common" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["NaN", "Infinity"])
def test_eval_diff_refuses_what_is_no_number(tmp_path, capsys, number):
    text = '{"entries": [{"suite": "s", "split": "t", "control": null, "scores": {"bleu": 0.5, "cider": %s}}]}'
    (tmp_path / "a.json").write_text(text % "0.25")
    (tmp_path / "b.json").write_text(text % number)
    for words in (["--json"], []):
        assert main(["eval-diff", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *words]) == 1
        told = capsys.readouterr()
        assert "b.json is no file of scores" in told.err and "it.entries[0].scores.cider is" in told.err
        assert not told.out


def test_eval_writes_over_scores_alone(tmp_path, capsys):
    """Before anything is loaded: the run is one by its names only."""
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "scores.json").write_text('{"entries": []}')
    (tmp_path / "empty.json").touch()
    (tmp_path / "link.json").symlink_to("notes.txt")

    def told(out):
        assert main(["eval", str(run), "--suite", "captions", "--out", str(out)]) == 1
        return capsys.readouterr().err

    for own in ("config.json", "results.json", "metrics.jsonl", "tokenizer/contract.json"):
        assert "is a file of the run" in told(run / own)
    for foreign in (run / "notes.json", tmp_path / "notes.txt", tmp_path / "link.json"):
        assert "exists and is not a file of scores" in told(foreign)
    for free in ("scores.json", "empty.json", "new.json", "run/vqa.json"):
        assert "config: it has no model" in told(tmp_path / free).replace("field ", "")
    assert (run / "config.json").read_text() == "{}" and (tmp_path / "notes.txt").read_text() == "mine"


def test_scores_into_a_pipe_are_one_object(finished_run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    words = ["--suite", "captions", "--limit", "4", "--no-controls", "--split", "test", "--split", "many"]
    assert main(["eval", str(finished_run), *words, "--out", str(tmp_path / "pipe")]) == 0
    reader.join(30)
    assert [e["split"] for e in json.loads(got[0])["entries"]] == ["test", "many"]


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999999999999"])
def test_seeds_of_commands_are_those_of_configs(tmp_path, capsys, seed):
    for words in (
        ["eval", str(tmp_path), "--suite", "captions"],
        ["caption", str(tmp_path), "a.png"],
        ["verify-resume", "--config", str(ROOT / "configs" / "prefixlm.py"), "--workdir", str(tmp_path)],
    ):
        assert main([*words, "--seed", seed]) == 1
        assert f"--seed is {seed}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suite", "data", "score"),
    [
        ("hallucination", SCENES, "f1_adversarial"),
        pytest.param("probe", "scenes/classes-80_8_32_16", "accuracy", marks=pytest.mark.slow),
        ("generative", "scenes/classes-80_8_32_16", "accuracy"),
    ],
)
def test_suites_that_no_config_names(finished_run, tmp_path, suite, data, score):
    entries = evaluated(
        finished_run, tmp_path / "o.json", "--suite", suite, "--data", data, "--split", "test", "--no-controls"
    )
    assert len(entries) == 1 and 0 <= entries[0]["scores"][score] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "flying"], "no suite 'flying'; the run has captions"),
        (["--suite", "captions", "--set", "how.beems=2"], "expected FIELD=VALUE"),
        (["--suite", "captions", "--split", "holiday"], "names split 'holiday'"),
        (["--suite", "captions", "--batch-size", "0"], "batch_size 0 must be between 1 and 65,536"),
        (["--suite", "captions", "--limit", "-1"], "a limit of -1 examples"),
        (["--suite", "vqa-rank", "--data", "scenes/vqa-16_8_8_8"], "ranking needs answers"),
    ],
)
def test_eval_on_bad_input(finished_run, capsys, words, message):
    assert main(["eval", str(finished_run), *words]) == 1
    assert message in capsys.readouterr().err


def test_eval_of_a_split_that_the_data_does_not_tell(finished_run, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("image,caption\n0.png,a\n")
    (tmp_path / "0.png").write_bytes((ROOT / "docs" / "scenes.png").read_bytes())
    words = ["eval", str(finished_run), "--suite", "captions", "--data", str(tmp_path), "--no-controls"]
    assert main([*words, "--split", "test"]) == 1
    assert "has no split 'test': nothing tells splits apart in its 1 rows" in capsys.readouterr().err
    assert main(words) == 0


def test_the_suites_are_listed(capsys):
    assert main(["eval", "--list"]) == 0
    assert "hallucination" in capsys.readouterr().out


def test_inspect_shows_what_is_trained(finished_run, capsys):
    assert main(["data", "inspect", str(finished_run), "--rows", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("row ") == 2 and "targets" in out and "</s>" in out and "64 x 64 px" in out


def test_inspect_shows_labels_that_a_terminal_obeys_spelt_out(text_batch):
    class Plain:
        def pieces(self, ids):
            return ["\x1b[2J" for _ in ids]

        def decode(self, ids):
            return "\x1b[2J"

    batch = text_batch(1, 6, image=0)
    batch["text_mask"][:] = [True] * 5 + [False]
    row = {k: v[0] for k, v in batch.items()} | {"label": 1}
    lines, _ = describe(row, Plain(), ("a", "\x1b[31m"), None, False, False)
    assert "\x1b" not in "".join(lines) and "label    1: \\x1b[31m" in lines


def test_inspect_says_when_a_row_trains_nothing(finished_run, capsys):
    words = [f"data.parts.pairs.path={SCENES.replace('captions', 'vqa')}", f"train.init_from=('{finished_run}',)"]
    words += ["train.batch_size=8", "data.labels.size=1"]
    config = f"{ROOT / 'configs' / 'finetune.py'}:vqa"
    sets = [part for word in words for part in ("--set", word)]
    assert main(["data", "inspect", config, "--rows", "0", "--no-picture", *sets]) == 1
    captured = capsys.readouterr()
    assert "not in the answer list" in captured.out and "train nothing" in captured.err

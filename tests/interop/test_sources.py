"""What a source says of itself is believed, and what it says that is not known is refused: nothing is guessed."""

import json

import numpy as np
import pytest

from simvlm_jax.core.files import BadFile
from simvlm_jax.interop.family import NOTHING_SAID, Options, families, family_of
from simvlm_jax.interop.formats import safetensors_file
from simvlm_jax.interop.pixels import Pixels, pixels_of, written
from simvlm_jax.interop.source import Source, open_source
from simvlm_jax.interop.tokenizers import tokenizer_of
from simvlm_jax.jobs.weights import export_run, import_run, planned, worst
from simvlm_jax.text.built import byte_pairs, word_pieces
from simvlm_jax.text.chat import rendered
from simvlm_jax.text.json_pieces import JsonPieces
from tests.interop import harness

ARRAY = {"a": np.ones(2, np.float32)}
HALF = (0.5, 0.5, 0.5)


def saved(folder, name="model.safetensors", arrays=ARRAY, **configs):
    folder.mkdir(exist_ok=True)
    safetensors_file.write(folder / name, arrays, {})
    for config, content in configs.items():
        (folder / f"{config}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("kind", "family"), [("gemma", "llama"), ("xlm-roberta", "minilm"), ("vit", "deit"), ("clip", "siglip")]
)
def test_a_family_is_not_what_a_source_says_it_is_not(tmp_path, kind, family):
    """However alike their arrays are: Gemma's norms, and RoBERTa's positions, are others."""
    opened = open_source(saved(tmp_path / "w", config={"model_type": kind}))
    with pytest.raises(ValueError, match=f"says it is '{kind}' and no '{family}'"):
        family_of(opened, family)


def test_a_folder_of_two_libraries(tmp_path):
    """Hubs have the weights of both beside each other; each goes with its own config."""
    both = dict(config={"model_type": "clip"}, open_clip_config={"model_cfg": {"embed_dim": 8}})
    folder = saved(tmp_path / "w", "open_clip_model.safetensors", **both)
    opened = open_source(folder)
    assert (opened.layout, opened.kind) == ("open_clip", "open_clip") and family_of(opened)[0] == "clip"
    saved(folder, "model.safetensors")
    assert open_source(folder).layout == "hf"
    assert open_source(folder / "open_clip_model.safetensors").layout == "open_clip"
    config = {"model_cfg": {"embed_dim": 8, "multimodal_cfg": {}}}
    assert (
        family_of(open_source(saved(tmp_path / "c", "open_clip_model.safetensors", open_clip_config=config)))[0]
        == "coca"
    )


def test_shards_of_pickles(tmp_path):
    torch = pytest.importorskip("torch")
    for i in (1, 2):
        torch.save({f"x{i}": torch.full((2,), float(i))}, tmp_path / f"pytorch_model-0000{i}-of-00002.bin")
    places = {f"x{i}": f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    found = open_source(tmp_path).tensors
    assert {k: float(x[0]) for k, x in found.items()} == {"x1": 1.0, "x2": 2.0}


def test_norms_of_old_are_norms(tmp_path):
    arrays = {f"bert.embeddings.LayerNorm.{k}": np.ones(2, np.float32) for k in ("gamma", "beta")}
    assert sorted(open_source(saved(tmp_path / "w", arrays=arrays)).tensors) == [
        "bert.embeddings.LayerNorm.bias",
        "bert.embeddings.LayerNorm.weight",
    ]


def test_an_array_that_a_family_needs_is_named(tmp_path):
    arrays = {"token_embedding.weight": np.ones((4, 64), np.float32)}
    opened = open_source(saved(tmp_path / "w", arrays=arrays))
    with pytest.raises(BadFile, match="is no clip, or not whole: it has no array 'positional_embedding'"):
        planned("clip", families()["clip"], opened)


def test_options_that_a_family_does_not_have(tmp_path):
    config = dict(model_type="vit", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    opened = open_source(saved(tmp_path / "w", config={**config, "patch_size": 8, "image_size": 16}))
    family = families()["vit"]
    for options, told in (
        (Options(tokenizer="x"), "vit reads no texts; leave out --tokenizer"),
        (Options(length=9), "vit reads no texts; leave out --length"),
    ):
        with pytest.raises(ValueError, match=told):
            planned("vit", family, opened, options)


def test_nothing_compared_is_no_proof():
    with pytest.raises(ValueError, match="nothing can be compared"):
        worst({"a": np.ones(2)}, {"b": np.ones(2)})


# ---- pixels --------------------------------------------------------------------------------------------------------


def test_a_side_is_a_square_but_for_those_that_cut(tmp_path):
    usual = {how: Pixels(224, {"how": how, "filter": "bicubic"}, HALF, HALF) for how in ("whole", "shorter")}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": 256, "crop_size": 224, "do_center_crop": True})
    )
    assert pixels_of(tmp_path, 224, usual["whole"]).fit == {
        "filter": "bicubic",
        "rounding": "down",
        "how": "whole",
        "side": 256,
    }
    assert pixels_of(tmp_path, 224, usual["shorter"]).fit["how"] == "shorter"
    with pytest.raises(BadFile, match="and the model takes 192 x 192"):
        pixels_of(tmp_path, 192, usual["whole"])


def test_pixels_within_a_processor(tmp_path):
    inside = {"size": {"shortest_edge": 300}, "do_center_crop": True, "resample": 2}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inside}))
    usual = Pixels(224, {"how": "shorter", "filter": "bicubic"}, HALF, HALF)
    assert pixels_of(tmp_path, 224, usual).fit == {
        "filter": "bilinear",
        "rounding": "down",
        "how": "shorter",
        "side": 300,
    }


def test_what_no_processor_says_is_not_written():
    from ml_collections import ConfigDict

    data = ConfigDict({"image_size": 32, "whole": False, "fit": {"how": "longer", "filter": "bicubic"}})
    with pytest.raises(ValueError, match="made ready as 'longer'"):
        written(data, HALF, HALF, "CLIPImageProcessor")


def test_the_fill_of_open_clips_pictures_comes_back():
    from ml_collections import ConfigDict

    from simvlm_jax.interop import open_clip
    from simvlm_jax.interop.parts import open_clip_pixels

    fit = {"how": "longer", "filter": "bilinear", "fill": (1, 2, 3)}
    data = ConfigDict({"image_size": 32, "whole": False, "fit": fit})
    said = {"preprocess_cfg": open_clip.preprocess(data, HALF, HALF)}
    assert dict(open_clip_pixels(said, 32, Pixels(32, {}, HALF, HALF)).fit) == fit
    same = ConfigDict({**data, "fit": {"how": "shorter", "side": 32}})  # as transformers says it
    assert open_clip.preprocess(same, HALF, HALF)["resize_mode"] == "shortest"
    for other in ({"how": "pad"}, {"how": "shorter", "side": 40}):
        with pytest.raises(ValueError, match="open_clip has no word for pictures"):
            open_clip.preprocess(ConfigDict({**data, "fit": other}), HALF, HALF)


# ---- tokenizers ----------------------------------------------------------------------------------------------------


def test_a_vocabulary_with_the_line_ends_of_windows(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\ncat\r\n")
    source = Source(tmp_path / "w", tmp_path, "bare", {}, {})  # pyright: ignore[reportArgumentType]
    assert tokenizer_of(source).tokenizer(8, "").ids_of("Cat") == [4]
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(BadFile, match=r"has no line \[UNK\]"):
        tokenizer_of(source)


def test_what_stands_beside_a_named_tokenizer_counts(tmp_path):
    harness.byte_tokenizer(tmp_path, begins=True)
    source = Source(tmp_path / "w", tmp_path / "elsewhere", "bare", {}, {})  # pyright: ignore[reportArgumentType]
    assert tokenizer_of(source, str(tmp_path / "tokenizer.json")).begins


def test_words_that_are_pieces_and_composed_letters():
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = {p: i for i, p in enumerate([*letters, "he", "hello", "Ã", "©", "Ì", "ģ", "Ã©"])}
    plain, whole = (JsonPieces(byte_pairs(vocabulary, [("h", "e"), ("Ã", "©")], {}, whole=w)) for w in (False, True))
    assert plain.encode("hello") != [vocabulary["hello"]] and whole.encode("hello") == [vocabulary["hello"]]
    composed = JsonPieces(byte_pairs(vocabulary, [("Ã", "©")], {}, composed=True))
    assert composed.encode("e\N{COMBINING ACUTE ACCENT}") == [vocabulary["Ã©"]]
    kept = JsonPieces(word_pieces(["[UNK]", "é", "e"], lower=True, accents=False))
    assert kept.encode("É") == [1] and JsonPieces(word_pieces(["[UNK]", "é", "e"])).encode("É") == [2]


@pytest.mark.parametrize(
    "template", ["{{ 1/0 }}", "{{ 'a' * 10**10 }}", "{{ 'a' * 99999999999 }}", "{{ 'a'.encode('nothing') }}"]
)
def test_whatever_a_template_raises_is_told(template):
    with pytest.raises(ValueError, match="cannot be rendered"):
        rendered(template, [], "<s>", "</s>")


def test_templates_may_leave_loops_and_tell_the_day():
    assert rendered("{% for m in messages %}{{ loop.index0 % 2 }}{% break %}{% endfor %}", [{}, {}], "", "") == "0"
    assert rendered("{{ strftime_now('%Y') }}", [], "", "").startswith("20")


# ---- out again -----------------------------------------------------------------------------------------------------


def test_what_a_family_has_no_word_for_is_not_exported(tmp_path):
    """A Mistral's window, a Qwen2's biases: transformers' LLaMA would load the rest and say something else."""
    shape = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24
    )
    shape |= dict(vocab_size=harness.PIECES, max_position_embeddings=32, hidden_act="silu", rms_norm_eps=1e-6)
    from simvlm_jax.interop.table import give
    from simvlm_jax.jobs.weights import one_by_one, shapes_of
    from simvlm_jax.run.load import build_model

    config = {**shape, "model_type": "mistral", "sliding_window": 4, "tie_word_embeddings": True}
    folder = saved(tmp_path / "theirs", config=config)
    harness.byte_tokenizer(folder)
    opened, family = open_source(folder), families()["mistral"]
    plan = family.plan(opened, NOTHING_SAID)
    assert plan.tokenizer is not None
    model = one_by_one(build_model(plan.model, 32, plan.tokenizer))
    rng = np.random.default_rng(0)
    arrays = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes_of(model).items()}
    saved(folder, arrays=give(family.table(opened, model), arrays))
    import_run(str(folder), str(tmp_path / "run"))
    export_run(str(tmp_path / "run"), str(tmp_path / "same"), "mistral")
    with pytest.raises(ValueError, match=r"llama has no word .*size\.style\.window is 4 and would be 0"):
        export_run(str(tmp_path / "run"), str(tmp_path / "out"), "llama")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_what_a_config_leaves_out_is_what_its_class_has(family):
    """transformers 4 writes of a tower only what is not usual."""
    transformers = pytest.importorskip("transformers")
    from simvlm_jax.interop.maps import clip, siglip

    own = getattr(transformers, {"clip": "CLIPConfig", "siglip": "SiglipConfig"}[family])()
    for tower, usual in {"clip": clip, "siglip": siglip}[family]._DEFAULTS.items():
        made = getattr(own, f"{tower}_config")
        assert {k: getattr(made, k) for k in usual} == usual
    assert family == "siglip" or own.projection_dim == 512

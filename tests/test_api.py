"""A run in Python: three lines, pictures of every kind, one in and one out, and plain words for what cannot be."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import simvlm_jax
from simvlm_jax.cli import main
from simvlm_jax.data.images import BadImage
from simvlm_jax.infer.engine import MissingCapability
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def captioner(finished_run):
    return simvlm_jax.load(finished_run)


@pytest.fixture(scope="module")
def pair(clip_run):
    return simvlm_jax.load(clip_run)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """One picture as a path, its bytes, a PIL image and an array."""
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8))
    image.save(path)
    return [path, str(path), path.read_bytes(), image, np.asarray(image)]


def test_captions_of_every_kind_of_picture(captioner, kinds, capsys):
    texts = captioner.caption(kinds)
    assert isinstance(texts, list) and len(set(texts)) == 1 and isinstance(texts[0], str)
    assert captioner.caption(kinds[0]) == texts[0] and captioner.caption([kinds[0]]) == texts[:1]
    assert main(["caption", str(captioner.path), str(kinds[0])]) == 0
    assert capsys.readouterr().out.strip() == f"{kinds[0]}: {texts[0]}".strip()
    assert captioner.caption(kinds[0], prompt="a picture of", max_length=3).startswith("a picture of")
    assert isinstance(captioner.caption(kinds[0], beams=2, max_length=3), str)


def test_pictures_are_what_their_files_are(captioner, tmp_path):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    wide = Image.fromarray(np.full((8, 8), 30_000, np.uint16))
    for name, image in (("a.png", clear), ("b.png", wide)):
        image.save(tmp_path / name)
        made, _ = captioner._pictures([tmp_path / name, Image.open(tmp_path / name), image])
        assert (made == made[0]).all()


def test_questions_and_names_of_a_captioner(captioner, kinds):
    answers = captioner.ask(kinds[:2], "is it red?")
    assert len(answers) == 2 and answers[0] == answers[1] == captioner.ask(kinds[0], "is it red?")
    assert captioner.ask(kinds[:2], ["is it red?", "what is it?"])[0] == answers[0]
    found = captioner.classify(kinds[0], ["a red circle", "a blue star"])
    assert set(found) == {"a red circle", "a blue star"} and sum(found.values()) == pytest.approx(1)
    with pytest.raises(MissingCapability, match="embed_image"):
        captioner.embed(kinds[0])
    assert captioner.can == ["caption", "ask", "classify"] and "SimVLM" in repr(captioner)


def test_vectors_and_names_of_a_pair_of_towers(pair, kinds):
    one, several = pair.embed(kinds[0]), pair.embed(kinds)
    assert one.ndim == 1 and several.shape == (5, len(one)) and one.dtype == np.float32
    np.testing.assert_allclose(several, np.stack([one] * 5), atol=1e-6)
    texts = pair.embed(texts=["a red circle", "a star"])
    assert texts.shape == (2, len(one)) and pair.embed(texts="a star").shape == one.shape
    np.testing.assert_allclose(
        pair.similarity(kinds[:2], ["a red circle", "a star"]), np.stack([one @ texts.T] * 2), atol=1e-5
    )
    assert isinstance(pair.similarity(kinds[0], "a star"), float) and pair.similarity(kinds[:2], "a star").shape == (2,)
    found = pair.classify(kinds[:2], ["red circle", "star", "C++"])
    assert pair.classify(kinds[:2], ["red circle", "star"], "a photo of {}") == pair.classify(
        kinds[:2], ["red circle", "star"], ["a photo of {}"]
    )
    assert len(found) == 2 and list(found[0].values()) == sorted(found[0].values(), reverse=True)
    with pytest.raises(MissingCapability, match="prefill"):
        pair.caption(kinds[0])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.png", r"nowhere\.png: No such file"),
        (b"no picture", "picture 0: not an image"),
        (np.zeros((4, 4, 3)), r"picture 0: an array must be uint8 \[Y,X,3\]"),
        (7, "is no path, bytes, PIL image or array"),
        ([], "there are no pictures"),
    ],
)
def test_what_is_no_picture(captioner, picture, message):
    with pytest.raises((BadImage, ValueError), match=message):
        captioner.caption(picture if isinstance(picture, list) else [picture])


def test_what_cannot_be_meant(captioner, pair, kinds):
    with pytest.raises(ValueError, match=r"no way of decoding is called beam; there are .*beams"):
        captioner.caption(kinds[0], beam=3)
    with pytest.raises(ValueError, match="give one question, or one per picture"):
        captioner.ask(kinds[:2], ["a?"])
    with pytest.raises(ValueError, match="give one of the two"):
        pair.embed()
    with pytest.raises(ValueError, match="two names at least"):
        pair.classify(kinds[0], "dog")
    for call, message in [
        (lambda: pair.embed(texts=[]), r"texts \[\]: there are no texts"),
        (lambda: pair.embed(texts=["a", 5]), "texts: number 1 is 5, not text"),
        (lambda: pair.embed([]), r"images \[\]: there are no pictures"),
        (lambda: pair.embed(5), "images 5: give a path, bytes, a PIL image or an array"),
        (lambda: pair.similarity(kinds[0], []), r"texts \[\]: there are no texts"),
        (lambda: pair.similarity(kinds[0], b"a"), "texts b'a': give a text or a list of texts"),
        (lambda: pair.classify(kinds[0], [1, 2]), "labels: number 0 is 1, not text"),
        (lambda: pair.classify(kinds[0], []), r"labels \[\]: there are no texts"),
        (lambda: pair.classify(kinds[0], ["a", "b"], []), r"templates \[\]: there are no texts"),
        (lambda: pair.classify(kinds[0], ["a", "b"], "a photo"), "template 'a photo' must have one place for the name"),
        (lambda: captioner.caption(5), "images 5: give a path"),
        (lambda: captioner.caption(kinds[0], prompt=5), "prompt is 5: expected text"),
        (lambda: captioner.caption(kinds[0], seed="one"), "seed is 'one': expected int"),
        (lambda: captioner.caption(kinds[0], beams="two"), r"decoding\.beams is 'two': expected int"),
        (lambda: captioner.caption(kinds[0], temperature="hot"), "temperature is 'hot'"),
        (lambda: captioner.ask(kinds[0], 5), "question 5: give a text or a list of texts"),
        (lambda: captioner.ask(kinds[0], "a?", max_length="long"), "max_length is 'long': expected int"),
        (lambda: simvlm_jax.load(pair.path, "last"), "step is 'last': expected int"),
        (lambda: simvlm_jax.load(pair.path, batch_size=0), "batch_size is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        simvlm_jax.load("/nowhere")


def test_a_broken_picture_can_be_told_from_the_others(captioner, kinds):
    buffer = io.BytesIO()
    kinds[3].save(buffer, "PNG")
    with pytest.raises(BadImage, match="picture 1: "):
        captioner.caption([kinds[3], buffer.getvalue()[:60]])


def test_models_are_listed(capsys):
    assert main(["models", str(ROOT / "configs" / "clip.py:B/32"), "--json"]) == 0
    import json

    row = json.loads(capsys.readouterr().out)
    assert row["parameters"] == 151_277_313 and row["model"] == "CLIP" and "embed_text" in row["capabilities"]
    assert 8e9 < row["flops_an_example"] < 20e9
    assert main(["models", str(ROOT / "configs" / "prefixlm.py:smoke")]) == 0
    assert "write" in capsys.readouterr().out
    assert main(["models", str(ROOT / "configs" / "clip.py:B/32")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "clip.py:B/32"


def test_importing_is_light():
    check = "import sys, simvlm_jax; simvlm_jax.load; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)

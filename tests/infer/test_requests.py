"""Requests of parts: what each kind of model takes, in which order, and what is said of the others."""

import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.infer.requests import rows_of_requests
from tests.eval.stub import Stub, engine, tokenizer

HOW = Decoding(max_length=8)


def image(first: int) -> np.ndarray:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, 0, 0] = first
    return pixels


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


class Blindable(Stub):
    """Says the third text where there is no image."""

    def prefill(self, params, extra, batch, max_length):
        if "image" not in batch:
            batch = {**batch, "image": jnp.full((len(batch["text"]), 1, 8, 8, 3), 2)}
        return super().prefill(params, extra, batch, max_length)


class Interleaved(Stub):
    """Says the text that the first pixel of its last image names, 2 tokens an image."""

    def capabilities(self):
        return {**super().capabilities(), "image_tokens": lambda params, extra: 2}

    def prefill(self, params, extra, batch, max_length):
        pixels = batch["image"][:, :, 0, 0, 0].astype(jnp.int32)  # [B,M]
        placed = jnp.take_along_axis(pixels, jnp.maximum(batch["image_index"], 0) // 2, 1)  # [B,T]
        here = (batch["image_index"] >= 0) & batch["text_mask"]
        last = jnp.where(here, jnp.arange(here.shape[1]), -1).argmax(1)
        which = jnp.take_along_axis(placed, last[:, None], 1)[:, 0]
        return self._logits(which, 0 * which), {"which": which, "step": 0 * which}


def test_images_and_a_text_are_what_generate_takes(tok):
    asked = engine(Blindable(tok, says=("yes", "red", "a blue cat")), tok)
    requests = [[image(1), "is it", "red?"], ["what colour?"], [image(0)], [image(1), "what colour?"]]
    made, notes = asked.complete(requests, np.arange(4), HOW)
    assert [row[0][0] for row in made] == ["red", "a blue cat", "yes", "red"] and not notes
    images = np.stack([image(1), image(0), image(1)])[:, None]
    same = asked.generate(images, ["is it red?", "", "what colour?"], np.asarray([0, 2, 3]), HOW).values
    assert same == [made[0], made[2], made[3]]
    made, notes = asked.complete([[image(0), "what colour? " * 9]], np.zeros(1), HOW, width=8)
    assert notes == {"prompts_cut": 1} and made[0][0][0] == "yes"


def test_images_stand_anywhere_for_a_model_that_interleaves(tok):
    asked = engine(Interleaved(tok, says=("yes", "red", "a blue cat")), tok)
    requests = [["is it", image(0), "or", image(2), "?"], [image(1), "red"]]
    assert [row[0][0] for row in asked.complete(requests, np.arange(2), HOW).values] == ["a blue cat", "red"]
    ((places, rows, _),) = rows_of_requests(requests, tok, "Interleaved", 2, None)
    a, b, c = (tok.encode(t) for t in ("is it", "or", "?"))
    index = [*[-1] * len(a), 0, 1, *[-1] * len(b), 2, 3, *[-1] * len(c)]
    assert places == [0, 1] and rows["image_index"][0].tolist() == index
    text = rows["text"][0]
    assert text[rows["image_index"][0] < 0].tolist() == [*a, *b, *c] and rows["text_mask"][0].all()
    assert rows["image"].shape == (2, 2, 8, 8, 3) and rows["image_mask"].tolist() == [[True, True], [True, False]]
    assert rows["image_index"][1].tolist()[:3] == [0, 1, -1] and not rows["text_mask"][1, -1]
    with pytest.raises(ValueError, match=r"request 0 takes \d+ positions \(4 of them for images, 2 each\)"):
        asked.complete([[image(0), "what colour? " * 9, image(1)]], np.zeros(1), HOW)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (["is it red?", image(0)], "request 1 is text, image, and Stub reads images first, then text"),
        ([image(0), "a", image(0)], "request 1 is image, text, image, and Stub reads images first"),
        ([], r"request 1 is \[\]: give a list of parts"),
        ("is it red?", "request 1 is 'is it red\\?': give a list of parts"),
        ([7], "request 1, part 0 is 7: a part is a text, or an image"),
        ([np.zeros((8, 8, 3))], r"request 1, part 0 is float64 \[8, 8, 3\]: an image is uint8 \[Y,X,3\]"),
        ([np.zeros((4, 8, 3), np.uint8)], "images of 4 x 8 and 8 x 8 pixels"),
    ],
)
def test_what_a_request_cannot_be(tok, request_, message):
    with pytest.raises(ValueError, match=message):
        engine(Stub(tok), tok).complete([[image(0), "is it red?"], request_], np.arange(2), HOW)

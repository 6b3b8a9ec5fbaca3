"""Decoders of text: what is predicted, with a BOS and without, what of it is learned, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import Vocabulary
from simvlm_jax.families.decoders import GPT2, LLAMA, SIZES, Decoder, Sizes
from simvlm_jax.nn.sizes import Compute, Size
from tests.laws.steps import count, started

V = Vocabulary(50, 12)
SMALL = Size(16, 2, 2, 32)
PLAIN = Sizes(SMALL, LLAMA)
LEARNED = Sizes(SMALL, GPT2, positions=20)


def made(size, **fields):
    model = Decoder(V, size=size, compute=Compute("float64", scan=False), **fields)
    return model, started(model, {}, "float64")[0]


def loss(model, params, rows):
    rows = {**rows, "weight": np.ones(len(rows["text"]), np.float32)}
    given = {k: rows[k] for k in rows if k in ("text", "text_mask", "weight", "prefix_length", "target_mask")}
    _, terms, _ = model.per_example(params, {}, {"pairs": given}, rngs=jax.random.key(0), step=0, train=True)
    return terms["lm"]


@pytest.mark.parametrize(
    ("name", "pieces", "parameters"),
    [
        ("gpt2", 50_257, 124_439_808),
        ("gpt2-xl", 50_257, 1_557_611_200),
        ("gpt-j-6b", 50_400, 6_050_882_784),
        ("opt-125m", 50_272, 125_239_296),
        ("opt-6.7b", 50_272, 6_658_473_984),
        ("llama-7b", 32_000, 6_738_415_616),
        ("smollm2-135m", 49_152, 134_515_008),
        ("qwen2-0.5b", 151_936, 494_032_768),
        ("qwen2-7b", 152_064, 7_615_616_512),
        ("mistral-7b", 32_000, 7_241_732_096),
    ],
)
def test_parameter_counts_are_the_released_ones(name, pieces, parameters):
    assert count(Decoder(Vocabulary(pieces, 512), size=name)) == parameters


@pytest.mark.parametrize("begins", [True, False])
def test_each_piece_is_predicted_from_those_before_it(float64, text_batch, begins):
    """By hand, from the logits of the sequence itself; without a BOS nobody predicts the first piece."""
    model, params = made(dataclasses.replace(PLAIN, begins=begins))
    rows = {k: x for k, x in text_batch(4, image=0).items() if k != "prefix_length"}
    total, number = 0.0, 0
    for text, mask in zip(rows["text"], rows["text_mask"], strict=True):
        pieces = [V.bos, *text[mask]] if begins else list(text[mask])
        place = np.arange(len(pieces))[None]
        logits = model.apply(params, "inspected", np.asarray([pieces]), place, 0 * place)[1][0]
        likely = jax.nn.log_softmax(logits)
        total -= sum(float(likely[t, pieces[t + 1]]) for t in range(len(pieces) - 1))
        number += len(pieces) - 1
    term = loss(model, params, rows)
    assert int(term.count) == number and float(term.sum) == pytest.approx(total, rel=1e-10)


def test_what_a_row_says_is_learned(float64, text_batch):
    model, params = made(dataclasses.replace(PLAIN, begins=True))
    rows = {k: x for k, x in text_batch(4, image=0).items() if k != "prefix_length"}
    every = loss(model, params, rows)
    prefix = np.asarray([0, 1, 2, 1], np.int32)
    after = loss(model, params, {**rows, "prefix_length": prefix})
    assert int(every.count) == rows["text_mask"].sum() and int(after.count) == int(every.count) - prefix.sum()
    wanted = rows["text_mask"] & (np.arange(12) >= prefix[:, None])
    assert float(loss(model, params, {**rows, "target_mask": wanted}).sum) == pytest.approx(float(after.sum), rel=1e-12)


def test_a_longer_text_keeps_the_positions_that_were_learned():
    params = {"position": {"table": jnp.ones((20, 16))}}
    target = {"position": {"table": jnp.full((24, 16), 7.0)}}
    table = Decoder(V, size=dataclasses.replace(LEARNED, positions=24)).adapt(params, target)["position"]["table"]
    assert table.shape == (24, 16) and (table[:20] == 1).all() and (table[20:] == 7).all()
    assert Decoder(V, size=PLAIN).adapt({"norm": 1}, {}) == {"norm": 1}


def test_what_a_decoder_refuses(text_batch):
    with pytest.raises(
        ValueError, match=r"texts of 12 pieces after a BOS do not fit 12 learned positions; .* to 11 at most"
    ):
        Decoder(V, size=dataclasses.replace(LEARNED, positions=14, unread=2, begins=True))
    with pytest.raises(ValueError, match="size 'gpt5' is not one of tiny, gpt2"):
        Decoder(V, size="gpt5")
    with pytest.raises(ValueError, match=r"Decoder\.size is 5: expected text"):
        Decoder(V, size=5)  # pyright: ignore[reportArgumentType]
    model, rows = Decoder(V), text_batch(2)
    with pytest.raises(ValueError, match="reads text alone, and the rows of 'pairs' have images"):
        model.per_example({}, {}, {"pairs": rows}, rngs=jax.random.key(0), step=0, train=True)
    with pytest.raises(ValueError, match="continues texts alone, and these rows have images"):
        model.prefill({}, {}, {**rows, "text": rows["text"][:, :2], "text_mask": rows["text_mask"][:, :2]}, 4)
    assert "tiny" in SIZES


def test_a_bias_of_the_softmax_stays_fp32(text_batch):
    """In bf16 too: losses add it as two columns of the table, which together hold more digits than one."""
    model = Decoder(V, size=dataclasses.replace(PLAIN, head_bias=True), compute=Compute("bfloat16", scan=False))
    params, _ = started(model, {}, "float32")
    params = {**params, "softmax_bias": 8 * jax.random.normal(jax.random.key(0), (50,))}
    rows = {k: x for k, x in text_batch(4, image=0).items() if k in ("text", "text_mask")}
    score = model.capabilities()["score_text"](params, {}, {**rows, "prefix_length": np.ones(4, np.int32)})
    place = np.broadcast_to(np.arange(12), (4, 12))
    logits = model.apply(params, "inspected", rows["text"], place, np.where(rows["text_mask"], 0, -1))[1]
    likely = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], rows["text"][:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(score, (likely * rows["text_mask"][:, 1:]).sum(1), atol=2e-3)

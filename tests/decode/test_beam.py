"""Beam search against searches that are too simple to be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simvlm_jax.core.types import Vocabulary
from simvlm_jax.decode.beam import beam_search
from simvlm_jax.decode.decoding import Decoding
from simvlm_jax.decode.generate import generate
from simvlm_jax.decode.sampling import Sampler
from tests.decode.toy import every_sequence, likelihood, slow_beam, walker

PIECES = Vocabulary(12, 16)
NEVER = (0, 1)


def search(model, starts, vocabulary=PIECES, forced=(), **how):
    batch = {"start": jnp.asarray(starts), "id": jnp.asarray(starts)}
    return generate(model, None, None, batch, vocabulary=vocabulary, decoding=Decoding(**how), forced=forced)


def whole(row, eos=2):
    """Pieces up to and with EOS."""
    row = np.asarray(row).tolist()
    return row[: row.index(eos) + 1] if eos in row else row


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0, -0.5])
def test_a_beam_of_all_sequences_is_exhaustive_search(power):
    vocabulary, length, start = Vocabulary(5, 8), 3, 11
    model, table = walker(5, seed=1)
    width = 5**length
    made = search(model, [start], vocabulary, max_length=length, beams=width, n_best=10, length_penalty=power)
    every = [(likelihood(table, start, s) / len(s) ** power, s) for s in every_sequence(5, length, 2, NEVER)]
    best = sorted(every, reverse=True)[:10]
    np.testing.assert_allclose(made.score[0], [score for score, _ in best], rtol=2e-6)
    assert [whole(t) for t in made.tokens[0]] == [tokens for _, tokens in best]


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("width", [2, 4])
def test_beam_search_by_the_book_and_stopping_early_changes_nothing(width, power):
    model, table = walker(12, seed=3)
    starts = list(range(0, 90, 7))
    made = search(model, starts, max_length=9, beams=width, n_best=width, length_penalty=power)
    for row, start in enumerate(starts):
        best = slow_beam(table, start, width, 9, 2, NEVER, power)
        np.testing.assert_allclose(made.score[row, : len(best)], [s for s, _ in best], rtol=5e-6)
        assert [whole(t) for t in made.tokens[row]][: len(best)] == [t for _, t in best]


def test_it_does_stop_early():
    """The loop's length is the number of calls of `extend` that a row needs, not the length allowed."""
    sure = jnp.full((12,), -20.0).at[2].set(0.0)  # EOS at once
    calls = []

    def extend(cache, tokens):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.broadcast_to(sure, (len(tokens), 12)), cache

    how = Decoding(max_length=100, beams=2, length_penalty=0.0)
    scores = beam_search(extend, jnp.broadcast_to(sure, (3, 12)), {"n": jnp.zeros(3)}, PIECES, how)[1]
    jax.block_until_ready(scores)
    jax.effects_barrier()
    assert len(calls) < 5


def test_a_beam_of_one_is_greedy():
    model, _ = walker(6, seed=5, sharp=1.0)
    starts, pieces = list(range(20)), Vocabulary(6, 16)
    logits, cache = model["prefill"](None, None, {"start": jnp.asarray(starts)}, 9)

    def extend(cache, chosen):
        following, cache = model["extend"](None, None, cache, chosen[:, None])
        return following[:, 0], cache

    how = Decoding(max_length=9, length_penalty=0.0, min_length=3, beams=2)
    object.__setattr__(how, "beams", 1)  # which by itself is greedy decoding, without a search
    tokens, scores = beam_search(extend, logits, cache, pieces, how)
    greedy = search(model, starts, pieces, max_length=9, min_length=3)
    assert np.asarray(tokens).tolist() == np.asarray(greedy.tokens).tolist()
    np.testing.assert_allclose(scores, greedy.score, rtol=1e-5)
    assert len({len(whole(t[0])) for t in greedy.tokens}) > 2  # rows of several lengths


@pytest.mark.parametrize("how", [dict(beams=3, n_best=3), dict(), dict(sampler=Sampler(1.0))])
def test_rows_do_not_touch_each_other(how):
    model, _ = walker(12, seed=7)
    starts = [3, 50, 77, 8, 21]
    together = search(model, starts, max_length=8, **how)
    for i, start in enumerate(starts):
        alone = search(model, [start], max_length=8, **how)
        assert alone.tokens[0].tolist() == together.tokens[i].tolist()
        np.testing.assert_array_equal(alone.score[0], together.score[i])


@pytest.mark.parametrize("beams", [1, 3])
def test_rules(beams):
    model, table = walker(12, seed=9, sharp=3.0)
    starts = list(range(30))

    def said(**how):
        return [whole(t[0]) for t in search(model, starts, max_length=10, beams=beams, **how).tokens]

    assert not any({0, 1} & set(s) for s in said())  # never padding or BOS
    assert any(len(s) < 6 for s in said()) and all(len(s) >= 7 for s in said(min_length=6))
    for n in (1, 2, 3):
        free, bound = said(min_length=8), said(min_length=8, no_repeat_ngram=n)
        runs = lambda s, n=n: [tuple(s[i : i + n]) for i in range(len(s) - n + 1)]  # noqa: E731
        assert any(len(set(runs(s))) < len(runs(s)) for s in free)
        assert all(len(set(runs(s))) == len(runs(s)) for s in bound)
    begun = search(model, starts, max_length=10, beams=beams, forced=(5, 6))
    assert all(t[0, :2].tolist() == [5, 6] for t in begun.tokens)
    if beams == 1:
        for start, tokens, score in zip(starts, begun.tokens, begun.score, strict=True):
            rest = whole(tokens[0])
            expected = likelihood(table, start, rest) - likelihood(table, start, [5, 6])
            assert float(score[0]) == pytest.approx(expected, rel=1e-5)


def test_a_repetition_penalty_makes_repeats_rarer():
    model, _ = walker(12, seed=9, sharp=3.0)

    def repeats(penalty):
        made = search(model, list(range(30)), max_length=10, min_length=9, repetition_penalty=penalty)
        return sum(len(whole(t[0])) - len(set(whole(t[0]))) for t in made.tokens)

    assert repeats(5.0) < repeats(1.5) < repeats(1.0) < repeats(0.5)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(beams=0), "Decoding.beams is 0: expected int >= 1"),
        (dict(beams=2, n_best=3), "need 1 <= n_best <= beams"),
        (dict(beams=2, sampler=Sampler(1.0)), "search or sample"),
        (dict(max_length=4, min_length=4), "no room for an EOS"),
        (dict(repetition_penalty=0.0), "Decoding.repetition_penalty is 0.0: expected float > 0.0"),
        (dict(length_penalty=0.5), "acts on a beam search alone"),
    ],
)
def test_bad_decodings(how, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**how)


def test_a_forced_prefix_must_leave_room():
    with pytest.raises(ValueError, match="forced prefix of 3 pieces fills max_length 3"):
        search(walker(12)[0], [1], max_length=3, forced=(4, 5, 6))

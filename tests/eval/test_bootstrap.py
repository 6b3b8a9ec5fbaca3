"""Confidence intervals: what theory says of means, ratios of sums, the same draws every time, pairs that share what is hard."""

import numpy as np
import pytest

from simvlm_jax.eval.metrics.bootstrap import intervals, mean_of, paired, ratio_of
from simvlm_jax.eval.metrics.caption import caption_scores, caption_sums


def test_a_mean_has_the_interval_of_its_standard_error():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    low, high = intervals({"m": mean_of(values)})["m"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_nine_of_ten_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        low, high = intervals({"p": mean_of(rng.random(200) < 0.3)}, draws=300)["p"]
        held += low <= 0.3 <= high
    assert 88 <= held <= 100


def test_ratios_are_of_sums_and_draws_are_the_same_for_all_scores():
    rng = np.random.default_rng(3)
    under = rng.integers(1, 20, 300).astype(float)
    over = rng.binomial(under.astype(int), 0.5).astype(float)
    scores = {"a": ratio_of(over, under), "b": ratio_of(over, under), "m": mean_of(over / under)}
    found = intervals(scores)
    assert found["a"] == found["b"] != found["m"] and found == intervals(scores)
    assert found["a"][0] < over.sum() / under.sum() < found["a"][1]
    assert "x" not in intervals({"x": mean_of([1.0])})  # of one image nothing is known


def test_questions_about_one_image_are_drawn_with_it():
    """Ten answers of an image that are all alike tell no more than one; where each has its own image, as much as ever."""
    rng = np.random.default_rng(4)
    each = rng.normal(3.0, 2.0, 400)
    of = np.repeat(np.arange(400), 10)
    order = rng.permutation(4000)
    together = intervals({"m": mean_of(np.repeat(each, 10)[order], of[order].tolist())})["m"]
    half = 1.96 * each.std() / np.sqrt(400)
    assert together == pytest.approx((each.mean() - half, each.mean() + half), abs=0.1 * half)
    apart = intervals({"m": mean_of(np.repeat(each, 10))})["m"]
    assert (together[1] - together[0]) / (apart[1] - apart[0]) == pytest.approx(np.sqrt(10), rel=0.1)
    assert intervals({"m": mean_of(each, range(400))}) == intervals({"m": mean_of(each)})
    assert (
        intervals({"m": mean_of(each, ["a"] * 400)}) == {} and not np.isfinite(paired(each, each, of=[0] * 400)).any()
    )
    assert paired(np.zeros(4000), np.repeat(each, 10), of=of.tolist()) == pytest.approx(together, abs=0.1 * half)


def test_what_two_runs_share_cancels():
    rng = np.random.default_rng(2)
    hard = rng.random(500)
    a, b = hard + rng.normal(0, 0.01, 500), hard + 0.02 + rng.normal(0, 0.01, 500)
    low, high = paired(a, b)
    assert 0.017 < low < high < 0.023
    apart = [intervals({"m": mean_of(v)})["m"] for v in (a, b)]
    assert apart[0][1] > apart[1][0]  # which each alone does not tell


def test_sums_of_captions_give_their_scores():
    said = ["a dog runs", "two cats", "a red car in the rain"]
    truth = [["the dog runs", "a dog is running"], ["two cats sit"], ["a car", "a red car stands in rain"]]
    scores, sums = caption_sums(said, truth)
    assert scores == caption_scores(said, truth)
    assert {k: s.score(s.rows.sum(0)) for k, s in sums.items()} == pytest.approx(scores)
    assert all(low <= scores[k] + 1e-9 and scores[k] <= high + 1e-9 for k, (low, high) in intervals(sums).items())

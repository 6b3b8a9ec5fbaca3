"""Truth from outside: scores printed by other people's tools, tokens of the official tokenizer."""

import json

import pytest

from simvlm_jax.eval.metrics.caption import caption_scores, caption_scores_per_image
from simvlm_jax.eval.metrics.ptb import ptb_tokenize

NAMES = {
    "Bleu_1": "bleu1",
    "Bleu_2": "bleu2",
    "Bleu_3": "bleu3",
    "Bleu_4": "bleu4",
    "ROUGE_L": "rouge_l",
    "CIDEr": "cider",
}


def test_published_scores(shared):
    cases = json.loads((shared("caption_metric_small") / "published_small_cases.json").read_text())
    compared = 0
    for name, case in cases.items():
        ids = list(case["hyp"])
        said, truth = [case["hyp"][i] for i in ids], [case["refs"][i] for i in ids]
        scores = caption_scores(said, truth)
        for theirs, ours in NAMES.items():
            if theirs in case["published"]:
                # they print four digits
                assert scores[ours] == pytest.approx(case["published"][theirs], abs=6e-5), (name, theirs)
                compared += 1
        if "CIDEr_per_item" in case["published"]:
            rows = [row["cider"] for row in caption_scores_per_image(said, truth)]
            assert rows == pytest.approx(case["published"]["CIDEr_per_item"], abs=6e-5)
    assert compared >= 20


def test_ptb_tokens_of_3000_captions(shared):
    pairs = json.loads((shared("ptb_tokenization") / "pairs.json").read_text())
    wrong = [(raw, truth, ptb_tokenize(raw)) for raw, truth in pairs if " ".join(ptb_tokenize(raw)) != truth]
    assert len(pairs) == 3000 and not wrong, wrong[:5]


def test_ptb_on_what_the_pairs_lack():
    assert ptb_tokenize("It's 12:30 o'clock, and/or 1/2") == ["it", "'s", "12:30", "o'clock", "and/or", "1/2"]
    assert ptb_tokenize("(a dog) ... -- I cannot") == ["-lrb-", "a", "dog", "-rrb-", "i", "can", "not"]
    assert ptb_tokenize(" \n ") == []


def test_empty_caption_scores_zero_and_unicode_passes():
    scores = caption_scores(["", "ein rotes café 日本"], [["a dog"], ["ein rotes café 日本"]])
    assert 0 < scores["rouge_l"] <= 0.5 and scores["cider"] >= 0


def test_missing_references_are_named():
    with pytest.raises(ValueError, match="no references for caption 1"):
        caption_scores(["a", "b"], [["a"], []])

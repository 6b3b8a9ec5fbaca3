"""The official VQA scorer: its normalisation on every pair, its accuracy by the book."""

import itertools
import json

import pytest

from simvlm_jax.cli import main
from simvlm_jax.eval.metrics.translation import corpus_bleu
from simvlm_jax.eval.metrics.vqa import normalise, vqa_accuracy


def test_every_official_pair(shared):
    pairs = json.loads((shared("vqa_normalisation") / "pairs.json").read_text())
    wrong = [(raw, truth, normalise(raw)) for raw, truth in pairs if normalise(raw) != truth]
    assert len(pairs) == 3150 and not wrong, wrong[:5]


@pytest.mark.parametrize(
    ("raw", "tidy"),
    [
        ("The two cats.", "2 cats"),
        ("isnt it", "isn't it"),
        ("t-shirt", "t shirt"),  # a space, for it touches none
        ("red - white", "red white"),  # nothing, for it does
        ("1,000 t-shirts", "1000 tshirts"),  # a comma between digits: nothing anywhere
        ("3.5", "3.5"),
        ("a.m.", "am"),
        (".".join("a" * 40), "a" * 33 + "." + ".".join("a" * 7)),  # a flag passed as a count: 32 periods
        ("None\n", "0"),
    ],
)
def test_quirks(raw, tidy):
    assert normalise(raw) == tidy


@pytest.mark.parametrize("agree", range(11))
def test_agreement_is_over_those_left_out(agree):
    people = ["yes"] * agree + [f"other {i}" for i in range(10 - agree)]
    left_out = [sum(p == "yes" for p in rest) for rest in itertools.combinations(people, 9)]
    assert vqa_accuracy("yes", people) == pytest.approx(sum(min(1, n / 3) for n in left_out) / 10)
    assert vqa_accuracy("yes", people) == pytest.approx([0, 0.3, 0.6, 0.9, *[1.0] * 7][agree])


def test_texts_are_normalised_only_where_people_disagree():
    assert vqa_accuracy("2", ["two"] * 10) == 0
    assert vqa_accuracy("two ", ["two"] * 10) == 1
    assert vqa_accuracy("2", ["two"] * 9 + ["a"]) == 1
    assert vqa_accuracy("", ["yes"] * 9 + ["no"]) == 0
    with pytest.raises(ValueError, match="without human answers"):
        vqa_accuracy("yes", [])


def write(tmp_path, predictions, annotations):
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    return ["metrics", "vqa", "--predictions", str(tmp_path / "p.json"), "--annotations", str(tmp_path / "a.json")]


def test_the_command(tmp_path, capsys):
    people = {"yes": 10, "red": 2, "blue": 8}
    notes = [
        {"question_id": 1, "answers": ["yes"] * people["yes"]},
        {"question_id": 2, "answers": ["red"] * 2 + ["blue"] * 8, "answer_type": "other"},
    ]
    said = [{"question_id": 1, "answer": "Yes"}, {"question_id": 2, "answer": "Red!"}]
    assert main([*write(tmp_path, said, notes), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] == 30.0 and scores["questions"] == 2 and scores["answer_type"] == {"other": 60.0}
    official = {"annotations": [{**n, "answers": [{"answer": a} for a in n["answers"]]} for n in notes]}
    assert main([*write(tmp_path, said, official), "--per-question", str(tmp_path / "q.json")]) == 0
    captured = capsys.readouterr()
    assert "30.00" in captured.out and not captured.err
    assert json.loads((tmp_path / "q.json").read_text()) == {"1": 0.0, "2": 60.0}
    assert main([*write(tmp_path, said[:1], [{"question_id": 1, "answers": ["Yes"]}]), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["accuracy"] == 0 and "1 of 1 questions have fewer than four answers" in captured.err


def test_intervals_are_over_images(tmp_path, capsys):
    """Twenty images of five questions each, all right or all wrong, beside the same questions of an image each."""
    notes = [{"question_id": i, "image_id": i // 5, "answers": ["yes"] * 10, "answer_type": "a"} for i in range(100)]
    said = [{"question_id": i, "answer": "yes" if i // 5 % 2 else "no"} for i in range(100)]
    widths = []
    for rows in (notes, [{**n, "image_id": n["question_id"]} for n in notes]):
        assert main([*write(tmp_path, said, rows), "--intervals", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["intervals"]
        assert found["answer_type"]["a"] == found["accuracy"]
        low, high = found["accuracy"]
        assert low < 50 < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(5**0.5, rel=0.15)
    assert main([*write(tmp_path, said, notes), "--intervals"]) == 0
    assert " to " in capsys.readouterr().out.splitlines()[0]
    assert main([*write(tmp_path, said, [{**n, "image_id": 7} for n in notes]), "--intervals", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["intervals"] == {"answer_type": {}} and "there are no intervals" in told.err
    del notes[3]["image_id"]
    assert main([*write(tmp_path, said, notes), "--intervals"]) == 1
    assert "question '3' has no image_id (1 in all)" in capsys.readouterr().err


ONE = [{"question_id": 1, "answers": ["a"] * 10}]


@pytest.mark.parametrize(
    ("predictions", "annotations", "message"),
    [
        ([{"question_id": 1, "answer": "a"}] * 2, ONE, "question '1' has more than one answer"),
        ([{"question_id": 2, "answer": "a"}], ONE, "no annotation for question '2'"),
        (
            [{"question_id": 1, "answer": "a"}],
            [*ONE, {"question_id": 5, "answers": ["b"]}],
            "no answer to question '5'",
        ),
        ([{"question_id": 1, "answer": 3}], ONE, "is not text"),
        ([{"question_id": 1}], ONE, "expected a list"),
        ([{"question_id": 1, "answer": "a"}], [{"question_id": 1, "answers": []}], "must be a list of texts"),
        ([{"question_id": 1, "answer": "a"}], ONE * 2, "annotated more than once"),
    ],
)
def test_bad_files(tmp_path, capsys, predictions, annotations, message):
    assert main(write(tmp_path, predictions, annotations)) == 1
    assert message in capsys.readouterr().err


def test_bleu_by_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu", reason="parity of BLEU needs the [parity] extra")
    truth = [
        "a man, riding a wave on top of a surfboard.",
        "it's 3.5 degrees - cold",
        "10,000 people's flags (red/white)",
        "x",
    ]
    for said in (truth, truth[::-1], [t.replace("a ", "the ") for t in truth], ["", "it 's", "10,000 people", "x y"]):
        assert corpus_bleu(said, truth) == pytest.approx(sacrebleu.corpus_bleu(said, [truth]).score, abs=1e-9)
        one = sacrebleu.sentence_bleu(said[2], [truth[2]], use_effective_order=True).score
        assert corpus_bleu(said[2:3], truth[2:3], smooth=True) == pytest.approx(one, abs=1e-9)


def test_bleu_of_a_known_case():
    """Counted by hand: 1-grams 5 of 6, 2-grams 3 of 5, 3-grams 2 of 4, 4-grams 1 of 3; no brevity penalty."""
    said, truth = ["the cat sat on a mat"], ["the cat sat on the mat"]
    assert corpus_bleu(said, truth) == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)

"""PTB tokens are those of the official program: committed pairs in the quick test, the program itself in the slow one."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from simvlm_jax.eval.metrics import ptb_characters
from simvlm_jax.eval.metrics.bootstrap import intervals
from simvlm_jax.eval.metrics.meteor import find_jar, meteor, meteor_counts, meteor_of
from simvlm_jax.eval.metrics.ptb import DROPPED, ptb_tokenize, ptb_tokenize_all

TRUTH = Path(__file__).parent / "truth" / "ptb.json"


def test_lines_as_the_program_tokenises_them():
    """2,013 lines made of what is hard, one after the other, for some tokens depend on the line after."""
    pairs = json.loads(TRUTH.read_text(encoding="utf-8"))
    made = ptb_tokenize_all([line for line, _ in pairs])
    wrong = [
        (line, wanted, " ".join(m)) for (line, wanted), m in zip(pairs, made, strict=True) if wanted != " ".join(m)
    ]
    assert len(pairs) > 2000 and not wrong, wrong[:5]


def test_what_follows_decides_of_a_period():
    assert ptb_tokenize_all(["plan b.", "A dog"])[0] == ["plan", "b"] and ptb_tokenize("plan b.") == ["plan", "b."]
    assert ptb_tokenize_all(["plan b.", "the dog"])[0] == ["plan", "b."]


@pytest.mark.parametrize("caption", ["", " ", "\n", "...", "\u200b", "🐶"])
def test_nothing_is_left_of(caption):
    assert ptb_tokenize(caption) == []


def test_line_breaks_are_spaces():
    assert ptb_tokenize("a\ndog\u2028runs\r\nhome") == ["a", "dog", "runs", "home"]


def test_a_caption_of_many_words_takes_no_time():
    assert len(ptb_tokenize("zebra 5, " * 20_000)) == 40_000
    assert len(ptb_tokenize("a," * 10_000)) == 10_000


@pytest.mark.parametrize(
    ("piece", "end"),
    [
        ("#a", ""), ("\u200b", ""), ("&amp", ""), ("<a b='", ""), ("(1) 2-", ""), ("<!a", ""), ("A. <!a ", ""), ("www.1", ""),
        ("1a.", "a#"), ("1a,", "#-"), ("a#", "(@"), ("a#", "..com"), ("a.", "1."), ("<a ", " " * 59_990), ("a.", " " * 59_990),
    ],
)  # fmt: skip
def test_long_captions_begin_as_short_ones_do(piece, end):
    """That rules read ahead within bounds changes no token; without bounds each of these would take minutes."""

    def told(size):
        last = end if end.strip() else end[60_000 - size :]
        return " ".join(ptb_tokenize_all([(piece * size)[: size - len(last)] + last, "> and another"])[0])

    assert told(60_000)[:100] == told(600)[:100]


def test_a_caption_beyond_the_limit_is_an_error():
    with pytest.raises(ValueError, match=r"caption 1 \('aaa.* has 500,001 characters, more than the limit of 500,000"):
        ptb_tokenize_all(["a dog", "a" * 500_001])


# ---- beside the program ----------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path):
    """`program(lines)`: the tokens of CoreNLP's tokeniser, as the scorer keeps them."""
    pytest.importorskip("pycocoevalcap", reason="needs pip install pycocoevalcap, whose jar is the truth")
    if shutil.which("java") is None:
        pytest.skip("needs java")
    jar = find_jar().parents[1] / "tokenizer" / "stanford-corenlp-3.4.1.jar"

    def run(lines):
        (tmp_path / "lines").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        words = [
            "-Dfile.encoding=UTF-8",
            "-cp",
            jar,
            "edu.stanford.nlp.process.PTBTokenizer",
            "-preserveLines",
            "-lowerCase",
        ]
        done = subprocess.run(["java", *map(str, words), str(tmp_path / "lines")], capture_output=True, check=True)
        found = done.stdout.decode().split("\n")
        assert len(found) == len(lines)
        return [[w for w in line.rstrip().split(" ") if w and w not in DROPPED] for line in found]

    return run


def pieces():
    """What lines are made of: all words and marks of the committed ones."""
    return sorted({w for line, _ in json.loads(TRUTH.read_text(encoding="utf-8")) for w in line.split(" ") if w})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_fuzzed_lines_beside_the_program(program, seed):
    rng, known = random.Random(seed), pieces()
    lines = []
    for _ in range(25_000):
        line = "".join(rng.choice(known) + rng.choice([" ", " ", " ", "", "  "]) for _ in range(rng.randint(1, 9)))
        marks = list(line)
        for _ in range(rng.randint(0, 3)):
            marks.insert(rng.randint(0, len(marks)), rng.choice("abAB019.,'-/&@#$:;!?()<> \u2019\u00e9\u0301"))
        lines.append("".join(marks))
    wanted = program(lines)
    wrong = [(a, x, y) for a, x, y in zip(lines, wanted, ptb_tokenize_all(lines), strict=True) if x != y]
    assert not wrong, wrong[:5]


def same(tokens, text):
    """Whether a text is one token, whatever the form of its last sigma."""
    return [w.replace("ς", "σ") for w in tokens] == [text.lower().replace("ς", "σ")]


@pytest.mark.slow
def test_kinds_of_characters_beside_the_program(program):
    """Every character of the basic plane: inside a word, joined by a hyphen, in a number, alone."""
    breaks = {0x0A, 0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029}
    points = [c for c in range(0x80, 0x10000) if c not in breaks and not 0xD800 <= c <= 0xDFFF]
    found = iter(program([line for c in map(chr, points) for line in (f"a.{c}a", f"{c}-{c}", f"{c}:{c}", f"x {c} x")]))
    kinds = {"LETTERS": set(), "MARKS": set(), "DIGITS": set(), "SYMBOLS": set()}
    for point in points:
        c = chr(point)
        word, joined, number, alone = (next(found) for _ in range(4))
        letter, digit = same(joined, f"{c}-{c}"), same(number, f"{c}:{c}")
        if digit:
            kinds["DIGITS"].add(point)
        elif letter:
            kinds["LETTERS"].add(point)
        elif same(word, f"a.{c}a") and point != 0xAD:
            kinds["MARKS"].add(point)
        elif alone != ["x", "x"]:
            kinds["SYMBOLS"].add(point)
    hidden = set(
        "\x91\x92\x93\x94\x96\x97\u2013\u2014\u2015\u2018\u2019\u201b\u201c\u201d\u2026\u2039\u203a\xab\xbb\xad"
    )
    for name, wanted in kinds.items():
        ranges = (r.partition("-") for r in getattr(ptb_characters, name).split())
        table = {n for a, _, b in ranges for n in range(int(a, 16), int(b or a, 16) + 1) if n >= 0x80}
        assert not {chr(n) for n in table ^ wanted} - (hidden if name == "SYMBOLS" else set()), name


@pytest.mark.slow
def test_meteor_is_the_programs(program):
    said = ["a dog runs in the park", "two cats sit on a mat", "nothing of it"]
    truth = [["the dog is running in a park", "a puppy runs"], ["cats sitting on mats"], ["a man rides a bike"]]
    corpus, each, sums = meteor(said, truth, find_jar())
    assert sums.score(sums.rows.sum(0)) == pytest.approx(corpus, abs=1e-9)
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    keep = {i: [" ".join(ptb_tokenize(r)) for r in rs] for i, rs in enumerate(truth)}
    wanted, wanted_each = scorer.compute_score(keep, {i: [" ".join(ptb_tokenize(s))] for i, s in enumerate(said)})
    assert (
        corpus == pytest.approx(wanted, abs=1e-9) and each == pytest.approx(wanted_each, abs=1e-9) and min(each) < 0.05
    )


@pytest.mark.slow
def test_sums_of_meteor_give_the_programs_scores(program):
    """Of random captions in every stage, of captions that are their references, and of empty ones."""
    rng = random.Random(0)
    words = [
        "a",
        "the",
        "of",
        "in",
        "dog",
        "dogs",
        "cat",
        "runs",
        "running",
        "big",
        "large",
        "man",
        "person",
        ",",
        "3.5",
    ]

    def draw():
        return " ".join(rng.choices(words, k=rng.randint(1, 12)))

    said = [*(draw() for _ in range(60)), "a dog runs", "dog", "", "the"]
    truth = [
        *([draw() for _ in range(rng.randint(1, 3))] for _ in range(60)),
        ["a dog runs"],
        ["dog"],
        ["a dog"],
        ["a"],
    ]
    corpus, each, sums = meteor(said, truth, find_jar())
    assert sums.score(sums.rows.sum(0)) == pytest.approx(corpus, abs=1e-6)
    same = [60, 61]  # alone they have no penalty, which the sums know by their having no chunk
    assert [sums.score(row) for row in sums.rows] == pytest.approx(each, abs=1e-6) and [each[i] for i in same] == [1, 1]
    low, high = intervals({"meteor": sums})["meteor"]
    assert low < corpus < high < low + 0.2


def test_meteors_formula_by_hand():
    """Lines as the program gives them, and the scores that it gave: 0.2089 of all three."""
    lines = [
        "6 7 3 4 2 2 3 3 0 0 0 0 0 0 0 0 1 0 0 1 5 6 6",
        "6 4 3 1 1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 1 3 3",
        "3 5 2 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
    ]
    rows = meteor_counts(lines)
    assert list(map(meteor_of, rows)) == pytest.approx([0.3198617531181713, 0.2918892587450871, 0], abs=1e-12)
    assert meteor_of(rows.sum(0)) == pytest.approx(0.2088844587004311, abs=1e-12)
    same = meteor_counts(["3 3 1 1 2 2 1 1 0 0 0 0 0 0 0 0 0 0 0 0 1 3 3"])
    assert meteor_of(same[0]) == 1 and same[0, 20] == 0
    with pytest.raises(ValueError, match="other statistics than 23 numbers"):
        meteor_counts(["1 2 3"])


def test_meteor_without_its_program_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="needs the official program, which is not at"):
        find_jar(str(tmp_path / "none.jar"))

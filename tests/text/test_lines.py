"""Lines end where people end them, and nowhere else."""

import pytest

from simvlm_jax.text.lines import lines_of


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\nb\r\nc\rd\n", ["a", "b", "c", "d"]),
        ("\n\na\r\r\n", ["", "", "a", ""]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei", ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"]),
    ],
)
def test_lines(text, lines):
    assert lines_of(text) == lines

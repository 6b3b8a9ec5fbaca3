"""A lock in a folder that somebody else has filled overwrites nothing and believes nothing."""

import pytest

from simvlm_jax.core.files import BadFile
from simvlm_jax.core.lock import held, turn


@pytest.mark.parametrize("name", ["running.lock", "running-0-of-2.lock"])
def test_a_lock_that_is_a_link_is_refused(tmp_path, name):
    (tmp_path / "precious.txt").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to("../precious.txt")
    with pytest.raises(BadFile, match=rf"{name}' is a link"), held(run, name=name):
        pass
    with pytest.raises(BadFile, match=rf"{name}' is a link"), turn(run / name):
        pass
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "[" * 3_000,
        "[]",
        '{"host": "another", "pid": 1}',
        '{"host": 5, "pid": "x", "beat": []}',
        '{"host": "another", "pid": 1, "beat": 1}' + " " * 10_000,
        "\0\0",
    ],
)
def test_a_record_that_is_none_is_taken_as_none(tmp_path, text):
    (tmp_path / "running.lock").write_text(text)
    with held(tmp_path):
        assert '"beat"' in (tmp_path / "running.lock").read_text()

"""Who is lost, who is late, and who is neither."""

import json
import time

import pytest

from simvlm_jax.parallel.hosts import EXIT_HOST_LOST, EXIT_STOPPED, Heart, agreed, one_first

PATIENCE = 0.15


@pytest.fixture
def heart(tmp_path):
    """Process 0 of two, whose peer is made of files."""
    one = Heart(tmp_path, patience=PATIENCE)
    one.count, one._session = 2, 5
    return one


def beat(heart, number, **fields):
    record = dict(beat=number, session=5, process=1, host="h", pid=7, stage="collective", step=3, seconds=0.0, ended="")
    (heart._folder / "1.json").write_text(json.dumps({**record, **fields}))


def verdict_after(heart, seconds):
    heart._verdict()
    time.sleep(seconds)
    return heart._verdict()


def test_silence_is_lost_and_beats_are_not(heart):
    beat(heart, 1)
    assert heart._verdict() is None
    time.sleep(PATIENCE * 1.2)
    beat(heart, 2)
    assert heart._verdict() is None  # it has beaten meanwhile
    lost = verdict_after(heart, PATIENCE * 1.2)
    assert (
        lost.code == EXIT_HOST_LOST and "(pid 7), 0 s in stage 'collective' of step 3 has not been heard of" in lost.why
    )
    assert "the same command continues" in lost.why


def test_what_an_earlier_session_left_does_not_count(heart):
    beat(heart, 1, session=4, ended="ValueError: of yesterday")
    lost = verdict_after(heart, PATIENCE * 1.2)
    assert lost.why.startswith("error: process 1 has not been heard of")


def test_an_error_is_passed_on_without_a_promise(heart):
    beat(heart, 1, ended="ValueError: no such data")
    why, code = heart._verdict()
    assert code == 1 and "has ended: ValueError: no such data" in why and "continues" not in why


def test_a_finished_peer_is_not_missed_and_a_stopped_one_only_after_a_while(heart):
    beat(heart, 1, ended="finished")
    assert verdict_after(heart, PATIENCE * 1.5) is None
    beat(heart, 2, ended="stopped")
    assert heart._verdict() is None
    stopped = verdict_after(heart, PATIENCE * 1.2)
    assert stopped.code == EXIT_STOPPED and "was stopped" in stopped.why


def test_nobody_is_blamed_while_the_folder_cannot_be_written(heart, capsys):
    beat(heart, 1)
    heart._folder = heart._folder / "1.json"  # no folder at all
    heart._beat()
    assert "heartbeats cannot be written" in capsys.readouterr().err
    assert verdict_after(heart, PATIENCE * 1.2) is None


@pytest.mark.parametrize(
    ("step", "stage", "behind"),
    [(3, "data", True), (2, "eval", True), (3, "collective", False), (3, "checkpoint", False), (4, "data", False)],
)
def test_those_are_late_that_are_behind(heart, step, stage, behind):
    heart.at("collective", 3)
    beat(heart, 1, step=step, stage=stage)
    heart._verdict()
    (record,) = heart._others()
    assert heart._behind(record) is behind
    time.sleep(4 * heart._interval)
    assert heart._behind(record)  # silent for some beats


def test_alone_there_is_nothing_to_agree_on(tmp_path):
    alone = Heart(tmp_path / "hosts")
    alone.at("data", 1)
    alone.end("finished")
    assert not (tmp_path / "hosts").exists()
    assert agreed(3, "steps") == 3 and agreed(None, "steps") is None
    with one_first("x") as lead:
        assert lead

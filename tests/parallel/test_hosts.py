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


def beat(heart, number, process=1, **fields):
    record = dict(beat=number, session=5, process=process, host="h", pid=7, seconds=0.0, ended="")
    record |= dict(stage="collective", step=3, turn=4)
    (heart._folder / f"{process}.json").write_text(json.dumps({**record, **fields}))


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


def test_with_three_a_lost_one_explains_the_error_of_another(heart):
    """A process that is gone fails the collectives of all others; whoever says so first must not be blamed for it."""
    heart.count = 3
    beat(heart, 1, ended="JaxRuntimeError: Gloo, connection closed by peer")
    beat(heart, 1, process=2)
    assert heart._verdict().code == 1  # nobody is silent yet
    beat(heart, 2, process=2)
    lost = verdict_after(heart, PATIENCE * 1.2)
    assert lost.code == EXIT_HOST_LOST and "process 2" in lost.why


def places(heart, step):
    """The places of a process, in the order in which the training loop comes to them."""
    loop = [("data", step), ("collective", step), ("eval", step + 1), ("checkpoint", step + 1), ("data", step + 1)]
    for stage, at in loop:
        heart.at(stage, at)
        yield stage, at, heart._turn


@pytest.mark.parametrize("theirs", range(5))
@pytest.mark.parametrize("mine", range(5))
def test_those_are_late_that_have_not_come_as_far(heart, mine, theirs):
    stage, step, turn = list(places(heart, 3))[theirs]
    heart._turn = 0
    for i, _ in enumerate(places(heart, 3)):
        if i == mine:
            break
    beat(heart, 1, step=step, stage=stage, turn=turn)
    heart._patience = 600.0  # whatever the machine does meanwhile, nobody is silent for some beats of a minute
    heart._verdict()
    (record,) = heart._others()
    assert heart._behind(record) is (theirs < mine or (theirs == mine and stage == "checkpoint"))
    beat_seen, since = heart._seen[1]
    heart._seen[1] = beat_seen, since - 4 * heart._interval
    assert heart._behind(record)  # silent for some beats


def test_a_stop_that_was_not_agreed_on_waits_until_the_others_end_and_no_longer(heart):
    beat(heart, 1)
    assert not heart.others_ended()
    beat(heart, 2, ended="stopped")
    assert heart.others_ended()


def test_alone_there_is_nothing_to_agree_on(tmp_path):
    alone = Heart(tmp_path / "hosts")
    alone.at("data", 1)
    alone.end("finished")
    assert not (tmp_path / "hosts").exists()
    assert agreed(3, "steps") == 3 and agreed(None, "steps") is None
    with one_first("x") as lead:
        assert lead

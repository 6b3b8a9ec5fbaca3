"""Who is lost, who is late, and who is neither."""

import json
import time

import pytest

from simvlm_jax.parallel.environment import EXIT_HOST_LOST, EXIT_INTERRUPTED
from simvlm_jax.parallel.heartbeat import Heartbeat
from simvlm_jax.parallel.hosts import main_process_first, require_equal

PATIENCE = 0.15


@pytest.fixture
def heartbeat(tmp_path):
    """Process 0 of two, whose peer is made of files."""
    one = Heartbeat(tmp_path, patience=PATIENCE)
    one.count, one._session = 2, 5
    return one


def beat(heartbeat, number, process=1, **fields):
    record = dict(beat=number, session=5, process=process, host="h", pid=7, seconds=0.0, ended="")
    record |= dict(stage="collective", step=3, turn=4)
    (heartbeat._folder / f"{process}.json").write_text(json.dumps({**record, **fields}))


def exit_reason_after(heartbeat, seconds):
    heartbeat._exit_reason()
    time.sleep(seconds)
    return heartbeat._exit_reason()


def test_silence_is_lost_and_beats_are_not(heartbeat):
    beat(heartbeat, 1)
    assert heartbeat._exit_reason() is None
    time.sleep(PATIENCE * 1.2)
    beat(heartbeat, 2)
    assert heartbeat._exit_reason() is None  # it has beaten meanwhile
    lost = exit_reason_after(heartbeat, PATIENCE * 1.2)
    assert (
        lost.code == EXIT_HOST_LOST
        and "(pid 7), 0 s in stage 'collective' of step 3 has not been heard of" in lost.message
    )
    assert "the same command continues" in lost.message


def test_what_an_earlier_session_left_does_not_count(heartbeat):
    beat(heartbeat, 1, session=4, ended="ValueError: of yesterday")
    lost = exit_reason_after(heartbeat, PATIENCE * 1.2)
    assert lost.message.startswith("error: process 1 has not been heard of")


def test_an_error_is_passed_on_without_a_promise(heartbeat):
    beat(heartbeat, 1, ended="ValueError: no such data")
    message, code = heartbeat._exit_reason()
    assert code == 1 and "has ended: ValueError: no such data" in message and "continues" not in message


def test_a_finished_peer_is_not_missed_and_a_stopped_one_only_after_a_while(heartbeat):
    beat(heartbeat, 1, ended="finished")
    assert exit_reason_after(heartbeat, PATIENCE * 1.5) is None
    beat(heartbeat, 2, ended="stopped")
    assert heartbeat._exit_reason() is None
    stopped = exit_reason_after(heartbeat, PATIENCE * 1.2)
    assert stopped.code == EXIT_INTERRUPTED and "was stopped" in stopped.message


def test_nobody_is_blamed_while_the_folder_cannot_be_written(heartbeat, capsys):
    beat(heartbeat, 1)
    heartbeat._folder = heartbeat._folder / "1.json"  # no folder at all
    heartbeat._beat()
    assert "heartbeats cannot be written" in capsys.readouterr().err
    assert exit_reason_after(heartbeat, PATIENCE * 1.2) is None


def test_with_three_a_lost_one_explains_the_error_of_another(heartbeat):
    """A process that is gone fails the collectives of all others; whoever says so first must not be blamed for it."""
    heartbeat.count = 3
    beat(heartbeat, 1, ended="JaxRuntimeError: Gloo, connection closed by peer")
    beat(heartbeat, 1, process=2)
    assert heartbeat._exit_reason().code == 1  # nobody is silent yet
    beat(heartbeat, 2, process=2)
    lost = exit_reason_after(heartbeat, PATIENCE * 1.2)
    assert lost.code == EXIT_HOST_LOST and "process 2" in lost.message


def places(heartbeat, step):
    """The places of a process, in the order in which the training loop comes to them."""
    loop = [("data", step), ("collective", step), ("eval", step + 1), ("checkpoint", step + 1), ("data", step + 1)]
    for stage, at in loop:
        heartbeat.enter(stage, at)
        yield stage, at, heartbeat._turn


@pytest.mark.parametrize("theirs", range(5))
@pytest.mark.parametrize("mine", range(5))
def test_those_are_late_that_have_not_come_as_far(heartbeat, mine, theirs):
    stage, step, turn = list(places(heartbeat, 3))[theirs]
    heartbeat._turn = 0
    for i, _ in enumerate(places(heartbeat, 3)):
        if i == mine:
            break
    beat(heartbeat, 1, step=step, stage=stage, turn=turn)
    heartbeat._patience = 600.0  # whatever the machine does meanwhile, nobody is silent for some beats of a minute
    heartbeat._exit_reason()
    (record,) = heartbeat._others()
    assert heartbeat._behind(record) is (theirs < mine or (theirs == mine and stage == "checkpoint"))
    beat_seen, since = heartbeat._seen[1]
    heartbeat._seen[1] = beat_seen, since - 4 * heartbeat._interval
    assert heartbeat._behind(record)  # silent for some beats


def test_a_stop_that_was_not_agreed_on_waits_until_the_others_end_and_no_longer(heartbeat):
    beat(heartbeat, 1)
    assert not heartbeat.wait_for_others()
    beat(heartbeat, 2, ended="stopped")
    assert heartbeat.wait_for_others()


def test_alone_there_is_nothing_to_agree_on(tmp_path):
    alone = Heartbeat(tmp_path / "hosts")
    alone.enter("data", 1)
    alone.end("finished")
    assert not (tmp_path / "hosts").exists()
    assert require_equal(3, "steps") == 3 and require_equal(None, "steps") is None
    with main_process_first("x") as main:
        assert main

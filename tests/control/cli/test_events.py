"""nyxctl events at a real control process: what is kept, what comes, chosen by kind, and a node that stays away."""

import json
import re
import threading
import time

import pytest

from control import client
from tests.control.nodes import node

PATIENCE = 60


@pytest.fixture
def found(tmp_path):
    with node(tmp_path) as running:
        yield running


def log(found, **args):
    return client.ask(found.socket, "events", args, PATIENCE)


def wait_for(found, kind):
    """The log, once it has an event of this kind."""
    place, life, events = 0, None, []
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        answer = log(found, after=place, life=life, wait=5)
        place, life = answer["last"], answer["life"]
        events += answer["events"]
        if kind in [event["kind"] for event in events]:
            return answer
    raise AssertionError(f"no {kind} in {events}")


def test_what_happened_is_kept_without_a_feed(ctl, found):
    wait_for(found, "ready")
    found.restart(0)
    wait_for(found, "worker_restarted")
    code, out, err = ctl("--socket", found.socket, "events", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert {(event["schema"], event["version"]) for event in events} == {("nyx.events", 1)}
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {"ready", "control_restarted", "worker_restarted"} <= {event["kind"] for event in events}


def test_events_for_people_chosen_by_kind(ctl, found):
    found_kinds = ("--kind", "worker_restarted", "--kind", "ready")
    wait_for(found, "ready")
    found.restart(0)
    wait_for(found, "worker_restarted")
    lines = ctl("--socket", found.socket, "events", *found_kinds)[1].splitlines()
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  ready  ready", lines[0])
    assert lines[-1].split("  ")[1:] == ["worker_restarted", "worker 0", "1"]
    assert ctl("--socket", found.socket, "events", *found_kinds, "--last", 1)[1].splitlines() == lines[-1:]


def test_what_comes_is_told_as_it_comes_behind_the_last_that_was(ctl, found):
    wait_for(found, "ready")
    timer = threading.Timer(0.5, found.restart, [0])
    timer.start()
    last = log(found)["events"][-1]
    code, out, _ = ctl("--socket", found.socket, "--timeout", PATIENCE, "events", "--count", 2, "--json")
    timer.join()
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [event["seq"] for event in events] == [last["seq"], last["seq"] + 1]
    assert events[1]["kind"] == "worker_restarted"


def test_a_time_limit_ends_a_wait(ctl, found):
    wait_for(found, "ready")
    began = time.monotonic()
    assert ctl("--socket", found.socket, "--timeout", 1, "events", "--follow", "--kind", "upgraded") == (0, "", "")
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"after": 10**6}, "no event has the number"),
        ({"after": -1}, "after must be"),
        ({"after": True}, "after must be"),
        ({"life": 3}, "life must be"),
        ({"wait": 31}, "wait must be"),
        ({"wait": "long"}, "wait must be"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(found, args, words):
    with pytest.raises(client.ClientError, match=words):
        log(found, **args)


def test_a_number_of_another_life_gets_all_and_word_of_the_gap(found):
    wait_for(found, "ready")
    mine = log(found)
    other = log(found, after=10**6, life="another")
    assert (mine["complete"], other["complete"]) == (True, False)
    assert other["events"][: len(mine["events"])] == mine["events"]


def test_no_node_is_code_3(ctl, tmp_path):
    code, out, err = ctl("--socket", tmp_path / "control.sock", "events")
    assert (code, out) == (3, "")
    assert "no node answers" in err

"""What is wrong, in words: conditions that come and go, clocks that are set, processes that stand still."""

import os
import signal
import subprocess
from typing import Any

import pytest

from nyx.columns import Columns, allocate
from nyx.stats import STOPPED_KEEPER, STOPPED_WORKER, Counter, node_columns, statistics_columns, statistics_row
from shards import clock, pulse
from shards.clock import PROOF_AFTER, SECOND, STEP, WallClock
from shards.health import BUFFER_LOW, STARVED, Conditions, Shortage, buffer_condition


def test_each_change_of_a_condition_is_one_line_of_the_log() -> None:
    said: list[str] = []
    conditions = Conditions("worker 3", lambda level, text: said.append(f"{level} {text}"))
    for text in ("4 left", "3 left", None, None, "2 left"):
        conditions.judge("places", text)
    assert said == ["warning worker 3: 4 left", "info worker 3: over: 3 left", "warning worker 3: 2 left"]
    conditions.judge("clock", "wrong")
    assert conditions.texts == ["2 left", "wrong"]


@pytest.mark.parametrize(
    ("granted", "asked", "word"),
    [
        (BUFFER_LOW, 4 << 20, None),
        (425984, 4 << 20, "net.core.rmem_max to 4194304"),
        (425984, 212992, "node.receive_buffer asks"),
    ],
)
def test_a_small_buffer_is_blamed_on_who_made_it_small(granted: int, asked: int, word: str | None) -> None:
    text = buffer_condition(granted, asked)
    assert text is None if word is None else (text and word in text and "416 KiB" in text)


def test_a_shortage_lasts_until_nothing_was_refused_for_a_while() -> None:
    shortage = Shortage()
    assert shortage.condition(0, SECOND) is None
    assert "no descriptors" in (shortage.condition(3, SECOND) or "")
    assert shortage.condition(3, STARVED) is not None
    assert shortage.condition(4, STARVED) is not None
    assert shortage.condition(4, 2 * STARVED - 1) is not None
    assert shortage.condition(4, 2 * STARVED) is None


HOUR = 3600 * SECOND


def test_a_step_is_named_until_the_clock_is_back() -> None:
    watch = WallClock(origin=50, started=1000)
    assert watch.condition(50 + STEP, 0, SECOND) is None
    text = watch.condition(50 - HOUR, 0, 2 * SECOND)
    assert text is not None
    assert "set back by 3600 s" in text
    assert watch.condition(50 - HOUR, 0, 2 * PROOF_AFTER) == text
    assert watch.condition(50, 0, 3 * PROOF_AFTER) is None


def test_a_step_counts_as_right_once_others_take_the_new_time() -> None:
    watch = WallClock(origin=0, started=1000)
    assert watch.condition(HOUR, 7, SECOND) is not None
    assert watch.condition(HOUR, 8, SECOND + PROOF_AFTER - 1) is not None  # judged by the time before, perhaps
    assert watch.condition(HOUR, 8, SECOND + PROOF_AFTER) is not None
    assert watch.condition(HOUR, 9, SECOND + PROOF_AFTER + 1) is None
    assert watch.condition(0, 9, 2 * SECOND + PROOF_AFTER) is not None  # so this is the step now


def test_the_start_is_told_by_the_clock_as_it_is_set_now() -> None:
    watch = WallClock(origin=0, started=10_000)
    assert watch.started(HOUR) == 13_600
    assert watch.started(-HOUR) == 6_400


def test_time_going_on_is_no_step() -> None:
    first = clock.ahead()
    assert abs(clock.ahead() - first) < SECOND


# ---------------------------------------------------------------- the supervisor's look


class Family:
    """The rows of a node with one worker, as the supervisor and the keeper write them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shared: Columns = {**allocate(node_columns(1)), **allocate(statistics_columns(1))}
        self.row = self.shared["node_workers"]
        self.turns = statistics_row(self.shared["statistics"], 0)
        self.said: list[str] = []
        self.pulse = pulse.Pulse(self.shared, 1, lambda _level, text: self.said.append(text))
        monkeypatch.setattr(pulse, "PERIOD", 0.0)

    def beat(self, turns: int = 0) -> Any:
        self.turns[Counter.TURNS] += turns
        self.pulse.beat()
        return self.row[0]


def test_a_loop_that_does_not_turn_is_named_after_three_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    family.row["pid"] = family.row["ready"] = os.getpid()
    for _ in range(5):
        assert family.beat(turns=1)["still"] == 0
    assert [int(family.beat()["still"]) for _ in range(4)] == [1, 2, 3, 4]
    assert family.said == [f"worker 0: its loop stands still (process {os.getpid()})"]
    assert family.beat(turns=1)["still"] == 0
    assert family.said[1:] == [f"worker 0: over: its loop stands still (process {os.getpid()})"]
    family.row["ready"] = 0  # a new life that is not ready yet is not blamed
    assert [int(family.beat()["still"]) for _ in range(5)] == [0] * 5
    assert int(family.shared["node"]["pulse"][0]) > 0


def test_stopped_processes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(monkeypatch)
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            family.row["pid"], family.row["keeper"] = child.pid, os.getpid()
            assert family.beat()["stopped"] == 0
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            assert family.beat()["stopped"] == STOPPED_WORKER
            family.row["pid"], family.row["keeper"] = 0, child.pid
            assert family.beat()["stopped"] == STOPPED_KEEPER
            child.send_signal(signal.SIGCONT)
            os.waitid(os.P_PID, child.pid, os.WCONTINUED)
            assert family.beat()["stopped"] == 0
        finally:
            child.kill()
    assert family.said[0] == f"worker 0: its process {child.pid} was stopped by a signal; kill -CONT {child.pid} lets it go on"
    assert family.said[-1].startswith("worker 0: over: its keeper")
    assert not pulse.is_stopped(child.pid)  # gone
    assert not pulse.is_stopped(0)

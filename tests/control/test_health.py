"""Why a process does not answer, as `nyxctl status` says it."""

import errno

import pytest

from control.health import PULSE_LATE, warnings
from control.pages import Processes, WorkerLife
from nyx.stats import STOPPED_KEEPER, STOPPED_WORKER


def table(*lives, pulse=0):
    return Processes(started=1, supervisor=40, control=41, control_restarts=0, upgrades=0, pulse=pulse, workers=lives)


@pytest.mark.parametrize(
    ("life", "reason"),
    [
        (WorkerLife(7, 0), ""),
        (WorkerLife(7, 0, still=9), ": its loop has stood still for 9 s (process 7)"),
        (
            WorkerLife(7, 0, still=9, stopped=STOPPED_WORKER),
            ": its process 7 was stopped by a signal; kill -CONT 7 lets it go on",
        ),
        (
            WorkerLife(0, 0, unborn=errno.EAGAIN),
            ": the system has no room for its process (Resource temporarily unavailable); see ulimit -u and the memory limit",
        ),
    ],
)
def test_a_silent_worker_is_explained_as_far_as_the_supervisor_knows(life, reason):
    assert warnings(table(life), [0], 0) == [f"worker 0 does not answer{reason}"]
    assert warnings(table(life), [], 0) == []


def test_an_unknown_table_explains_nothing():
    assert warnings(None, [0, 1], 0) == ["worker 0 does not answer", "worker 1 does not answer"]


def test_who_would_start_others_again_is_named_while_nobody_misses_him_yet():
    keeper = warnings(table(WorkerLife(7, 0), WorkerLife(8, 0, keeper=6, stopped=STOPPED_KEEPER)), [], 0)
    assert len(keeper) == 1
    assert keeper[0].startswith("the keeper of worker 1 (process 6) is stopped")
    assert warnings(table(pulse=1), [], 1 + PULSE_LATE) == []
    late = warnings(table(pulse=1), [], 2 + PULSE_LATE)
    assert len(late) == 1
    assert late[0].startswith("the supervisor (process 40) has stood still for 5 s")

"""The supervisor's look at its family, once a second: whose loop stands still, and which process a signal stopped.

Roles: reads the turns that workers count and the states that Linux shows, writes the node's rows, from which the control process
tells `nyxctl status`, and the log. Looks are counted, not seconds: a supervisor that was stopped itself blames nobody.
Nothing is killed here: a debugger or an operator may have stopped a process, and a slow one goes on.
Source: Linux proc_pid_stat(5).
"""

import os
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Columns
from nyx.stats import STOPPED_KEEPER, STOPPED_WORKER, Counter, statistics_row
from shards.health import Conditions, Write
from shards.say import say

PERIOD: Final = 1.0  # seconds between two looks
STILL: Final = 3  # looks without a turn: a worker turns four times a second with nothing to do


class Pulse:
    """One node's processes under watch."""

    def __init__(self, shared: Columns, workers: int, write: Write = say) -> None:
        self._node: NDArray[Any] = shared["node"]
        self._rows: NDArray[Any] = shared["node_workers"]
        self._turns: Sequence[NDArray[np.int64]] = [
            statistics_row(shared["statistics"], index)[Counter.TURNS : Counter.TURNS + 1] for index in range(workers)
        ]
        self._seen = [(-1, -1)] * workers  # pid and turns at the last look
        self._due = 0.0
        self._conditions = [Conditions(f"worker {index}", write) for index in range(workers)]
        self._own = Conditions("control process", write)

    def beat(self) -> float:
        """Look, if it is time; returns the seconds until the next look."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + PERIOD
            self._node["pulse"] = time.monotonic_ns()
            for index in range(len(self._seen)):
                self._look(index)
            pid = int(self._node["control"][0])
            self._own.judge("stopped", stopped_text("its process", pid) if is_stopped(pid) else None)
        return max(0.0, self._due - now)

    def _look(self, index: int) -> None:
        row, judge = self._rows[index], self._conditions[index].judge
        pid, keeper, turns = int(row["pid"]), int(row["keeper"]), int(self._turns[index][0])
        runs = pid > 0 and pid == int(row["ready"])
        stands = runs and (pid, turns) == self._seen[index]
        self._seen[index] = pid, turns
        row["still"] = still = int(row["still"]) + 1 if stands else 0
        worker_stopped, keeper_stopped = is_stopped(pid), is_stopped(keeper)
        row["stopped"] = STOPPED_WORKER * worker_stopped | STOPPED_KEEPER * keeper_stopped
        judge("still", f"its loop stands still (process {pid})" if still >= STILL and not worker_stopped else None)
        judge("stopped", stopped_text("its process", pid) if worker_stopped else None)
        judge("keeper", stopped_text("its keeper", keeper) if keeper_stopped else None)


def stopped_text(who: str, pid: int) -> str:
    """The sentence about a stopped process."""
    return f"{who} {pid} was stopped by a signal; kill -CONT {pid} lets it go on"


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger stopped this process; False where it is gone or cannot be seen."""
    if pid <= 0:
        return False
    try:
        handle = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        state = os.read(handle, 256).rpartition(b")")[2].split()[:1]
    except OSError:
        return False
    finally:
        os.close(handle)
    return state in ([b"T"], [b"t"])

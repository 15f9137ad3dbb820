"""What `nyxctl status` says about the node's own processes: who does not answer, why as far as the supervisor knows, what to do.

Roles: the supervisor looks at its family and leaves what it saw in the node's memory; a supervisor that does not look any more
shows there too. What hinders a worker from within is its own to tell.
"""

import os
from collections.abc import Sequence
from typing import Final

from control.pages import Processes, WorkerLife
from nyx.stats import STOPPED_KEEPER, STOPPED_WORKER

PULSE_LATE: Final = 5_000_000_000  # ns; the supervisor looks every second


def warnings(table: Processes | None, silent: Sequence[int], now: int) -> list[str]:
    """Sentences about processes, for the operator. `silent` workers gave no answer; `now` is monotonic ns."""
    found = []
    for worker in silent:
        life = table.workers[worker] if table and worker < len(table.workers) else None
        found.append(f"worker {worker} does not answer{_why(life)}")
    for worker, life in enumerate(table.workers if table else ()):
        if life.stopped & STOPPED_KEEPER:
            found.append(
                f"the keeper of worker {worker} (process {life.keeper}) is stopped, so nobody starts the worker again if it "
                f"ends; kill -CONT {life.keeper} lets it go on"
            )
    if table and table.pulse and now - table.pulse > PULSE_LATE:
        pid, seconds = table.supervisor, (now - table.pulse) // 10**9
        found.append(
            f"the supervisor (process {pid}) has stood still for {seconds} s: nobody starts again what ends; "
            f"if a signal stopped it, kill -CONT {pid} lets it go on"
        )
    return found


def _why(life: WorkerLife | None) -> str:
    if life is None:
        return ""
    if life.stopped & STOPPED_WORKER:
        return f": its process {life.pid} was stopped by a signal; kill -CONT {life.pid} lets it go on"
    if life.unborn:
        return f": the system has no room for its process ({os.strerror(life.unborn)}); see ulimit -u and the memory limit"
    if life.pid and life.still:
        return f": its loop has stood still for {life.still} s (process {life.pid})"
    return ""

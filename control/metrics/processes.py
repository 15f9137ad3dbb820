"""CPU time, memory and descriptors of this node's own processes, from /proc.

A process that died meanwhile, or that may not be looked into, is left out rather than told as zero.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import psutil

from control.pages import Processes


class Usage(NamedTuple):
    """One process: its role, its worker's number or nothing, and what it uses; None where that is not to be had."""

    role: str
    worker: str
    restarts: int
    cpu: float | None = None  # seconds
    memory: int | None = None  # bytes
    descriptors: int | None = None


def usages(table: Processes) -> list[Usage]:
    """Every process of the table."""
    return [_measured(pid, usage) for pid, usage in _listed(table)]


def _listed(table: Processes) -> Iterator[tuple[int, Usage]]:
    yield table.supervisor, Usage("supervisor", "", 0)
    yield table.control, Usage("control", "", table.control_restarts)
    for number, life in enumerate(table.workers):
        yield life.keeper, Usage("keeper", str(number), 0)
        yield life.pid, Usage("worker", str(number), life.restarts)


def _measured(pid: int, usage: Usage) -> Usage:
    if not pid:
        return usage
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            usage = usage._replace(cpu=times.user + times.system, memory=process.memory_info().rss)
            with contextlib.suppress(psutil.AccessDenied):
                usage = usage._replace(descriptors=process.num_fds())
    except (psutil.Error, OSError):
        pass
    return usage

"""The supervisor's statistics and process tables, read from its memory; this process maps both read-only.

Layout: `nyx.stats`; the first page of each memfd holds a magic and the digest of the layout, which must be ours.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from nyx.columns import Column, Columns, layout_digest, offsets, view
from nyx.errors import InternalError
from nyx.stats import (
    COUNTERS,
    DATA_OFFSET,
    Histogram,
    Latency,
    latency_histogram,
    node_columns,
    statistics_columns,
    statistics_row,
)

_MAGIC: Final = b"nyx memory 1\n"  # shards/memory.py writes it


_LIFE: Final = ("pid", "restarts", "keeper", "still", "stopped", "unborn", "sealed", "keeper_sealed")


@dataclass(frozen=True, slots=True)
class WorkerLife:
    """What the supervisor knows of a worker; a pid of 0 means that it is not running."""

    pid: int
    restarts: int
    keeper: int = 0
    still: int = 0  # seconds for which its loop has not turned
    stopped: int = 0  # STOPPED_* of nyx.stats
    unborn: int = 0  # errno with which the system refused its last birth
    sealed: int = 0  # nyx.sealing.Seal
    keeper_sealed: int = 0


@dataclass(frozen=True, slots=True)
class Processes:
    """Who runs."""

    started: int
    supervisor: int
    control: int
    control_restarts: int
    upgrades: int
    pulse: int  # monotonic ns of the supervisor's last look; 0: none yet
    workers: tuple[WorkerLife, ...]
    sealed: int = 0  # nyx.sealing.Seal of the supervisor


class Pages:
    """Both memories; a descriptor of -1 stands for one that was not handed over: its part reads as unknown."""

    def __init__(self, statistics_fd: int, node_fd: int, workers: int) -> None:
        self._workers = workers
        self._statistics = map_columns(statistics_fd, statistics_columns(workers))
        self._node = map_columns(node_fd, node_columns(workers))

    def counters(self) -> list[dict[str, int]]:
        """Counters of each worker by name."""
        if self._statistics is None:
            return []
        rows = (statistics_row(self._statistics["statistics"], worker) for worker in range(self._workers))
        return [dict(zip(COUNTERS, map(int, np.array(row)), strict=True)) for row in rows]

    def latencies(self) -> dict[Latency, Histogram]:
        """Histograms of the whole node: the sums of its workers'."""
        found = {which: Histogram() for which in Latency}
        if self._statistics is not None:
            for which, histogram in found.items():
                for worker in range(self._workers):
                    histogram.words += latency_histogram(self._statistics["latencies"], worker, which).words
        return found

    def processes(self) -> Processes | None:
        """The process table, or None where it is unknown."""
        if self._node is None:
            return None
        node, workers = self._node["node"][0], self._node["node_workers"]
        return Processes(
            started=int(node["started"]),
            supervisor=int(node["supervisor"]),
            control=int(node["control"]),
            control_restarts=int(node["control_restarts"]),
            upgrades=int(node["upgrades"]),
            pulse=int(node["pulse"]),
            sealed=int(node["sealed"]),
            workers=tuple(WorkerLife(*(int(w[field]) for field in _LIFE)) for w in workers),
        )


def map_columns(fd: int, columns: Sequence[Column]) -> Columns | None:
    """The columns in the supervisor's memory, to read only; None for a descriptor of -1. Raises InternalError."""
    if fd < 0:
        return None
    size = DATA_OFFSET + offsets(columns)[1]
    if os.fstat(fd).st_size != size:
        raise InternalError(f"memory has {os.fstat(fd).st_size} bytes, these columns need {size}")
    memory = mmap.mmap(fd, size, prot=mmap.PROT_READ)
    header = _MAGIC + layout_digest(columns).encode()
    if memory[: len(header)] != header:
        raise InternalError("memory holds another layout of columns")
    return view(columns, memoryview(memory)[DATA_OFFSET:])

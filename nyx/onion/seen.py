"""Which builds a node has opened: the X of every record, exactly, until its age alone makes the record invalid.

Place on a packet's way: a build's last check. One set serves the whole node, since a repeated record can come over any link
and so to any worker: each worker appends what it opened to its own log in shared memory, and reads the others' before it asks.
A restarted worker reads all logs again, so lost memory reopens nothing. Two copies that two workers open within the same
microseconds can both pass.

Layout, for each worker: words of 8 bytes; head (entries ever written), then SIZE entries of 3 words: X[0:8], X[8:16], the second
until which it counts. An entry is visible once head is stored. Source: docs/protocol.md, "A hop's work" (X set).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column

KEPT: Final = 600  # seconds beyond `created`
SIZE: Final = 1 << 16  # entries of a log: 100 builds a second for 11 minutes; 1.5 MiB
_ENTRY: Final = 3
_WORDS: Final = 1 + SIZE * _ENTRY
_KEY: Final = 16  # bytes of X that are kept


def seen_columns(workers: int) -> list[Column]:
    """The logs of all workers."""
    return [Column("builds_seen", np.dtype(np.uint64), workers * _WORDS)]


class BuildReplay:
    """One worker's view of the node's set."""

    def __init__(self, words: NDArray[np.uint64], me: int) -> None:
        self._logs = words.reshape(-1, _WORDS)
        self._me = me
        self._read = [max(0, int(log[0]) - SIZE) for log in self._logs]
        self._until: dict[bytes, int] = {}
        self._swept = 0
        for worker in range(len(self._logs)):
            self._follow(worker)

    def __repr__(self) -> str:
        return f"BuildReplay(entries={len(self._until)})"

    def _follow(self, worker: int) -> None:
        """Read what a log has that we have not. What was overwritten before we read it had become invalid by age."""
        log, head = self._logs[worker], int(self._logs[worker][0])
        for number in range(max(self._read[worker], head - SIZE), head):
            at = 1 + number % SIZE * _ENTRY
            self._until[log[at : at + 2].tobytes()] = int(log[at + 2])
        self._read[worker] = head

    def seen(self, x: bytes, created: int, wall: int) -> bool:
        """Whether this X was here before, or may have been; remembers it if not."""
        for worker in range(len(self._logs)):
            self._follow(worker)
        self._sweep(wall)
        key, log = bytes(x[:_KEY]), self._logs[self._me]
        head = int(log[0])
        oldest = int(log[1 + head % SIZE * _ENTRY + 2])
        if key in self._until or (head >= SIZE and oldest >= wall):
            return True  # a full log counts as seen: nothing that still matters is overwritten
        at = 1 + head % SIZE * _ENTRY
        log[at : at + 2] = np.frombuffer(key, np.uint64)
        log[at + 2] = self._until[key] = created + KEPT
        log[0] = head + 1
        self._read[self._me] = head + 1
        return False

    def used(self, wall: int) -> float:
        """Which part of our own log cannot be written over yet."""
        until = self._logs[self._me][3::_ENTRY]
        return float(np.count_nonzero(until >= np.uint64(max(wall, 0)))) / SIZE

    def _sweep(self, wall: int) -> None:
        if wall < self._swept:  # the clock was set back: what was forgotten by the time before counts again
            self._swept = wall
            self._read = [0] * len(self._logs)
            for worker in range(len(self._logs)):
                self._follow(worker)
        if wall - self._swept >= KEPT:
            self._swept = wall
            self._until = {key: until for key, until in self._until.items() if until >= wall}

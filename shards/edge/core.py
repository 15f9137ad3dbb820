"""What both sides of the edge share: the tables and pumps of one worker, its counters, and deadlines."""

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from nyx.stats import REFUSALS, Histogram
from shards.edge import table as edge
from shards.edge.contract import NEVER, Epoll, Streams, Words
from shards.edge.pumps import Pumps
from shards.edge.reasons import Reason
from shards.edge.table import EdgeTable, Failure

NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(slots=True)
class Core:
    """One worker's edge, as its two sides see it."""

    epoll: Epoll
    streams: Streams
    table: EdgeTable
    pumps: Pumps
    counters: Counter[str] = field(default_factory=Counter)
    refusals: Words = field(default_factory=lambda: np.zeros(len(REFUSALS), np.int64))  # by Reason - 1, not yet in the statistics
    opening: Histogram = field(default_factory=Histogram)  # how long own streams took to open, not yet in the statistics

    def refused(self, reason: Reason) -> None:
        """Count a request or stream that ends before it stood."""
        if reason is not Reason.NONE:
            self.refusals[reason - 1] += 1

    def give_up(self, row: int, reason: Reason, now: int, *, tell: bool = True) -> None:
        """End a stream that never got its socket, or lost it while being opened."""
        self.table.fail(row, reason, now)
        if tell:
            self.streams.stop(row, reason.facts.code)
            self.streams.reset(row, reason.facts.code)
        self.table.move(row, edge.CLOSING)

    def note(self, side: int, target: str, reason: Reason, now: int) -> None:
        """Keep a failure that never had a stream."""
        self.table.failures.append(Failure(side, target, reason, now))


class Deadlines:
    """When each of a set of descriptors or rows is given up. The next one is known without a search, never too late."""

    def __init__(self) -> None:
        self._at: dict[int, int] = {}
        self.next = NEVER  # ns; not later than the earliest deadline

    def set(self, key: int, at: int) -> None:
        """Give the key a deadline in place of what it had."""
        self._at[key] = at
        self.next = min(self.next, at)

    def clear(self, key: int) -> None:
        """The key has none any more; harmless if it had none."""
        self._at.pop(key, None)
        if not self._at:
            self.next = NEVER

    def expired(self, now: int) -> list[int]:
        """Keys whose time has come, oldest first; they have no deadline afterwards."""
        if now < self.next:
            return []
        gone = sorted((at, key) for key, at in self._at.items() if at <= now)
        for _, key in gone:
            del self._at[key]
        self.next = min(self._at.values(), default=NEVER)
        return [key for _, key in gone]

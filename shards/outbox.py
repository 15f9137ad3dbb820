"""Packets on their way out: written, grouped by session, sealed, handed to the kernel; what a full socket refuses waits here.

Place on a packet's way: the last steps, link seal and send. Packets are sealed once, in the order in which they leave, so a
packet number never goes back; a packet that the kernel has not taken keeps its seal and is tried again.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Columns
from shards.kernels.turn import QUEUE_WORDS, QUEUED, SEALED, seal_queue, sent_off
from shards.pool import Pool
from shards.udp import Udp

Slots = NDArray[np.int64]

CAPACITY: Final = 4096  # packets waiting for their seal in one turn; more than a turn can make


class Outbox:
    """The queue from a worker's kernels to its socket.

    `slots`, `rows`: packet slot and session row of queue[QUEUED] packets that are not sealed yet; kernels append there.
    `sealed_slots`, `sealed_rows`: the same of queue[SEALED] packets that the socket has not taken.
    """

    def __init__(self, columns: Columns, pool: Pool, udp: Udp, scratch: NDArray[np.uint8]) -> None:
        self._sessions: NDArray[Any] = columns["sessions"]
        self._pool = pool
        self._udp = udp
        self._scratch = scratch
        self.slots: Slots = np.zeros(CAPACITY, np.int64)
        self.rows: Slots = np.zeros(CAPACITY, np.int64)
        self.queue: Slots = np.zeros(QUEUE_WORDS, np.int64)
        self.spare_slots: Slots = np.zeros(CAPACITY, np.int64)
        self.spare_rows: Slots = np.zeros(CAPACITY, np.int64)
        self.sealed_slots: Slots = np.zeros(pool.count, np.int64)
        self.sealed_rows: Slots = np.zeros(pool.count, np.int64)

    @property
    def n(self) -> int:
        """Packets that are not sealed yet."""
        return int(self.queue[QUEUED])

    @n.setter
    def n(self, count: int) -> None:
        self.queue[QUEUED] = count

    @property
    def blocked(self) -> bool:
        """Whether sealed packets wait for the socket."""
        return bool(self.queue[SEALED])

    @property
    def room(self) -> int:
        """How many packets more fit before the next flush."""
        return CAPACITY - self.n

    def add(self, slot: int, row: int) -> None:
        """Queue one packet whose header bytes 12-15 and payload are written."""
        n = self.n
        self.slots[n] = slot
        self.rows[n] = row
        self.n = n + 1

    def flush(self, now: int) -> int:
        """Seal what is new and send what the socket takes; returns packets sent."""
        pool, queue = self._pool, self.queue
        if not queue.any():
            return 0
        waiting = seal_queue(
            pool.packets, pool.free, pool.state, self.slots, self.rows, self.spare_slots, self.spare_rows, self.sealed_slots,
            self.sealed_rows, queue, self._sessions, now, self._scratch,
        )  # fmt: skip
        if not waiting:
            return 0
        taken = self._udp.send(self.sealed_slots, self.sealed_rows, int(waiting), self._sessions)
        sent_off(pool.free, pool.state, self.sealed_slots, self.sealed_rows, queue, taken)
        return taken

    def forget(self, row: int) -> None:
        """A session is over: what is sealed and waits for the socket would follow its row to another link's address."""
        sealed = int(self.queue[SEALED])
        waiting = self.sealed_rows[:sealed] == row
        if not waiting.any():
            return
        self._pool.give(self.sealed_slots[:sealed][waiting])
        left = int((~waiting).sum())
        self.sealed_slots[:left] = self.sealed_slots[:sealed][~waiting]
        self.sealed_rows[:left] = self.sealed_rows[:sealed][~waiting]
        self.queue[SEALED] = left

"""Packets on their way out: written, grouped by session, sealed, handed to the kernel; what a full socket refuses waits here.

Place on a packet's way: the last steps, link seal and send. Packets are sealed once, in the order in which they leave, so a
packet number never goes back; a packet that the kernel has not taken keeps its seal and is tried again.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Columns
from nyx.link.seal import seal_packets
from nyx.wire.geometry import CID_SIZE, PACKET_SIZE
from shards.kernels.route import group_by_session
from shards.pool import Pool
from shards.udp import Udp

Slots = NDArray[np.int64]

CAPACITY: Final = 4096  # packets waiting for their seal in one turn; more than a turn can make


class Outbox:
    """The queue from a worker's kernels to its socket.

    `slots`, `rows`: packet slot and session row of `n` packets that are not sealed yet; kernels append at `n`. The rest of the
    state is packets sealed but not taken by the socket.
    """

    def __init__(self, columns: Columns, pool: Pool, udp: Udp, scratch: NDArray[np.uint8]) -> None:
        self._sessions: NDArray[Any] = columns["sessions"]
        self._pool = pool
        self._udp = udp
        self._scratch = scratch
        self.slots: Slots = np.zeros(CAPACITY, np.int64)
        self.rows: Slots = np.zeros(CAPACITY, np.int64)
        self.n = 0
        self._spare_slots: Slots = np.zeros(CAPACITY, np.int64)
        self._spare_rows: Slots = np.zeros(CAPACITY, np.int64)
        self._sealed_slots: Slots = np.zeros(pool.count, np.int64)
        self._sealed_rows: Slots = np.zeros(pool.count, np.int64)
        self._sealed = 0

    @property
    def blocked(self) -> bool:
        """Whether sealed packets wait for the socket."""
        return self._sealed > 0

    @property
    def room(self) -> int:
        """How many packets more fit before the next flush."""
        return CAPACITY - self.n

    def add(self, slot: int, row: int) -> None:
        """Queue one packet whose header bytes 12-15 and payload are written."""
        self.slots[self.n] = slot
        self.rows[self.n] = row
        self.n += 1

    def flush(self, now: int) -> int:
        """Seal what is new and send what the socket takes; returns packets sent."""
        if self.n:
            if self.n > 1:
                group_by_session(self.slots, self.rows, self.n, self._spare_slots, self._spare_rows)
            if seal_packets(self._pool.packets, self.slots, self.rows, self.n, self._sessions, now, self._scratch):
                self._drop_wiped()
            end = self._sealed + self.n
            self._sealed_slots[self._sealed : end] = self.slots[: self.n]
            self._sealed_rows[self._sealed : end] = self.rows[: self.n]
            self._sealed = end
            self.n = 0
        return self._send() if self._sealed else 0

    def forget(self, row: int) -> None:
        """A session is over: what is sealed and waits for the socket would follow its row to another link's address."""
        waiting = self._sealed_rows[: self._sealed] == row
        if not waiting.any():
            return
        self._pool.give(self._sealed_slots[: self._sealed][waiting])
        left = int((~waiting).sum())
        self._sealed_slots[:left] = self._sealed_slots[: self._sealed][~waiting]
        self._sealed_rows[:left] = self._sealed_rows[: self._sealed][~waiting]
        self._sealed = left

    def _drop_wiped(self) -> None:
        """Packets whose session ended under them were wiped instead of sealed: they are all zero, and never leave."""
        packets = self._pool.packets.reshape(-1, PACKET_SIZE)
        kept = packets[self.slots[: self.n], :CID_SIZE].any(axis=1)
        self._pool.give(self.slots[: self.n][~kept].copy())
        left = int(kept.sum())
        self.slots[:left] = self.slots[: self.n][kept]
        self.rows[:left] = self.rows[: self.n][kept]
        self.n = left

    def _send(self) -> int:
        taken = self._udp.send(self._sealed_slots, self._sealed_rows, self._sealed, self._sessions)
        if taken:
            self._pool.give(self._sealed_slots[:taken])
            left = self._sealed - taken
            if left:
                self._sealed_slots[:left] = self._sealed_slots[taken : self._sealed].copy()
                self._sealed_rows[:left] = self._sealed_rows[taken : self._sealed].copy()
            self._sealed = left
        return taken

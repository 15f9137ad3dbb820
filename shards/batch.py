"""One worker's packet path: from its socket to relayed packets and opened cells, and from opened cells to packets.

Place on a packet's way: all of it between the socket and the streams. Every step is one kernel call for the whole batch; the
order of the calls is the order of docs/architecture.md, "A packet's day". What is not a data cell (link frames, builds,
answers, packets of strangers) is handed to Python, one at a time: those are rare.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Columns
from nyx.crypto.scratch import new_scratch
from nyx.stats import Counter
from nyx.wire.codes import Drop
from nyx.wire.geometry import (
    CID_SIZE,
    LINK_PAYLOAD_SIZE,
    PACKET_LENGTH,
    PACKET_NUMBER,
    PACKET_PATH,
    PACKET_PAYLOAD,
    PACKET_SIZE,
    PACKET_TYPE,
)
from shards import messages
from shards.kernels.cells import COUNT_DONE, COUNT_ENDED, COUNT_MOVED, COUNT_OUT, wrap_cells
from shards.kernels.strangers import INITIATION, STRANGER
from shards.kernels.turn import (
    ATTEND,
    COUNT_CONTROL,
    COUNT_STRANGE,
    COUNTS,
    DEADLINE,
    EPOLL,
    LEAST,
    MOVES,
    NOW,
    READY,
    RECEIVED,
    RELAYED,
    SOCKET,
    TURN_WORDS,
    TURNS,
    open_batch,
    relay_turns,
)
from shards.outbox import Outbox
from shards.poller import Poller
from shards.pool import Pool
from shards.ring import KIND_SHIFT, SLOT_MASK, Rings
from shards.steer import worker_of
from shards.tables import Table
from shards.udp import BATCH, Udp

Words = NDArray[np.int64]
Sift = Callable[[Words, Words, int, Words, bool, int], int]  # slots, rows, n, done, fresh, now: how many dropped


class Control(NamedTuple):
    """A packet of a live session that is not a data cell: session row, header bytes 12 and 13, low packet number, 1228 bytes."""

    row: int
    header: int
    path: int
    number: int
    payload: bytes


class Stranger(NamedTuple):
    """A packet whose CID names no session: its 1280 bytes, the raw address it came from, whether it passed as an initiation."""

    packet: bytes
    source: bytes
    initiation: bool


def _no_sift(_slots: Any, _rows: Any, _n: int, _done: Any, _fresh: bool, _now: int) -> int:
    return 0


class Batch:
    """The vectors of one batch and the kernel calls over them. `drops` counts by `Drop` code."""

    def __init__(
        self,
        columns: Columns,
        pool: Pool,
        udp: Udp,
        rings: Rings,
        multiplier: int,
        sessions: Table,
        circuits: Table,
        connections: int,
        statistics: Words,
    ) -> None:
        self._columns = columns
        self._pool = pool
        self.udp = udp
        self._rings = rings
        self._multiplier = multiplier
        self._sessions = sessions
        self._circuits = circuits
        self.scratch: NDArray[np.uint8] = new_scratch()
        self.outbox = Outbox(columns, pool, udp, self.scratch)
        self.sift: Sift = _no_sift
        self.drops: Words = np.zeros(len(Drop), np.int64)
        self.statistics = statistics
        self.circuit_of: Words = np.zeros(connections, np.int64)  # connection row -> circuit row + 1
        self.frames: Words = np.zeros(BATCH, np.int64)
        self.connections: Words = np.zeros(BATCH, np.int64)
        self.sequences: Words = np.zeros(BATCH, np.int64)
        self.gap = 0  # ms, of the layer ratchet: see `shards.ratchet`
        self.ended = 0
        self.relayed = self.handed_over = self.taken_over = self.ring_full = 0
        self._slots = udp.slots
        self._messages: list[dict[str, Any]] = []
        self._handed: Words = np.zeros(BATCH, np.int64)
        self._rows: Words = np.zeros(BATCH, np.int64)
        self._codes: Words = np.zeros(BATCH, np.int64)
        self._cells: Words = np.zeros(BATCH, np.int64)
        self._places: Words = np.zeros(BATCH, np.int64)
        self._values: Words = np.zeros(BATCH, np.int64)
        self._control: Words = np.zeros(BATCH, np.int64)
        self._done: Words = np.zeros(2 * BATCH, np.int64)
        self._sifted: Words = np.zeros(BATCH, np.int64)
        self._counts: Words = np.zeros(COUNTS, np.int64)
        self.turn: Words = np.zeros(TURN_WORDS, np.int64)
        self.received = 0
        self._n = self._strange = 0
        self._n_control = 0
        self._wrapped: Words = np.zeros(BATCH, np.int64)

    # ------------------------------------------------------------ inwards

    def receive(self, now: int) -> int:
        """Receive, open and sort what waits; relay what is to be relayed. Returns packets received.

        Afterwards `frames`, `connections`, `sequences`[:ended] are the opened cells, `control()` and `strangers()` the rest;
        the caller reads them all, then calls `release`.
        """
        self._slots = self.udp.slots
        return self._open(self.udp.receive(), now)

    def take_over(self, now: int) -> int:
        """The same with packets that other workers received for this one. Their strangers have no address and are dropped."""
        pool, rings, n = self._pool, self._rings, 0
        rings.reclaim(pool)
        for other in rings.others:
            for k in range(rings.take(other, BATCH - n)):
                descriptor = int(rings.taken[k])
                at = (descriptor & SLOT_MASK) * PACKET_SIZE
                packet = pool.packets[at : at + PACKET_SIZE]
                if descriptor >> KIND_SHIFT == messages.KIND_MESSAGE:
                    self._messages.append(messages.decode(packet.tobytes()))
                    packet[:] = 0
                elif len(slot := pool.take(1)):
                    mine = int(slot[0]) * PACKET_SIZE
                    pool.packets[mine : mine + PACKET_SIZE] = packet
                    self._handed[n] = slot[0]
                    n += 1
            rings.done(other)
        self.taken_over += n
        self._slots = self._handed
        return self._open(n, now)

    def _open(self, n: int, now: int) -> int:
        self._n = n
        self._counts[:] = 0
        if n:
            pool = self._pool
            open_batch(pool.packets, pool.free, pool.state, self._slots, n, now, *self._tables())
            self.relayed += int(self._counts[COUNT_OUT])
            self.statistics[Counter.LAYER_MOVES] += int(self._counts[COUNT_MOVED])
        self._take_note(now)
        return n

    def _tables(self) -> tuple[Any, ...]:
        """What `open_batch` works on, from the lookup of sessions on."""
        columns, sessions, circuits, out = self._columns, self._sessions, self._circuits, self.outbox
        return (
            sessions.keys, sessions.values, sessions.multiplier, columns["sessions"], columns["session_windows"], self._rows,
            self._codes, circuits.keys, circuits.values, circuits.multiplier, self.gap, columns["circuits"],
            columns["layer_epochs"], columns["layer_keys"], columns["cell_windows"], columns["filter"], columns["filter_table"],
            self.scratch, self._cells, self._control, self._places, self._values, out.slots, out.rows, out.queue, self.frames,
            self.connections, self.sequences, self._done, self._counts, self.drops,
        )  # fmt: skip

    def _take_note(self, now: int) -> None:
        """What an opened batch holds for Python."""
        self.ended = int(self._counts[COUNT_ENDED])
        self._n_control = int(self._counts[COUNT_CONTROL])
        self._strange = 0
        if self._counts[COUNT_STRANGE]:
            self._sift(self._n, now)

    def relay(self, poller: Poller, deadline: int, attend: int, least: int) -> int:
        """Wait until `deadline` and pass cells on meanwhile, until `attend` once any came, or until something else is there.

        Returns how many descriptors are ready; `received` packets are opened then, as after `receive`. `least` slots must be
        free. For a node with one worker: nobody hands anything over meanwhile.
        """
        t, pool, udp, out, sessions = self.turn, self._pool, self.udp, self.outbox, self._columns["sessions"]
        t[EPOLL], t[SOCKET], t[DEADLINE], t[ATTEND], t[LEAST] = poller.fileno(), udp.fileno(), deadline, attend, least
        before, moves, self._slots = int(t[RELAYED]), int(t[MOVES]), udp.slots
        everything: tuple[Any, ...] = (
            t, poller.state, poller.raw, poller.fds, poller.events, pool.packets, pool.free, pool.state, udp.receiving,
            udp.sources, udp.slots, udp.origins, udp.counters, *self._tables(), out.spare_slots, out.spare_rows,
            out.sealed_slots, out.sealed_rows, udp.sending, *udp.addresses_of(sessions),
        )  # fmt: skip
        while poller.failed(relay_turns(*everything)):
            pass
        self.relayed += int(t[RELAYED]) - before
        self.statistics[Counter.LAYER_MOVES] += int(t[MOVES]) - moves
        self.received = self._n = int(t[RECEIVED])
        if self.received:
            self._take_note(int(t[NOW]))
        return int(t[READY])

    def _sift(self, n: int, now: int) -> None:
        """Drop the strangers' packets that are nothing for us; what other workers received has no address to answer to."""
        dropped = self.sift(self._slots, self._rows, n, self._sifted, self._slots is self.udp.slots, now)
        self._pool.give(self._sifted[:dropped])
        rows = self._rows[:n]
        self._strange = int(((rows == STRANGER) | (rows == INITIATION)).sum())

    @property
    def turns(self) -> int:
        """Turns that passed in `relay` alone."""
        return int(self.turn[TURNS])

    @property
    def rare(self) -> bool:
        """Whether `strangers` or `control` have anything."""
        return self._n_control > 0 or self._strange > 0

    def control(self) -> Iterator[Control]:
        """The packets that carry link frames, builds or answers; each slot is given back as it is read."""
        packets, slots = self._pool.packets, self._slots
        for k in range(self._n_control):
            i = int(self._control[k])
            at = int(slots[i]) * PACKET_SIZE
            body = packets[at + PACKET_PAYLOAD : at + PACKET_PAYLOAD + LINK_PAYLOAD_SIZE].tobytes()
            number = int.from_bytes(packets[at + PACKET_NUMBER : at + PACKET_PAYLOAD].tobytes(), "big")
            found = Control(int(self._rows[i]), int(packets[at + PACKET_TYPE]), int(packets[at + PACKET_PATH]), number, body)
            self._pool.give(slots[i : i + 1])
            yield found

    def strangers(self) -> Iterator[Stranger]:
        """The packets of unknown CIDs; each slot is given back as it is read, or handed to the worker whom the CID names."""
        if self._strange == 0:
            return
        packets, slots = self._pool.packets, self._slots
        rows = self._rows[: self._n]
        for i in np.flatnonzero((rows == STRANGER) | (rows == INITIATION)):
            at = int(slots[i]) * PACKET_SIZE
            owner = worker_of(packets[at : at + CID_SIZE].tobytes(), self._multiplier, self._rings.workers)
            if owner == self._rings.me and slots is self.udp.slots:
                initiation = int(rows[i]) == INITIATION
                found = Stranger(packets[at : at + PACKET_SIZE].tobytes(), self.udp.source(int(i)), initiation)
                self._pool.give(slots[i : i + 1])
                yield found
            elif owner == self._rings.me:
                self.drops[Drop.UNKNOWN_CID] += 1
                self._pool.give(slots[i : i + 1])
            elif self._rings.push(owner, slots[i : i + 1], 1):
                self.handed_over += 1
            else:
                self.ring_full += 1
                self._pool.give(slots[i : i + 1])

    def release(self) -> None:
        """Give back the slots of cells that ended here or went no further."""
        done = int(self._counts[COUNT_DONE])
        if done:
            self._pool.give(self._done[:done])
            self._counts[COUNT_DONE] = 0

    # ------------------------------------------------------------ outwards

    def wrap(self, slots: Words, connections: Words, n: int, now: int) -> None:
        """Put the onion on n opened cells that streams wrote into `slots`, and queue them."""
        columns, out = self._columns, self.outbox
        wrap_cells(
            self._pool.packets, slots, connections, n, self.circuit_of, columns["circuits"], columns["layer_epochs"],
            columns["layer_keys"], self.scratch, now, self._wrapped,
        )  # fmt: skip
        slots, rows = slots[:n], self._wrapped[:n]
        if (lost := rows < 0).any():  # no circuit: they go nowhere
            self._pool.give(slots[lost])
            slots, rows, n = slots[~lost], rows[~lost], n - int(lost.sum())
        out.slots[out.n : out.n + n] = slots
        out.rows[out.n : out.n + n] = rows
        out.n += n

    @property
    def may_send_control(self) -> bool:
        """Whether one more packet can be queued."""
        return self._pool.free_count > 0 and self.outbox.room > 0

    def send_control(self, row: int, header: int, path: int, payload: bytes) -> None:
        """Queue one packet that is not a data cell; only while `may_send_control`."""
        slot = int(self._pool.take(1)[0])
        at = slot * PACKET_SIZE
        packet: NDArray[Any] = self._pool.packets[at : at + PACKET_SIZE]
        packet[PACKET_TYPE] = header
        packet[PACKET_PATH] = path
        packet[PACKET_LENGTH] = LINK_PAYLOAD_SIZE >> 8
        packet[PACKET_LENGTH + 1] = LINK_PAYLOAD_SIZE & 0xFF
        packet[PACKET_PAYLOAD : PACKET_PAYLOAD + LINK_PAYLOAD_SIZE] = np.frombuffer(payload, np.uint8)
        self.outbox.add(slot, row)

    # ------------------------------------------------------------ other workers

    def post(self, worker: int, message: dict[str, Any]) -> bool:
        """Tell another worker of this node something; False when its ring or our pool is full."""
        slot = self._pool.take(1)
        if not len(slot):
            return False
        at, body = int(slot[0]) * PACKET_SIZE, messages.encode(message)
        self._pool.packets[at : at + len(body)] = np.frombuffer(body, np.uint8)
        descriptor = np.array([int(slot[0]) | messages.KIND_MESSAGE << KIND_SHIFT], np.int64)
        if self._rings.push(worker, descriptor, 1):
            return True
        self._pool.packets[at : at + len(body)] = 0  # it may hold secrets
        self._pool.give(slot)
        return False

    def messages(self) -> list[dict[str, Any]]:
        """What other workers told us since the last call."""
        found, self._messages = self._messages, []
        return found

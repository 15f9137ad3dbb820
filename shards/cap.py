"""The memory cap of a node: how much a worker may hold, and what goes when it would hold more.

Place on a packet's way: none; looked at every few milliseconds, from numbers of the kernel. `limits.memory` is what all processes
of the node may hold together. A worker has its part of it for shared memory: packets in work, sessions, circuits, connections,
and above all the rings of streams, which hold what the network or an application does not take. Pending builds and handshakes
are in its private part, which is measured and taken off.

    above 7/8 of the room   pages that hold nothing are given back: of rows that are free, and of rings outside what is queued
    above the room          the stream with the oldest queued byte ends, and so on until 7/8: with its circuit, if that is
                            another's and has moved nothing for a second
    at any time             a circuit of others that holds a quarter of the room, with a byte that old, ends

Who reads moves his oldest byte at each round trip; who does not read, or does not acknowledge, has the oldest. Ages are
derived: a new life counts them from its start. A circuit ends with DESTROY (3, resources), a stream with LIMIT.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Columns
from nyx.crypto.replay import WINDOW_WORDS as SESSION_WINDOW
from nyx.link.session import SESSION_FREE
from nyx.stats import Counter
from nyx.stream.columns import FLIGHT, FREE, IDS, LIVE, WAITING
from nyx.stream.engine import Streams
from shards import tables
from shards.context import WorkerContext
from shards.footprint import PAGE, Footprint, give_back, give_back_rows, machine_memory, take_in

MIB: Final = 1 << 20
SECOND: Final = 1_000_000_000
LOOK: Final = SECOND // 200  # between two looks at what is held: 2 MiB at 3 Gbps
AGES: Final = SECOND // 4  # between two looks at which queues moved
MEASURE: Final = 10 * SECOND  # between two looks at the private part
SWEEP: Final = SECOND // 20  # between two sweeps, which take some milliseconds, and twice as long after one that gave little
SWEEP_MOST: Final = 2 * SECOND
OTHERS: Final = 72 * MIB  # supervisor and control process
KEEPER: Final = 20 * MIB
ROOM_LEAST: Final = 16 * MIB  # of a worker, whatever the cap is: less serves nobody
OLD: Final = SECOND  # a circuit none of whose queues has moved for so long reads nothing
MOTION: Final = SECOND // 4  # a queue that moved since then is in motion, and never ended
SMALL: Final = 64 << 10  # a stream that holds less frees nothing worth its end
VICTIMS: Final = 16  # of one look
REMEMBERED: Final = 60 * SECOND  # how long the warning stands after the last end
NEVER: Final = 1 << 62

Marks = NDArray[np.bool_]
Words = NDArray[np.int64]
EndCircuit = Callable[[int], None]  # of a connection
EndStream = Callable[[int, int], None]  # row, now


def cap_bytes(wanted: int) -> int:
    """`limits.memory` in bytes; 0 is a quarter of the machine."""
    return wanted * MIB if wanted else machine_memory() // 4


class Cap:
    """One worker's part of the cap."""

    def __init__(
        self, context: WorkerContext, streams: Streams, end_circuit: EndCircuit, end_stream: EndStream, statistics: Words
    ) -> None:
        self._context = context
        self._columns: Columns = context.columns
        self._streams = streams
        self._rows: NDArray[Any] = streams.streams
        self._end_circuit = end_circuit
        self._end_stream = end_stream
        self._statistics = statistics
        self._footprint = Footprint()
        self._private = self._footprint.private()
        self._due = self._sweep_due = self._ages_due = self._warned = 0
        self._sweep_gap = SWEEP
        self._measure_due = MEASURE
        count = len(self._rows)
        self._born: Words = np.zeros(count, np.int64)
        self._base: Words = np.zeros(count, np.int64)
        self._tail: Words = np.zeros(count, np.int64)
        self._since_tx: Words = np.zeros(count, np.int64)
        self._since_rx: Words = np.zeros(count, np.int64)

    # ---------------------------------------------------------------- figures

    @property
    def total(self) -> int:
        """Bytes that the whole node may hold."""
        return cap_bytes(self._context.config.limits.memory)

    @property
    def room(self) -> int:
        """Bytes of shared memory that this worker may hold."""
        workers = self._context.workers
        return max((self.total - OTHERS) // workers - KEEPER - self._private, ROOM_LEAST)

    @property
    def held(self) -> int:
        """Bytes of shared memory that it holds."""
        return self._footprint.shared()

    @property
    def due(self) -> int:
        """When the next look is due, monotonic ns."""
        return self._due

    @property
    def account(self) -> int:
        """Bytes of the node that count as this worker's: with its keeper and its part of the others."""
        return self.held + self._private + KEEPER + OTHERS // self._context.workers

    def trouble(self, now: int) -> str | None:
        """What is wrong, as a sentence for the operator."""
        cap = self.total // MIB
        if now < self._warned:
            return f"the cap on memory, limits.memory = {cap} MiB, was reached: what waited longest for its reader was ended"
        if self.room <= ROOM_LEAST:
            return f"limits.memory = {cap} MiB leaves each worker {ROOM_LEAST // MIB} MiB: raise it, or lower workers.count"
        return None

    # ---------------------------------------------------------------- looks

    def begin(self, now: int) -> None:
        """A new life: what the last one left and nobody needs goes back, and what is queued counts at once."""
        self._note_ages(now)
        self._sweep(len(self._rows))
        tx, rx = self._queued(self._streams.top)
        for column, first, queued in (("stream_tx", "tx_base", tx), ("stream_rx", "rx_tail", rx)):
            for row in np.flatnonzero(queued).tolist():
                for part in self._parts(column, row, int(self._rows[row][first]), int(queued[row])):
                    take_in(part)

    def look(self, now: int) -> bool:
        """Keep what is held within the room; whether something had to end."""
        if now < self._due:
            return False
        self._due = now + LOOK
        if now >= self._measure_due:
            self._measure_due = now + MEASURE
            self._private = self._footprint.private()
        held, room, ended = self.held, self.room, 0
        if now >= self._ages_due or held > room:
            self._ages_due = now + AGES
            self._note_ages(now)
            ended = self._end_hoards(now, room // 4)
        if held > room - room // 8 and (now >= self._sweep_due or held > room):
            held = self._reclaim(now, held, room)
        if held > room:
            ended += self._end_oldest(now, held - (room - room // 8))
            self._reclaim(now, held, room)
        if ended:
            self._warned = now + REMEMBERED
        return ended > 0

    def _reclaim(self, now: int, held: int, room: int) -> int:
        """Sweep; what is held then."""
        self._sweep(self._streams.top)
        left = self.held
        self._sweep_gap = SWEEP if held - left > room // 32 else min(2 * self._sweep_gap, SWEEP_MOST)
        self._sweep_due = now + self._sweep_gap
        return left

    def _queued(self, top: int) -> tuple[Words, Words]:
        """Bytes that each row must keep in its rings."""
        rows = self._rows[:top]
        dead = (rows["state"] == FREE) | (rows["failed"] != 0)
        tx = np.where(dead | (rows["reset_state"] != 0), 0, rows["tx_head"] - rows["tx_base"])
        deaf = dead | (rows["rx_stop"] != 0) | (rows["released"] != 0)
        rx = np.where(deaf, 0, np.maximum(rows["rx_held"], rows["rx_ready"]) - rows["rx_tail"])
        return tx, rx

    def _note_ages(self, now: int) -> None:
        """Since when the first byte of each queue is the same."""
        top = self._streams.top
        tx, rx = self._queued(top)
        rows, new = self._rows[:top], self._rows["born"][:top] != self._born[:top]
        for since, seen, queued, word in (
            (self._since_tx, self._base, tx, "tx_base"),
            (self._since_rx, self._tail, rx, "rx_tail"),
        ):
            moved = new | (queued == 0) | (rows[word] != seen[:top])
            since[:top][moved] = now
            seen[:top] = rows[word]
        self._born[:top] = rows["born"]

    def _ages(self) -> tuple[Words, Words]:
        """Of each row: bytes queued, and since when the oldest of them waits."""
        tx, rx = self._queued(self._streams.top)
        top = len(tx)
        return tx + rx, np.minimum(np.where(tx > 0, self._since_tx[:top], NEVER), np.where(rx > 0, self._since_rx[:top], NEVER))

    # ---------------------------------------------------------------- ends

    def _by_connection(self, queued: Words, since: Words, which: "np.ufunc") -> tuple[Words, Words]:
        """Of each connection: bytes queued, and since when its oldest (np.minimum) or newest (np.maximum) queue waits."""
        owner, count = self._rows["connection"][: len(queued)], len(self._streams.connections)
        found = np.full(count, NEVER if which is np.minimum else 0)
        which.at(found, owner, since)
        return np.bincount(owner, queued, count).astype(np.int64), found

    def _end_hoards(self, now: int, share: int) -> int:
        """End circuits of others that hold more than a share while a byte of theirs has waited long; how many."""
        queued, oldest = self._ages()
        sums, first = self._by_connection(queued, oldest, np.minimum)
        connections = self._streams.connections
        over = (sums > share) & (first <= now - OLD) & (connections["client"] == 0) & (connections["state"] == LIVE)
        found = sorted(np.flatnonzero(over).tolist(), key=first.__getitem__)[:VICTIMS]
        for connection in found:
            self._end_circuit(connection)
            self._statistics[Counter.CIRCUITS_EVICTED] += 1
        return len(found)

    def _end_oldest(self, now: int, wanted: int) -> int:
        """End what holds the oldest bytes until so much is free; how many things ended.

        A circuit of others that moves nothing ends whole; of one that moves, and of our own, the stream.
        """
        queued, oldest = self._ages()
        sums, last = self._by_connection(queued, np.where(queued > 0, oldest, 0), np.maximum)
        connections, ended, freed, gone = self._streams.connections, 0, 0, set()
        stalled = (connections["client"] == 0) & (connections["state"] == LIVE) & (last <= now - OLD)
        old = np.flatnonzero((queued >= SMALL) & (oldest <= now - MOTION)).tolist()
        for row in sorted(old, key=oldest.__getitem__):
            connection = int(self._rows[row]["connection"])
            if freed >= wanted or ended >= VICTIMS:
                break
            if connection in gone:
                continue
            if stalled[connection]:
                gone.add(connection)
                freed += int(sums[connection])
                self._end_circuit(connection)
                self._statistics[Counter.CIRCUITS_EVICTED] += 1
            else:
                freed += int(queued[row])
                self._end_stream(row, now)
                self._statistics[Counter.STREAMS_EVICTED] += 1
            ended += 1
        return ended

    # ---------------------------------------------------------------- pages

    def _sweep(self, top: int) -> None:
        """Give back every page that holds nothing."""
        ring, count = self._streams.ring, len(self._rows)
        free = np.zeros(count, np.bool_)
        free[:top] = self._rows["state"][:top] == FREE
        bits = self._columns["stream_bits"]
        give_back_rows(self._columns["stream_tx"], ring, free)
        give_back_rows(self._columns["stream_rx"], ring, free)
        give_back_rows(bits[: count * (ring >> 3)], ring >> 3, free)
        give_back_rows(bits[count * (ring >> 3) :], ring >> 3, free)
        tx, rx = self._queued(top)
        for row in np.flatnonzero(~free[:top]).tolist():
            record = self._rows[row]
            for column, first, queued in (("stream_tx", "tx_base", tx), ("stream_rx", "rx_tail", rx)):
                start = int(record[first]) // PAGE * PAGE
                end = -(-(int(record[first]) + int(queued[row])) // PAGE) * PAGE if queued[row] else start
                for part in self._parts(column, row, end, ring - (end - start)):
                    give_back(part)
        self._sweep_tables()

    def _parts(self, column: str, row: int, offset: int, size: int) -> list[NDArray[np.uint8]]:
        """The bytes of a row's ring from an absolute offset on."""
        ring = self._streams.ring
        if size <= 0:
            return []
        at, memory = offset & (ring - 1), self._columns[column]
        first = min(size, ring - at)
        parts = [memory[row * ring + at : row * ring + at + first]]
        return [*parts, memory[row * ring : row * ring + size - first]] if size > first else parts

    def _sweep_tables(self) -> None:
        """The same for connections, circuits and sessions that are free."""
        columns = self._columns
        c = columns["connections"]
        free = c["state"] == FREE
        idle = free | ((c["flight"] == 0) & (c["oldest"] == c["sequence_next"]) & (c["lost_head"] == c["lost_tail"]))
        give_back_rows(columns["stream_sent"], FLIGHT, idle)
        give_back_rows(columns["stream_lost"], WAITING * 3, idle)
        give_back_rows(columns["stream_ids"], IDS, free)
        give_back_rows(columns["cell_windows"], tables.WINDOW_WORDS, columns["circuits"]["state"] == tables.FREE)
        give_back_rows(columns["session_windows"], SESSION_WINDOW, columns["sessions"]["state"] == SESSION_FREE)

"""A deterministic network between two ends: delay, jitter, loss, duplicates, a rate with a bounded queue; and toy applications.

Time is simulated: the run jumps to the next arrival or timer. Everything random comes from one seeded generator, so a run
replays from (seed, calls). The network hands over opened cells, as shards do: duplicates are dropped before `receive`.
"""

import heapq
import random
from dataclasses import dataclass, field

import numpy as np

from nyx.columns import allocate
from nyx.stream import columns as c
from nyx.stream.engine import Event, Streams
from nyx.stream.inspect import check_invariants
from nyx.wire.geometry import CELL_FRAMES, FRAMES_SIZE, PACKET_CELL, PACKET_SIZE

RING = c.STREAM_WINDOW
MS = 1_000_000
SECOND = 1_000_000_000


@dataclass
class Link:
    """One direction."""

    delay: int = MS
    jitter: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    cell_time: int = 0  # ns a cell takes at the bottleneck; 0: no limit
    queue: int = 1 << 30  # cells the bottleneck holds
    free_at: int = 0
    lost: int = 0
    overrun: int = 0
    in_order: bool = True
    last: int = 0


@dataclass
class End:
    """One end of the circuit, with a toy application that checks what it reads."""

    streams: Streams
    connection: int
    link: Link  # outwards
    seen: set[int] = field(default_factory=set)
    written: dict[int, bytearray] = field(default_factory=dict)
    read: dict[int, bytearray] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    closed: list[Event] = field(default_factory=list)
    reading: bool = True
    answer: int | None = 0  # the last hop answers every OPEN with this
    ids: dict[int, int] = field(default_factory=dict)  # row -> stream id
    past: list[tuple[int, bytearray, bytearray]] = field(default_factory=list)
    cells: int = 0
    tape: list[bytes] | None = None  # every cell it sends, when somebody wants them

    def history(self, *, written: bool = False) -> list[tuple[int, bytes]]:
        """Stream id and the bytes read (or written), for every stream there was."""
        now = self.written if written else self.read
        return [(i, bytes(w if written else r)) for i, w, r in self.past] + [(i, bytes(now[row])) for row, i in self.ids.items()]


def make_streams(connections: int = 2, streams: int = 32) -> Streams:
    return Streams(allocate(c.stream_columns(connections, streams, RING)), RING)


class Network:
    """Two ends and what lies between them."""

    def __init__(self, seed: int = 1, forth: Link | None = None, back: Link | None = None, streams: int = 32, cells: int = 1000):
        self.rng = random.Random(seed)
        self.now = SECOND
        self.client = self._end(True, forth or Link(), streams, cells)
        self.exit = self._end(False, back or Link(), streams, cells)
        self.flying: list[tuple[int, int, bool, int, bytes]] = []
        self.count = 0
        self.pool = np.zeros(64 * PACKET_SIZE, np.uint8)
        self.slots = np.arange(64, dtype=np.int64)
        self.owners = np.zeros(64, np.int64)

    def _end(self, client: bool, link: Link, streams: int, cells: int) -> End:
        engine = make_streams(2, streams)
        connection = engine.open_connection(client=client, now=self.now, max_cells=cells)
        assert connection is not None
        return End(engine, connection, link)

    def other(self, end: End) -> End:
        return self.exit if end is self.client else self.client

    # ------------------------------------------------------------ applications

    def open(self, host: str = "example.org", port: int = 80) -> int:
        end = self.client
        row = end.streams.open_stream(end.connection, 1, host, port, self.now)
        self.know(end, row)
        return row

    def know(self, end: End, row: int) -> None:
        number = int(end.streams.streams[row]["id"])
        if end.ids.get(row) != number:
            if row in end.ids:
                end.past.append((end.ids[row], end.written[row], end.read[row]))
            end.written[row], end.read[row] = bytearray(), bytearray()
            end.ids[row] = number

    def write(self, end: End, row: int, data: bytes) -> int:
        """Write as much as the ring takes; returns how much."""
        s = end.streams.streams[row]
        room = RING - (int(s["tx_head"]) - int(s["tx_base"]))
        data = data[:room]
        ring = end.streams.tx[row * RING : (row + 1) * RING]
        for start in range(0, len(data), 65536):
            piece = np.frombuffer(data[start : start + 65536], np.uint8)
            ring[(int(s["tx_head"]) + start + np.arange(len(piece))) & (RING - 1)] = piece
        s["tx_head"] += len(data)
        end.written[row] += data
        return len(data)

    def consume(self, end: End, row: int) -> None:
        s = end.streams.streams[row]
        start, stop = int(s["rx_tail"]), int(s["rx_ready"])
        ring = end.streams.rx[row * RING : (row + 1) * RING]
        end.read[row] += ring[np.arange(start, stop) & (RING - 1)].tobytes()
        s["rx_tail"] = stop
        end.streams.consumed(row)

    def peer_row(self, end: End, row: int) -> int:
        """The row of the same stream at the other end."""
        wanted = end.ids[row]
        return next(r for r, number in self.other(end).ids.items() if number == wanted)

    def check_read(self) -> None:
        """Nobody has read what the other did not write, in order and once."""
        for end in (self.client, self.exit):
            for stream, read in end.history():
                for other, written in self.other(end).history(written=True):
                    if other == stream:
                        assert written.startswith(read), f"stream {stream} delivered wrong bytes"

    def check_complete(self, but: set[int]) -> None:
        """All that was written has been read, on all streams but these."""
        for end in (self.client, self.exit):
            written = dict(self.other(end).history(written=True))
            for stream, read in end.history():
                assert stream in but or read == written.get(stream, b""), f"stream {stream} misses bytes"

    # ------------------------------------------------------------ the network

    def _send(self, end: End) -> None:
        while made := end.streams.transmit(self.pool, self.slots, 64, self.now, self.owners):
            for k in range(made):
                at = k * PACKET_SIZE + PACKET_CELL
                self._fly(end, self.pool[at : at + CELL_FRAMES + FRAMES_SIZE].tobytes())

    def _fly(self, end: End, cell: bytes) -> None:
        link = end.link
        end.cells += 1
        if end.tape is not None:
            end.tape.append(cell)
        if self.rng.random() < link.loss:
            link.lost += 1
            return
        at = self.now
        if link.cell_time:
            if link.free_at - self.now > link.queue * link.cell_time:
                link.overrun += 1
                return
            at = link.free_at = max(link.free_at, self.now) + link.cell_time
        for _ in range(2 if self.rng.random() < link.duplicate else 1):
            arrival = at + link.delay + (self.rng.randrange(link.jitter) if link.jitter else 0)
            if link.in_order:
                arrival = link.last = max(link.last, arrival)
            self.count += 1
            heapq.heappush(self.flying, (arrival, self.count, end is self.client, 0, cell))

    def deliver(self, end: End, cells: list[bytes]) -> int:
        """Hand cells to an end in one batch, as the worker does: without those it has seen."""
        offsets: list[int] = []
        sequences: list[int] = []
        for cell in cells:
            sequence = int.from_bytes(cell[:8], "big")
            if sequence in end.seen:
                continue
            end.seen.add(sequence)
            at = len(offsets) * PACKET_SIZE
            self.pool[at : at + FRAMES_SIZE] = np.frombuffer(cell[CELL_FRAMES:], np.uint8)
            offsets.append(at)
            sequences.append(sequence)
        n = len(offsets)
        rows = np.full(n, end.connection, np.int64)
        return end.streams.receive(self.pool, np.array(offsets, np.int64), rows, np.array(sequences, np.int64), n, self.now)

    def tick(self, end: End) -> None:
        end.streams.on_timeout(self.now)

    def _events(self, end: End) -> None:
        while (event := end.streams.next_event()) is not None:
            end.events.append(event)
            if event.kind == c.OPENED:
                self.know(end, event.stream)
                if end.answer is not None:
                    end.streams.answer_open(event.stream, end.answer)
            elif event.kind == c.CLOSED:
                end.ended.add(event.stream)
            elif event.kind in (c.CONNECTION_CLOSED, c.PROTOCOL_ERROR):
                end.closed.append(event)
        if end.reading:
            rows = end.streams.streams
            for row in np.flatnonzero((rows["state"] != c.FREE) & (rows["rx_ready"] > rows["rx_tail"])).tolist():
                if end.ids.get(row) == int(rows[row]["id"]) and int(rows[row]["state"]) != c.EARLY:
                    self.consume(end, row)

    def step(self) -> bool:
        """Send, then go to the next arrival or timer and let it happen; False when nothing will ever happen."""
        for end in (self.client, self.exit):
            self._events(end)
            self._send(end)
        due = min(self.client.streams.next_timeout(), self.exit.streams.next_timeout())
        if self.flying:
            due = min(due, self.flying[0][0])
        if due >= c.NEVER:
            return False
        self.now = max(self.now, due)
        for end in (self.client, self.exit):
            arrived: list[tuple[int, int, bool, int, bytes]] = []
            keep: list[tuple[int, int, bool, int, bytes]] = []
            while self.flying and self.flying[0][0] <= self.now and len(arrived) < 64:
                item = heapq.heappop(self.flying)
                (arrived if item[2] == (end is self.exit) else keep).append(item)
            for item in keep:
                heapq.heappush(self.flying, item)
            if arrived:
                self.deliver(end, [item[4] for item in arrived])
            if end.streams.next_timeout() <= self.now:
                self.tick(end)
            check_invariants(end.streams)
            self._events(end)
        return True

    def run(self, until: object = None, limit: int = 20_000, seconds: float = 1e9) -> bool:
        """Step until `until()` holds; False when the limit of steps or of simulated seconds comes first."""
        stop = self.now + int(seconds * SECOND)
        for _ in range(limit):
            if callable(until) and until():
                return True
            if self.now >= stop or not self.step():
                break
        return bool(callable(until) and until())

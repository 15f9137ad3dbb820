"""The same bench over the real streams: cells of one end are handed to the other, in a clock of their own."""

from collections.abc import Iterator

import numpy as np

from nyx.columns import allocate
from nyx.stream.columns import STREAM_WINDOW, stream_columns
from nyx.stream.engine import Streams
from nyx.stream.inspect import check_invariants
from nyx.wire.geometry import CELL_SEQUENCE, PACKET_CELL, PACKET_FRAMES, PACKET_SIZE
from shards.edge.table import edge_columns
from tests.shards.edge.bench import Bench

RING = STREAM_WINDOW
CELLS = 64


class RealEnd:
    """One end of a circuit, with the methods that the bench knows of the double."""

    def __init__(self, *, client: bool, rows: int, half_open: int, now: int) -> None:
        self.columns = allocate([*stream_columns(2, rows, RING), *edge_columns(rows, half_open)])
        self.streams = Streams(self.columns, RING)
        self.rows = self.columns["streams"]
        self.ring = RING
        self.peer = self
        connection = self.streams.open_connection(client=client, now=now, max_cells=400, rtt=1_000_000)
        assert connection is not None
        self.connection = connection
        self.pool = np.zeros(CELLS * PACKET_SIZE, np.uint8)
        self.slots = np.arange(CELLS, dtype=np.int64)
        self.owners = np.zeros(CELLS, np.int64)
        self.now = now

    def drain(self) -> Iterator[tuple[int, int, int, int]]:
        while (event := self.streams.next_event()) is not None:
            yield event

    def carry(self, limit: int) -> None:
        """Hand over what may be sent now: whole turns of cells, none of them lost."""
        del limit
        if self.now >= self.streams.next_timeout():
            self.streams.on_timeout(self.now)
        n = self.streams.transmit(self.pool, self.slots, CELLS, self.now, self.owners)
        if n:
            cells = self.pool.reshape(CELLS, PACKET_SIZE)[:n]
            at = PACKET_CELL + CELL_SEQUENCE
            sequences = np.ascontiguousarray(cells[:, at : at + 8]).view(">i8").astype(np.int64).reshape(n)
            offsets = self.slots[:n] * PACKET_SIZE + PACKET_FRAMES
            connections = np.full(n, self.peer.connection, np.int64)
            assert self.peer.streams.receive(self.pool, offsets, connections, sequences, n, self.now) == n

    def cut(self, _connection: int) -> None:
        """The circuit is gone, at both ends."""
        for end in (self, self.peer):
            end.streams.close_connection(end.connection)


class RealBench(Bench):
    """Bench over nyx.stream; a turn takes 0.2 ms of its clock, so that timers and pacing pass."""

    def ends(self, rows: int, _ring: int, half_open: int):
        near = RealEnd(client=True, rows=rows, half_open=half_open, now=self.now)
        far = RealEnd(client=False, rows=rows, half_open=half_open, now=self.now)
        near.peer, far.peer = far, near
        return near, far

    def turn(self) -> None:
        self.now += 200_000
        self.near.now = self.far.now = self.now
        super().turn()

    def check(self) -> None:
        """Invariants of both engines."""
        for end in (self.near, self.far):
            check_invariants(end.streams)

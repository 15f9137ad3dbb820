"""Cells of a peer at both ends of a connection that carries a stream: the engine against any sequence of them.

A script: each step is a cell with a few frames from the input, for the client or the last hop, or time that passes.
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.errors import RemoteProtocolError
from nyx.stream import columns as c
from nyx.stream.engine import Streams
from nyx.stream.inspect import check_invariants
from nyx.wire import frames as f
from nyx.wire.geometry import FRAMES_SIZE, PACKET_SIZE
from tests.fuzz.script import Script

_RING: Final = c.STREAM_WINDOW
_MS: Final = 1_000_000
_STEPS: Final = 12


class _End:
    """One end over columns that begin each input as `begin` left them."""

    def __init__(self, *, client: bool) -> None:
        self.columns = {column.name: np.zeros(column.length, column.dtype) for column in c.stream_columns(1, 4, _RING)}
        self.client = client
        self.now = 1_000 * _MS
        self.sequence = 0
        self.streams = self.begin()

    def begin(self) -> Streams:
        """Everything as new, with stream 2 open."""
        for column in self.columns.values():
            column[:] = np.zeros((), column.dtype)
        streams = Streams(self.columns, _RING)
        self.streams, self.now, self.sequence = streams, 1_000 * _MS, 0
        assert streams.open_connection(client=self.client, now=self.now, max_cells=1000) == 0
        if self.client:
            streams.open_stream(0, 1, "example.org", 80, self.now)
            self.transmit()
            assert self.receive(f.encode([f.OpenResult(2, 0), f.Stream(2, 0, b"hello")])) == 1
        else:
            assert self.receive(f.encode([f.Open(2, 1, 80, 1, b"example.org"), f.Stream(2, 0, b"hello")])) == 1
            while (event := streams.next_event()) is not None:
                if event.kind == c.OPENED:
                    streams.answer_open(event.stream, 0)
            self.transmit()
        return streams

    def transmit(self) -> None:
        """Send what there is to nobody."""
        pool, slots, owners = np.zeros(8 * PACKET_SIZE, np.uint8), np.arange(8, dtype=np.int64), np.zeros(8, np.int64)
        self.streams.transmit(pool, slots, 8, self.now, owners)

    def receive(self, frames: bytes) -> int:
        """One cell with the next sequence."""
        pool = np.frombuffer(bytearray(frames), np.uint8)
        one = np.zeros(1, np.int64)
        self.sequence += 1
        return int(self.streams.receive(pool, one, one, np.array([self.sequence - 1], np.int64), 1, self.now))

    def primary(self) -> list[bytes]:
        """What a rejected cell must leave as it was."""
        column = self.columns["connections"]
        connection: NDArray[Any] = np.frombuffer(bytearray(column.tobytes()), column.dtype)
        connection["dropped"] = 0
        return [connection.tobytes(), self.columns["streams"].tobytes(), self.streams.id_rows(0).tobytes()]


@cache
def _end(*, client: bool) -> _End:
    return _End(client=client)


def streams(data: bytes) -> bool:
    """What the codec refuses the kernels refuse; a cell that counts as lost changes nothing; the invariants always hold."""
    script, taken = Script(data), 0
    end = _end(client=bool(script.number() & 1))
    end.begin()
    for _ in range(_STEPS):
        if not script.more():
            break
        step, size = script.number(), script.number(2)
        if step >= 0xF0:
            end.now += size * _MS
            end.streams.on_timeout(end.now)
        else:
            taken += _cell(end, script.take(size % FRAMES_SIZE).ljust(FRAMES_SIZE, b"\0"))
        check_invariants(end.streams)
        end.transmit()
        while (event := end.streams.next_event()) is not None:
            if event.kind == c.OPENED and step & 1:
                end.streams.answer_open(event.stream, step >> 4)
    return taken > 0


def _cell(end: _End, frames: bytes) -> int:
    connection = end.columns["connections"][0]
    before, live, dropped = end.primary(), int(connection["state"]) == c.LIVE, int(connection["dropped"])
    passed = end.receive(frames)
    if live and not passed and int(connection["dropped"]) > dropped and int(connection["state"]) == c.LIVE:
        assert end.primary() == before
    try:
        f.decode(frames)
    except RemoteProtocolError as error:
        assert not passed or "UTF-8" in str(error)  # nobody reads those texts
    return passed

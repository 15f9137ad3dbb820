"""Two ends of streams joined in memory: what the edge calls, with rings as small as a test wants and no network between."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from nyx.columns import Column, allocate
from nyx.errors import LocalProtocolError
from nyx.stream import columns as c
from shards.edge.table import edge_columns


class End:
    """One end. `events` are what a worker would drain; `calls` what the edge asked for."""

    def __init__(self, rows: int = 16, ring: int = 4096, half_open: int = 32) -> None:
        byte = np.dtype(np.uint8)
        sizes = {"stream_tx": ring, "stream_rx": ring}
        stream = [Column("streams", c.STREAM, rows), *(Column(name, byte, rows * size) for name, size in sizes.items())]
        self.columns = allocate([*stream, *edge_columns(rows, half_open)])
        self.rows: Any = self.columns["streams"]
        self.ring = ring
        self.peer: End = self
        self.events: deque[tuple[int, int, int, int]] = deque()
        self.calls: list[tuple[str, int, int]] = []
        self.far: dict[int, int] = {}  # row here -> row there
        self.targets: dict[int, tuple[int, int, bytes, int]] = {}
        self.over: dict[int, set[str]] = {}
        self.released: set[int] = set()
        self.room = True

    def drain(self) -> Iterator[tuple[int, int, int, int]]:
        while self.events:
            yield self.events.popleft()

    def tell(self, kind: int, row: int, value: int = 0) -> None:
        if row not in self.released:
            self.events.append((kind, int(self.rows[row]["connection"]), row, value))

    def _row(self, connection: int) -> int:
        row = next(i for i in range(len(self.rows)) if not int(self.rows[i]["state"]))
        self.rows[row] = np.zeros(1, c.STREAM)[0]
        self.rows[row]["state"], self.rows[row]["connection"] = c.OPENING, connection
        self.over[row] = set()
        self.released.discard(row)
        return row

    # ---------------------------------------------------------------- what the edge calls

    def open_stream(self, connection: int, kind: int, host: str | bytes, port: int, now: int) -> int:
        if not self.room:
            raise LocalProtocolError("no room")
        row, there = self._row(connection), self.peer._row(connection)
        self.far[row], self.peer.far[there] = there, row
        address = host.encode() if isinstance(host, str) else host
        form = 1 if isinstance(host, str) else {4: 4, 16: 6}[len(host)]
        self.peer.targets[there] = (kind, form, address, port)
        self.peer.tell(c.OPENED, there)
        return row

    def opened(self, stream: int) -> tuple[int, int, bytes, int]:
        return self.targets[stream]

    def answer_open(self, stream: int, code: int) -> None:
        self.calls.append(("answer", stream, code))
        if stream in self.far:
            self.peer.tell(c.RESULT, self.far[stream], code)

    def finish(self, stream: int) -> None:
        self.calls.append(("finish", stream, 0))
        self.rows[stream]["tx_fin"] = 1

    def reset(self, stream: int, code: int) -> None:
        self.calls.append(("reset", stream, code))
        if stream in self.far and "tx" not in self.over[stream]:
            self.peer.tell(c.RESET, self.far[stream], code)
            self._end(stream, "tx")

    def stop(self, stream: int, code: int) -> None:
        self.calls.append(("stop", stream, code))
        if stream in self.far and "rx" not in self.over[stream]:
            self.peer.tell(c.STOPPED, self.far[stream], code)

    def release(self, stream: int) -> None:
        self.calls.append(("release", stream, 0))
        self.released.add(stream)
        self._free(stream)

    # ---------------------------------------------------------------- the network between

    def _free(self, row: int) -> None:
        if row in self.released and self.over.get(row) == {"tx", "rx"}:
            self.rows[row]["state"] = 0

    def _end(self, row: int, part: str) -> None:
        """A direction is over at both of its ends."""
        there = self.far[row]
        for end, at, half in ((self, row, part), (self.peer, there, "rx" if part == "tx" else "tx")):
            end.over[at].add(half)
            if end.over[at] == {"tx", "rx"}:
                end.tell(c.CLOSED, at)
                end._free(at)

    def carry(self, limit: int) -> None:
        """Move up to `limit` bytes of each stream to the other end, and what follows them."""
        for row in list(self.far):
            if not int(self.rows[row]["state"]) or "tx" in self.over[row]:
                continue
            s, there = self.rows[row], self.far[row]
            p = self.peer.rows[there]
            n = min(limit, int(s["tx_head"]) - int(s["tx_base"]), self.ring - (int(p["rx_ready"]) - int(p["rx_tail"])))
            if n:
                full = int(s["tx_head"]) - int(s["tx_base"]) == self.ring
                at = np.arange(int(s["tx_base"]), int(s["tx_base"]) + n) & (self.ring - 1)
                self.peer.columns["stream_rx"][there * self.ring + at] = self.columns["stream_tx"][row * self.ring + at]
                s["tx_base"] += n
                p["rx_ready"] += n
                self.peer.tell(c.READABLE, there)
                if full:
                    self.tell(c.WRITABLE, row)
            if int(s["tx_fin"]) and int(s["tx_base"]) == int(s["tx_head"]):
                p["rx_final"] = int(s["tx_head"]) + 1
                self.peer.tell(c.FINISHED, there)
                self._end(row, "tx")

    def cut(self, connection: int) -> None:
        """The circuit is gone, at both ends."""
        for end in (self, self.peer):
            for row in list(end.far):
                if int(end.rows[row]["connection"]) == connection and end.over[row] != {"tx", "rx"}:
                    end.over[row] = {"tx", "rx"}
                    end.rows[row]["failed"] = 1
                    end.tell(c.CLOSED, row)
            end.events.append((c.CONNECTION_CLOSED, connection, 0, 0))


def pair(**sizes: int) -> tuple[End, End]:
    """Two ends, joined."""
    a, b = End(**sizes), End(**sizes)
    a.peer, b.peer = b, a
    return a, b

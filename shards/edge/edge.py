"""The edge of one worker: where bytes enter and leave Nyx. The worker sees this class; proxy and exit stand behind it.

A turn of the worker, none of whose steps blocks (spurious calls are harmless):

    on_ready(fds, events, now)      everything epoll told of, in one call; descriptors of others are ignored
    on_event(kind, connection, stream, value, now)      each event of the streams
    pump(now)                       sockets -> rings and rings -> sockets, before the streams transmit
    on_timer(now)                   when next_timeout() has come
    sleep not at all if `pending`, else until the earliest timeout

`recover(now)` comes first in every life of a worker, after the streams' own recovery.
"""

import contextlib
import os
import resource
import socket
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from nyx.columns import Columns
from nyx.path.policy import Policy
from nyx.stats import Histogram, refusal_counters
from nyx.stream import columns as events
from shards.edge import table as edge
from shards.edge.client import ClientEdge, Opening, Waiting
from shards.edge.contract import Epoll, OpenCircuit, Streams, Words
from shards.edge.core import Core
from shards.edge.exit import ExitEdge
from shards.edge.pumps import Pumps
from shards.edge.reasons import Reason
from shards.edge.request import Refused
from shards.edge.resolver import Resolver
from shards.edge.sdk import SdkEdge, Welcoming
from shards.edge.slots import SlotPumps
from shards.edge.table import EdgeTable, Failure
from shards.kernels import tcp

_DESCRIPTORS_MAX: Final = 1 << 20
_ROLES: Final = {edge.CLIENT: "client", edge.GUEST: "client", edge.EXIT: "last"}


def _no_circuit(_isolation: bytes, _host: str, _port: int) -> int | Refused | None:
    return Refused(Reason.NO_CIRCUIT)


class Edge:
    """Proxy, applications of the SDK, and exit of one worker."""

    def __init__(
        self,
        epoll: Epoll,
        streams: Streams,
        columns: Columns,
        ring: int,
        *,
        listeners: Sequence[socket.socket] = (),
        open_circuit: OpenCircuit = _no_circuit,
        policy: Policy | None = None,
        max_clients: int = 1024,
        resolver: Resolver | None = None,
        welcoming: Welcoming | None = None,
    ) -> None:
        self.table = EdgeTable(columns)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        descriptors = hard if 0 < hard < _DESCRIPTORS_MAX else _DESCRIPTORS_MAX
        self.pumps = Pumps(streams, columns, ring, epoll, self.table, descriptors)
        self.core = Core(epoll, streams, self.table, self.pumps)
        self.client = ClientEdge(self.core, listeners, open_circuit, max_clients)
        self.slots = SlotPumps(streams, columns, ring, self.table)
        self.sdk = SdkEdge(self.core, self.slots, welcoming or Welcoming(), open_circuit)
        self.exit = ExitEdge(self.core, policy or Policy(()), resolver or Resolver())
        self._streams = streams
        self._columns = columns
        self._rows = columns["streams"]
        self.repaired = 0  # by `recover`
        self._ended: set[int] = set()  # rows whose stream has ended: a socket may still take the last bytes

    # ---------------------------------------------------------------- one turn

    def on_ready(self, fds: Words, masks: Words, now: int) -> None:
        """Descriptors that epoll told of, with their masks."""
        rows = self.pumps.rows_of(fds)
        mine = rows >= 0
        if mine.any():
            self.pumps.on_ready(rows[mine], masks[mine], now)
        for fd, mask in zip(fds[~mine].tolist(), masks[~mine].tolist(), strict=True):
            if self.client.owns(fd):
                self.client.on_ready(fd, mask, now)
            elif self.exit.owns(fd):
                self.exit.on_ready(fd, mask, now)
            elif self.sdk.owns(fd):
                self.sdk.on_ready(fd, mask, now)

    def on_event(self, kind: int, connection: int, stream: int, value: int, now: int) -> None:
        """One event of the streams."""
        if kind == events.OPENED:
            self.exit.on_opened(stream, connection, now)
        elif kind == events.RESULT:
            self._opener_of(stream).on_result(stream, value, now)
        elif kind == events.CONNECTION_CLOSED:
            self._connection_closed(connection, now)
        elif kind < events.EVENT_KINDS and kind not in (events.PROTOCOL_ERROR, events.PONG):
            self._stream_event(kind, stream, value, now)

    def _stream_event(self, kind: int, row: int, value: int, now: int) -> None:
        state = self.table.state(row)
        if state == edge.FREE:
            return
        self._rows[row]["in_hand"] = 1
        if kind == events.CLOSED:
            self._ended.add(row)
        elif state != edge.OPENING:
            self._pumps_of(row).on_event(kind, row, value, now)
        elif kind in (events.RESET, events.STOPPED):
            self._lost(row, now)
        self._rows[row]["in_hand"] = 0

    def pump(self, now: int) -> None:
        """Move bytes between sockets and rings, once."""
        self.pumps.pump(now)
        self.sdk.pump(now)
        if self._ended:
            self._settle_ended(now)

    def _settle_ended(self, now: int) -> None:
        """Release what ended, once its socket took everything. After all events: a lost connection ends its streams first."""
        for row in list(self._ended):
            state = self.table.state(row)
            if state == edge.OPENING:
                self._lost(row, now)
            elif state == edge.OPEN:
                continue
            self._ended.discard(row)
            if state != edge.FREE:
                self._release(row)

    @property
    def pending(self) -> bool:
        """Whether `pump` has work that no descriptor will announce."""
        return self.pumps.pending or self.slots.pending

    def next_timeout(self) -> int:
        """When `on_timer` must be called, in ns; NEVER if nothing waits."""
        return min(self.client.next_timeout(), self.exit.next_timeout(), self.sdk.next_timeout(), self.pumps.next_timeout())

    def on_timer(self, now: int) -> None:
        """Let deadlines pass."""
        self.client.on_timer(now)
        self.exit.on_timer(now)
        self.sdk.on_timer(now)
        if now >= self.pumps.next_timeout():
            self.pump(now)

    def on_circuit_ready(self, now: int) -> None:
        """A circuit became usable: requests that wait are tried again."""
        self.client.on_circuit_ready(now)
        self.sdk.on_circuit_ready(now)

    def rest(self) -> None:
        """Take no new client in this life."""
        self.client.rest()
        self.sdk.rest()

    @property
    def busy(self) -> bool:
        """Whether something is being opened that a next life would refuse."""
        return self.client.busy or self.exit.opening > 0

    @property
    def live(self) -> int:
        """Streams that are not free."""
        return len(self.table.live())

    # ---------------------------------------------------------------- ends

    def _lost(self, row: int, now: int) -> None:
        """A stream that is being opened ended; its connection did not."""
        if self.table.side(row) == edge.EXIT:
            self.exit.on_lost(row, Reason.CANCELLED, now)
            return
        self._opener_of(row).on_lost(row, Reason.EXIT_FAILED, now, again=False)
        self.core.give_up(row, Reason.EXIT_FAILED, now)

    def _opener_of(self, row: int) -> ClientEdge | SdkEdge:
        """Who opened a stream of ours."""
        return self.sdk if self.table.side(row) == edge.GUEST else self.client

    def _pumps_of(self, row: int) -> Pumps | SlotPumps:
        """Who moves the bytes of a row."""
        return self.slots if self.table.side(row) == edge.GUEST else self.pumps

    def _release(self, row: int) -> None:
        self._streams.release(row)
        self._pumps_of(row).forget(row)

    def _connection_closed(self, connection: int, now: int) -> None:
        """The circuit is gone and with it every stream on it that was not complete: applications see a reset."""
        of_connection = (self.table.rows["state"] != edge.FREE) & (self._rows["connection"] == connection)
        for row in np.flatnonzero(of_connection).tolist():
            state = self.table.state(row)
            if state == edge.OPEN and not int(self._rows[row]["failed"]):
                continue  # all of it came; the socket takes the rest
            if state == edge.OPEN:
                self._pumps_of(row).abort(row, Reason.CIRCUIT_LOST, now)
            elif state == edge.OPENING and self.table.side(row) == edge.EXIT:
                self.exit.on_lost(row, Reason.CIRCUIT_LOST, now)
            elif state == edge.OPENING:
                self._opener_of(row).on_lost(row, Reason.CIRCUIT_LOST, now, again=True)
            self._ended.discard(row)
            self._release(row)

    def close(self, now: int) -> None:
        """Close every descriptor; applications and targets see a reset."""
        self.client.close()
        self.exit.close()
        self.sdk.close(now)
        for row in self.table.live():
            self._pumps_of(row).abort(row, Reason.SHUTDOWN, now)
            self._release(row)

    # ---------------------------------------------------------------- a new life

    def recover(self, now: int) -> tuple[int, int]:
        """Serve on what a dead worker of the same columns served: how many streams live on, how many sockets were closed.

        Sockets without a stream are closed and streams that were being opened refused; they lived in the dead worker's memory.
        """
        recovered = closed = 0
        self.sdk.recover()
        for row in self.table.live():
            self._rows[row]["in_hand"] = 1
            if self.table.side(row) == edge.GUEST:
                recovered += self.sdk.recover_row(row, now)
            elif self.table.state(row) == edge.OPEN and self.pumps.owns(row):
                alive = self._recover_open(row, now)
                recovered += alive
                closed += not alive
            else:
                closed += self._recover_broken(row, now)
            self._rows[row]["in_hand"] = 0
        if "connections" in self._columns:
            self._release_nameless()
        for fd in set(self.table.take_orphans()) - self.pumps.held():
            with contextlib.suppress(OSError):
                os.close(fd)
            closed += 1
            self.repaired += 1
        self.sdk.recovered(now)
        self.repaired += self.sdk.repaired
        return recovered, closed

    def _release_nameless(self) -> None:
        """Streams of ours that the dead worker had opened and not noted here: nobody waits for them."""
        rows, connections = self._rows, self._columns["connections"]
        nameless = (rows["state"] >= events.OPENING) & (rows["released"] == 0) & (self.table.rows["state"] == edge.FREE)
        for row in np.flatnonzero(nameless).tolist():
            if rows[row]["orphan"] or connections[rows[row]["connection"]]["client"]:
                self._streams.release(row)
                self.repaired += 1

    def _recover_open(self, row: int, now: int) -> bool:
        found = self.pumps.restore(row)
        if found is tcp.Recovered.DEAD:
            self.repaired += 1
            self.pumps.abort(row, Reason.RESTARTED, now)
            return False
        self.core.counters["positions_repaired"] += found is tcp.Recovered.REPAIRED
        self.repaired += found is tcp.Recovered.REPAIRED
        self.repaired += self.pumps.repeat_ends(row)
        if self.table.side(row) == edge.EXIT:
            self._streams.answer_open(row, 0)  # if the last life did not come to it
        return True

    def _recover_broken(self, row: int, now: int) -> int:
        """A row that was being opened, was closing, or whose socket is gone."""
        held = self.pumps.owns(row)
        if not held:
            tcp.detach(self._rows, row)
        state = self.table.state(row)
        self.repaired += held or state != edge.CLOSING  # a closed one without a socket only waits for its last bytes to arrive
        if state == edge.CLOSING and int(self._rows[row]["tcp_state"]) & tcp.IN_EOF:
            self._streams.finish(row)
        else:
            if state == edge.OPENING and self.table.side(row) == edge.EXIT:
                self._streams.answer_open(row, Reason.RESTARTED.facts.reply)
            self.core.give_up(row, Reason.RESTARTED, now)
        self.pumps.drop_socket(row)
        return int(held)

    # ---------------------------------------------------------------- what others may see

    def held_fds(self) -> set[int]:
        """Every descriptor of this worker's edge but listeners and the resolver's."""
        return self.table.held() | self.pumps.held() | self.sdk.held()

    def collect(self) -> dict[str, int]:
        """Counters since the start of this life, and how many of each thing there are."""
        return {
            **self.core.counters,
            "bytes_in": self.pumps.bytes_in + self.slots.bytes_in,
            "bytes_out": self.pumps.bytes_out + self.slots.bytes_out,
            "clients": len(self.table.held()),
            "guests": len(self.slots.guests),
            "waiting": self.client.count(Waiting) + self.sdk.waiting,
            "opening": self.client.count(Opening) + self.exit.opening + self.sdk.opening,
            "open": self.table.count(edge.OPEN),
        }

    def flush_statistics(self, row: Words, opening: Histogram) -> None:
        """Add refusals and opening times to this worker's part of the shared memory."""
        refusal_counters(row)[:] += self.core.refusals
        self.core.refusals[:] = 0
        self.core.opening.drain_into(opening)

    def stream_rows(self, now: int, show_targets: bool) -> list[dict[str, Any]]:
        """Streams as `nyxctl streams` shows them, and the last failures."""
        found = [self._describe(row, now, show_targets) for row in self.table.live() if not self._is_failure(row)]
        found.extend(_describe_failure(failure, now, show_targets) for failure in self.table.failures)
        return found

    def close_stream(self, connection: int, number: int, now: int) -> bool:
        """Reset a stream on demand; False where none of this number stands on the connection."""
        rows = self._rows
        for row in np.flatnonzero((rows["connection"] == connection) & (rows["id"] == number)).tolist():
            if self.table.state(row) == edge.OPEN:
                self._pumps_of(row).abort(row, Reason.CANCELLED, now)
                return True
        return False

    def evict(self, row: int, now: int) -> None:
        """End a stream, in any state, whose bytes have waited longest for memory that others need."""
        state = self.table.state(row)
        if state == edge.OPEN:
            self._pumps_of(row).abort(row, Reason.MEMORY, now)
        elif state == edge.OPENING and self.table.side(row) == edge.EXIT:
            self.exit.on_lost(row, Reason.MEMORY, now)
        else:
            if state == edge.OPENING:
                self._opener_of(row).on_lost(row, Reason.MEMORY, now, again=False)
                self.core.give_up(row, Reason.MEMORY, now)
            self._streams.stop(row, Reason.MEMORY.facts.code)
            self._streams.reset(row, Reason.MEMORY.facts.code)

    def _is_failure(self, row: int) -> bool:
        return bool(self.table.rows[row]["reason"])

    def _describe(self, row: int, now: int, show_targets: bool) -> dict[str, Any]:
        stream = self._rows[row]
        state = {edge.OPENING: "opening", edge.OPEN: "open", edge.CLOSING: "closed"}[self.table.state(row)]
        if state == "open" and int(stream["tcp_state"]) & (tcp.IN_EOF | tcp.OUT_FIN):
            state = "half-closed"
        return {
            "id": int(stream["id"]),
            "connection": int(stream["connection"]),
            "role": _ROLES.get(self.table.side(row)),
            "state": state,
            "target": (self.table.target(row) or None) if show_targets else None,
            "age": (now - int(self.table.rows[row]["opened"])) / 1e9,
            "bytes_in": int(stream["tx_head"]),
            "bytes_out": int(stream["rx_tail"]),
            "reason": None,
        }


def _describe_failure(failure: Failure, now: int, show_targets: bool) -> dict[str, Any]:
    return {
        "id": None,
        "connection": None,
        "role": _ROLES.get(failure.side),
        "state": "closed",
        "target": (failure.target or None) if show_targets else None,
        "age": (now - failure.at) / 1e9,
        "bytes_in": None,
        "bytes_out": None,
        "reason": failure.reason.text,
    }

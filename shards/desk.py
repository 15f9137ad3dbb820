"""Circuits of one worker, whatever their role: who gets a build or answer cell, and how a circuit ends on all its sides.

Place on a packet's way: beside it. A circuit ends by DESTROY from either side, a lost link, silence, a failed cell, too many
cells under one key, its stream connection's end, or `nyxctl`; every way leads through `end_row`, which tells the sides that do
not know yet. Source: docs/protocol.md, "States of a circuit", "DESTROY".
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.suites import SUITE_AEGIS128L
from nyx.link.channel import CellReceived
from nyx.onion.seen import BuildReplay
from nyx.stats import Counter
from nyx.stream.columns import FREE as CONNECTION_FREE
from nyx.stream.engine import Streams
from nyx.wire.codes import DestroyReason, Drop, ErrorCode
from nyx.wire.packet import KIND_BUILD, KIND_REFRESH
from shards.batch import Batch
from shards.circuits import CircuitRows
from shards.clients import ClientCircuits
from shards.context import WorkerContext
from shards.edge.edge import Edge
from shards.fair import Budget, serve
from shards.hops import Hops
from shards.link import Link
from shards.links import Links
from shards.ratchet import Ratchet
from shards.refresh import Refreshes
from shards.tables import BACK, FORTH, LIVE, ROLE_CLIENT, ROLE_LAST

SECOND: Final = 1_000_000_000
IDLE: Final = 120 * SECOND
CELLS_MAX: Final = 1024  # in flight on one connection, whatever the neighbour's window
KEY_LIMIT_AEGIS: Final = 1 << 30  # cells under one layer key
KEY_LIMIT_CHACHA: Final = 1 << 24
SEE: Final = 'see "Floods" in docs/operations.md'
_PASSED_ON: Final = frozenset(DestroyReason)


class CircuitDesk:
    """All circuits of a worker. `clients` is None without proxy and SDK, `hops` for a node without keys."""

    def __init__(
        self, context: WorkerContext, batch: Batch, links: Links, rows: CircuitRows, streams: Streams, edge: Edge
    ) -> None:
        self._context = context
        self._batch = batch
        self._links = links
        self.rows = rows
        self._streams = streams
        self._statistics: NDArray[np.int64] = batch.statistics
        self.ratchet = Ratchet(
            rows, streams, context.config.node.ratchet, context.entropy, batch.scratch, batch.statistics
        )  # fmt: skip
        batch.gap = self.ratchet.gap
        self.refreshes = Refreshes(
            rows, links, context.config.node.ratchet, context.entropy, batch.statistics, batch.drops, self.end_row
        )
        self._bad_seen = 0
        self._budget = Budget()
        self.clients: ClientCircuits | None = None
        self.hops: Hops | None = None
        if context.proxy or context.sdk:
            self.clients = ClientCircuits(
                context, rows, links, links.suites, batch.statistics,
                self._open_client, streams.streams_on, edge.on_circuit_ready, self.end_row,
            )  # fmt: skip
        if context.keys:
            seen = BuildReplay(context.shared["builds_seen"], context.index)
            self.hops = Hops(
                context, context.keys, rows, links, seen, links.suites, batch.statistics, batch.drops, self._open_last
            )
        for leg in rows.torn:
            if (link := links.link_of(leg.session)) and link.row == leg.link:
                links.send_destroy(link, leg.session, leg.circuit_id, DestroyReason.NONE)
        for row in np.flatnonzero(rows.rows["state"] == LIVE):
            connection = int(rows.rows[row]["connection"])
            if connection:
                batch.circuit_of[connection - 1] = int(row) + 1
        alone = (streams.connections["state"] != CONNECTION_FREE) & (batch.circuit_of == 0)
        self.repaired = int(alone.sum())
        for lost in np.flatnonzero(alone).tolist():
            streams.close_connection(lost)  # its circuit was not there yet, or not any more, when the last life ended

    def trouble(self) -> str | None:
        """What keeps this node from circuits of its own, as a sentence for the operator."""
        return self.clients.trouble if self.clients else None

    def flooded(self) -> str | None:
        """What strangers and their builds do to this node, as a sentence for the operator."""
        effort = self.hops.effort if self.hops else None
        if effort is None or not effort.raised:
            return self._links.strangers.condition()
        return f"more circuits are built than this relay opens at once: builds need {effort.bits} bits of proof of work; {SEE}"

    # ------------------------------------------------------------ stream connections

    def _open_client(self, row: int, session: int) -> int | None:
        return self._open_connection(row, session, client=True)

    def _open_last(self, row: int, session: int) -> int | None:
        return self._open_connection(row, session, client=False)

    def _open_connection(self, row: int, session: int, *, client: bool) -> int | None:
        link = self._links.link_of(session)
        most = min(CELLS_MAX, link.window if link else CELLS_MAX)
        rtt = link.rtt if link and client else 0
        connection = self._streams.open_connection(
            client=client, now=int(self.rows.rows[row]["last_used"]), max_cells=most, rtt=rtt
        )
        if connection is None:
            return None
        self._batch.circuit_of[connection] = row + 1
        return connection

    def on_connection_over(self, connection: int) -> None:
        """A stream connection ended: by a CLOSE, a violation, or silence."""
        row = int(self._batch.circuit_of[connection]) - 1
        if row >= 0:
            self.end_row(row, DestroyReason.NONE)

    def end_connection(self, connection: int) -> None:
        """End the circuit of a stream connection that holds too much memory."""
        row = int(self._batch.circuit_of[connection]) - 1
        if row >= 0:
            self.end_row(row, DestroyReason.RESOURCES)

    # ------------------------------------------------------------ what links tell

    def on_cell(self, link: Link, session: int, cell: CellReceived, now: int) -> None:
        """Take a build, answer or refresh cell."""
        if cell.kind == KIND_REFRESH:
            self.refreshes.on_cell(link, session, cell, now)
        elif cell.kind == KIND_BUILD:
            if self.hops:
                self.hops.on_build(link, session, cell, now)
            else:
                self._batch.drops[Drop.BAD_BUILD] += 1
        elif not (self.clients and self.clients.on_answer(link, session, cell, now)) and not (
            self.hops and self.hops.on_answer(link, session, cell, now)
        ):
            self._batch.drops[Drop.UNKNOWN_CIRCUIT] += 1

    def on_destroy(self, link: Link, circuit_id: int, reason: int, now: int) -> None:
        """Take a DESTROY: the circuit ends here too, and its other side is told."""
        if self.clients and self.clients.on_destroy(link, circuit_id, now):
            return
        if self.hops and self.hops.on_destroy(link, circuit_id, reason):
            return
        found = self.rows.find(link.row, circuit_id)
        if found is None:
            return
        row, arrives = found
        known = DestroyReason(reason) if reason in _PASSED_ON else DestroyReason.NONE
        self.end_row(row, known, knows=arrives)

    def on_link_lost(self, link: Link, now: int) -> None:
        """Every circuit over a lost link ends."""
        if self.clients:
            self.clients.on_link_lost(link, now)
        if self.hops:
            self.hops.on_link_lost(link)
        for row, side in self.rows.on_link(link.row):
            self.end_row(row, DestroyReason.LINK_LOST, knows=side)

    # ------------------------------------------------------------ public-key operations

    @property
    def waiting(self) -> bool:
        """Whether a handshake, a build or a refresh waits for its turn, or a proof of work is being made."""
        hops, clients = self.hops, self.clients
        waiting = self._links.strangers.waiting or self.refreshes.waiting or (hops and hops.waiting)
        return bool(waiting) or bool(clients and clients.working)

    def serve(self, now: int, wall: int) -> None:
        """After a batch: what strangers have coming until the next one, handshakes, builds and refreshes in turn."""
        self._budget.renew()
        strangers, hops = self._links.strangers, self.hops
        if not self.waiting:
            return
        serve(
            self._budget, lambda: strangers.serve(now, wall), lambda: hops.serve(now, wall) if hops else 0,
            lambda: self.refreshes.serve(now),
        )  # fmt: skip
        if self.clients:
            self.clients.work(now, wall)

    # ------------------------------------------------------------ ends

    def end_row(self, row: int, reason: DestroyReason, knows: int = -1) -> None:
        """End a circuit; `knows` is the side (FORTH: towards the client) that needs no DESTROY."""
        if int(self.rows.rows[row]["state"]) != LIVE:
            return
        if reason == DestroyReason.FAILED_CELL and self.clients and int(self.rows.rows[row]["role"]) == ROLE_CLIENT:
            self.clients.on_failed_cell(row)
        back, forth = self.rows.legs(row)
        for leg, side, why in ((back, FORTH, reason), (forth, BACK, DestroyReason.NONE)):
            link = self._links.link_of(leg.session) if leg else None
            if leg and link and side != knows:
                self._links.send_destroy(link, leg.session, leg.circuit_id, why)
        connection = int(self.rows.rows[row]["connection"]) - 1
        self.rows.close(row)  # before its connection: the connection's row may serve another circuit at once
        if connection >= 0:
            self._batch.circuit_of[connection] = 0
            self._streams.close_connection(connection, ErrorCode.NO_ERROR)
        self._statistics[Counter.CIRCUITS_CLOSED] += 1
        if self.clients:
            self.clients.forget_row(row)

    def hurry(self, now: int) -> bool:
        """Whether something must be looked at before the next round of the timer."""
        return int(self._batch.drops[Drop.BAD_CELL]) != self._bad_seen or bool(self.clients and self.clients.hurry(now))

    def on_timer(self, now: int, wall: int) -> None:
        """Failed cells, silence, key limits, builds that take too long, circuits that are missing."""
        rows = self.rows.rows
        self._bad_seen = int(self._batch.drops[Drop.BAD_CELL])
        for row in np.flatnonzero((rows["state"] == LIVE) & (rows["bad_cells"] > 0)).tolist():
            self.end_row(row, DestroyReason.FAILED_CELL)
        for row in self.rows.idle_since(now - IDLE):
            self.end_row(row, DestroyReason.EXPIRED)
        limit = np.where(rows["suite"] == SUITE_AEGIS128L, KEY_LIMIT_AEGIS, KEY_LIMIT_CHACHA)
        since = self.rows.chains["since"].reshape(-1, 2)  # by direction
        under_key = np.maximum(rows["cells_forth"] - since[:, FORTH], rows["cells_back"] - since[:, BACK])
        worn = (rows["state"] == LIVE) & (under_key >= limit)
        for row in np.flatnonzero(worn).tolist():
            self.end_row(row, DestroyReason.KEY_LIMIT)
        self.ratchet.on_timer(now, wall)
        self.refreshes.on_timer(now)
        if self.hops:
            self.hops.on_timer(now)
        if self.clients and not self._context.draining:
            self.clients.maintain(now, wall)

    @property
    def passing(self) -> int:
        """Circuits of others."""
        rows = self.rows.rows
        return int(np.count_nonzero((rows["state"] == LIVE) & (rows["role"] != ROLE_CLIENT)))

    # ------------------------------------------------------------ for people

    def describe(self, now: int) -> list[dict[str, Any]]:
        """Rows of `nyxctl circuits`, without "worker". A relay's row names no hop."""
        found = [self._describe_row(int(row), now) for row in np.flatnonzero(self.rows.rows["state"] == LIVE)]
        building = [] if self.clients is None else [c for c in self.clients.all if not c.ready]
        for circuit in building:
            hops = [{"node": node.id.hex(), "alias": node.alias} for node in circuit.path]
            found.append(
                {"id": circuit.row, "role": "client", "state": "building", "hops": hops, "age": (now - circuit.created) / SECOND,
                 "streams": 0, "cells_in": 0, "cells_out": 0}
            )  # fmt: skip
        return found

    def _describe_row(self, row: int, now: int) -> dict[str, Any]:
        circuit = self.rows.rows[row]
        role = int(circuit["role"])
        known = self._context.snapshot.by_id
        named = [(node, known(node)) for node in self.rows.path(row)] if role == ROLE_CLIENT else []
        forth, back = int(circuit["cells_forth"]), int(circuit["cells_back"])
        inwards, outwards = (back, forth) if role == ROLE_CLIENT else (forth, back)
        connection = int(circuit["connection"]) - 1
        return {
            "id": row,
            "role": {ROLE_CLIENT: "client", ROLE_LAST: "last"}.get(role, "relay"),
            "state": "ready",
            "hops": [{"node": node.hex(), "alias": found.alias if found else None} for node, found in named] or None,
            "age": (now - int(circuit["created"])) / SECOND,
            "streams": self._streams.streams_on(connection) if connection >= 0 else None,
            "cells_in": inwards,
            "cells_out": outwards,
        }

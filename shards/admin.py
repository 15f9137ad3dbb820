"""Answers to the control process: what this worker is doing, in the words of `nyx/wire/admin.py`.

Place on a packet's way: none. The channel is never waited for: a full one (the control process is dead or slow) loses the answer.
"""

import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nyx.crypto.suites import SUITE_NAMES
from nyx.errors import LocalProtocolError, NyxError, RemoteProtocolError
from nyx.wire import admin, envelope
from nyx.wire.codes import DestroyReason
from shards.link import Link, LinkState
from shards.tables import LIVE, ROLE_CLIENT

if TYPE_CHECKING:
    from shards.worker import Worker

SECOND: Final = 1_000_000_000
_REQUESTS_PER_TURN: Final = 16
_STATES: Final = {LinkState.HANDSHAKE: "handshake", LinkState.KEYING: "handshake", LinkState.UP: "up"}


class Admin:
    """One worker's end of the channel."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._channel = worker.context.control
        self._channel.setblocking(False)  # noqa: FBT003 (the standard library's form)
        self._started = time.monotonic()
        self._preparing = 0  # id of the last question to prepare a version
        worker.settings.answer = self._prepared

    def on_readable(self, now: int) -> None:
        """Answer what was asked."""
        for _ in range(_REQUESTS_PER_TURN):
            try:
                message = self._channel.recv(envelope.MESSAGE_MAX)
            except (BlockingIOError, ConnectionError):
                return
            if not message:
                return
            try:
                request = admin.decode_request(message)
            except RemoteProtocolError:
                continue
            self._send(self._answer(request, now))

    def _send(self, messages: Iterable[bytes]) -> None:
        for message in messages:
            try:
                self._channel.send(message)
            except OSError:
                return

    def _answer(self, request: admin.Request, now: int) -> Iterable[bytes]:
        worker, index = self._worker, self._worker.context.index
        if request.op is admin.Op.PING:
            return [admin.Answer(request.id, {"worker": index, "pid": os.getpid()}).encode()]
        if request.op is admin.Op.STATUS:
            return [admin.Answer(request.id, self._status()).encode()]
        if request.op is admin.Op.PREPARE:
            return self._prepare(request)
        if request.op is admin.Op.CIRCUITS:
            return admin.answer_rows(request.id, "circuits", [{**row, "worker": index} for row in worker.desk.describe(now)])
        if request.op is admin.Op.STREAMS:
            return admin.answer_rows(request.id, "streams", self._streams(now, show=bool(request.args.get("show_targets"))))
        if request.op is admin.Op.PEERS:
            return admin.answer_rows(request.id, "peers", [self._peer(link) for link in worker.links.all()])
        if request.op is admin.Op.CLOSE_STREAM:
            return [self._close_stream(request, now).encode()]
        return [self._close(request).encode()]

    def _status(self) -> dict[str, Any]:
        worker = self._worker
        clients = worker.desk.clients
        ready = clients.ready if clients else 0
        stage = "ready" if clients is None or ready else "circuits" if worker.links.count_up else "links"
        return {
            "worker": worker.context.index,
            "pid": os.getpid(),
            "stage": stage,
            "uptime": time.monotonic() - self._started,
            "links": worker.links.count_up,
            "circuits": worker.desk.rows.live,
            "circuits_ready": ready,
            "streams": int(np.count_nonzero(worker.context.columns["streams"]["state"])),
            "warnings": worker.checkup.warnings,
            "config": worker.settings.number,
            "memory_used": worker.cap.account,
            "memory_cap": worker.cap.total,
        }

    def _prepare(self, request: admin.Request) -> Iterable[bytes]:
        """Begin; the answer comes when it is done, some turns later."""
        number = request.args.get("version")
        try:
            if type(number) is not int:
                raise LocalProtocolError("version must be a number")
            self._preparing = request.id
            self._worker.settings.prepare(number)
        except NyxError as error:
            return [admin.Answer(request.id, error=str(error)).encode()]
        return []

    def _prepared(self, number: int, error: str | None) -> None:
        why = f"worker {self._worker.context.index} cannot take version {number}: {error}" if error else None
        self._send([admin.Answer(self._preparing, {"version": number}, why).encode()])

    def _streams(self, now: int, *, show: bool) -> list[Mapping[str, Any]]:
        circuit_of = self._worker.batch.circuit_of
        found: list[Mapping[str, Any]] = []
        for row in self._worker.edge.stream_rows(now, show):
            connection = row.pop("connection", None)
            circuit = int(circuit_of[connection]) - 1 if connection is not None else -1
            found.append({**row, "worker": self._worker.context.index, "circuit": circuit if circuit >= 0 else None})
        return found

    def _peer(self, link: Link) -> dict[str, Any]:
        rows = [self._worker.context.columns["sessions"][row] for row in link.sessions.values()]
        node = self._worker.context.snapshot.by_id(link.node) if link.node else None
        suite = SUITE_NAMES.get(link.suite)
        rtts = [channel.srtt for channel in link.channels.values()]
        return {
            "node": link.node.hex() if link.node else None,
            "alias": node.alias if node else None,
            "worker": self._worker.context.index,
            "initiator": link.initiator,
            "state": _STATES.get(link.state, "closing"),
            "sessions": len(rows),
            "suite": suite,
            "rtt": min(rtts) / 1e6 if rtts else None,
            "packets_in": sum(int(row["packets_in"]) for row in rows),
            "packets_out": sum(int(row["packets_out"]) for row in rows),
        }

    def _close(self, request: admin.Request) -> admin.Answer:
        rows = self._worker.desk.rows.rows
        number = request.args.get("circuit")
        if type(number) is not int or not 0 <= number < len(rows) or int(rows[number]["state"]) != LIVE:
            return admin.Answer(request.id, error=f"no circuit {number} at worker {self._worker.context.index}")
        if int(rows[number]["role"]) != ROLE_CLIENT:
            return admin.Answer(request.id, error=f"circuit {number} is not this node's own")
        self._worker.desk.end_row(number, DestroyReason.NONE)
        return admin.Answer(request.id, {"closed": True})

    def _close_stream(self, request: admin.Request, now: int) -> admin.Answer:
        circuit, number = request.args.get("circuit"), request.args.get("stream")
        held = np.flatnonzero(self._worker.batch.circuit_of == circuit + 1) if type(circuit) is int and circuit >= 0 else ()
        if type(number) is not int or not any(self._worker.edge.close_stream(int(row), number, now) for row in held):
            where = f"circuit {circuit} of worker {self._worker.context.index}"
            return admin.Answer(request.id, error=f"no stream {number} stands on {where}")
        return admin.Answer(request.id, {"closed": True})

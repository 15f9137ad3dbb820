"""The proxy's side: applications that connect, say what they want, wait for a circuit and for the exit's answer.

    accept -> Greeting --request--> Waiting --circuit--> Opening --answer 0--> a stream with a socket (pumps)
                  |                    |                    |
                  +----- refused, too slow, no circuit, answer != 0 -----> Lingering (reply sent, rest read) -> closed

A client in the first three states costs a fixed amount of memory and is gone at its deadline; nothing of its stream is read
beyond what came with the request. One descriptor is kept in reserve: where the process has no other left, clients are accepted
with it one after the other, told so, and closed.

Lingering exists because closing a socket with unread bytes resets it, and a reset may
overtake the reply. Fail closed: there is no way from here to a target but a circuit, and names are passed on as they came.
"""

import contextlib
import os
import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nyx.errors import LocalProtocolError
from shards.edge import table as edge
from shards.edge.contract import KIND_TCP, NEVER, SECOND, OpenCircuit
from shards.edge.core import NO_DESCRIPTOR, Core, Deadlines
from shards.edge.greeting import Greeting, answer
from shards.edge.pumps import MASK, prepare, reset_close, whole_close
from shards.edge.reasons import Reason, reason_of_reply
from shards.edge.request import FORM_NAME, Refusal, Refused, Request

ACCEPTS_PER_TURN: Final = 16
GREETING_TIME: Final = 10 * SECOND
CIRCUIT_TIME: Final = 15 * SECOND
OPEN_TIME: Final = 30 * SECOND  # half-open streams (docs/protocol.md, "Bounds"); the exit gives up before
LINGER_TIME: Final = 2 * SECOND
EVICTION_AGE: Final = SECOND // 10  # a greeting older than this may lose its place to a new client
PAUSE: Final = SECOND // 10  # how long accepting rests at most when descriptors or places are used up
CHUNK: Final = 4096
SCARCE_TIME: Final = SECOND // 2  # for a client on the reserved descriptor to ask, and again to read its refusal
LINGER_BYTES: Final = 1 << 16  # read and thrown away after a refusal

_DEAD: Final = select.EPOLLHUP | select.EPOLLERR


@dataclass(slots=True)
class Greeter:
    """A client whose request is not complete."""

    sock: socket.socket
    since: int
    greeting: Greeting = field(default_factory=Greeting)
    scarce: bool = False  # on the reserved descriptor: its request is refused


@dataclass(slots=True)
class Waiting:
    """A request without a circuit."""

    sock: socket.socket
    request: Request
    since: int  # ns; when the request was complete
    until: int


@dataclass(slots=True)
class Opening:
    """A request whose OPEN is on its way."""

    sock: socket.socket
    request: Request
    row: int
    early: int  # first bytes already in the tx ring
    since: int
    until: int


@dataclass(slots=True)
class Lingering:
    """A refused client that may still be sending."""

    sock: socket.socket
    room: int = LINGER_BYTES


Held = Greeter | Waiting | Opening | Lingering


class ClientEdge:
    """Clients of the proxy listeners of one worker."""

    def __init__(self, core: Core, listeners: Sequence[socket.socket], open_circuit: OpenCircuit, max_clients: int) -> None:
        self.core = core
        self.open_circuit = open_circuit
        self.max_clients = max_clients
        self._listeners = {s.fileno(): s for s in listeners}
        self._held: dict[int, Held] = {}
        self._fd_of_row: dict[int, int] = {}
        self._deadlines = Deadlines()
        self._paused_until = 0
        self._reserve = -1
        self._keep_reserve()
        for fd in self._listeners:
            core.epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def owns(self, fd: int) -> bool:
        """Whether the descriptor is one of this side's, listeners included."""
        return fd in self._held or fd in self._listeners

    def count(self, kind: type[Held]) -> int:
        """How many clients are in a state."""
        return sum(isinstance(c, kind) for c in self._held.values())

    # ---------------------------------------------------------------- descriptors

    def on_ready(self, fd: int, mask: int, now: int) -> None:
        """A listener has somebody, or a client without a stream sent something or went away."""
        if fd in self._listeners:
            self._accept(self._listeners[fd], now)
            return
        client = self._held.get(fd)
        match client:
            case Greeter():
                self._greet(fd, client, now)
            case Waiting() | Opening() if mask & _DEAD:
                self._vanished(fd, client, now)
            case Lingering():
                self._drain(fd, client)
            case _:
                pass

    def _accept(self, listener: socket.socket, now: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            full = len(self._held) >= self.max_clients or not self.core.table.room
            slow, until = self._slowest(now) if full else (-1, now + PAUSE)
            if self._paused_until or (full and slow < 0):
                self._pause(until)
                return
            try:
                sock, _peer = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError as error:
                self.core.counters["accept_failed"] += 1
                if error.errno in NO_DESCRIPTOR:
                    self._accept_scarce(listener, now)
                self._pause(now + PAUSE)
                return
            if full:
                self.core.counters["clients_evicted"] += 1
                self._close(slow, reset=True)
            self._admit(sock, now)

    def _keep_reserve(self) -> None:
        """Hold a descriptor for the time when there is no other, if one can be had."""
        if self._reserve < 0 and self._listeners:
            with contextlib.suppress(OSError):
                self._reserve = os.dup(next(iter(self._listeners)))

    def _accept_scarce(self, listener: socket.socket, now: int) -> None:
        """Accept one client to say that there are no descriptors; the others wait in the queue while the reserve is in use."""
        self.core.counters["no_descriptor"] += 1
        if self._reserve < 0:
            return
        os.close(self._reserve)
        self._reserve = -1
        with contextlib.suppress(OSError):
            sock, _peer = listener.accept()
            self._admit(sock, now, scarce=True)

    def _admit(self, sock: socket.socket, now: int, *, scarce: bool = False) -> None:
        fd = sock.fileno()
        try:
            prepare(sock)
        except OSError:
            sock.close()
            return
        self.core.table.hold(fd)
        self.core.epoll.register(fd, MASK)
        self.core.counters["accepted"] += 1
        client = Greeter(sock, now, scarce=scarce)
        self._become(fd, client, now + (SCARCE_TIME if scarce else GREETING_TIME))
        self._greet(fd, client, now)  # its first bytes came with it, as a rule

    def _slowest(self, now: int) -> tuple[int, int]:
        """Who gives way to a new client when all places are taken, or -1; and when to look again.

        Honest greetings take milliseconds. A flood of slow ones is let in and out again at a rate that keeps the queue short:
        1,024 places empty the listener's queue of 4,096 in less than half a second.
        """
        until = now + PAUSE
        for fd, client in self._held.items():  # oldest first
            if isinstance(client, Lingering) or (isinstance(client, Greeter) and now >= client.since + EVICTION_AGE):
                return fd, now
            if isinstance(client, Greeter):
                until = min(until, client.since + EVICTION_AGE)
        return -1, until

    def _pause(self, until: int) -> None:
        if not self._paused_until:
            for fd in self._listeners:
                self.core.epoll.unregister(fd)
        self._paused_until = max(self._paused_until, until)

    def rest(self) -> None:
        """Accept nobody more in this life: they wait in the listeners' queue."""
        self._pause(NEVER)

    @property
    def busy(self) -> bool:
        """Whether somebody who was accepted is not served or refused yet: a next life would reset them."""
        return any(not isinstance(c, Lingering) for c in self._held.values())

    def _resume(self) -> None:
        self._paused_until = 0
        self._keep_reserve()
        for fd in self._listeners:  # EPOLLEXCLUSIVE cannot be modified, only registered anew
            self.core.epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    # ---------------------------------------------------------------- greeting

    def _greet(self, fd: int, client: Greeter, now: int) -> None:
        greeting = client.greeting
        while greeting.result is None:
            try:
                data = client.sock.recv(CHUNK)
                if data:
                    greeting.receive(data)
                if out := greeting.poll_transmit():
                    client.sock.send(out)  # a few bytes into an empty buffer: all or nothing
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.core.counters["greetings_ended"] += 1
                self._close(fd, reset=False)
                return
        if isinstance(greeting.result, Refusal):
            self.core.counters["greetings_bad"] += 1
            self.core.refused(greeting.result.reason)
            self.core.note(edge.CLIENT, "", greeting.result.reason, now)
            self._send_last(fd, greeting.result.reply, now)
        elif client.scarce:
            self._refuse(fd, greeting.result, Reason.NO_DESCRIPTOR, now)
        else:
            waiting = Waiting(client.sock, greeting.result, now, now + CIRCUIT_TIME)
            self._become(fd, waiting, waiting.until)
            self._try(fd, waiting, now)

    # ---------------------------------------------------------------- circuit and stream

    def on_circuit_ready(self, now: int) -> None:
        """Try every waiting request again, oldest first."""
        for fd, client in list(self._held.items()):
            if isinstance(client, Waiting):
                self._try(fd, client, now)

    def _try(self, fd: int, client: Waiting, now: int) -> None:
        request = client.request
        host = request.host
        connection = self.open_circuit(request.isolation, str(host), request.port)
        if connection is None:
            return
        if isinstance(connection, Refused):
            self._refuse(fd, client.request, connection.reason, now)
            return
        target = host.address.decode("ascii") if host.form == FORM_NAME else host.address
        try:
            row = self.core.streams.open_stream(connection, KIND_TCP, target, request.port, now)
        except LocalProtocolError:
            return
        self.core.table.begin(row, edge.CLIENT, now, str(host), request.port)
        early = self.core.pumps.prefill(row, request.rest) if request.rest else 0
        self._fd_of_row[row] = fd
        self.core.counters["streams_opened"] += 1
        self._become(fd, Opening(client.sock, request, row, early, client.since, client.until), now + OPEN_TIME)

    def on_result(self, row: int, code: int, now: int) -> None:
        """The exit answered."""
        fd = self._fd_of_row.get(row, -1)
        client = self._held.get(fd)
        if not isinstance(client, Opening):
            return
        if code:
            reason = reason_of_reply(code)
            self.core.give_up(row, reason, now, tell=False)
            self.core.streams.release(row)
            self.core.pumps.forget(row)
            self._refuse(fd, client.request, reason, now, noted=True)
            return
        self._forget(fd)
        reply = answer(client.request.protocol, Reason.NONE)
        if not self.core.pumps.attach(row, fd, client.early, len(reply)):
            self.core.give_up(row, Reason.CANCELLED, now)
            self._discard(client.sock)
            return
        self.core.opening.observe(now - client.since)
        self.core.table.move(row, edge.OPEN)  # before the application hears of it: who was told yes keeps its stream
        try:
            client.sock.send(reply)
            client.sock.detach()
        except OSError:
            client.sock.detach()
            self.core.pumps.abort(row, Reason.CANCELLED, now)

    def on_lost(self, row: int, reason: Reason, now: int, *, again: bool) -> None:
        """The stream ended before its answer. `again`: its circuit closed, so that another may serve.

        Only if nothing of the application went out: what the exit did with first bytes is not known.
        """
        fd = self._fd_of_row.pop(row, -1)
        client = self._held.get(fd)
        if not isinstance(client, Opening):
            return
        self.core.table.fail(row, reason, now)
        if again and not client.early and now < client.until:
            self._become(fd, Waiting(client.sock, client.request, client.since, client.until), client.until)
        else:
            self._refuse(fd, client.request, reason, now, noted=True)

    def _vanished(self, fd: int, client: Waiting | Opening, now: int) -> None:
        if isinstance(client, Opening):
            self.core.give_up(client.row, Reason.CANCELLED, now)
        self.core.counters["clients_vanished"] += 1
        self._close(fd, reset=True)

    # ---------------------------------------------------------------- refusal

    def _refuse(self, fd: int, request: Request, reason: Reason, now: int, *, noted: bool = False) -> None:
        self.core.counters["streams_refused"] += 1
        self.core.refused(reason)
        if not noted:
            self.core.note(edge.CLIENT, f"{request.host}:{request.port}", reason, now)
        self._send_last(fd, answer(request.protocol, reason), now)

    def _send_last(self, fd: int, reply: bytes, now: int) -> None:
        """Say why, then let the client read it before the connection ends."""
        client = self._held[fd]
        try:
            if reply:
                client.sock.send(reply)
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(fd, reset=True)
            return
        self._forget_row(client)
        lingering = Lingering(client.sock)
        self._become(fd, lingering, now + (SCARCE_TIME if self._reserve < 0 else LINGER_TIME))
        self._drain(fd, lingering)

    def _drain(self, fd: int, client: Lingering) -> None:
        while client.room > 0:
            try:
                data = client.sock.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                break
            if not data:
                break
            client.room -= len(data)
        self._close(fd, reset=client.room <= 0)

    # ---------------------------------------------------------------- time and end

    def next_timeout(self) -> int:
        """When `on_timer` has something to do, in ns."""
        return min(self._deadlines.next, self._paused_until or NEVER)

    def on_timer(self, now: int) -> None:
        """Give up whoever had time enough; accept again after a pause."""
        if self._paused_until and now >= self._paused_until:
            self._resume()
        for fd in self._deadlines.expired(now):
            client = self._held[fd]
            match client:
                case Greeter():
                    self.core.counters["greetings_slow"] += 1
                    self.core.refused(Reason.SLOW_CLIENT)
                    self.core.note(edge.CLIENT, "", Reason.SLOW_CLIENT, now)
                    self._close(fd, reset=True)
                case Waiting():
                    self._refuse(fd, client.request, Reason.NO_CIRCUIT, now)
                case Opening():
                    self.core.give_up(client.row, Reason.TIMEOUT, now)
                    self._refuse(fd, client.request, Reason.TIMEOUT, now, noted=True)
                case Lingering():
                    self._close(fd, reset=True)

    def close(self) -> None:
        """Let every client without a stream go."""
        for fd in list(self._held):
            self._close(fd, reset=True)
        if not self._paused_until:
            for fd in self._listeners:
                with contextlib.suppress(OSError):
                    self.core.epoll.unregister(fd)
        self._listeners.clear()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def _become(self, fd: int, client: Held, deadline: int) -> None:
        self._held[fd] = client
        self._deadlines.set(fd, deadline)

    def _forget_row(self, client: Held) -> None:
        if isinstance(client, Opening):
            self._fd_of_row.pop(client.row, None)

    def _forget(self, fd: int) -> Held:
        client = self._held.pop(fd)
        self._deadlines.clear(fd)
        self._forget_row(client)
        return client

    def _close(self, fd: int, *, reset: bool) -> None:
        sock = self._forget(fd).sock
        self._discard(sock, reset=reset)

    def _discard(self, sock: socket.socket, *, reset: bool = True) -> None:
        fd = sock.fileno()
        with contextlib.suppress(OSError):
            self.core.epoll.unregister(fd)
        self.core.table.drop(fd)
        if reset:
            reset_close(sock)
        else:
            whole_close(sock)
        self._keep_reserve()  # first of all: what is free now may be the last

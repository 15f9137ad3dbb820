"""The exit's side: an OPEN arrives, its name is resolved, the policy asked about each address, the first allowed one connected.

    OPENED -> [Resolving] -> Connecting (next address when one fails) -> a stream with a socket (pumps), answer 0
                  |                |
                  +----------------+--- refused by policy, unresolved, unreachable, refused, too slow ---> answer 1..8

The address that was checked is the address that is connected to. What waits costs a fixed amount, is bounded in all and per
connection (one circuit cannot take every place), and ends within RESOLVE_TIME + CONNECT_TIME: before the client gives up.
"""

import contextlib
import errno
import os
import select
import socket
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, cast

from nyx.path.policy import Address, Policy, plain
from shards.edge import table as edge
from shards.edge.contract import KIND_TCP, SECOND
from shards.edge.core import NO_DESCRIPTOR, Core, Deadlines
from shards.edge.pumps import MASK, prepare, reset_close
from shards.edge.reasons import Reason
from shards.edge.request import FORM_IPV4, FORM_IPV6, FORM_NAME, Host, parse_host
from shards.edge.resolver import Resolver

RESOLVE_TIME: Final = 10 * SECOND
CONNECT_TIME: Final = 15 * SECOND  # all addresses of a target together
ATTEMPT_TIME: Final = 5 * SECOND  # one address while there is another
ATTEMPTS_MAX: Final = 4
PER_CONNECTION: Final = 64  # targets that one circuit may be opening at a time

_REASONS: Final = {
    errno.ECONNREFUSED: Reason.CONNECTION_REFUSED,
    errno.ENETUNREACH: Reason.NETWORK_UNREACHABLE,
    errno.ENETDOWN: Reason.NETWORK_UNREACHABLE,
    errno.EAFNOSUPPORT: Reason.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: Reason.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Reason.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Reason.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Reason.TIMEOUT,
    errno.ECONNRESET: Reason.CONNECTION_REFUSED,
    errno.EACCES: Reason.POLICY,
    errno.EPERM: Reason.POLICY,
}


@dataclass(slots=True)
class Resolving:
    """An OPEN whose name is being looked up."""

    key: int
    port: int


@dataclass(slots=True)
class Connecting:
    """An OPEN whose target is being connected; `left` are the addresses after this one."""

    sock: socket.socket
    port: int
    left: list[Address]
    until: int


class ExitEdge:
    """Targets that one worker of an exit opens."""

    def __init__(self, core: Core, policy: Policy, resolver: Resolver) -> None:
        self.core = core
        self.policy = policy
        self.resolver = resolver
        self._rows: dict[int, Resolving | Connecting] = {}
        self._row_of_key: dict[int, int] = {}
        self._row_of_fd: dict[int, int] = {}
        self._connection_of_row: dict[int, int] = {}
        self._per_connection: Counter[int] = Counter()
        self._deadlines = Deadlines()
        core.epoll.register(resolver.fileno(), select.EPOLLIN)

    def owns(self, fd: int) -> bool:
        """Whether the descriptor is one of this side's."""
        return fd in self._row_of_fd or fd == self.resolver.fileno()

    @property
    def opening(self) -> int:
        """How many targets are being opened."""
        return len(self._rows)

    # ---------------------------------------------------------------- OPEN

    def on_opened(self, row: int, connection: int, now: int) -> None:
        """An OPEN arrived for a new row."""
        kind, form, address, port = self.core.streams.opened(row)
        self.core.table.begin(row, edge.EXIT, now)
        self.core.counters["opens"] += 1
        host = _host(form, address)
        reason = self._refused(kind, form, host, port, connection)
        if host is None or reason is not Reason.NONE:
            self._answer(row, reason, now)
            return
        self._connection_of_row[row] = connection
        self._per_connection[connection] += 1
        if host.form != FORM_NAME:
            self._connect_any(row, [_address(host)], port, now)
            return
        key = self.resolver.submit(host.address.decode("ascii"))
        if key is None:
            self._fail(row, Reason.BUSY, now)
            return
        self._rows[row] = Resolving(key, port)
        self._row_of_key[key] = row
        self._deadlines.set(row, now + RESOLVE_TIME)

    def _refused(self, kind: int, form: int, host: Host | None, port: int, connection: int) -> Reason:
        if kind != KIND_TCP:
            return Reason.NOT_CONNECT
        if form not in (FORM_NAME, FORM_IPV4, FORM_IPV6):
            return Reason.ADDRESS_FORM
        if host is None or port == 0:
            return Reason.BAD_NAME
        if not self.policy.may_allow(port):
            return Reason.POLICY
        if self._per_connection[connection] >= PER_CONNECTION or not self.core.table.room:
            return Reason.BUSY
        return Reason.NONE

    # ---------------------------------------------------------------- names

    def _on_answers(self, now: int) -> None:
        for answer in self.resolver.collect():
            row = self._row_of_key.pop(answer.key, None)
            if row is None:
                continue
            waiting = self._rows.pop(row)
            self.core.counters["names"] += 1
            self._deadlines.clear(row)
            if answer.addresses:
                self._connect_any(row, answer.addresses, waiting.port, now)
            else:
                self._fail(row, self._why_unresolved(), now)

    def _why_unresolved(self) -> Reason:
        """A resolver without descriptors finds no name either, and does not say why."""
        try:
            os.close(os.dup(self.resolver.fileno()))
        except OSError:
            self.core.counters["no_descriptor"] += 1
            return Reason.NO_DESCRIPTOR
        return Reason.NOT_RESOLVED

    # ---------------------------------------------------------------- connections

    def _connect_any(self, row: int, addresses: list[Address], port: int, now: int) -> None:
        allowed = [plain(a) for a in addresses if self.policy.allows(a, port)][:ATTEMPTS_MAX]
        if not allowed:
            self._fail(row, Reason.POLICY, now)
            return
        self._connect(row, allowed, port, now + CONNECT_TIME, now)

    def _connect(self, row: int, addresses: list[Address], port: int, until: int, now: int) -> None:
        """Begin with the first address that does not fail at once."""
        reason = Reason.EXIT_FAILED
        for i, address in enumerate(addresses):
            sock, reason = self._begin(address, port)
            if sock is None:
                continue
            left = addresses[i + 1 :]
            self._rows[row] = Connecting(sock, port, left, until)
            self._row_of_fd[sock.fileno()] = row
            self._deadlines.set(row, min(until, now + ATTEMPT_TIME) if left else until)
            return
        self._fail(row, reason, now)

    def _begin(self, address: Address, port: int) -> tuple[socket.socket | None, Reason]:
        if not self.core.table.room:
            return None, Reason.BUSY
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return None, Reason.NETWORK_UNREACHABLE
            self.core.counters["no_descriptor"] += error.errno in NO_DESCRIPTOR
            return None, Reason.NO_DESCRIPTOR if error.errno in NO_DESCRIPTOR else Reason.BUSY
        self.core.table.hold(sock.fileno())
        try:
            prepare(sock)
            self.core.epoll.register(sock.fileno(), MASK)
            code = sock.connect_ex((str(address), port))
        except OSError as error:
            code = error.errno or errno.EIO
        if code in (0, errno.EINPROGRESS):
            return sock, Reason.NONE
        self._discard(sock)
        return None, _REASONS.get(code, Reason.EXIT_FAILED)

    def on_ready(self, fd: int, mask: int, now: int) -> None:
        """Names were resolved, or a connection was made or failed."""
        if fd == self.resolver.fileno():
            self._on_answers(now)
            return
        row = self._row_of_fd[fd]
        waiting = cast("Connecting", self._rows[row])
        code = waiting.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._next(row, waiting, _REASONS.get(code, Reason.EXIT_FAILED), now)
        elif mask & select.EPOLLOUT:
            self._connected(row, waiting, now)

    def _next(self, row: int, waiting: Connecting, reason: Reason, now: int) -> None:
        """This address failed: the next, or the answer."""
        self._drop_socket(waiting)
        if waiting.left and now < waiting.until:
            self._connect(row, waiting.left, waiting.port, waiting.until, now)
        else:
            self._fail(row, reason, now)

    def _connected(self, row: int, waiting: Connecting, now: int) -> None:
        fd = waiting.sock.fileno()
        if not self.core.pumps.attach(row, fd):
            self._next(row, waiting, Reason.CONNECTION_REFUSED, now)
            return
        waiting.sock.detach()
        del self._row_of_fd[fd]
        self._settle(row)
        self.core.counters["streams_opened"] += 1
        self.core.table.move(row, edge.OPEN)
        self.core.streams.answer_open(row, 0)  # a life that ends before this answers in the next

    # ---------------------------------------------------------------- ends

    def on_lost(self, row: int, reason: Reason, now: int) -> None:
        """The client gave up, or the circuit closed, while the target was being opened."""
        waiting = self._rows.get(row)
        if waiting is None:
            return
        if isinstance(waiting, Resolving):
            self._row_of_key.pop(waiting.key, None)
        else:
            self._drop_socket(waiting)
        self._settle(row)
        self.core.give_up(row, reason, now)

    def _fail(self, row: int, reason: Reason, now: int) -> None:
        self._settle(row)
        self._answer(row, reason, now)

    def _answer(self, row: int, reason: Reason, now: int) -> None:
        """Say no; the row is over."""
        self.core.counters["streams_refused"] += 1
        self.core.refused(reason)
        self.core.streams.answer_open(row, reason.facts.reply)
        self.core.give_up(row, reason, now, tell=False)
        self.core.streams.release(row)
        self.core.pumps.forget(row)

    def _settle(self, row: int) -> None:
        """The row is not being opened any more."""
        self._rows.pop(row, None)
        self._deadlines.clear(row)
        connection = self._connection_of_row.pop(row, None)
        if connection is not None:
            self._per_connection[connection] -= 1
            if not self._per_connection[connection]:
                del self._per_connection[connection]

    def _drop_socket(self, waiting: Connecting) -> None:
        self._row_of_fd.pop(waiting.sock.fileno(), None)
        self._discard(waiting.sock)

    def _discard(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.core.epoll.unregister(sock.fileno())
        self.core.table.drop(sock.fileno())
        reset_close(sock)

    # ---------------------------------------------------------------- time

    def next_timeout(self) -> int:
        """When `on_timer` has something to do, in ns."""
        return self._deadlines.next

    def on_timer(self, now: int) -> None:
        """Give up look-ups and connections that had time enough."""
        for row in self._deadlines.expired(now):
            waiting = self._rows[row]
            if isinstance(waiting, Resolving):
                self._row_of_key.pop(waiting.key, None)
                self._fail(row, Reason.NOT_RESOLVED, now)
            else:
                self._next(row, waiting, Reason.TIMEOUT, now)

    def close(self) -> None:
        """Close every socket that is not connected yet."""
        for waiting in self._rows.values():
            if isinstance(waiting, Connecting):
                self._drop_socket(waiting)
        self._rows.clear()
        if self.resolver.fileno() >= 0:
            self.core.epoll.unregister(self.resolver.fileno())
            self.resolver.close()


def _host(form: int, address: bytes) -> Host | None:
    """The OPEN's host; a client of ours sends only what passes here, so others are refused."""
    if form == FORM_NAME:
        return parse_host(address)
    sizes = {FORM_IPV4: 4, FORM_IPV6: 16}
    return Host(form, address) if sizes.get(form) == len(address) else None


def _address(host: Host) -> Address:
    return IPv4Address(host.address) if host.form == FORM_IPV4 else IPv6Address(host.address)

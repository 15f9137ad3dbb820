"""Where applications of the SDK come in: who may, who has no room, and what they say first.

A connection is looked at before anything is read from it: its process must run as this node's user or as root, whatever the
socket's permissions are. It then has HELLO_TIME to say HELLO, and becomes a `Guest` or is told why not.
"""

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from nyx.errors import RemoteProtocolError
from nyx.wire import sdk
from shards.edge import table as edge
from shards.edge.contract import NEVER, SECOND
from shards.edge.core import Core, Deadlines
from shards.edge.guest import Guest

ACCEPTS_PER_TURN: Final = 16
HELLO_TIME: Final = 5 * SECOND
PAUSE: Final = SECOND // 10

Enter = Callable[[Guest, int, int], None]  # guest, its end of the bell, now


class Lobby:
    """Listeners, and applications that have not said HELLO. `enter` gets every new guest."""

    def __init__(self, core: Core, listeners: Sequence[socket.socket], enter: Enter) -> None:
        self.core = core
        self._enter = enter
        self._listeners = {s.fileno(): s for s in listeners}
        self._greeters: dict[int, socket.socket] = {}
        self._hello_by = Deadlines()
        self._paused_until = 0
        self._listen()

    def _listen(self) -> None:
        self._paused_until = 0
        for fd in self._listeners:
            self.core.epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def _pause(self, until: int) -> None:
        if not self._paused_until:
            for fd in self._listeners:
                self.core.epoll.unregister(fd)
        self._paused_until = max(self._paused_until, until)

    def rest(self) -> None:
        """Accept nobody more in this life: they wait in the listener's queue."""
        self._pause(NEVER)

    def owns(self, fd: int) -> bool:
        """Whether the descriptor is a listener or a connection in here."""
        return fd in self._greeters or fd in self._listeners

    def held(self) -> set[int]:
        """Connections in here."""
        return set(self._greeters)

    def on_ready(self, fd: int, now: int) -> None:
        """A listener has somebody, or somebody said something."""
        if fd in self._greeters:
            self._greet(fd, now)
        elif fd in self._listeners:
            self._accept(self._listeners[fd], now)

    def _accept(self, listener: socket.socket, now: int) -> None:
        guests = self.core.table.guests
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _peer = listener.accept()
            except BlockingIOError:
                return
            except OSError:
                self.core.counters["accept_failed"] += 1
                self._pause(now + PAUSE)
                return
            sock.setblocking(False)  # noqa: FBT003  # its only argument
            if not _ours(sock):
                self.core.counters["guests_refused"] += 1
                sock.close()
            elif len(self._greeters) >= np.count_nonzero(guests["state"] == edge.FREE):
                self._turn_away(sock, "busy", "the node serves as many applications as it may (sdk.max_clients)")
            else:
                self._greeters[sock.fileno()] = sock
                self._hello_by.set(sock.fileno(), now + HELLO_TIME)
                self.core.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def _greet(self, fd: int, now: int) -> None:
        sock, guests = self._greeters[fd], self.core.table.guests
        try:
            message = sock.recv(sdk.MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        self._take(fd)
        try:
            hello = sdk.decode_hello(message)
            free = np.flatnonzero(guests["state"] == edge.FREE)
            guest, theirs = Guest.welcome(guests, int(free[0]), sock, hello.slots, hello.ring)
        except RemoteProtocolError as error:
            self._turn_away(sock, "protocol", str(error))
        except OSError:
            self._turn_away(sock, "resources", "the node has no memory or descriptors for another application")
        else:
            self._enter(guest, theirs, now)

    def _take(self, fd: int) -> socket.socket:
        self._hello_by.clear(fd)
        with contextlib.suppress(OSError):
            self.core.epoll.unregister(fd)
        return self._greeters.pop(fd)

    def _turn_away(self, sock: socket.socket, error: str, text: str) -> None:
        self.core.counters["guests_refused"] += 1
        with contextlib.suppress(OSError):
            sock.send(sdk.Refusal(error, text).encode(), socket.MSG_DONTWAIT)
        sock.close()

    def next_timeout(self) -> int:
        """When `on_timer` has something to do, in ns."""
        return min(self._paused_until or NEVER, self._hello_by.next)

    def on_timer(self, now: int) -> None:
        """Close who said nothing; accept again after a pause."""
        if self._paused_until and now >= self._paused_until:
            self._listen()
        for fd in self._hello_by.expired(now):
            self._take(fd).close()

    def close(self) -> None:
        """Let everybody go and take nobody more."""
        for fd in list(self._greeters):
            self._take(fd).close()
        self._pause(NEVER)
        self._listeners.clear()


def _ours(sock: socket.socket) -> bool:
    """Whether the other end runs as this node's own user, or as root."""
    form = "iII"
    _pid, uid, _gid = struct.unpack(form, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form)))
    return uid in (0, os.geteuid())

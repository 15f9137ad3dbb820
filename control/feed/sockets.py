"""The feed's ZeroMQ sockets: who may join, and how little a slow or hostile subscriber can cost.

A subscriber that does not read loses messages once QUEUE of them wait for it, and nobody else notices. ZeroMQ itself puts no
bound on connections, nor on the subscriptions that it keeps for each: both are counted here, and an endpoint with too many is
opened anew, which frees everything; subscribers join again by themselves. Sockets are asked without waiting, a bounded
number of times in each turn. By TCP there is CURVE and nothing else: whoever has no admitted key hears nothing.
Source: ZeroMQ zmq_setsockopt(3), zmq_socket_monitor(3); RFC 26 (CURVE), RFC 27 (ZAP).
"""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from control.feed.message import MESSAGE_MAX, TOPICS

QUEUE: Final = 32  # messages that wait for one subscriber
CONNECTIONS_MAX: Final = 64
SUBSCRIPTIONS_MAX: Final = 4096  # since an endpoint was opened
SUBSCRIPTION_SIZE: Final = 1024  # bytes of what a subscriber may send; the longest command of CURVE's handshake fits
PER_TURN: Final = 512
HANDSHAKE_TIME: Final = 3000  # ms
_DOMAIN: Final = b"nyx-feed"
_ZAP: Final = "inproc://zeromq.zap.01"

_log: Final = logging.getLogger(__name__)


class Endpoint:
    """One XPUB socket at one address. `prepare` sets what is special about it before each opening."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str, prepare: Callable[[Any], None]) -> None:
        self._context = context
        self._prepare = prepare
        self.address = address
        self.reopened = 0
        self._monitor: Any = None
        self.open()

    def open(self) -> None:
        """Open the socket and count from nothing. Raises zmq.ZMQError."""
        self.connections = self.subscriptions = 0
        self._leaving = False
        self.socket = self._context.socket(zmq.XPUB)
        options = {
            zmq.SNDHWM: QUEUE, zmq.RCVHWM: QUEUE, zmq.LINGER: 0, zmq.MAXMSGSIZE: SUBSCRIPTION_SIZE, zmq.XPUB_VERBOSE: 1,
            zmq.HANDSHAKE_IVL: HANDSHAKE_TIME, zmq.SNDBUF: 4 * MESSAGE_MAX,
            zmq.HEARTBEAT_IVL: 10_000, zmq.HEARTBEAT_TIMEOUT: 30_000,
        }  # fmt: skip
        try:
            for option, value in options.items():
                self.socket.setsockopt(option, value)
            self._prepare(self.socket)
            self._monitor = self.socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
            before = os.umask(0o177)
            try:
                self.socket.bind(self.address)
            finally:
                os.umask(before)
        except zmq.ZMQError:
            self.close()
            raise

    def close(self) -> None:
        """Let everybody go."""
        self.socket.disable_monitor()
        if self._monitor is not None:
            self._monitor.close(linger=0)
            self._monitor = None
        self.socket.close(linger=0)

    def send(self, topic: str, body: bytes) -> None:
        """Publish; whoever has no room for it loses it."""
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart([topic.encode(), body], zmq.NOBLOCK)

    def joined(self) -> set[str]:
        """Topics that somebody subscribed to since the last turn."""
        found: set[str] = set()
        self._count()
        for _ in range(0 if self._leaving else PER_TURN):
            try:
                said = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self.subscriptions += 1
            if said[:1] == b"\x01":
                prefix = said[1:].decode("latin-1")
                found.update(topic for topic in TOPICS if topic.startswith(prefix))
        if not self._leaving and (self.connections > CONNECTIONS_MAX or self.subscriptions > SUBSCRIPTIONS_MAX):
            self._leave()
        return found

    def _count(self) -> None:
        for _ in range(PER_TURN):
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_CLOSED and self._leaving:
                self.close()
                self.open()
                return
            self.connections += (event == zmq.EVENT_ACCEPTED) - (event == zmq.EVENT_DISCONNECTED)

    def _leave(self) -> None:
        """Listen no more. Only when ZeroMQ tells that it has let go of the address can it be opened anew, without everybody."""
        _log.warning("the feed had %d connections and %d subscriptions: all are let go", self.connections, self.subscriptions)
        self.reopened += 1
        self._leaving = True
        self.socket.unbind(self.address)


def local(context: "zmq.Context[zmq.Socket[bytes]]", path: Path) -> Endpoint:
    """The feed for this user: a unix socket in a folder that nobody else can enter."""
    return Endpoint(context, f"ipc://{path}", lambda _socket: None)


def remote(context: "zmq.Context[zmq.Socket[bytes]]", listen: tuple[str, int], secret: bytes) -> Endpoint:
    """The feed by TCP, with CURVE. A `Doorman` must be there already."""

    def prepare(socket: Any) -> None:
        socket.setsockopt(zmq.IPV6, int(":" in listen[0]))
        socket.curve_server = True
        socket.curve_secretkey = secret
        socket.zap_domain = _DOMAIN
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    host, port = listen
    return Endpoint(context, f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}", prepare)


class Doorman:
    """Answers for each CURVE handshake whether its key is admitted. Must live before and as long as the endpoint."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", admitted: Callable[[], Mapping[bytes, str]]) -> None:
        self._admitted = admitted
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ZAP)
        self.refused = 0

    def turn(self) -> None:
        """Answer who waits."""
        for _ in range(PER_TURN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answer(frames)

    def _answer(self, frames: list[bytes]) -> None:
        route, empty, version, request, domain, _address, _identity, mechanism, *credentials = frames
        known = domain == _DOMAIN and mechanism == b"CURVE" and len(credentials) == 1 and credentials[0] in self._admitted()
        self.refused += not known
        code, text = (b"200", b"OK") if known else (b"400", b"no such reader")
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart([route, empty, version, request, code, text, b"", b""], zmq.NOBLOCK)

    def close(self) -> None:
        """Admit nobody any more."""
        self._socket.close(linger=0)

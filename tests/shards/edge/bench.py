"""A client's edge and an exit's edge joined back to back, real sockets at both ends, a clock that the test moves."""

import contextlib
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import numpy as np

from nyx.path.policy import Policy
from shards.edge.contract import SECOND
from shards.edge.edge import Edge
from shards.edge.request import Refused
from shards.edge.resolver import Resolver
from tests.shards.edge.double import pair

RESET_ON_CLOSE = b"\1\0\0\0\0\0\0\0"  # struct linger
OPEN_POLICY = ("accept loopback:*", "accept public:80,443")


def fake_lookup(name: str):
    """Names of the tests: nothing leaves the machine."""
    answers = {
        "localhost": ["127.0.0.1"],
        "both.test": ["::1", "127.0.0.1"],
        "rebind.test": ["10.0.0.1"],
        "mixed.test": ["10.0.0.1", "127.0.0.1"],
    }
    if name not in answers:
        raise OSError("no such name")
    return [ip_address(a) for a in answers[name]]


class Side:
    """One worker: an end of the streams, its epoll, its edge."""

    def __init__(self, end: Any, **options) -> None:
        self.end = end
        self.streams = getattr(end, "streams", end)
        self.options = options
        self.epoll = select.epoll()
        self.edge = Edge(self.epoll, self.streams, end.columns, end.ring, **options)

    def turn(self, now: int) -> None:
        ready = self.epoll.poll(0)
        fds = np.array([fd for fd, _ in ready], np.int64)
        self.edge.on_ready(fds, np.array([mask for _, mask in ready], np.int64), now)
        for kind, connection, row, value in self.end.drain():
            self.edge.on_event(kind, connection, row, value, now)
        self.edge.pump(now)
        if now >= self.edge.next_timeout():
            self.edge.on_timer(now)


class Bench:
    """Both sides and a clock. `circuits`: what open_circuit answers, 0 (a connection row) unless a test changes it."""

    def __init__(
        self,
        *,
        ring: int = 4096,
        rows: int = 16,
        half_open: int = 32,
        max_clients: int = 16,
        policy=OPEN_POLICY,
        lookup=fake_lookup,
    ) -> None:
        self.now = SECOND
        self.near, self.far = self.ends(rows, ring, half_open)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.circuits: int | Refused | None = 0
        self.asked: list[tuple[bytes, str, int]] = []
        self.client = Side(
            self.near, listeners=[self.listener], open_circuit=self.open_circuit, max_clients=max_clients, **self.more()
        )
        self.exit = Side(self.far, policy=Policy.parse(policy) if policy else None, resolver=Resolver(2, lookup))
        self.carry = 1 << 20
        self._open: list[socket.socket] = []

    def ends(self, rows: int, ring: int, half_open: int) -> Any:
        """Both ends of the streams between the edges."""
        return pair(rows=rows, ring=ring, half_open=half_open)

    def more(self) -> dict[str, Any]:
        """Further options of the client's edge."""
        return {}

    def open_circuit(self, isolation: bytes, host: str, port: int) -> int | Refused | None:
        self.asked.append((isolation, host, port))
        return self.circuits

    def turn(self) -> None:
        self.client.turn(self.now)
        self.near.carry(self.carry)
        self.exit.turn(self.now)
        self.far.carry(self.carry)

    def until(self, condition: Callable[[], object], turns: int = 20_000) -> None:
        """Turn until it holds; a bound, not a clock, ends a test that hangs."""
        for _ in range(turns):
            if condition():
                return
            self.turn()
        raise AssertionError("it never came")

    def rest(self, turns: int = 30) -> None:
        for _ in range(turns):
            self.turn()

    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.rest(5)

    # ---------------------------------------------------------------- applications and targets

    def application(self) -> socket.socket:
        return self.keep(socket.create_connection(("127.0.0.1", self.port)))

    def target(self) -> tuple[socket.socket, int]:
        server = self.keep(socket.create_server(("127.0.0.1", 0), backlog=64))
        return server, server.getsockname()[1]

    def keep(self, sock: socket.socket) -> socket.socket:
        sock.setblocking(False)
        self._open.append(sock)
        return sock

    def accept(self, server: socket.socket) -> socket.socket:
        found: list[socket.socket] = []

        def one() -> bool:
            with contextlib.suppress(BlockingIOError):
                found.append(self.keep(server.accept()[0]))
            return bool(found)

        self.until(one)
        return found[0]

    def read(self, sock: socket.socket, size: int) -> bytes:
        """Exactly that many bytes, or what came before the end of file."""
        got = bytearray()
        over = False

        def some() -> bool:
            nonlocal over
            with contextlib.suppress(BlockingIOError):
                data = sock.recv(min(size - len(got), 1 << 16))
                got.extend(data)
                over = not data
            return over or len(got) == size

        self.until(some)
        return bytes(got)

    def end_of(self, sock: socket.socket) -> str:
        """How the connection ends, after whatever it still gives: "eof" or "reset"."""
        try:
            while self.read(sock, 1 << 16):
                pass
        except ConnectionError:
            return "reset"
        return "eof"

    def gone(self, *apps: socket.socket) -> None:
        """These leave; then nothing may be left."""
        for app in apps:
            app.close()
        self.until(self.idle)

    def connect(self, port: int, host: str = "127.0.0.1", rest: bytes = b"") -> socket.socket:
        """An application whose request is answered with success."""
        app = self.application()
        app.send(socks_request(host, port) + rest)
        assert self.read(app, 12) == b"\5\0" + b"\5\0\0\1" + bytes(6)
        return app

    def tunnel(self, receive_buffer: int = 0) -> tuple[socket.socket, socket.socket]:
        """An application and its target, connected; with a size, the kernel holds that little of what is not read."""
        server, port = self.target()
        for listener in (server, self.listener) if receive_buffer else ():
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        app = self.connect(port)
        return app, self.accept(server)

    def idle(self) -> bool:
        """Nothing is left anywhere: no row, no socket, no deadline."""
        sides = (self.client.edge, self.exit.edge)
        for side in sides:
            side.table.check_invariants()
        return all(not s.table.live() and not s.held_fds() and s.next_timeout() == 1 << 62 for s in sides)

    def close(self) -> None:
        for side in (self.client, self.exit):
            side.edge.close(self.now)
            side.epoll.close()
        for sock in [*self._open, self.listener]:
            sock.close()
        for thread in threading.enumerate():
            if thread.name == "resolver":
                thread.join(5)


def socks_request(host: str, port: int) -> bytes:
    name = host.encode()
    return b"\5\1\0" + b"\5\1\0\3" + bytes((len(name),)) + name + port.to_bytes(2, "big")


@contextlib.contextmanager
def bench(kind: type[Bench] = Bench, **options) -> Iterator[Any]:
    made = kind(**options)
    try:
        yield made
    finally:
        made.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def silent_port() -> tuple[socket.socket, list[socket.socket], int]:
    """A listener whose queue is full: further connections hang."""
    server = socket.create_server(("127.0.0.1", 0), backlog=0)
    fill = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(server.getsockname())
        fill.append(sock)
    return server, fill, server.getsockname()[1]


def exchange(
    net: Bench, one: socket.socket, two: socket.socket, up: bytes, down: bytes, rng: random.Random
) -> tuple[bytes, bytes]:
    """Both directions at once, in pieces; what each side got."""
    sent, got = [0, 0], [bytearray(), bytearray()]
    ends = ((one, up, 0), (two, down, 1))

    def step() -> bool:
        for sock, data, i in ends:
            with contextlib.suppress(BlockingIOError):
                sent[i] += sock.send(data[sent[i] : sent[i] + rng.randrange(1, 9000)]) if sent[i] < len(data) else 0
            with contextlib.suppress(BlockingIOError):
                got[1 - i] += sock.recv(rng.randrange(1, 9000))
        return len(got[0]) == len(up) and len(got[1]) == len(down)

    net.until(step)
    return bytes(got[0]), bytes(got[1])

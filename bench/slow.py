"""Claim: applications that say a byte now and then keep nobody else out of the proxy, and are closed in time.

    python -m bench.slow [--sockets 5000] [--seconds 20] [--every 5] [--again] [--json]

Starts a test network and opens so many connections to the client's proxy. Each begins a greeting and sends one byte more every
few seconds, so that its request is never complete; with `--again` one that is closed connects anew at once. Meanwhile a stream
through three hops is opened every 200 ms. Prints how old the oldest of the slow ones became, the times from an honest
application's connect to its first byte of an answer, and what the client's node grew by.
"""

import argparse
import collections
import contextlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.network import Network, running_network
from bench.stream import children, connect, pss_kib, source

GREETING: Final = b"\x05\xff" + bytes(range(3, 255))  # SOCKS5 with 255 methods, so a byte at a time lasts for minutes
GAP: Final = 0.2  # seconds between two honest streams
PATIENCE: Final = 20.0  # seconds after the attack within which all must be closed


@dataclass
class Crowd:
    """The slow ones: each socket's age and how many bytes it has said."""

    port: int
    every: float
    poll: Any = field(default_factory=select.epoll)
    members: dict[int, tuple[socket.socket, float]] = field(default_factory=dict)
    said: dict[int, int] = field(default_factory=dict)
    due: collections.deque[tuple[float, int, float]] = field(default_factory=collections.deque)  # when, who, born when
    ages: list[float] = field(default_factory=list)  # of those that the proxy closed
    opened: int = 0

    def join(self, now: float) -> None:
        """One more, not waited for."""
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 (its only argument)
        sock.connect_ex(("127.0.0.1", self.port))
        self.members[sock.fileno()] = (sock, now)
        self.said[sock.fileno()] = 0
        self.due.append((now, sock.fileno(), now))
        self.poll.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
        self.opened += 1

    def turn(self, *, again: bool) -> None:
        """Say what is due, and bury who was closed."""
        for fd, _ in self.poll.poll(0.005):
            sock, born = self.members.pop(fd)
            self.poll.unregister(fd)
            self.ages.append(time.monotonic() - born)
            sock.close()
            if again:
                self.join(time.monotonic())
        now = time.monotonic()
        while self.due and self.due[0][0] <= now:
            _, fd, born = self.due.popleft()
            if fd in self.members and self.members[fd][1] == born:  # and not another under its number
                self._say(fd)
                self.due.append((now + self.every, fd, born))

    def _say(self, fd: int) -> None:
        at = self.said[fd] % len(GREETING)
        with contextlib.suppress(OSError):  # not accepted yet, or closed: the next turn buries it
            self.said[fd] += self.members[fd][0].send(GREETING[at : at + 1])


def crowd(port: int, options: argparse.Namespace, ready: int, result: int) -> None:
    """The child that attacks: says `ready` once all have connected once, and in the end what became of them."""
    slow = Crowd(port, options.every)
    for _ in range(options.sockets):
        slow.join(time.monotonic())
    os.write(ready, b".")
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        slow.turn(again=options.again)
    until = time.monotonic() + PATIENCE
    while slow.members and time.monotonic() < until:
        slow.turn(again=False)
    ages = sorted(slow.ages) or [0.0]
    report = {"opened": slow.opened, "closed": len(slow.ages), "left": len(slow.members), "oldest": ages[-1]}
    os.write(result, json.dumps(report).encode())


def start_crowd(port: int, options: argparse.Namespace) -> tuple[int, int, int]:
    """Fork it: pid, and where it says that it began and what it found."""
    ready, result = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            crowd(port, options, ready[1], result[1])
            code = 0
        os._exit(code)
    os.close(ready[1])
    os.close(result[1])
    return pid, ready[0], result[0]


def honest(port: int, proxy: int) -> float:
    """Seconds from connecting to the proxy to the first byte of an answer through three hops."""
    start = time.monotonic()
    with connect(port, proxy) as stream:
        stream.sendall(struct.pack(">Q", 1))
        if stream.recv(1) == b"":
            raise ConnectionError("no byte came")
    return time.monotonic() - start


def probe(port: int, proxy: int, until: float) -> tuple[list[float], int]:
    """Times of streams opened one after the other, and how many failed."""
    times, failed = [], 0
    while time.monotonic() < until:
        start = time.monotonic()
        try:
            times.append(honest(port, proxy))
        except OSError:
            failed += 1
        time.sleep(max(0.0, GAP - (time.monotonic() - start)))
    return times, failed


def client_pss(network: Network) -> int:
    """KiB of all processes of the client's node."""
    pid = next(int(node["pid"]) for node in network.nodes() if node["role"] == "client")
    return sum(pss_kib(child) for child in children(pid))


def figures(times: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(times) or [0.0]
    return {
        "opens": len(times),
        "median": 1000 * ordered[len(ordered) // 2],
        "p99": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
        "worst": 1000 * ordered[-1],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run on a network of its own."""
    pid, port = source()
    try:
        with tempfile.TemporaryDirectory() as folder, running_network(Path(folder), nodes=4) as network:
            quiet, _ = probe(port, network.proxy_port, time.monotonic() + 2)
            before = client_pss(network)
            child, ready, result = start_crowd(network.proxy_port, options)
            os.read(ready, 1)
            times, failed = probe(port, network.proxy_port, time.monotonic() + options.seconds)
            grown = client_pss(network) - before
            found = json.loads(os.read(result, 4096) or b"{}")
            os.waitpid(child, 0)
            return {"quiet": figures(quiet), "attacked": figures(times) | {"failed": failed}, "slow": found, "grown_kib": grown}
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def main() -> int:
    """Measure and print; ends with 0 whatever the figures say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--every", type=float, default=5, help="seconds between two bytes of one socket")
    parser.add_argument("--again", action="store_true", help="who is closed comes again")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, options.sockets * 2 + 1024), hard))
    found = measure(options)
    if options.json:
        settings = {"sockets": options.sockets, "seconds": options.seconds, "every": options.every, "again": options.again}
        print(json.dumps({"schema": "nyx.bench.slow", "version": 1} | settings | found))
        return 0
    slow, hurt = found["slow"], found["attacked"]
    print(
        f"slow sockets: {slow['opened']} opened, {slow['closed']} closed, {slow['left']} left; the oldest {slow['oldest']:.1f} s"
    )
    for name in ("quiet", "attacked"):
        row = found[name]
        print(f"{name:9} {row['opens']} opens, median {row['median']:.0f} ms, p99 {row['p99']:.0f}, worst {row['worst']:.0f}")
    print(f"failed    {hurt['failed']}; the client's node grew by {found['grown_kib']} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

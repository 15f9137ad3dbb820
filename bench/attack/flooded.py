"""Floods of strangers at the guard of a running circuit, and what they cost the circuit, strangers who mean it, and memory.

The reference is the same flood sent to a port of this machine that nobody reads: it takes the same processor time from the
circuit. So the share that a circuit keeps is what the relay's own work for the flood leaves of it. Both are measured in turn.
"""

import contextlib
import os
import random
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from bench.attack.floods import Sprayer, forgery, junk, sources
from bench.attack.peer import HOST, Ground, Peer
from bench.cap import Honest
from bench.chaos.look import Member, counters, family
from bench.network import Network
from bench.stream import pss_kib
from nyx.crypto.keys import PublicKeys

KINDS: Final = ("junk", "forgeries", "proven")
SETTLE: Final = 0.7  # seconds of a flood before anything is measured
COOKIE_WAIT: Final = 2.0
FIRST: Final = 4096  # initiations that put a relay under load, so that it gives cookies


@dataclass
class Found:
    """Of one kind of flood."""

    kind: str
    rate: float = 0.0  # packets a second that were sent to the relay
    arrived: int = 0  # packets that its checks counted
    beside: list[float] = field(default_factory=list)  # Mbps of the circuit beside the same flood at the deaf port
    under: list[float] = field(default_factory=list)  # Mbps at the relay
    links: list[float] = field(default_factory=list)  # seconds of each stranger's link
    failed: int = 0
    grown_kib: int = 0
    drops: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> float:
        """Share of its rate that the circuit keeps."""
        return statistics.median(self.under) / max(1e-9, statistics.median(self.beside))

    @property
    def p99(self) -> float:
        """Seconds, of strangers' links."""
        ordered = sorted(self.links) or [0.0]
        return ordered[int(0.99 * (len(ordered) - 1))]


def packets(kind: str, public: PublicKeys, rng: random.Random, cookies: dict[int, bytes], count: int) -> Iterator[bytes]:
    """A flood of one kind, without end; `cookies` by number of the socket, of `count`, that sends it."""
    number = 0
    while True:
        if kind == "junk":
            yield junk(rng.randbytes)
        else:
            yield forgery(public, rng.randbytes, int(time.time()), cookies.get(number % count, b""))
        number += 1


@contextlib.contextmanager
def flood(kind: str, public: PublicKeys, target: tuple[str, int], options: Any) -> Iterator[Any]:
    """A process that floods the target until the end of the block; yields a function that says how many packets it has sent."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            _pour(kind, public, target, options, write)
        os._exit(0)
    os.close(write)
    try:
        os.read(read, 8)  # it has begun
        yield lambda: _latest(read)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)


def _pour(kind: str, public: PublicKeys, target: tuple[str, int], options: Any, told: int) -> None:
    rng = random.Random(os.urandom(8))
    sprayer, cookies = Sprayer(target, sources(options.addresses)), dict[int, bytes]()
    if kind == "proven" and target[1] == options.port:
        sprayer.spray(packets("forgeries", public, rng, {}, 1), 4 * FIRST, FIRST / (4 * FIRST))
        for _ in range(3):
            cookies |= sprayer.fetch_cookies(public, rng.randbytes, int(time.time()), COOKIE_WAIT)
    elif kind == "proven":
        cookies = {number: rng.randbytes(16) for number in range(options.addresses)}
    source = packets(kind, public, rng, cookies, options.addresses)
    while True:
        os.write(told, sprayer.sent.to_bytes(8, "big"))
        sprayer.spray(source, options.rate, 0.1)


def _latest(told: int) -> int:
    """The newest number that the flooding process said."""
    return int.from_bytes(os.read(told, 1 << 16)[-8:], "big")


class Watch(threading.Thread):
    """The most memory of a node's processes above what they hold at first, KiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.first = self.most = self._now()
        self._over = threading.Event()

    def _now(self) -> int:
        return sum(pss_kib(pid) for pid in family(self._pid))

    def run(self) -> None:
        """Until asked to stop."""
        while not self._over.wait(0.5):
            with contextlib.suppress(OSError):
                self.most = max(self.most, self._now())

    def stop(self) -> int:
        """Look no more; what it grew by."""
        self._over.set()
        self.join(10)
        return self.most - self.first


def strangers(ground: Ground, alias: str, count: int, gap: float) -> tuple[list[float], int]:
    """Links of so many clients made one after the other: seconds of each, and how many failed."""
    times, failed = [], 0
    for _ in range(count):
        peer, began = Peer(ground), time.monotonic()
        if peer.link(alias):
            times.append(time.monotonic() - began)
        else:
            failed += 1
        peer.close()
        time.sleep(gap)
    return times, failed


def measure(network: Network, ground: Ground, members: list[Member], honest: Honest, kind: str, options: Any) -> Found:
    """One kind of flood, beside the circuit that `honest` downloads by."""
    alias = next(str(c["hops"][0]["alias"]) for c in network.ask("circuits")["circuits"] if c["hops"])
    guard = next(member for member in members if member.alias == alias)
    node, found = ground.node_of(alias), Found(kind)
    options.port = int(node.addresses[0][1])
    before, watch = counters([guard]), Watch(guard.pid)
    watch.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind((HOST, 0))
        for _ in range(options.rounds):
            for port, rates in ((int(deaf.getsockname()[1]), found.beside), (options.port, found.under)):
                with flood(kind, node.public, (HOST, port), options) as sent:
                    time.sleep(SETTLE)
                    first, began = sent(), time.monotonic()
                    rates.append(honest.rate(options.seconds))
                    if port == options.port:
                        found.rate = (sent() - first) / (time.monotonic() - began)
    with flood(kind, node.public, (HOST, options.port), options):
        time.sleep(SETTLE)
        found.links, found.failed = strangers(ground, alias, options.links, options.gap)
    found.grown_kib = watch.stop()
    after = counters([guard])
    found.drops = {
        name: after[name] - before[name] for name in after if name.startswith("dropped") and after[name] > before[name]
    }
    found.arrived = sum(found.drops.values())
    return found

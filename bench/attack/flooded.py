"""Floods at the guard of a running circuit, and what they cost the circuit, strangers who mean it, and memory.

For packets of strangers the reference is the same flood sent to a port of this machine that nobody reads: it takes the same
processor time from the circuit, so the share that the circuit keeps is what the relay's own work leaves of it. Half-open builds
come over links, and their reference is the circuit alone. Both are measured in turn.
"""

import contextlib
import os
import random
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Final, NamedTuple

from bench.attack.floods import Sprayer, forgery, half_build, junk, sources
from bench.attack.peer import HOST, Ground, Peer, ground_of
from bench.cap import Honest
from bench.chaos.look import Member, counters, family, members
from bench.network import Network, running_network
from bench.stream import pss_kib, source
from nyx.crypto.keys import PublicKeys
from nyx.wire.packet import KIND_BUILD

STRANGERS: Final = ("junk", "forgeries", "proven")
KINDS: Final = (*STRANGERS, "half_builds")
SETTLE: Final = 1.0  # seconds of a flood before anything is measured
LOADING: Final = 4000  # initiations that put a relay under load, so that it gives cookies
LINKS: Final = 8  # over which half-open builds come
LEAST: Final = 64  # sockets with a cookie, without which a proven flood is none


class Plan(NamedTuple):
    """How hard, how long, how often."""

    rate: int = 50_000  # packets a second
    addresses: int = 10_000
    seconds: float = 5.0  # of each measurement
    rounds: int = 3
    links: int = 100  # that strangers make under the flood
    builds: int = 100_000  # half-open ones, that must have been begun in the end
    warm: float = 120.0  # seconds of download before anything: the guard's replay filter takes the size that its rate asks for


@dataclass
class Found:
    """Of one kind of flood."""

    kind: str
    sent: int = 0  # packets, or builds begun, at the relay
    rate: float = 0.0  # of them in a second
    beside: list[float] = field(default_factory=list)  # Mbps of the circuit without the relay's work
    under: list[float] = field(default_factory=list)  # Mbps with it
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


class Flood:
    """A process that floods until it is stopped; `sent` counts what it has sent since it began in earnest."""

    def __init__(self, pour: Callable[[Callable[[int], object]], None]) -> None:
        read, write = os.pipe()
        self._read = read
        self._pid = os.fork()
        if not self._pid:
            with contextlib.suppress(BaseException):
                os.close(read)
                pour(lambda sent: os.write(write, sent.to_bytes(8, "big")))
            os._exit(0)
        os.close(write)
        self.began = bool(os.read(read, 8))

    def sent(self) -> int:
        """The newest number that it said."""
        return int.from_bytes(os.read(self._read, 1 << 16)[-8:], "big")

    def stop(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._read)


@contextlib.contextmanager
def flooding(pour: Callable[[Callable[[int], object]], None]) -> Iterator[Flood]:
    """A flood that runs until the end of the block. Raises RuntimeError when it cannot begin."""
    flood = Flood(pour)
    try:
        if not flood.began:
            raise RuntimeError("the flood ended before it began")
        yield flood
    finally:
        flood.stop()


# ---------------------------------------------------------------- what floods


def strange(kind: str, public: PublicKeys, port: int, plan: Plan, *, deaf: bool) -> Callable[[Callable[[int], object]], None]:
    """Packets of strangers from many addresses."""

    def pour(told: Callable[[int], object]) -> None:
        rng, addresses, jar = random.Random(os.urandom(8)), sources(plan.addresses), list[bytes]()
        sprayer = Sprayer((HOST, port), addresses)
        if kind == "proven" and deaf:
            jar = [rng.randbytes(16) for _ in addresses]
        elif kind == "proven":
            jar = _prove(sprayer, public, rng)
        packets = _packets(kind, public, rng, jar)
        already = sprayer.sent
        while True:
            told(sprayer.sent - already)
            sprayer.spray(packets, plan.rate, 0.1)

    return pour


def _prove(sprayer: Sprayer, public: PublicKeys, rng: random.Random) -> list[bytes]:
    """Put the relay under load and collect cookies; the sockets without one are closed. Raises RuntimeError when few have one."""
    empty = _packets("forgeries", public, rng, [])
    sprayer.spray(empty, LOADING, 0.5)
    cookies = sprayer.fetch_cookies(public, rng.randbytes, int(time.time()))
    if len(cookies) < LEAST:
        raise RuntimeError(f"{len(cookies)} cookies came")
    sprayer.keep(sorted(cookies))
    return [cookies[number] for number in sorted(cookies)]


def _packets(kind: str, public: PublicKeys, rng: random.Random, jar: list[bytes]) -> Iterator[bytes]:
    """Without end; the sprayer's sockets send them in turn, as the cookies stand in the jar."""
    for cookie in cycle(jar or [b""]):
        yield junk(rng.randbytes) if kind == "junk" else forgery(public, rng.randbytes, int(time.time()), cookie)


def half_open(ground: Ground, alias: str, rate: int) -> Callable[[Callable[[int], object]], None]:
    """Builds of six cells, over links of as many clients."""

    def pour(told: Callable[[int], object]) -> None:
        ground.rng.seed(os.urandom(8))
        peers = [peer for peer in (Peer(ground) for _ in range(LINKS)) if peer.link(alias)]
        cells, sent, began = half_build(ground.rng.randbytes), 0, time.monotonic()
        told(0)
        for number, peer in enumerate(cycle(peers), 1):
            if number % LINKS == 0:
                told(sent)
                time.sleep(max(0.0, sent / rate - (time.monotonic() - began)))
            sent += _begin_build(ground, peer, alias, cells, number)
            peer.turn()

    return pour


def _begin_build(ground: Ground, peer: Peer, alias: str, cells: list[bytes], number: int) -> bool:
    """One half-open build, when the link takes it; a link that was ended is made again."""
    links = peer.node.links
    link = links.find(ground.node_of(alias).id) or peer.link(alias)
    if link is None:
        return False
    session = links.choose_session(link)
    return sum(links.send_cell(link, session, KIND_BUILD, slot, number, cell) for slot, cell in enumerate(cells)) == len(cells)


# ---------------------------------------------------------------- what is measured


class Watch(threading.Thread):
    """The most memory of a node's processes above what they hold at first, KiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._first = self._most = self._now()
        self._over = threading.Event()

    def _now(self) -> int:
        return sum(pss_kib(pid) for pid in family(self._pid))

    def run(self) -> None:
        """Until asked to stop."""
        while not self._over.wait(0.5):
            with contextlib.suppress(OSError):
                self._most = max(self._most, self._now())

    def stop(self) -> int:
        """Look no more; what it grew by."""
        self._over.set()
        self.join(10)
        return self._most - self._first


def strangers(ground: Ground, alias: str, count: int) -> tuple[list[float], int]:
    """Links of so many clients, made one after the other: seconds of each, and how many failed."""
    times, failed = [], 0
    for _ in range(count):
        peer, began = Peer(ground), time.monotonic()
        if peer.link(alias):
            times.append(time.monotonic() - began)
        else:
            failed += 1
        peer.close()
        time.sleep(0.06)  # not more than one address may have
    return times, failed


def measure(ground: Ground, guard: Member, honest: Honest, kind: str, plan: Plan) -> Found:
    """One kind of flood at the guard of the circuit that `honest` downloads by."""
    node, found = ground.node_of(guard.alias), Found(kind)
    before, watch = counters([guard]), Watch(guard.pid)
    watch.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind((HOST, 0))
        silent = int(deaf.getsockname()[1])

        def at_relay() -> contextlib.AbstractContextManager[Flood]:
            if kind == "half_builds":
                return flooding(half_open(ground, guard.alias, plan.rate // 7))
            return flooding(strange(kind, node.public, int(node.addresses[0][1]), plan, deaf=False))

        def beside() -> contextlib.AbstractContextManager[Flood | None]:
            alone = kind == "half_builds"
            return contextlib.nullcontext() if alone else flooding(strange(kind, node.public, silent, plan, deaf=True))

        for _ in range(plan.rounds):
            with beside():
                time.sleep(SETTLE)
                found.beside.append(honest.rate(plan.seconds))
            with at_relay() as flood:
                time.sleep(SETTLE)
                first, began = flood.sent(), time.monotonic()
                found.under.append(honest.rate(plan.seconds))
                sent = flood.sent()
                found.rate, found.sent = (sent - first) / (time.monotonic() - began), found.sent + sent
        with at_relay() as flood:
            time.sleep(SETTLE)
            found.links, found.failed = strangers(ground, guard.alias, plan.links)
            while kind == "half_builds" and found.sent + flood.sent() < plan.builds:
                time.sleep(0.1)
            found.sent += flood.sent()
    found.grown_kib = watch.stop()
    after = counters([guard])
    rose = {name: after[name] - before[name] for name in after if name.startswith("dropped")}
    found.drops = {name: count for name, count in rose.items() if count}
    return found


def guard_of(network: Network) -> Member:
    """The client's guard. Raises StopIteration while it has no circuit."""
    alias = next(str(c["hops"][0]["alias"]) for c in network.ask("circuits")["circuits"] if c["hops"])
    return next(member for member in members(network) if member.alias == alias)


def run(seed: int, plan: Plan, kinds: tuple[str, ...] = KINDS) -> list[Found]:
    """All kinds, on a network of its own."""
    pid, port = source()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            running_network(Path(folder) / "net", nodes=5) as network,
            ground_of(network, seed) as ground,
        ):
            honest = Honest(port, network.proxy_port)
            honest.start()
            time.sleep(max(2.0, plan.warm))
            guard = guard_of(network)
            found = [measure(ground, guard, honest, kind, plan) for kind in kinds]
            honest.stop()
            return found
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)

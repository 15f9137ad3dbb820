"""Hostile nodes with real keys and real sockets: a client, or a relay of the directory in whose place it speaks.

A hostile node is a node's own links, circuits and kernels in this process, so that all it sends up to its own lies is what a
neighbour expects. `turn` is to be called often. What it lies about is the stages' matter (`bench.attack.stages`).
"""

import contextlib
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from bench.network import Network
from nyx.config import load
from nyx.crypto.keyfile import load_keys
from nyx.crypto.keys import StaticKeys
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA
from nyx.path.directory import FileDirectory
from nyx.wire.geometry import PACKET_SIZE
from shards.address import pack, unpack
from shards.pool import Pool
from shards.udp import Udp
from tests.shards.small_network import SmallNode

HOST: Final = "127.0.0.1"
BACKLOG: Final = 64 << 10  # bytes in a victim's socket beyond which nothing more is sent: the sockets' queues are not the target
PATIENCE: Final = 5.0  # seconds for a link
KEPT: Final = 256  # of our own packets to each port, to be sent again


class Socket(Udp):
    """A UDP socket of a hostile node; remembers some packets that it sent."""

    family = socket.AF_INET

    def __init__(self, port: int, pool: Pool) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        sock.bind((HOST, port))
        super().__init__(sock, pool)
        self.kept: dict[int, list[bytes]] = {}  # port -> packets that went there
        self.heard = 0  # packets that came back

    def receive(self) -> int:
        """As of every socket."""
        found = super().receive()
        self.heard += found
        return found

    def send(self, slots: NDArray[np.int64], rows: NDArray[np.int64], n: int, sessions: NDArray[Any]) -> int:
        """As of every socket."""
        if n:
            at = int(slots[0]) * PACKET_SIZE
            port = unpack(sessions[int(rows[0])]["address"].tobytes())[1]
            self.kept[port] = [*self.kept.get(port, [])[1 - KEPT :], self.pool.packets[at : at + PACKET_SIZE].tobytes()]
        return super().send(slots, rows, n, sessions)


class Ground:
    """What a hostile node finds around it: the directory, clocks, and entropy from the run's seed."""

    def __init__(self, network: Network, seed: int, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.rng = random.Random(seed)
        self.random = np.random.default_rng(seed)
        self.buckets = 1 << 8
        self.port = 0
        self.suites: tuple[int, ...] = (SUITE_AEGIS128L, SUITE_CHACHA)
        self.config = load(network.folder / network.client() / "nyx.toml")
        directory = self.config.directory
        found = FileDirectory(directory.file, directory.signers, directory.threshold, None)
        self.snapshot = found.verified(found.read(), int(time.time()))

    @property
    def now(self) -> int:
        """Monotonic nanoseconds."""
        return time.monotonic_ns()

    def time(self) -> int:
        """Unix seconds."""
        return int(time.time())

    def socket(self, _address: bytes, pool: Pool) -> Socket:
        """The node's socket, at the port that the node to be made shall have."""
        return Socket(self.port, pool)

    def keys_of(self, alias: str) -> StaticKeys:
        """The keys of a relay of the test network: its owner has turned against the others."""
        return load_keys(load(self.network.folder / alias / "nyx.toml").key_file)

    def node_of(self, alias: str) -> Any:
        """The directory's entry."""
        return next(node for node in self.snapshot.nodes if node.alias == alias)


class Peer:
    """One hostile node. `lie(outbox)` may change what it is about to seal."""

    def __init__(self, ground: Ground, keys: StaticKeys | None = None, *, port: int = 0, circuits: int = 0) -> None:
        ground.port = port
        net: Any = ground
        self.ground = ground
        self.node = SmallNode(net, HOST, keys, "relay" if keys else "client", proxy=bool(circuits), ahead=circuits)
        self.lie: Callable[[Any], None] = lambda _outbox: None
        self._flush = self.node.batch.outbox.flush
        outbox: Any = self.node.batch.outbox
        outbox.flush = self._lying_flush

    @property
    def air(self) -> Socket:
        """Its socket."""
        return cast("Socket", self.node.air)

    def _lying_flush(self, now: int) -> int:
        self.lie(self.node.batch.outbox)
        return self._flush(now)

    def turn(self) -> None:
        """What came in and what is due."""
        self.node.turn(time.monotonic_ns(), int(time.time()))

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
        """Turn until it holds; whether it did."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            self.turn()
            time.sleep(0.0005)
        return True

    def link(self, alias: str) -> Any:
        """A link to this relay, that stands or is made; None when it could not be."""
        found: list[Any] = []
        self.node.links.want(self.ground.node_of(alias), found.append, time.monotonic_ns(), int(time.time()))
        self.until(lambda: found)
        return found[0] if found else None

    def blast(self, port: int, packets: NDArray[np.uint8]) -> int:
        """Send rows of 1280 bytes to a port of the network, unsealed; returns how many left."""
        pool = self.node.pool
        slots = pool.take(len(packets))
        n = len(slots)
        pool.packets.reshape(-1, PACKET_SIZE)[slots] = packets[:n]
        destination = np.frombuffer(pack(HOST, port, socket.AF_INET), np.uint8).copy()
        sent = self.air.send_to(slots, np.zeros(n, np.int64), n, destination.ctypes.data, 0)
        pool.give(slots)
        return sent

    def close(self) -> None:
        """No word to anybody."""
        self.air.socket.close()


def backlog(port: int) -> tuple[int, int]:
    """Bytes that wait in the UDP socket of a port of this machine, and packets that it has dropped so far."""
    wanted, waiting, dropped = f":{port:04X}", 0, 0
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(wanted):
            waiting += int(fields[4].partition(":")[2], 16)
            dropped += int(fields[-1])
    return waiting, dropped


def settle(port: int, *, most: int = BACKLOG, seconds: float = PATIENCE) -> bool:
    """Wait until the node at this port has taken what waits for it; whether it did."""
    end = time.monotonic() + seconds
    while backlog(port)[0] > most:
        if time.monotonic() > end:
            return False
        time.sleep(0.0002)
    return True


@contextlib.contextmanager
def ground_of(network: Network, seed: int) -> Iterator[Ground]:
    """The ground of hostile nodes beside a running network."""
    with tempfile.TemporaryDirectory() as folder:
        yield Ground(network, seed, Path(folder))

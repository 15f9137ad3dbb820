"""Whole nodes without sockets: links, builds, circuits and streams of one worker each, over packets that travel in lists.

Everything is what a worker uses, but the socket, the edge and the clock: `Network.run` lets packets cross until all is quiet and
lets time pass. A packet in flight can be seen, dropped, changed and sent again.
"""

import ctypes
import socket
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from nyx.columns import allocate
from nyx.crypto.keys import StaticKeys
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA
from nyx.link.channel import control_columns
from nyx.link.initiations import replay_columns
from nyx.link.session import session_columns
from nyx.onion.filter import filter_columns, start_filter
from nyx.onion.seen import seen_columns
from nyx.stats import COUNTERS, statistics_columns
from nyx.stream.columns import CONNECTION_CLOSED, PROTOCOL_ERROR, stream_columns
from nyx.stream.engine import Streams
from nyx.wire.geometry import PACKET_SIZE
from shards.address import ADDRESS_SIZE, pack
from shards.avoided import avoided_columns
from shards.batch import Batch
from shards.circuits import CircuitRows
from shards.desk import CircuitDesk
from shards.links import Links
from shards.pool import Pool, pool_columns
from shards.quotas import quota_columns
from shards.ring import Rings, ring_columns
from shards.sessions import SessionRows, peer_columns
from shards.tables import circuit_columns, circuit_table, session_table
from shards.udp import BATCH
from tests.nyx.path.networks import NOW, Member, network

MS = 1_000_000
SECOND = 1000 * MS
PORT = 43300
RING = 1 << 20
CLIENT_HOST = "10.200.0.1"
CLIENT_2_HOST = "10.201.0.1"


class Flying(NamedTuple):
    """A packet under way: raw addresses and 1280 bytes."""

    source: bytes
    target: bytes
    packet: bytes


class Air:
    """A socket's double: what arrived waits in a list, what is sent goes to the network."""

    family = socket.AF_INET
    receive_buffer = 1 << 20

    def __init__(self, address: bytes, pool: Pool, sent: Callable[[Flying], None]) -> None:
        self.address, self.pool, self._sent = address, pool, sent
        self.slots = np.zeros(BATCH, np.int64)
        self.origins = np.arange(BATCH)
        self.sources = np.zeros(BATCH * ADDRESS_SIZE, np.uint8)
        self.waiting: list[Flying] = []
        self.blocked = False

    def receive(self) -> int:
        arrived, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
        for k, flying in enumerate(arrived):
            self.sources[k * ADDRESS_SIZE : (k + 1) * ADDRESS_SIZE] = np.frombuffer(flying.source, np.uint8)
            self.slots[k] = self.pool.take(1)[0]
            at = int(self.slots[k]) * PACKET_SIZE
            self.pool.packets[at : at + PACKET_SIZE] = np.frombuffer(flying.packet, np.uint8)
        return len(arrived)

    def source(self, k: int) -> bytes:
        return self.sources[k * ADDRESS_SIZE : (k + 1) * ADDRESS_SIZE].tobytes()

    def send(self, slots: Any, rows: Any, n: int, sessions: Any) -> int:
        if self.blocked:
            return 0
        for k in range(n):
            at = int(slots[k]) * PACKET_SIZE
            self.send_raw(sessions[int(rows[k])]["address"].tobytes(), self.pool.packets[at : at + PACKET_SIZE].tobytes())
        return n

    def send_to(self, slots: Any, rows: Any, n: int, destinations: int, stride: int) -> int:
        for k in range(n):
            at = int(slots[k]) * PACKET_SIZE
            destination = ctypes.string_at(destinations + int(rows[k]) * stride, ADDRESS_SIZE)
            self.send_raw(destination, self.pool.packets[at : at + PACKET_SIZE].tobytes())
        return n

    def send_raw(self, destination: bytes, packet: bytes) -> bool:
        self._sent(Flying(self.address, destination, packet))
        return True


class SmallNode:
    """One node: one worker on columns of its own. `restart` begins its next life on the same memory."""

    def __init__(self, net: "Network", host: str, keys: StaticKeys | None, role: str, *, proxy: bool, ahead: int) -> None:
        self.net, self.keys, self.role, self.proxy = net, keys, role, proxy
        self.address = pack(host, PORT, socket.AF_INET)
        self.entropy = net.rng.randbytes
        self.path = SimpleNamespace(circuits_ahead=ahead, effort=20, hops=3, allow_loopback=True)
        self.config = SimpleNamespace(
            node=SimpleNamespace(role=role, ratchet=30), path=self.path, guard_file=net.folder / f"guard-{host}"
        )
        self.columns = allocate(
            [*session_columns(48), *peer_columns(48), *control_columns(48), *replay_columns(), *quota_columns(),
             *circuit_columns(16), *avoided_columns(), *filter_columns(self.net.buckets), *stream_columns(8, 8, RING)]
        )  # fmt: skip
        self.shared = allocate([*pool_columns(1, 2048), *ring_columns(1), *seen_columns(1), *statistics_columns(1)])
        self.secret = int.from_bytes(self.entropy(8), "big")
        self.multiplier = int.from_bytes(self.entropy(4), "big") | 1
        self.boot_secret = self.entropy(32)
        self.started = NOW - 1
        self.announced = 0
        self.restart()

    def restart(self) -> None:
        columns, shared = self.columns, self.shared
        rings = Rings(shared, 0, 1, [0])
        self.pool = Pool(shared, 0, 1, rings.in_use())
        self.air = self.net.socket(self.address, self.pool)
        context: Any = SimpleNamespace(
            index=0, workers=1, config=self.config, keys=self.keys, snapshot=self.net.snapshot, udp=self.air,
            proxy=("listening",) if self.proxy else (), sdk=(), columns=columns, shared=shared,
            multiplier=self.multiplier, boot_epoch=77, boot_secret=self.boot_secret, started=self.started,
            entropy=self.entropy, draining=False,
        )  # fmt: skip
        self.context: Any = context
        sessions, circuits = session_table(columns, self.secret), circuit_table(columns, self.secret)
        start_filter(columns, self.entropy)
        self.statistics = np.zeros(len(COUNTERS), np.int64)
        air: Any = self.air
        self.batch = Batch(
            columns, self.pool, air, rings, self.multiplier, sessions, circuits, len(columns["connections"]), self.statistics
        )
        self.streams = Streams(columns, RING, self.entropy)
        self.session_rows = SessionRows(self.context, sessions, list(self.net.suites))
        self.posted: list[tuple[int, dict[str, Any]]] = []
        self.links = Links(self.context, self.batch, self.session_rows, self._post)
        self.rows = CircuitRows(columns, circuits, self.entropy)
        edge: Any = SimpleNamespace(on_circuit_ready=self._on_ready)
        self.desk = CircuitDesk(self.context, self.batch, self.links, self.rows, self.streams, edge)
        self.links.circuits = self.desk
        self.links.strangers.on_timer(self.net.now, self.net.time())
        self.streams.rebuild(self.net.now)
        self._owners = np.zeros(BATCH, np.int64)

    def _post(self, worker: int, message: dict[str, Any]) -> bool:
        self.posted.append((worker, message))
        return True

    def _on_ready(self, now: int) -> None:
        self.announced += 1

    def turn(self, now: int, wall: int) -> None:
        """What a worker does in one turn, in its order."""
        while self.batch.receive(now):
            batch = self.batch
            if batch.ended:
                self.streams.receive(self.pool.packets, batch.frames, batch.connections, batch.sequences, batch.ended, now)
            batch.release()
            for stranger in batch.strangers():
                self.links.on_stranger(stranger, now, wall)
            for packet in batch.control():
                self.links.on_control(packet, now)
        self.desk.serve(now, wall)
        self._events()
        self.streams.on_timeout(now)
        self._events()
        self.links.on_timer(now, wall)
        self.desk.on_timer(now, wall)
        self.links.transmit(now)
        slots = self.pool.take(64)
        made = self.streams.transmit(self.pool.packets, slots, len(slots), now, self._owners)
        if made:
            self.batch.wrap(slots, self._owners, made, now)
        self.pool.give(slots[made:])
        self.batch.outbox.flush(now)

    def _events(self) -> None:
        while (event := self.streams.next_event()) is not None:
            if event.kind in {CONNECTION_CLOSED, PROTOCOL_ERROR}:
                self.desk.on_connection_over(event.connection)

    def drops(self, code: int) -> int:
        return int(self.batch.drops[code])

    def circuits(self, role: int | None = None) -> list[int]:
        rows = self.columns["circuits"]
        return [int(r) for r in np.flatnonzero(rows["state"] == 2) if role is None or int(rows[r]["role"]) == role]


class Network:
    """Nodes by their addresses, and the packets between them. `watch` may look at each packet, change it, or drop it (None)."""

    suites: Sequence[int] = (SUITE_AEGIS128L, SUITE_CHACHA)

    def __init__(
        self, rng: Any, folder: Any, relays: int = 3, *, clients: int = 1, ahead: int = 0, buckets: int = 1 << 8,
        suites: Sequence[int] = suites, **members: Any,
    ) -> None:  # fmt: skip
        self.rng, self.folder, self.buckets, self.suites = rng, folder, buckets, suites
        self.now, self.wall = 1000 * SECOND, NOW
        self.watch: Callable[[Flying], bytes | None] = lambda flying: flying.packet
        self.log: list[Flying] = []
        keys = [StaticKeys.generate(rng.randbytes) for _ in range(relays)]
        hosts = [f"10.{i}.0.1" for i in range(relays)]
        self.snapshot = network(
            *(Member(host, exit=i == relays - 1, keys=k, **members) for i, (host, k) in enumerate(zip(hosts, keys, strict=True)))
        )
        self.nodes: dict[bytes, SmallNode] = {}
        self.relays = [
            self._add(host, k, "exit" if i == relays - 1 else "relay", proxy=False, ahead=0)
            for i, (host, k) in enumerate(zip(hosts, keys, strict=True))
        ]
        client_hosts = (CLIENT_HOST, CLIENT_2_HOST)[:clients]
        self.clients = [self._add(host, None, "client", proxy=True, ahead=ahead) for host in client_hosts]

    def _add(self, host: str, keys: StaticKeys | None, role: str, *, proxy: bool, ahead: int) -> SmallNode:
        node = SmallNode(self, host, keys, role, proxy=proxy, ahead=ahead)
        self.nodes[node.address] = node
        return node

    def socket(self, address: bytes, pool: Pool) -> Any:
        """What a node sends and receives by."""
        return Air(address, pool, self.fly)

    def fly(self, flying: Flying) -> None:
        """A packet leaves; it arrives in the next round unless the watcher keeps it."""
        assert len(flying.packet) == PACKET_SIZE
        self.log.append(flying)
        packet = self.watch(flying)
        if packet is not None and flying.target in self.nodes:
            self.nodes[flying.target].air.waiting.append(flying._replace(packet=packet))

    def time(self) -> int:
        """Unix seconds."""
        return self.wall + (self.now - 1000 * SECOND) // SECOND

    def tick(self, step: int = 5 * MS) -> None:
        """One turn of every node, then time passes."""
        for node in list(self.nodes.values()):
            node.turn(self.now, self.time())
        self.now += step

    def run(self, seconds: float = 0.2, step: int = 5 * MS) -> None:
        """Let time pass."""
        end = self.now + int(seconds * SECOND)
        while self.now < end:
            self.tick(step)

    def node_of(self, relay: int) -> Any:
        """The directory's entry of a relay."""
        keys = self.relays[relay].keys
        assert keys is not None
        return self.snapshot.by_id(keys.public.node_id)

    def link(self, node: SmallNode, relay: int) -> Any:
        """A link of this node to a relay, made if there is none."""
        found: list[Any] = []
        node.links.want(self.node_of(relay), found.append, self.now, self.time())
        for _ in range(60):
            if found:
                break
            self.tick()
        self.run(0.1)
        return found[0]

"""A circuit through whole nodes of one process, any of which may be an attacker's: it sees and changes what it passes on.

Links, keys, kernels, windows and filters are those of a node; only the sockets are doubles, which move blocks of packets. What a
node is about to seal stands in the outbox of its batch: there a malicious relay changes cells, copies them or puts them in
another order, and its neighbour gets them under a valid link seal.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.suites import SUITE_AEGIS128L
from nyx.wire.geometry import CELL_SIZE, FRAMES_SIZE, PACKET_CELL, PACKET_SIZE
from shards.tables import ROLE_CLIENT
from shards.udp import BATCH
from tests.shards.small_network import SECOND, Network, SmallNode

Block = NDArray[np.uint8]  # packets of 1280 bytes, a row each
FORWARD: Final = 0
BACKWARD: Final = 1
FIRST_SEQUENCE: Final = 1 << 12  # above what the circuit's own streams have used
BUILD_LIMIT: Final = 20  # seconds of the network's own clock


class Wire:
    """A socket's double for one node: takes blocks in, keeps blocks that were sent."""

    def __init__(self, node: SmallNode) -> None:
        self._node = node
        self.slots = np.zeros(BATCH, np.int64)
        self.receive_buffer = 1 << 20
        self.pool = node.pool
        self.origins = np.zeros(BATCH, np.int64)
        self.sources = np.frombuffer(node.address, np.uint8).copy()
        self._waiting: list[Block] = []
        self._sent: list[Block] = []

    def give(self, block: Block) -> None:
        """Packets for the node's next `receive` calls, at most a batch in each."""
        self._waiting += [block[at : at + BATCH] for at in range(0, len(block), BATCH)]

    def receive(self) -> int:
        """As of a socket: what waits goes into slots of the pool."""
        if not self._waiting:
            return 0
        block = self._waiting.pop(0)
        self.slots[: len(block)] = self._node.pool.take(len(block))
        view(self._node)[self.slots[: len(block)]] = block
        return len(block)

    def source(self, _place: int) -> bytes:
        """Where every packet came from."""
        return self._node.address

    def send(self, slots: Any, _rows: Any, n: int, _sessions: Any) -> int:
        """As of a socket: all of it leaves."""
        self._sent.append(view(self._node)[np.asarray(slots[:n])].copy())
        return n

    def send_raw(self, _destination: bytes, _packet: bytes) -> bool:
        """Handshakes go nowhere: the links stand."""
        return True

    def take_sent(self) -> Block:
        """Everything sent since the last call."""
        sent, self._sent = self._sent, []
        return np.concatenate(sent) if sent else np.zeros((0, PACKET_SIZE), np.uint8)


def view(node: SmallNode) -> Block:
    """The pool of a node, a row a slot."""
    return node.pool.packets.reshape(-1, PACKET_SIZE)


class Line:
    """Client, relays in the order of the path; `circuit` and `now` are the apparatus' own."""

    def __init__(
        self, seed: int, folder: Path, hops: int, *, buckets: int = 1 << 16, circuits: int = 1, suite: int = SUITE_AEGIS128L
    ) -> None:
        self.net = Network(random.Random(seed), folder, relays=hops, ahead=circuits, buckets=buckets, suites=(suite,))
        self.random = np.random.default_rng(seed)
        client = self.net.clients[0]
        client.path.hops = hops
        end = self.net.now + BUILD_LIMIT * SECOND
        while len(client.circuits(ROLE_CLIENT)) < circuits and self.net.now < end:
            self.net.run(0.5)
        self.rows = client.circuits(ROLE_CLIENT)
        if len(self.rows) < circuits:
            raise RuntimeError(f"no circuit of {hops} hops in {BUILD_LIMIT} s")
        self.net.run(0.5)
        by_id = {relay.keys.public.node_id: relay for relay in self.net.relays if relay.keys}
        self.nodes = [client, *(by_id[node] for node in client.rows.path(self.rows[0]))]
        for node in self.nodes:
            self.wire(node)
        self._sequence = [FIRST_SEQUENCE, FIRST_SEQUENCE]

    @property
    def now(self) -> int:
        """Monotonic nanoseconds of all nodes."""
        return self.net.now

    def wire(self, node: SmallNode) -> Wire:
        """Put the double in the place of the node's socket; what was in flight is lost."""
        double: Any = Wire(node)
        node.batch.outbox.flush(self.now)
        node.batch.udp = node.batch.outbox._udp = double  # noqa: SLF001 (a socket's double)
        found: Wire = double
        return found

    def route(self, direction: int) -> list[SmallNode]:
        """The nodes in the order in which a cell passes them."""
        return self.nodes if direction == FORWARD else self.nodes[::-1]

    def connection(self, direction: int, circuit: int = 0) -> int:
        """The stream connection from which cells of this direction start."""
        node = self.route(direction)[0]
        row = self.rows[circuit] if direction == FORWARD else self.far_rows()[circuit]
        return int(node.columns["circuits"][row]["connection"]) - 1

    def far_rows(self) -> list[int]:
        """Rows at the last hop, in the order of the client's."""
        rows = self.nodes[-1].circuits()
        return rows if len(self.rows) == 1 else sorted(rows, key=lambda r: int(self.nodes[-1].columns["circuits"][r]["created"]))

    # ------------------------------------------------------------ steps of a cell

    def start(self, direction: int, count: int, circuit: int = 0) -> SmallNode:
        """Fresh cells in the outbox of the end where this direction begins, their frames random."""
        node = self.route(direction)[0]
        slots = node.pool.take(count)
        cells = view(node)[:, PACKET_CELL : PACKET_CELL + CELL_SIZE]
        first = self._sequence[direction]
        self._sequence[direction] += count
        numbers = np.arange(first, first + count, dtype=">u8").view(np.uint8).reshape(count, 8)
        frames = self.random.integers(0, 256, (count, FRAMES_SIZE), np.uint8)
        cells[slots] = np.concatenate([numbers, np.zeros((count, 8), np.uint8), frames], axis=1)
        node.batch.wrap(slots, np.full(count, self.connection(direction, circuit), np.int64), count, self.now)
        return node

    def leave(self, node: SmallNode) -> Block:
        """Seal and send what stands in the outbox; the packets on the wire."""
        wire: Any = node.batch.udp
        while node.batch.outbox.n or node.batch.outbox.blocked:
            if not node.batch.outbox.flush(self.now):
                break
        sent: Block = wire.take_sent()
        return sent

    def arrive(self, node: SmallNode, block: Block) -> Iterator[int]:
        """Give a node packets; after each batch, how many cells ended there. Strangers and control packets are thrown away."""
        wire: Any = node.batch.udp
        wire.give(block)
        while node.batch.receive(self.now):
            yield node.batch.ended
            node.batch.release()
            for _ in node.batch.strangers():
                pass
            for _ in node.batch.control():
                pass

    def deliver(self, node: SmallNode, block: Block) -> int:
        """Give a node packets; how many cells ended there."""
        return sum(self.arrive(node, block))

    def carry(self, direction: int, node: SmallNode, last: int, block: Block) -> Block:
        """Carry packets on, from those that reach the node after `node`, to what arrives at place `last` of the route."""
        route = self.route(direction)
        for at in range(route.index(node) + 1, last):
            self.deliver(route[at], block)
            block = self.leave(route[at])
        return block


class Queue(NamedTuple):
    """Packets that wait for their seal: bytes from the header on, and the session rows by which they leave."""

    packets: Block
    rows: NDArray[np.int64]


def queue_of(node: SmallNode) -> Queue:
    """A copy of what stands in a node's outbox, unsealed."""
    outbox = node.batch.outbox
    return Queue(view(node)[outbox.slots[: outbox.n]].copy(), outbox.rows[: outbox.n].copy())


def replace(node: SmallNode, queue: Queue) -> None:
    """Put these packets into the outbox in the place of what stands there: the node's owner may do what it likes."""
    outbox = node.batch.outbox
    node.pool.give(outbox.slots[: outbox.n].copy())
    outbox.n = 0
    slots = node.pool.take(len(queue.rows))
    view(node)[slots] = queue.packets
    for slot, row in zip(slots.tolist(), queue.rows.tolist(), strict=True):
        outbox.add(slot, row)

"""A sender and a sink outside the measured nodes: real links, keys and circuits, cells made and taken by the batch.

The sender is this process; the sink is a process of its own that has the place, port and keys of the network's last hop. They
share words of memory: packets received, and a histogram of latencies. A cell carries the moment at which it was due, and is
sealed for the sink under all layers of its circuit: the relays between see cells like any other.
"""

import contextlib
import os
import select
import signal
import time
import traceback
from dataclasses import replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from bench.attack.peer import Ground, Peer, ground_of
from bench.load.histogram import BUCKETS, buckets, percentile
from bench.network import Network
from nyx.columns import Column
from nyx.crypto.suites import SUITE_CHACHA
from nyx.wire.geometry import FRAMES_SIZE, PACKET_CELL, PACKET_FRAMES, PACKET_SIZE
from shards.memory import Memory
from shards.poller import Poller, fine_timers
from shards.sessions import receive_window
from shards.tables import ROLE_CLIENT

LOADS: Final = (10, 50, 90)  # percent of what passes at full load
BURST: Final = 96  # packets made at once, at most
BUILD_LIMIT: Final = 30.0  # seconds for all circuits
SLOWEST: Final = 2000  # packets a second below which a phase is ended
SETTLED: Final = 0.3  # seconds without a packet after which those in flight count as lost
FIRST_SEQUENCE: Final = 1 << 12  # above what the circuit itself may have used
LAST_HOP: Final = "exit-1"  # of the test network: in its place is the sink
MOST: Final = 500_000  # packets a circuit: the circuit's own cells, with the first sequences, must stay within the window
RECEIVED, READY, STOP = range(3)  # shared words; the histogram follows
HISTOGRAM: Final = 8
_PAUSE: Final = 20_000  # ns between two looks
_PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}

Words = NDArray[np.int64]


def spare_cores() -> list[int]:
    """Cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def view(peer: Peer) -> NDArray[np.uint8]:
    """The pool of a peer, a row a packet."""
    packets: NDArray[np.uint8] = peer.node.pool.packets.reshape(-1, PACKET_SIZE)
    return packets


def sink(ground: Ground, alias: str, words: Words, core: int | None, parent: int) -> None:
    """Be the last hop until told to stop, or alone; count and time what arrives."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    keys = ground.keys_of(alias)
    peer = Peer(ground, keys, port=int(ground.node_of(alias).addresses[0][1]))
    peer.node.config.node.role = "exit"

    def take(packets: Any, frames: Words, _connections: Any, sequences: Words, n: int, _now: int) -> None:
        """In the place of the streams: cells of ours that end here are counted; the circuit has a few of its own."""
        ours = frames[:n][sequences[:n] >= FIRST_SEQUENCE]
        due = np.ascontiguousarray(packets[ours[:, None] + np.arange(8)]).view(np.int64).ravel()
        np.add.at(words[HISTOGRAM:], buckets(time.monotonic_ns() - due), 1)
        words[RECEIVED] += len(ours)

    node: Any = peer.node
    node.streams.receive = take
    poller = Poller()
    poller.register(peer.air.socket.fileno(), select.EPOLLIN)
    words[READY] = 1
    while not words[STOP] and os.getppid() == parent:
        poller.wait(1_000_000)
        peer.turn()


class Load:
    """A running load through a network's relays. `apart`: whether sender and sink have cores of their own."""

    def __init__(self, network: Network, suite: int, circuits: int, hops: int, workers: int) -> None:
        self._stack = contextlib.ExitStack()
        self._network, self._count, self._hops = network, circuits, hops
        self._suites = (suite,) if suite == SUITE_CHACHA else (suite, SUITE_CHACHA)  # the mandatory one is always offered
        self._cores = spare_cores()
        self.apart = len(self._cores) >= (hops - 1) * workers + 2
        columns = [Column("words", np.dtype(np.int64), HISTOGRAM + BUCKETS)]
        self._words: Words = Memory.create("nyx-bench-load", columns).columns["words"]
        self._poller = Poller()
        self._next = 0
        self.pids = [os.getpid()]

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        ground = self._stack.enter_context(ground_of(self._network, 1))
        ground.suites = self._suites
        self._fork(ground)
        only = tuple(node for node in ground.snapshot.nodes if not node.exit or node.alias == LAST_HOP)
        ground.snapshot = replace(ground.snapshot, nodes=only)  # so that there is one path
        if self.apart:
            os.sched_setaffinity(0, {self._cores[-2]})
            self._stack.callback(os.sched_setaffinity, 0, set(self._cores))
        fine_timers()
        self._peer = Peer(ground, circuits=self._count)
        self._stack.callback(self._peer.close)
        self._peer.node.path.hops = self._hops
        if not self._peer.until(self._ready, BUILD_LIMIT):
            raise RuntimeError(f"only {len(self._connections())} of {self._count} circuits in {BUILD_LIMIT:.0f} s")
        self._rows = self._connections()
        self._sequences = np.full(len(self._rows), FIRST_SEQUENCE, np.int64)
        self.receive_buffer = self._peer.air.receive_buffer
        self._window = max(BURST, receive_window(self.receive_buffer))

    def _fork(self, ground: Ground) -> None:
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            try:
                sink(ground, LAST_HOP, self._words, self._cores[-1] if self.apart else None, parent)
            except BaseException:  # noqa: BLE001 (a fork's last word; it must not return into its parent's code)
                traceback.print_exc()
            finally:
                os._exit(0)
        self._stack.callback(self._stop, pid)
        self.pids.append(pid)

    def _stop(self, pid: int) -> None:
        self._words[STOP] = 1
        end = time.monotonic() + 2
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.01)

    def _connections(self) -> Words:
        rows = self._peer.node.circuits(ROLE_CLIENT)
        return np.array([int(self._peer.node.columns["circuits"][row]["connection"]) - 1 for row in rows], np.int64)

    def _ready(self) -> bool:
        return bool(self._words[READY]) and len(self._connections()) >= self._count

    # ------------------------------------------------------------ what is sent

    def _send(self, due: Words) -> int:
        """Cells that carry these moments, over all circuits in turn; how many were made."""
        node, count = self._peer.node, len(self._rows)
        slots = node.pool.take(min(len(due), node.batch.outbox.room))
        n = len(slots)
        which = (self._next + np.arange(n)) % count
        self._next = (self._next + n) % count
        numbers = np.zeros(n, np.int64)
        for circuit in range(count):
            mine = np.flatnonzero(which == circuit)
            numbers[mine] = self._sequences[circuit] + np.arange(len(mine))
            self._sequences[circuit] += len(mine)
        cells = np.zeros((n, PACKET_FRAMES - PACKET_CELL + FRAMES_SIZE), np.uint8)
        cells[:, :8] = numbers.astype(">i8").view(np.uint8).reshape(n, 8)
        frames = PACKET_FRAMES - PACKET_CELL
        cells[:, frames : frames + 8] = due[:n].view(np.uint8).reshape(n, 8)
        view(self._peer)[slots, PACKET_CELL : PACKET_CELL + cells.shape[1]] = cells
        node.batch.wrap(slots, self._rows[which], n, time.monotonic_ns())
        return n

    def _begin(self) -> None:
        self._words[RECEIVED] = 0
        self._words[HISTOGRAM:] = 0

    def _settle(self, sent: int) -> None:
        """Wait for what is in flight."""
        last, quiet = -1, time.monotonic()
        while (received := int(self._words[RECEIVED])) < sent and time.monotonic() - quiet < SETTLED:
            if received != last:
                last, quiet = received, time.monotonic()
            self._peer.turn()
            self._poller.wait(_PAUSE)

    def full(self, packets: int) -> dict[str, Any]:
        """Send so many with the window full; what arrived, in how long."""
        self._begin()
        began = time.monotonic()
        end, sent, lost, last, quiet = began + packets / SLOWEST + 1, 0, 0, 0, began
        while sent < packets and (now := time.monotonic()) < end:
            received = int(self._words[RECEIVED])
            if received != last:
                last, quiet = received, now
            if sent - lost - received > self._window - BURST:
                self._poller.wait(_PAUSE)
                if now - quiet > SETTLED:
                    lost = sent - received
            else:
                sent += self._send(np.full(min(BURST, packets - sent), time.monotonic_ns(), np.int64))
            self._peer.turn()
        self._settle(sent)
        received = int(self._words[RECEIVED])
        quiet_at_end = SETTLED if received < sent else 0.0
        return {"received": received, "lost": sent - received, "seconds": time.monotonic() - began - quiet_at_end}

    def at(self, rate: float, packets: int) -> dict[str, Any]:
        """Send so many at a rate, whatever arrives; latencies in us from the moment at which each was due."""
        self._begin()
        gap = 1e9 / max(rate, 1.0)
        began, sent = time.monotonic_ns(), 0
        end = began + int(packets * gap * 3) + 10**9
        while sent < packets and (now := time.monotonic_ns()) < end:
            due = min(packets, int((now - began) / gap))
            if due > sent:
                part = np.arange(sent, min(due, sent + BURST))
                sent += self._send((began + part * gap).astype(np.int64))
            else:
                self._poller.wait(_PAUSE)
            self._peer.turn()
        offered = sent / max(time.monotonic_ns() - began, 1) * 1e9
        self._settle(sent)
        counts = self._words[HISTOGRAM:].copy()
        found = {name: percentile(counts, part) / 1e3 for name, part in _PERCENTILES.items()}
        return found | {"offered": round(offered), "wanted": round(rate), "sent": sent, "lost": sent - int(self._words[RECEIVED])}

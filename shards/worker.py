"""A worker: one loop over one shard of sessions, from its socket to streams and back.

A turn, in this order: wait; receive and relay; strangers, link frames and builds; opened cells into streams; sockets of
applications and targets; timers; cells out of streams; seal and send; housekeeping, for which no packet waits. Everything that
touches each packet is a kernel over the whole batch (`shards/batch.py`); Python decides what happens next. State is in memory
that the supervisor owns: a worker that dies is started again on it. Source: docs/architecture.md, "A packet's day".
"""

import hashlib
import select
import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column
from nyx.config import Config
from nyx.crypto import schedule
from nyx.crypto.entropy import RandomStream
from nyx.link.channel import control_columns
from nyx.link.initiations import replay_columns
from nyx.link.session import session_columns
from nyx.onion.filter import filter_columns
from nyx.path.policy import Policy
from nyx.stats import Counter, Latency, add_drops, latency_histogram, statistics_row
from nyx.stream import columns as stream_events
from nyx.stream.columns import stream_columns
from nyx.stream.engine import Streams
from nyx.wire.codes import Drop
from shards.admin import Admin
from shards.avoided import avoided_columns
from shards.batch import Batch
from shards.cap import Cap
from shards.checkup import ASLEEP, Checkup
from shards.circuits import CircuitRows
from shards.context import Asked, WorkerContext
from shards.desk import CircuitDesk
from shards.edge.edge import Edge
from shards.edge.reasons import Reason
from shards.edge.request import Refused
from shards.edge.sdk import Welcoming
from shards.edge.table import edge_columns, live_sockets, socket_inode
from shards.links import Links
from shards.messages import unpack_secrets
from shards.poller import Poller, drain
from shards.pool import Pool
from shards.process import open_descriptors
from shards.quarantine import FAULT_AGE, begin_life
from shards.quotas import quota_columns
from shards.recall import FILTER_BUCKETS, Recall
from shards.ring import Rings
from shards.sessions import SessionRows, offered_suites, peer_columns
from shards.settings import Settings
from shards.tables import circuit_columns, circuit_table, session_table
from shards.udp import (
    BATCH,
    GSO_REFUSED,
    NO_BUFFER,
    ODD_SIZE,
    PACKETS_IN,
    PACKETS_OUT,
    SEND_BLOCKED,
    SEND_FAILED,
    Udp,
)

NEVER: Final = 1 << 62
REST_LIMIT: Final = 2_000_000_000  # ns that openings may take, once the worker shall rest
REST_LOOK: Final = 10_000_000  # ns between two looks at them
SECOND: Final = 1_000_000_000
STREAM_RING: Final = 1 << 20  # bytes of a stream and direction
_RECEIVES: Final = 3  # batches before the streams get their turn
_LOW_POOL: Final = 2 * BATCH  # below it nothing new is received or made until the socket takes what waits
_FLUSH: Final = 100_000_000  # ns between two copies of the private counters to shared memory
_OUR_EVENTS: Final = select.EPOLLIN
_PROXY_REFUSED: Final = ("accept_failed", "clients_evicted", "greetings_bad", "greetings_slow")  # the edge's names


def worker_columns(config: Config) -> list[Column]:
    """The columns of one worker, in memory of its own."""
    limits = config.limits
    sessions = min(4 * limits.circuits, 1 << 16)
    return [
        *session_columns(sessions),
        *peer_columns(sessions),
        *control_columns(sessions),
        *replay_columns(1 << 20, 1 << 18),
        *quota_columns(),
        *circuit_columns(limits.circuits),
        *avoided_columns(),
        *filter_columns(FILTER_BUCKETS),
        *stream_columns(limits.connections, limits.streams, STREAM_RING),
        *edge_columns(limits.streams, guests=config.sdk.max_clients),
    ]


def worker_main(context: WorkerContext) -> int:
    """One life of a worker; returns its exit code."""
    worker = Worker(context)
    context.ready()
    worker.run()
    return 0


class Worker:
    """The rooms of one worker, joined, and the order in which a turn visits them."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self._random = context.entropy = RandomStream(context.entropy)
        columns = context.columns
        begin_life(context)
        repaired = _sweep(context)
        self.settings = Settings(context)
        self.settings.begin()
        config = context.config
        now = time.monotonic_ns()
        secret = int.from_bytes(schedule.digest(b"nyx tables", context.boot_secret)[:8], "big")
        rings = Rings(context.shared, context.index, context.workers, context.events)
        self.pool = Pool(context.shared, context.index, context.workers, rings.in_use())
        buffer = config.node.receive_buffer << 10
        self.udp = Udp(context.udp, self.pool, offload=context.offload, buffer=buffer)
        self.statistics = statistics_row(context.shared["statistics"], context.index)
        self._opening = latency_histogram(context.shared["latencies"], context.index, Latency.STREAM_OPEN)
        self._before = self.statistics.copy()  # what earlier lives counted
        sessions, circuits = session_table(columns, secret), circuit_table(columns, secret)
        self.recall = Recall(context, self.statistics)
        self.batch = Batch(
            columns,
            self.pool,
            self.udp,
            rings,
            context.multiplier,
            sessions,
            circuits,
            len(columns["connections"]),
            self.statistics,
        )
        self.rings = rings
        self.streams = Streams(columns, STREAM_RING, context.entropy)
        self.poller = Poller()
        self.available = _available()
        session_rows = SessionRows(context, sessions, offered_suites(config.suite.prefer, self.available))
        self.links = Links(context, self.batch, session_rows, self.batch.post)
        self.links.strangers.on_timer(now, int(time.time()))
        circuit_rows = CircuitRows(columns, circuits, context.entropy)
        policy = Policy.parse(config.exit.policy) if config.node.role == "exit" else None
        self.edge = Edge(
            self.poller.epoll, self.streams, columns, STREAM_RING,
            listeners=context.proxy, open_circuit=self._open_circuit, policy=policy, max_clients=config.proxy.max_clients,
            welcoming=self._welcoming(),
        )  # fmt: skip
        self.desk = CircuitDesk(context, self.batch, self.links, circuit_rows, self.streams, self.edge)
        self.links.circuits = self.desk
        self.cap = Cap(context, self.streams, self.desk.end_connection, self.edge.evict, self.statistics)
        self.checkup = Checkup(
            context,
            self.udp.receive_buffer,
            lambda: self.edge.core.counters["no_descriptor"],
            self.desk.trouble,
            self.desk.flooded,
            self.cap.trouble,
        )
        self.admin = Admin(self)
        self._free: NDArray[np.int64] = np.zeros(BATCH, np.int64)
        self._connections: NDArray[np.int64] = np.zeros(BATCH, np.int64)
        self._last_turn = self._born = now
        self._next_look = 0
        self._next_flush = 0
        self._links_due = 0
        self._moving, self._due = True, 0  # of edges and streams, as the last turn in which they had something to do left them
        self._rest_by = 0  # when to end, once asked to leave everything to the next life
        self._active = True  # whether streams or edges may have something to do in this turn
        self._turns = self._made = self._delivered = self._closed = 0
        self._udp_fd = self.udp.fileno()
        self._our = {self.udp.fileno(), context.control.fileno(), context.events[context.index], context.stop}
        for fd in self._our:
            self.poller.register(fd, _OUR_EVENTS)
        self._blocked = False
        self.streams.rebuild(now)
        self.edge.recover(now)
        self.cap.begin(now)
        rooms = (rings, session_rows, self.links, circuit_rows, self.desk, self.edge)
        self.statistics[Counter.REPAIRS] += repaired + sum(room.repaired for room in rooms)
        self._on_asked(now)

    def _welcoming(self) -> Welcoming:
        """What applications of the SDK are told and allowed."""
        context = self.context
        boot = hashlib.sha256(b"nyx sdk boot" + context.boot_secret).hexdigest()[:16]
        return Welcoming(context.sdk, boot, context.index, context.config.sdk.max_streams, self._circuits_ready)

    def _circuits_ready(self) -> int:
        return self.desk.clients.ready if self.desk.clients else 0

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Turn until told to stop, then close what is open; or until told to rest, then leave it to the next life."""
        while self.context.asked is not Asked.STOP and not self._at_rest():
            self.turn()
        now = time.monotonic_ns()
        if self.context.asked is Asked.STOP:
            self.edge.close(now)
            self._transmit(now)
        self.batch.outbox.flush(now)
        self._flush_statistics()

    def _at_rest(self) -> bool:
        """Whether nothing is being opened that the next life would have to refuse, or that took too long."""
        return bool(self._rest_by) and (not self.edge.busy or time.monotonic_ns() >= self._rest_by)

    def _on_asked(self, now: int) -> None:
        """A signal asked for something: see `shards/context.py`."""
        if self.context.asked is Asked.REST:
            self._rest_by = self._rest_by or now + REST_LIMIT
        if self.context.draining or self._rest_by:
            self.edge.rest()

    def turn(self) -> None:
        """One round of everything that has something to do; what a relay passes on in compiled code is over when it begins."""
        ready = self._wait()
        now = time.monotonic_ns()
        received = self.batch.received
        self._active = False
        if self.settings.due:
            self.settings.take(self)
            self._active = True
        if self.settings.busy:
            self.settings.work()
            self._active = True
        packets = self._on_ready(ready, now) if ready else False
        if received:
            self._digest(now)
        if packets or received >= BATCH // 4:  # of less than that, what is left, if anything, ends the next wait at once
            self._receive(now, _RECEIVES - bool(received))
        if self.context.workers > 1:
            self._from_others(now)
        if self._active or self.desk.waiting:
            self.desk.serve(now, self.links.wall)
            self._active = True
        if self._active or self._moving:
            self._events(now)
            self.edge.pump(now)
            self._active = True
        if now - self._last_turn > ASLEEP:
            self._woke(now)
        self._last_turn = now
        self._timers(now)
        if self._active or self.streams.pending:
            self._transmit(now)
            self._moving, self._due = self.edge.pending, min(self.edge.next_timeout(), self.streams.next_timeout())
        self._send(now)
        self._housekeeping(now)
        self._turns += 1

    def _wait(self) -> int:
        """How many descriptors are ready. Meanwhile cells are passed on, unless other workers may hand some over."""
        patience = self._patience()
        if self.context.workers > 1:
            return self.poller.wait(patience)
        attend = min(self.cap.due, self._next_flush)
        return self.batch.relay(self.poller, time.monotonic_ns() + patience, attend, _LOW_POOL)

    def _receive(self, now: int, batches: int) -> None:
        """Receive what waits in the socket, so many batches at most."""
        for _ in range(batches):
            if self.pool.free_count < _LOW_POOL:
                break
            received = self.batch.receive(now)
            if received:
                self._digest(now)
            if received < BATCH // 4:
                break

    def _woke(self, now: int) -> None:
        """The loop stood still (SIGSTOP): after the packets that waited were read, nobody is blamed for silence in that time."""
        slept = now - self._last_turn
        self.checkup.woke(slept)
        self.streams.excuse(slept, now)
        self.links.excuse(now)

    def _from_others(self, now: int) -> None:
        """Packets that other workers received for this one, and what they say."""
        self.rings.awake()
        if self.batch.take_over(now):
            self._digest(now)
        for message in self.batch.messages():
            self._on_message(message, now)
            self._active = True

    def _patience(self) -> int:
        """Nanoseconds until something is due; 0 when there is work already."""
        busy = self._moving or self.desk.waiting or (self.streams.pending and not self._blocked)
        if busy or self.settings.busy or (self.context.workers > 1 and not self.rings.may_sleep()):
            return 0
        now = time.monotonic_ns()
        due = min(self._next_look, self._links_due, self._due)
        if self._rest_by:
            due = min(due, now + REST_LOOK)
        return max(0, due - now)

    def _on_ready(self, ready: int, now: int) -> bool:
        """Serve every ready descriptor but the packets'; whether packets wait."""
        fds = self.poller.fds[:ready]
        found = fds.tolist()
        strangers = len(found)
        for fd in self._our.intersection(found):
            strangers -= 1
            if fd == self.context.stop:
                drain(fd)
                self._on_asked(now)
            elif fd == self.context.control.fileno():
                self.admin.on_readable(now)
                self._active = True
            elif fd != self._udp_fd:
                drain(fd)
        if strangers:
            self.edge.on_ready(fds, self.poller.events[:ready], now)
            self._active = True
        return self._udp_fd in found

    # ------------------------------------------------------------ inwards

    def _digest(self, now: int) -> None:
        """Everything that one received batch holds beside what was relayed."""
        batch = self.batch
        if batch.ended:
            self._delivered += batch.ended
            self._active = True
            self.streams.receive(self.pool.packets, batch.frames, batch.connections, batch.sequences, batch.ended, now)
        batch.release()
        if batch.rare:
            self._active = True
            wall = int(time.time())
            for stranger in batch.strangers():
                self.links.on_stranger(stranger, now, wall)
            for packet in batch.control():
                self.links.on_control(packet, now)
            self._links_due = 0

    def _events(self, now: int) -> None:
        """What happened in streams, to the edge and to circuits."""
        while (event := self.streams.next_event()) is not None:
            kind, connection, stream, value = event
            self.edge.on_event(kind, connection, stream, value, now)
            self._closed += kind == stream_events.CLOSED
            if kind in {stream_events.CONNECTION_CLOSED, stream_events.PROTOCOL_ERROR}:
                self.batch.drops[Drop.BAD_FRAME] += kind == stream_events.PROTOCOL_ERROR
                self.desk.on_connection_over(connection)

    def _on_message(self, message: dict[str, Any], now: int) -> None:
        """What another worker of this node says about links."""
        op = message["op"]
        if op == "want":
            self.links.want_for(bytes.fromhex(message["node"]), now, int(time.time()))
        elif op == "unreachable":
            self.links.on_unreachable(bytes.fromhex(message["node"]))
        elif op == "accept":
            node = bytes.fromhex(message["node"]) if message["node"] else None
            self.links.accept(unpack_secrets(message["secrets"]), node, bytes.fromhex(message["source"]), now)
        elif op == "link":
            self.links.on_shared(message, unpack_secrets(message["secrets"]), now)
        elif op == "confirmed":
            self.links.on_confirmed(bytes.fromhex(message["tag"]), now)
        elif op == "lost":
            self.links.on_lost(bytes.fromhex(message["tag"]), now)

    def _open_circuit(self, isolation: bytes, _host: str, _port: int) -> int | Refused | None:
        if self.desk.clients is None:
            return Refused(Reason.NO_CIRCUIT)
        return self.desk.clients.connection_for(isolation, time.monotonic_ns())

    # ------------------------------------------------------------ outwards

    def _transmit(self, now: int) -> None:
        """Cells out of streams, as many as the pool and the queue take."""
        batch = self.batch
        while not batch.outbox.blocked:
            n = min(BATCH, self.pool.free_count - _LOW_POOL // 2, batch.outbox.room)
            if n <= 0:
                break
            slots = self.pool.take(n)
            made = self.streams.transmit(self.pool.packets, slots, len(slots), now, self._connections)
            if made:
                batch.wrap(slots, self._connections, made, now)
                self._made += made
            if made < len(slots):
                self.pool.give(slots[made:])
                break
            self._send(now)

    def _send(self, now: int) -> None:
        """Seal and send; while the socket is full, be woken when it has room."""
        self.batch.outbox.flush(now)
        if self.batch.outbox.blocked != self._blocked:
            self._blocked = self.batch.outbox.blocked
            self.poller.modify(self.udp.fileno(), _OUR_EVENTS | (select.EPOLLOUT if self._blocked else 0))

    # ------------------------------------------------------------ time

    def _timers(self, now: int) -> None:
        if now >= self._due:
            if now >= self.edge.next_timeout():
                self.edge.on_timer(now)
            if now >= self.streams.next_timeout():
                self.streams.on_timeout(now)
                self._events(now)
            self._active = True
        if self.desk.hurry(now):
            self.desk.on_timer(now, int(time.time()))
            self._links_due = 0
            self._active = True
        if now >= self._links_due or self.links.busy:
            self._links_due = self.links.transmit(now)
            self._active = True  # a link that fails here ends streams

    def _housekeeping(self, now: int) -> None:
        """What no packet waits for: after the turn's packets have left; what it gives rise to leaves with the next."""
        if self.cap.look(now):
            self._events(now)
            self._moving = True
        if now >= self._next_look:
            self._next_look = now + SECOND // 4
            self._look_after(now, int(time.time()))
        if now >= self._next_flush:
            self._next_flush = now + _FLUSH
            self._flush_statistics()

    def _look_after(self, now: int, wall: int) -> None:
        """Links, circuits and the state of the worker, every quarter of a second."""
        self._random.renew()
        if now - self._born > FAULT_AGE:
            self.context.shared["node_workers"]["faults"][self.context.index] = 0
        self.links.on_timer(now, wall)
        self.checkup.look(now)
        self.recall.look()
        self.desk.on_timer(now, wall)
        self._links_due = 0
        self._moving = True

    def _flush_statistics(self) -> None:
        row, batch, edge = self.statistics, self.batch, self.edge.collect()
        add_drops(row, batch.drops)
        self.edge.flush_statistics(row, self._opening)
        udp = self.udp.counters
        for counter, total in (
            (Counter.PACKETS_IN, udp[PACKETS_IN]), (Counter.PACKETS_OUT, udp[PACKETS_OUT]),
            (Counter.ODD_SIZE, udp[ODD_SIZE]), (Counter.POOL_EMPTY, udp[NO_BUFFER]), (Counter.SEND_FAILED, udp[SEND_FAILED]),
            (Counter.SEND_BLOCKED, udp[SEND_BLOCKED]), (Counter.GSO_REFUSED, udp[GSO_REFUSED]),
            (Counter.HANDED_OVER, batch.handed_over), (Counter.TAKEN_OVER, batch.taken_over),
            (Counter.RING_FULL, batch.ring_full), (Counter.TURNS, self._turns + batch.turns), (Counter.CELLS_SENT, self._made),
            (Counter.CELLS_DELIVERED, self._delivered),
            (Counter.BUSY, time.process_time_ns()), (Counter.CELLS_RELAYED, batch.relayed),
            (Counter.BYTES_IN, edge["bytes_in"]), (Counter.BYTES_OUT, edge["bytes_out"]),
            (Counter.STREAMS_OPENED, edge.get("streams_opened", 0)), (Counter.STREAMS_REFUSED, edge.get("streams_refused", 0)),
            (Counter.STREAMS_CLOSED, self._closed), (Counter.PROXY_CLIENTS, edge.get("accepted", 0)),
            (Counter.PROXY_REFUSED, sum(edge.get(name, 0) for name in _PROXY_REFUSED)),
            (Counter.REPAIRED_POSITIONS, edge.get("positions_repaired", 0)),
        ):  # fmt: skip
            row[counter] = self._before[counter] + total
        self.context.shared["node_workers"]["load"][self.context.index] = self.edge.live + self.desk.passing


def _sweep(context: WorkerContext) -> int:
    """Close what an earlier life left open and no stream's row names; how many sockets that were."""
    named = live_sockets(context.columns)
    sockets = sum(socket_inode(fd) > 0 for fd in open_descriptors() - context.inherited - named) if context.life else 0
    context.sweep(named)
    return sockets


def _available() -> list[int]:
    from nyx.crypto.suites import available_suites

    for line in open("/proc/cpuinfo", encoding="ascii", errors="replace"):  # noqa: PTH123, SIM115
        if line.startswith(("flags", "Features")):
            return available_suites(line)
    return available_suites("")

"""The circuits that this node builds for its own applications: ahead of need, one isolation each, replaced as they age.

Place on a packet's way: before it; an application's connection gets the stream connection of a circuit that is ready.
A circuit serves one isolation key for its whole life, so streams of different credentials never share one. Circuits built
ahead belong to nobody until the first stream. Source: docs/protocol.md, "Circuit build", "States of a circuit" (client).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.suites import with_layers
from nyx.errors import InternalError, NyxError, RemoteProtocolError
from nyx.link.channel import CellReceived
from nyx.onion.build import STATUS_EFFORT, BuildRefusedError, ClientBuild
from nyx.onion.work import Proof, Work
from nyx.path.directory import Node
from nyx.path.guards import keep_guard
from nyx.path.select import NoPathError, select_path
from nyx.stats import Counter
from nyx.wire.codes import DestroyReason
from nyx.wire.geometry import BUILD_SLOTS
from nyx.wire.packet import KIND_BUILD
from shards.avoided import Avoided
from shards.circuits import CircuitRows, Leg
from shards.context import WorkerContext
from shards.link import Link
from shards.links import Links
from shards.tables import LIVE, OWN_MOST, ROLE_CLIENT

SECOND: Final = 1_000_000_000
HOP_LIMIT: Final = 2 * SECOND  # of a build, for each hop
TAKES_STREAMS: Final = 600 * SECOND  # age after which a circuit takes no new stream
CLOCK_BLUR: Final = 32  # seconds: records say a time that far ahead at random, lest hops know a client again by its clock
BUILDS_AT_ONCE: Final = 8
AGAIN_MOST: Final = 3  # builds of one path that are refused for too little work
CIRCUITS_MAX: Final = OWN_MOST  # own circuits of a worker: isolation keys cost one each
LATE: Final = 3 * SECOND // 2  # an answer takes milliseconds; then another build stands in for one that somebody waits for
STAND_INS: Final = 2  # for each who waits: a network that answers slowly is not met with many times the builds
BACK_OFF_FIRST: Final = SECOND // 4
BACK_OFF_MOST: Final = 4 * SECOND


@dataclass(eq=False, slots=True)
class OwnCircuit:
    """One circuit of ours, from the first build cell to its end."""

    path: list[Node]
    created: int
    due: int
    row: int = -1
    isolation: bytes | None = None  # None: belongs to nobody yet
    build: ClientBuild | None = None
    efforts: dict[bytes, int] = field(default_factory=dict)  # bits of proof of work that hops have asked, by node id
    work: Work | None = None  # while it is being made
    again: int = 0  # builds of this path before, that were refused for too little of it
    suite: int = 0
    link: Link | None = None
    leg: Leg | None = None
    answers: dict[int, bytes] = field(default_factory=dict)
    connection: int = -1
    ready_at: int = 0
    used: int = 0  # when a stream took it last
    late: bool = False  # not answered when a build usually is
    timely: bool = True  # the configuration and the directory in force would build it again

    @property
    def ready(self) -> bool:
        """Whether it carries streams."""
        return self.connection >= 0


class ClientCircuits:
    """All own circuits of this worker.

    `opened(row, session)` makes a stream connection, `streams_on(connection)` counts its streams, `announce(now)` tells the edge
    that a circuit is ready, `end_row(row, reason)` closes one that was ready and comes back with `forget_row`.
    """

    def __init__(
        self,
        context: WorkerContext,
        rows: CircuitRows,
        links: Links,
        suites: Sequence[int],
        statistics: NDArray[np.int64],
        opened: Callable[[int, int], int | None],
        streams_on: Callable[[int], int],
        announce: Callable[[int], None],
        end_row: Callable[[int, DestroyReason], None],
    ) -> None:
        self._context = context
        self._rows = rows
        self._links = links
        self._suites = suites
        self._statistics = statistics
        self._opened = opened
        self._streams_on = streams_on
        self._announce = announce
        self._end_row = end_row
        self._guard: bytes | None = None
        self._all: list[OwnCircuit] = []
        self._working: list[OwnCircuit] = []  # whose proof of work is being made
        self._wanted: dict[bytes, int] = {}  # isolation keys that wait for a circuit -> until when
        self._back_off = 0
        self._not_before = 0
        self._avoided = Avoided(context.columns)
        self._warning: str | None = None
        self._hindrance: str | None = None  # of every build, within this node
        for row in np.flatnonzero((rows.rows["state"] == LIVE) & (rows.rows["role"] == ROLE_CLIENT)).tolist():
            self._all.append(self._adopt(row))
        self.on_settings()

    def _adopt(self, row: int) -> OwnCircuit:
        """A circuit of the last life: it goes on serving whom it served."""
        circuit, known = self._rows.rows[row], self._context.snapshot.by_id
        path = [node for node in map(known, self._rows.path(row)) if node]
        created = int(circuit["created"])
        return OwnCircuit(
            path, created, created, row, self._rows.isolation(row), leg=self._rows.legs(row)[1],
            connection=int(circuit["connection"]) - 1, ready_at=created, used=int(circuit["last_used"]),
        )  # fmt: skip

    # ------------------------------------------------------------ for streams

    def connection_for(self, isolation: bytes, now: int) -> int | None:
        """The stream connection for a new stream of this isolation key; None: not ready yet, a circuit is on its way."""
        found = self._serving(isolation, now) or self._spare(now)
        if found is None:
            self._wanted[isolation] = now + 15 * SECOND
            return None
        if found.isolation is None:
            self._rows.write_isolation(found.row, isolation)
        found.isolation = isolation
        found.used = now
        self._wanted.pop(isolation, None)
        return found.connection

    def _serving(self, isolation: bytes, now: int) -> OwnCircuit | None:
        young = [c for c in self._all if c.isolation == isolation and self._takes_streams(c, now)]
        return min(young, key=lambda c: self._streams_on(c.connection), default=None)

    def _spare(self, now: int) -> OwnCircuit | None:
        return next((c for c in self._all if c.isolation is None and self._takes_streams(c, now)), None)

    def _takes_streams(self, circuit: OwnCircuit, now: int) -> bool:
        return circuit.ready and circuit.timely and now - circuit.ready_at < TAKES_STREAMS

    def on_settings(self) -> None:
        """Another version of the configuration, or another directory: circuits that it would not build take no new stream."""
        hops, known = self._context.config.path.hops, self._context.snapshot.by_id
        self._guard = None  # is read again: it may have left the network
        for circuit in self._all:
            circuit.timely = len(circuit.path) == hops and all(known(node.id) for node in circuit.path)

    def hurry(self, now: int) -> bool:
        """Whether somebody waits for a circuit that no build is under way for."""
        return bool(self._wanted) and now >= self._not_before and len(self._wanted) > sum(not c.ready for c in self._all)

    # ------------------------------------------------------------ keeping circuits ahead

    def maintain(self, now: int, wall: int) -> None:
        """Close what is over, start the builds that are missing; called once or more a second, and when a circuit is taken."""
        for circuit in list(self._all):
            if not circuit.ready and now >= circuit.due:
                self._failed(circuit, now, "a circuit's build was not answered in time")
            elif not circuit.ready and not circuit.late and now - circuit.created >= LATE:
                circuit.late = True
                self._avoided.late([node.id for node in circuit.path], now)
            elif circuit.ready and not self._takes_streams(circuit, now) and self._streams_on(circuit.connection) == 0:
                self.close(circuit, DestroyReason.NONE)
        self._wanted = {key: until for key, until in self._wanted.items() if until > now}
        if now < self._not_before:
            return
        spare = sum(c.isolation is None and c.timely for c in self._all)
        late = min(sum(c.late and not c.ready for c in self._all), STAND_INS * len(self._wanted))
        missing = self._context.config.path.circuits_ahead + len(self._wanted) - spare + late
        building = sum(not c.ready for c in self._all)
        wanted = min(missing, BUILDS_AT_ONCE - building)
        self._make_room(wanted)
        for _ in range(min(wanted, CIRCUITS_MAX - len(self._all))):
            if not self._start(now, wall):
                break

    def _make_room(self, wanted: int) -> None:
        """Where new circuits are wanted and all are taken, close those that no stream uses, the ones unused for longest first."""
        short = len(self._all) + wanted - CIRCUITS_MAX
        if short > 0:
            idle = [c for c in self._all if c.ready and c.isolation is not None and self._streams_on(c.connection) == 0]
            for circuit in sorted(idle, key=lambda c: c.used)[:short]:
                self.close(circuit, DestroyReason.NONE)

    def _path(self, now: int, wall: int) -> list[Node]:
        """A path of none of the sets of hops that are to be avoided, where there is one."""
        config, snapshot, entropy = self._context.config, self._context.snapshot, self._context.entropy
        loopback = config.path.allow_loopback
        own = {self._context.keys.public.node_id} if self._context.keys else frozenset()  # a relay is no hop of its own circuits
        if self._guard is None:
            self._guard = keep_guard(Path(config.guard_file), snapshot, entropy, wall, own, allow_loopback=loopback).id
        *avoided, least = self._avoided.sets(now)
        for sets in avoided:
            try:
                return select_path(snapshot, config.path.hops, entropy, self._guard, own, avoid=sets, allow_loopback=loopback)
            except NoPathError:
                continue
        return select_path(snapshot, config.path.hops, entropy, self._guard, own, avoid=least, allow_loopback=loopback)

    def on_failed_cell(self, row: int) -> None:
        """A cell of this row's circuit was changed on the way: its hops together are not chosen again for a while."""
        self._avoided.spoiled(self._rows.path(row), int(self._rows.rows[row]["last_used"]))

    def _start(self, now: int, wall: int) -> bool:
        try:
            path = self._path(now, wall)
        except (NoPathError, NyxError) as error:
            self._hindered(str(error), now)
            return False
        except OSError as error:
            file, why = self._context.config.guard_file, error.strerror or str(error)
            self._hindered(f"{file}: cannot be written: {why}; make room, or let this user write there", now)
            return False
        self._hindrance = None
        circuit = OwnCircuit(path, now, now + HOP_LIMIT * (len(path) + 1))
        self._all.append(circuit)
        self._statistics[Counter.BUILDS_STARTED] += 1
        self._links.want(path[0], lambda link: self._build(circuit, link, now, wall), now, wall)
        return circuit in self._all

    def _build(self, circuit: OwnCircuit, link: Link | None, now: int, wall: int) -> None:
        if circuit not in self._all:
            return
        if link is None:
            self._failed(circuit, now, "the first relay cannot be reached; is this machine's clock right?")
            return
        row = self._rows.take(ROLE_CLIENT, now)
        if row is None:
            self._failed(circuit, now, "every circuit row is in use: raise limits.circuits")
            return
        session = self._links.choose_session(link)
        circuit.row, circuit.link = row, link
        circuit.leg = Leg(link.row, session, self._rows.new_id(link.row, link.initiator))
        self._rows.write_legs(row, None, circuit.leg)
        common = set(with_layers(self._suites)).intersection(*(node.descriptor.layer_suites for node in circuit.path))
        if not common:
            self._failed(circuit, now, "the relays of a path have no layer suite in common with this node")
            return
        circuit.suite = max(common)
        efforts = [max(node.descriptor.effort, circuit.efforts.get(node.id, 0)) for node in circuit.path]
        if max(efforts) > self._context.config.path.effort:
            self._failed(circuit, now, f"a relay asks for {max(efforts)} bits of proof of work: more than path.effort allows")
            return
        if any(efforts):
            ids, epoch = [node.id for node in circuit.path], self._context.snapshot.epoch
            circuit.work = Work(ids, efforts, epoch, self._context.entropy)
            self._working.append(circuit)
        else:
            self._send_build(circuit, (), now, wall)

    def _send_build(self, circuit: OwnCircuit, proofs: Sequence[Proof], now: int, wall: int) -> None:
        assert circuit.link is not None
        assert circuit.leg is not None
        if self._links.link_of(circuit.leg.session) is not circuit.link:
            self._failed(circuit, now, "the link to the first relay was lost")
            return
        made = wall + self._context.entropy(1)[0] % CLOCK_BLUR
        publics = [node.public for node in circuit.path]
        circuit.build = ClientBuild(publics, circuit.suite, self._context.entropy, made, proofs)
        for slot, cell in enumerate(circuit.build.cells):
            if not self._links.send_cell(circuit.link, circuit.leg.session, KIND_BUILD, slot, circuit.leg.circuit_id, cell):
                self._failed(circuit, now, "the control channel to the first relay is full")
                return

    @property
    def working(self) -> bool:
        """Whether a proof of work is being made."""
        return bool(self._working)

    def work(self, now: int, wall: int) -> None:
        """Every turn: a slice of the proof of work for the build that has waited for longest."""
        self._working = [circuit for circuit in self._working if circuit in self._all]
        if not self._working:
            return
        circuit = self._working[0]
        assert circuit.work is not None
        circuit.work.advance()
        if circuit.work.done:
            del self._working[0]
            proofs, circuit.work = circuit.work.proofs, None
            self._send_build(circuit, proofs, now, wall)

    def _with_work(self, circuit: OwnCircuit, refusal: BuildRefusedError, now: int) -> None:
        """A relay under load wants proof of work: the same path again, with it. No other relay's build shows what was asked."""
        asked = circuit.path[refusal.hop]
        enough = refusal.effort <= max(asked.descriptor.effort, circuit.efforts.get(asked.id, 0))
        if enough or circuit.again >= AGAIN_MOST:
            self._failed(circuit, now, "relays are under load and ask for ever more proof of work")
            return
        path, efforts, link = circuit.path, {**circuit.efforts, asked.id: refusal.effort}, circuit.link
        self.close(circuit, DestroyReason.NONE)
        again = OwnCircuit(path, now, now + HOP_LIMIT * (len(path) + 1), efforts=efforts, again=circuit.again + 1)
        self._all.append(again)
        self._statistics[Counter.BUILDS_STARTED] += 1
        self._statistics[Counter.BUILDS_WORKED] += 1
        self._build(again, link, now, self._links.wall)

    def on_answer(self, link: Link, session: int, cell: CellReceived, now: int) -> bool:
        """Take an answer cell of an own build; False when it is not one."""
        circuit = self._find(link, cell.circuit)
        if circuit is None or circuit.build is None or circuit.leg is None or circuit.leg.session != session:
            return False
        circuit.answers.setdefault(cell.slot, cell.cell)
        if len(circuit.answers) == BUILD_SLOTS:
            self._finish(circuit, circuit.build, now)
        return True

    def _finish(self, circuit: OwnCircuit, build: ClientBuild, now: int) -> None:
        assert circuit.leg is not None
        try:
            keys = build.finish([circuit.answers[slot] for slot in range(BUILD_SLOTS)])
        except RemoteProtocolError as error:
            if isinstance(error, BuildRefusedError) and error.status == STATUS_EFFORT:
                self._with_work(circuit, error, now)
                return
            self._failed(circuit, now, "a circuit's answers were wrong: a relay refused, or something was changed on the way")
            return
        connection = self._opened(circuit.row, circuit.leg.session)
        if connection is None:
            self._failed(circuit, now, "every stream connection is in use: raise limits.connections")
            return
        secrets = [(hop.forward_seed, hop.backward_seed, hop.ck) for hop in keys.hops]
        self._rows.write_path(circuit.row, [node.id for node in circuit.path])
        self._rows.install(circuit.row, keys.suite, secrets, None, circuit.leg, connection)
        circuit.connection = connection
        circuit.ready_at = now
        circuit.build = None
        circuit.answers.clear()
        self._back_off = 0
        self._warning = None
        self._statistics[Counter.BUILDS_READY] += 1
        self._announce(now)

    # ------------------------------------------------------------ ends

    def _hindered(self, why: str, now: int) -> None:
        self._hindrance = self._warning = why
        self._later(now)

    def _failed(self, circuit: OwnCircuit, now: int, why: str) -> None:
        self._statistics[Counter.BUILDS_FAILED] += 1
        self._warning = why
        self._later(now)
        self.close(circuit, DestroyReason.NONE)

    def _later(self, now: int) -> None:
        """Wait before the next build, longer each time; builds that fail together count once."""
        if now < self._not_before:
            return
        self._back_off = min(max(2 * self._back_off, BACK_OFF_FIRST), BACK_OFF_MOST)
        self._not_before = now + self._back_off

    def close(self, circuit: OwnCircuit, reason: DestroyReason, *, tell: bool = True) -> None:
        """Forget an own circuit; the first relay is told unless it knows."""
        if circuit not in self._all:
            return
        if circuit.ready:
            self._end_row(circuit.row, reason)
            return
        self._all.remove(circuit)
        if circuit.leg and circuit.link:
            if tell and self._links.link_of(circuit.leg.session) is circuit.link:
                self._links.send_destroy(circuit.link, circuit.leg.session, circuit.leg.circuit_id, reason)
            self._rows.forget_id(circuit.leg.link, circuit.leg.circuit_id)
            self._rows.close(circuit.row)

    def _find(self, link: Link, circuit_id: int) -> OwnCircuit | None:
        return next((c for c in self._all if c.link is link and c.leg and c.leg.circuit_id == circuit_id), None)

    def on_destroy(self, link: Link, circuit_id: int, now: int) -> bool:
        """A relay ended a circuit that is still being built; False when it is not one of those."""
        circuit = self._find(link, circuit_id)
        if circuit is None or circuit.ready:
            return False
        self._statistics[Counter.BUILDS_FAILED] += 1
        self._warning = "a relay ended a circuit while it was being built"
        self._later(now)
        self.close(circuit, DestroyReason.NONE, tell=False)
        return True

    def on_link_lost(self, link: Link, now: int) -> None:
        """Builds over a lost link are over; ready circuits end with their rows."""
        for circuit in [c for c in self._all if c.link is link and not c.ready]:
            self._failed(circuit, now, "the link to the first relay was lost")

    def forget_row(self, row: int) -> None:
        """The circuit of this row has been closed."""
        self._all = [c for c in self._all if not (c.ready and c.row == row)]

    def check_invariants(self) -> None:
        """Raise when the circuits known here are not those of the rows."""
        own = np.flatnonzero((self._rows.rows["state"] == LIVE) & (self._rows.rows["role"] == ROLE_CLIENT)).tolist()
        if sorted(c.row for c in self._all if c.ready) != own:
            raise InternalError("the own circuits are not those of the rows")
        if any(self._rows.isolation(c.row) != c.isolation for c in self._all if c.ready):
            raise InternalError("an own circuit serves another isolation key than its row says")

    # ------------------------------------------------------------ for people

    @property
    def ready(self) -> int:
        """Own circuits that can take a stream now."""
        return sum(c.ready for c in self._all)

    @property
    def all(self) -> list[OwnCircuit]:
        """Every own circuit, building or ready."""
        return list(self._all)

    @property
    def warning(self) -> str | None:
        """Why the last build failed; None once one succeeded."""
        return self._warning

    @property
    def trouble(self) -> str | None:
        """What the operator must know: what hinders every build here, or why there is no circuit."""
        return self._hindrance or (None if self.ready else self._warning)

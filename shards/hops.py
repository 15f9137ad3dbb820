"""Builds at a hop: seven cells collected, opened, passed on; seven answers collected and passed back.

Place on a packet's way: build and answer cells of the control channel end here; the circuit's row is what remains.

    COLLECT   build cells come in on one leg, then    -> ANSWERS (middle) or OPEN (last hop), or gone after 2 s, DESTROY back
              wait for their turn, link after link
    ANSWERS   cells passed on, answers awaited        -> OPEN, or gone after 14 s (DESTROY both ways), 3 s while there is no link
    OPEN      the row carries cells                   -> gone by DESTROY, a lost link, 120 s without a cell, a failed cell

Source: docs/protocol.md, "A hop's work", "States of a circuit".
"""

from collections import Counter as Counts
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.keys import StaticKeys
from nyx.crypto.suites import with_layers
from nyx.errors import RemoteProtocolError
from nyx.link.channel import CellReceived
from nyx.onion.build import (
    STATUS_ACCEPTED,
    STATUS_BUSY,
    STATUS_EFFORT,
    STATUS_POLICY,
    STATUS_SUITE,
    HopBuild,
    HopResult,
    offered_work,
)
from nyx.onion.seen import BuildReplay
from nyx.stats import Counter
from nyx.wire.codes import DestroyReason, Drop
from nyx.wire.geometry import BUILD_SLOTS
from nyx.wire.packet import KIND_ANSWER, KIND_BUILD
from shards.circuits import CircuitRows, Leg
from shards.context import WorkerContext
from shards.effort import Effort
from shards.fair import PIECE, FairQueue
from shards.link import Link
from shards.links import Links
from shards.proofs import Proofs
from shards.tables import ROLE_LAST, ROLE_RELAY

SECOND: Final = 1_000_000_000
COLLECT_LIMIT: Final = 2 * SECOND
ANSWER_LIMIT: Final = 14 * SECOND
LINK_LIMIT: Final = 3 * SECOND  # for a link to the next hop: the client hears of it in time to try another path
COLLECTING_PER_LINK: Final = 64  # builds of one neighbour whose seven cells are not all there
COLLECTING_MAX: Final = 1024  # of a worker: 9 KiB each; one more takes the place of the oldest
PENDING_PER_CLIENT: Final = 64  # builds of one neighbour that are not answered, those included
PENDING_PER_RELAY: Final = 512  # of one that is a relay: an eighth of all
PENDING_MAX: Final = 4096  # builds of a worker that are not answered: at most 9 KiB of cells each
COMPLETE_MAX: Final = 512  # builds that wait for their public-key operations
COMPLETE_PER_LINK: Final = COMPLETE_MAX // 8
IDLE_MAX: Final = 64  # builds with too little work that wait to hear so
IDLE_PER_LINK: Final = IDLE_MAX // 8
IDLE_TURN: Final = 4  # every fourth build that is opened may be one of those, whatever waits
WORK_FILL: Final = 0.5  # of the set of opened builds, above which work is asked though none wait
IDLE_FILL: Final = 0.75  # above which builds without it are not opened: each takes a place for ten minutes

LOW_BITS: Final = (1 << 31) - 1  # of a circuit id, random

Place = tuple[int, int]  # link row, circuit id


@dataclass(eq=False, slots=True)
class _Pending:
    """A build on its way through this hop."""

    link: Link
    session: int
    circuit_id: int
    due: int
    cells: dict[int, bytes] = field(default_factory=dict)
    collecting: bool = True
    worked: bool = True  # it brought the proof of work that was asked
    row: int | None = None  # None: not accepted
    result: HopResult | None = None
    forth_link: Link | None = None
    forth: Leg | None = None
    answers: dict[int, bytes] = field(default_factory=dict)


class Hops:
    """The builds that pass through this worker. `opened` makes the stream connection of a circuit that ends here."""

    def __init__(
        self,
        context: WorkerContext,
        keys: StaticKeys,
        rows: CircuitRows,
        links: Links,
        replay: BuildReplay,
        suites: Sequence[int],
        statistics: NDArray[np.int64],
        drops: NDArray[np.int64],
        opened: Callable[[int, int], int | None],
    ) -> None:
        self._context = context
        self._keys = keys
        self._rows = rows
        self._links = links
        self._replay = replay
        self._suites = suites
        self._statistics = statistics
        self._drops = drops
        self._opened = opened
        self._pending: dict[Place, _Pending] = {}  # every build that is not answered, by the leg on which it came
        self._half: dict[_Pending, None] = {}  # those whose cells are not all there, the oldest first
        self._complete: FairQueue[int, _Pending] = FairQueue(COMPLETE_MAX, COMPLETE_PER_LINK, self._turn_away)  # by link row
        self._idle: FairQueue[int, _Pending] = FairQueue(
            IDLE_MAX, IDLE_PER_LINK, self._turn_away
        )  # those with too little proof of work
        self._served = 0
        self.effort = Effort()
        self._proofs = Proofs()
        self._crowded = False  # the set of opened builds has little room: what is left is for those who bring work
        self._refused = 0  # builds with enough work that found no room, since the last look
        self._awaited: dict[Place, _Pending] = {}  # those passed on, by the leg on which the answers come
        self._linking: set[_Pending] = set()  # opened, and the link to the next hop is being made
        self._collecting: Counts[int] = Counts()  # by link row
        self._per_link: Counts[int] = Counts()

    @property
    def pending(self) -> int:
        """Builds that are not answered."""
        return len(self._pending)

    @property
    def waiting(self) -> int:
        """Builds that wait for their public-key operations."""
        return len(self._complete) + len(self._idle)

    # ------------------------------------------------------------ build cells

    def on_build(self, link: Link, session: int, cell: CellReceived, now: int) -> None:
        """Take a build cell; with the seventh the build waits for its turn."""
        pending = self._pending.get((link.row, cell.circuit)) or self._begin(link, session, cell.circuit, now)
        if pending is None:
            return
        if not pending.collecting or pending.session != session:
            self._drops[Drop.BAD_BUILD] += 1
            return
        pending.cells.setdefault(cell.slot, cell.cell)
        if len(pending.cells) == BUILD_SLOTS:
            self._collected(pending)
            self._queue(pending)

    def _queue(self, pending: _Pending) -> None:
        """Whoever brings the work that is asked is served first; others, as far as there is time, hear how much it is."""
        try:
            pending.worked = self._worked(pending)
        except RemoteProtocolError:
            self._drops[Drop.BAD_BUILD] += 1
            self._leave(pending)
            return
        queue = self._complete if pending.worked else self._idle
        if (self._crowded and not pending.worked) or not queue.put(pending.link.row, pending):
            self._turn_away(pending)

    def _turn_away(self, pending: _Pending) -> None:
        """No room for it, or not any more."""
        self._drops[Drop.OVERFLOW if pending.worked else Drop.NO_WORK] += 1
        self._refused += pending.worked
        self._leave(pending)

    def _worked(self, pending: _Pending) -> bool:
        """Whether a build brings the proof of work that is asked now. Raises RemoteProtocolError when it has no record for us."""
        if not self.effort.bits:
            return True
        epoch = self._context.snapshot.epoch
        cells = [pending.cells[slot] for slot in range(BUILD_SLOTS)]
        x, bits = offered_work(cells, self._keys.public, (epoch, max(epoch - 1, 0), epoch + 1))
        return bits >= self.effort.bits and self._proofs.first(x)

    def serve(self, now: int, wall: int) -> int:
        """Open the build whose turn it is; returns the public-key operations that it took, 0 when none waits."""
        self._served += 1
        first, then = (self._idle, self._complete) if self._served % IDLE_TURN == 0 else (self._complete, self._idle)
        while (pending := first.take() or then.take()) is not None:
            if self._pending.get((pending.link.row, pending.circuit_id)) is pending:  # else it ended while it waited
                self._open(pending, now, wall)
                pending.cells.clear()
                return PIECE
        return 0

    def _begin(self, link: Link, session: int, circuit_id: int, now: int) -> _Pending | None:
        chosen_by_responder = bool(circuit_id >> 31)
        if chosen_by_responder != link.initiator or self._rows.taken(link.row, circuit_id) or not circuit_id & LOW_BITS:
            self._drops[Drop.BAD_BUILD] += 1
            return None
        most = PENDING_PER_RELAY if link.node else PENDING_PER_CLIENT
        if (
            self._collecting[link.row] >= COLLECTING_PER_LINK
            or self._per_link[link.row] >= most
            or len(self._pending) >= PENDING_MAX
        ):
            self._drops[Drop.OVERFLOW] += 1
            return None
        if len(self._half) >= COLLECTING_MAX:  # an honest build is whole within milliseconds: the oldest is not
            self._drops[Drop.OVERFLOW] += 1
            self._leave(next(iter(self._half)))
        pending = _Pending(link, session, circuit_id, now + COLLECT_LIMIT)
        self._pending[link.row, circuit_id] = pending
        self._half[pending] = None
        self._collecting[link.row] += 1
        self._per_link[link.row] += 1
        return pending

    def _collected(self, pending: _Pending) -> None:
        pending.collecting = False
        self._half.pop(pending, None)
        _take_one(self._collecting, pending.link.row)

    def _leave(self, pending: _Pending) -> None:
        """A build is answered or over: nothing names it any more."""
        if self._pending.pop((pending.link.row, pending.circuit_id), None) is None:
            return
        _take_one(self._per_link, pending.link.row)
        if pending.collecting:
            self._collected(pending)
        self._linking.discard(pending)
        if pending.forth:
            self._awaited.pop((pending.forth.link, pending.forth.circuit_id), None)
        pending.result = None  # its keys are in the circuit's row, or nowhere

    def _decide(self, pending: _Pending, suite: int, last: bool) -> int:
        """The status to answer: a refusal is authenticated, and passed on as an acceptance would be."""
        if not pending.worked:
            return STATUS_EFFORT
        if suite not in with_layers(self._suites):
            return STATUS_SUITE
        if last and self._context.config.node.role != "exit":
            return STATUS_POLICY
        return STATUS_BUSY if self._rows.full or self._context.draining else STATUS_ACCEPTED

    def _open(self, pending: _Pending, now: int, wall: int) -> None:
        cells = [pending.cells[slot] for slot in range(BUILD_SLOTS)]
        context = self._context
        try:
            result = HopBuild.open(
                cells, self._keys, self._replay, context.entropy, wall,
                started=context.started, boot_epoch=context.boot_epoch, predecessor=pending.link.node,
                decide=partial(self._decide, pending), effort=self.effort.bits,
            )  # fmt: skip
        except RemoteProtocolError:
            self._drops[Drop.BAD_BUILD] += 1
            self._leave(pending)
            return
        pending.result = result
        if result.status == STATUS_ACCEPTED:
            pending.row = self._rows.take(ROLE_LAST if result.next_node_id is None else ROLE_RELAY, now)
        if pending.row is not None:
            self._rows.write_legs(pending.row, Leg(pending.link.row, pending.session, pending.circuit_id), None)
        self._statistics[Counter.BUILDS_PASSED] += 1
        if result.next_node_id is None:
            self._finish_last(pending, result)
            return
        node = context.snapshot.by_id(result.next_node_id)
        if node is None:
            self._fail(pending, DestroyReason.NEXT_UNREACHABLE)
            return
        pending.due = now + LINK_LIMIT
        self._linking.add(pending)
        self._links.want(node, lambda link: self._pass_on(pending, link, now + ANSWER_LIMIT), now, wall)

    def _finish_last(self, pending: _Pending, result: HopResult) -> None:
        if pending.row is not None:
            connection = self._opened(pending.row, pending.session)
            if connection is None:
                self._fail(pending, DestroyReason.RESOURCES)
                return
            back = Leg(pending.link.row, pending.session, pending.circuit_id)
            self._rows.install(pending.row, result.suite, [result.secrets], back, None, connection)
        self._leave(pending)
        self._send_answers(pending, result, result.cells)

    def _send_answers(self, pending: _Pending, result: HopResult, cells: Sequence[bytes]) -> None:
        for slot, cell in enumerate(result.answer_layer(cells)):
            self._links.send_cell(pending.link, pending.session, KIND_ANSWER, slot, pending.circuit_id, cell)

    def _pass_on(self, pending: _Pending, link: Link | None, due: int) -> None:
        """The link to the next hop is there, or will not be."""
        result = pending.result
        if pending not in self._linking or result is None:
            return
        self._linking.discard(pending)
        if link is None or self._links.link_of(pending.session) is not pending.link:
            self._fail(pending, DestroyReason.NEXT_UNREACHABLE)
            return
        session = self._links.choose_session(link)
        circuit_id = self._rows.new_id(link.row, link.initiator)
        pending.due = due
        pending.forth_link = link
        pending.forth = Leg(link.row, session, circuit_id)
        self._awaited[link.row, circuit_id] = pending
        if pending.row is not None:
            self._rows.write_legs(pending.row, None, pending.forth)
        for slot, cell in enumerate(result.cells):
            if not self._links.send_cell(link, session, KIND_BUILD, slot, circuit_id, cell):
                self._give_up(pending, DestroyReason.RESOURCES)
                return
        pending.result = replace(result, cells=())  # with the neighbour now

    # ------------------------------------------------------------ answer cells

    def on_answer(self, link: Link, session: int, cell: CellReceived, now: int) -> bool:
        """Take an answer cell of a build that passed through here; False when it is not one."""
        pending = self._awaited.get((link.row, cell.circuit))
        if pending is None or pending.result is None or pending.forth is None or pending.forth.session != session:
            return False
        pending.answers.setdefault(cell.slot, cell.cell)
        if len(pending.answers) < BUILD_SLOTS:
            return True
        result, back = pending.result, Leg(pending.link.row, pending.session, pending.circuit_id)
        self._leave(pending)
        if pending.row is not None:
            self._rows.install(pending.row, result.suite, [result.secrets], back, pending.forth)
            self._rows.rows[pending.row]["last_used"] = now
        else:
            self._end_forth(pending)  # our refusal goes back, and no circuit follows: the hops behind need not wait for its end
        self._send_answers(pending, result, [pending.answers[slot] for slot in range(BUILD_SLOTS)])
        return True

    # ------------------------------------------------------------ ends

    def _fail(self, pending: _Pending, reason: DestroyReason) -> None:
        """A build that goes no further: its row is free, its predecessor knows."""
        self._leave(pending)
        if pending.row is not None:
            self._rows.close(pending.row)
            pending.row = None
        if self._links.link_of(pending.session) is pending.link:
            self._links.send_destroy(pending.link, pending.session, pending.circuit_id, reason)

    def _give_up(self, pending: _Pending, reason: DestroyReason) -> None:
        self._end_forth(pending)
        self._fail(pending, reason)

    def _end_forth(self, pending: _Pending) -> None:
        """The next hop, if the build went there, is told."""
        if pending.forth and pending.forth_link:
            self._rows.forget_id(pending.forth.link, pending.forth.circuit_id)
            if self._links.link_of(pending.forth.session) is pending.forth_link:
                destroy = (pending.forth_link, pending.forth.session, pending.forth.circuit_id)
                self._links.send_destroy(*destroy, DestroyReason.NONE)

    def on_destroy(self, link: Link, circuit_id: int, reason: int) -> bool:
        """The end of a build that is still on its way; False when it is not one."""
        pending = self._awaited.get((link.row, circuit_id))
        if pending and pending.forth:
            self._rows.forget_id(link.row, circuit_id)
            self._fail(pending, DestroyReason(reason) if reason in set(DestroyReason) else DestroyReason.NONE)
            return True
        pending = self._pending.get((link.row, circuit_id))
        if pending is None:
            return False
        self._abandon(pending)
        return True

    def _abandon(self, pending: _Pending) -> None:
        """The predecessor gave up: nothing goes back to it."""
        self._end_forth(pending)
        self._leave(pending)
        if pending.row is not None:
            self._rows.close(pending.row)
            pending.row = None

    def on_link_lost(self, link: Link) -> None:
        """Forget every build that came or went over this link."""
        for pending in list(self._pending.values()):
            if pending.link is link:
                self._abandon(pending)
            elif pending.forth_link is link:
                self._give_up(pending, DestroyReason.LINK_LOST)

    def on_timer(self, now: int) -> None:
        """Forget what takes too long, and see how much work is to be asked."""
        me = self._context.snapshot.by_id(self._keys.public.node_id)
        used = self._replay.used(self._links.wall)
        self._crowded = used > IDLE_FILL
        filling = int(used > WORK_FILL)
        self.effort.look(len(self._complete), self._refused + filling, me.descriptor.effort if me else 0, now)
        self._refused = 0
        for pending in [p for p in self._pending.values() if now >= p.due]:
            if pending.collecting:  # the rest of its cells went to an earlier life of this hop: the client need not wait for them
                self._fail(pending, DestroyReason.DEADLINE)
            elif pending in self._linking:
                self._fail(pending, DestroyReason.NEXT_UNREACHABLE)
            else:
                self._give_up(pending, DestroyReason.DEADLINE)


def _take_one(counts: Counts[int], key: int) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]

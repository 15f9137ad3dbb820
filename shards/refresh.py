"""Circuit refreshes: as a client, begun at once after a build and every ten minutes; as a hop, answered and passed on.

Place on a packet's way: refresh cells of the control channel end here; what they give stands in the circuit's row and takes over
at the layer epoch that the request names, in both directions. All hops must have it by then, so a request names an epoch two
ahead, and a client that has no answer well into the epoch before closes the circuit. Until then it asks again, each time under
the next counter: a hop answers any newer request, and what it had from an older one is forgotten. So a death of any worker on the
way costs a repetition. Requests wait their turn among those that want public-key operations. Source: docs/protocol.md, "Refresh".

    client   asked (row)  ->  answered: fresh keys written, "fresh_at"  ->  settled: old circuit key erased
    hop                       request: fresh keys written, "fresh_at"   ->  settled
"""

import itertools
from collections import Counter as Counts
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.forget import forget
from nyx.errors import RemoteProtocolError
from nyx.link.channel import CellReceived
from nyx.onion.ratchet import PARTS
from nyx.onion.refresh import ClientRefresh, Refreshed, answer_layer, answer_refresh
from nyx.stats import Counter
from nyx.wire.codes import DestroyReason, Drop
from nyx.wire.geometry import BUILD_SLOTS
from nyx.wire.packet import KIND_REFRESH
from shards.circuits import CircuitRows, Entropy, Leg
from shards.fair import PIECE, FairQueue
from shards.link import Link
from shards.links import Links
from shards.tables import BACK, FORTH, LIVE, ROLE_CLIENT, ROLE_LAST, ROLE_RELAY

SECOND: Final = 1_000_000_000
EVERY_PARTS: Final = 600  # of a layer epoch's 30, between two refreshes
RETRY_PARTS: Final = 4  # without an answer: then it is asked again
LEAST_PARTS: Final = 2  # between two requests of a circuit that a hop answers
AHEAD: Final = 2  # epochs
LATE_PARTS: Final = 10  # of the epoch before the named one, then the circuit is closed: the next begins after 28
COUNTERS: Final = 8  # that a hop tries: requests before it that were lost on their way to it
COLLECT_PARTS: Final = 2  # for seven cells
COLLECTING_MAX: Final = 1024  # of a worker: 9 KiB each; one more takes the place of the oldest
COLLECTING_PER_LINK: Final = 64
WAITING_MAX: Final = 512
WAITING_PER_LINK: Final = WAITING_MAX // 8
BEGUN_AT_ONCE: Final = 8  # of a client, in one look: each takes milliseconds

Place = tuple[int, int]  # circuit row, direction in which the cells travel


@dataclass(eq=False, slots=True)
class _Seven:
    """The cells of a refresh that come in on one side of a circuit."""

    link: int
    created: int  # of the circuit: its row may serve another by the time they are read
    due: int
    cells: dict[int, bytes] = field(default_factory=dict)

    def all(self) -> list[bytes]:
        """In the order of slots."""
        return [self.cells[slot] for slot in range(BUILD_SLOTS)]


@dataclass(eq=False, slots=True)
class _Asked:
    """A request of ours that is not answered."""

    refresh: ClientRefresh
    created: int  # of the circuit
    sent: int  # ns
    cells: int  # that had gone out before it


class Refreshes:
    """The refreshes of one worker's circuits. `interval`: seconds of a layer epoch. `end_row` closes a circuit."""

    def __init__(
        self, rows: CircuitRows, links: Links, interval: int, entropy: Entropy, statistics: NDArray[np.int64],
        drops: NDArray[np.int64], end_row: Callable[[int, DestroyReason], None],
    ) -> None:  # fmt: skip
        self._rows = rows
        self._links = links
        self._entropy = entropy
        self._statistics = statistics
        self._drops = drops
        self._end_row = end_row
        self._part = interval * SECOND // PARTS
        self._asked: dict[int, _Asked] = {}  # by circuit row
        self._collecting: dict[Place, _Seven] = {}  # the oldest first
        self._per_link: Counts[int] = Counts()
        self._waiting: FairQueue[int, tuple[int, _Seven]] = FairQueue(WAITING_MAX, WAITING_PER_LINK, self._overflow)
        self._answered: NDArray[np.int64] = np.zeros(len(rows.rows), np.int64)  # ns: when a row's last request was answered

    @property
    def waiting(self) -> int:
        """Requests of others that wait for their public-key operation."""
        return len(self._waiting)

    # ------------------------------------------------------------ cells

    def on_cell(self, link: Link, session: int, cell: CellReceived, now: int) -> None:
        """Take a refresh cell; with the seventh the request or answer is whole."""
        found = self._rows.find(link.row, cell.circuit)
        leg = self._rows.legs(found[0])[found[1]] if found else None
        if found is None or leg is None or leg.session != session:
            self._drops[Drop.UNKNOWN_CIRCUIT] += 1
            return
        seven = self._collecting.get(found) or self._begin(link.row, found, now)
        if seven is None:
            return
        seven.cells.setdefault(cell.slot, cell.cell)
        if len(seven.cells) == BUILD_SLOTS:
            self._leave(found)
            self._whole(found, seven, now)

    def _begin(self, link: int, place: Place, now: int) -> _Seven | None:
        if self._per_link[link] >= COLLECTING_PER_LINK:
            self._drops[Drop.OVERFLOW] += 1
            return None
        if len(self._collecting) >= COLLECTING_MAX:
            self._drops[Drop.OVERFLOW] += 1
            self._leave(next(iter(self._collecting)))
        seven = _Seven(link, int(self._rows.rows[place[0]]["created"]), now + COLLECT_PARTS * self._part)
        self._collecting[place] = seven
        self._per_link[link] += 1
        return seven

    def _leave(self, place: Place) -> None:
        seven = self._collecting.pop(place)
        self._per_link[seven.link] -= 1
        if not self._per_link[seven.link]:
            del self._per_link[seven.link]

    def _lives(self, row: int, created: int) -> bool:
        circuit = self._rows.rows[row]
        return int(circuit["state"]) == LIVE and int(circuit["created"]) == created

    def _whole(self, place: Place, seven: _Seven, now: int) -> None:
        row, direction = place
        if not self._lives(row, seven.created):
            return
        role = int(self._rows.rows[row]["role"])
        if role == ROLE_CLIENT and direction == BACK:
            self._on_answer(row, seven, now)
        elif role == ROLE_RELAY and direction == BACK:
            self._pass_back(row, seven.all())
        elif now - self._answered[row] < LEAST_PARTS * self._part or not self._waiting.put(seven.link, (row, seven)):
            self._drops[Drop.OVERFLOW] += 1

    def _overflow(self, _lost: object) -> None:
        self._drops[Drop.OVERFLOW] += 1

    # ------------------------------------------------------------ as a hop

    def serve(self, now: int) -> int:
        """Answer the request whose turn it is; returns the public-key operations that it took, 0 when none waits."""
        while (found := self._waiting.take()) is not None:
            row, seven = found
            if self._lives(row, seven.created):
                self._answered[row] = now
                self._answer(row, seven.all())
                return PIECE
        return 0

    def _answer(self, row: int, cells: list[bytes]) -> None:
        rows, circuit = self._rows, self._rows.rows[row]
        rows.settle()
        last, epochs, [ck] = int(circuit["refresh"]), rows.epochs(row), rows.circuit_keys(row)
        try:
            made = answer_refresh(
                cells, ck, int(circuit["suite"]), range(last + 1, last + 1 + COUNTERS),
                cells_forward=int(circuit["cells_forth"]), cells_backward=int(circuit["cells_back"]),
            )  # fmt: skip
            if not max(epochs) < made.epoch <= max(epochs) + AHEAD or 0 < int(circuit["fresh_at"]) <= max(epochs):
                raise RemoteProtocolError("a refresh for another time")
        except RemoteProtocolError:
            self._drops[Drop.BAD_BUILD] += 1
            return
        finally:
            forget(ck)
        circuit["refresh"] = made.counter
        rows.renew(row, made.epoch, [made.fresh])
        self._statistics[Counter.REFRESHES_PASSED] += 1
        if int(circuit["role"]) == ROLE_LAST:
            self._pass_back(row, list(made.cells))
        else:
            self._send(rows.legs(row)[1], made.cells)

    def _pass_back(self, row: int, cells: list[bytes]) -> None:
        circuit = self._rows.rows[row]
        if not int(circuit["fresh_at"]):
            self._drops[Drop.BAD_BUILD] += 1
            return
        [ck] = self._rows.circuit_keys(row)
        self._send(self._rows.legs(row)[0], answer_layer(cells, ck, int(circuit["suite"]), int(circuit["refresh"])))
        forget(ck)

    def _send(self, leg: Leg | None, cells: Any) -> None:
        """To the next one; where there is no room, the client asks again."""
        link = self._links.link_of(leg.session) if leg else None
        if leg and link:
            for slot, cell in enumerate(cells):
                self._links.send_cell(link, leg.session, KIND_REFRESH, slot, leg.circuit_id, cell)

    # ------------------------------------------------------------ as the client

    def on_timer(self, now: int) -> None:
        """Several times a second: what has taken over, what takes too long, what is to be refreshed."""
        self._rows.settle()
        for place in [place for place, seven in self._collecting.items() if now >= seven.due]:
            self._leave(place)
        circuits = self._rows.rows
        own = np.flatnonzero((circuits["state"] == LIVE) & (circuits["role"] == ROLE_CLIENT)).tolist()
        for row in [row for row, asked in self._asked.items() if not self._lives(row, asked.created)]:
            self._asked.pop(row).refresh.forget()
        begun = 0
        for row in own:
            asked = self._asked.get(row)
            if self._late(row, now):
                self._end_row(row, DestroyReason.DEADLINE)
            elif begun < BEGUN_AT_ONCE and self._due(row, asked, now):
                begun += 1
                self._ask(row, now)

    def _late(self, row: int, now: int) -> bool:
        """Whether the epoch that an unanswered request names is so near that the hops might move without us."""
        named = int(self._rows.rows[row]["asked"])
        last = [self._rows.moved(row, way) for way, epoch in enumerate(self._rows.epochs(row)) if epoch >= named - 1]
        return named > 0 and bool(last) and now - min(last) >= LATE_PARTS * self._part

    def _due(self, row: int, asked: _Asked | None, now: int) -> bool:
        circuit = self._rows.rows[row]
        if asked:
            return now - asked.sent >= RETRY_PARTS * self._part
        if int(circuit["asked"]):  # of the last life: its ephemeral keys died with it
            return True
        last = int(circuit["refreshed"])
        return not int(circuit["fresh_at"]) and (not last or now - last >= EVERY_PARTS * self._part)

    def _ask(self, row: int, now: int) -> None:
        rows, circuit = self._rows, self._rows.rows[row]
        counter = int(circuit["refresh"]) + 1
        epoch = int(circuit["asked"]) or max(rows.epochs(row)) + AHEAD
        circuit["refresh"] = counter
        circuit["asked"] = epoch
        if row in self._asked:
            self._asked.pop(row).refresh.forget()
        refresh = ClientRefresh(rows.circuit_keys(row), int(circuit["suite"]), counter, epoch, self._entropy)
        self._asked[row] = _Asked(refresh, int(circuit["created"]), now, int(circuit["cells_forth"]))
        if (row, BACK) in self._collecting:
            self._leave((row, BACK))
        self._send(rows.legs(row)[1], refresh.cells)

    def _on_answer(self, row: int, seven: _Seven, now: int) -> None:
        asked, circuit = self._asked.pop(row, None), self._rows.rows[row]
        if asked is None:
            return
        try:
            answers = asked.refresh.finish(seven.all())
        except RemoteProtocolError:
            self._drops[Drop.BAD_BUILD] += 1  # and is asked again: parts of two answers may have met
            self._asked[row] = asked
            return
        if not self._count(circuit, answers, asked.cells):
            self._end_row(row, DestroyReason.FAILED_CELL)
            return
        self._rows.renew(row, asked.refresh.epoch, [answer.fresh for answer in answers])
        asked.refresh.forget()
        circuit["refreshed"] = now
        circuit["asked"] = 0
        self._statistics[Counter.REFRESHES_DONE] += 1

    def _count(self, circuit: Any, answers: list[Refreshed], sent: int) -> bool:
        """Whether no hop has been brought more cells than were sent. What was lost since the build is counted once."""
        arrived = [sent, *(answer.cells_forward for answer in answers)]
        if max(arrived) > int(circuit["cells_forth"]):
            return False
        lost = sum(max(0, before - after) for before, after in itertools.pairwise(arrived))
        self._statistics[Counter.CELLS_MISSING] += max(0, lost - int(circuit["missing"]))
        circuit["missing"] = max(lost, int(circuit["missing"]))
        return True


assert (FORTH, BACK) == (0, 1)

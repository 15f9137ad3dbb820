"""Streams whose application holds a slot of shared memory: which rows have something to move, and what follows.

Place on a byte's way: what `shards/edge/pumps.py` is for sockets, with the same marks, results and ends:

    in    EOF -> finish            the application half-closed
          FULL                     nothing: WRITABLE marks the row again; the up ring fills, so the application waits
    out   BLOCKED                  nothing: the application's wake-up marks the row again; the window pushes back
          FINAL -> DOWN_END        the application reads the other side's half-close
    both  over                     the slot has ENDED; the row waits for CLOSED
    CLOSE                          nothing more is put out; what is in the up ring is still taken
    STOPPED                        UP_STOP: the application's writes fail; what comes is still put out
    RESET                          what has room is put out, then the slot has ENDED
    WRONG                          the application broke the protocol: its guest is in `broken`, the edge drops it

An OPEN row has tcp_state HELD and no descriptor.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Columns
from nyx.stream import columns as events
from nyx.wire.sdk import DOWN_END, DOWN_HEAD, UP_STOP, UP_TAIL, Outcome, Phase
from shards.edge import table as edge
from shards.edge.contract import Streams, Words
from shards.edge.guest import Guest
from shards.edge.reasons import CODE_TARGET_RESET, Reason
from shards.edge.rowmarks import RowMarks
from shards.edge.table import EdgeTable
from shards.kernels import slots, tcp

_NOTABLE_IN: Final = tcp.EOF | slots.WRONG
_NOTABLE_OUT: Final = tcp.FINAL | slots.WRONG
_OTHER_NAMES: Final = {
    Reason.NONE: Outcome.OK,
    Reason.NOT_RESOLVED: Outcome.HOST_UNREACHABLE,
    Reason.BAD_NAME: Outcome.BAD_REQUEST,
}


def outcome_of(reason: Reason) -> Outcome:
    """What the application is told of a reason."""
    if reason.name in Outcome.__members__:
        return Outcome[reason.name]
    return _OTHER_NAMES.get(reason, Outcome.EXIT_FAILED)


class SlotPumps:
    """All streams of a worker that have a slot."""

    def __init__(self, streams: Streams, columns: Columns, ring: int, table: EdgeTable) -> None:
        self.streams = streams
        self.rows: NDArray[Any] = columns["streams"]
        self.tx: NDArray[np.uint8] = columns["stream_tx"]
        self.rx: NDArray[np.uint8] = columns["stream_rx"]
        self.ring = ring
        self.table = table
        self.guests: dict[int, Guest] = {}
        self.broken: set[int] = set()  # guests whose words were wrong
        self.bytes_in = 0
        self.bytes_out = 0
        count = len(self.rows)
        self._places: Words = np.zeros(count, np.int64)
        self._sizes: Words = np.zeros(count, np.int64)
        self._owner: Words = np.full(count, -1, np.int64)
        self._in = RowMarks(count)
        self._out = RowMarks(count)
        self._work: Words = np.zeros(count, np.int64)
        self._results: Words = np.zeros(count, np.int64)

    # ---------------------------------------------------------------- rows come and go

    def bind(self, row: int, guest: Guest, slot: int) -> None:
        """The row's bytes go through this slot, once it is attached."""
        self._places[row], self._sizes[row], self._owner[row] = guest.place(slot), guest.ring, guest.index
        guest.bound[slot] = row

    def attach(self, row: int) -> None:
        """The stream is open from now on."""
        tcp.mark(self.rows, row, tcp.HELD)
        self._in.vector[row] = self._out.vector[row] = True
        self.tell(row, Phase.OPENED)

    def seat(self, row: int) -> tuple[Guest, int] | None:
        """Guest and slot of a row, while it is bound."""
        guest = self.guests.get(int(self._owner[row]))
        return (guest, int(self.table.rows[row]["slot"])) if guest else None

    def tell(self, row: int, phase: Phase, outcome: Outcome = Outcome.OK) -> None:
        """Commit the state of the row's slot."""
        if found := self.seat(row):
            found[0].tell(found[1], int(self.table.rows[row]["generation"]), phase, outcome)

    def restore(self, row: int, guest: Guest) -> None:
        """Take over an OPEN row of a dead worker: its slot's copies of our positions, and what follows from its flags."""
        slot, entry, state = int(self.table.rows[row]["slot"]), self.rows[row], int(self.rows[row]["tcp_state"])
        self.bind(row, guest, slot)
        guest.store(slot, UP_TAIL, int(entry["tx_head"]))
        guest.store(slot, DOWN_HEAD, int(entry["rx_tail"]))
        if state & tcp.OUT_FIN and int(entry["rx_final"]) == int(entry["rx_tail"]) + 1:
            guest.store(slot, DOWN_END, int(entry["rx_tail"]) + 1)
        self.attach(row)
        if state & tcp.IN_EOF:
            self.streams.finish(row)
        self._end_if_over(row)

    def unbind(self, row: int) -> Guest | None:
        """The row goes on without its slot; the guest that had it."""
        found = self.seat(row)
        if found is None:
            return None
        self._places[row], self._owner[row] = 0, -1
        found[0].bound[found[1]] = -1
        return found[0]

    def end(self, row: int, outcome: Outcome) -> None:
        """The application is told that its stream is over; the row goes on without a slot."""
        self.table.move(row, edge.CLOSING)
        self._in.vector[row] = self._out.vector[row] = False
        if guest := self.unbind(row):
            entry = self.table.rows[row]
            guest.tell(int(entry["slot"]), int(entry["generation"]), Phase.ENDED, outcome)
        tcp.detach(self.rows, row)

    def forget(self, row: int) -> None:
        """The row is released: nothing of it is left here."""
        self.end(row, outcome_of(Reason(int(self.table.rows[row]["reason"]))))
        self.table.move(row, edge.FREE)

    # ---------------------------------------------------------------- marks

    def on_wake(self, guest: Guest) -> None:
        """The application moved something in some of its slots."""
        rows = guest.bound[guest.bound >= 0]
        self._in.vector[rows] = self._out.vector[rows] = True

    def on_event(self, kind: int, row: int, value: int, now: int) -> None:
        """A stream event of a row that is OPEN or CLOSING."""
        if kind in (events.READABLE, events.FINISHED):
            self._out.vector[row] = True
        elif kind == events.WRITABLE:
            self._in.vector[row] = True
        elif kind == events.RESET:
            self._on_reset(row, value, now)
        elif kind == events.STOPPED:
            self._on_stopped(row, now)

    def _on_reset(self, row: int, code: int, now: int) -> None:
        if self.table.state(row) != edge.OPEN or int(self.rows[row]["tcp_state"]) & tcp.OUT_FIN:
            return  # the application reads no more: its own bytes are still sent
        one, result = np.array([row], np.int64), np.zeros(1, np.int64)
        slots.put_out(one, 1, self._places, self._sizes, self.rows, self.rx, self.ring, result)
        self.abort(row, Reason.TARGET_RESET if code == CODE_TARGET_RESET else Reason.CANCELLED, now)

    def _on_stopped(self, row: int, now: int) -> None:
        """The peer wants no more; what it still sends is put out."""
        if self.table.state(row) == edge.OPEN and not int(self.rows[row]["tcp_state"]) & tcp.IN_EOF:
            self.table.fail(row, Reason.STOPPED, now)
        tcp.mark(self.rows, row, tcp.IN_EOF)
        if found := self.seat(row):
            found[0].store(found[1], UP_STOP, Outcome.STOPPED + 1)
            found[0].ring_bell()
        self.streams.reset(row, Reason.STOPPED.facts.code)
        self._end_if_over(row)

    def stop_reading(self, row: int) -> None:
        """The application closed its stream: what it wrote is still sent."""
        tcp.mark(self.rows, row, tcp.OUT_FIN)
        self.streams.stop(row, Reason.CANCELLED.facts.code)
        self._in.vector[row] = True
        self._end_if_over(row)

    # ---------------------------------------------------------------- one turn

    @property
    def pending(self) -> bool:
        """Whether a row has more to move than a turn's budget."""
        return bool(self._in or self._out)

    def pump(self) -> None:
        """Move what can be moved, once, wake whose bytes moved, and settle what ended."""
        moved: set[int] = set()
        if n := self._in.gather(self._work):
            self.bytes_in += int(
                slots.take_in(self._work, n, self._places, self._sizes, self.rows, self.tx, self.ring, self._results)
            )
            moved |= self._after(n, self._in, _NOTABLE_IN, inwards=True)
        if n := self._out.gather(self._work):
            self.bytes_out += int(
                slots.put_out(self._work, n, self._places, self._sizes, self.rows, self.rx, self.ring, self._results)
            )
            moved |= self._after(n, self._out, _NOTABLE_OUT, inwards=False)
        for index in moved:
            if index in self.guests:
                self.guests[index].ring_bell()

    def _after(self, n: int, marks: RowMarks, notable: int, *, inwards: bool) -> set[int]:
        """What follows from the results of a kernel call over `n` rows; the guests whose bytes moved."""
        work, results = self._work[:n].copy(), self._results[:n].copy()
        marks.vector[work[(results & tcp.MORE) != 0]] = True
        moved = set(self._owner[work[(results & tcp.BYTES) != 0]].tolist())
        for k in np.flatnonzero(results & notable).tolist():
            row = int(work[k])
            if results[k] & slots.WRONG:
                self.broken.add(int(self._owner[row]))
            elif inwards:
                tcp.mark(self.rows, row, tcp.IN_EOF)
                self.streams.finish(row)
            else:
                self._put_end(row)
            self._end_if_over(row)
        return moved

    def _put_end(self, row: int) -> None:
        tcp.mark(self.rows, row, tcp.OUT_FIN)
        if found := self.seat(row):
            found[0].store(found[1], DOWN_END, int(self.rows[row]["rx_tail"]) + 1)
            found[0].ring_bell()

    def _end_if_over(self, row: int) -> None:
        both = tcp.IN_EOF | tcp.OUT_FIN
        if self.table.state(row) == edge.OPEN and int(self.rows[row]["tcp_state"]) & both == both:
            self.end(row, outcome_of(Reason(int(self.table.rows[row]["reason"]))))

    def abort(self, row: int, reason: Reason, now: int) -> None:
        """End an OPEN stream at once, from either side."""
        if self.table.state(row) != edge.OPEN:
            return
        self.table.fail(row, reason, now)
        self.streams.stop(row, reason.facts.code)
        self.streams.reset(row, reason.facts.code)
        self.end(row, outcome_of(reason))

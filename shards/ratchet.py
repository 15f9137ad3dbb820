"""When the circuits that begin here move to the next layer epoch: at marks that all circuits of the network share.

Place on a packet's way: beside it. A client originates the cells towards the last hop, a last hop those back; both move at every
multiple of 30 s of Unix time by their own clock, and up to 2 s later at random, drawn for each circuit and mark. Relays follow
what they see. The other parity means the next epoch only to those who made the last move a while ago, so an originator moves
only when it knows that all hops have: an acknowledgement of a cell of its current epoch came 16 s before, or that mark is
skipped (as RFC 9001, 6.1 has it for QUIC). A PING under each new epoch sees to it that there is one, also where nothing else is
sent. Epoch 0 needs none: nothing is older. Source: docs/protocol.md, "Layer epochs".

What an acknowledgement has shown stands in a column; where none has come, a new life waits for one of a cell of its own.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.onion.ratchet import GAP_PARTS, JITTER_PARTS, MOVED_BITS, PARTS, WAIT_PARTS
from nyx.stats import Counter
from nyx.stream.engine import Streams
from shards.circuits import CircuitRows, Entropy
from shards.kernels.epochs import forget_epochs, move_circuits
from shards.tables import BACK, FORTH, LIVE, ROLE_CLIENT, ROLE_LAST

SECOND: Final = 1_000_000_000
_JITTER_STEPS: Final = 1 << 16

Words = NDArray[np.int64]


class Ratchet:
    """The marks of one worker. `gap` is what its kernels want to know, in ms."""

    def __init__(
        self, rows: CircuitRows, streams: Streams, interval: int, entropy: Entropy, scratch: NDArray[np.uint8], statistics: Words
    ) -> None:
        self._circuits = rows.rows
        self._chains = rows.chains
        self._keys = rows.keys
        self._connections: NDArray[Any] = streams.connections
        self._streams = streams
        self._entropy = entropy
        self._scratch = scratch
        self._statistics = statistics
        self._interval = interval
        part = interval * SECOND // PARTS
        self.gap: Final = GAP_PARTS * part // 1_000_000
        self._wait = WAIT_PARTS * part
        self._jitter = JITTER_PARTS * part
        self._mark = -1
        count = len(self._circuits)
        self._due: Words = np.zeros(count, np.int64)  # ns; 0: not before the next mark
        self._first: Words = np.zeros(count, np.int64)  # sequence of the first cell under the current epoch, or in this life
        self._inherited = self._ends()
        self._first[self._inherited] = self._connections["sequence_next"][self._circuits["connection"][self._inherited] - 1]

    def _ends(self) -> Words:
        """Rows of the circuits that begin here, or end here and have had a cell."""
        circuits = self._circuits
        begun = (circuits["role"] == ROLE_CLIENT) | ((circuits["role"] == ROLE_LAST) & (circuits["cell_next"] > 0))
        return np.flatnonzero((circuits["state"] == LIVE) & (circuits["connection"] > 0) & begun)

    def on_timer(self, now: int, wall: int) -> None:
        """Several times a second: what is due moves, and what is behind is erased."""
        forget_epochs(self._circuits, self._chains, self._keys, now, self.gap)
        if len(self._inherited):  # of the last life: what it heard of their epochs died with it
            self._ask(self._inherited[self._epochs(self._inherited) > 0])
            self._inherited = self._inherited[:0]
        ends = self._ends()
        if not len(ends):
            self._mark = wall // self._interval
            return
        self._see_acknowledgements(ends, now)
        if wall // self._interval != self._mark:
            self._draw(ends, now)
            self._mark = wall // self._interval
        due = ends[(self._due[ends] > 0) & (self._due[ends] <= now)]
        if len(due):
            self._due[due] = 0
            confirmed = self._chains["confirmed"][self._originated(due)]
            ready = (self._epochs(due) == 0) | ((confirmed > 0) & (now - confirmed >= self._wait))
            self._move(due[ready], now)

    def _draw(self, ends: Words, now: int) -> None:
        """A mark has passed: when each of these circuits moves."""
        drawn = np.frombuffer(self._entropy(2 * len(ends)), np.uint16).astype(np.int64)
        self._due[ends] = now + drawn * self._jitter // _JITTER_STEPS

    def _originated(self, rows: Words) -> Words:
        """The chains of the direction that these rows originate."""
        chains: Words = 2 * rows + np.where(self._circuits["role"][rows] == ROLE_CLIENT, FORTH, BACK)
        return chains

    def _epochs(self, rows: Words) -> Words:
        """The epochs in which these rows send."""
        epochs: Words = self._chains["now"][self._originated(rows)] >> MOVED_BITS
        return epochs

    def _see_acknowledgements(self, ends: Words, now: int) -> None:
        unknown = ends[self._chains["confirmed"][self._originated(ends)] == 0]
        acknowledged = self._connections["acked_next"][self._circuits["connection"][unknown] - 1] > self._first[unknown]
        self._chains["confirmed"][self._originated(unknown[acknowledged])] = now

    def _move(self, rows: Words, now: int) -> None:
        if not len(rows):
            return
        move_circuits(self._circuits, self._chains, self._keys, rows, len(rows), now, self._scratch)
        self._statistics[Counter.LAYER_MOVES] += len(rows)
        self._first[rows] = self._connections["sequence_next"][self._circuits["connection"][rows] - 1]
        self._ask(rows)

    def _ask(self, rows: Words) -> None:
        """Send something that will be acknowledged."""
        for connection in (self._circuits["connection"][rows] - 1).tolist():
            self._streams.ping(connection, 0)

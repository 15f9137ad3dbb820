"""One worker's look at itself, once a second: what of its surroundings fails it, as conditions for `nyxctl status` and the log.

Place on a packet's way: none. What is the same for all workers of a node (socket buffers, clock) worker 0 names alone.
"""

from collections.abc import Callable
from typing import Final

from nyx.stats import Counter, statistics_row
from shards import quarantine
from shards.clock import WallClock, ahead
from shards.context import WorkerContext
from shards.health import Conditions, Shortage, buffer_condition
from shards.say import say

SECOND: Final = 1_000_000_000
ASLEEP: Final = 5 * SECOND  # between two turns: the process, its node or the whole machine stood still
_PROOFS: Final = (Counter.BUILDS_READY, Counter.BUILDS_PASSED, Counter.HANDSHAKES_ANSWERED)


class Checkup:
    """The conditions of one worker.

    `granted` is its receive buffer, `refused` counts descriptors that the system had not, `trouble` says what keeps it from
    circuits of its own, `flood` what strangers do to it, `memory` what is wrong with its memory.
    """

    def __init__(
        self,
        context: WorkerContext,
        granted: int,
        refused: Callable[[], int],
        trouble: Callable[[], str | None],
        flood: Callable[[], str | None],
        memory: Callable[[int], str | None],
    ) -> None:
        self._context = context
        self._granted = granted
        self._refused = refused
        self._trouble = trouble
        self._flood = flood
        self._memory = memory
        self._conditions = Conditions()
        self._shortage = Shortage()
        self._rows = [statistics_row(context.shared["statistics"], index) for index in range(context.workers)]
        self.clock = WallClock(int(context.shared["node"]["clock"][0]), context.started)
        self._due = 0

    @property
    def warnings(self) -> list[str]:
        """What is wrong now."""
        return self._conditions.texts

    def look(self, now: int) -> None:
        """Judge everything, at most once a second."""
        if now < self._due:
            return
        self._due = now + SECOND
        self._context.started = self.clock.started(ahead())
        judge = self._conditions.judge
        judge("descriptors", self._shortage.condition(self._refused(), now))
        judge("circuits", self._trouble())
        judge("flood", self._flood())
        judge("memory", self._memory(now))
        row = self._context.shared["node_workers"][self._context.index]
        judge("records", quarantine.describe(int(row["quarantined"]), int(row["quarantined_kind"]), self._context.index))
        if self._context.index == 0:
            judge("buffer", buffer_condition(self._granted, self._context.config.node.receive_buffer << 10))
            proofs = sum(int(row[counter]) for row in self._rows for counter in _PROOFS)
            judge("clock", self.clock.condition(ahead(), proofs, now))

    def woke(self, slept: int) -> None:
        """The loop stood still for so many nanoseconds: somebody reading the log will want to know."""
        say("info", f"went on after it had stood still for {slept / SECOND:.0f} s")

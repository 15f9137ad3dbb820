"""An upgrade as the supervisor drives it: preflight, then replace, or drain and start over; one at a time.

IDLE        an order begins PREFLIGHT
PREFLIGHT   the new code says it would hold the same memory: the process executes it (`shards/upgrade.py`);
            other memory: DRAINING; it does not start, or no drain is wanted: IDLE, and the order is refused with the reason
DRAINING    workers take nothing new; when what is open has ended, or the time is over, everybody ends and the new code
            starts from nothing
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nyx.errors import NyxError
from nyx.wire.orders import Message
from shards import upgrade
from shards.orders import OrderRefusedError, Orders
from shards.process import Child, Watch
from shards.rehearsal import in_the_way
from shards.say import say

if TYPE_CHECKING:
    import socket

    from shards.holdings import Holdings
    from shards.supervisor import Plan

PREFLIGHT_LIMIT: Final = 300.0  # seconds; new kernels are compiled in it
DRAIN_MOST: Final = 3600.0
_LOOK: Final = 0.05  # seconds between two looks at what is still open


@dataclass(slots=True)
class _Preflight:
    order: int
    drain: float | None
    process: upgrade.Preflight
    until: float
    status: int | None = None


class Replacement:
    """The upgrade of one supervisor."""

    class StartOver(Exception):  # noqa: N818 (it is no error: it ends the watch)
        """Everybody has drained."""

    def __init__(
        self,
        plan: "Plan",
        held: "Holdings",
        watch: Watch,
        orders: Orders,
        ends: Mapping[int, "socket.socket"],
        children: Sequence[Child],
        drain: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._held = held
        self._watch = watch
        self._orders = orders
        self._ends = ends
        self._children = children
        self._drain = drain
        self._preflight: _Preflight | None = None
        self._drain_until = 0.0

    def begin(self, order: Message) -> None:
        """Start the preflight; the order is answered after it. Raises OrderRefusedError."""
        drain = order.args.get("drain")
        if not self._plan.command:
            raise OrderRefusedError("this node was not started as a program that can be started anew")
        if self._preflight or self._drain_until:
            raise OrderRefusedError("an upgrade is under way already")
        if drain is not None and (not isinstance(drain, int | float) or not 0 <= drain <= DRAIN_MOST):
            raise OrderRefusedError(f"drain must be seconds from 0 to {DRAIN_MOST:.0f}")
        try:
            process = upgrade.Preflight.start(self._plan.preflight)
        except OSError as error:
            raise OrderRefusedError(f"the new version cannot be started: {error.strerror}") from error
        self._preflight = _Preflight(order.id, drain, process, time.monotonic() + PREFLIGHT_LIMIT)
        self._watch.helpers[process.pid] = self._preflight_ended

    def _preflight_ended(self, status: int) -> None:
        if self._preflight:
            self._preflight.status = status

    def tick(self) -> float | None:
        """Go on; in how many seconds to come again. Raises StartOver, or does not return."""
        if self._drain_until:
            if time.monotonic() >= self._drain_until or not self._held.shared["node_workers"]["load"].any():
                raise Replacement.StartOver
            return _LOOK
        found = self._preflight
        if found is None:
            return None
        if found.status is None:
            if time.monotonic() > found.until:
                found.process.kill()
            return 1.0
        self._preflight = None
        try:
            self._decide(found, found.process.result(found.status))
        except NyxError as error:
            self._orders.refuse(found.order, str(error))
        return 0.0

    def _replace(self) -> None:
        """Execute the new code; where the kernel refuses to, what runs goes on, and says so: the order has its answer already."""
        try:
            upgrade.replace(self._plan.command, self._state(), [*self._held.descriptors(), *self._end_descriptors()])
        except OSError as error:
            say("error", f"the new version could not be executed ({error.strerror}): this one goes on")

    def _decide(self, preflight: _Preflight, then: Mapping[str, Any]) -> None:
        now = upgrade.describe(self._plan.config, len(self._held.events), self._plan.columns)
        changes = upgrade.differences(now, then)
        if not changes:
            self._orders.answer(preflight.order, {"drained": False, "changes": []})
            self._replace()
            return
        if preflight.drain is None:
            raise OrderRefusedError("what runs cannot be kept: " + "; ".join(changes))
        if hindered := in_the_way(now, then, then.get("obstacles", ())):
            raise OrderRefusedError("the node could not start again, nothing was changed: " + "; ".join(hindered))
        self._orders.answer(preflight.order, {"drained": True, "changes": changes})
        self._drain_until = time.monotonic() + preflight.drain
        self._drain()

    def _end_descriptors(self) -> list[int]:
        return [end.fileno() for end in self._ends.values()]

    def _state(self) -> dict[str, Any]:
        children = {child.name: {"pid": child.pid, "restarts": child.restarts} for child in self._children}
        ends = {str(index): end.fileno() for index, end in self._ends.items()}
        return {"held": self._held.keep(), "children": children, "ends": ends}

    def start_over(self) -> None:
        """Everything has been let go: execute the new code from nothing."""
        upgrade.start_over(self._plan.command)

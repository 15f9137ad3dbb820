"""The wall clock as others will judge it: whether it was set while the node runs, and when the node started by today's clock.

Place on a packet's way: none. Handshakes and builds carry seconds of the wall clock, and a node whose clock is wrong by more than
two minutes is refused in silence by everybody. Nobody can tell a wrong clock by looking at it; a clock that was *set* shows
against the time since boot, which counts through suspensions too. What was right before is suspect until the network takes the
new time: a build that got ready or passed, or a handshake that was answered, was judged by another node's clock.
Source: Linux clock_gettime(2), CLOCK_BOOTTIME.
"""

import time
from typing import Final

SECOND: Final = 1_000_000_000
STEP: Final = 60 * SECOND  # smaller ones hinder nobody
PROOF_AFTER: Final = 20 * SECOND  # what succeeds sooner after a step may have been judged by the time before it


def ahead() -> int:
    """Nanoseconds by which the wall clock is ahead of the time since boot: changes only when somebody sets the clock."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class WallClock:
    """Watches for steps. `origin`: what `ahead` was when the node started, at `started` by the clock of then."""

    def __init__(self, origin: int, started: int) -> None:
        self._origin = origin
        self._started = started
        self._right = origin  # what `ahead` was when the network last took our time
        self._last = origin
        self._stepped_at = 0
        self._proofs = 0

    def started(self, ahead_now: int) -> int:
        """When the node started, in seconds of the clock as it is set now: what is older may be a replay it does not remember."""
        return self._started + (ahead_now - self._origin) // SECOND

    def condition(self, ahead_now: int, proofs: int, now: int) -> str | None:
        """What is wrong with the clock. `proofs`: how often others have taken our time, or we theirs."""
        if abs(ahead_now - self._last) > STEP:
            self._stepped_at = now
        self._last = ahead_now
        if now < self._stepped_at + PROOF_AFTER:
            self._proofs = proofs
        elif proofs != self._proofs:
            self._proofs, self._right = proofs, ahead_now
        step = (ahead_now - self._right) // SECOND
        if abs(step) * SECOND <= STEP:
            return None
        way = "ahead" if step > 0 else "back"
        return (
            f"this machine's clock was set {way} by {abs(step)} s while the node runs, to {said(time.time())}: "
            "if that is wrong, other nodes refuse new links and circuits until it is right"
        )


def said(wall: float) -> str:
    """A time for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(wall))

"""How much proof of work this worker asks for builds now: more while more come than it opens, less when that is over.

Place on a packet's way: beside it; looked at four times a second. Source: docs/protocol.md, "Proof of work".
"""

from typing import Final

from nyx.onion.work import EFFORT_MOST

SECOND: Final = 1_000_000_000
FIRST: Final = 10  # bits, once builds wait: a thousand hashes, a millisecond of a client's
CEILING: Final = 20  # bits: a second of one, what clients make by default (path.effort); no flood makes a relay ask more
WAITING: Final = 64  # builds that wait, from which on they are too many
RISE: Final = SECOND // 4  # a bit more at each look while they are
CALM: Final = 10 * SECOND  # without them, after which it falls
FALL: Final = SECOND  # a bit less each


class Effort:
    """`floor` is what the descriptor names. `bits` is asked now."""

    def __init__(self) -> None:
        self.bits = 0
        self._floor = 0
        self._next_rise = 0
        self._next_fall = 0

    @property
    def raised(self) -> bool:
        """Whether more is asked than the descriptor names."""
        return self.bits > self._floor

    def look(self, waiting: int, refused: int, floor: int, now: int) -> None:
        """So many builds wait, and so many have found no room since the last look."""
        self._floor = min(floor, EFFORT_MOST)
        self.bits = max(self.bits, self._floor)
        if waiting >= WAITING or refused:
            self._next_fall = now + CALM
            if now >= self._next_rise:
                self._next_rise = now + RISE
                self.bits = max(self._floor, min(max(self.bits + 1, FIRST), CEILING))
        elif self.raised and now >= self._next_fall:
            self._next_fall = now + FALL
            self.bits = self._floor if self.bits <= FIRST else self.bits - 1

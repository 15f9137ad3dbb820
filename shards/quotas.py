"""How many handshakes a source may ask for: token buckets in a table that does not grow.

Place on a packet's way: after the cookie, which proves the source, before the queue of those who are answered. A source is the
/24 of an IPv4 address or the /64 of an IPv6 address: what one subscriber or one small lease has. Each source has a place in two
halves of the table, by a secret hash, and is refused only where both are used up: a flooder who shares one place with somebody
leaves him the other. A place is the time up to which it is paid for (the generic cell rate algorithm), one word, one store.
Source: docs/protocol.md, "Responder: order of checks", step 4; ITU-T I.371 (GCRA).
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column
from nyx.crypto.sodium import siphash24
from nyx.kernel import Int, address, called, kernel
from shards.address import unpack_ip

SECOND: Final = 1_000_000_000
RATE: Final = 20  # handshakes of a source in a second, as WireGuard's; of each worker
BURST: Final = 40
PLACES: Final = 1 << 13  # of a half; 128 KiB in all
_COST: Final = SECOND // RATE
_AHEAD: Final = _COST * BURST


def quota_columns() -> list[Column]:
    """The column of one worker's table."""
    return [Column("quotas", np.dtype(np.int64), 2 * PLACES)]


def source_of(address: bytes) -> bytes:
    """What counts as one source, of a raw socket address."""
    ip = unpack_ip(address)
    return ip[:3] if len(ip) == 4 else ip[:8]


@called
def charge(words: Any, source: Int, size: Int, key: Int, now: Int, scratch: Any) -> Any:
    """Charge one handshake at `now` (monotonic ns) to the source of so many bytes at this address; 0 when it may have none."""
    siphash24(address(scratch), source, size, key)
    word = np.int64(scratch[0])
    one, other = word & 0xFFFFFFFF, word >> 32 & 0xFFFFFFFF
    first, second = one % PLACES, PLACES + other % PLACES
    paid_first, paid_second = max(np.int64(words[first]), now), max(np.int64(words[second]), now)
    if min(paid_first, paid_second) + _COST > now + _AHEAD:
        return 0
    words[first] = min(paid_first + _COST, now + _AHEAD)
    words[second] = min(paid_second + _COST, now + _AHEAD)
    return 1


@kernel("i8", "i8[]", "u1[]", "u1[]", "i8", "i8[]")
def _charge_one(words: Any, source: Any, key: Any, now: Int, scratch: Any) -> Any:
    """The same for one source."""
    return charge(words, address(source), source.size, address(key), now, scratch)


class Quotas:
    """The buckets of one worker, in memory that outlives it; `key` of 16 secret bytes is the same in each of its lives."""

    def __init__(self, words: NDArray[np.int64], key: bytes) -> None:
        self._words = words
        self._key: NDArray[np.uint8] = np.frombuffer(bytearray(key), np.uint8)
        self._scratch: NDArray[np.int64] = np.zeros(1, np.int64)

    def __repr__(self) -> str:
        return "Quotas()"

    @property
    def words(self) -> NDArray[np.int64]:
        """All of it, for kernels."""
        return self._words

    def take(self, source: bytes, now: int) -> bool:
        """Whether this source may have one more handshake now (monotonic ns); charges it if so."""
        return bool(_charge_one(self._words, np.frombuffer(bytearray(source), np.uint8), self._key, now, self._scratch))

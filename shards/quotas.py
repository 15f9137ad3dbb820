"""How many handshakes a source may ask for: token buckets in a table that does not grow.

Place on a packet's way: after the cookie, which proves the source, before the queue of those who are answered. A source is the
/24 of an IPv4 address or the /64 of an IPv6 address: what one subscriber or one small lease has. Each source has a place in two
halves of the table, by a secret hash, and is refused only where both are used up: a flooder who shares one place with somebody
leaves him the other. A place is the time up to which it is paid for (the generic cell rate algorithm), one word, one store.
Source: docs/protocol.md, "Responder: order of checks", step 4; ITU-T I.371 (GCRA).
"""

from typing import Final

import numpy as np
from nacl.bindings import crypto_shorthash_siphash24
from numpy.typing import NDArray

from nyx.columns import Column
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


class Quotas:
    """The buckets of one worker, in memory that outlives it; `key` of 16 secret bytes is the same in each of its lives."""

    def __init__(self, words: NDArray[np.int64], key: bytes) -> None:
        self._words = words
        self._key = key

    def __repr__(self) -> str:
        return "Quotas()"

    def take(self, source: bytes, now: int) -> bool:
        """Whether this source may have one more handshake now (monotonic ns); charges it if so."""
        word = int.from_bytes(crypto_shorthash_siphash24(source, self._key), "little")
        places = (word % PLACES, PLACES + (word >> 32) % PLACES)
        paid = [max(int(self._words[place]), now) for place in places]
        if min(paid) + _COST > now + _AHEAD:
            return False
        for place, until in zip(places, paid, strict=True):
            self._words[place] = min(until + _COST, now + _AHEAD)
        return True

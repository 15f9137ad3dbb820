"""Initiations of links that were here before: a second copy meets silence.

Place on a packet's way: after mac1, before anything is answered. Source: docs/protocol.md, "Responder: order of checks".
"""

from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column
from nyx.crypto.kem import Entropy
from nyx.crypto.sodium import siphash24
from nyx.kernel import Int, address, called, inline, kernel
from nyx.link.handshake import MAC_SLOT
from nyx.wire.geometry import INIT_CT

REPLAY_KEPT: Final = 360  # seconds: mac1 is accepted over three slots
_GENERATIONS: Final = REPLAY_KEPT // MAC_SLOT + 1
_WAYS: Final = 8
FINGERPRINTED: Final = INIT_CT  # bytes: CID, header, ephemeral key
_KEY_WORDS: Final = 4
_HEAD_WORDS: Final = _KEY_WORDS + 1  # the key, then the newest time slot plus one


def replay_columns(capacity: int = 1 << 16, proven: int = 1 << 14) -> list[Column]:
    """The columns of one worker's two tables, with room for about so many initiations within 360 s.

    "handshakes_proven" has those that came with a cookie: a flood without cookies fills "handshakes_seen" alone.
    """
    sizes = (("handshakes_seen", capacity), ("handshakes_proven", proven))
    buckets = {name: max(1, size // (_GENERATIONS * _WAYS)) for name, size in sizes}
    return [Column(name, np.dtype("u4"), _HEAD_WORDS + n * _GENERATIONS * _WAYS) for name, n in buckets.items()]


class Seen(IntEnum):
    """What a ReplayTable says of an initiation."""

    NEW = 0
    BEFORE = 1
    FULL = 2  # not found, and there was no room to remember it


NEW: Final = int(Seen.NEW)
BEFORE: Final = int(Seen.BEFORE)
FULL: Final = int(Seen.FULL)


@inline
def fingerprint(table: Any, packet: Int, scratch: Any) -> Any:
    """The word by which the initiation at this address is known in tables that share their key."""
    siphash24(address(scratch), packet, FINGERPRINTED, address(table))
    return np.int64(scratch[0])


@called
def meet_word(table: Any, word: Int, newest: Int, remember: Int) -> Any:
    """Whether this word is in the table; if not, puts it into the newest generation, when it is to be remembered."""
    mark = max(word & 0xFFFFFFFF, np.int64(1))
    buckets = (table.size - _HEAD_WORDS) // (_GENERATIONS * _WAYS)
    bucket = _HEAD_WORDS + (word >> 32 & 0xFFFFFFFF) % buckets * (_GENERATIONS * _WAYS)
    for k in range(bucket, bucket + _GENERATIONS * _WAYS):
        if np.int64(table[k]) == mark:
            return BEFORE
    first = bucket + newest % _GENERATIONS * _WAYS
    for k in range(first, first + _WAYS):
        if np.int64(table[k]) == 0:
            if remember != 0:
                table[k] = mark
            return NEW
    return FULL


@kernel("i8", "u4[]", "u1[]", "i8", "i8", "i8[]")
def _meet_one(table: Any, packet: Any, newest: Int, remember: Int, scratch: Any) -> Any:
    """The same for one packet."""
    return meet_word(table, fingerprint(table, address(packet), scratch), newest, remember)


class ReplayTable:
    """Initiations seen in the last 360 s, as fingerprints of 4 bytes: a second copy meets silence.

    Layout of the words: key of 16 bytes (zero: none drawn yet), newest slot + 1, then `buckets` x 4 generations of 120 s x 8
    fingerprints; 0 is empty. One worker writes it, and it outlives that worker: all copies of a packet carry one CID, so they
    are steered to the same worker. A full bucket counts as seen. The fingerprint covers CID, header and ephemeral key: whatever
    else is changed makes the seal fail, and mac1 anybody can make again for another time slot. `meet` tells a full bucket apart,
    for a responder under load. `key`: of another table, so that one fingerprint serves both.
    """

    def __init__(self, words: NDArray[np.uint32], entropy: Entropy, key: "ReplayTable | None" = None) -> None:
        self._words = words
        self._table = words[_HEAD_WORDS:].reshape(-1, _GENERATIONS, _WAYS)
        if not words[:_KEY_WORDS].any():
            words[:_KEY_WORDS] = key.words[:_KEY_WORDS] if key else np.frombuffer(entropy(4 * _KEY_WORDS), np.uint32)
        self._scratch: NDArray[np.int64] = np.zeros(1, np.int64)

    def __repr__(self) -> str:
        return f"ReplayTable(buckets={len(self._table)})"

    @property
    def words(self) -> NDArray[np.uint32]:
        """All of it, for kernels."""
        return self._words

    def turn(self, wall: int) -> int:
        """Empty the generations that have passed; a clock that steps back empties none. Returns the newest slot."""
        slot = wall // MAC_SLOT
        newest = int(self._words[_KEY_WORDS]) - 1
        if slot <= newest:
            return newest
        for passed in range(max(newest + 1, slot - _GENERATIONS + 1), slot + 1):
            self._table[:, passed % _GENERATIONS] = 0
        self._words[_KEY_WORDS] = slot + 1
        return slot

    def seen(self, packet: bytes, wall: int) -> bool:
        """Whether this initiation was here before, or may have been; remembers it if not."""
        return self.meet(packet, wall) is not Seen.NEW

    def meet(self, packet: bytes, wall: int, *, remember: bool = True) -> Seen:
        """Whether this initiation was here before; remembers it if there is room. To be asked only after mac1 was right."""
        whole = np.frombuffer(bytearray(packet), np.uint8)
        return Seen(_meet_one(self._words, whole, self.turn(wall), int(remember), self._scratch))

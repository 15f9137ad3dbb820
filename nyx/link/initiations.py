"""Initiations of links that were here before: a second copy meets silence.

Place on a packet's way: after mac1, before anything is answered. Source: docs/protocol.md, "Responder: order of checks".
"""

from enum import IntEnum
from typing import Final

import numpy as np
from nacl.bindings import crypto_shorthash_siphash24
from numpy.typing import NDArray

from nyx.columns import Column
from nyx.crypto.kem import Entropy
from nyx.link.handshake import MAC_SLOT
from nyx.wire.geometry import INIT_MAC1

REPLAY_KEPT: Final = 360  # seconds: mac1 is accepted over three slots
_GENERATIONS: Final = REPLAY_KEPT // MAC_SLOT + 1
_WAYS: Final = 8
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


class ReplayTable:
    """Initiations seen in the last 360 s, as fingerprints of 4 bytes: a second copy meets silence.

    Layout of the words: key of 16 bytes (zero: none drawn yet), newest slot + 1, then `buckets` x 4 generations of 120 s x 8
    fingerprints; 0 is empty. One worker writes it, and it outlives that worker: all copies of a packet carry one CID, so they
    are steered to the same worker. A full bucket counts as seen. The fingerprint covers bytes 0-1247, not mac1, which
    anybody can make again for another time slot. `meet` tells a full bucket apart, for a responder under load.
    """

    def __init__(self, words: NDArray[np.uint32], entropy: Entropy) -> None:
        self._words = words
        self._table = words[_HEAD_WORDS:].reshape(-1, _GENERATIONS, _WAYS)
        if not words[:_KEY_WORDS].any():
            words[:_KEY_WORDS] = np.frombuffer(entropy(4 * _KEY_WORDS), np.uint32)
        self._key = words[:_KEY_WORDS].tobytes()

    def __repr__(self) -> str:
        return f"ReplayTable(buckets={len(self._table)})"

    def _turn(self, slot: int) -> int:
        """Empty the generations that have passed; a clock that steps back empties none. Returns the newest slot."""
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
        newest = self._turn(wall // MAC_SLOT)
        word = int.from_bytes(crypto_shorthash_siphash24(packet[:INIT_MAC1], self._key), "little")
        fingerprint = (word & 0xFFFFFFFF) or 1
        bucket = self._table[(word >> 32) % len(self._table)]
        if bool((bucket == fingerprint).any()):
            return Seen.BEFORE
        generation = bucket[newest % _GENERATIONS]
        free = np.flatnonzero(generation == 0)
        if not free.size:
            return Seen.FULL
        if remember:
            generation[free[0]] = fingerprint
        return Seen.NEW

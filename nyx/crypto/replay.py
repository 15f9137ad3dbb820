"""Replay windows: which of the last 2^20 numbers of a direction have been accepted.

A window is a ring of WINDOW_BITS bits, WINDOW_WORDS words of a bigger vector from `base_word` on: bit (number mod
WINDOW_BITS) says "accepted". `highest` is the largest number accepted, -1 before the first; columns store highest + 1, so
that zero bytes are a fresh window. One worker writes it.

Killed at any instruction, a window never forgets a number that was acted on: the commit word moves first, then the bits of
the numbers it skipped are cleared, then the number's own bit is set. What a kill can cost is a number that looks accepted
though it was not. Source: docs/protocol.md, "Replay windows".
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import Int, fence, inline, load_acquire, store_release
from nyx.wire.codes import Drop
from nyx.wire.geometry import WINDOW_BITS

WINDOW_WORDS: Final = WINDOW_BITS // 64
WINDOW_BYTES: Final = WINDOW_BITS // 8

_OK: Final = int(Drop.OK)
_REPLAYED: Final = int(Drop.REPLAYED)
_TOO_OLD: Final = int(Drop.TOO_OLD)
_INDEX: Final = WINDOW_BITS - 1

Words = NDArray[np.uint64]


@inline
def window_check(words: Words, base_word: Int, highest: Int, number: Int) -> Int:
    """Say whether this number may still be accepted: OK, REPLAYED or TOO_OLD. Changes nothing."""
    if number > highest:
        return _OK
    if number <= highest - WINDOW_BITS:
        return _TOO_OLD
    place = number & _INDEX
    word = np.uint64(words[base_word + (place >> 6)])
    return _REPLAYED if word >> np.uint64(place & 63) & np.uint64(1) else _OK


@inline
def window_mark(words: Words, base_word: Int, highest: Int, number: Int) -> Int:
    """Mark a number that `window_check` allowed; returns the new highest, which the caller has stored before (see above)."""
    if number > highest:
        at = max(highest + 1, number - WINDOW_BITS)
        while at < number:
            place = at & _INDEX
            bit = place & 63
            take = min(64 - bit, number - at)
            mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - take) << np.uint64(bit)
            words[base_word + (place >> 6)] = np.uint64(words[base_word + (place >> 6)]) & ~mask
            at += take
    place = number & _INDEX
    words[base_word + (place >> 6)] = np.uint64(words[base_word + (place >> 6)]) | np.uint64(1) << np.uint64(place & 63)
    return max(highest, number)


@inline
def window_accept(words: Words, base_word: Int, commit: Int, number: Int) -> Int:
    """Check and mark in the order that survives a kill; `commit` is the address of the word that holds highest + 1.

    The caller has authenticated the number. Returns OK, REPLAYED or TOO_OLD; nothing changes unless OK.
    """
    highest = load_acquire(commit) - 1
    code = window_check(words, base_word, highest, number)
    if code == _OK:
        if number > highest:
            store_release(commit, number + 1)
            if number > highest + 1:
                fence()
        window_mark(words, base_word, highest, number)
    return code


def mend_window(words: Words, base_word: int, received_next: int) -> bool:
    """At a worker's start: mark the highest number if a kill came between its two stores; whether it had."""
    if received_next == 0:
        return False
    place = (received_next - 1) & _INDEX
    at, bit = base_word + (place >> 6), np.uint64(1 << (place & 63))
    torn = not words[at] & bit
    words[at] |= bit
    return bool(torn)

"""Bytes between the rings of streams and the rings that an application's SDK shares with this worker.

Place on a byte's way: what `shards/kernels/tcp.py` is for sockets. `take_in` moves the application's bytes into stream_tx,
`put_out` received bytes into the application's down ring; both count from the stream's first byte, so a position in the slot
(`nyx/wire/sdk.py`) is the position in the stream.

Contract. The commit words are the stream's own, tx_head and rx_tail, in memory that the application cannot write: bytes first,
then the commit, then the slot's UP_TAIL or DOWN_HEAD as a copy of it. A worker killed anywhere in between leaves the copy
behind, and its successor stores it again (`shards/edge/slots.py`, restore): no byte is lost or doubled. What the application
stores is loaded once, with acquire, and checked before it is used; WRONG means that it cannot be right.

Results as in tcp.py: bytes moved in the low 32 bits, flags above.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import address, foreign, kernel, load_acquire, store_release
from nyx.stream.columns import STREAM, stream_offset
from nyx.wire.sdk import DOWN_HEAD, DOWN_TAIL, PAGE, UP_END, UP_HEAD, UP_TAIL
from shards.kernels.tcp import BLOCKED, BUDGET, EOF, FINAL, FULL, HELD, IN_EOF, MORE, OUT_FIN

Words = NDArray[np.int64]

WRONG: Final = 1 << 38  # the application's words contradict each other or ours

_HEAD_AT: Final = stream_offset("tx_head")
_TAIL_AT: Final = stream_offset("rx_tail")
_ROW_SIZE: Final = STREAM.itemsize
_UP_HEAD: Final = 8 * UP_HEAD
_UP_END: Final = 8 * UP_END
_UP_TAIL: Final = 8 * UP_TAIL
_DOWN_HEAD: Final = 8 * DOWN_HEAD
_DOWN_TAIL: Final = 8 * DOWN_TAIL

_memcpy = foreign(None, "memcpy", "i8", "i8", "i8", "i8")


@kernel("i8", "i8[]", "i8", "i8[]", "i8[]", STREAM, "u1[]", "i8", "i8[]")
def take_in(
    rows: Words, n: int, places: Words, sizes: Words, streams: NDArray[Any], tx: NDArray[np.uint8], ring: int, results: Words
) -> int:
    """Move each row's up ring into its tx ring until one is empty, the other full, or the budget spent; bytes in all.

    places[row] is the address of the row's slot (0: none), sizes[row] the bytes of its rings.
    """
    total = np.int64(0)
    for k in range(n):
        row = np.int64(rows[k])
        s = streams[row]
        place, size = np.int64(places[row]), np.int64(sizes[row])
        results[k] = 0
        if place == 0 or np.int64(s["tcp_state"]) & (HELD | IN_EOF) != HELD:
            continue
        start, base = np.int64(s["tx_head"]), np.int64(s["tx_base"])
        end = np.int64(load_acquire(place + _UP_END))  # before the head: whoever sees the end sees all of it
        up = np.int64(load_acquire(place + _UP_HEAD))
        if up < start or up > start + size or (end != 0 and end != up + 1):
            results[k] = WRONG
            continue
        head = start
        most = min(up, base + ring, start + BUDGET)
        while head < most:
            source, target = head & (size - 1), head & (ring - 1)
            part = min(most - head, size - source, ring - target)
            _memcpy(address(tx) + row * ring + target, place + PAGE + source, part)
            head += part
        if head > start:
            store_release(address(streams) + row * _ROW_SIZE + _HEAD_AT, head)
            store_release(place + _UP_TAIL, head)
        flags = np.int64(0)
        if head == up:
            flags = np.int64(EOF if end != 0 else 0)
        elif head == base + ring:
            flags = np.int64(FULL)
        else:
            flags = np.int64(MORE)
        results[k] = (head - start) | flags
        total += head - start
    return total  # type: ignore[return-value]


@kernel("i8", "i8[]", "i8", "i8[]", "i8[]", STREAM, "u1[]", "i8", "i8[]")
def put_out(
    rows: Words, n: int, places: Words, sizes: Words, streams: NDArray[Any], rx: NDArray[np.uint8], ring: int, results: Words
) -> int:
    """Move each row's received bytes into its down ring until none are left, it is full or the budget spent; bytes in all."""
    total = np.int64(0)
    for k in range(n):
        row = np.int64(rows[k])
        s = streams[row]
        place, size = np.int64(places[row]), np.int64(sizes[row])
        results[k] = 0
        if place == 0 or np.int64(s["tcp_state"]) & (HELD | OUT_FIN) != HELD:
            continue
        start, ready = np.int64(s["rx_tail"]), np.int64(s["rx_ready"])
        final = np.int64(s["rx_final"]) if s["rx_reset"] == 0 else np.int64(0)  # a reset names a final size as well
        taken = np.int64(load_acquire(place + _DOWN_TAIL))
        if taken < 0 or taken > start or taken < start - size:
            results[k] = WRONG
            continue
        tail = start
        most = min(ready, taken + size, start + BUDGET)
        while tail < most:
            source, target = tail & (ring - 1), tail & (size - 1)
            part = min(most - tail, ring - source, size - target)
            _memcpy(place + PAGE + size + target, address(rx) + row * ring + source, part)
            tail += part
        if tail > start:
            store_release(address(streams) + row * _ROW_SIZE + _TAIL_AT, tail)
            store_release(place + _DOWN_HEAD, tail)
        flags = np.int64(0)
        if tail == ready:
            flags = np.int64(FINAL if final > 0 and tail == final - 1 else 0)
        elif tail == taken + size:
            flags = np.int64(BLOCKED)
        else:
            flags = np.int64(MORE)
        results[k] = (tail - start) | flags
        total += tail - start
    return total  # type: ignore[return-value]


@kernel("i8", "i8", "i8")
def publish(at: int, value: int) -> int:
    """Store one word of a slot, after everything stored before it."""
    store_release(at, value)
    return 0


@kernel("i8", "i8")
def look(at: int) -> int:
    """Load one word of a slot; later loads stay behind it."""
    return np.int64(load_acquire(at))  # type: ignore[return-value]

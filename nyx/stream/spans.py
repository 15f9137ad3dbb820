"""Spans of bytes beyond a gap: one bit a byte of a stream's ring, set when it was received (or acknowledged) out of order.

A bitmap needs no bound on the number of gaps and has no words that must change together: a kill in the middle leaves a bit
missing, never one too many, because bits are set after the bytes and cleared after the position that makes them old. The
receiver has the second half of the column, the sender the first. Work is an eighth of the bytes concerned.
"""

import numpy as np

from nyx.kernel import Int, address, called, load_acquire
from nyx.stream.octets import Bytes, fill


@called
def _paint(bits: Bytes, start: Int, first: Int, count: Int, value: Int) -> None:
    """Set (value 255) or clear (value 0) `count` bits from bit `first` of the bitmap at byte `start`; does not wrap."""
    at, end = start + (first >> 3), start + ((first + count) >> 3)
    low, high = (255 << (first & 7)) & 255, 255 >> (8 - ((first + count) & 7))
    if at == end:
        mask = low & high
        bits[at] = (np.int64(bits[at]) & ~mask) | (value & mask)
        return
    bits[at] = (np.int64(bits[at]) & ~low) | (value & low)
    if end - at > 1:
        fill(bits, at + 1, value, end - at - 1)
    if high:
        bits[end] = (np.int64(bits[end]) & ~high) | (value & high)


@called
def paint_span(bits: Bytes, start: Int, ring: Int, offset: Int, count: Int, value: Int) -> None:
    """Set (value 255) or clear (value 0) the bits of `count` <= ring bytes at an absolute offset."""
    position = offset & (ring - 1)
    first = min(count, ring - position)
    if first > 0:
        _paint(bits, start, position, first, value)
    if first < count:
        _paint(bits, start, 0, count - first, value)


@called
def first_gap(bits: Bytes, start: Int, ring: Int, offset: Int, end: Int) -> Int:
    """The first absolute offset in [offset, end) whose bit is clear, or `end`."""
    o = np.int64(offset)
    while o < end:
        if o & 63 == 0 and load_acquire(address(bits) + start + ((o & (ring - 1)) >> 3)) == -1:
            o = min(o + 64, end)
            continue
        byte = np.int64(bits[start + ((o & (ring - 1)) >> 3)])
        if byte == 255 and o & 7 == 0:
            o = min(o + 8, end)
        elif byte >> (o & 7) & 1:
            o += 1
        else:
            return o
    return np.int64(end)

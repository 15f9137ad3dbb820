"""Bits of bytes beyond a gap, against a set of offsets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nyx.kernel import Int, kernel
from nyx.stream.octets import Bytes
from nyx.stream.spans import first_gap, paint_span

RING = 4096
START = 64


@kernel("i8", "u1[]", "i8", "i8", "i8", "i8")
def paint(bits: Bytes, ring: Int, offset: Int, count: Int, value: Int) -> Int:
    paint_span(bits, START, ring, offset, count, value)
    return 0


@kernel("i8", "u1[]", "i8", "i8", "i8")
def gap(bits: Bytes, ring: Int, offset: Int, end: Int) -> Int:
    return first_gap(bits, START, ring, offset, end)


spans = st.lists(st.tuples(st.integers(0, RING - 1), st.integers(0, 1500), st.sampled_from([0, 255])), max_size=12)


@given(spans, st.integers(0, 1 << 40), st.integers(0, RING - 1), st.integers(0, RING))
def test_spans_are_sets(painted: list[tuple[int, int, int]], base: int, start: int, length: int) -> None:
    bits = np.zeros(START + RING // 8 + 64, np.uint8)
    wanted = np.zeros(RING, bool)
    for offset, count, value in painted:
        paint(bits, RING, base + offset, count, value)
        wanted[(base + offset + np.arange(count)) % RING] = value > 0
    found = np.unpackbits(bits[START : START + RING // 8], bitorder="little").astype(bool)
    assert np.array_equal(found, wanted)
    assert not bits[:START].any()
    assert not bits[START + RING // 8 :].any()
    after = wanted[(base + start + np.arange(length)) % RING]
    clear = np.flatnonzero(~after)
    assert gap(bits, RING, base + start, base + start + length) == base + start + (int(clear[0]) if len(clear) else length)

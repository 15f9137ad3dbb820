"""Header byte, packet numbers, integers in place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.kernel import kernel
from nyx.wire import packet as p
from tests.reference.link import decode_number

VECTORS = json.loads(Path(__file__).parents[2].joinpath("vectors", "primitives.json").read_text())["packet_number"]


@kernel("i8", "u1[]", "i8", "i8[]")
def store_and_load(data: Any, value: int, out: Any) -> int:
    p.write_u16(data, 1, value)
    p.write_u32(data, 4, value)
    p.write_u64(data, 9, value)
    out[0], out[1], out[2] = p.read_u16(data, 1), p.read_u32(data, 4), p.read_u64(data, 9)
    return 0


@kernel("i8", "u1[]", "i8[]")
def take_apart(data: Any, out: Any) -> int:
    out[0] = p.header_type(data[0])
    out[1] = p.header_parity(data[0])
    out[2] = p.header_kind(data[0])
    out[3] = p.header_slot(data[0])
    return 0


@kernel("i8", "i8", "i8")
def rebuild(expected: int, low: int) -> int:
    return p.rebuild_number(expected, low)


def test_every_header_byte_has_one_reading() -> None:
    out = np.zeros(4, np.int64)
    for value in range(256):
        parts = p.split_header_byte(value)
        take_apart(np.array([value], np.uint8), out)
        assert tuple(out.tolist()) == parts
        if parts.slot < 7:
            assert p.header_byte(parts.type, parts.kind, parts.slot, parts.parity) == value


def test_known_header_bytes() -> None:
    assert p.header_byte(p.TYPE_CELL) == 0x00
    assert p.header_byte(p.TYPE_CONTROL) == 0x40
    assert p.header_byte(p.TYPE_HANDSHAKE) == 0x80
    assert p.header_byte(p.TYPE_CELL, p.KIND_BUILD, 3) == 0x0B
    assert p.header_byte(p.TYPE_CELL, p.KIND_DATA, 0, 1) == 0x20


@pytest.mark.parametrize("parts", [(4, 0, 0, 0), (0, 4, 0, 0), (0, 0, 7, 0), (0, 0, 0, 2), (-1, 0, 0, 0)])
def test_parts_that_do_not_fit_are_refused(parts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="header byte"):
        p.header_byte(*parts)


@given(st.integers(0, (1 << 63) - 1))
def test_integers_are_big_endian(value: int) -> None:
    data, out = np.zeros(20, np.uint8), np.zeros(3, np.int64)
    store_and_load(data, value, out)
    raw = data.tobytes()
    assert raw == b"\0" + value.to_bytes(8, "big")[-2:] + b"\0" + value.to_bytes(8, "big")[-4:] + b"\0" + (
        value.to_bytes(8, "big")
    ) + bytes(3)
    assert out.tolist() == [value & 0xFFFF, value & 0xFFFFFFFF, value]


def test_the_twin_decodes_the_published_number() -> None:
    for largest, truncated, bits, number in VECTORS["valid"]:
        assert decode_number(int(largest, 16), int(truncated, 16), bits) == int(number, 16)


edges = st.one_of(
    st.integers(0, 1 << 47), st.integers(-5, 5).flatmap(lambda d: st.sampled_from([max(0, (1 << b) + d) for b in range(31, 47)]))
)


@given(edges, st.integers(0, 0xFFFFFFFF))
def test_numbers_are_rebuilt_as_the_twin_does(expected: int, low: int) -> None:
    assert rebuild(expected, low) == decode_number(expected - 1, low, 32)


@given(edges, st.integers(-(1 << 31) + 1, 1 << 31))
def test_a_number_near_the_expected_one_survives_truncation(expected: int, distance: int) -> None:
    number = max(0, expected + distance)
    assert rebuild(expected, number & 0xFFFFFFFF) == number

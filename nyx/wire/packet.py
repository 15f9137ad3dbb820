"""The packet's header: byte 12, the 32 bits of the packet number, and big-endian integers in place.

Place on a packet's way: first step in and last step out. Source: docs/protocol.md, "Packet". The plain functions build and
read single values in Python; those marked `@inline` do the same inside kernels, at an offset of a vector of bytes.

    byte 12:  type (2 bits) | parity of the layer epoch (1) | kind (2) | slot (3)
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import Int, address, inline, load_word, store_word, swap_word
from nyx.wire.geometry import BUILD_SLOTS

TYPE_CELL: Final = 0
TYPE_CONTROL: Final = 1
TYPE_HANDSHAKE: Final = 2
TYPE_EXPERIMENTAL: Final = 3

KIND_DATA: Final = 0
KIND_BUILD: Final = 1
KIND_ANSWER: Final = 2
KIND_REFRESH: Final = 3

TYPE_SHIFT: Final = 6
PARITY_BIT: Final = 0x20
KIND_SHIFT: Final = 3
KIND_MASK: Final = 3
SLOT_MASK: Final = 7

NUMBER_LIMIT: Final = 1 << 48  # packet numbers stay below it; a session that gets there closes
_NUMBER_SPAN: Final = 1 << 32  # what the header carries of a number

Bytes = NDArray[np.uint8]


class HeaderByte(NamedTuple):
    """Byte 12, taken apart."""

    type: int
    parity: int
    kind: int
    slot: int


def header_byte(type_: int, kind: int = KIND_DATA, slot: int = 0, parity: int = 0) -> int:
    """Byte 12 of a packet. Raises ValueError for a part that does not fit."""
    if not (0 <= type_ <= 3 and 0 <= kind <= 3 and 0 <= slot < BUILD_SLOTS and 0 <= parity <= 1):
        raise ValueError(f"header byte of type {type_}, kind {kind}, slot {slot}, parity {parity}")
    return type_ << TYPE_SHIFT | parity * PARITY_BIT | kind << KIND_SHIFT | slot


def split_header_byte(value: int) -> HeaderByte:
    """Byte 12 of a packet, taken apart; every value of a byte has a reading."""
    return HeaderByte(value >> TYPE_SHIFT, value >> 5 & 1, value >> KIND_SHIFT & KIND_MASK, value & SLOT_MASK)


@inline
def header_type(value: Int) -> Int:
    """Type of a header byte."""
    return np.int64(value) >> TYPE_SHIFT


@inline
def header_parity(value: Int) -> Int:
    """Parity of the layer epoch in a header byte."""
    return np.int64(value) >> 5 & 1


@inline
def header_kind(value: Int) -> Int:
    """Kind of a header byte."""
    return np.int64(value) >> KIND_SHIFT & KIND_MASK


@inline
def header_slot(value: Int) -> Int:
    """Slot of a header byte."""
    return np.int64(value) & SLOT_MASK


@inline
def rebuild_number(expected: Int, low: Int) -> Int:
    """The packet number nearest to `expected` whose low 32 bits are `low`; never negative (RFC 9000, A.3)."""
    candidate = (np.int64(expected) & ~np.int64(_NUMBER_SPAN - 1)) | np.int64(low)
    if candidate <= expected - _NUMBER_SPAN // 2 and candidate < NUMBER_LIMIT - _NUMBER_SPAN:
        return candidate + _NUMBER_SPAN
    if candidate > expected + _NUMBER_SPAN // 2 and candidate >= _NUMBER_SPAN:
        return candidate - _NUMBER_SPAN
    return candidate


@inline
def read_u16(data: Bytes, at: Int) -> Int:
    """Big-endian 16-bit integer at an offset."""
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])


@inline
def read_u32(data: Bytes, at: Int) -> Int:
    """Big-endian 32-bit integer at an offset."""
    return np.int64(data[at]) << 24 | np.int64(data[at + 1]) << 16 | np.int64(data[at + 2]) << 8 | np.int64(data[at + 3])


@inline
def read_u64(data: Bytes, at: Int) -> Int:
    """Big-endian 64-bit integer at an offset, as int64: 2^63 and above come out negative."""
    return swap_word(load_word(address(data) + at))


@inline
def write_u16(data: Bytes, at: Int, value: Int) -> None:
    """Store the low 16 bits, big-endian."""
    data[at] = value >> 8 & 0xFF
    data[at + 1] = value & 0xFF


@inline
def write_u32(data: Bytes, at: Int, value: Int) -> None:
    """Store the low 32 bits, big-endian."""
    data[at] = value >> 24 & 0xFF
    data[at + 1] = value >> 16 & 0xFF
    data[at + 2] = value >> 8 & 0xFF
    data[at + 3] = value & 0xFF


@inline
def write_u64(data: Bytes, at: Int, value: Int) -> None:
    """Store 64 bits, big-endian."""
    store_word(address(data) + at, swap_word(value))

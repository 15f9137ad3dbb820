"""Bytes inside kernels: copying between rings and cells, and the 48-bit offsets of frames.

Copies go through the C library by address, so that a cell's data is moved once each way at memory speed.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import Int, address, foreign, inline
from nyx.wire.packet import read_u16, read_u32, write_u16, write_u32

Bytes = NDArray[np.uint8]

_memcpy: Final = foreign(None, "memcpy", "i8", "i8", "i8", "i8")
_memset: Final = foreign(None, "memset", "i8", "i8", "i4", "i8")


@inline
def fill(data: Bytes, at: Int, value: Int, size: Int) -> None:
    """Set `size` bytes at an offset."""
    _memset(address(data) + at, value, size)


@inline
def into_ring(base: Int, ring: Int, offset: Int, source: Int, size: Int) -> None:
    """Copy from an address into the ring that begins at address `base`, at an absolute offset."""
    position = offset & (ring - 1)
    first = min(size, ring - position)
    _memcpy(base + position, source, first)
    if first < size:
        _memcpy(base, source + first, size - first)


@inline
def from_ring(base: Int, ring: Int, offset: Int, target: Int, size: Int) -> None:
    """Copy to an address from the ring that begins at address `base`, at an absolute offset."""
    position = offset & (ring - 1)
    first = min(size, ring - position)
    _memcpy(target, base + position, first)
    if first < size:
        _memcpy(target + first, base, size - first)


@inline
def wipe(target: Int, size: Int) -> None:
    """Zero `size` bytes at an address."""
    _memset(target, 0, size)


@inline
def copy(target: Int, source: Int, size: Int) -> None:
    """Copy between two addresses."""
    _memcpy(target, source, size)


@inline
def read_u48(data: Bytes, at: Int) -> Int:
    """Big-endian 48-bit integer at an offset."""
    return read_u16(data, at) << 32 | read_u32(data, at + 2)


@inline
def write_u48(data: Bytes, at: Int, value: Int) -> None:
    """Store the low 48 bits, big-endian."""
    write_u16(data, at, value >> 32)
    write_u32(data, at + 2, value)

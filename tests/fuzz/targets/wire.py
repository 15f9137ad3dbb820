"""Frames of cells and of links, and the packet's header."""

from typing import Any

import numpy as np

from nyx.errors import RemoteProtocolError
from nyx.kernel import kernel
from nyx.link import frames as link
from nyx.wire import frames as cell
from nyx.wire.geometry import BUILD_SLOTS
from nyx.wire.packet import (
    NUMBER_LIMIT,
    header_byte,
    header_kind,
    header_parity,
    header_slot,
    header_type,
    read_u16,
    read_u32,
    read_u64,
    rebuild_number,
    split_header_byte,
    write_u16,
    write_u32,
    write_u64,
)


def frames(data: bytes) -> bool:
    """One cell has one reading, and its frames have one form."""
    try:
        found = cell.decode(data)
    except RemoteProtocolError:
        return False
    again = b"".join(map(cell.encode_frame, found))
    assert data.startswith(again)
    assert not data[len(again) : len(again) + 1].strip(b"\0"), "what was not read begins with padding"
    assert cell.decode(again) == found
    return bool(found)


def link_frames(data: bytes) -> bool:
    """The same of a link's packets, whose padding is zeros to the end."""
    data = data[: link.LINK_FRAMES_SIZE]
    try:
        found = link.decode(data)
    except RemoteProtocolError:
        return False
    again = link.encode(found)
    assert data.startswith(again)
    assert not any(data[len(again) :])
    assert link.decode(again) == found
    return bool(found)


@kernel("i8", "u1[]", "u1[]", "i8[]")
def _header(data: Any, copy: Any, out: Any) -> int:
    write_u16(copy, 0, read_u16(data, 0))
    write_u32(copy, 2, read_u32(data, 2))
    write_u64(copy, 6, read_u64(data, 6))
    first = data[0]
    out[0], out[1], out[2], out[3] = header_type(first), header_parity(first), header_kind(first), header_slot(first)
    out[4] = rebuild_number(out[4], read_u32(data, 2))
    return 0


def header(data: bytes) -> bool:
    """The kernels' reading of a header is Python's, and a rebuilt number is the nearest that fits."""
    given = data[:22].ljust(22, b"\0")
    read, copy, out = np.frombuffer(given, np.uint8).copy(), np.zeros(14, np.uint8), np.zeros(5, np.int64)
    expected = out[4] = int.from_bytes(given[14:22], "big") % NUMBER_LIMIT
    _header(read, copy, out)
    assert copy.tobytes() == given[:14]
    parts = split_header_byte(given[0])
    assert parts.slot >= BUILD_SLOTS or header_byte(parts.type, parts.kind, parts.slot, parts.parity) == given[0]
    assert (parts.type, parts.parity, parts.kind, parts.slot) == tuple(out[:4].tolist())
    low, number = int.from_bytes(given[2:6], "big"), int(out[4])
    assert number & 0xFFFFFFFF == low
    assert 0 <= number < NUMBER_LIMIT
    near = [n for n in (number - (1 << 32), number + (1 << 32)) if 0 <= n < NUMBER_LIMIT]
    assert all(abs(number - int(expected)) <= abs(n - int(expected)) for n in near)
    return len(data) >= 22

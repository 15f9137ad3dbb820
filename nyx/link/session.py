"""Sessions: what the two ends of a link share under one connection id, as one row of columns.

Place on a packet's way: "session lookup" finds the row, `nyx.link.seal` opens and seals with it. One worker owns a row and
writes it; others read counters. Zero bytes are a free row with a fresh replay window.

    state     who moves it             what may use the row
    FREE      allocator -> HELD        nobody
    HELD      allocator -> LIVE        nobody: keys and ids are being written
    LIVE      owner -> CLOSING         sealing and opening
    CLOSING   owner -> FREE (wiped)    sealing and opening, while the last packets go

`send_next` and `received_next` are commit words: numbers are reserved before the first seal, and the window moves as
`nyx.crypto.replay` says, so no kill repeats a nonce or reopens a window. Source: docs/protocol.md, "Link sessions".
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column, Columns
from nyx.crypto.replay import WINDOW_WORDS
from nyx.wire.geometry import CID_SIZE, MASK_KEY_SIZE

SESSION_FREE: Final = 0
SESSION_HELD: Final = 1
SESSION_LIVE: Final = 2
SESSION_CLOSING: Final = 3

SESSION_KEY_SIZE: Final = 32  # room for the longest suite's key
ADDRESS_SIZE: Final = 28  # a raw sockaddr_in6

SESSION: Final = np.dtype(
    [
        ("state", "i8"),
        ("send_next", "i8"),  # next packet number to send
        ("received_next", "i8"),  # highest number accepted, plus one
        ("packets_in", "i8"),
        ("packets_out", "i8"),
        ("last_in", "i8"),  # monotonic ns
        ("last_out", "i8"),
        ("control_next", "i8"),
        ("window_packets", "i8"),  # what the peer said it can take
        ("in_hand", "i8"),  # 1 while a worker is at this row
        ("crashes", "i8"),  # workers that ended by a fault while they were at it
        ("link", "i4"),
        ("index", "i4"),  # 0-3, which of the link's sessions
        ("initiator", "i4"),  # 1 when we began the link: we send direction 0
        ("suite", "i4"),
        ("rekey_in", "i4"),  # generation of the keys, in the nonce
        ("rekey_out", "i4"),
        ("address_size", "i4"),
        ("local_cid", "u1", (CID_SIZE,)),  # what packets to us carry
        ("peer_cid", "u1", (CID_SIZE,)),  # what we write into packets
        ("receive_key", "u1", (SESSION_KEY_SIZE,)),
        ("send_key", "u1", (SESSION_KEY_SIZE,)),
        ("receive_mask", "u1", (MASK_KEY_SIZE,)),
        ("send_mask", "u1", (MASK_KEY_SIZE,)),
        ("address", "u1", (ADDRESS_SIZE,)),  # where sendmsg sends it
        ("source", "u1", (ADDRESS_SIZE,)),
    ],
    align=True,
)


def session_offset(field: str) -> int:
    """Offset of a field in a row, in bytes."""
    fields: Any = SESSION.fields
    return int(fields[field][1])


def session_columns(count: int) -> list[Column]:
    """Columns of `count` sessions: the rows and their replay windows, 128 KiB each, committed as pages are touched."""
    return [Column("sessions", SESSION, count), Column("session_windows", np.dtype("u8"), count * WINDOW_WORDS)]


def write_zeros(part: NDArray[Any]) -> None:
    """Overwrite a part of a column."""
    part[:] = 0


def wipe_session(columns: Columns, row: int, clear: Callable[[NDArray[Any]], None] = write_zeros) -> None:
    """Free a row: every byte of it and of its window becomes zero, the state last.

    `clear` makes the window zeros: who holds its memory by the page gives pages back instead of touching all of them.
    """
    sessions = columns["sessions"]
    sessions[row]["state"] = SESSION_HELD
    clear(columns["session_windows"][row * WINDOW_WORDS : (row + 1) * WINDOW_WORDS])
    sessions[row : row + 1].view(np.uint8)[8:] = 0
    sessions[row]["state"] = SESSION_FREE


def check_session(columns: Columns, row: int) -> None:
    """Assert what holds of every row between two kernel calls."""
    session = columns["sessions"][row]
    window = columns["session_windows"][row * WINDOW_WORDS : (row + 1) * WINDOW_WORDS]
    received = int(session["received_next"])
    assert SESSION_FREE <= session["state"] <= SESSION_CLOSING
    assert session["send_next"] >= 0
    assert received >= 0
    assert session["initiator"] in {0, 1}
    assert session["packets_out"] <= session["send_next"]
    if received == 0:
        assert not window.any(), "a fresh window is empty"
    if session["state"] == SESSION_FREE:
        assert not session_bytes(columns, row).any(), "a free row is zero"


def session_bytes(columns: Columns, row: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The raw bytes of one row, a view."""
    found: np.ndarray[Any, np.dtype[np.uint8]] = columns["sessions"][row : row + 1].view(np.uint8)
    return found

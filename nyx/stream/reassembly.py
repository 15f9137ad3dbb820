"""Received stream data into the ring: in order by one store, out of order by bits, and the same bytes twice without effect.

The caller has checked offsets, limits and the final size (nyx.stream.check).
"""

from typing import Final

import numpy as np

from nyx.kernel import Int, address, fence, inline, store_release
from nyx.stream.columns import DESK_RING, DESK_ROWS, DESK_RX, FINISHED, READABLE, STREAM, Record, stream_offset
from nyx.stream.flow import credit_unread, end_account, grant
from nyx.stream.lifecycle import rx_bits
from nyx.stream.octets import Bytes, into_ring
from nyx.stream.queues import Desk, push_event
from nyx.stream.spans import first_gap, paint_span

_ROW: Final = STREAM.itemsize
_RX_READY: Final = stream_offset("rx_ready")


@inline
def _store(desk: Desk, s: Record, row: Int, bits: Bytes, pool: Bytes, data: Int, offset: Int, size: Int) -> None:
    """Copy what is new, then commit it."""
    ring = np.int64(desk[DESK_RING])
    ready = np.int64(s["rx_ready"])
    start, end = max(offset, ready), offset + size
    into_ring(desk[DESK_RX] + row * ring, ring, start, address(pool) + data + (start - offset), end - start)
    if start > ready:  # beyond a gap
        s["rx_held"] = max(s["rx_held"], end)
        fence()
        paint_span(bits, rx_bits(desk, row), ring, start, end - start, 255)
        return
    new = end
    if s["rx_held"] > end:
        new = first_gap(bits, rx_bits(desk, row), ring, end, s["rx_held"])
    store_release(desk[DESK_ROWS] + row * _ROW + _RX_READY, new)
    if s["rx_held"] > ready:
        paint_span(bits, rx_bits(desk, row), ring, ready, min(new, np.int64(s["rx_held"])) - ready, 0)


@inline
def accept_data(
    desk: Desk, c: Record, s: Record, row: Int, bits: Bytes, pool: Bytes, data: Int, offset: Int, size: Int, fin: Int
) -> None:
    """A STREAM frame's bytes, which lie at pool[data:]."""
    end = offset + size
    before = np.int64(s["rx_ready"])
    if end > s["rx_top"]:
        gain = end - s["rx_top"]
        s["rx_top"] = end
        c["data_in"] += gain
    if fin:
        s["rx_final"] = end + 1
    if s["rx_stop"]:  # nobody reads it
        if s["rx_final"] > 0:
            end_account(desk, c, s["connection"], s, s["rx_final"] - 1)
        elif s["rx_top"] > s["rx_credit"]:
            grant(desk, c, s["connection"], s["rx_top"] - s["rx_credit"])
            s["rx_credit"] = s["rx_top"]
        return
    if end > before:
        _store(desk, s, row, bits, pool, data, offset, size)
        if s["rx_ready"] > before:
            push_event(desk, s, row, READABLE)
            c["bytes_in"] += s["rx_ready"] - before
            credit_unread(desk, c, s)
    if s["rx_final"] > 0 and s["rx_ready"] == s["rx_final"] - 1 and (fin or s["rx_ready"] > before):
        push_event(desk, s, row, FINISHED)

"""Flow control: what the peer may send, what we may send, and windows that grow with the reader's speed.

A limit is raised when a quarter of its window has been consumed, and the window doubles when that took less than two round
trips, within the ring. The connection's account may err after a crash, always towards the peer's safety: what we sent is
counted before it is sent, what was consumed is granted before it is marked.
"""

from typing import Final

import numpy as np

from nyx.kernel import Int, called, inline
from nyx.stream.columns import (
    CONNECTION_WINDOW_MAX,
    DESK_RING,
    DO_LIMIT,
    DO_WINDOW,
    STREAM_WINDOW_MAX,
    Record,
)
from nyx.stream.queues import Desk, Rows, link_work, push_ready

_ROUND_MIN: Final = 1_000_000  # ns; shorter round trips count as this


@called
def grant(desk: Desk, c: Record, connection: Int, count: Int) -> None:
    """`count` more bytes of the connection's streams are consumed (or will never be)."""
    c["consumed"] += count
    if c["consumed"] + c["window"] - c["data_limit"] >= c["window"] >> 2:
        c["control"] |= DO_LIMIT
        push_ready(desk, c, connection)


@inline
def credit_unread(desk: Desk, c: Record, s: Record) -> None:
    """At a client whose connection window is half used, what arrives in order counts as consumed at once.

    A stream's own window bounds what its reader leaves; without this a few readers that stand still stop all others of a circuit.
    A last hop does not: there the connection window bounds what one circuit makes it hold.
    """
    if c["client"] and c["data_limit"] - c["data_in"] < c["window"] >> 1 and s["rx_ready"] > s["rx_credit"]:
        grant(desk, c, s["connection"], s["rx_ready"] - s["rx_credit"])
        s["rx_credit"] = s["rx_ready"]


@inline
def window_is_due(s: Record) -> Int:
    """Whether enough was read that the peer may send more on this stream, and has not been promised it."""
    open_ended = s["rx_final"] == 0 and s["rx_reset"] == 0 and s["rx_stop"] == 0 and s["control"] & DO_WINDOW == 0
    return open_ended and s["rx_tail"] + s["rx_window"] - s["rx_limit"] >= s["rx_window"] >> 2


@called
def note_consumed(desk: Desk, c: Record, connection: Int, streams: Rows, s: Record, row: Int) -> None:
    """The application took bytes: rx_tail moved."""
    gain = np.int64(s["rx_tail"]) - s["rx_credit"]
    if gain > 0:
        grant(desk, c, connection, gain)
        s["rx_credit"] = s["rx_tail"]
    if window_is_due(s):
        s["control"] |= DO_WINDOW
        link_work(desk, c, connection, streams, s, row)


@inline
def _fast(c: Record, since: Int, now: Int) -> Int:
    return since > 0 and now - since < 2 * max(c["srtt"], _ROUND_MIN)


@called
def raise_stream_limit(desk: Desk, c: Record, s: Record, now: Int) -> Int:
    """The limit that a MAX_STREAM_DATA written now promises."""
    if _fast(c, s["window_at"], now):
        s["rx_window"] = min(s["rx_window"] * 2, desk[DESK_RING], STREAM_WINDOW_MAX)
    s["window_at"] = now
    s["rx_limit"] = max(s["rx_limit"], s["rx_tail"] + s["rx_window"])
    return s["rx_limit"]


@called
def raise_connection_limit(c: Record, now: Int) -> Int:
    """The limit that a MAX_CONNECTION_DATA written now promises."""
    if _fast(c, c["window_at"], now):
        c["window"] = min(c["window"] * 2, CONNECTION_WINDOW_MAX)
    c["window_at"] = now
    c["data_limit"] = max(c["data_limit"], c["consumed"] + c["window"])
    return c["data_limit"]


@called
def end_account(desk: Desk, c: Record, connection: Int, s: Record, final: Int) -> None:
    """The stream's final size is known and the rest of it will not be read: count it as sent and as consumed."""
    if final > s["rx_top"]:
        gain = final - s["rx_top"]
        s["rx_top"] = final
        c["data_in"] += gain
    if final > s["rx_credit"]:
        grant(desk, c, connection, final - s["rx_credit"])
        s["rx_credit"] = final


@inline
def sendable(c: Record, s: Record, head: Int) -> Int:
    """How many bytes from tx_next both limits let leave now."""
    limit = min(head, np.int64(s["tx_max"]))
    limit = min(limit, max(s["tx_next"], s["tx_top"]) + c["data_max"] - c["data_sent"])
    return limit - s["tx_next"]

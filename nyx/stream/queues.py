"""Who waits for what: connections that may send, rows with events, streams with something to send, free rows, timers.

All of it is derived and lives on the desk or in links of the rows; each operation is a few stores. A row is in a queue at
most once (its flag says so), so the queues cannot overflow. A queue may hold a row that has nothing to do any more: whoever
takes it looks again.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import Int, called, inline
from nyx.stream.columns import (
    DESK_CONNECTIONS,
    DESK_EVENTS,
    DESK_FREE,
    DESK_HEADER,
    DESK_READY,
    DESK_STREAMS,
    DESK_TIMER,
    RANGES,
    Record,
)

Desk = NDArray[np.int64]
Rows = NDArray[np.void]
_RANGE_WORDS: Final = 2 * RANGES


@inline
def push_ready(desk: Desk, c: Record, row: Int) -> None:
    """Let `transmit` look at this connection."""
    if c["ready"] == 0:
        c["ready"] = 1
        size = desk[DESK_CONNECTIONS]
        desk[DESK_HEADER + (desk[DESK_READY] + desk[DESK_READY + 1]) % size] = row
        desk[DESK_READY + 1] += 1


@inline
def pop_ready(desk: Desk) -> Int:
    """The connection that waits longest, or -1; the caller clears its flag."""
    if desk[DESK_READY + 1] == 0:
        return np.int64(-1)
    row = np.int64(desk[DESK_HEADER + desk[DESK_READY]])
    desk[DESK_READY] = (desk[DESK_READY] + 1) % desk[DESK_CONNECTIONS]
    desk[DESK_READY + 1] -= 1
    return row


@called
def push_event(desk: Desk, record: Record, row: Int, kind: Int) -> None:
    """Tell Python; `row` is that of a stream, or number of streams + row of a connection."""
    record["events"] |= np.int64(1) << kind
    if record["listed"] == 0:
        record["listed"] = 1
        size = desk[DESK_CONNECTIONS] + desk[DESK_STREAMS]
        at = DESK_HEADER + desk[DESK_CONNECTIONS]
        desk[at + (desk[DESK_EVENTS] + desk[DESK_EVENTS + 1]) % size] = row
        desk[DESK_EVENTS + 1] += 1


@inline
def pop_event(desk: Desk) -> Int:
    """The row that has had events for longest, or -1; the caller clears its flag."""
    if desk[DESK_EVENTS + 1] == 0:
        return np.int64(-1)
    row = np.int64(desk[DESK_HEADER + desk[DESK_CONNECTIONS] + desk[DESK_EVENTS]])
    desk[DESK_EVENTS] = (desk[DESK_EVENTS] + 1) % (desk[DESK_CONNECTIONS] + desk[DESK_STREAMS])
    desk[DESK_EVENTS + 1] -= 1
    return row


@inline
def push_free(desk: Desk, row: Int) -> None:
    """Give a stream row back; the last one given is the first one taken, so that memory once touched is used again."""
    at = DESK_HEADER + 2 * desk[DESK_CONNECTIONS] + desk[DESK_STREAMS]
    desk[at + desk[DESK_FREE]] = row
    desk[DESK_FREE] += 1


@inline
def pop_free(desk: Desk) -> Int:
    """Take a free stream row, or -1."""
    if desk[DESK_FREE] == 0:
        return np.int64(-1)
    desk[DESK_FREE] -= 1
    return np.int64(desk[DESK_HEADER + 2 * desk[DESK_CONNECTIONS] + desk[DESK_STREAMS] + desk[DESK_FREE]])


@inline
def ranges_at(desk: Desk, row: Int) -> Int:
    """Where the connection's received ranges begin on the desk: pairs (lowest, highest), the highest range first."""
    return DESK_HEADER + 2 * (desk[DESK_CONNECTIONS] + desk[DESK_STREAMS]) + row * _RANGE_WORDS


@inline
def arm(desk: Desk, at: Int) -> None:
    """Some timer is due at this time."""
    desk[DESK_TIMER] = min(desk[DESK_TIMER], at)


@called
def link_work(desk: Desk, c: Record, connection: Int, streams: Rows, s: Record, row: Int) -> None:
    """Put a stream at the end of its connection's circle of streams with something to send."""
    if s["working"] == 0:
        s["working"] = 1
        if c["work"] == 0:
            c["work"] = row + 1
            s["work_next"] = row + 1
            s["work_prev"] = row + 1
        else:
            head = streams[c["work"] - 1]
            tail = streams[head["work_prev"] - 1]
            s["work_next"] = c["work"]
            s["work_prev"] = head["work_prev"]
            tail["work_next"] = row + 1
            head["work_prev"] = row + 1
    push_ready(desk, c, connection)


@called
def unlink_work(c: Record, streams: Rows, s: Record, row: Int) -> None:
    """Take a stream out of the circle."""
    if s["working"]:
        s["working"] = 0
        if s["work_next"] == row + 1:
            c["work"] = 0
        else:
            streams[s["work_prev"] - 1]["work_next"] = s["work_next"]
            streams[s["work_next"] - 1]["work_prev"] = s["work_prev"]
            if c["work"] == row + 1:
                c["work"] = s["work_next"]
        s["work_next"] = 0
        s["work_prev"] = 0

"""Time: delayed ACKs, loss by time, probes, pacing, keep-alive, and the end of connections that nobody answers.

`DESK_TIMER` is a floor: no timer of any connection is due before it. When it passes, one call looks at every connection and
finds the next floor, so arming a timer is one comparison and an early wake-up costs one look.
"""

from typing import Final

import numpy as np

from nyx.kernel import Int, called, kernel
from nyx.stream.columns import (
    CLOSED_SILENT,
    CONNECTION,
    DESK_CONNECTIONS,
    DESK_TIMER,
    DESK_TOP,
    DO_PING,
    EARLY,
    LIVE,
    NEVER,
    SENT,
    STREAM,
    Record,
)
from nyx.stream.lifecycle import SECOND, Ids, Words, end_connection, free_stream, refuse
from nyx.stream.octets import Bytes
from nyx.stream.queues import Desk, Rows, push_ready
from nyx.stream.recovery import detect_losses, probe, probe_time

KEEP_ALIVE: Final = 15 * SECOND
SILENCE: Final = 30 * SECOND  # with cells in flight and no acknowledgement
_REPLY_LATE: Final = 6
IDLE: Final = 120 * SECOND


@called
def _drop_early(desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, bits: Bytes, refusals: Words, now: Int) -> None:
    """Data whose OPEN did not come: it was acknowledged, so the stream cannot be had any more, and the client is told."""
    c["early_at"] = 0
    for row in range(desk[DESK_TOP]):
        s = streams[row]
        if s["state"] == EARLY and s["connection"] == connection:
            number = np.int64(s["id"])
            free_stream(desk, c, streams, ids, bits, s, row, now)
            refuse(desk, c, connection, ids, refusals, number, _REPLY_LATE, now)


@called
def _recover(desk: Desk, c: Record, connection: Int, streams: Rows, sent: Rows, lost: Words, refusals: Words, now: Int) -> Int:
    """Loss and probe timers; returns when the next one is due."""
    if c["loss_at"] > 0:
        if c["loss_at"] <= now:
            detect_losses(desk, c, connection, streams, sent, lost, refusals, now)
            push_ready(desk, c, connection)
    elif c["flight"] > 0 and c["eliciting_at"] + probe_time(c) <= now:
        probe(desk, c, connection, streams, sent, lost, refusals)
        c["eliciting_at"] = now
    if c["loss_at"] > 0:
        return np.int64(c["loss_at"])
    if c["flight"] > 0:
        return c["eliciting_at"] + probe_time(c)
    return np.int64(NEVER)


@called
def _turn(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, sent: Rows, lost: Words, bits: Bytes, refusals: Words,
    now: Int,
) -> Int:  # fmt: skip
    """Everything that is due on a live connection; returns when it wants to be looked at again."""
    idle = c["last_in"] + c["idle_limit"]
    if idle <= now or (c["flight"] > 0 and c["progress_at"] + SILENCE <= now):
        end_connection(desk, c, connection, streams, ids, bits, 0, CLOSED_SILENT, 0, now)
        return np.int64(NEVER)
    due = min(idle, _recover(desk, c, connection, streams, sent, lost, refusals, now))
    if c["flight"] > 0:
        due = min(due, c["progress_at"] + SILENCE)
    if c["ack_at"] > 0:
        if c["ack_at"] <= now:
            c["ack_at"] = 0
            c["ack_due"] = 1
            push_ready(desk, c, connection)
        else:
            due = min(due, c["ack_at"])
    if c["pace_at"] > 0:
        if c["pace_at"] <= now:
            c["pace_at"] = 0
            push_ready(desk, c, connection)
        else:
            due = min(due, c["pace_at"])
    if c["early_at"] > 0:
        if c["early_at"] <= now:
            _drop_early(desk, c, connection, streams, ids, bits, refusals, now)
        else:
            due = min(due, c["early_at"])
    if c["keepalive"]:
        if max(c["last_out"], c["opened_at"]) + KEEP_ALIVE <= now:
            c["control"] |= DO_PING
            push_ready(desk, c, connection)
            due = min(due, now + KEEP_ALIVE)
        else:
            due = min(due, max(c["last_out"], c["opened_at"]) + KEEP_ALIVE)
    return np.int64(due)


@kernel("i8", CONNECTION, STREAM, "i8[]", "i4[]", SENT, "i8[]", "u1[]", "i8[]", "i8")
def run_timers(
    connections: Rows, streams: Rows, desk: Desk, ids: Ids, sent: Rows, lost: Words, bits: Bytes, refusals: Words, now: Int
) -> Int:
    """Do what is due by now; returns the time before which nothing is due."""
    if desk[DESK_TIMER] > now:
        return np.int64(desk[DESK_TIMER])
    desk[DESK_TIMER] = NEVER
    floor = np.int64(NEVER)
    for connection in range(desk[DESK_CONNECTIONS]):
        c = connections[connection]
        if c["state"] == LIVE:
            c["in_hand"] = 1
            floor = min(floor, _turn(desk, c, connection, streams, ids, sent, lost, bits, refusals, now))
            c["in_hand"] = 0
    desk[DESK_TIMER] = min(floor, np.int64(desk[DESK_TIMER]))
    return np.int64(desk[DESK_TIMER])

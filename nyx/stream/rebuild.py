"""A worker begins, perhaps where another was killed: make everything derived anew from the primary words.

What was in flight is forgotten; every unacknowledged byte and frame counts as unsent, every unreported cell as lost. Half-made
things are finished or undone: a row that was being freed is freed, stale bits are cleared, limits are announced once more.
"""

import numpy as np

from nyx.kernel import Int, called, kernel
from nyx.stream.columns import (
    CLOSED,
    CONNECTION,
    CONNECTION_CLOSED,
    DESK_BORN,
    DESK_CONNECTIONS,
    DESK_EVENTS,
    DESK_FREE,
    DESK_READY,
    DESK_RING,
    DESK_STREAMS,
    DESK_TIMER,
    DESK_TOP,
    DO_LIMIT,
    DO_OPEN,
    DO_REFUSE,
    DO_RESET,
    DO_RESULT,
    DO_STOP,
    DO_WINDOW,
    DONE,
    EARLY,
    FINISHED,
    FREE,
    IDS,
    LIVE,
    NEVER,
    OPENED,
    OPENING,
    READABLE,
    REFUSALS,
    RESET,
    STOPPED,
    STREAM,
    STREAM_WINDOW,
    WRITABLE,
    Record,
)
from nyx.stream.congestion import reset_congestion
from nyx.stream.lifecycle import Ids, Words, rx_bits, settle_stream, tx_bits
from nyx.stream.octets import Bytes
from nyx.stream.queues import Desk, Rows, arm, link_work, push_event, push_free, push_ready
from nyx.stream.recovery import reset_recovery
from nyx.stream.spans import paint_span


@called
def _connection(desk: Desk, c: Record, connection: Int, refusals: Words, now: Int) -> None:
    c["ready"] = 0
    c["listed"] = 0
    c["work"] = 0
    c["streams"] = 0
    c["starved"] = 0
    c["early_at"] = 0
    if c["state"] == FREE:
        return
    reset_recovery(c)
    reset_congestion(c)
    c["progress_at"] = now
    if c["state"] == LIVE:
        c["control"] |= DO_LIMIT
        for i in range(connection * REFUSALS, (connection + 1) * REFUSALS):
            if refusals[i]:
                refusals[i] |= np.int64(1) << 32
                c["control"] |= DO_REFUSE
    elif c["disowned"]:
        c["state"] = FREE
        return
    if c["state"] == DONE:
        push_event(desk, c, desk[DESK_STREAMS] + connection, CONNECTION_CLOSED)
    else:
        push_ready(desk, c, connection)


@called
def _unsend(c: Record, s: Record) -> None:
    """Whatever is not acknowledged waits to be sent."""
    s["tx_next"] = s["tx_base"]
    if s["fin_state"] == 1:
        s["fin_state"] = 0
    s["control"] = 0
    if s["answered"] == 0 and c["client"] != 0 and s["state"] == OPENING:
        s["control"] |= DO_OPEN
    if s["answered"] == 0 and c["client"] == 0 and s["result"] > 0:
        s["control"] |= DO_RESULT
    if s["reset_state"] == 1:
        s["control"] |= DO_RESET
    if s["rx_final"] == 0 and s["rx_reset"] == 0 and (s["rx_stop"] or s["rx_limit"] > STREAM_WINDOW):
        s["control"] |= DO_STOP if s["rx_stop"] else DO_WINDOW


@called
def _remind(desk: Desk, c: Record, s: Record, row: Int) -> None:
    """Events that the dead worker may have taken and not handled; hearing them twice does no harm."""
    if s["events"]:
        push_event(desk, s, row, WRITABLE)
    if s["state"] == OPENING and c["client"] == 0 and s["result"] == 0:
        push_event(desk, s, row, OPENED)
    if s["rx_ready"] > s["rx_tail"]:
        push_event(desk, s, row, READABLE)
    if s["rx_final"] > 0 and s["rx_ready"] == s["rx_final"] - 1:
        push_event(desk, s, row, FINISHED)
    if s["rx_reset"]:
        push_event(desk, s, row, RESET)
    if s["peer_stop"]:
        push_event(desk, s, row, STOPPED)
    if s["state"] == DONE:
        push_event(desk, s, row, CLOSED)


@kernel("i8", CONNECTION, STREAM, "i8[]", "i4[]", "u1[]", "i8[]", "i8")
def rebuild_all(connections: Rows, streams: Rows, desk: Desk, ids: Ids, bits: Bytes, refusals: Words, now: Int) -> Int:
    """Returns how many streams live on."""
    ring = np.int64(desk[DESK_RING])
    for at in (DESK_READY, DESK_READY + 1, DESK_EVENTS, DESK_EVENTS + 1, DESK_FREE, DESK_TOP):
        desk[at] = 0
    desk[DESK_TIMER] = NEVER
    for k in range(desk[DESK_CONNECTIONS]):
        connections[k]["in_hand"] = 1
        _connection(desk, connections[k], k, refusals, now)
        connections[k]["in_hand"] = 0
    live = np.int64(0)
    for row in range(desk[DESK_STREAMS] - 1, -1, -1):
        s = streams[row]
        s["work_next"] = 0
        s["work_prev"] = 0
        s["working"] = 0
        s["starved"] = 0
        s["listed"] = 0
        if s["state"] == FREE:
            push_free(desk, row)
            continue
        s["in_hand"] = 1
        desk[DESK_BORN] = max(desk[DESK_BORN], s["born"])
        desk[DESK_TOP] = max(desk[DESK_TOP], row + 1)
        live += 1
        connection = np.int64(s["connection"])
        c = connections[connection]
        paint_span(bits, rx_bits(desk, row), ring, s["rx_tail"], s["rx_ready"] - s["rx_tail"], 0)
        paint_span(bits, tx_bits(desk, row), ring, s["tx_head"], s["tx_base"] + ring - s["tx_head"], 0)
        if s["orphan"] == 0 and c["state"] != LIVE:
            s["orphan"] = 1
            s["failed"] = 1
            s["state"] = DONE
        if s["orphan"] == 0:
            ids[connection * IDS + (s["id"] >> 1)] = row + 1
            c["ids_top"] = max(c["ids_top"], s["id"] >> 1)
            c["streams"] += 1
            if c["client"] != 0 and s["state"] == OPENING and s["port"] == 0:
                s["failed"], s["answered"], s["released"] = 1, 1, 1  # its target was not written yet, and nobody heard of it
            if s["state"] == EARLY:
                c["early_at"] = now + 30_000_000_000
            if s["state"] != DONE:
                _unsend(c, s)
                link_work(desk, c, connection, streams, s, row)
        _remind(desk, c, s, row)
        settle_stream(desk, c, streams, ids, bits, s, row, now)
        s["in_hand"] = 0
    arm(desk, now)
    return live

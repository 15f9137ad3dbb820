"""Births and deaths of streams, and the end of a connection.

A stream's row is FREE again only when both parts ended, everything sent was acknowledged and the application released it.
Its id then counts as ended for a while: late copies of its frames are ignored, and the client does not take it again yet.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import Int, called, inline
from nyx.stream.columns import (
    CLOSED,
    CLOSING,
    CONNECTION_CLOSED,
    DESK_BORN,
    DESK_RING,
    DESK_ROWS,
    DESK_STREAMS,
    DESK_TOP,
    DO_REFUSE,
    DO_RESET,
    DO_STOP,
    DONE,
    EARLY,
    FREE,
    IDS,
    LIVE,
    OPENING,
    PROTOCOL_ERROR,
    REFUSALS,
    STREAM,
    STREAM_WINDOW,
    Record,
)
from nyx.stream.flow import end_account, grant
from nyx.stream.octets import Bytes, wipe
from nyx.stream.queues import Desk, Rows, link_work, pop_free, push_event, push_free, push_ready, unlink_work
from nyx.stream.spans import paint_span

Ids = NDArray[np.int32]
Words = NDArray[np.int64]

_ROW: Final = STREAM.itemsize
SECOND: Final = 1_000_000_000


@inline
def tx_bits(desk: Desk, row: Int) -> Int:
    """Where a row's bits of acknowledged bytes begin in "stream_bits"."""
    return row * (desk[DESK_RING] >> 3)


@inline
def rx_bits(desk: Desk, row: Int) -> Int:
    """Where a row's bits of received bytes begin in "stream_bits"."""
    return (desk[DESK_STREAMS] + row) * (desk[DESK_RING] >> 3)


@called
def bear_stream(desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, number: Int, state: Int, now: Int) -> Int:
    """Take a row for stream `number`; returns it, or -1 when there is none."""
    row = pop_free(desk)
    if row < 0:
        return row
    s = streams[row]
    listed = np.int64(s["listed"])  # the row's last life may still stand in the event queue
    wipe(desk[DESK_ROWS] + row * _ROW, _ROW)
    desk[DESK_BORN] += 1
    desk[DESK_TOP] = max(desk[DESK_TOP], row + 1)
    s["listed"] = listed
    s["born"] = desk[DESK_BORN]
    s["connection"] = connection
    s["id"] = number
    s["tx_max"] = STREAM_WINDOW
    s["rx_limit"] = STREAM_WINDOW
    s["rx_window"] = STREAM_WINDOW
    s["opened_at"] = now
    s["state"] = state
    ids[connection * IDS + (number >> 1)] = row + 1
    c["ids_top"] = max(c["ids_top"], number >> 1)
    c["streams"] += 1
    return row


@called
def free_stream(desk: Desk, c: Record, streams: Rows, ids: Ids, bits: Bytes, s: Record, row: Int, now: Int) -> None:
    """Give the row back."""
    ring = np.int64(desk[DESK_RING])
    if s["rx_held"] > s["rx_ready"]:
        paint_span(bits, rx_bits(desk, row), ring, s["rx_ready"], s["rx_held"] - s["rx_ready"], 0)
    if s["tx_held"] > s["tx_base"]:
        paint_span(bits, tx_bits(desk, row), ring, s["tx_base"], s["tx_held"] - s["tx_base"], 0)
    connection = np.int64(s["connection"])
    if s["orphan"] == 0:
        unlink_work(c, streams, s, row)
        if s["rx_top"] > s["rx_credit"]:
            grant(desk, c, connection, s["rx_top"] - s["rx_credit"])
        ids[connection * IDS + (s["id"] >> 1)] = -(now // SECOND + 1)
        c["streams"] -= 1
        if s["starved"]:
            c["starved"] -= 1
    s["events"] = 0
    s["state"] = FREE
    push_free(desk, row)


@called
def refuse(desk: Desk, c: Record, connection: Int, ids: Ids, refusals: Words, number: Int, reply: Int, now: Int) -> None:
    """Answer an OPEN without a row; the id has ended before it began."""
    for i in range(connection * REFUSALS, (connection + 1) * REFUSALS):
        if refusals[i] == 0:
            refusals[i] = np.int64(1) << 33 | np.int64(1) << 32 | reply << 16 | number
            break
    ids[connection * IDS + (number >> 1)] = -(now // SECOND + 1)
    c["ids_top"] = max(c["ids_top"], number >> 1)
    c["control"] |= DO_REFUSE
    push_ready(desk, c, connection)


@inline
def _sending_ended(s: Record) -> Int:
    if s["failed"]:
        return s["answered"] != 0
    if s["reset_state"] == 2:
        return True
    return s["fin_state"] == 2 and s["tx_base"] == s["tx_head"] and s["answered"] != 0 and s["state"] != OPENING


@inline
def _receiving_ended(s: Record) -> Int:
    if s["failed"] or s["rx_reset"] or (s["state"] == OPENING and s["result"] == 0 and s["reset_state"] == 2 and s["released"]):
        return True  # or given up before there was an answer: what may still come is ignored
    return s["rx_final"] > 0 and (s["rx_stop"] != 0 or s["rx_ready"] == s["rx_final"] - 1)


@called
def settle_stream(desk: Desk, c: Record, streams: Rows, ids: Ids, bits: Bytes, s: Record, row: Int, now: Int) -> None:
    """Close the stream if both parts ended, and free it if it was released."""
    if s["state"] == FREE or s["state"] == EARLY:
        return
    if s["state"] != DONE and _sending_ended(s) and _receiving_ended(s):
        s["state"] = DONE
        unlink_work(c, streams, s, row)
        push_event(desk, s, row, CLOSED)
    if s["state"] == DONE and s["released"]:
        free_stream(desk, c, streams, ids, bits, s, row, now)


@called
def reset_sending(desk: Desk, c: Record, streams: Rows, s: Record, row: Int, code: Int) -> None:
    """Give up our part: RESET_STREAM, unless everything is acknowledged already."""
    if s["state"] != DONE and s["reset_state"] == 0 and not (s["fin_state"] == 2 and s["tx_base"] == s["tx_head"]):
        s["reset_code"] = code
        s["reset_state"] = 1
        s["control"] |= DO_RESET
        link_work(desk, c, s["connection"], streams, s, row)


@called
def stop_receiving(desk: Desk, c: Record, streams: Rows, s: Record, row: Int, code: Int) -> None:
    """Ask for no more: STOP_SENDING, unless the peer's part has ended; what still comes is counted and dropped."""
    if s["state"] == DONE or s["rx_stop"] or s["rx_reset"]:
        return
    s["rx_stop"] = 1
    s["stop_code"] = code
    if s["rx_final"] > 0:
        end_account(desk, c, s["connection"], s, s["rx_final"] - 1)
    else:
        if s["rx_top"] > s["rx_credit"]:
            grant(desk, c, s["connection"], s["rx_top"] - s["rx_credit"])
            s["rx_credit"] = s["rx_top"]
        s["control"] |= DO_STOP
        link_work(desk, c, s["connection"], streams, s, row)


@called
def abandon_streams(desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, bits: Bytes, code: Int, now: Int) -> None:
    """The connection is dead: all its streams are closed; those that were released, or never announced, are freed."""
    for row in range(desk[DESK_TOP]):
        s = streams[row]
        if s["state"] != FREE and s["connection"] == connection and s["orphan"] == 0:
            silent = s["released"] != 0 or s["state"] == EARLY
            if s["state"] != DONE:
                s["error"] = code
                s["failed"] = 1
                s["state"] = DONE
                push_event(desk, s, row, CLOSED)
            if silent:
                free_stream(desk, c, streams, ids, bits, s, row, now)
            s["orphan"] = 1
            s["working"] = 0


@called
def end_connection(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, bits: Bytes, tell: Int, code: Int, kinds: Int, now: Int
) -> None:
    """The connection ends with these events: at once, or (`tell`) when a CLOSE with this code has left for the peer."""
    if c["state"] != LIVE:
        return
    c["close_code"] = code
    abandon_streams(desk, c, connection, streams, ids, bits, code, now)
    c["control"] = 0
    c["work"] = 0
    c["streams"] = 0
    c["starved"] = 0
    c["events"] = kinds
    if tell:
        c["state"] = CLOSING
        push_ready(desk, c, connection)
    else:
        c["state"] = DONE
        push_event(desk, c, desk[DESK_STREAMS] + connection, CONNECTION_CLOSED)


@called
def violate(desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, bits: Bytes, code: Int, now: Int) -> None:
    """The peer broke the protocol: close with this code and tell Python, both that and why."""
    end_connection(desk, c, connection, streams, ids, bits, 1, code, 1 << PROTOCOL_ERROR, now)

"""What Python asks of connections and streams: rare, one row at a time, one kernel for all of it.

Also here: events out of the rows, and the look at one row after the pump moved it.
"""

from typing import Final

import numpy as np

from nyx.kernel import Int, called, kernel
from nyx.stream.columns import (
    CLOSED,
    CLOSING,
    CONNECTION,
    CONNECTION_CLOSED,
    CONNECTION_WINDOW,
    DESK_LINKS,
    DESK_STREAMS,
    DO_OPEN,
    DO_PING,
    DO_RESULT,
    DONE,
    EVENT,
    FREE,
    IDS,
    LIVE,
    OPEN,
    OPENED,
    OPENING,
    PONG,
    READABLE,
    REFUSALS,
    RESET,
    RESULT,
    STOPPED,
    STREAM,
    STREAMS_MAX,
    Record,
)
from nyx.stream.congestion import reset_congestion
from nyx.stream.flow import end_account
from nyx.stream.lifecycle import Ids, Words, bear_stream, end_connection, reset_sending, settle_stream, stop_receiving
from nyx.stream.octets import Bytes, wipe
from nyx.stream.queues import Desk, Rows, arm, link_work, pop_event, push_event, push_ready
from nyx.stream.recovery import reset_recovery
from nyx.stream.timers import IDLE

BEGIN_CLIENT: Final = 0
BEGIN_LAST: Final = 1
CLOSE_ROW: Final = 2
CLOSE_TELL: Final = 3
OPEN_STREAM: Final = 4
ANSWER: Final = 5
FINISH: Final = 6
GIVE_UP: Final = 7
STOP: Final = 8
RELEASE: Final = 9
SEND_PING: Final = 10

_LINK: Final = CONNECTION.itemsize
_CANCELLED: Final = 0x100


@called
def _begin(desk: Desk, c: Record, connection: Int, ids: Ids, refusals: Words, client: Int, most: Int, rtt: Int, now: Int) -> None:
    """A free row becomes a live connection."""
    for i in range(c["ids_top"] + 1):
        ids[connection * IDS + i] = 0
    for i in range(connection * REFUSALS, (connection + 1) * REFUSALS):
        refusals[i] = 0
    ready, listed = np.int64(c["ready"]), np.int64(c["listed"])  # the row may still stand in a queue
    wipe(desk[DESK_LINKS] + connection * _LINK, _LINK)
    c["ready"] = ready
    c["listed"] = listed
    c["client"] = client
    c["keepalive"] = client
    c["max_cells"] = most
    c["max_streams"] = STREAMS_MAX
    c["opened_at"] = now
    c["last_in"] = now
    c["idle_limit"] = IDLE
    c["srtt"] = rtt
    c["rttvar"] = rtt >> 1
    c["min_rtt"] = rtt
    c["min_at"] = now
    c["latest_rtt"] = rtt
    c["data_max"] = CONNECTION_WINDOW
    c["data_limit"] = CONNECTION_WINDOW
    c["window"] = CONNECTION_WINDOW
    reset_recovery(c)
    reset_congestion(c)
    c["state"] = LIVE
    arm(desk, now)


@called
def _answer(desk: Desk, c: Record, streams: Rows, s: Record, row: Int, reply: Int) -> None:
    """The last hop's OPEN_RESULT."""
    if s["state"] == OPENING and s["result"] == 0:
        s["result"] = reply + 1
        s["control"] |= DO_RESULT
        if reply == 0:
            s["state"] = OPEN
        else:
            s["failed"] = 1
            s["error"] = reply
            s["rx_stop"] = 1  # what rides along is counted and dropped
            end_account(desk, c, s["connection"], s, s["rx_top"])
        link_work(desk, c, s["connection"], streams, s, row)


@called
def _release(desk: Desk, c: Record, streams: Rows, ids: Ids, bits: Bytes, s: Record, row: Int, now: Int) -> None:
    """The application needs the row no more; what it finished is still delivered."""
    s["released"] = 1
    if s["failed"] == 0 and s["state"] != DONE:
        if s["tx_fin"] == 0:
            reset_sending(desk, c, streams, s, row, _CANCELLED)
        stop_receiving(desk, c, streams, s, row, _CANCELLED)
    settle_stream(desk, c, streams, ids, bits, s, row, now)


@called
def _on_stream(desk: Desk, c: Record, streams: Rows, ids: Ids, bits: Bytes, row: Int, what: Int, a: Int, now: Int) -> None:
    s = streams[row]
    if what == ANSWER:
        _answer(desk, c, streams, s, row, a)
    elif what == FINISH:
        if s["tx_fin"] == 0 and s["state"] != DONE and s["reset_state"] == 0:
            s["tx_fin"] = 1
            link_work(desk, c, s["connection"], streams, s, row)
    elif what == GIVE_UP:
        if s["failed"] == 0:
            reset_sending(desk, c, streams, s, row, a)
    elif what == STOP:
        if s["failed"] == 0:
            stop_receiving(desk, c, streams, s, row, a)
            settle_stream(desk, c, streams, ids, bits, s, row, now)
    elif what == RELEASE:
        _release(desk, c, streams, ids, bits, s, row, now)


@kernel("i8", CONNECTION, STREAM, "i8[]", "i4[]", "u1[]", "i8[]", "i8", "i8", "i8", "i8", "i8")
def command(
    connections: Rows, streams: Rows, desk: Desk, ids: Ids, bits: Bytes, refusals: Words, what: Int, row: Int, a: Int, b: Int,
    now: Int,
) -> Int:  # fmt: skip
    """Do `what` to the row of a connection (up to OPEN_STREAM and SEND_PING) or of a stream; returns 0, or a new row or -1."""
    if what in (BEGIN_CLIENT, BEGIN_LAST):
        _begin(desk, connections[row], row, ids, refusals, np.int64(what == BEGIN_CLIENT), a, b, now)
    elif what in (CLOSE_ROW, CLOSE_TELL):
        c = connections[row]
        if c["state"] == CLOSING and what == CLOSE_ROW:
            c["state"] = DONE
            push_event(desk, c, desk[DESK_STREAMS] + row, CONNECTION_CLOSED)
        end_connection(desk, c, row, streams, ids, bits, np.int64(what == CLOSE_TELL), a, 0, now)
        c["disowned"] = np.int64(what == CLOSE_ROW)
        if c["state"] == DONE and c["events"] == 0 and what == CLOSE_ROW:
            c["state"] = FREE
    elif what == OPEN_STREAM:
        c = connections[row]
        stream = bear_stream(desk, c, row, streams, ids, a, OPENING, now)
        if stream >= 0:
            streams[stream]["control"] = DO_OPEN
        return stream
    elif what == SEND_PING:
        c = connections[row]
        c["ping_nonce"] = a
        c["control"] |= DO_PING
        push_ready(desk, c, row)
    elif streams[row]["state"] != FREE:
        _on_stream(desk, connections[streams[row]["connection"]], streams, ids, bits, row, what, a, now)
    if what == OPEN_STREAM:
        return np.int64(-1)
    return np.int64(0)


@kernel("i8", CONNECTION, STREAM, "i8[]", "i8", "i8")
def start_stream(connections: Rows, streams: Rows, desk: Desk, row: Int, now: Int) -> Int:
    """The address of a stream that OPEN_STREAM made is in its column: let its OPEN leave."""
    s = streams[row]
    c = connections[s["connection"]]
    s["opened_at"] = now
    link_work(desk, c, s["connection"], streams, s, row)
    return np.int64(0)


@called
def _value(s: Record, kind: Int) -> Int:
    if kind == RESULT:
        return s["result"] - 1
    if kind == READABLE:
        return s["rx_ready"] - s["rx_tail"]
    if kind == RESET:
        return s["rx_reset"] - 1
    if kind == STOPPED:
        return s["peer_stop"] - 1
    if kind == OPENED:
        return np.int64(s["kind"])
    if kind == CLOSED:
        return np.int64(s["error"])
    return np.int64(0)


@called
def _take_connection(c: Record, connection: Int, out: Rows, n: Int) -> Int:
    for kind in (CONNECTION_CLOSED, CONNECTION_CLOSED + 1, PONG):
        if c["events"] >> kind & 1:
            e = out[n]
            e["kind"] = kind
            e["connection"] = connection
            e["stream"] = -1
            e["value"] = c["pong_seen"] if kind == PONG else c["close_code"]
            n += 1
    c["events"] = 0
    if c["state"] == DONE and c["disowned"]:
        c["state"] = FREE
    return n


@kernel("i8", CONNECTION, STREAM, "i8[]", EVENT, "i8")
def take_events(connections: Rows, streams: Rows, desk: Desk, out: Rows, most: Int) -> Int:
    """Move events into `out`, a stream's in the order of their kinds; returns how many. Call again while there are any."""
    n = np.int64(0)
    while n + CONNECTION_CLOSED <= most:
        row = pop_event(desk)
        if row < 0:
            break
        if row >= desk[DESK_STREAMS]:
            c = connections[row - desk[DESK_STREAMS]]
            c["listed"] = 0
            n = _take_connection(c, row - desk[DESK_STREAMS], out, n)
            continue
        s = streams[row]
        s["listed"] = 0
        events = np.int64(s["events"])
        s["events"] = 0
        if s["state"] == FREE or s["released"]:
            continue
        for kind in range(OPENED, CLOSED + 1):
            if events >> kind & 1 and (kind != OPENED or s["result"] == 0):
                e = out[n]
                e["kind"] = kind
                e["connection"] = s["connection"]
                e["stream"] = row
                e["value"] = _value(s, kind)
                n += 1
    return n

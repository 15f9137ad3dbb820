"""Opened cells into streams: check a cell whole, apply its frames, enter it into the ranges that ACKs report.

Place on a packet's way: "frames -> stream", inwards. One call takes a batch of cells of any connections, in order of arrival.
"""

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import Int, address, called, inline, kernel
from nyx.stream.acknowledge import note_received
from nyx.stream.check import (
    AHEAD,
    DATA_AGAIN,
    LEGAL,
    OPEN_AGAIN,
    check_cell,
    close_code,
    find_stream,
    form_is_known,
)
from nyx.stream.columns import (
    ADDRESS,
    CONNECTION,
    DESK_STREAMS,
    DESK_TOP,
    DO_OPEN,
    DO_PONG,
    DO_RESPONSE,
    DO_STOP,
    DO_WINDOW,
    DONE,
    EARLY,
    LIVE,
    NEVER,
    OPEN,
    OPENED,
    OPENING,
    PONG,
    RESET,
    RESULT,
    SENT,
    STOPPED,
    STREAM,
    STREAMS_MAX,
    Record,
)
from nyx.stream.flow import end_account
from nyx.stream.lifecycle import (
    SECOND,
    Ids,
    Words,
    bear_stream,
    end_connection,
    free_stream,
    refuse,
    reset_sending,
    settle_stream,
    violate,
)
from nyx.stream.octets import Bytes, copy, read_u48
from nyx.stream.queues import Desk, Rows, arm, link_work, push_event, push_ready
from nyx.stream.reassembly import accept_data
from nyx.stream.recovery import receive_ack
from nyx.wire import frames
from nyx.wire.geometry import FRAMES_SIZE, STREAM_HEADER_SIZE
from nyx.wire.packet import read_u16, read_u32, read_u64

EARLY_LIFE = 30 * SECOND  # data waits that long for its OPEN
_F_STREAM, _F_ACK, _F_OPEN, _F_RESULT = frames.STREAM, frames.ACK, frames.OPEN, frames.OPEN_RESULT
_F_WINDOW, _F_LIMIT, _F_RESET, _F_STOP = (
    frames.MAX_STREAM_DATA,
    frames.MAX_CONNECTION_DATA,
    frames.RESET_STREAM,
    frames.STOP_SENDING,
)
_F_STRING, _F_SETTINGS, _F_PING, _F_PONG = frames.LOCALIZED_STRING, frames.SETTINGS, frames.PING, frames.PONG
_F_CHALLENGE, _F_RESPONSE, _F_CLOSE, _F_PADDING = frames.PATH_CHALLENGE, frames.PATH_RESPONSE, frames.CLOSE, frames.PADDING
_FIN, _LENGTH, _LENGTH_HEADER = frames.FLAG_FIN, frames.FLAG_LENGTH, frames.STREAM_LENGTH_SIZE
_OPEN_SIZE, _RESULT_SIZE = frames.OPEN_SIZE, frames.RESULT_SIZE
_SET_STREAMS, _SET_DATA, _SET_IDLE = frames.SETTING_MAX_STREAMS, frames.SETTING_MAX_DATA, frames.SETTING_IDLE_TIMEOUT
_KIND_TCP = frames.KIND_TCP
_REPLY_FAILED, _REPLY_KIND, _REPLY_FORM = 1, 7, 8


@inline
def _apply_stream(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, bits: Bytes, pool: Bytes, at: Int, end: Int, now: Int
) -> Int:
    flags, number, offset = np.int64(pool[at + 1]), read_u16(pool, at + 2), read_u48(pool, at + 4)
    data = at + (_LENGTH_HEADER if flags & _LENGTH else STREAM_HEADER_SIZE)
    size = read_u16(pool, at + STREAM_HEADER_SIZE) if flags & _LENGTH else end - data
    row = find_stream(c, connection, streams, ids, number, DATA_AGAIN, now)
    if row == AHEAD:  # overtook its OPEN
        row = bear_stream(desk, c, connection, streams, ids, number, EARLY, now)
        if c["early_at"] == 0:
            c["early_at"] = now + EARLY_LIFE
            arm(desk, c["early_at"])
    if row >= 0:
        s = streams[row]
        if s["state"] != DONE and s["rx_reset"] == 0:
            accept_data(desk, c, s, row, bits, pool, data, offset, size, flags & _FIN)
            if s["rx_final"] > 0:
                settle_stream(desk, c, streams, ids, bits, s, row, now)
    return data + size


@called
def _apply_open(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, bits: Bytes, addresses: Bytes, refusals: Words,
    pool: Bytes, at: Int, now: Int,
) -> Int:  # fmt: skip
    number, kind, form = read_u16(pool, at + 1), np.int64(pool[at + 3]), np.int64(pool[at + 6])
    length = np.int64(pool[at + 7])
    size = _OPEN_SIZE + length
    row = find_stream(c, connection, streams, ids, number, OPEN_AGAIN, now)
    if row >= 0 and streams[row]["state"] != EARLY:
        return size  # came before
    if row == AHEAD or row >= 0:
        reply = 0
        if kind != _KIND_TCP:
            reply = _REPLY_KIND
        elif not form_is_known(form):
            reply = _REPLY_FORM
        elif row < 0:
            if c["streams"] < STREAMS_MAX:
                row = bear_stream(desk, c, connection, streams, ids, number, EARLY, now)
            if row < 0:
                reply = _REPLY_FAILED
        if reply:
            if row >= 0:
                free_stream(desk, c, streams, ids, bits, streams[row], row, now)
            refuse(desk, c, connection, ids, refusals, number, reply, now)
            return size
        s = streams[row]
        s["kind"] = kind
        s["form"] = form
        s["port"] = read_u16(pool, at + 4)
        s["address_size"] = length
        copy(address(addresses) + row * ADDRESS, address(pool) + at + _OPEN_SIZE, length)
        s["state"] = OPENING
        push_event(desk, s, row, OPENED)
    return size


@called
def _apply_result(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, bits: Bytes, pool: Bytes, at: Int, now: Int
) -> Int:
    row = find_stream(c, connection, streams, ids, read_u16(pool, at + 1), DATA_AGAIN, now)
    if row >= 0:
        s = streams[row]
        reply = np.int64(pool[at + 3])
        s["answered"] = 1  # the OPEN arrived, whatever became of its cell
        s["control"] &= ~np.int64(DO_OPEN)
        if s["state"] == OPENING and s["result"] == 0:
            s["result"] = reply + 1
            push_event(desk, s, row, RESULT)
            if reply == 0:
                s["state"] = OPEN
            else:
                s["failed"] = 1
                s["error"] = reply
                end_account(desk, c, connection, s, s["rx_top"])
            settle_stream(desk, c, streams, ids, bits, s, row, now)
    return at + _RESULT_SIZE + np.int64(pool[at + 5])


@called
def _apply_stream_control(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, bits: Bytes, pool: Bytes, at: Int, kind: Int, now: Int
) -> Int:
    """MAX_STREAM_DATA, RESET_STREAM, STOP_SENDING."""
    row = find_stream(c, connection, streams, ids, read_u16(pool, at + 1), DATA_AGAIN, now)
    if row >= 0 and streams[row]["state"] != DONE:
        s = streams[row]
        if kind == _F_WINDOW:
            if read_u48(pool, at + 3) > s["tx_max"]:
                s["tx_max"] = read_u48(pool, at + 3)
                link_work(desk, c, connection, streams, s, row)
        elif kind == _F_RESET:
            if s["rx_reset"] == 0 and (s["rx_final"] == 0 or s["rx_ready"] < s["rx_final"] - 1):
                s["rx_reset"] = read_u16(pool, at + 3) + 1
                s["error"] = s["rx_reset"] - 1
                s["rx_final"] = read_u48(pool, at + 5) + 1
                end_account(desk, c, connection, s, s["rx_final"] - 1)
                s["control"] &= ~np.int64(DO_WINDOW | DO_STOP)
                push_event(desk, s, row, RESET)
        elif s["peer_stop"] == 0:
            s["peer_stop"] = read_u16(pool, at + 3) + 1
            push_event(desk, s, row, STOPPED)
            reset_sending(desk, c, streams, s, row, s["peer_stop"] - 1)
        settle_stream(desk, c, streams, ids, bits, s, row, now)
    if kind == _F_WINDOW:
        return at + frames.MAX_STREAM_DATA_SIZE
    return at + (frames.RESET_SIZE if kind == _F_RESET else frames.STOP_SIZE)


@called
def _raise_data_max(desk: Desk, c: Record, connection: Int, streams: Rows, limit: Int) -> None:
    """More credit for the connection: streams that waited for it have work again."""
    if limit < 0:  # beyond 2^63
        limit = np.int64(NEVER)
    if limit > c["data_max"]:
        c["data_max"] = limit
        if c["starved"] > 0:
            c["starved"] = 0
            for row in range(desk[DESK_TOP]):
                s = streams[row]
                if s["starved"] and s["connection"] == connection:
                    s["starved"] = 0
                    link_work(desk, c, connection, streams, s, row)


@called
def _apply_plain(
    desk: Desk,
    c: Record,
    connection: Int,
    streams: Rows,
    ids: Ids,
    bits: Bytes,
    pool: Bytes,
    at: Int,
    end: Int,
    kind: Int,
    now: Int,
) -> Int:
    """Frames of the connection itself; returns the offset behind the frame, or `end` when the connection is over."""
    if kind == _F_LIMIT:
        _raise_data_max(desk, c, connection, streams, read_u64(pool, at + 1))
        return at + frames.MAX_CONNECTION_DATA_SIZE
    if kind == _F_PING:
        c["pong_nonce"] = read_u64(pool, at + 1)
        c["control"] |= DO_PONG
        push_ready(desk, c, connection)
        return at + frames.PING_SIZE
    if kind == _F_PONG:
        c["pong_seen"] = read_u64(pool, at + 1)
        push_event(desk, c, desk[DESK_STREAMS] + connection, PONG)
        return at + frames.PING_SIZE
    if kind == _F_CHALLENGE:
        c["challenge_a"] = read_u64(pool, at + 1)
        c["challenge_b"] = read_u64(pool, at + 9)
        c["control"] |= DO_RESPONSE
        push_ready(desk, c, connection)
        return at + frames.PATH_SIZE
    if kind == _F_RESPONSE:
        return at + frames.PATH_SIZE
    if kind == _F_SETTINGS:
        name, value = read_u16(pool, at + 1), read_u32(pool, at + 3)
        if name == _SET_STREAMS:
            c["max_streams"] = min(value, STREAMS_MAX)
        elif name == _SET_DATA:
            _raise_data_max(desk, c, connection, streams, value)
        elif name == _SET_IDLE and value > 0:
            c["idle_limit"] = min(np.int64(c["idle_limit"]), value * SECOND)
        return at + frames.SETTINGS_SIZE
    if kind == _F_STRING:
        tag = np.int64(pool[at + 1])
        return at + 4 + tag + read_u16(pool, at + 2 + tag)
    end_connection(desk, c, connection, streams, ids, bits, 0, read_u16(pool, at + 1), 0, now)
    return end


@inline
def _apply_cell(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, sent: Rows, lost: Words, bits: Bytes, addresses: Bytes,
    refusals: Words, pool: Bytes, at: Int, end: Int, now: Int,
) -> Int:  # fmt: skip
    """Apply the frames of a legal cell; returns whether it elicits an ACK."""
    eliciting = np.int64(0)
    while at < end:
        kind = np.int64(pool[at])
        if kind == _F_PADDING:
            break
        if kind == _F_ACK:
            at = receive_ack(desk, c, connection, streams, ids, sent, lost, bits, refusals, pool, at, now)
            continue
        if kind != _F_CLOSE:
            eliciting = np.int64(1)
        if kind == _F_STREAM:
            at = _apply_stream(desk, c, connection, streams, ids, bits, pool, at, end, now)
        elif kind == _F_OPEN:
            at += _apply_open(desk, c, connection, streams, ids, bits, addresses, refusals, pool, at, now)
        elif kind == _F_RESULT:
            at = _apply_result(desk, c, connection, streams, ids, bits, pool, at, now)
        elif kind in (_F_WINDOW, _F_RESET, _F_STOP):
            at = _apply_stream_control(desk, c, connection, streams, ids, bits, pool, at, kind, now)
        else:
            at = _apply_plain(desk, c, connection, streams, ids, bits, pool, at, end, kind, now)
    return eliciting


@kernel(
    "i8", CONNECTION, STREAM, "i8[]", "i4[]", SENT, "i8[]", "u1[]", "u1[]", "i8[]", "u1[]", "i8[]", "i8[]", "i8[]", "i8", "i8"
)  # fmt: skip
def receive_cells(
    connections: Rows, streams: Rows, desk: Desk, ids: Ids, sent: Rows, lost: Words, bits: Bytes, addresses: Bytes,
    refusals: Words, pool: Bytes, offsets: NDArray[np.int64], rows: NDArray[np.int64], sequences: NDArray[np.int64],
    n: Int, now: Int,
) -> Int:  # fmt: skip
    """Cell k has its 1208 frame bytes at pool[offsets[k]:], its sequence, and belongs to connection rows[k].

    Returns how many were accepted. A cell that cannot be taken now counts as lost; an illegal one ends its connection.
    """
    accepted = np.int64(0)
    for k in range(n):
        connection, at = np.int64(rows[k]), np.int64(offsets[k])
        c = connections[connection]
        if c["state"] != LIVE:
            continue
        end = at + FRAMES_SIZE
        c["in_hand"] = 1
        verdict = check_cell(desk, c, connection, streams, ids, refusals, pool, at, end, now)
        if verdict == LEGAL:
            c["cells_in"] += 1
            c["last_in"] = now
            eliciting = _apply_cell(desk, c, connection, streams, ids, sent, lost, bits, addresses, refusals, pool, at, end, now)
            note_received(desk, c, connection, sequences[k], eliciting, now)
            accepted += 1
        elif verdict > LEGAL - 256:
            c["dropped"] += 1
        else:
            violate(desk, c, connection, streams, ids, bits, close_code(verdict), now)
        c["in_hand"] = 0
    return accepted

"""Frames into a cell: an ACK, what the connection has to say, and of one stream its control frames and one piece of data.

Lost pieces go first, then streams in turn. A data cell is filled to its last byte by a STREAM frame without a length; an ACK
that is due comes before it, one that is merely possible takes room only where data leaves some.
"""

from typing import Final

import numpy as np

from nyx.kernel import Int, address, called, inline, load_acquire, store_release
from nyx.stream.acknowledge import write_ack
from nyx.stream.columns import (
    ADDRESS,
    CELLS_PER_STREAM_TURN,
    CONNECTION,
    DESK_LINKS,
    DESK_RING,
    DESK_ROWS,
    DESK_TX,
    DO_FIN,
    DO_LIMIT,
    DO_OPEN,
    DO_PING,
    DO_PONG,
    DO_REFUSE,
    DO_RESET,
    DO_RESPONSE,
    DO_RESULT,
    DO_STOP,
    DO_WINDOW,
    DONE,
    FREE,
    REFUSALS,
    STREAM,
    WAITING,
    Record,
    connection_offset,
    stream_offset,
)
from nyx.stream.flow import raise_connection_limit, raise_stream_limit, sendable
from nyx.stream.lifecycle import Words, tx_bits
from nyx.stream.octets import Bytes, copy, from_ring, write_u48
from nyx.stream.queues import Desk, Rows, unlink_work
from nyx.stream.spans import first_gap
from nyx.wire import frames
from nyx.wire.geometry import STREAM_HEADER_SIZE
from nyx.wire.packet import write_u16, write_u64

_ROW: Final = STREAM.itemsize
_LINK: Final = CONNECTION.itemsize
_TX_HEAD: Final = stream_offset("tx_head")
_DATA_SENT: Final = connection_offset("data_sent")
_F_STREAM, _F_OPEN, _F_RESULT, _F_WINDOW = frames.STREAM, frames.OPEN, frames.OPEN_RESULT, frames.MAX_STREAM_DATA
_F_LIMIT, _F_RESET, _F_STOP, _F_CLOSE = frames.MAX_CONNECTION_DATA, frames.RESET_STREAM, frames.STOP_SENDING, frames.CLOSE
_F_PING, _F_PONG, _F_RESPONSE = frames.PING, frames.PONG, frames.PATH_RESPONSE
_FIN, _LENGTH, _LENGTH_HEADER = frames.FLAG_FIN, frames.FLAG_LENGTH, frames.STREAM_LENGTH_SIZE
_RESULT_IPV4: Final = frames.RESULT_SIZE + 4


@called
def _write_result(pool: Bytes, at: Int, number: Int, reply: Int) -> Int:
    """OPEN_RESULT with the empty address 0.0.0.0:0."""
    pool[at] = _F_RESULT
    write_u16(pool, at + 1, number)
    pool[at + 3] = reply
    pool[at + 4] = frames.FORM_IPV4
    pool[at + 5] = 4
    for i in range(at + 6, at + _RESULT_IPV4):
        pool[i] = 0
    return at + _RESULT_IPV4


@inline
def write_close(c: Record, pool: Bytes, at: Int) -> Int:
    """CLOSE without a reason text."""
    pool[at] = _F_CLOSE
    write_u16(pool, at + 1, c["close_code"])
    pool[at + 3] = 0
    return at + frames.CLOSE_SIZE


@called
def write_connection_control(c: Record, pool: Bytes, at: Int, r: Record, now: Int) -> Int:
    """The connection's own frames, which always fit the beginning of a cell; the record says what there was."""
    if c["control"] & DO_LIMIT:
        pool[at] = _F_LIMIT
        write_u64(pool, at + 1, raise_connection_limit(c, now))
        at += frames.MAX_CONNECTION_DATA_SIZE
    if c["control"] & DO_PING:
        pool[at] = _F_PING
        write_u64(pool, at + 1, c["ping_nonce"])
        at += frames.PING_SIZE
    if c["control"] & DO_PONG:
        pool[at] = _F_PONG
        write_u64(pool, at + 1, c["pong_nonce"])
        at += frames.PING_SIZE
    if c["control"] & DO_RESPONSE:
        pool[at] = _F_RESPONSE
        write_u64(pool, at + 1, c["challenge_a"])
        write_u64(pool, at + 9, c["challenge_b"])
        at += frames.PATH_SIZE
    r["connection_control"] = np.int64(c["control"]) & ~DO_REFUSE
    c["control"] &= DO_REFUSE
    return at


@called
def write_refusal(c: Record, connection: Int, refusals: Words, pool: Bytes, at: Int, r: Record) -> Int:
    """One OPEN_RESULT for an OPEN that got no row; it has the cell for itself, as the record has room for one."""
    waiting = 0
    for i in range(REFUSALS):
        word = np.int64(refusals[connection * REFUSALS + i])
        if word >> 32 & 1:
            if waiting == 0:
                refusals[connection * REFUSALS + i] = word & ~(np.int64(1) << 32)
                r["offset"] = i
                at = _write_result(pool, at, word & 0xFFFF, word >> 16 & 0xFF)
                r["connection_control"] |= DO_REFUSE
            waiting += 1
    if waiting < 2:
        c["control"] &= ~np.int64(DO_REFUSE)
    return at


@called
def _write_stream_control(
    desk: Desk, c: Record, s: Record, row: Int, addresses: Bytes, pool: Bytes, at: Int, end: Int, r: Record, now: Int
) -> Int:
    """The stream's control frames, as many as fit; the others keep waiting."""
    control = np.int64(s["control"])
    number = np.int64(s["id"])
    done = np.int64(0)
    if control & DO_OPEN and at + frames.OPEN_SIZE + s["address_size"] <= end:
        pool[at] = _F_OPEN
        write_u16(pool, at + 1, number)
        pool[at + 3] = s["kind"]
        write_u16(pool, at + 4, s["port"])
        pool[at + 6] = s["form"]
        pool[at + 7] = s["address_size"]
        copy(address(pool) + at + frames.OPEN_SIZE, address(addresses) + row * ADDRESS, s["address_size"])
        at += frames.OPEN_SIZE + s["address_size"]
        done |= DO_OPEN
    if control & DO_RESULT and at + _RESULT_IPV4 <= end:
        at = _write_result(pool, at, number, s["result"] - 1)
        done |= DO_RESULT
    if control & DO_WINDOW and at + frames.MAX_STREAM_DATA_SIZE <= end:
        pool[at] = _F_WINDOW
        write_u16(pool, at + 1, number)
        write_u48(pool, at + 3, raise_stream_limit(desk, c, s, now))
        at += frames.MAX_STREAM_DATA_SIZE
        done |= DO_WINDOW
    if control & DO_RESET and at + frames.RESET_SIZE <= end:
        pool[at] = _F_RESET
        write_u16(pool, at + 1, number)
        write_u16(pool, at + 3, s["reset_code"])
        write_u48(pool, at + 5, s["tx_top"])
        at += frames.RESET_SIZE
        done |= DO_RESET
    if control & DO_STOP and at + frames.STOP_SIZE <= end:
        pool[at] = _F_STOP
        write_u16(pool, at + 1, number)
        write_u16(pool, at + 3, s["stop_code"])
        at += frames.STOP_SIZE
        done |= DO_STOP
    s["control"] = control & ~done
    r["control"] |= done
    return at


@inline
def _write_data(
    desk: Desk, s: Record, row: Int, pool: Bytes, at: Int, end: Int, offset: Int, size: Int, head: Int, r: Record
) -> Int:
    """A STREAM frame of `size` bytes, without a length when it fills the cell; FIN when it ends the stream."""
    fills = size == end - at - STREAM_HEADER_SIZE
    fin = s["tx_fin"] != 0 and offset + size == head and s["fin_state"] != 2
    pool[at] = _F_STREAM
    pool[at + 1] = (_FIN if fin else 0) | (0 if fills else _LENGTH)
    write_u16(pool, at + 2, s["id"])
    write_u48(pool, at + 4, offset)
    at += STREAM_HEADER_SIZE
    if not fills:
        write_u16(pool, at, size)
        at += 2
    if size > 0:
        ring = np.int64(desk[DESK_RING])
        from_ring(desk[DESK_TX] + row * ring, ring, offset, address(pool) + at, size)
    r["offset"] = offset
    r["length"] = size
    if fin:
        r["control"] |= DO_FIN
        s["fin_state"] = 1
    return at + size


@inline
def _fit(room: Int, wanted: Int) -> Int:
    """How many of `wanted` bytes a STREAM frame in `room` bytes takes: all of the room, or what its length field leaves."""
    if wanted >= room - STREAM_HEADER_SIZE:
        return room - STREAM_HEADER_SIZE
    return min(wanted, room - _LENGTH_HEADER)


@called
def write_lost(
    desk: Desk, c: Record, connection: Int, streams: Rows, lost: Words, bits: Bytes, pool: Bytes, at: Int, end: Int, r: Record
) -> Int:
    """The next lost piece that is still wanted; returns `at` when none is."""
    while c["lost_head"] != c["lost_tail"]:
        place = (connection * WAITING + c["lost_head"] % WAITING) * 3
        row, size, offset = lost[place] >> 32, lost[place] & 0xFFFFFFFF, np.int64(lost[place + 1])
        s = streams[row]
        alive = s["born"] == lost[place + 2] and s["state"] != FREE and s["state"] != DONE and s["reset_state"] == 0
        start, stop = max(offset, np.int64(s["tx_base"])), offset + size
        if alive and start < stop and start < s["tx_held"]:
            start = first_gap(bits, tx_bits(desk, row), np.int64(desk[DESK_RING]), start, min(stop, np.int64(s["tx_held"])))
        if not alive or start >= stop:
            c["lost_head"] += 1
            continue
        count = _fit(end - at, stop - start)
        if start + count < stop:
            lost[place] = row << 32 | (stop - start - count)
            lost[place + 1] = start + count
        else:
            c["lost_head"] += 1
        c["resent"] += 1
        r["stream"] = row
        r["born"] = s["born"]
        head = load_acquire(desk[DESK_ROWS] + row * _ROW + _TX_HEAD)
        return _write_data(desk, s, row, pool, at, end, start, count, head, r)
    return at


@inline
def _new_data(
    desk: Desk, c: Record, connection: Int, s: Record, row: Int, bits: Bytes, pool: Bytes, at: Int, end: Int, r: Record
) -> Int:
    """The stream's next bytes and its FIN, as far as limits and room go; returns `at` when there is nothing to send."""
    head = load_acquire(desk[DESK_ROWS] + row * _ROW + _TX_HEAD)
    if s["tx_next"] < s["tx_held"]:  # sent again from an earlier place: skip what has arrived
        s["tx_next"] = first_gap(bits, tx_bits(desk, row), np.int64(desk[DESK_RING]), s["tx_next"], s["tx_held"])
    can = np.int64(sendable(c, s, head))
    last = s["tx_fin"] != 0 and s["fin_state"] == 0
    if end - at < _LENGTH_HEADER + 1 or (can <= 0 and not (last and s["tx_next"] == head)):
        return at
    count = _fit(end - at, max(can, 0))
    offset = np.int64(s["tx_next"])
    s["tx_next"] = offset + count
    if s["tx_next"] > s["tx_top"]:
        store_release(desk[DESK_LINKS] + connection * _LINK + _DATA_SENT, c["data_sent"] + s["tx_next"] - s["tx_top"])
        s["tx_top"] = s["tx_next"]
    return _write_data(desk, s, row, pool, at, end, offset, count, head, r)


@inline
def _rest(desk: Desk, c: Record, streams: Rows, s: Record, row: Int, turns: Int) -> Int:
    """After a stream's cell: leave it in front, pass it to the end, or take it out; returns the turns it has left."""
    head = load_acquire(desk[DESK_ROWS] + row * _ROW + _TX_HEAD)
    sending = s["reset_state"] == 0 and s["state"] != DONE
    wants = sending and (sendable(c, s, head) > 0 or (s["tx_fin"] != 0 and s["fin_state"] == 0 and s["tx_next"] == head))
    if not wants and s["control"] == 0:
        if sending and s["starved"] == 0 and min(head, np.int64(s["tx_max"])) > s["tx_next"]:
            s["starved"] = 1  # the connection's limit alone stops it
            c["starved"] += 1
        unlink_work(c, streams, s, row)
        return np.int64(CELLS_PER_STREAM_TURN)
    if turns <= 1:
        c["work"] = s["work_next"]
        return np.int64(CELLS_PER_STREAM_TURN)
    return turns - 1


@inline
def write_work(
    desk: Desk, c: Record, connection: Int, streams: Rows, bits: Bytes, addresses: Bytes, pool: Bytes, at: Int, end: Int,
    r: Record, turns: Int, now: Int,
) -> tuple[Int, Int]:  # fmt: skip
    """What the next stream has to send; returns the offset behind it and the turns left to the stream in front."""
    start = at
    while c["work"] > 0:
        row = np.int64(c["work"]) - 1
        s = streams[row]
        r["stream"] = row
        r["born"] = s["born"]
        if s["control"]:
            at = _write_stream_control(desk, c, s, row, addresses, pool, at, end, r, now)
        if s["reset_state"] == 0 and s["state"] != DONE:
            at = _new_data(desk, c, connection, s, row, bits, pool, at, end, r)
        stuck = at == start and s["control"] != 0  # a control frame that does not fit behind an ACK
        turns = _rest(desk, c, streams, s, row, turns)
        if at > start or stuck:
            return at, turns
        r["stream"] = -1
    return at, turns


@called
def write_spare_ack(desk: Desk, c: Record, connection: Int, pool: Bytes, at: Int, end: Int, r: Record, now: Int) -> Int:
    """An ACK in the room that is left, when there is anything to report."""
    if c["ack_waiting"] > 0:
        behind = write_ack(desk, c, connection, pool, at, end, now)
        if behind > at:
            r["covered"] = c["received_next"]
            return behind
    return at

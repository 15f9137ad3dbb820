"""Cells out of streams: which connection, whether it may send, and the cell.

Place on a packet's way: "frames -> stream", outwards. One call writes cells of all connections that have something to say, in
turn, until slots or words run out. A sequence is reserved by its own release store before the cell can leave, so that no
sequence is ever used twice; a kill burns it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import Int, called, inline, kernel, store_release
from nyx.stream.acknowledge import write_ack
from nyx.stream.columns import (
    ACKED,
    CELLS_PER_CONNECTION_TURN,
    CELLS_PER_STREAM_TURN,
    CLOSING,
    CONNECTION,
    CONNECTION_CLOSED,
    DESK_LINKS,
    DESK_READY,
    DESK_STREAMS,
    DESK_TOP,
    DO_LIMIT,
    DO_PING,
    DO_PONG,
    DO_REFUSE,
    DO_RESPONSE,
    DONE,
    FLIGHT,
    FLIGHT_MASK,
    FREE,
    IN_FLIGHT,
    LIVE,
    SENT,
    STREAM,
    Record,
    connection_offset,
)
from nyx.stream.compose import write_close, write_connection_control, write_lost, write_refusal, write_spare_ack, write_work
from nyx.stream.congestion import pace
from nyx.stream.flow import note_consumed, window_is_due
from nyx.stream.lifecycle import Words
from nyx.stream.octets import Bytes, fill
from nyx.stream.queues import Desk, Rows, arm, link_work, pop_ready, push_event, push_ready
from nyx.stream.recovery import advance_oldest, lose, probe_time
from nyx.wire.frames import ACK_SIZE
from nyx.wire.geometry import CELL_FRAMES, CELL_SIZE, CELL_ZEROS, PACKET_CELL, PACKET_SIZE, ZEROS_SIZE
from nyx.wire.packet import write_u64

_LINK: Final = CONNECTION.itemsize
_SEQUENCE_NEXT: Final = connection_offset("sequence_next")
_PACE_SLACK: Final = 250_000  # ns: a paced sender sleeps that much longer and sends what came due together
_SPEAKS: Final = DO_LIMIT | DO_PING | DO_PONG | DO_RESPONSE | DO_REFUSE


@inline
def _has_work(c: Record) -> Int:
    return c["lost_head"] != c["lost_tail"] or c["work"] != 0 or c["control"] != 0


@inline
def _may_send(desk: Desk, c: Record, now: Int) -> Int:
    """Whether the window and the pace let a cell with something new leave."""
    if c["probes"] > 0:
        return True
    if c["flight"] >= c["cwnd"] or c["flight"] >= c["max_cells"] or c["sequence_next"] - c["oldest"] >= FLIGHT - 1:
        return False  # an ACK makes it ready again
    if c["next_send"] > now:
        c["pace_at"] = c["next_send"] + _PACE_SLACK
        arm(desk, c["pace_at"])
        return False
    return True


@inline
def _make_room(desk: Desk, c: Record, connection: Int, streams: Rows, lost: Words, refusals: Words, r: Record) -> None:
    """The record's place holds a cell from FLIGHT sequences ago: if it is still in flight it will never be settled."""
    if r["state"] == IN_FLIGHT and c["oldest"] <= r["sequence"] < c["sequence_next"]:
        lose(desk, c, connection, streams, lost, refusals, r)
        c["lost"] += 1


@inline
def _begin_record(r: Record, sequence: Int) -> None:
    r["sequence"] = sequence
    r["sent"] = 0
    r["offset"] = 0
    r["covered"] = 0
    r["stream"] = -1
    r["born"] = 0
    r["length"] = 0
    r["control"] = 0
    r["connection_control"] = 0
    r["state"] = ACKED


@inline
def _frame_cell(
    desk: Desk, c: Record, connection: Int, streams: Rows, lost: Words, bits: Bytes, addresses: Bytes, refusals: Words,
    pool: Bytes, at: Int, end: Int, r: Record, may: Int, turns: Int, now: Int,
) -> tuple[Int, Int, Int]:  # fmt: skip
    """Write frames; returns the offset behind them, whether they elicit an ACK, and the turns left to the front stream."""
    if c["ack_due"]:
        behind = write_ack(desk, c, connection, pool, at, end, now)
        if behind > at:
            r["covered"] = c["received_next"]
        at = behind
    start = at
    if may:
        if c["control"] & _SPEAKS:
            at = write_connection_control(c, pool, at, r, now)
            if c["control"] & DO_REFUSE:
                at = write_refusal(c, connection, refusals, pool, at, r)
        if r["connection_control"] & DO_REFUSE == 0:
            before = at
            at = write_lost(desk, c, connection, streams, lost, bits, pool, at, end, r)
            if at == before:
                at, turns = write_work(desk, c, connection, streams, bits, addresses, pool, at, end, r, turns, now)
    eliciting = np.int64(at > start)
    if eliciting and end - at >= ACK_SIZE:
        at = write_spare_ack(desk, c, connection, pool, at, end, r, now)
    return at, eliciting, turns


@inline
def _emit(
    desk: Desk, c: Record, connection: Int, streams: Rows, sent: Rows, lost: Words, bits: Bytes, addresses: Bytes,
    refusals: Words, pool: Bytes, slot: Int, turns: Int, now: Int,
) -> tuple[Int, Int]:  # fmt: skip
    """Write one cell of this connection; returns whether there was one to write, and the turns left to the front stream."""
    cell = slot * PACKET_SIZE + PACKET_CELL
    at, end = cell + CELL_FRAMES, cell + CELL_SIZE
    sequence = np.int64(c["sequence_next"])
    r = sent[connection * FLIGHT + (sequence & FLIGHT_MASK)]
    eliciting = np.int64(0)
    if c["state"] == CLOSING:
        at = write_close(c, pool, at)
        c["state"] = DONE
        push_event(desk, c, desk[DESK_STREAMS] + connection, CONNECTION_CLOSED)
    else:
        may = np.int64(_has_work(c) and _may_send(desk, c, now))
        if may == 0 and c["ack_due"] == 0:
            return np.int64(0), turns
        _make_room(desk, c, connection, streams, lost, refusals, r)
        _begin_record(r, sequence)
        at, eliciting, turns = _frame_cell(
            desk, c, connection, streams, lost, bits, addresses, refusals, pool, at, end, r, may, turns, now
        )
        if at == cell + CELL_FRAMES:
            r["sequence"] = -1
            return np.int64(0), turns
    store_release(desk[DESK_LINKS] + connection * _LINK + _SEQUENCE_NEXT, sequence + 1)
    write_u64(pool, cell, sequence)
    fill(pool, cell + CELL_ZEROS, 0, ZEROS_SIZE)
    if at < end:
        fill(pool, at, 0, end - at)
    if eliciting:
        r["sent"] = now
        r["state"] = IN_FLIGHT
        c["flight"] += 1
        c["eliciting_at"] = now
        c["probes"] = max(c["probes"] - 1, 0)
        if c["flight"] == 1:
            if c["pto_count"] == 0:  # else a probe: the peer has been silent for longer
                c["progress_at"] = now
            arm(desk, now + probe_time(c))
        pace(c, now)
    c["cells_out"] += 1
    c["last_out"] = now
    return np.int64(1), turns


@called
def _look(desk: Desk, connections: Rows, streams: Rows, row: Int) -> None:
    """What the pump did with a stream since we looked last."""
    s = streams[row]
    if s["state"] == FREE or s["state"] == DONE or s["orphan"]:
        return
    connection = np.int64(s["connection"])
    c = connections[connection]
    if s["working"] == 0 and s["starved"] == 0 and s["reset_state"] == 0:
        more = s["tx_head"] > s["tx_next"] and s["tx_max"] > s["tx_next"]
        ends = s["tx_fin"] != 0 and s["fin_state"] == 0 and s["tx_next"] == s["tx_head"]
        if more or ends:
            link_work(desk, c, connection, streams, s, row)
    if s["rx_tail"] > s["rx_credit"] or window_is_due(s):  # credit may be ahead of the reader
        note_consumed(desk, c, connection, streams, s, row)


@kernel("i8", CONNECTION, STREAM, "i8[]", "i8[]", "i8")
def look_at_streams(connections: Rows, streams: Rows, desk: Desk, rows: NDArray[np.int64], n: Int) -> Int:
    """Notice that the pump moved tx_head or rx_tail of these streams; n < 0: of all."""
    if n < 0:
        for row in range(desk[DESK_TOP]):
            _look(desk, connections, streams, row)
        while desk[DESK_TOP] > 0 and streams[desk[DESK_TOP] - 1]["state"] == FREE:
            desk[DESK_TOP] -= 1
    for k in range(n):
        _look(desk, connections, streams, np.int64(rows[k]))
    return np.int64(desk[DESK_READY + 1])


@kernel("i8", CONNECTION, STREAM, "i8[]", SENT, "i8[]", "u1[]", "u1[]", "i8[]", "u1[]", "i8[]", "i8", "i8[]", "i8")
def transmit_cells(
    connections: Rows, streams: Rows, desk: Desk, sent: Rows, lost: Words, bits: Bytes, addresses: Bytes, refusals: Words,
    pool: Bytes, slots: NDArray[np.int64], n: Int, owners: NDArray[np.int64], now: Int,
) -> Int:  # fmt: skip
    """Write up to n opened cells: the k-th lies in packet slot slots[k], and belongs to connection owners[k].

    Returns how many were written.
    """
    written = np.int64(0)
    while written < n:
        connection = pop_ready(desk)
        if connection < 0:
            break
        c = connections[connection]
        c["ready"] = 0
        if c["state"] != LIVE and c["state"] != CLOSING:
            continue
        budget = min(n - written, np.int64(CELLS_PER_CONNECTION_TURN))
        turns = np.int64(CELLS_PER_STREAM_TURN)
        c["in_hand"] = 1
        while budget > 0:
            made, turns = _emit(
                desk, c, connection, streams, sent, lost, bits, addresses, refusals, pool, np.int64(slots[written]), turns, now
            )
            if made == 0:
                break
            owners[written] = connection
            written += 1
            budget -= 1
        if budget == 0 and c["state"] != DONE:
            push_ready(desk, c, connection)
        advance_oldest(c, connection, sent)
        c["in_hand"] = 0
    return written

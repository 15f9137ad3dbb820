"""Loss recovery: what an ACK settles, which cells are lost, and what the frames of a lost cell become (RFC 9002 in cells).

A cell is never sent again: its frames go back to where they wait (a stream's control word, the connection's, or the queue
of lost pieces) and leave in new cells. A record that was declared lost stays readable until its place is needed, so that a
late acknowledgement still counts and undoes what the loss did.

The work of one ACK is bounded by the sequences outstanding, at most FLIGHT, and a cell holds at most one ACK frame.
"""

from typing import Final

import numpy as np

from nyx.kernel import Int, called, inline, store_release
from nyx.stream.acknowledge import forget_ranges
from nyx.stream.columns import (
    ACKED,
    DESK_RING,
    DESK_ROWS,
    DO_FIN,
    DO_LIMIT,
    DO_OPEN,
    DO_PING,
    DO_REFUSE,
    DO_RESET,
    DO_RESULT,
    DO_STOP,
    DO_WINDOW,
    DONE,
    FLIGHT,
    FLIGHT_MASK,
    FREE,
    IN_FLIGHT,
    LOST,
    NEVER,
    REFUSALS,
    STREAM,
    WAITING,
    WRITABLE,
    Record,
    stream_offset,
)
from nyx.stream.congestion import grow, reduce, sample_rtt, undo_one
from nyx.stream.lifecycle import Ids, Words, settle_stream, tx_bits
from nyx.stream.octets import Bytes
from nyx.stream.queues import Desk, Rows, arm, link_work, push_event, push_ready
from nyx.stream.spans import first_gap, paint_span
from nyx.wire.frames import ACK_DELAY_SHIFT, ACK_RANGE_SIZE, ACK_SIZE
from nyx.wire.packet import read_u16, read_u32, read_u64

REORDER_MIN: Final = 3  # cells; RFC 9002's packet threshold
REORDER_MAX: Final = 128
GRANULARITY: Final = 1_000_000  # ns
PEER_ACK_DELAY: Final = 5_000_000  # ns that the peer may hold an ACK back
FIRST_PTO: Final = 200_000_000  # ns, before the first round trip is known
PTO_MAX: Final = 2_000_000_000  # ns
PROBES: Final = 2  # cells a probe timeout may send beyond the window
_ROW: Final = STREAM.itemsize
_TX_BASE: Final = stream_offset("tx_base")


@called
def reset_recovery(c: Record) -> None:
    """Nothing is in flight, nothing waits, nothing is reported."""
    next_ = np.int64(c["sequence_next"])
    c["flight"] = 0
    c["oldest"] = next_
    c["acked_next"] = next_
    c["lost_low"] = NEVER
    c["lost_until"] = 0
    c["lost_head"] = 0
    c["lost_tail"] = 0
    c["loss_at"] = 0
    c["pto_count"] = 0
    c["probes"] = 0
    c["reorder"] = REORDER_MIN
    c["ack_count"] = 0
    c["ack_waiting"] = 0
    c["ack_due"] = 0
    c["ack_at"] = 0
    c["ack_every"] = 2


@called
def probe_time(c: Record) -> Int:
    """The probe timeout, in ns, with its back-off."""
    if c["srtt"] == 0:
        return min(FIRST_PTO << min(c["pto_count"], 6), PTO_MAX)
    base = c["srtt"] + max(4 * c["rttvar"], GRANULARITY) + PEER_ACK_DELAY
    return min(base << min(c["pto_count"], 10), max(PTO_MAX, base))


@inline
def _acknowledge_data(desk: Desk, s: Record, row: Int, bits: Bytes, offset: Int, size: Int) -> None:
    """Bytes of the stream reached the peer: move tx_base, or remember them beyond a gap."""
    ring = np.int64(desk[DESK_RING])
    base, end = np.int64(s["tx_base"]), offset + size
    if end <= base:
        return
    if offset > base:
        s["tx_held"] = max(s["tx_held"], end)
        paint_span(bits, tx_bits(desk, row), ring, offset, size, 255)
        return
    new = end
    if s["tx_held"] > end:
        new = first_gap(bits, tx_bits(desk, row), ring, end, s["tx_held"])
    store_release(desk[DESK_ROWS] + row * _ROW + _TX_BASE, new)
    if s["tx_held"] > base:
        paint_span(bits, tx_bits(desk, row), ring, base, min(new, np.int64(s["tx_held"])) - base, 0)
    s["tx_next"] = max(s["tx_next"], new)
    # A full ring stops the pump. Wake it when a quarter is free, not for every cell.
    line = s["tx_head"] - ring + (ring >> 2)
    if base < line <= new:
        push_event(desk, s, row, WRITABLE)


@inline
def _settle(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, bits: Bytes, refusals: Words, r: Record, now: Int
) -> None:
    """Everything this cell carried arrived."""
    if r["covered"] > 0:
        forget_ranges(desk, c, connection, r["covered"])
    if r["connection_control"] & DO_REFUSE:
        refusals[connection * REFUSALS + r["offset"]] = 0
    row = np.int64(r["stream"])
    if row < 0:
        return
    s = streams[row]
    if s["born"] != r["born"] or s["state"] == FREE:
        return
    control = np.int64(r["control"])
    if r["length"] > 0:
        c["bytes_out"] += r["length"]
        _acknowledge_data(desk, s, row, bits, r["offset"], r["length"])
    if control & (DO_OPEN | DO_RESULT):
        s["answered"] = 1
    if control & DO_RESET:
        s["reset_state"] = 2
    if control & DO_FIN:
        s["fin_state"] = 2
    if control or s["fin_state"]:
        settle_stream(desk, c, streams, ids, bits, s, row, now)


@called
def _push_lost(c: Record, connection: Int, lost: Words, s: Record, r: Record) -> None:
    if c["lost_tail"] - c["lost_head"] >= WAITING:  # no place: send everything from here on again
        s["tx_next"] = min(s["tx_next"], max(s["tx_base"], r["offset"]))
        return
    at = (connection * WAITING + c["lost_tail"] % WAITING) * 3
    lost[at] = np.int64(r["stream"]) << 32 | np.int64(r["length"])
    lost[at + 1] = r["offset"]
    lost[at + 2] = s["born"]
    c["lost_tail"] += 1


@called
def lose(desk: Desk, c: Record, connection: Int, streams: Rows, lost: Words, refusals: Words, r: Record) -> None:
    """Take a cell out of flight and let its frames wait again."""
    r["state"] = LOST
    c["flight"] -= 1
    c["lost_low"] = min(c["lost_low"], r["sequence"])
    c["lost_until"] = c["sequence_next"] + REORDER_MAX
    push_ready(desk, c, connection)
    if r["connection_control"] & DO_LIMIT:
        c["control"] |= DO_LIMIT
    if r["connection_control"] & DO_REFUSE:
        c["control"] |= DO_REFUSE
        refusals[connection * REFUSALS + r["offset"]] |= np.int64(1) << 32
    row = np.int64(r["stream"])
    if row < 0:
        return
    s = streams[row]
    if s["born"] != r["born"] or s["state"] == FREE or s["state"] == DONE:
        return
    control = np.int64(r["control"])
    again = np.int64(0)
    if control & (DO_OPEN | DO_RESULT) and s["answered"] == 0:
        again |= control & (DO_OPEN | DO_RESULT)
    if control & DO_WINDOW and s["rx_final"] == 0:
        again |= DO_WINDOW
    if control & DO_RESET and s["reset_state"] == 1:
        again |= DO_RESET
    if control & DO_STOP and s["rx_final"] == 0 and s["rx_reset"] == 0:
        again |= DO_STOP
    s["control"] |= again
    if s["reset_state"] == 0:
        if control & DO_FIN and s["fin_state"] == 1:
            s["fin_state"] = 0
            again |= DO_FIN
        if r["length"] > 0 and r["offset"] + r["length"] > s["tx_base"]:
            _push_lost(c, connection, lost, s, r)
    if again or s["tx_next"] < s["tx_top"]:
        link_work(desk, c, connection, streams, s, row)


@called
def advance_oldest(c: Record, connection: Int, sent: Rows) -> None:
    """Move the lower end of what is in flight over what is settled."""
    oldest, end = np.int64(c["oldest"]), np.int64(c["sequence_next"])
    while oldest < end:
        r = sent[connection * FLIGHT + (oldest & FLIGHT_MASK)]
        if r["state"] == IN_FLIGHT and r["sequence"] == oldest:
            break
        oldest += 1
    c["oldest"] = oldest


@called
def detect_losses(
    desk: Desk, c: Record, connection: Int, streams: Rows, sent: Rows, lost: Words, refusals: Words, now: Int
) -> None:
    """Declare lost what a later acknowledged cell has left behind by sequences or by time."""
    delay = max(9 * max(c["srtt"], c["latest_rtt"]) >> 3, GRANULARITY)
    count, largest, first, last, persistent = np.int64(0), np.int64(-1), np.int64(0), np.int64(0), np.int64(0)
    c["loss_at"] = 0
    sequence = np.int64(c["oldest"])
    while sequence < c["acked_next"]:
        r = sent[connection * FLIGHT + (sequence & FLIGHT_MASK)]
        if r["sequence"] == sequence and r["state"] == IN_FLIGHT:
            if sequence > c["acked_next"] - 1 - c["reorder"] and r["sent"] > now - delay:
                c["loss_at"] = r["sent"] + delay
                arm(desk, c["loss_at"])
                break
            first = first if first > 0 else np.int64(r["sent"])
            last = np.int64(r["sent"])
            if last - first > 3 * (c["srtt"] + max(4 * c["rttvar"], GRANULARITY) + PEER_ACK_DELAY):
                persistent = np.int64(1)
            lose(desk, c, connection, streams, lost, refusals, r)
            c["lost"] += 1
            count += 1
            largest = sequence
        elif r["sequence"] == sequence and r["state"] == ACKED and r["sent"] > 0:
            first = np.int64(0)
        sequence += 1
    if count:
        reduce(c, largest, count, persistent)
    advance_oldest(c, connection, sent)


@called
def probe(desk: Desk, c: Record, connection: Int, streams: Rows, sent: Rows, lost: Words, refusals: Words) -> None:
    """The probe timeout passed: send the oldest frames in flight once more, beyond the window if need be."""
    for _ in range(PROBES):
        if c["flight"] > 0:
            r = sent[connection * FLIGHT + (c["oldest"] & FLIGHT_MASK)]
            lose(desk, c, connection, streams, lost, refusals, r)
            advance_oldest(c, connection, sent)
    if c["lost_head"] == c["lost_tail"] and c["work"] == 0:
        c["control"] |= DO_PING
    c["probes"] = PROBES
    c["pto_count"] += 1
    c["probed"] += 1
    push_ready(desk, c, connection)


@inline
def _settle_range(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, sent: Rows, bits: Bytes, refusals: Words,
    low: Int, high: Int, largest: Int, delay: Int, now: Int,
) -> Int:  # fmt: skip
    """Settle the cells of one range; returns how many were in flight."""
    newly = np.int64(0)
    for sequence in range(high, low - 1, -1):
        r = sent[connection * FLIGHT + (sequence & FLIGHT_MASK)]
        if r["sequence"] != sequence or r["state"] == ACKED:
            continue
        if r["state"] == IN_FLIGHT:
            c["flight"] -= 1
            newly += 1
            if sequence == largest:
                sample_rtt(c, now - r["sent"], delay, now)
        else:
            c["spurious"] += 1
            c["reorder"] = min(max(c["reorder"], largest - sequence + 1), REORDER_MAX)
            undo_one(c)
        r["state"] = ACKED
        _settle(desk, c, connection, streams, ids, bits, refusals, r, now)
    return newly


@called
def receive_ack(
    desk: Desk, c: Record, connection: Int, streams: Rows, ids: Ids, sent: Rows, lost: Words, bits: Bytes, refusals: Words,
    pool: Bytes, at: Int, now: Int,
) -> Int:  # fmt: skip
    """Apply the ACK frame at an offset, which was checked; returns the offset behind it."""
    largest = high = np.int64(read_u64(pool, at + 1))
    delay = min(read_u16(pool, at + 9) << ACK_DELAY_SHIFT, PEER_ACK_DELAY)
    count = np.int64(pool[at + 11])
    floor = min(np.int64(c["oldest"]), np.int64(c["lost_low"]))
    floor = max(floor, np.int64(c["sequence_next"]) - FLIGHT)
    before = np.int64(c["flight"])
    newly = np.int64(0)
    low = high - read_u32(pool, at + 12) + 1
    at += ACK_SIZE
    for i in range(count):
        if i > 0:
            high = low - read_u32(pool, at) - 1
            low = high - read_u32(pool, at + 4) + 1
            at += ACK_RANGE_SIZE
        if high >= floor:
            newly += _settle_range(
                desk, c, connection, streams, ids, sent, bits, refusals, max(low, floor), high, largest, delay, now
            )
    c["acks_in"] += 1
    c["acked_next"] = max(c["acked_next"], largest + 1)
    if newly > 0:
        c["pto_count"] = 0
        c["probes"] = 0
        c["progress_at"] = now
        grow(c, newly, before, now)
        push_ready(desk, c, connection)
    if newly > 0 or c["loss_at"] > 0:
        detect_losses(desk, c, connection, streams, sent, lost, refusals, now)
    if c["acked_next"] > c["lost_until"]:
        c["lost_low"] = NEVER
        c["undo_left"] = 0
    if c["flight"] > 0 and c["loss_at"] == 0:
        arm(desk, c["eliciting_at"] + probe_time(c))
    return at

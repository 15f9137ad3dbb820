"""The receiver's half of acknowledgement: ranges of received sequences, when an ACK is due, and writing it.

Up to 32 ranges, the highest first, on the desk. They are derived: after a restart cells that were received and not yet
reported count as lost, and the sender sends their frames again. A cell enters the ranges after its bytes are in the ring, so
no ACK can be written before them.

An ACK is due at once after a gap or an old cell, after an eighth of a round trip's cells (2 to 32), or after an eighth of
the round trip (0.2 to 4 ms). An ACK costs every relay as much as data does, hence not sooner.
"""

from typing import Final

import numpy as np

from nyx.kernel import Int, called, inline
from nyx.stream.columns import RANGES, Record
from nyx.stream.octets import Bytes
from nyx.stream.queues import Desk, arm, push_ready, ranges_at
from nyx.wire.frames import ACK, ACK_DELAY_SHIFT, ACK_RANGE_SIZE, ACK_SIZE
from nyx.wire.packet import write_u16, write_u32, write_u64

ACK_EVERY_MIN: Final = 2  # cells
ACK_EVERY_MAX: Final = 32
ACK_DELAY_MIN: Final = 200_000  # ns
ACK_DELAY_MAX: Final = 4_000_000  # ns, below the 5 ms that a sender must expect
_DELAY_LIMIT: Final = 65535


@called
def _insert(desk: Desk, at: Int, count: Int, sequence: Int) -> Int:
    """Add a sequence that does not extend the highest range; returns the number of ranges."""
    place = np.int64(0)  # the first range that ends below the sequence
    while place < count and desk[at + 2 * place + 1] >= sequence:
        if desk[at + 2 * place] <= sequence:
            return count  # known
        place += 1
    above = place > 0 and desk[at + 2 * (place - 1)] == sequence + 1
    below = place < count and desk[at + 2 * place + 1] == sequence - 1
    if above and below:
        desk[at + 2 * (place - 1)] = desk[at + 2 * place]
        for i in range(at + 2 * place, at + 2 * (count - 1)):
            desk[i] = desk[i + 2]
        return count - 1
    if above:
        desk[at + 2 * (place - 1)] = sequence
        return count
    if below:
        desk[at + 2 * place + 1] = sequence
        return count
    if place == RANGES:
        return count
    count = min(count + 1, RANGES)
    for i in range(at + 2 * count - 1, at + 2 * place + 1, -1):
        desk[i] = desk[i - 2]
    desk[at + 2 * place] = sequence
    desk[at + 2 * place + 1] = sequence
    return count


@inline
def note_received(desk: Desk, c: Record, row: Int, sequence: Int, eliciting: Int, now: Int) -> None:
    """Enter an accepted cell into the ranges, and decide whether an ACK is due."""
    at = ranges_at(desk, row)
    expected = np.int64(c["received_next"])
    if sequence == expected and c["ack_count"] > 0:
        if desk[at + 1] == sequence - 1:
            desk[at + 1] = sequence
        else:
            c["ack_count"] = _insert(desk, at, c["ack_count"], sequence)
    else:
        c["ack_count"] = _insert(desk, at, c["ack_count"], sequence)
    if sequence >= expected:
        c["received_next"] = sequence + 1
        c["largest_at"] = now
    if eliciting == 0:
        return
    c["ack_waiting"] += 1
    c["round_cells"] += 1
    if now - c["round_at"] >= max(c["srtt"], ACK_DELAY_MIN):
        c["ack_every"] = min(max(c["round_cells"] >> 3, ACK_EVERY_MIN), ACK_EVERY_MAX)
        c["round_at"] = now
        c["round_cells"] = 0
    if sequence != expected or c["ack_waiting"] >= c["ack_every"]:
        c["ack_due"] = 1
        push_ready(desk, c, row)
    elif c["ack_at"] == 0:
        c["ack_at"] = now + min(max(c["srtt"] >> 3, ACK_DELAY_MIN), ACK_DELAY_MAX)
        arm(desk, c["ack_at"])


@called
def forget_ranges(desk: Desk, c: Record, row: Int, covered: Int) -> None:
    """The peer has our ACK of everything below `covered`: ranges that end below it need no more reports."""
    at = ranges_at(desk, row)
    while c["ack_count"] > 1 and desk[at + 2 * c["ack_count"] - 1] < covered:
        c["ack_count"] -= 1


@called
def write_ack(desk: Desk, c: Record, row: Int, pool: Bytes, at: Int, end: Int, now: Int) -> Int:
    """Write an ACK of as many ranges as fit; returns the offset behind it, or `at` when there is nothing or no room."""
    count = min(np.int64(c["ack_count"]), (end - at - ACK_SIZE) // ACK_RANGE_SIZE + 1)
    if count < 1 or end - at < ACK_SIZE:
        return at
    ranges = ranges_at(desk, row)
    low = np.int64(desk[ranges])
    pool[at] = ACK
    write_u64(pool, at + 1, desk[ranges + 1])
    write_u16(pool, at + 9, min(max(now - c["largest_at"], 0) >> ACK_DELAY_SHIFT, _DELAY_LIMIT))
    pool[at + 11] = count
    write_u32(pool, at + 12, desk[ranges + 1] - low + 1)
    at += ACK_SIZE
    for i in range(1, count):
        high = np.int64(desk[ranges + 2 * i + 1])
        write_u32(pool, at, low - high - 1)
        low = np.int64(desk[ranges + 2 * i])
        write_u32(pool, at + 4, high - low + 1)
        at += ACK_RANGE_SIZE
    c["ack_waiting"] = 0
    c["ack_due"] = 0
    c["ack_at"] = 0
    c["acks_out"] += 1
    return at

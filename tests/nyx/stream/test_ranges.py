"""Received ranges and the ACK frames made of them, against a set of sequences."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nyx.stream import columns as c
from nyx.wire import frames as f
from nyx.wire.geometry import FRAMES_SIZE, PACKET_FRAMES, PACKET_SIZE
from tests.nyx.stream.simulator import SECOND, make_streams


def ranges_of(numbers: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers, reverse=True):
        if found and found[-1][0] == number + 1:
            found[-1] = (number, found[-1][1])
        else:
            found.append((number, number))
    return found


@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=150, unique=True), st.lists(st.integers(1, 30), min_size=1, max_size=40)
)
def test_an_ack_lists_the_highest_ranges(numbers: list[int], batches: list[int]) -> None:
    streams = make_streams(1, 2)
    streams.open_connection(client=False, now=SECOND, max_cells=100)
    pool = np.zeros(PACKET_SIZE * 64, np.uint8)
    ping = np.frombuffer(f.encode([f.Ping(1)]), np.uint8)
    pool.reshape(64, PACKET_SIZE)[:, PACKET_FRAMES : PACKET_FRAMES + FRAMES_SIZE] = ping
    seen: set[int] = set()
    at, turn = 0, 0
    exact = True  # until a range had to be forgotten
    while at < len(numbers):
        batch = numbers[at : at + batches[turn % len(batches)]]
        at, turn = at + len(batch), turn + 1
        offsets = np.arange(len(batch), dtype=np.int64) * PACKET_SIZE + PACKET_FRAMES
        rows = np.zeros(len(batch), np.int64)
        now = SECOND + turn * 5_000_000
        assert streams.receive(pool, offsets, rows, np.array(batch, np.int64), len(batch), now) == len(batch)
        for number in batch:
            seen.add(number)
            exact &= len(ranges_of(seen)) <= c.RANGES
        streams.on_timeout(now + 5_000_000)
        out = np.zeros(PACKET_SIZE, np.uint8)
        assert streams.transmit(out, np.zeros(1, np.int64), 1, now, np.zeros(1, np.int64)) == 1
        (ack,) = [x for x in f.decode(out[PACKET_FRAMES : PACKET_FRAMES + FRAMES_SIZE].tobytes()) if isinstance(x, f.Ack)]
        assert len(ack.ranges) <= c.RANGES
        if exact:
            assert list(ack.ranges) == ranges_of(seen)
        else:
            assert all(n in seen for low, high in ack.ranges for n in range(low, high + 1))
            assert ack.ranges[0] == ranges_of(seen)[0]

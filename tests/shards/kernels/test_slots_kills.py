"""Processes killed for real while they copy between a stream's rings and a slot: no byte lost, none twice, either way."""

import mmap
import os
import signal
import time

import numpy as np

from nyx.columns import Column, offsets, view
from nyx.kernel import address_of
from nyx.sdk.memory import Slot
from nyx.stream.columns import STREAM
from nyx.wire.sdk import DOWN_HEAD, RING_MIN, UP_TAIL, memory_size, slot_at
from shards.kernels import slots, tcp

RING = 1 << 14
KILLS = 30
LIVES, REPAIRED = 0, 1  # words of the shared report


def worker(columns, place: int, parent: int) -> None:
    """One life: recover, then echo the slot through both rings until killed."""
    rows, tx, rx, report = (columns[n] for n in ("streams", "tx", "rx", "report"))
    row = rows[0]
    for word, own in ((UP_TAIL, "tx_head"), (DOWN_HEAD, "rx_tail")):
        report[REPAIRED] += slots.look(place + 8 * word) != row[own]
        slots.publish(place + 8 * word, int(row[own]))
    report[LIVES] += 1
    work, results = np.zeros(1, np.int64), np.zeros(1, np.int64)
    places, sizes = np.array([place]), np.array([RING_MIN])
    while os.getppid() == parent:
        slots.take_in(work, 1, places, sizes, rows, tx, RING, results)
        assert not results[0] & slots.WRONG
        start, end = int(row["rx_ready"]), min(int(row["tx_head"]), int(row["rx_tail"]) + RING)
        at = np.arange(start, end) & (RING - 1)
        rx[at] = tx[at]
        row["rx_ready"] = end  # the bytes stand there before; repeating this after a kill changes nothing
        row["tx_base"] = end
        slots.put_out(work, 1, places, sizes, rows, rx, RING, results)
        assert not results[0] & slots.WRONG
    os._exit(0)


def start(columns, place: int) -> int:
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        try:
            worker(columns, place, parent)
        finally:
            os._exit(2)
    return pid


def test_killed_workers_lose_nothing(rng):
    byte = np.dtype(np.uint8)
    layout = [
        Column("streams", STREAM, 1),
        Column("tx", byte, RING),
        Column("rx", byte, RING),
        Column("report", np.dtype(np.int64), 2),
    ]
    memory, shared = mmap.mmap(-1, offsets(layout)[1]), mmap.mmap(-1, memory_size(1, RING_MIN))
    columns = view(layout, memory)
    columns["streams"][0]["tcp_state"] = tcp.HELD
    slot = Slot(memoryview(shared), 0, RING_MIN)
    place = address_of(np.frombuffer(shared, np.uint8)) + slot_at(0, RING_MIN)
    block = np.arange(1 << 20, dtype=np.uint32).tobytes()
    sent = got = kills = 0
    pid, strike = start(columns, place), time.monotonic() + 0.005
    while kills < KILLS or got < sent:
        if kills < KILLS:
            sent += slot.put(memoryview(block[sent % len(block) :][: rng.randrange(1, 30_000)]))
        data = slot.take(min(slot.available, 1 << 16))
        assert data == (block + block)[got % len(block) :][: len(data)]
        got += len(data)
        if kills < KILLS and time.monotonic() > strike:
            os.kill(pid, signal.SIGKILL)
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "it ended by itself"
            kills += 1
            pid, strike = start(columns, place), time.monotonic() + rng.uniform(0.001, 0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    slot.release()
    assert got == sent > 100_000
    assert columns["report"][LIVES] >= KILLS // 2  # lives long enough to have begun

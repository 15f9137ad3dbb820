"""Processes killed for real, at any instant, on the same memory and socket: no byte lost, none twice, in either direction."""

import contextlib
import mmap
import os
import signal
import socket
import time

import numpy as np

from nyx.columns import Column, offsets, view
from nyx.stream.columns import STREAM
from shards.kernels import tcp

RING = 1 << 14
KILLS = 30
REPAIRED = 0  # words of the shared report
LIVES = 1


def worker(columns, fd: int, parent: int) -> None:
    """One life: recover, then echo the socket through both rings until killed."""
    rows, tx, rx, report = (columns[n] for n in ("streams", "tx", "rx", "report"))
    found = tcp.recover(rows, 0, RING, 0)
    if found is tcp.Recovered.DEAD:
        os._exit(1)
    report[REPAIRED] += found is tcp.Recovered.REPAIRED
    report[LIVES] += 1
    work, results = np.zeros(1, np.int64), np.zeros(1, np.int64)
    row = rows[0]
    while os.getppid() == parent:
        tcp.pump_in(work, 1, rows, tx, RING, results)
        start, end = int(row["rx_ready"]), min(int(row["tx_head"]), int(row["rx_tail"]) + RING)
        at = np.arange(start, end) & (RING - 1)
        rx[at] = tx[at]
        row["rx_ready"] = end  # the bytes stand there before; repeating this after a kill changes nothing
        row["tx_base"] = end
        tcp.pump_out(work, 1, rows, rx, RING, results)
    os._exit(0)


def start(columns, fd: int) -> int:
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        try:
            worker(columns, fd, parent)
        finally:
            os._exit(2)
    return pid


def echo_under_kills(columns, app: socket.socket, fd: int, rng) -> int:
    """Write and read a counted sequence while the worker is killed at random; how many bytes came back right."""
    block = np.arange(1 << 20, dtype=np.uint32).tobytes()
    sent = got = kills = 0
    pid = start(columns, fd)
    strike = time.monotonic() + 0.005
    while kills < KILLS or got < sent:
        with contextlib.suppress(BlockingIOError):
            if kills < KILLS:
                sent += app.send(block[sent % len(block) :][: rng.randrange(1, 30_000)])
        with contextlib.suppress(BlockingIOError):
            data = app.recv(1 << 16)
            assert data == (block + block)[got % len(block) :][: len(data)]
            got += len(data)
        if kills < KILLS and time.monotonic() > strike:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
            pid = start(columns, fd)
            strike = time.monotonic() + rng.uniform(0.001, 0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return got


def test_killed_workers_lose_nothing(rng):
    byte = np.dtype(np.uint8)
    layout = [
        Column("streams", STREAM, 1),
        Column("tx", byte, RING),
        Column("rx", byte, RING),
        Column("report", np.dtype(np.int64), 2),
    ]
    memory = mmap.mmap(-1, offsets(layout)[1])
    columns = view(layout, memory)
    with socket.create_server(("127.0.0.1", 0)) as server:
        app = socket.create_connection(server.getsockname())
        sock, _ = server.accept()
    with app, sock:
        app.setblocking(False)
        sock.setblocking(False)
        assert tcp.attach(columns["streams"], 0, sock.fileno())
        assert echo_under_kills(columns, app, sock.fileno(), rng) > 100_000
    assert columns["report"][LIVES] >= KILLS // 2  # lives long enough to have begun

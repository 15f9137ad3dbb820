"""Pumps byte by byte through tiny rings, each flag, and positions recovered after every kind of kill and every order of FINs."""

import contextlib
import errno
import random
import socket
import time

import numpy as np
import pytest

from nyx.columns import Column, allocate
from nyx.stream.columns import STREAM
from shards.kernels import tcp

RING = 64
BYTE = np.dtype(np.uint8)
RESET_ON_CLOSE = b"\1\0\0\0\0\0\0\0"


class Row:
    """One stream row with a connected socket, the application at the other end of it."""

    def __init__(self, ring: int = RING, family: int = socket.AF_INET, *, active: bool = False) -> None:
        self.ring = ring
        self.columns = allocate([Column("streams", STREAM, 3), Column("tx", BYTE, 3 * ring), Column("rx", BYTE, 3 * ring)])
        self.rows, self.tx, self.rx = (self.columns[n] for n in ("streams", "tx", "rx"))
        with socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family) as server:
            one = socket.create_connection(server.getsockname()[:2])
            two, _ = server.accept()
        self.sock, self.app = (one, two) if active else (two, one)
        self.sock.setblocking(False)
        self.app.settimeout(5)
        assert tcp.attach(self.rows, 1, self.sock.fileno())
        self.work, self.results = np.array([1], np.int64), np.zeros(1, np.int64)

    @property
    def row(self):
        return self.rows[1]

    def pump_in(self) -> int:
        tcp.pump_in(self.work, 1, self.rows, self.tx, self.ring, self.results)
        return int(self.results[0])

    def pump_out(self) -> int:
        tcp.pump_out(self.work, 1, self.rows, self.rx, self.ring, self.results)
        return int(self.results[0])

    def written(self, start: int, end: int) -> bytes:
        return bytes(self.tx[self.ring + (np.arange(start, end) & (self.ring - 1))])

    def receive(self, data: bytes) -> None:
        at = self.ring + (np.arange(int(self.row["rx_ready"]), int(self.row["rx_ready"]) + len(data)) & (self.ring - 1))
        self.rx[at] = np.frombuffer(data, np.uint8)
        self.row["rx_ready"] += len(data)

    def settle(self) -> None:
        """Wait until the loopback has carried everything: the counters of both ends stand still."""
        before = None
        for _ in range(200):
            now = [tcp.counts(s.fileno()) for s in (self.sock, self.app) if s.fileno() >= 0]
            if now == before:
                return
            before = now
            time.sleep(0.003)

    def recover(self) -> tcp.Recovered:
        return tcp.recover(self.rows, 1, self.ring, self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def reset(self) -> None:
        self.app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.app.close()
        self.settle()

    def close(self) -> None:
        self.sock.close()
        self.app.close()


@pytest.fixture(params=["v4 passive", "v4 active", "v6 passive", "v6 active"])
def row(request):
    family = socket.AF_INET if "v4" in request.param else socket.AF_INET6
    made = Row(family=family, active="active" in request.param)
    yield made
    made.close()


def test_in_is_exact_through_a_tiny_ring(row, rng):
    data = rng.randbytes(1000)
    sent = got = 0
    while got < len(data):
        sent += row.app.send(data[sent : sent + rng.randrange(1, 100)]) if sent < len(data) else 0
        result = row.pump_in()
        head, base = int(row.row["tx_head"]), int(row.row["tx_base"])
        assert head - base <= RING
        assert bool(result & tcp.FULL) == (head - base == RING)
        take = rng.randrange(head - base + 1)
        assert row.written(base, base + take) == data[base : base + take]
        row.row["tx_base"] += take
        got = base + take
    assert not row.tx[:RING].any()
    assert not row.tx[2 * RING :].any()


def test_out_is_exact_through_a_tiny_ring(row, rng):
    data, got = rng.randbytes(1000), b""
    while len(got) < len(data):
        tail, ready = int(row.row["rx_tail"]), int(row.row["rx_ready"])
        room = min(RING - (ready - tail), len(data) - ready)
        row.receive(data[ready : ready + rng.randrange(room + 1)])
        result = row.pump_out()
        assert result & tcp.BYTES == int(row.row["rx_tail"]) - tail
        while len(got) < int(row.row["rx_tail"]):
            got += row.app.recv(RING)
        assert not result & tcp.FINAL
    assert got == data
    row.row["rx_final"] = len(data) + 1
    assert row.pump_out() == tcp.FINAL


def test_end_of_file_follows_the_last_byte(row):
    row.app.sendall(b"x" * 10)
    row.app.shutdown(socket.SHUT_WR)
    row.settle()
    assert row.pump_in() == 10 | tcp.EOF
    tcp.mark(row.rows, 1, tcp.IN_EOF)
    assert row.pump_in() == 0
    row.receive(b"still")
    assert row.pump_out() == 5
    assert row.app.recv(10) == b"still"


def test_a_full_socket_blocks_and_goes_on():
    row = Row(ring=1 << 20)
    total = result = 0
    while not result & tcp.BLOCKED:
        if int(row.row["rx_tail"]) == int(row.row["rx_ready"]):
            row.receive(bytes(1 << 20))
        result = row.pump_out()
        assert result & tcp.BYTES <= tcp.BUDGET
        total += result & tcp.BYTES
    row.app.setblocking(False)
    got = 0
    while got < total:
        row.settle()
        got += len(row.app.recv(1 << 20))
    assert got == total
    assert row.pump_out() & tcp.BYTES
    row.close()


def test_the_budget_bounds_one_call():
    row = Row(ring=1 << 20)
    row.app.setblocking(False)
    sent = 0
    while sent <= tcp.BUDGET:
        with contextlib.suppress(BlockingIOError):
            sent += row.app.send(bytes(1 << 16))
        row.settle()
    assert row.pump_in() == tcp.BUDGET | tcp.MORE
    row.close()


def test_a_reset_is_an_error_with_its_number(row):
    row.reset()
    assert row.pump_in() == tcp.ERROR | (errno.ECONNRESET << tcp.ERRNO_SHIFT)
    row.receive(b"x")
    assert row.pump_out() == tcp.ERROR | (errno.EPIPE << tcp.ERRNO_SHIFT)


def test_rows_without_a_socket_are_left_alone(row):
    tcp.detach(row.rows, 1)
    row.app.sendall(b"x")
    row.receive(b"y")
    row.settle()
    assert row.pump_in() == row.pump_out() == 0


def test_many_rows_in_one_call():
    made = [Row() for _ in range(3)]
    rows, tx = made[0].rows, made[0].tx
    for i, other in enumerate(made):
        rows[i]["fd"], rows[i]["tcp_state"] = other.sock.fileno() + 1, tcp.HELD
        other.app.sendall(bytes([65 + i]) * (i + 1))
        other.settle()
    results = np.zeros(3, np.int64)
    assert tcp.pump_in(np.array([2, 0, 1], np.int64), 3, rows, tx, RING, results) == 6
    assert results.tolist() == [3, 1, 2]
    assert bytes(tx[2 * RING : 2 * RING + 4]) == b"CCC\0"
    for other in made:
        other.close()


# ---------------------------------------------------------------- recovery


def test_early_bytes_count_before_the_socket():
    row = Row()
    row.app.sendall(b"hello world")
    row.settle()
    first = row.sock.recv(5)
    tcp.detach(row.rows, 1)
    row.tx[RING : RING + 5] = np.frombuffer(first, np.uint8)
    tcp.set_head(row.rows, 1, 5)
    assert tcp.attach(row.rows, 1, row.sock.fileno(), early=5)
    assert row.pump_in() == 6
    assert row.written(0, 11) == b"hello world"
    assert row.recover() is tcp.Recovered.EXACT
    row.close()


@pytest.mark.parametrize("torn", [True, False])
@pytest.mark.parametrize("our_fin", [False, True])
@pytest.mark.parametrize("their_fin", [False, True])
@pytest.mark.parametrize("theirs_first", [False, True])
def test_positions_after_a_kill(row, torn, our_fin, their_fin, theirs_first):
    """Whatever FINs went over the wire, in either order, with data read, unread and sent; `torn`: done but not stored."""
    row.app.sendall(b"a" * 30)
    row.settle()
    assert row.pump_in() == 30
    row.receive(b"b" * 20)
    row.pump_out()
    row.app.sendall(b"c" * 20)
    row.settle()
    head, tail = 30, 20
    if torn and not our_fin:
        row.receive(b"d" * 7)
        tail += row.sock.send(b"d" * 7)
    if their_fin and theirs_first:
        row.app.shutdown(socket.SHUT_WR)
        row.settle()
    if our_fin:
        tcp.mark(row.rows, 1, tcp.OUT_FIN)
        row.sock.shutdown(socket.SHUT_WR)
        row.settle()
    if their_fin and not theirs_first:
        row.app.shutdown(socket.SHUT_WR)
    row.settle()
    if torn:
        head += row.sock.recv_into(memoryview(row.tx)[RING + 30 : RING + 38])
    found = row.recover()
    assert found is (tcp.Recovered.REPAIRED if torn else tcp.Recovered.EXACT)
    assert (int(row.row["tx_head"]), int(row.row["rx_tail"])) == (head, tail)
    assert row.pump_in() == (50 - head) | (tcp.EOF if their_fin else 0)


@pytest.mark.parametrize("fin_first", [False, True])
@pytest.mark.parametrize("noticed", [False, True])
def test_a_reset_while_dead_ends_the_stream(row, fin_first, noticed):
    row.app.sendall(b"a" * 30)
    row.settle()
    row.pump_in()
    if fin_first:
        tcp.mark(row.rows, 1, tcp.OUT_FIN)
        row.sock.shutdown(socket.SHUT_WR)
        row.settle()
    row.reset()
    if noticed:  # the dead worker had met the error already and taken it out of the socket
        assert row.pump_in() & tcp.ERROR
    assert row.recover() is tcp.Recovered.DEAD


def test_both_fins_and_everything_read(row):
    row.app.sendall(b"a" * 30)
    tcp.mark(row.rows, 1, tcp.OUT_FIN)
    row.sock.shutdown(socket.SHUT_WR)
    row.settle()
    row.app.shutdown(socket.SHUT_WR)
    row.settle()
    assert row.sock.recv_into(memoryview(row.tx)[RING : RING + 30]) == 30
    assert row.recover() is tcp.Recovered.REPAIRED
    assert int(row.row["tx_head"]) == 30
    assert row.pump_in() == tcp.EOF


def test_an_intended_shutdown_that_did_not_happen(row):
    row.receive(b"b" * 20)
    row.pump_out()
    tcp.mark(row.rows, 1, tcp.OUT_FIN)
    row.settle()
    assert row.recover() is tcp.Recovered.EXACT


def test_positions_that_no_kill_explains_end_the_stream(row):
    row.app.sendall(b"a" * 30)
    row.settle()
    row.pump_in()
    row.row["tx_head"] += 1
    before = row.rows.copy()
    assert row.recover() is tcp.Recovered.DEAD
    assert (row.rows == before).all()


def test_attach_refuses_a_dead_connection(row):
    row.reset()
    before = row.rows.copy()
    assert not tcp.attach(row.rows, 1, row.sock.fileno())
    assert not tcp.attach(row.rows, 2, 10**6)
    assert (row.rows == before).all()


def test_counts_of_what_is_no_tcp_socket():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, pytest.raises(OSError, match="counters"):
        tcp.counts(udp.fileno())


@pytest.mark.parametrize("number", range(20))
def test_random_kills_lose_and_repeat_nothing(number, seed):
    """Both directions at once; a "kill" happens between a system call and its store, at random."""
    rng = random.Random(seed)
    row = Row(ring=256, active=bool(number & 1))
    up, down = rng.randbytes(4000), rng.randbytes(4000)
    sent, taken, back = 0, b"", b""
    row.app.setblocking(False)
    while len(taken) < len(up) or len(back) < len(down):
        sent += row.app.send(up[sent : sent + rng.randrange(200)])
        ready = int(row.row["rx_ready"])
        row.receive(down[ready : ready + rng.randrange(256 - (ready - int(row.row["rx_tail"])) + 1)])
        before = int(row.row["tx_head"]), int(row.row["rx_tail"])
        row.pump_in()
        row.pump_out()
        if rng.random() < 0.5:
            row.row["tx_head"], row.row["rx_tail"] = before[0], rng.choice([before[1], int(row.row["rx_tail"])])
            assert row.recover() is not tcp.Recovered.DEAD
        base = int(row.row["tx_base"])
        taken += row.written(base, int(row.row["tx_head"]))
        row.row["tx_base"] = row.row["tx_head"]
        with contextlib.suppress(BlockingIOError):
            back += row.app.recv(1 << 16)
    assert taken == up
    assert back == down
    row.close()

"""Both edges over the real streams: bytes, half-closes, resets, refusals, lost circuits and new lives, as with the double."""

import contextlib
import hashlib
import socket
import traceback

import pytest

from shards.edge import table as edge
from shards.edge.reasons import Reason
from tests.shards.edge.bench import bench, exchange, reset, socks_request
from tests.shards.edge.real import RealBench
from tests.shards.edge.test_edge import born_again, reborn
from tests.shards.edge.test_exit import closed_port

SOCKS_YES = b"\5\0" + b"\5\0\0\1" + bytes(6)


@pytest.fixture
def real():
    with bench(RealBench) as made:
        yield made
        made.check()


def test_every_byte_both_ways(real, rng):
    app, target = real.tunnel()
    up, down = rng.randbytes(400_000), rng.randbytes(300_000)
    assert exchange(real, app, target, up, down, rng) == (up, down)
    app.close()
    target.close()
    real.until(real.idle)
    assert not real.client.edge.table.failures


def test_a_slow_reader_holds_the_sender_back(real, rng):
    app, target = real.tunnel(1 << 16)
    data, sent, got = rng.randbytes(12_000_000), 0, hashlib.sha256()
    for _ in range(400):
        with contextlib.suppress(BlockingIOError):
            sent += app.send(data[sent : sent + (1 << 18)])
        real.turn()
    assert sent < len(data)
    left = sent
    while left:
        piece = real.read(target, min(left, 1 << 16))
        got.update(piece)
        left -= len(piece)
    assert got.digest() == hashlib.sha256(data[:sent]).digest()


@pytest.mark.parametrize("first", ["application", "target"])
def test_half_closes(real, first):
    app, target = real.tunnel()
    one, two = (app, target) if first == "application" else (target, app)
    one.send(b"question")
    one.shutdown(socket.SHUT_WR)
    assert real.read(two, 100) == b"question"
    two.send(b"answer")
    two.close()
    assert real.read(one, 100) == b"answer"
    real.until(real.idle)
    assert not real.client.edge.table.failures
    assert not real.exit.edge.table.failures


@pytest.mark.parametrize("who", ["application", "target"])
def test_resets(real, who):
    app, target = real.tunnel()
    one, two = (app, target) if who == "application" else (target, app)
    one.send(b"last words")
    real.rest()
    reset(one)
    assert real.read(two, 10) == b"last words"
    assert real.end_of(two) == "reset"
    real.until(real.idle)


def test_first_bytes_ride_along(real):
    server, port = real.target()
    app = real.application()
    app.send(socks_request("127.0.0.1", port) + b"early")
    app.shutdown(socket.SHUT_WR)
    target = real.accept(server)
    assert real.read(target, 100) == b"early"
    target.send(b"thanks")
    target.close()
    assert real.read(app, 100)[12:] == b"thanks"
    real.until(real.idle)


@pytest.mark.parametrize(("host", "port", "code"), [("10.0.0.1", 80, 2), ("nowhere.test", 80, 4), ("both.test", 0, 5)])
def test_refusals(real, host, port, code):
    app = real.application()
    app.send(socks_request(host, port or closed_port()))
    assert real.read(app, 100)[3] == code
    app.close()
    real.until(real.idle)
    assert real.near.streams.free_rows == len(real.near.rows)
    real.until(lambda: real.far.streams.free_rows == len(real.far.rows))


def test_rows_come_back_after_many_streams(real):
    for i in range(60):
        app, target = real.tunnel()
        app.send(b"x" * i)
        (app if i & 1 else target).close()
        real.end_of(target if i & 1 else app)
        app.close()
        target.close()
        real.until(real.idle)
    real.until(lambda: real.near.streams.free_rows == real.far.streams.free_rows == len(real.near.rows))


def test_a_lost_circuit(real):
    app, target = real.tunnel()
    waiting = real.application()
    real.near.cut(0)
    assert real.end_of(app) == "reset"
    assert real.end_of(target) == "reset"
    waiting.close()
    real.until(real.idle)
    assert {f.reason for f in real.client.edge.table.failures} == {Reason.CIRCUIT_LOST}


def test_what_came_whole_is_delivered_though_the_circuit_is_lost(real):
    app, target = real.tunnel()
    app.shutdown(socket.SHUT_WR)
    real.rest()
    row = real.near.rows[real.client.edge.table.live()[0]]
    sent = 0
    while int(row["rx_ready"]) == int(row["rx_tail"]):  # until the application's socket is full
        with contextlib.suppress(BlockingIOError):
            sent += target.send(bytes(1 << 16))
        real.rest(5)
    target.close()
    real.until(lambda: int(row["rx_final"]) == sent + 1 == int(row["rx_ready"]) + 1)
    real.rest()
    real.near.cut(0)
    real.rest()
    assert len(real.read(app, sent)) == sent
    assert real.end_of(app) == "eof"
    app.close()
    real.until(real.idle)


def test_streams_outlive_both_workers(real, rng):
    app, target = real.tunnel()
    up, down = rng.randbytes(200_000), rng.randbytes(200_000)
    for start in range(0, len(up), 40_000):
        piece = slice(start, start + 40_000)
        assert exchange(real, app, target, up[piece], down[piece], rng) == (up[piece], down[piece])
        for end in (real.near, real.far):
            end.streams.rebuild(real.now)
        assert reborn(real) == ((1, 0), (1, 0))
    app.close()
    target.close()
    real.until(real.idle)


class KilledError(BaseException):
    """SIGKILL, as far as columns and sockets can tell."""


def die_after(patch, side, owner, name):
    """The side's worker dies when it has made this call; True once it has."""
    died: list[bool] = []
    call = getattr(owner, name)

    def last(*arguments):
        call(*arguments)
        if not died and arguments[1:] in {(edge.OPEN,), (0,)}:
            died.append(True)
            raise KilledError

    patch.setattr(owner, name, last)
    turn = side.turn

    def mortal(now):
        try:
            turn(now)
        except KilledError as error:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if sock := getattr(frame.f_locals.get("client"), "sock", None):
                    sock.detach()  # a dead worker closes nothing

    patch.setattr(side, "turn", mortal)
    return died


@pytest.mark.parametrize("place", ["move", "answer_open"])
def test_a_target_that_is_connected_is_not_lost_before_its_answer(real, place, monkeypatch):
    exit_edge = real.exit.edge
    died = die_after(monkeypatch, real.exit, exit_edge.table if place == "move" else real.exit.streams, place)
    server, port = real.target()
    app = real.application()
    app.send(socks_request("127.0.0.1", port))
    real.until(lambda: died)
    monkeypatch.undo()
    target = real.accept(server)
    assert born_again(real, real.exit) == (1, 0)
    assert real.read(app, 12) == SOCKS_YES
    app.send(b"question")
    assert real.read(target, 8) == b"question"
    app.close()
    target.close()
    real.until(real.idle)


def test_who_was_not_told_yes_is_reset(real, monkeypatch):
    """Killed with the socket given to the stream, and the answer not sent: the request is refused, not a stream lost."""
    died = die_after(monkeypatch, real.client, real.client.edge.table, "move")
    server, port = real.target()
    app = real.application()
    app.send(socks_request("127.0.0.1", port))
    real.until(lambda: died)
    monkeypatch.undo()
    target = real.accept(server)
    assert born_again(real, real.client) == (0, 1)
    real.rest()
    assert real.read(app, 2) == SOCKS_YES[:2]
    assert real.end_of(app) == "reset"
    assert real.end_of(target) == "reset"
    real.until(real.idle)


def test_a_stream_that_nobody_noted_leaks_nothing(real, monkeypatch):
    died: list[bool] = []

    def die(*_):
        died.append(True)
        raise KilledError

    monkeypatch.setattr(real.client.edge.table, "begin", die)
    turn = real.client.turn

    def mortal(now):
        with contextlib.suppress(KilledError):
            turn(now)

    monkeypatch.setattr(real.client, "turn", mortal)
    _server, port = real.target()
    app = real.application()
    app.send(socks_request("127.0.0.1", port))
    real.until(lambda: died)
    monkeypatch.undo()
    born_again(real, real.client)
    assert real.client.edge.repaired == 2  # the application's socket and the stream
    assert real.end_of(app) == "reset"
    real.until(lambda: real.idle() and not real.near.rows["state"].any() and not real.far.rows["state"].any())

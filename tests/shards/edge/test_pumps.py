"""Established streams over real sockets: every byte both ways through tiny rings, half-closes, resets, lost circuits."""

import contextlib
import socket

import pytest

from shards.edge.reasons import Reason
from tests.shards.edge.bench import bench, exchange, reset, socks_request


@pytest.mark.parametrize("ring", [256, 4096])
def test_every_byte_both_ways_through_tiny_rings(ring, rng):
    with bench(ring=ring) as net:
        net.carry = 100 if ring == 256 else 3000
        app, target = net.tunnel()
        up, down = rng.randbytes(60_000), rng.randbytes(50_000)
        assert exchange(net, app, target, up, down, rng) == (up, down)
        app.close()
        target.close()
        net.until(net.idle)


def test_half_close_from_the_application(net):
    app, target = net.tunnel()
    app.send(b"question")
    app.shutdown(socket.SHUT_WR)
    assert net.read(target, 100) == b"question"
    target.send(b"answer")
    target.close()
    assert net.read(app, 100) == b"answer"
    net.until(net.idle)
    assert not net.client.edge.table.failures


def test_half_close_from_the_target(net):
    app, target = net.tunnel()
    target.send(b"greeting")
    target.shutdown(socket.SHUT_WR)
    assert net.read(app, 100) == b"greeting"
    app.send(b"late")
    app.close()
    assert net.read(target, 100) == b"late"
    net.until(net.idle)


def test_first_bytes_sent_with_the_request_arrive_first(net):
    server, port = net.target()
    app = net.connect(port, rest=b"early ")
    app.send(b"late")
    target = net.accept(server)
    assert net.read(target, 10) == b"early late"


def test_a_request_and_everything_at_once_then_end_of_file(net):
    server, port = net.target()
    app = net.application()
    app.send(socks_request("127.0.0.1", port) + b"all there is")
    app.shutdown(socket.SHUT_WR)
    target = net.accept(server)
    assert net.read(target, 100) == b"all there is"
    target.send(b"thanks")
    target.close()
    assert net.read(app, 100)[12:] == b"thanks"
    net.until(net.idle)


def test_a_reader_that_stops_pushes_back_and_goes_on(net, rng):
    app, target = net.tunnel(1 << 16)
    data = rng.randbytes(20_000_000)
    sent = 0
    for _ in range(3000):
        with contextlib.suppress(BlockingIOError):
            sent += app.send(data[sent : sent + 65536])
        net.turn()
    assert sent < len(data)  # two rings and the kernel's buffers hold it, and no more
    assert not net.client.edge.pending
    assert not net.exit.edge.pending
    got = bytearray()
    while len(got) < sent:
        got += net.read(target, min(sent - len(got), 65536))
    assert bytes(got) == data[:sent]


def test_many_streams_at_once(rng):
    with bench(rows=64, half_open=64, max_clients=64) as net:
        pairs = [net.tunnel() for _ in range(40)]
        for i, (app, target) in enumerate(pairs):
            app.send(bytes([i]) * 100)
            target.send(bytes([255 - i]) * 100)
        for i, (app, target) in enumerate(pairs):
            assert net.read(target, 100) == bytes([i]) * 100
            assert net.read(app, 100) == bytes([255 - i]) * 100
        assert net.client.edge.collect()["open"] == 40
        for app, target in pairs:
            app.close()
            target.close()
        net.until(net.idle)


def test_http_connect(net):
    server, port = net.target()
    app = net.application()
    app.send(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nhello".encode())
    target = net.accept(server)
    assert net.read(target, 5) == b"hello"
    target.send(b"back")
    assert net.read(app, 43) == b"HTTP/1.1 200 Connection established\r\n\r\nback"


def test_a_reset_by_the_target_reaches_the_application_after_its_last_bytes(net):
    app, target = net.tunnel()
    target.send(b"last words")
    net.rest()
    assert net.read(app, 10) == b"last words"
    reset(target)
    assert net.end_of(app) == "reset"
    app.close()
    net.until(net.idle)
    assert Reason.TARGET_RESET in {f.reason for f in net.exit.edge.table.failures}


def test_last_words_are_delivered_though_the_reset_overtakes_them(net):
    app, target = net.tunnel()
    net.carry = 0  # the network stands still
    target.send(b"w" * 3000)
    net.rest()
    reset(target)
    net.rest()
    net.carry = 100
    assert net.read(app, 3000) == b"w" * 3000
    assert net.end_of(app) == "reset"


def test_a_broken_socket_waits_for_its_last_bytes_only_so_long(net):
    app, target = net.tunnel()
    net.carry = 0
    target.send(b"w" * 3000)
    net.rest()
    reset(target)
    net.rest()
    assert net.exit.edge.next_timeout() < 1 << 62
    net.pass_time(31)
    assert ("reset", 0, Reason.TARGET_RESET.facts.code) in net.far.calls
    assert net.end_of(app) == "reset"


def test_a_reset_by_the_application_reaches_the_target(net):
    app, target = net.tunnel()
    reset(app)
    assert net.end_of(target) == "reset"
    net.until(net.idle)


def test_an_application_that_closes_and_does_not_read(net):
    app, target = net.tunnel()
    app.send(b"fire and forget")
    app.close()
    assert net.read(target, 100) == b"fire and forget"
    with pytest.raises(ConnectionError):
        for _ in range(20):
            target.send(b"nobody reads this")
            net.rest(5)
    net.until(net.idle)


def test_a_lost_circuit_resets_both_ends(net):
    app, target = net.tunnel()
    net.near.cut(0)
    assert net.end_of(app) == "reset"
    assert net.end_of(target) == "reset"
    net.until(net.idle)
    assert {f.reason for f in net.client.edge.table.failures} == {Reason.CIRCUIT_LOST}

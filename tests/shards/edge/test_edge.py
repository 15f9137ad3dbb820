"""The edge as a worker sees it: harmless calls, shutdown, and a new life on the columns of a dead worker."""

import contextlib
import os
import socket

import numpy as np
import pytest

from shards.edge.client import Greeter
from shards.edge.reasons import Reason
from tests.shards.edge.bench import Bench, Side, bench, exchange, reset, silent_port, socks_request


def test_strange_descriptors_and_events_are_harmless(net):
    app, target = net.tunnel()
    edge = net.client.edge
    edge.on_ready(np.array([0, 1, 2, 900], np.int64), np.array([1, 4, 8, 0x2019], np.int64), net.now)
    for kind in range(1, 12):
        if kind not in (1, 9):
            edge.on_event(kind, 0, 9, 0, net.now)  # a free row
    edge.on_event(99, 0, 0, 0, net.now)
    app.send(b"fine")
    assert net.read(target, 4) == b"fine"


def test_shutdown_closes_everything(net):
    app, target = net.tunnel()
    waiting = net.application()
    net.rest()
    net.client.edge.close(net.now)
    net.exit.edge.close(net.now)
    for sock in (app, target, waiting):
        with pytest.raises(ConnectionError):
            sock.recv(1)
    assert not net.client.edge.held_fds()
    assert not net.exit.edge.held_fds()


def reborn(net: Bench) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both workers die and are started again: only columns and descriptors outlive them."""
    return born_again(net, net.client), born_again(net, net.exit)


def born_again(net: Bench, side: Side) -> tuple[int, int]:
    """One worker dies and is started again."""
    old, options = side.edge, dict(side.options)
    for held in [*old.client._held.values(), *old.exit._rows.values()]:
        sock = getattr(held, "sock", None)
        if sock is not None:
            sock.detach()  # the dead worker's descriptors stay open in the table it shared
    if "resolver" in options:
        options["resolver"] = type(options["resolver"])(2, options["resolver"]._lookup)
    side.epoll.close()
    side.__init__(side.end, **options)  # type: ignore[misc]
    found = side.edge.recover(net.now)
    side.edge.table.check_invariants()
    return found


def test_streams_outlive_their_workers(net, rng):
    app, target = net.tunnel()
    up, down = rng.randbytes(30_000), rng.randbytes(30_000)
    for start in range(0, 30_000, 3000):
        with contextlib.suppress(BlockingIOError):
            piece = slice(start, start + 3000)
            assert exchange(net, app, target, up[piece], down[piece], rng) == (up[piece], down[piece])
        assert reborn(net) == ((1, 0), (1, 0))
    app.close()
    target.close()
    net.until(net.idle)


def test_half_closed_streams_outlive_their_workers(net):
    app, target = net.tunnel()
    app.send(b"question")
    app.shutdown(socket.SHUT_WR)
    net.rest()
    assert reborn(net) == ((1, 0), (1, 0))
    assert net.read(target, 100) == b"question"
    target.send(b"answer")
    target.close()
    assert net.read(app, 100) == b"answer"
    net.until(net.idle)


def test_what_was_being_opened_is_refused_cleanly():
    server, fill, port = silent_port()
    with bench() as net:
        greeting, opening = net.application(), net.application()
        opening.send(socks_request("127.0.0.1", port))
        net.until(lambda: net.exit.edge.exit.opening and net.client.edge.client.count(Greeter))
        near, far = reborn(net)
        assert near == (0, 2)
        assert far == (0, 1)
        assert (net.client.edge.repaired, net.exit.edge.repaired) == (3, 2)  # two sockets and a stream; one of each
        net.rest()
        assert net.end_of(greeting) == "reset"
        assert net.end_of(opening) == "reset"
        net.until(net.idle)
    for sock in [server, *fill]:
        sock.close()


def test_a_reset_while_nobody_lived(net):
    app, target = net.tunnel()
    net.rest()
    reset(app)
    assert reborn(net) == ((0, 1), (1, 0))
    assert net.end_of(target) == "reset"
    net.until(net.idle)
    assert Reason.RESTARTED in {f.reason for f in net.client.edge.table.failures}


def test_a_foreign_descriptor_is_never_touched(net):
    app, target = net.tunnel()
    net.rest()
    row = net.client.edge.table.live()[0]
    fd = int(net.near.rows[row]["fd"]) - 1
    other = socket.socket()
    os.dup2(other.fileno(), fd)  # the number belongs to another socket now
    assert reborn(net) == ((0, 0), (1, 0))
    os.fstat(fd)
    os.close(fd)
    other.close()
    assert net.end_of(target) == "reset"
    del app

"""Clients of the proxy: waiting for circuits, isolation, and those that stall, lie or vanish."""

import contextlib

import numpy as np
import pytest

from nyx.stats import COUNTERS, REFUSALS, Histogram, quantile, refusal_counters
from shards.edge import client as client_edge
from shards.edge.client import Greeter, Opening, Waiting
from shards.edge.contract import SECOND
from shards.edge.reasons import Reason
from shards.edge.request import Refused, isolation_key
from tests.shards.edge.bench import Side, bench, reset, silent_port, socks_request


def test_a_request_waits_for_a_circuit(net):
    server, port = net.target()
    net.circuits = None
    app = net.application()
    app.send(socks_request("127.0.0.1", port) + b"early")
    net.until(lambda: net.client.edge.client.count(Waiting))
    net.pass_time(14)
    net.client.edge.on_circuit_ready(net.now)
    assert net.client.edge.client.count(Waiting) == 1
    net.circuits = 0
    net.client.edge.on_circuit_ready(net.now)
    target = net.accept(server)
    assert net.read(target, 5) == b"early"
    assert net.read(app, 12)[3] == 0


def flushed(side):
    """Refusals by label, and times of opening, as the worker puts them into its statistics."""
    row, opening = np.zeros(len(COUNTERS), np.int64), Histogram()
    side.edge.flush_statistics(row, opening)
    side.edge.flush_statistics(row, opening)  # nothing twice
    return {label: int(n) for label, n in zip(REFUSALS, refusal_counters(row), strict=True) if n}, opening


def test_refusals_are_named_after_the_reasons():
    assert tuple(reason.name.lower() for reason in Reason)[1:] == REFUSALS


def test_the_time_of_opening_counts_from_the_request_with_its_wait_for_a_circuit(net):
    server, port = net.target()
    net.circuits = None
    app = net.application()
    app.send(socks_request("127.0.0.1", port))
    net.until(lambda: net.client.edge.client.count(Waiting))
    net.pass_time(3)
    net.circuits = 0
    net.client.edge.on_circuit_ready(net.now)
    net.accept(server)
    assert net.read(app, 12)[3] == 0
    refusals, opening = flushed(net.client)
    assert refusals == {}
    assert sum(opening.counts) == 1
    assert quantile(opening.counts, 1) == opening.total == 3 * SECOND


def test_refusals_are_counted_by_reason_at_both_ends(net):
    app = net.application()
    app.send(b"\5\1\2" + b"x" * 30)
    net.gone(app)
    app = net.application()
    app.send(socks_request("10.0.0.1", 9))
    assert net.read(app, 100)[3] == 2
    net.gone(app)
    at_client, opening = flushed(net.client)
    assert at_client.pop("policy") == 1
    assert sum(at_client.values()) == 1  # the bad greeting
    assert flushed(net.exit)[0] == {"policy": 1}
    assert sum(opening.counts) == 0


def test_a_request_waits_only_so_long(net):
    net.circuits = None
    app = net.application()
    app.send(socks_request("127.0.0.1", 80))
    net.until(lambda: net.client.edge.client.count(Waiting))
    net.pass_time(16)
    assert net.read(app, 100)[3] == 1
    assert [f.reason for f in net.client.edge.table.failures] == [Reason.NO_CIRCUIT]
    net.gone(app)


def test_a_request_that_will_never_get_a_circuit(net):
    net.circuits = Refused(Reason.POLICY)
    app = net.application()
    app.send(socks_request("127.0.0.1", 80))
    assert net.read(app, 100)[3] == 2
    net.gone(app)


def test_a_connection_without_room_is_waited_for(net):
    server, port = net.target()
    net.near.room = False
    app = net.application()
    app.send(socks_request("127.0.0.1", port))
    net.until(lambda: net.client.edge.client.count(Waiting))
    net.near.room = True
    net.client.edge.on_circuit_ready(net.now)
    net.accept(server)
    assert net.read(app, 12)[3] == 0


@pytest.mark.parametrize("early", [b"", b"data"])
def test_a_circuit_lost_while_opening_is_replaced_unless_data_went_with_it(early):
    server, fill, port = silent_port()
    with bench() as net:
        app = net.application()
        app.send(socks_request("127.0.0.1", port) + early)
        net.until(lambda: net.exit.edge.exit.opening)
        net.near.cut(0)
        net.circuits = None
        if early:
            assert net.read(app, 100)[3] == 1
            net.gone(app)
        else:
            net.until(lambda: net.client.edge.client.count(Waiting))
            server.close()
            net.circuits = 1
            net.client.edge.on_circuit_ready(net.now)
            assert net.read(app, 100)[3] == 5
            net.gone(app)
    for sock in [server, *fill]:
        sock.close()


def test_credentials_isolate(net):
    for user in (b"a", b"b"):
        app = net.application()
        app.send(b"\5\1\2\1\1" + user + b"\1x" + socks_request("127.0.0.1", 9)[3:])
    app = net.application()
    app.send(socks_request("127.0.0.1", 9))
    net.until(lambda: len(net.asked) == 3)
    assert {a[0] for a in net.asked} == {isolation_key(b"a", b"x"), isolation_key(b"b", b"x"), b""}


@pytest.mark.parametrize("sent", [b"", b"\5", b"\5\1\0", b"\5\1\0\5\1\0\3\xff", b"CONN", b"CONNECT a.b:80 HTTP/1.1\r\nX: "])
def test_slow_greetings_end_at_their_deadline(net, sent):
    app = net.application()
    app.send(sent)
    net.until(lambda: net.client.edge.client.count(Greeter))
    for _ in range(9):
        net.pass_time(1)
        app.send(b"\0" if sent.startswith(b"\5\1\0\5") else b"")
    assert net.client.edge.client.count(Greeter) == 1
    net.pass_time(1.1)
    assert net.end_of(app) == "reset"
    net.until(net.idle)


def test_a_worker_that_shall_rest_first_serves_whom_it_has_accepted(net):
    server, port = net.target()
    app = net.application()
    app.send(b"\5\1\0")
    net.until(lambda: net.client.edge.client.count(Greeter))
    net.client.edge.rest()
    assert net.client.edge.busy
    assert net.read(app, 2) == b"\5\0"
    app.send(socks_request("127.0.0.1", port)[3:])
    net.accept(server)
    assert net.read(app, 10)[1] == 0
    assert not net.client.edge.busy


@pytest.mark.parametrize("violent", [False, True])
@pytest.mark.parametrize("sent", [b"", b"\5", b"\5\1\0", b"CONNECT"])
def test_a_client_that_leaves_while_greeting(net, sent, violent):
    app = net.application()
    app.send(sent)
    net.until(lambda: net.client.edge.client.count(Greeter))
    net.rest(5)
    reset(app) if violent else app.close()
    net.until(net.idle)


@pytest.mark.parametrize("state", [Waiting, Opening])
def test_a_client_that_breaks_off_while_it_waits(net, state):
    server, fill, port = silent_port()
    net.circuits = None if state is Waiting else 0
    app = net.application()
    app.send(socks_request("127.0.0.1", port))
    net.until(lambda: net.client.edge.client.count(state))
    net.rest(5)
    reset(app)
    net.until(net.idle)
    assert net.exit.edge.exit.opening == 0
    for sock in [server, *fill]:
        sock.close()


def test_a_client_that_closed_before_the_answer(net):
    server, port = net.target()
    app = net.application()
    app.send(socks_request("127.0.0.1", port))
    app.close()
    assert net.end_of(net.accept(server)) in ("eof", "reset")
    net.until(net.idle)


@pytest.mark.parametrize("number", range(8))
def test_five_thousand_bytes_of_garbage(net, rng, number):
    app = net.application()
    with contextlib.suppress(OSError):
        app.send(b"\5\1\0GET "[number % 4 :] + rng.randbytes(5000))
    with contextlib.suppress(ConnectionError):
        assert len(net.read(app, 10_000)) < 700
    app.close()
    net.pass_time(11)
    net.until(net.idle)


def test_a_refused_client_that_keeps_sending_is_cut_off(net):
    app = net.application()
    app.send(b"GET / HTTP/1.1\r\n\r\n")
    net.rest(5)
    with contextlib.suppress(OSError):
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                app.send(bytes(4096))
            net.turn()
    net.until(net.idle)


def test_a_refused_client_that_does_nothing_is_closed_after_two_seconds(net):
    app = net.application()
    app.send(b"GET / HTTP/1.1\r\n\r\n")
    assert net.read(app, 5000).startswith(b"HTTP/1.1 405 ")
    assert not net.idle()
    net.pass_time(2.1)
    net.until(net.idle)


def test_places_are_bounded_and_slow_greetings_give_way(net):
    silent = [net.application() for _ in range(30)]
    net.rest()
    assert net.client.edge.collect()["clients"] == 16
    net.pass_time(1.5)
    net.pass_time(0.2)
    assert net.client.edge.collect()["clients"] == 16
    server, port = net.target()
    net.connect(port)
    net.accept(server)
    assert net.client.edge.collect()["clients_evicted"] >= 1
    for app in silent:
        app.close()


def test_a_crowd_of_slow_greetings_delays_an_honest_one_by_what_it_takes_to_let_them_through(net):
    """Sixteen places, so sixteen slow ones a tenth of a second: 60 of them cost the one behind them three of those."""
    slow = [net.application() for _ in range(60)]
    for app in slow:
        app.send(b"\5")
    server, port = net.target()
    app = net.application()
    app.send(socks_request("127.0.0.1", port))
    waited = 0
    while not net.asked and waited < 20:
        net.pass_time(0.05)
        waited += 1
    assert 4 <= waited <= 10
    assert net.read(app, 12) == b"\5\0" + b"\5\0\0\1" + bytes(6)
    net.accept(server)
    net.pass_time(11)
    assert net.client.edge.collect()["clients"] == 0
    for other in slow:
        with contextlib.suppress(ConnectionError):
            assert other.recv(10) == b""


def test_accepting_rests_when_every_place_waits_and_goes_on_after(net):
    net.circuits = None
    apps = [net.application() for _ in range(16)]
    for app in apps:
        app.send(socks_request("127.0.0.1", 9))
    net.until(lambda: net.client.edge.client.count(Waiting) == 16)
    late = net.application()
    late.send(b"\5\1\0")
    net.rest()
    assert net.client.edge.collect()["clients"] == 16
    assert not net.client.epoll.poll(0)  # nothing spins while nobody can be let in
    reset(apps[0])
    net.rest()
    net.pass_time(0.2)
    assert net.read(late, 2) == b"\5\0"


def test_no_descriptor_left(net, monkeypatch):
    real = net.listener

    class Listener:
        def accept(self):
            raise OSError(24, "too many open files")

    net.client.edge.client._listeners = {real.fileno(): Listener()}
    net.application()
    net.rest()
    assert net.client.edge.collect()["accept_failed"] == 1
    assert not net.client.epoll.poll(0)
    net.client.edge.client._listeners = {real.fileno(): real}
    net.pass_time(0.2)
    net.until(lambda: net.client.edge.client.count(Greeter))


def test_a_turn_accepts_only_so_many(monkeypatch):
    monkeypatch.setattr(client_edge, "ACCEPTS_PER_TURN", 3)
    with bench() as net:
        for _ in range(10):
            net.application()
        net.turn()
        assert net.client.edge.client.count(Greeter) == 3
        net.rest(5)
        assert net.client.edge.client.count(Greeter) == 10


def test_workers_share_a_listener_and_one_may_be_gone():
    with bench() as one:
        near, _far = one.ends(16, 4096, 32)
        other = Side(near, listeners=[one.listener], open_circuit=one.open_circuit, max_clients=16)
        apps = [one.application() for _ in range(20)]
        for app in apps:
            app.send(b"\5\1\0")

        def greeted() -> int:
            other.turn(one.now)
            return one.client.edge.client.count(Greeter) + other.edge.client.count(Greeter)

        one.until(lambda: greeted() == 20)
        other.edge.close(one.now)
        other.epoll.close()
        late = one.application()
        late.send(b"\5\1\0")
        assert one.read(late, 2) == b"\5\0"

"""What an exit refuses, with the right code, within bounded time and memory; which address a name leads to."""

import socket
import threading

import pytest

from shards.edge import exit as exit_edge
from shards.edge.client import Opening
from shards.edge.reasons import Reason
from tests.shards.edge.bench import Bench, bench, silent_port, socks_request


def refused(net: Bench, host: str, port: int) -> int:
    app = net.application()
    app.send(socks_request(host, port))
    reply = net.read(app, 100)
    assert reply[:2] == b"\5\0"
    assert len(reply) == 12
    net.gone(app)
    return reply[3]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "port", "code", "near", "far"),
    [
        ("10.0.0.1", 80, 2, Reason.POLICY, Reason.POLICY),
        ("rebind.test", 80, 2, Reason.POLICY, Reason.POLICY),
        ("169.254.169.254", 80, 2, Reason.POLICY, Reason.POLICY),
        ("0.0.0.0", 80, 2, Reason.POLICY, Reason.POLICY),
        ("nowhere.test", 80, 4, Reason.HOST_UNREACHABLE, Reason.NOT_RESOLVED),
        ("127.0.0.1", 0, 5, Reason.CONNECTION_REFUSED, Reason.CONNECTION_REFUSED),
        ("both.test", 0, 5, Reason.CONNECTION_REFUSED, Reason.CONNECTION_REFUSED),
    ],
)
def test_what_the_exit_refuses(net, host, port, code, near, far):
    assert refused(net, host, port or closed_port()) == code
    assert [f.reason for f in net.client.edge.table.failures] == [near]
    assert [f.reason for f in net.exit.edge.table.failures] == [far]
    rows = net.client.edge.stream_rows(net.now, True)
    assert [(r["state"], r["reason"], r["role"]) for r in rows] == [("closed", near.text, "client")]
    assert rows[0]["target"].startswith(host)
    assert net.client.edge.stream_rows(net.now, False)[0]["target"] is None
    assert net.exit.edge.stream_rows(net.now, True)[0]["target"] is None


def test_no_exit_refuses_everything_and_resolves_nothing():
    with bench(policy=None, lookup=lambda _name: pytest.fail("it was resolved")) as net:
        assert refused(net, "localhost", 80) == 2
        assert refused(net, "127.0.0.1", 80) == 2


@pytest.mark.parametrize("host", ["localhost", "mixed.test", "both.test"])
def test_names_reach_the_allowed_address_that_answers(net, host):
    server, port = net.target()
    app = net.connect(port, host)
    net.accept(server).send(b"here")
    assert net.read(app, 4) == b"here"
    assert net.asked[0][1] == host  # the client passed the name on


def test_http_refusals_say_why(net):
    app = net.application()
    app.send(b"CONNECT 10.0.0.1:80 HTTP/1.1\r\n\r\n")
    reply = net.read(app, 1000)
    assert reply.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"policy" in reply
    net.gone(app)


def test_a_name_that_takes_too_long():
    release = threading.Event()

    def slow(_name):
        release.wait(20)
        return []

    with bench(lookup=slow) as net:
        app = net.application()
        app.send(socks_request("slow.test", 80))
        net.rest()
        net.pass_time(9)
        assert net.exit.edge.exit.opening == 1
        net.pass_time(2)
        assert net.read(app, 100)[3] == 4
        assert net.exit.edge.exit.opening == 0
        release.set()
        net.rest()
        net.gone(app)


def test_a_target_that_hangs(net):
    server, fill, port = silent_port()
    app = net.application()
    app.send(socks_request("127.0.0.1", port))
    net.rest()
    assert net.exit.edge.exit.opening == 1
    net.pass_time(14)
    assert net.exit.edge.exit.opening == 1
    net.pass_time(2)
    assert net.read(app, 100)[3] == 6
    net.gone(app)
    for sock in [server, *fill]:
        sock.close()


def test_an_exit_that_never_answers(net):
    app = net.application()
    net.near.peer.tell = lambda *_: None  # the OPEN is lost
    app.send(socks_request("127.0.0.1", 80))
    net.until(lambda: net.client.edge.client.count(Opening))
    net.pass_time(29)
    assert net.client.edge.client.count(Opening) == 1
    net.pass_time(2)
    assert net.read(app, 100)[3] == 6


def test_one_circuit_cannot_take_every_place(monkeypatch):
    monkeypatch.setattr(exit_edge, "PER_CONNECTION", 3)
    server, fill, port = silent_port()
    with bench() as net:
        apps = [net.application() for _ in range(4)]
        for app in apps:
            app.send(socks_request("127.0.0.1", port))
            net.rest(5)
        assert net.exit.edge.exit.opening == 3
        assert net.read(apps[3], 100)[3] == 1
        assert [f.reason for f in net.exit.edge.table.failures] == [Reason.BUSY]
    for sock in [server, *fill]:
        sock.close()

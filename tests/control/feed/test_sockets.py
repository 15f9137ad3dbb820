"""The feed's sockets against subscribers that stall, flood, or have no key: what they cost, and what others notice."""

import contextlib
import os
import time
from typing import Any

import psutil
import pytest
import zmq

from bench.network import free_port
from control.feed import keys, sockets
from control.feed.message import MESSAGE_MAX

TOPIC = "nyx.status/1"
STATUS = b"nyx.status/1"


OPENED: list[Any] = []  # by the test that runs


@pytest.fixture
def context():
    with zmq.Context() as found:
        yield found
        while OPENED:
            OPENED.pop().close(linger=0)


@contextlib.contextmanager
def closing(endpoint):
    try:
        yield endpoint
    finally:
        endpoint.close()


def subscriber(context, address, *topics, **options):
    socket = context.socket(zmq.SUB)
    OPENED.append(socket)
    socket.setsockopt(zmq.LINGER, 0)
    for name, value in options.items():
        setattr(socket, name, value)
    for topic in topics or (b"",):
        socket.subscribe(topic)
    socket.connect(address)
    return socket


def turn_until(condition, *served, seconds=15.0):
    """Serve until it holds; whether it did in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        for one in served:
            one()
        time.sleep(0.005)
    return True


def joins(endpoint, reader=None):
    """Until somebody subscribed. A reader that joins again does so while it waits for a message."""
    assert turn_until(lambda: TOPIC in endpoint.joined(), *([lambda: reader.poll(1)] if reader else []))


def test_the_socket_is_this_users_alone(context, tmp_path):
    with closing(sockets.local(context, tmp_path / "feed.sock")):
        assert (tmp_path / "feed.sock").stat().st_mode & 0o777 == 0o600


def test_a_stalled_subscriber_costs_bounded_memory_and_no_other_a_message(context, tmp_path):
    with closing(sockets.local(context, tmp_path / "feed.sock")) as endpoint:
        stalled = subscriber(context, endpoint.address, rcvhwm=1, rcvbuf=4096)
        joins(endpoint)
        reader = subscriber(context, endpoint.address)
        joins(endpoint)
        before = psutil.Process().memory_info().rss
        sent = 3000  # 94 MiB, if anybody kept them
        for number in range(sent):
            endpoint.send(TOPIC, number.to_bytes(4, "big") + os.urandom(MESSAGE_MAX - 4))
            assert reader.poll(10_000)
            assert reader.recv_multipart()[1][:4] == number.to_bytes(4, "big")
        assert psutil.Process().memory_info().rss - before < 24 << 20
        kept = 0
        while stalled.poll(200):
            stalled.recv_multipart()
            kept += 1
        assert 0 < kept < 200


def test_a_flood_of_subscriptions_opens_the_endpoint_anew_and_readers_come_back(context, tmp_path):
    with closing(sockets.local(context, tmp_path / "feed.sock")) as endpoint:
        reader = subscriber(context, endpoint.address, reconnect_ivl=20)
        joins(endpoint)
        hostile = subscriber(context, endpoint.address, sndhwm=0, reconnect_ivl=-1)
        for number in range(sockets.SUBSCRIPTIONS_MAX + 100):
            hostile.subscribe(b"junk%d" % number)
        assert turn_until(lambda: endpoint.reopened, endpoint.joined)
        hostile.close()
        joins(endpoint, reader)
        assert endpoint.subscriptions < 100
        endpoint.send(TOPIC, b"after")
        assert reader.poll(10_000)
        assert reader.recv_multipart() == [STATUS, b"after"]


def test_too_many_connections_are_all_let_go(context, tmp_path):
    import socket

    with closing(sockets.local(context, tmp_path / "feed.sock")) as endpoint, contextlib.ExitStack() as stack:
        few = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(sockets.CONNECTIONS_MAX)]
        for one in few:
            one.connect(str(tmp_path / "feed.sock"))
        assert turn_until(lambda: endpoint.connections == sockets.CONNECTIONS_MAX, endpoint.joined)
        few.pop().close()
        assert turn_until(lambda: endpoint.connections == sockets.CONNECTIONS_MAX - 1, endpoint.joined)
        assert not endpoint.reopened
        for _ in range(2):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / "feed.sock"))
        assert turn_until(lambda: endpoint.reopened, endpoint.joined)
        few[0].settimeout(10)
        with contextlib.suppress(ConnectionError):
            while few[0].recv(4096):
                pass
        subscriber(context, endpoint.address)
        joins(endpoint)


def test_what_is_no_zeromq_and_what_is_too_long_ends_its_own_connection(context, tmp_path):
    import socket

    with closing(sockets.local(context, tmp_path / "feed.sock")) as endpoint:
        with socket.socket(socket.AF_UNIX) as junk:
            junk.settimeout(10)
            junk.connect(str(tmp_path / "feed.sock"))
            junk.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\xff" * 100)
            with contextlib.suppress(ConnectionError):
                while junk.recv(4096):
                    pass
        long = subscriber(context, endpoint.address, b"x" * (sockets.SUBSCRIPTION_SIZE * 2), reconnect_ivl=-1)
        long.setsockopt(zmq.RECONNECT_IVL, -1)
        assert turn_until(lambda: endpoint.connections == 0 and not long.poll(0), endpoint.joined)
        subscriber(context, endpoint.address)
        joins(endpoint)


# ---------------------------------------------------------------- CURVE


@pytest.fixture
def remote(context, tmp_path):
    """An endpoint by TCP, its doorman, and the node's public key; `serve` runs both."""
    public, secret = keys.load_or_make(tmp_path)
    doorman = sockets.Doorman(context, lambda: keys.readers(tmp_path))
    endpoint = sockets.remote(context, ("127.0.0.1", free_port()), secret)
    yield endpoint, doorman, public
    endpoint.close()
    doorman.close()


def curve(context, address, server, pair):
    return subscriber(
        context, address, curve_serverkey=server, curve_publickey=pair[0], curve_secretkey=pair[1], reconnect_ivl=50
    )


def test_only_an_admitted_key_hears_anything_and_from_the_moment_it_is_admitted(context, remote, tmp_path):
    endpoint, doorman, public = remote
    known, unknown = zmq.curve_keypair(), zmq.curve_keypair()
    keys.admit(tmp_path, "known", known[0].decode())
    stranger = curve(context, endpoint.address, public, unknown)
    plain = subscriber(context, endpoint.address, reconnect_ivl=50)
    wrong = curve(context, endpoint.address, zmq.curve_keypair()[0], known)
    reader = curve(context, endpoint.address, public, known)
    joined: set[str] = set()
    assert turn_until(lambda: joined and doorman.refused, doorman.turn, lambda: joined.update(endpoint.joined()))
    endpoint.send(TOPIC, b"secret")
    assert reader.poll(10_000)
    assert reader.recv_multipart() == [STATUS, b"secret"]
    assert not any(one.poll(300) for one in (stranger, plain, wrong))
    assert endpoint.subscriptions == 1
    keys.admit(tmp_path, "late", unknown[0].decode())
    stranger = curve(context, endpoint.address, public, unknown)  # one that was refused does not try again by itself
    assert turn_until(lambda: endpoint.subscriptions == 2, doorman.turn, endpoint.joined)
    endpoint.send(TOPIC, b"more")
    assert stranger.poll(10_000)


def test_without_a_doorman_nobody_is_let_in(context, tmp_path):
    public, secret = keys.load_or_make(tmp_path)
    with closing(sockets.remote(context, ("127.0.0.1", free_port()), secret)) as endpoint:
        reader = curve(context, endpoint.address, public, zmq.curve_keypair())
        assert not turn_until(endpoint.joined, seconds=1.0)
        endpoint.send(TOPIC, b"secret")
        assert not reader.poll(300)


def test_keys_are_made_once_kept_private_and_refused_when_others_can_read_them(tmp_path):
    from nyx.errors import ConfigError

    first = keys.load_or_make(tmp_path)
    assert keys.load_or_make(tmp_path) == first
    assert keys.key_file(tmp_path).stat().st_mode & 0o777 == 0o600
    keys.key_file(tmp_path).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.load_or_make(tmp_path)
    keys.key_file(tmp_path).chmod(0o600)
    keys.key_file(tmp_path).write_text("short\n")
    with pytest.raises(ConfigError, match="is no CURVE key"):
        keys.load_or_make(tmp_path)


@pytest.mark.parametrize(("name", "key"), [("../x", "a" * 40), ("", "a" * 40), ("x", "a" * 39), ("x", '"' * 40)])
def test_names_and_keys_that_are_none_are_refused(tmp_path, name, key):
    from nyx.errors import ConfigError

    with pytest.raises(ConfigError):
        keys.admit(tmp_path, name, key)
    assert keys.readers(tmp_path) == {}


def test_files_that_hold_no_key_admit_nobody(tmp_path):
    path = keys.admit(tmp_path, "good", zmq.curve_keypair()[0].decode())
    (path.parent / "junk").write_text("nothing\n")
    (path.parent / "binary").write_bytes(b"\xff" * 100)
    (path.parent / "long").write_text("a" * 5000)
    (path.parent / "folder").mkdir()
    (path.parent / "link").symlink_to(path)
    assert set(keys.readers(tmp_path).values()) == {"good"}

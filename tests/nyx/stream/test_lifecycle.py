"""Opening, answering, refusing, ending; ids that return; many streams at once; events."""

import pytest

from nyx.errors import LocalProtocolError
from nyx.stream import columns as c
from nyx.stream.engine import CLIENT_IDS, encode_host
from nyx.stream.inspect import connection_stats, stream_stats
from nyx.wire import frames as f
from tests.nyx.stream.simulator import RING, SECOND, Link, Network, make_streams


def kinds(end: object, row: int) -> list[int]:
    return [event.kind for event in end.events if event.stream == row]  # type: ignore[attr-defined]


def test_what_an_open_asks_for() -> None:
    net = Network()
    net.exit.answer = None
    for host, port in (("example.org", 443), ("192.0.2.1", 80), ("2001:db8::1", 22), (b"\x7f\0\0\1", 1)):
        net.client.streams.open_stream(0, 1, host, port, net.now)
    assert net.run(lambda: len(net.exit.ids) == 4)
    opened = [tuple(net.exit.streams.opened(row)) for row in sorted(net.exit.ids, key=net.exit.ids.__getitem__)]
    assert opened == [
        (1, 1, b"example.org", 443), (1, 4, b"\xc0\0\2\1", 80),
        (1, 6, b"\x20\1\x0d\xb8" + bytes(11) + b"\1", 22), (1, 4, b"\x7f\0\0\1", 1),
    ]  # fmt: skip
    row = next(iter(net.exit.ids))
    assert net.exit.streams.opening_since(row) == int(net.exit.streams.streams[row]["opened_at"])
    net.exit.streams.answer_open(row, 0)
    assert net.exit.streams.opening_since(row) is None


@pytest.mark.parametrize("host", ["", "with space", "ünï", "x" * 256, b"12345", "a/b"])
def test_hosts_that_no_open_can_carry(host: str | bytes) -> None:
    with pytest.raises(LocalProtocolError):
        encode_host(host)


def test_events_of_a_whole_life() -> None:
    net = Network()
    row = net.open()
    net.write(net.client, row, b"request")
    net.client.streams.finish(row)
    assert net.run(lambda: bool(net.exit.ids))
    peer = net.peer_row(net.client, row)
    net.write(net.exit, peer, b"answer")
    net.exit.streams.finish(peer)
    assert net.run(lambda: row in net.client.ended and peer in net.exit.ended)
    assert kinds(net.client, row) == [c.RESULT, c.READABLE, c.FINISHED, c.CLOSED]
    assert kinds(net.exit, peer)[:3] == [c.OPENED, c.READABLE, c.FINISHED]
    assert kinds(net.exit, peer)[-1] == c.CLOSED
    assert stream_stats(net.client.streams, row)["state"] == "closed"
    assert connection_stats(net.client.streams, 0)["bytes_in"] == len(b"answer")


@pytest.mark.parametrize("reply", [1, 2, 4, 5])
def test_a_refused_open_ends_both_parts_at_both_ends(reply: int) -> None:
    net = Network()
    net.exit.answer = reply
    row = net.open()
    net.write(net.client, row, b"early bytes")
    assert net.run(lambda: row in net.client.ended)
    assert [event.value for event in net.client.events if event.kind == c.RESULT] == [reply]
    for end in (net.client, net.exit):
        end.streams.release(next(iter(end.ids)))
    net.run(seconds=1)
    assert net.client.streams.free_rows == net.exit.streams.free_rows == 32


def test_no_rows_left_is_answered_by_refusal() -> None:
    net = Network(streams=64)
    small = Network(streams=2)
    net.exit = small.exit
    rows = [net.open() for _ in range(20)]
    assert net.run(lambda: sum(e.kind == c.RESULT for e in net.client.events) == 20)
    values = sorted(e.value for e in net.client.events if e.kind == c.RESULT)
    assert values == [0] * 2 + [1] * 18
    assert len(rows) == 20


def test_too_many_streams_of_one_connection() -> None:
    streams = make_streams(1, c.STREAMS_MAX + 8)
    streams.open_connection(client=True, now=SECOND, max_cells=100)
    for _ in range(c.STREAMS_MAX):
        streams.open_stream(0, 1, "a", 80, SECOND)
    with pytest.raises(LocalProtocolError):
        streams.open_stream(0, 1, "a", 80, SECOND)


def test_rows_and_connections_run_out_cleanly() -> None:
    streams = make_streams(2, 2)
    assert streams.open_connection(client=True, now=SECOND, max_cells=100) == 0
    assert streams.open_connection(client=True, now=SECOND, max_cells=100) == 1
    assert streams.open_connection(client=True, now=SECOND, max_cells=100) is None
    streams.open_stream(0, 1, "a", 80, SECOND)
    streams.open_stream(0, 1, "a", 80, SECOND)
    for connection, kind, port in ((0, 1, 80), (0, 2, 80), (0, 1, 0), (1, 1, 65536)):
        with pytest.raises(LocalProtocolError):
            streams.open_stream(connection, kind, "a", port, SECOND)


def test_two_hundred_small_requests_at_once(seed: int) -> None:
    net = Network(seed, Link(loss=0.01), Link(loss=0.01), streams=256)
    rows = [net.open(port=1 + i) for i in range(200)]
    for row in rows:
        net.write(net.client, row, b"GET %d" % row)
        net.client.streams.finish(row)
    answered: set[int] = set()

    def over() -> bool:
        for peer in [p for p in net.exit.ids if p not in answered and net.exit.read[p]]:
            answered.add(peer)
            net.write(net.exit, peer, b"answer to " + bytes(net.exit.read[peer]))
            net.exit.streams.finish(peer)
        return len(net.client.ended) == 200

    began = net.now
    assert net.run(over)
    assert (net.now - began) / SECOND < 1
    for row in rows:
        assert bytes(net.client.read[row]) == b"answer to GET %d" % row


def test_ids_return_after_all_others_and_not_before_their_rest() -> None:
    net = Network(streams=4)

    def once() -> int:
        row = net.open()
        number = int(net.client.streams.streams[row]["id"])
        assert net.run(lambda: number in net.exit.ids.values())
        peer = next(r for r, i in net.exit.ids.items() if i == number)
        net.client.streams.finish(row)
        net.exit.streams.finish(peer)
        assert net.run(lambda: row in net.client.ended and peer in net.exit.ended)
        for end, r in ((net.client, row), (net.exit, peer)):
            end.streams.release(r)
            end.ended.discard(r)
            end.ids.pop(r)
        return number

    assert [once() for _ in range(3)] == [2, 4, 6]
    net.client.streams.connections[0]["opened"] = CLIENT_IDS - 1
    assert once() == 2 * CLIENT_IDS
    with pytest.raises(LocalProtocolError):
        net.open()  # id 2 has not rested
    net.run(seconds=31)
    held = net.open()  # id 2 again, and it stays open
    assert net.client.ids[held] == 2
    net.run(seconds=31)
    assert [once() for _ in range(2)] == [4, 6]
    net.client.streams.connections[0]["opened"] = 2 * CLIENT_IDS
    with pytest.raises(LocalProtocolError):
        net.open()  # 2 is in use, 4 has not rested, and the others ended later


def test_a_late_copy_of_an_open_opens_nothing() -> None:
    net = Network()
    cells: list[bytes] = []
    net.client.tape = cells
    row = net.open()
    net.client.streams.finish(row)
    assert net.run(lambda: bool(net.exit.ids))
    peer = net.peer_row(net.client, row)
    net.exit.streams.finish(peer)
    assert net.run(lambda: row in net.client.ended and peer in net.exit.ended)
    net.exit.streams.release(peer)
    late = next(cell for cell in cells if any(isinstance(x, f.Open) for x in f.decode(cell[16:])))
    number = max(net.exit.seen) + 1
    assert net.deliver(net.exit, [number.to_bytes(8, "big") + late[8:]]) == 1
    assert net.exit.streams.free_rows == 32


def test_a_client_that_gives_up_before_the_answer() -> None:
    net = Network()
    net.exit.answer = None
    row = net.open()
    assert net.run(lambda: bool(net.exit.ids))
    net.client.streams.release(row)
    assert net.run(lambda: net.client.streams.free_rows == 32)
    peer = next(iter(net.exit.ids))
    assert c.RESET in kinds(net.exit, peer)
    net.exit.streams.answer_open(peer, 0)
    net.exit.streams.release(peer)
    assert net.run(lambda: net.exit.streams.free_rows == 32)


def test_stop_sending_is_answered_by_a_reset_with_its_code() -> None:
    net = Network()
    row = net.open()
    assert net.run(lambda: bool(net.client.events))
    peer = net.peer_row(net.client, row)
    net.client.streams.stop(row, 0x103)
    assert net.run(lambda: c.RESET in kinds(net.client, row))
    assert [e.value for e in net.exit.events if e.kind == c.STOPPED] == [0x103]
    assert [e.value for e in net.client.events if e.kind == c.RESET] == [0x103]
    net.client.streams.finish(row)
    assert net.run(lambda: row in net.client.ended and peer in net.exit.ended)


def test_a_closed_connection_ends_its_streams_and_frees_its_row() -> None:
    net = Network()
    rows = [net.open() for _ in range(3)]
    assert net.run(lambda: len(net.client.events) >= 3)
    assert net.client.streams.streams_on(0) == 3
    net.client.streams.close_connection(0)
    net._events(net.client)
    assert set(rows) <= net.client.ended
    assert [e.kind for e in net.client.closed] == [c.CONNECTION_CLOSED]
    assert int(net.client.streams.connections[0]["state"]) == c.FREE
    again = net.client.streams.open_connection(client=True, now=net.now, max_cells=100)
    assert again == 0
    for row in rows:
        net.client.streams.release(row)
    assert net.client.streams.free_rows == 32
    assert net.client.streams.streams_on(0) == 0


def test_a_full_ring_is_announced_when_a_quarter_is_free() -> None:
    net = Network()
    row = net.open()
    assert net.write(net.client, row, bytes(RING + 1)) == RING
    assert net.run(lambda: c.WRITABLE in kinds(net.client, row))
    s = net.client.streams.streams[row]
    assert int(s["tx_head"]) - int(s["tx_base"]) <= RING * 3 // 4


@pytest.mark.parametrize("ring", [1 << 19, (1 << 20) + 1])
def test_rings_that_cannot_be(ring: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        c.stream_columns(1, 1, ring)

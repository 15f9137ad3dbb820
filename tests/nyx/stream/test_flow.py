"""Windows: a slow reader stops the sender and loses nothing, streams share the connection's, and both grow with the reader."""

from nyx.stream import columns as c
from nyx.stream.inspect import stream_stats
from tests.nyx.stream.simulator import MS, Link, Network

MIB = 1 << 20


def pour(net: Network, row: int, size: int) -> None:
    """Write `size` more bytes, as fast as the ring takes them."""
    data = net.rng.randbytes(size)
    done = 0

    def all_written() -> bool:
        nonlocal done
        done += net.write(net.client, row, data[done:])
        return done == size

    assert net.run(all_written)


def test_a_slow_reader_stops_the_sender() -> None:
    net = Network()
    row = net.open()
    assert net.run(lambda: bool(net.client.events))
    net.exit.reading = False
    pour(net, row, MIB)
    net.run(seconds=1)
    peer = net.peer_row(net.client, row)
    assert stream_stats(net.exit.streams, peer)["unread"] == MIB
    pour(net, row, MIB)
    cells = net.client.cells
    net.run(seconds=5)
    assert net.client.cells - cells < 10  # only keep-alive
    assert stream_stats(net.exit.streams, peer)["unread"] == MIB
    assert stream_stats(net.client.streams, row)["waiting"] == MIB
    net.exit.reading = True
    assert net.run(lambda: len(net.exit.read[peer]) == 2 * MIB)
    net.check_read()


def test_a_lost_window_update_is_repeated(seed: int) -> None:
    net = Network(seed, back=Link(loss=0.5))
    row = net.open()
    assert net.run(lambda: bool(net.exit.ids))
    pour(net, row, 3 * MIB)
    peer = net.peer_row(net.client, row)
    assert net.run(lambda: len(net.exit.read[peer]) == 3 * MIB)


def test_streams_share_the_connections_window() -> None:
    net = Network(streams=16, cells=2000)
    net.exit.reading = False
    rows = [net.open() for _ in range(8)]
    assert net.run(lambda: len(net.exit.ids) == 8)
    for row in rows:
        pour(net, row, MIB)
    net.run(seconds=2)
    assert int(net.exit.streams.connections[0]["data_in"]) == c.CONNECTION_WINDOW
    assert int(net.client.streams.connections[0]["starved"]) > 0
    net.exit.reading = True
    peers = [net.peer_row(net.client, row) for row in rows]
    assert net.run(lambda: all(len(net.exit.read[peer]) == MIB for peer in peers))
    assert int(net.client.streams.connections[0]["starved"]) == 0
    net.check_read()


def test_a_fast_reader_gets_a_bigger_connection_window() -> None:
    net = Network(forth=Link(delay=20 * MS), back=Link(delay=20 * MS), cells=4000)
    rows = [net.open() for _ in range(4)]
    assert net.run(lambda: len(net.exit.ids) == 4)
    for _ in range(6):
        for row in rows:
            pour(net, row, MIB)
    assert int(net.exit.streams.connections[0]["window"]) > c.CONNECTION_WINDOW


def test_reset_and_stopped_streams_give_their_window_back() -> None:
    net = Network(streams=16)
    for how in ("reset", "stop", "release"):
        net.exit.reading = False
        row = net.open()
        assert net.run(lambda row=row: net.client.ids[row] in net.exit.ids.values())
        pour(net, row, MIB // 2)
        peer = net.peer_row(net.client, row)
        net.run(seconds=0.5)
        if how == "reset":
            net.client.streams.reset(row, 0x100)
            net.exit.streams.finish(peer)
        else:
            getattr(net.exit.streams, how)(peer, *([0x100] if how == "stop" else []))
            net.exit.streams.finish(peer)
        net.exit.reading = True
        net.run(seconds=2)
        for end, r in ((net.client, row), (net.exit, peer)):
            end.streams.release(r)
        net.run(seconds=1)
        taker = net.exit.streams.connections[0]
        assert int(taker["consumed"]) == int(taker["data_in"]), how
        assert net.client.streams.free_rows == net.exit.streams.free_rows == 16


def test_readers_that_stand_still_do_not_stop_the_others_of_a_client() -> None:
    """Their unread bytes fill the connection's window; a stream that is read goes on through many windows of its own."""
    net = Network(streams=16, cells=4000)
    *still, busy = [net.open() for _ in range(9)]
    assert net.run(lambda: len(net.exit.ids) == 9)
    net.client.reading = False
    for row in still:
        assert net.write(net.exit, net.peer_row(net.client, row), net.rng.randbytes(MIB)) == MIB
    net.run(seconds=3)
    assert [stream_stats(net.client.streams, row)["unread"] for row in still] == 8 * [MIB]
    data, peer, began = net.rng.randbytes(8 * MIB), net.peer_row(net.client, busy), net.now

    def carried() -> bool:
        net.consume(net.client, busy)
        done = len(net.exit.written[peer])
        net.write(net.exit, peer, data[done:])
        return len(net.client.read[busy]) == len(data)

    assert net.run(carried)
    assert net.now - began < 10_000 * MS
    assert bytes(net.client.read[busy]) == data
    net.client.reading = True
    assert net.run(lambda: all(len(net.client.read[row]) == MIB for row in still))
    net.check_read()


def test_a_streams_window_moves_with_its_reader_though_credit_is_ahead() -> None:
    net = Network()
    row = net.open()
    assert net.run(lambda: len(net.exit.ids) == 1)
    peer = net.peer_row(net.client, row)
    net.client.reading = False
    assert net.write(net.exit, peer, net.rng.randbytes(MIB)) == MIB
    net.run(seconds=1)
    stream = net.client.streams.streams[row]
    stream["rx_credit"] = stream["rx_ready"]  # as when the connection's window was half used
    net.client.reading = True
    assert net.write(net.exit, peer, net.rng.randbytes(MIB)) == MIB
    assert net.run(lambda: len(net.client.read[row]) == 2 * MIB, seconds=2)
    net.check_read()

"""Streams over a simulated network: what is written arrives, once, in order, whatever the network does."""

import pytest

from nyx.stream import columns as c
from nyx.stream import engine
from tests.nyx.stream.simulator import MS, RING, Link, Network


def transfer(net: Network, size: int, back: int = 0) -> None:
    row = net.open()
    data = net.rng.randbytes(size)
    sent = net.write(net.client, row, data)
    answer = net.rng.randbytes(back)
    done = 0

    def over() -> bool:
        nonlocal sent, done
        if sent < size:
            sent += net.write(net.client, row, data[sent:])
        if sent == size:
            net.client.streams.finish(row)
        if not net.exit.ids:
            return False
        peer = net.peer_row(net.client, row)
        if done < back:
            done += net.write(net.exit, peer, answer[done:])
        if done == back:
            net.exit.streams.finish(peer)
        return row in net.client.ended and peer in net.exit.ended

    assert net.run(over), (net.now, net.client.events[-5:], net.exit.events[-5:])
    peer = net.peer_row(net.client, row)
    assert bytes(net.exit.read[peer]) == data
    assert bytes(net.client.read[row]) == answer
    for end, r in ((net.client, row), (net.exit, peer)):
        end.streams.release(r)
        assert int(end.streams.streams[r]["state"]) == c.FREE


def test_both_ways() -> None:
    transfer(Network(), 30_000, 50_000)


@pytest.mark.parametrize("loss", [0.02, 0.05, 0.2])
def test_loss(loss: float, seed: int) -> None:
    net = Network(seed, Link(loss=loss), Link(loss=loss))
    transfer(net, 100_000, 100_000)
    assert net.client.link.lost + net.exit.link.lost


def test_reordering_and_duplicates(seed: int) -> None:
    net = Network(seed, Link(jitter=3 * MS, duplicate=0.1, in_order=False), Link(jitter=3 * MS, duplicate=0.1, in_order=False))
    transfer(net, 100_000, 100_000)


def test_a_stream_that_was_killed_before_its_target_was_written_never_was(monkeypatch) -> None:
    net = Network(5)
    with monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(engine, "start_stream", die)
        with pytest.raises(KeyboardInterrupt):
            net.open()
    columns = net.client.streams.columns
    half = columns["streams"]["state"] == c.OPENING
    assert half.sum() == 1
    columns["streams"]["port"][half] = 0  # as if killed one store earlier
    net.client.streams = engine.Streams(columns, RING)
    net.client.streams.rebuild(net.now)
    assert net.client.streams.free_rows == len(net.client.streams.streams)
    transfer(net, 1000)
    assert not net.client.closed

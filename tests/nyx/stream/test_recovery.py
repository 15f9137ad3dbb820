"""Loss, probes, spurious loss, silence: what RFC 9002 asks, in cells."""

import pytest

from nyx.stream import columns as c
from nyx.stream.congestion import MINIMUM_WINDOW
from nyx.stream.inspect import connection_stats
from nyx.wire import frames as f
from tests.nyx.stream.simulator import MS, SECOND, Link, Network


def established(seed: int = 1, forth: Link | None = None, back: Link | None = None) -> tuple[Network, int]:
    net = Network(seed, forth, back)
    row = net.open()
    assert net.run(lambda: bool(net.client.events))
    net.run(seconds=0.2)
    return net, row


def arrived(net: Network, row: int, size: int) -> bool:
    return len(net.exit.read[net.peer_row(net.client, row)]) == size


def test_a_lost_tail_comes_after_one_probe() -> None:
    net, row = established()
    net.client.link.loss = 1.0
    net.write(net.client, row, bytes(2000))
    net.step()
    began = net.now
    net.client.link.loss = 0.0
    assert net.run(lambda: arrived(net, row, 2000))
    assert net.now - began < 40 * MS
    assert connection_stats(net.client.streams, 0)["probed"] == 1
    assert connection_stats(net.client.streams, 0)["window_cells"] >= 32  # a probe timeout is no congestion


def test_probes_back_off_and_silence_ends_the_connection() -> None:
    net, row = established()
    net.client.link.loss = 1.0
    net.write(net.client, row, b"x")
    began = net.now
    assert net.run(lambda: bool(net.client.closed))
    assert net.client.closed[0].value == c.CLOSED_SILENT
    assert 29 < (net.now - began) / SECOND < 31
    assert 10 < connection_stats(net.client.streams, 0)["probed"] < 40
    assert c.CLOSED in {event.kind for event in net.client.events if event.stream == row}


def test_late_cells_undo_the_loss_that_they_seemed() -> None:
    net, row = established(forth=Link(delay=10 * MS))
    net.write(net.client, row, bytes(1 << 20))
    net.run(lambda: int(net.client.streams.connections[0]["flight"]) > 100)
    window = float(net.client.streams.connections[0]["cwnd"])
    held = [item for item in net.flying if item[2]][:20]  # twenty cells take another way
    net.flying = [item for item in net.flying if item not in held]
    net.flying += [(item[0] + 15 * MS, *item[1:]) for item in held]
    net.flying.sort()
    assert net.run(lambda: connection_stats(net.client.streams, 0)["spurious"] > 0)
    assert net.run(lambda: arrived(net, row, 1 << 20))
    stats = connection_stats(net.client.streams, 0)
    assert stats["reductions"] == 1
    assert stats["window_cells"] >= int(window)
    assert int(net.client.streams.connections[0]["reorder"]) > 3


def test_persistent_congestion_begins_anew() -> None:
    net, row = established(forth=Link(delay=5 * MS), back=Link(delay=5 * MS))
    net.write(net.client, row, bytes(1 << 20))
    net.run(lambda: int(net.client.streams.connections[0]["flight"]) > 60)
    net.client.link.loss = 1.0
    net.run(seconds=0.4)
    net.client.link.loss = 0.0
    assert net.run(lambda: connection_stats(net.client.streams, 0)["lost"] > 20)
    assert net.run(lambda: arrived(net, row, 1 << 20))
    assert float(net.client.streams.connections[0]["cwnd"]) >= MINIMUM_WINDOW


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.4])
def test_few_cells_beyond_what_the_loss_costs(loss: float, seed: int) -> None:
    net, row = established(seed)
    net.client.link.loss = net.exit.link.loss = loss
    size = 300_000
    cells = net.client.cells
    net.write(net.client, row, bytes(size))
    assert net.run(lambda: arrived(net, row, size), limit=60_000)
    assert net.client.cells - cells < size / 1198 / (1 - loss) * 1.25 + 20


def test_acks_are_few_and_in_time() -> None:
    net, row = established()
    before = connection_stats(net.exit.streams, 0)["acks_out"]
    net.write(net.client, row, bytes(1 << 20))
    assert net.run(lambda: arrived(net, row, 1 << 20))
    assert connection_stats(net.exit.streams, 0)["acks_out"] - before < (1 << 20) / 1198 / 6
    net.run(seconds=1)
    began = net.now
    net.write(net.client, row, b"x")
    assert net.run(lambda: int(net.client.streams.connections[0]["flight"]) == 0 and arrived(net, row, (1 << 20) + 1))
    assert net.now - began < 7 * MS  # a round trip of 2 ms and at most 5 ms of delay


def test_keep_alive_and_idle() -> None:
    net, _ = established()
    net.run(seconds=400)
    assert not net.client.closed
    assert not net.exit.closed
    assert 20 < net.client.cells < 120
    net.client.link.loss = net.exit.link.loss = 1.0
    assert net.run(lambda: bool(net.client.closed) and bool(net.exit.closed), seconds=200)
    assert net.exit.closed[0].value == c.CLOSED_SILENT


def test_pings_challenges_and_close() -> None:
    net, _ = established()
    net.client.streams.ping(0, 0x1234)
    assert net.run(lambda: any(e.kind == c.PONG and e.value == 0x1234 for e in net.client.events))
    number = max(net.exit.seen) + 1
    token = bytes(range(16))
    net.deliver(
        net.exit, [number.to_bytes(8, "big") + bytes(8) + f.encode([f.PathChallenge(token), f.LocalizedString("en", "x")])]
    )
    cells: list[bytes] = []
    net.exit.tape = cells
    net.run(seconds=0.01)
    assert any(f.PathResponse(token) in f.decode(cell[16:]) for cell in cells)
    net.exit.streams.close_connection(0, 6, tell=True)
    assert net.run(lambda: bool(net.client.closed) and bool(net.exit.closed))
    assert net.client.closed[0].value == 6
    for end in (net.client, net.exit):
        end.streams.close_connection(0)
        assert int(end.streams.connections[0]["state"]) == c.FREE

"""The window finds the rate of a bottleneck without overrunning it for long, and stays within its bounds."""

import pytest

from nyx.stream.inspect import connection_stats
from tests.nyx.stream.simulator import MS, SECOND, Link, Network

MIB = 1 << 20


def upload(net: Network, size: int) -> float:
    """Carry `size` bytes; returns bytes a second."""
    row = net.open()
    assert net.run(lambda: bool(net.client.events))
    data, done = bytes(65536), 0
    began = net.now

    def over() -> bool:
        nonlocal done
        while done < size and (n := net.write(net.client, row, data[: size - done])):
            done += n
        return done == size and len(net.exit.read[net.peer_row(net.client, row)]) == size

    assert net.run(over, limit=200_000)
    return size / (net.now - began) * SECOND


@pytest.mark.parametrize(
    ("delay", "queue", "cells", "least"),
    [
        (MS // 8, 190, 1600, 50e6),
        (MS // 8, 1200, 1600, 50e6),
        (MS, 190, 180, 50e6),
        (20 * MS, 190, 1600, 10e6),  # one window of 1 MiB a round trip is 26 MB/s
    ],
)
def test_a_bottleneck_is_used_and_not_flooded(delay: int, queue: int, cells: int, least: float) -> None:
    """10 us a cell is 120 MB/s; 190 cells are what the default socket buffer of a stock system holds."""
    link = Link(delay=delay, cell_time=10_000, queue=queue)
    net = Network(forth=link, back=Link(delay=delay), cells=cells)
    assert upload(net, 6 * MIB) > least
    assert link.overrun < 2 * queue + 0.01 * net.client.cells  # one overshoot of slow start, then little
    assert connection_stats(net.client.streams, 0)["window_cells"] <= cells
    if cells < queue:
        assert link.overrun == 0


def test_jitter_of_shared_cores_does_not_collapse_the_rate(seed: int) -> None:
    """Several milliseconds of scheduling on a path of 0.3 ms: nothing is lost, so the rate follows the window."""
    net = Network(seed, Link(delay=MS // 8, jitter=6 * MS), Link(delay=MS // 8, jitter=6 * MS), cells=1000)
    rate = upload(net, 6 * MIB)
    stats = connection_stats(net.client.streams, 0)
    assert stats["lost"] == stats["spurious"] == 0
    assert stats["window_cells"] >= 128
    assert rate > 10e6


def test_an_idle_application_does_not_grow_the_window() -> None:
    net = Network()
    row = net.open()
    assert net.run(lambda: bool(net.client.events))
    for _ in range(50):
        net.write(net.client, row, bytes(3000))
        net.run(seconds=0.05)
    assert connection_stats(net.client.streams, 0)["window_cells"] <= 40


def test_pacing_spreads_a_window_over_the_round_trip() -> None:
    net = Network(forth=Link(delay=50 * MS), back=Link(delay=50 * MS), cells=1000)
    upload(net, MIB)
    row = next(iter(net.client.ids))
    net.run(seconds=1)
    net.write(net.client, row, bytes(MIB))
    before = net.client.cells
    net._send(net.client)
    assert net.client.cells - before < 0.5 * connection_stats(net.client.streams, 0)["window_cells"]


def test_two_connections_share_fairly() -> None:
    """Two circuits through one queue: neither starves."""
    link = Link(delay=MS, cell_time=10_000, queue=190)
    nets = [Network(seed, link, Link(delay=MS), cells=1000) for seed in (1, 2)]
    rows = [net.open() for net in nets]
    for _ in range(4000):
        for net, row in zip(nets, rows, strict=True):
            if net.exit.ids:
                net.write(net.client, row, bytes(65536))
        nets[0].now = nets[1].now = min(net.now for net in nets)
        for net in nets:
            net.step()
    got = sorted(sum(len(r) for r in net.exit.read.values()) for net in nets)
    assert got[0] > 0.2 * got[1]

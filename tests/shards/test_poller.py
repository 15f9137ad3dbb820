"""Ready descriptors, limits and wake-ups."""

import os
import select
import time

import pytest

from shards.poller import Poller, drain, fine_timers, make_event, signal


@pytest.fixture(params=[True, False], ids=["nanoseconds", "milliseconds"])
def poller(request: pytest.FixtureRequest) -> Poller:
    made = Poller()
    if not request.param:
        made.state[0] = 1
    return made


def test_ready_descriptors_come_with_their_masks(poller: Poller) -> None:
    reader, writer = os.pipe()
    poller.register(reader, select.EPOLLIN)
    poller.register(writer, select.EPOLLOUT)
    assert poller.wait(0) == 1
    assert (int(poller.fds[0]), int(poller.events[0])) == (writer, select.EPOLLOUT)
    os.write(writer, b"x")
    n = poller.wait(-1)
    assert {int(fd): int(mask) for fd, mask in zip(poller.fds[:n], poller.events[:n], strict=True)} == {
        reader: select.EPOLLIN,
        writer: select.EPOLLOUT,
    }
    poller.unregister(writer)
    poller.modify(reader, 0)
    os.close(writer)
    assert poller.wait(0) == 1
    assert int(poller.events[0]) & select.EPOLLHUP
    os.close(reader)
    poller.close()


def test_a_limit_is_kept(poller: Poller) -> None:
    fine_timers()
    before = time.monotonic_ns()
    assert poller.wait(300_000) == 0
    assert 300_000 <= time.monotonic_ns() - before < 2_000_000_000
    assert poller.precise == (poller.state[0] == 0)
    poller.close()


def test_an_event_is_readable_until_drained(poller: Poller) -> None:
    event = make_event()
    poller.register(event, select.EPOLLIN)
    assert poller.wait(0) == 0
    signal(event)
    signal(event)
    assert poller.wait(-1) == 1
    assert drain(event)
    assert not drain(event)
    assert poller.wait(0) == 0
    os.close(event)
    poller.close()


def test_an_error_is_raised(poller: Poller) -> None:
    fd = poller.fileno()
    poller.epoll.close()
    assert fd >= 0
    with pytest.raises((OSError, ValueError)):
        poller.wait(0)

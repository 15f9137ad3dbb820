"""When a control channel gives its peer up: silence ends it, useless noise ends it later, loss alone never does."""

import itertools
import random
from collections.abc import Callable

import numpy as np

from nyx.link import channel as c
from nyx.link.channel import CONTROL, Channel, ChannelState, Failed
from nyx.link.frames import Settings, encode
from tests.nyx.link.test_channel import MS, End, cell


def until_closed(a: End, now: int = 0, every: Callable[[int], object] = lambda _: None) -> int:
    """Let time pass, with `every` called at each wake-up, until the channel ends; when it did."""
    while a.channel.state is ChannelState.OPEN:
        a.transmit(now)
        now = a.channel.poll_timeout() or now
        every(now)
        a.channel.handle_timeout(now)
    return now


def test_a_peer_that_is_heard_has_time_though_one_packet_fails_often():
    a, b, now = End(rtt=1 * MS), End(rtt=1 * MS), 0

    def ping(now):
        b.channel.send_frames([Settings(1, 2)])
        for packet in b.transmit(now):
            a.receive(packet, now)

    a.channel.send_cell(1, 0, 77, cell(1))
    for _ in range(20):  # more copies than a silent peer is sent
        a.transmit(a.channel.poll_timeout() or 0)
        now = a.channel.poll_timeout() or 0
        ping(now)
        a.channel.handle_timeout(now)
    assert a.channel.state is ChannelState.OPEN
    b.receive(a.transmit(now)[0], now)
    for packet in b.transmit(now + c.ACK_DELAY):
        a.receive(packet, now + c.ACK_DELAY)
    assert a.channel.waiting == 0


def test_a_peer_that_is_heard_and_acknowledges_nothing_is_given_up():
    a, number = End(rtt=1 * MS), itertools.count()

    def replay(now):
        body = (bytes(4) + encode([Settings(1, 2)])).ljust(1228, b"\0")
        a.channel.receive(0x40, 0, next(number), body, now)

    a.channel.send_cell(1, 0, 77, cell(1))
    end = until_closed(a, every=replay)
    assert c.UNACKNOWLEDGED <= end < c.UNACKNOWLEDGED + c.RETRY_CAP
    assert Failed((77,)) in list(iter(a.channel.next_event, None))


def test_a_peer_is_silent_from_the_last_packet_that_came():
    a, b = End(rtt=1 * MS), End(rtt=1 * MS)
    late: list[int] = []

    def once(now):
        if now > 2000 * MS and not late:
            late.append(now)
            b.channel.send_frames([Settings(1, 2)])
            a.receive(b.transmit(now)[0], now)

    a.channel.send_cell(1, 0, 77, cell(1))
    assert 0 <= until_closed(a, every=once) - (late[0] + c.SILENCE) < c.RETRY_CAP


def test_thirty_of_a_hundred_lost_both_ways_end_no_channel():
    rng = random.Random(7)
    for _ in range(40):
        a, b, now = End(rtt=2 * MS), End(rtt=2 * MS), 0
        for slot in range(100):
            a.channel.send_cell(1, slot % 7, slot + 1, cell(slot))
        while a.channel.waiting:
            for source, target in ((a, b), (b, a)):
                source.channel.handle_timeout(now)
                for packet in source.transmit(now):
                    if rng.random() > 0.3:
                        target.receive(packet, now)
            now += 5 * MS
        assert a.channel.state is b.channel.state is ChannelState.OPEN
        assert sorted(event.circuit for event in b.got) == list(range(1, 101))
        assert now < 20_000 * MS


def test_what_an_earlier_life_left_is_given_its_time_from_this_life_on():
    memory, born = np.zeros(1, CONTROL)[0], 10**15
    a = End()
    a.channel = Channel(1 * MS, memory)
    a.channel.send_cell(1, 0, 77, cell(1))
    a.transmit(born)
    a.channel = Channel.resume(memory, 1 * MS)
    a.channel.handle_timeout(born)
    assert a.channel.state is ChannelState.OPEN
    assert born + c.SILENCE <= until_closed(a, born) < born + c.SILENCE + c.RETRY_CAP

"""The control channel on a wire that loses, repeats, delays and reorders: exactly once, bounded, and both ends end equal."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nyx.errors import LocalProtocolError
from nyx.link import channel as c
from nyx.link.channel import CellReceived, Channel, ChannelState, Failed, FrameReceived, Outgoing, Violation
from nyx.link.frames import Close, Destroy, LinkAck, Ping, Pong, ReceiveWindow, Settings, decode, encode
from nyx.wire.codes import Drop, ErrorCode

MS = c.MS


class End:
    """A channel, the packet numbers of its session, and what it sent and got."""

    def __init__(self, rtt=10 * MS):
        self.channel = Channel(rtt)
        self.number = 0
        self.sent: list[int] = []
        self.got: list[Any] = []

    def transmit(self, now):
        """Every packet it wants to send now, as (number, outgoing)."""
        found = []
        while (out := self.channel.poll_transmit(now)) is not None:
            assert len(out.payload) == out.length == 1228
            found.append((self.number, out))
            self.number += 1
        return found

    def receive(self, packet, now):
        number, out = packet
        drop = self.channel.receive(out.header_byte, out.path_byte, number, out.payload, now)
        while (event := self.channel.next_event()) is not None:
            self.got.append(event)
        return drop


def cell(number):
    return number.to_bytes(8, "big") * 153


def pump(a, b, now, rounds=40, step=5 * MS):
    """Deliver everything both ways, no losses, until neither has anything pending."""
    for _ in range(rounds):
        for source, target in ((a, b), (b, a)):
            source.channel.handle_timeout(now)
            for packet in source.transmit(now):
                target.receive(packet, now)
        now += step
        if a.channel.poll_timeout() is None and b.channel.poll_timeout() is None:
            break
    return now


def test_cells_and_frames_arrive_and_both_ends_rest():
    a, b = End(), End()
    for slot in range(7):
        assert a.channel.send_cell(1, slot, 0x80000001, cell(slot)) == slot
    control = b.channel.send_frames([Destroy(5, 1), ReceiveWindow(192)])
    now = pump(a, b, 0)
    assert b.got == [CellReceived(1, slot, 0x80000001, cell(slot)) for slot in range(7)]
    assert a.got == [FrameReceived(Destroy(5, 1)), FrameReceived(ReceiveWindow(192))]
    assert b.channel.acknowledged(control)
    assert a.channel.poll_timeout() is b.channel.poll_timeout() is None
    assert a.channel.poll_transmit(now) is None


def test_one_acknowledgement_for_the_seven_cells_of_a_build():
    a, b = End(), End()
    for slot in range(7):
        a.channel.send_cell(1, slot, 9, cell(slot))
    for packet in a.transmit(0):
        b.receive(packet, 0)
    acks = b.transmit(0)
    assert [decode(out.payload[4:]) for _, out in acks] == [[LinkAck(6, 0b111111)]]
    assert acks[0][1].header_byte == 0x41
    assert acks[0][1].path_byte == 0


def test_a_lone_arrival_is_acknowledged_within_the_delay():
    a, b = End(), End()
    a.channel.send_frames([Settings(1, 2)])
    b.receive(a.transmit(0)[0], 0)
    assert b.transmit(0) == []
    assert b.channel.poll_timeout() == c.ACK_DELAY
    assert len(b.transmit(c.ACK_DELAY)) == 1


def test_retransmission_times_and_failure():
    a = End(rtt=1 * MS)
    a.channel.send_cell(1, 0, 77, cell(1))
    now, times = 0, []
    while True:
        times += [now] * len(a.transmit(now))
        due = a.channel.poll_timeout()
        if due is None:
            break
        now = due
        a.channel.handle_timeout(now)
    gaps = [(y - x) // MS for x, y in itertools.pairwise(times)]
    assert gaps[:6] == [20, 40, 80, 160, 250, 250]
    assert set(gaps[6:]) == {250}
    assert c.SILENCE <= now < c.SILENCE + c.RETRY_CAP
    assert a.channel.next_event() == Failed((77,))
    assert a.channel.state is ChannelState.CLOSED
    assert a.channel.send_frames([Ping(1)]) == -1


def test_the_first_retry_follows_the_round_trip():
    a, b = End(rtt=100 * MS), End()
    a.channel.send_frames([Settings(1, 2)])
    a.transmit(0)
    assert a.channel.poll_timeout() == 300 * MS
    for _ in range(60):
        a.channel.send_frames([Settings(1, 2)])
        for packet in a.transmit(0):
            b.receive(packet, 8 * MS)
        for packet in b.transmit(10 * MS):
            a.receive(packet, 10 * MS)
    assert 10 * MS <= a.channel.srtt < 12 * MS


def test_a_long_round_trip_is_not_cut_by_the_cap():
    a = End(rtt=400 * MS)
    a.channel.send_frames([Settings(1, 2)])
    now, times = 0, []
    while a.channel.state is ChannelState.OPEN:
        times += [now] * len(a.transmit(now))
        now = a.channel.poll_timeout() or 0
        a.channel.handle_timeout(now)
    assert [(y - x) // MS for x, y in itertools.pairwise(times)] == [1200] * 7


def test_a_second_look_at_the_clock_sends_nothing_twice():
    a = End()
    a.channel.send_frames([Settings(1, 2)])
    a.transmit(0)
    for _ in range(3):
        a.channel.handle_timeout(40 * MS)
    assert len(a.transmit(40 * MS)) == 1


@pytest.mark.parametrize("pings", [1, 134, 135, 136])
def test_an_acknowledgement_rides_where_it_fits(pings):
    """1,224 bytes of frames hold 136 pings, or 134 and a LINK_ACK."""
    a, b = End(), End()
    a.channel.send_frames([Settings(1, 2)])
    b.receive(a.transmit(0)[0], 0)
    b.channel.send_frames([Ping(n) for n in range(pings)])
    [(_, out)] = b.transmit(0)
    frames = decode(out.payload[4:])
    assert frames == [LinkAck(0, 0)] * (pings <= 134) + [Ping(n) for n in range(pings)]
    assert len(b.transmit(c.ACK_DELAY)) == (pings > 134)


def test_ping_is_answered_once_and_pong_never():
    a, b = End(), End()
    a.channel.send_frames([Ping(n) for n in range(100)])
    pump(a, b, 0)
    assert b.got == []
    assert a.got == [FrameReceived(Pong(n)) for n in range(100)]


def test_a_packet_held_back_past_256_others_is_not_taken_for_a_new_one():
    """The attack of the module's head: delay one copy, let its twin through, release it when its low 8 bits return."""
    a, b = End(), End()
    a.channel.send_cell(1, 0, 1, cell(0))
    held = a.transmit(0)[0]
    now = 30 * MS
    a.channel.handle_timeout(now)
    b.receive(a.transmit(now)[0], now)
    now = pump(a, b, now)
    for number in range(1, 256 + 1):
        a.channel.send_cell(1, number % 7, 1, cell(number))
        if number == 256:
            break
        now = pump(a, b, now)
    fresh = a.transmit(now)[0]
    assert fresh[1].path_byte == held[1].path_byte == 0
    before = repr(b.channel)
    assert b.receive(held, now) == Drop.REPLAYED
    assert repr(b.channel) == before
    assert b.receive(fresh, now) == Drop.OK
    assert [int.from_bytes(event.cell[:8], "big") for event in b.got] == list(range(257))


@pytest.mark.parametrize("later", [1, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 400])
def test_a_copy_that_comes_much_later_is_dropped(later):
    a, b = End(), End()
    a.channel.send_cell(1, 0, 1, cell(0))
    held = a.transmit(0)[0]
    a.channel.handle_timeout(30 * MS)
    b.receive(a.transmit(30 * MS)[0], 30 * MS)
    now = pump(a, b, 30 * MS)
    for number in range(1, later + 1):
        a.channel.send_cell(1, number % 7, 1, cell(number))
        now = pump(a, b, now)
    assert b.receive(held, now) == Drop.REPLAYED
    assert len(b.got) == later + 1


def test_the_round_trip_is_not_taken_from_a_retransmission():
    a, b = End(rtt=10 * MS), End()
    a.channel.send_frames([Destroy(1, 0)])
    packet = a.transmit(0)[0]
    a.channel.handle_timeout(40 * MS)
    a.transmit(40 * MS)
    b.receive(packet, 40 * MS)
    a.receive(b.transmit(60 * MS)[0], 60 * MS)
    assert a.channel.acknowledged(0)
    assert a.channel.srtt == 10 * MS


@pytest.mark.parametrize("round_", range(6))
def test_long_runs_on_a_wire_that_holds_packets_back(seed, round_):
    """Thousands of packets; some copies are released hundreds of packets later. Everything arrives exactly once."""
    rng = random.Random(seed + round_)
    ends, now, serial = [End(), End()], 0, 0
    held: list[list[tuple[int, Outgoing]]] = [[], []]
    for _ in range(1500):
        now += rng.randrange(1, 8) * MS
        for side in (0, 1):
            mine, yours = ends[side], ends[1 - side]
            for _ in range(rng.choice((0, 1, 3, 9))):
                serial += 1
                if mine.channel.send_cell(1, serial % 7, serial, cell(serial)) >= 0:
                    mine.sent.append(serial)
            mine.channel.handle_timeout(now)
            for packet in mine.transmit(now):
                if rng.random() < 0.1:
                    held[side].append(packet)
                else:
                    yours.receive(packet, now)
            while held[side] and rng.random() < 0.2:
                yours.receive(held[side].pop(rng.randrange(len(held[side]))), now)
            mine.channel.check_invariants()
    now = pump(ends[0], ends[1], now, rounds=2000)
    for side in (0, 1):
        for packet in held[side]:
            ends[1 - side].receive(packet, now)
        assert [event.circuit for event in ends[1 - side].got if event.cell != cell(event.circuit)] == []
        assert sorted(event.circuit for event in ends[1 - side].got) == ends[side].sent
    assert len(ends[0].sent) > 3000


def test_duplicates_are_acknowledged_again_at_once():
    a, b = End(), End()
    a.channel.send_frames([Destroy(1, 0)])
    first = a.transmit(0)[0]
    b.receive(first, 0)
    b.transmit(c.ACK_DELAY)
    a.channel.handle_timeout(40 * MS)
    again = a.transmit(40 * MS)[0]
    assert again[1].path_byte == first[1].path_byte
    assert b.receive(again, 40 * MS) == Drop.REPLAYED
    assert len(b.transmit(40 * MS)) == 1
    assert b.got == [FrameReceived(Destroy(1, 0))]


def test_never_more_than_64_open_and_the_queue_is_bounded():
    a = End()
    taken = [a.channel.send_cell(2, 0, 3, cell(i)) for i in range(c.QUEUE_LIMIT + 5)]
    assert taken.count(-1) == 5
    assert len(a.transmit(0)) == c.CONTROL_FLIGHT
    a.channel.check_invariants()


BAD = {
    "type 2": (0x80, 0, bytes(1228), Drop.BAD_HEADER),
    "data cell": (0x00, 0, b"\0\0\0\1" + bytes(1224), Drop.BAD_HEADER),
    "refresh": (0x38, 0, b"\0\0\0\1" + bytes(1224), Drop.BAD_HEADER),
    "slot 7": (0x0F, 0, b"\0\0\0\1" + bytes(1224), Drop.BAD_HEADER),
    "parity": (0x28, 0, b"\0\0\0\1" + bytes(1224), Drop.BAD_HEADER),
    "build on circuit 0": (0x08, 0, bytes(1228), Drop.BAD_HEADER),
    "frames on a circuit": (0x40, 0, b"\0\0\0\1" + bytes(1224), Drop.BAD_HEADER),
    "unnumbered with a number": (0x41, 1, bytes(1228), Drop.BAD_HEADER),
    "slot 2": (0x42, 0, bytes(1228), Drop.BAD_HEADER),
    "too far ahead": (0x40, 64, bytes(1228), Drop.REPLAYED),
    "before 0": (0x40, 255, bytes(1228), Drop.REPLAYED),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_change_nothing(name):
    header, path, payload, drop = BAD[name]
    b = End()
    before = repr(vars(b.channel))
    assert b.channel.receive(header, path, 1, payload, 0) == drop
    assert b.channel.next_event() is None
    assert b.channel.poll_transmit(1 << 60) is None
    assert repr(vars(b.channel)) == before


VIOLATIONS = {
    "unknown type": (0x40, bytes([0x55]), ErrorCode.PROTOCOL_VIOLATION),
    "cut short": (0x40, b"\x30" * 1224, ErrorCode.PROTOCOL_VIOLATION),
    "fec": (0x40, bytes.fromhex("0e0000000000000000" + "0a03"), ErrorCode.UNSUPPORTED_CAP),
    "acknowledges what was never sent": (0x41, encode([LinkAck(0, 0)]), ErrorCode.PROTOCOL_VIOLATION),
    "asks unnumbered": (0x41, encode([Ping(1)]), ErrorCode.PROTOCOL_VIOLATION),
    "good frame before a bad one": (0x40, encode([Destroy(1, 1)]) + b"\x77", ErrorCode.PROTOCOL_VIOLATION),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violations_close_and_apply_nothing(name):
    header, frames, code = VIOLATIONS[name]
    b = End()
    payload = (bytes(4) + frames).ljust(1228, b"\0")
    assert b.channel.receive(header, 0, 0, payload, 0) == Drop.BAD_FRAME
    event = b.channel.next_event()
    assert isinstance(event, Violation)
    assert event.code == code
    assert b.channel.next_event() is None
    [(_, out)] = b.transmit(0)
    assert decode(out.payload[4:]) == [Close(code)]
    assert out.header_byte == c.HEADER_UNNUMBERED
    assert b.channel.poll_transmit(1 << 60) is None
    assert b.channel.poll_timeout() is None


def test_an_acknowledgement_below_zero_is_a_violation():
    a, b = End(), End()
    a.channel.send_frames([Ping(1)])
    a.transmit(0)
    b.channel._arrivals.largest, b.channel._arrivals.bitmap, b.channel._ack_due = 0, 1, 0
    a.receive(b.transmit(0)[0], 0)
    assert isinstance(a.got[0], Violation)


def test_close_is_sent_once_and_never_answered():
    a, b = End(), End()
    a.channel.send_cell(1, 0, 5, cell(1))
    a.channel.close(ErrorCode.NO_ERROR, b"bye")
    [packet] = a.transmit(0)
    assert a.transmit(1 << 50) == []
    b.receive(packet, 0)
    assert b.got == [FrameReceived(Close(0, b"bye"))]
    assert b.transmit(1 << 50) == []
    assert b.receive(packet, 0) == Drop.NOT_READY


def test_what_callers_may_not_send():
    channel = Channel()
    for wrong in ([], [LinkAck(0, 0)], [Close(0)]):
        with pytest.raises(LocalProtocolError):
            channel.send_frames(wrong)
    for kind, slot, circuit, size in ((0, 0, 1, 1224), (3, 0, 0, 1224), (1, 0, 0, 1224), (1, 0, 1, 1223)):
        with pytest.raises(LocalProtocolError):
            channel.send_cell(kind, slot, circuit, bytes(size))


class Channels(RuleBasedStateMachine):
    """Two ends; the wire holds packets as long as it likes and delivers each packet number at most once, as the link does."""

    @initialize()
    def start(self):
        self.now = 0
        self.serial = 0
        self.ends = [End(), End()]
        self.wires: list[list[tuple[int, Outgoing]]] = [[], []]  # towards end 1, towards end 0

    @rule(side=st.integers(0, 1), count=st.integers(1, 80))
    def send(self, side, count):
        for _ in range(count):
            self.serial += 1
            if self.serial % 3:
                taken = self.ends[side].channel.send_cell(1 + side, self.serial % 7, self.serial, cell(self.serial))
            else:
                taken = self.ends[side].channel.send_frames([Destroy(self.serial, side)])
            if taken >= 0:
                self.ends[side].sent.append(self.serial)

    @rule(side=st.integers(0, 1))
    def transmit(self, side):
        self.wires[side] += self.ends[side].transmit(self.now)

    @precondition(lambda self: any(self.wires))
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "deliver", "deliver", "lose"]), count=st.integers(1, 100))
    def wire(self, data, fate, count):
        side = 0 if self.wires[0] and (not self.wires[1] or data.draw(st.booleans())) else 1
        shuffle = random.Random(data.draw(st.integers(0, 1 << 16)))
        for _ in range(min(count, len(self.wires[side]))):
            packet = self.wires[side].pop(shuffle.randrange(len(self.wires[side])) if count % 2 else 0)
            if fate == "deliver":
                self.ends[1 - side].receive(packet, self.now)

    @rule(step=st.integers(1, 60))
    def wait(self, step):
        self.now += step * MS
        for end in self.ends:
            end.channel.handle_timeout(self.now)
            while (event := end.channel.next_event()) is not None:
                end.got.append(event)

    @rule(keep=st.integers(0, 3))
    def settle(self, keep):
        """Deliver everything but `keep` held-back packets in each direction, until quiet."""
        for _ in range(30):
            for side in (0, 1):
                self.wires[side] += self.ends[side].transmit(self.now)
                held, flowing = self.wires[side][:keep], self.wires[side][keep:]
                self.wires[side] = held
                for packet in flowing:
                    self.ends[1 - side].receive(packet, self.now)
            self.now += 3 * MS

    def failed(self):
        return any(isinstance(event, Failed) for end in self.ends for event in end.got)

    @invariant()
    def exactly_once(self):
        if not hasattr(self, "ends"):
            return
        for side in (0, 1):
            self.ends[side].channel.check_invariants()
            serials = [self.serial_of(event) for event in self.ends[side].got if not isinstance(event, Failed)]
            assert len(set(serials)) == len(serials), "nothing is delivered twice"
            assert set(serials) <= set(self.ends[1 - side].sent), "nothing is invented"

    @staticmethod
    def serial_of(event):
        if isinstance(event, CellReceived):
            assert event.cell == cell(event.circuit)
            assert event.slot == event.circuit % 7
            return event.circuit
        return event.frame.circuit

    def teardown(self):
        if not hasattr(self, "ends") or self.failed():
            return
        self.wires = [[], []]
        for _ in range(400):
            for end in self.ends:
                end.channel.handle_timeout(self.now)
            self.settle(0)
            self.now += 30 * MS
            if self.failed() or all(end.channel.poll_timeout() is None for end in self.ends):
                break
        if self.failed():
            return
        one, two = (end.channel for end in self.ends)
        for mine, yours in ((one, two), (two, one)):
            assert mine._items == {}
            assert mine._base == mine._sent_next == mine._next == yours._arrivals.largest + 1
        for side in (0, 1):
            assert sorted(map(self.serial_of, self.ends[side].got)) == sorted(self.ends[1 - side].sent)


Channels.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestChannels = Channels.TestCase


def test_copies_after_the_first_are_counted():
    channel = Channel()
    channel.send_frames([Ping(1)])
    now = 0
    for copies in range(3):
        assert channel.poll_transmit(now) is not None
        assert channel.retransmitted == copies
        now = channel.poll_timeout() or 0
        channel.handle_timeout(now)

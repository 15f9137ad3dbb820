"""The link handshake: both ends agree, agree with the twin, and nothing altered, late, early or repeated gets anything."""

import random
import struct
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nyx.columns import allocate
from nyx.crypto.keys import StaticKeys
from nyx.errors import LocalProtocolError
from nyx.link import handshake
from nyx.link.handshake import HandshakeError, Initiator, check_mac1, respond
from nyx.link.initiations import ReplayTable, replay_columns
from nyx.wire.codes import Drop
from tests.reference import link_handshake as twin

NOW = 1_900_000_000
ENTROPY = random.Random(7).randbytes
RELAY = StaticKeys.generate(ENTROPY)
PEER_RELAY = StaticKeys.generate(ENTROPY)
DIRECTORY = {k.public.link_x25519: k.public for k in (RELAY, PEER_RELAY)}
FROM_BOTH = [1, 2]


def cids(rng):
    return [rng.randbytes(12) for _ in range(4)]


def initiate(rng, me=None, suites=FROM_BOTH, wall=NOW, peer=RELAY):
    return Initiator(peer.public, me, suites, cids(rng), rng.randbytes, wall)


def answer(packet, rng, suites=FROM_BOTH, wall=NOW, me=RELAY, window=192, started=0):
    return respond(packet, me, suites, cids(rng), rng.randbytes, wall, DIRECTORY.get, window, started)


def twin_node(keys):
    return twin.node(keys.public.node_id, keys.link.to_bytes()[:32], keys.link.kem.seed)


def flip(packet, bit):
    out = bytearray(packet)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


@pytest.mark.parametrize("me", [None, PEER_RELAY], ids=["client", "relay"])
@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        ([1], [1], 1),
        ([1, 2], [1, 2], 2),
        ([1, 2], [1], 1),
        ([2], [2, 1], 2),
        ([1, 2, 3], [3, 2, 1], 2),
        ([3, 1], [2, 3, 1], 3),
        ([2, 3, 1], [3, 1], 3),
        ([3, 1], [2, 1], 1),
    ],
)
def test_both_ends_hold_the_same(rng, me, ours, theirs, chosen):
    first = initiate(rng, me, ours)
    assert len(first.packet) == 1280
    assert check_mac1(first.packet, RELAY.public, NOW)
    response = answer(first.packet, rng, theirs)
    assert len(response.packet) == 1280
    assert response.packet[:12] == first.answer_cid == first.local_cids[0]
    mine, yours = first.finish(response.packet), response.secrets
    assert mine.suite == yours.suite == chosen
    assert (mine.ck, mine.h2) == (yours.ck, yours.h2)
    assert (mine.local_cids, mine.peer_cids) == (yours.peer_cids, yours.local_cids)
    assert mine.peer == RELAY.public
    assert yours.peer == (me.public if me else None)
    assert (mine.receive_window, mine.clock, yours.clock) == (192, NOW, NOW)
    seen = set()
    for index in range(4):
        a, b = mine.session_keys(index), yours.session_keys(index)
        assert (a.send_key, a.send_mask, a.receive_key, a.receive_mask) == (
            b.receive_key,
            b.receive_mask,
            b.send_key,
            b.send_mask,
        )
        assert len(a.send_key) == len(a.receive_key) == {1: 32, 2: 16, 3: 32}[chosen]
        seen |= {a.send_key, a.receive_key, a.send_mask, a.receive_mask}
    assert len(seen) == 16, "each session and direction has its own keys"


@pytest.mark.parametrize("me", [None, PEER_RELAY], ids=["client", "relay"])
def test_the_twin_reads_both_messages_and_makes_the_same_keys(seed, me):
    rng = random.Random(seed)
    local = cids(rng)
    state = rng.getstate()
    first = Initiator(RELAY.public, me, FROM_BOTH, local, rng.randbytes, NOW)
    after = rng.getstate()
    rng.setstate(state)
    e = rng.randbytes(32)
    rng.setstate(after)
    body, memory = twin.open_initiation(first.packet, twin_node(RELAY))
    static = me.public.link_x25519 if me else bytes(32)
    assert body == struct.pack(">HHHHII", 0x0002, 0x0006, 1 if me else 0, 0, NOW, 0) + b"".join(local) + static
    assert twin.mac1_is_right(first.packet, twin_node(RELAY), NOW // 120)

    response = answer(first.packet, rng)
    memory |= {"e": e, "responder": twin_node(RELAY), "me": twin_node(me) if me else None}
    body, ck2, h2 = twin.open_answer(response.packet, memory)
    assert body == struct.pack(">HBB", 1, 2, 0) + b"".join(response.secrets.local_cids) + struct.pack(">QI", NOW, 192) + bytes(64)
    assert (ck2, h2) == (response.secrets.ck, response.secrets.h2)
    for index in range(4):
        keys = first.finish(response.packet).session_keys(index) if index == 0 else response.secrets.session_keys(index)
        to_responder = twin.session_keys(ck2, 2, index, 0)
        mine = (keys.send_key, keys.send_mask) if index == 0 else (keys.receive_key, keys.receive_mask)
        assert mine == to_responder
    upgraded = response.secrets.upgrade(b"k" * 32, cids(rng), cids(rng))
    assert upgraded.ck == twin.next_ck(ck2, b"k" * 32, h2)
    assert upgraded.generation == 1


@pytest.mark.parametrize("me", [None, PEER_RELAY], ids=["client", "relay"])
def test_the_twin_can_be_either_end(rng, me):
    local = cids(rng)
    static = me.public.link_x25519 if me else bytes(32)
    body = struct.pack(">HHHHII", 0x0002, 0x0006, 1 if me else 0, 0, NOW, 0) + b"".join(local) + static
    packet, memory = twin.initiate(twin_node(RELAY), twin_node(me) if me else None, body, rng.randbytes(32), NOW)
    assert check_mac1(packet, RELAY.public, NOW)
    response = answer(packet, rng)
    _, ck2, h2 = twin.open_answer(response.packet, memory)
    assert (ck2, h2) == (response.secrets.ck, response.secrets.h2)

    first = initiate(rng, me)
    _, memory = twin.open_initiation(first.packet, twin_node(RELAY))
    theirs = cids(rng)
    body = struct.pack(">HBB", 1, 1, 0) + b"".join(theirs) + struct.pack(">QI", NOW, 77) + bytes(64)
    relay = twin_node(me) if me else None
    packet, ck2, h2 = twin.answer(memory, twin_node(RELAY), relay, body, rng.randbytes(32), first.answer_cid)
    secrets = first.finish(packet)
    assert (secrets.ck, secrets.h2, secrets.peer_cids, secrets.receive_window) == (ck2, h2, tuple(theirs), 77)


BODY_BREAKS = {
    "no version 1": (">HHHHII", (0x0001, 6, 0, 0, NOW, 0), bytes(32), Drop.BAD_HANDSHAKE),
    "no common suite": (">HHHHII", (2, 0x0010, 0, 0, NOW, 0), bytes(32), Drop.BAD_HANDSHAKE),
    "unknown flag": (">HHHHII", (2, 6, 2, 0, NOW, 0), bytes(32), Drop.BAD_HANDSHAKE),
    "relay without a key": (">HHHHII", (2, 6, 1, 0, NOW, 0), bytes(32), Drop.BAD_HANDSHAKE),
    "client with a key": (">HHHHII", (2, 6, 0, 0, NOW, 0), PEER_RELAY.public.link_x25519, Drop.BAD_HANDSHAKE),
    "first zero": (">HHHHII", (2, 6, 0, 1, NOW, 0), bytes(32), Drop.BAD_HANDSHAKE),
    "second zero": (">HHHHII", (2, 6, 0, 0, NOW, 1), bytes(32), Drop.BAD_HANDSHAKE),
    "121 s old": (">HHHHII", (2, 6, 0, 0, NOW - 121, 0), bytes(32), Drop.STALE_HANDSHAKE),
    "121 s ahead": (">HHHHII", (2, 6, 0, 0, NOW + 121, 0), bytes(32), Drop.STALE_HANDSHAKE),
    "unknown relay": (">HHHHII", (2, 6, 1, 0, NOW, 0), b"\x09" * 32, Drop.BAD_HANDSHAKE),
}


@pytest.mark.parametrize("name", BODY_BREAKS)
def test_a_body_that_breaks_a_rule_is_refused(rng, name):
    form, fields, static, drop = BODY_BREAKS[name]
    body = struct.pack(form, *fields) + b"".join(cids(rng)) + static
    packet, _ = twin.initiate(twin_node(RELAY), None, body, rng.randbytes(32), NOW)
    with pytest.raises(HandshakeError) as caught:
        answer(packet, rng)
    assert caught.value.drop == drop


def test_a_directory_that_names_another_key_is_not_believed(rng):
    packet = initiate(rng, PEER_RELAY).packet
    with pytest.raises(HandshakeError):
        respond(packet, RELAY, FROM_BOTH, cids(rng), rng.randbytes, NOW, lambda _: RELAY.public, 192)


def test_a_cid_twice_is_refused(rng):
    body = struct.pack(">HHHHII", 2, 6, 0, 0, NOW, 0) + b"same cid 12b" * 4 + bytes(32)
    packet, _ = twin.initiate(twin_node(RELAY), None, body, rng.randbytes(32), NOW)
    with pytest.raises(HandshakeError):
        answer(packet, rng)


def test_what_was_made_before_the_start_is_refused(rng):
    packet = initiate(rng).packet
    answer(packet, rng, started=NOW)
    with pytest.raises(HandshakeError) as caught:
        answer(packet, rng, started=NOW + 1)
    assert caught.value.drop == Drop.STALE_HANDSHAKE


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_points_of_small_order_are_refused(rng, point, monkeypatch):
    monkeypatch.setattr(handshake, "x25519_public", lambda _: point)
    packet = initiate(rng).packet
    monkeypatch.undo()
    with pytest.raises(HandshakeError):
        answer(packet, rng)


ANSWER_BREAKS = {
    "version": struct.pack(">HBB", 2, 1, 0),
    "suite not offered": struct.pack(">HBB", 1, 2, 0),
    "suite unknown": struct.pack(">HBB", 1, 9, 0),
    "flags": struct.pack(">HBB", 1, 1, 1),
}


@pytest.mark.parametrize("name", [*ANSWER_BREAKS, "zeros", "cids"])
def test_an_answer_that_breaks_a_rule_is_refused_and_the_attempt_lives(rng, name):
    first = initiate(rng, suites=[1])
    _, memory = twin.open_initiation(first.packet, twin_node(RELAY))
    head = ANSWER_BREAKS.get(name, struct.pack(">HBB", 1, 1, 0))
    joined = bytes(48) if name == "cids" else b"".join(cids(rng))
    zeros = bytes(63) + b"\1" if name == "zeros" else bytes(64)
    body = head + joined + struct.pack(">QI", NOW, 1) + zeros
    packet, _, _ = twin.answer(memory, twin_node(RELAY), None, body, rng.randbytes(32), first.answer_cid)
    with pytest.raises(HandshakeError):
        first.finish(packet)
    first.finish(answer(first.packet, rng).packet)


@given(bit=st.integers(96, 8 * 1264 - 1), relay=st.booleans())
def test_any_flipped_bit_of_an_initiation_is_refused(bit, relay):
    """Bits that mac1 covers fail there; even past it, the seal does not open. mac2 is random and may differ."""
    rng = random.Random(bit)
    packet = initiate(rng, PEER_RELAY if relay else None).packet
    broken = flip(packet, bit)
    assert not check_mac1(broken, RELAY.public, NOW)
    if bit < 8 * 1248:
        with pytest.raises(HandshakeError):
            answer(broken, rng)


@given(bit=st.integers(0, 8 * 1280 - 1), relay=st.booleans())
def test_any_flipped_bit_of_an_answer_is_refused_and_changes_nothing(bit, relay):
    rng = random.Random(bit)
    first = initiate(rng, PEER_RELAY if relay else None)
    good = answer(first.packet, rng).packet
    with pytest.raises(HandshakeError):
        first.finish(flip(good, bit))
    first.finish(good)
    with pytest.raises(LocalProtocolError):
        first.finish(good)


@given(junk=st.binary(min_size=0, max_size=1400))
def test_junk_is_refused_cheaply(junk):
    assert not check_mac1(junk, RELAY.public, NOW)
    if len(junk) != 1280:
        with pytest.raises(HandshakeError) as caught:
            answer(junk, random.Random(1))
        assert caught.value.drop == Drop.SHORT


@pytest.mark.parametrize(("offset", "good"), [(-121, False), (-120, True), (0, True), (119, True), (239, True), (240, False)])
def test_mac1_lives_in_three_slots(rng, offset, good):
    start = NOW // 120 * 120
    packet = initiate(rng, wall=start).packet
    assert check_mac1(packet, RELAY.public, start + offset) == good


def test_mac1_names_the_responder(rng):
    packet = initiate(rng).packet
    assert not check_mac1(packet, PEER_RELAY.public, NOW)
    with pytest.raises(HandshakeError):
        answer(packet, rng, me=PEER_RELAY)


def test_answer_of_another_relay_is_refused(rng):
    first = initiate(rng)
    other = Initiator(PEER_RELAY.public, None, FROM_BOTH, first.local_cids, rng.randbytes, NOW)
    with pytest.raises(HandshakeError):
        first.finish(answer(other.packet, rng, me=PEER_RELAY).packet)


def test_nothing_secret_is_printed(rng):
    first = initiate(rng, PEER_RELAY)
    response = answer(first.packet, rng)
    secrets = first.finish(response.packet)
    keys = secrets.session_keys(0)
    shown = repr(first) + repr(response) + repr(secrets) + repr(keys) + str(secrets)
    for secret in (secrets.ck, secrets.h2, keys.send_key, keys.receive_mask, PEER_RELAY.link.to_bytes()[:32]):
        assert secret[:4].hex() not in shown
        assert repr(secret[:6])[2:-1] not in shown


def test_masked_bytes_are_uniform(seed):
    """Chi-square over byte values and a count of ones, over both messages; also of the bytes that alone are not uniform."""
    rng = random.Random(seed)
    gathered = []
    for number in range(150):
        first = initiate(rng, PEER_RELAY if number % 2 else None)
        gathered += [first.packet, answer(first.packet, rng).packet]
    table = np.frombuffer(b"".join(gathered), np.uint8).reshape(-1, 1280)
    for part in (table[:, 12:], table[:, 12:16], table[:, 47:48], table[:, 48:1136], table[:, 1136:]):
        assert_uniform(part)
    # Single columns would show a constant: header bytes, the top bit of an X25519 key.
    ones = np.unpackbits(table[:, 12:], axis=1).mean(axis=0)
    assert abs(ones - 0.5).max() < 6 * 0.5 / len(table) ** 0.5


def assert_uniform(part):
    values = np.bincount(part.ravel(), minlength=256)
    expected = part.size / 256
    chi = float(((values - expected) ** 2 / expected).sum())
    assert abs(chi - 255) < 6 * (2 * 255) ** 0.5, chi
    bits = part.size * 8
    ones = int(np.unpackbits(part.ravel()).sum())
    assert abs(ones - bits / 2) < 5 * (bits / 4) ** 0.5, ones


# ---------------------------------------------------------------- replays


def table(rng, capacity=1 << 12):
    return ReplayTable(allocate(replay_columns(capacity))["handshakes_seen"], rng.randbytes)


def test_a_replay_meets_silence_for_as_long_as_mac1_holds(rng):
    seen = table(rng)
    packet = initiate(rng).packet
    assert not seen.seen(packet, NOW)
    for later in range(0, 361, 30):
        assert seen.seen(packet, NOW + later)
    other_slot = packet[:1248] + rng.randbytes(32)
    assert seen.seen(other_slot, NOW), "a mac1 made anew for another slot does not reopen it"
    assert not seen.seen(initiate(rng).packet, NOW)


def test_the_table_outlives_its_worker_and_forgets(rng):
    words = allocate(replay_columns())["handshakes_seen"]
    packet = initiate(rng).packet
    assert not ReplayTable(words, rng.randbytes).seen(packet, NOW)
    assert ReplayTable(words, rng.randbytes).seen(packet, NOW)
    assert not ReplayTable(words, rng.randbytes).seen(packet, NOW + 1000)


def test_a_full_table_counts_as_seen_and_a_clock_that_steps_back_opens_nothing(rng):
    seen = table(rng, capacity=64)
    packets = [rng.randbytes(1280) for _ in range(200)]
    fresh = [p for p in packets if not seen.seen(p, NOW)]
    assert 0 < len(fresh) <= 64
    assert all(seen.seen(p, NOW) for p in packets)
    assert all(seen.seen(p, NOW - 500) for p in fresh)
    assert all(seen.seen(p, NOW + 120) for p in fresh), "nor does the way forward again"


@dataclass
class Attempt:
    machine: Initiator
    made: int
    answered: bool = False
    done: object = None


class Handshakes(RuleBasedStateMachine):
    """A responder and a wire that loses, repeats, delays, reorders and alters; a model of who may hear an answer."""

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed):
        self.rng = random.Random(seed)
        self.now = NOW
        self.seen = table(self.rng)
        self.attempts = []
        self.to_responder = []
        self.to_initiators = []

    @rule(relay=st.booleans(), skew=st.integers(-130, 130))
    def initiate(self, relay, skew):
        machine = initiate(self.rng, PEER_RELAY if relay else None, wall=self.now + skew)
        self.attempts.append(Attempt(machine, self.now + skew))
        self.to_responder.append((machine.packet, self.attempts[-1]))

    @precondition(lambda self: self.to_responder)
    @rule(data=st.data(), keep=st.booleans(), bit=st.one_of(st.none(), st.integers(96, 8 * 1264 - 1)))
    def deliver_initiation(self, data, keep, bit):
        index = data.draw(st.integers(0, len(self.to_responder) - 1))
        packet, attempt = self.to_responder[index] if keep else self.to_responder.pop(index)
        if bit is not None:
            packet = flip(packet, bit)
        if not check_mac1(packet, RELAY.public, self.now):
            assert bit is not None or abs(self.now - attempt.made) > 120
            return
        assert bit is None
        if self.seen.seen(packet, self.now):
            return
        assert not attempt.answered
        if abs(self.now - attempt.made) > 120:
            with pytest.raises(HandshakeError) as caught:
                answer(packet, self.rng, wall=self.now)
            assert caught.value.drop == Drop.STALE_HANDSHAKE
            return
        response = answer(packet, self.rng, wall=self.now)
        attempt.answered = True
        self.to_initiators.append((response, attempt))

    @precondition(lambda self: self.to_initiators)
    @rule(data=st.data(), bit=st.one_of(st.none(), st.integers(0, 8 * 1280 - 1)), other=st.booleans())
    def deliver_answer(self, data, bit, other):
        index = data.draw(st.integers(0, len(self.to_initiators) - 1))
        response, attempt = self.to_initiators[index]
        target = data.draw(st.sampled_from(self.attempts)) if other else attempt
        if target.done is not None:
            return
        packet = response.packet if bit is None else flip(response.packet, bit)
        if bit is not None or target is not attempt:
            with pytest.raises(HandshakeError):
                target.machine.finish(packet)
            return
        target.done = target.machine.finish(packet)
        assert target.done.ck == response.secrets.ck
        assert target.done.session_keys(3).send_key == response.secrets.session_keys(3).receive_key

    @rule(seconds=st.integers(1, 200))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def answers_are_few(self):
        assert len(self.to_initiators) == sum(a.answered for a in self.attempts) if hasattr(self, "attempts") else True


Handshakes.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHandshakes = Handshakes.TestCase

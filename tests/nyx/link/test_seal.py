"""Sealing and opening: the twin's bytes, nothing accepted twice or altered, and a rejected packet changes nothing."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nyx.columns import Columns, allocate
from nyx.crypto.scratch import SCRATCH_NONCE, SCRATCH_SIZE, new_scratch
from nyx.crypto.suites import LINK_KEY_SIZES, SUITE_AEGIS128L, SUITE_AEGIS256, SUITE_CHACHA
from nyx.kernel import PLAIN
from nyx.link.seal import open_packets, seal_packets
from nyx.link.session import SESSION_CLOSING, SESSION_HELD, SESSION_LIVE, check_session, session_bytes, session_columns
from nyx.wire.codes import Drop
from nyx.wire.geometry import PACKET_SIZE, WINDOW_BITS
from nyx.wire.packet import NUMBER_LIMIT
from tests.reference import link as twin

SUITES = [SUITE_CHACHA, SUITE_AEGIS128L, SUITE_AEGIS256]
ROW = 1
NOW = 1234567890123


@dataclass
class End:
    """One end of a session, in the middle row of three."""

    columns: Columns
    keys: twin.Keys
    cid: bytes

    @property
    def session(self) -> Any:
        return self.columns["sessions"][ROW]

    def seal(self, pool: Any, slots: list[int], rows: list[int] | None = None) -> int:
        rows = [ROW] * len(slots) if rows is None else rows
        arguments = np.array(slots, np.int64), np.array(rows, np.int64), len(slots)
        return seal_packets(pool, *arguments, self.columns["sessions"], NOW, new_scratch())

    def open(self, pool: Any, slots: list[int], rows: list[int] | None = None) -> list[int]:
        rows = [ROW] * len(slots) if rows is None else rows
        codes = np.full(len(slots), -1, np.int64)
        arguments = np.array(slots, np.int64), np.array(rows, np.int64), len(slots)
        c = self.columns
        good = open_packets(pool, *arguments, c["sessions"], c["session_windows"], codes, NOW, new_scratch())
        assert good == (codes == 0).sum()
        return codes.tolist()

    def open_bytes(self, packet: bytes) -> int:
        return self.open(np.frombuffer(bytearray(packet), np.uint8), [0])[0]

    def snapshot(self) -> bytes:
        return self.columns["sessions"].tobytes() + self.columns["session_windows"].tobytes()


def make_pair(suite: int, rng: random.Random, generation: int = 0) -> tuple[End, End]:
    """Initiator and responder that share random keys."""
    keys = [
        twin.Keys(suite, rng.randbytes(LINK_KEY_SIZES[suite]), rng.randbytes(16), direction, generation) for direction in (0, 1)
    ]
    cids = rng.randbytes(12), rng.randbytes(12)
    ends = []
    for initiator in (1, 0):
        columns = allocate(session_columns(3))
        session = columns["sessions"][ROW]
        send, receive = keys[1 - initiator], keys[initiator]
        session["suite"], session["initiator"], session["index"] = suite, initiator, 2
        session["rekey_in"] = session["rekey_out"] = generation
        for field, value in (
            ("send_key", send.key),
            ("receive_key", receive.key),
            ("send_mask", send.mask),
            ("receive_mask", receive.mask),
            ("peer_cid", cids[1 - initiator]),
            ("local_cid", cids[initiator]),
        ):
            session[field][: len(value)] = np.frombuffer(value, np.uint8)
        session["state"] = SESSION_LIVE
        ends.append(End(columns, send, cids[1 - initiator]))
    return ends[0], ends[1]


def filled(count: int, rng: random.Random) -> Any:
    return np.frombuffer(bytearray(rng.randbytes(count * PACKET_SIZE)), np.uint8)


def packet_of(pool: Any, slot: int) -> bytes:
    return bytes(pool[slot * PACKET_SIZE : (slot + 1) * PACKET_SIZE])


def twin_packet(sender: End, number: int, rng: random.Random, **extra: bytes) -> bytes:
    return twin.seal(sender.keys, sender.cid, rng.randbytes(4), rng.randbytes(1228), number, **extra)


@pytest.mark.parametrize("generation", [0, 1, 0x01020304])
@pytest.mark.parametrize("suite", SUITES)
def test_sealed_bytes_are_the_twins(suite: int, generation: int, rng: random.Random) -> None:
    for sender, receiver in (make_pair(suite, rng, generation), make_pair(suite, rng, generation)[::-1]):
        sender.session["send_next"] = first = rng.choice([0, 5, (1 << 32) - 1, 1 << 40])
        receiver.session["received_next"] = first
        pool = filled(4, rng)
        clear = [packet_of(pool, s) for s in range(4)]
        assert sender.seal(pool, [2, 0, 3]) == 0
        for i, slot in enumerate((2, 0, 3)):
            expected = twin.seal(sender.keys, sender.cid, clear[slot][12:16], clear[slot][20:1248], first + i)
            assert packet_of(pool, slot) == expected
            assert twin.open_(sender.keys, expected, first + i) == (first + i, clear[slot][12:16], clear[slot][20:1248])
        assert packet_of(pool, 1) == clear[1]
        assert receiver.open(pool, [2, 0, 3]) == [0, 0, 0]
        for i, slot in enumerate((2, 0, 3)):
            opened = packet_of(pool, slot)
            assert opened[:12] == sender.cid
            assert opened[12:16] == clear[slot][12:16]
            assert opened[16:20] == (first + i & 0xFFFFFFFF).to_bytes(4, "big")
            assert opened[20:1248] == clear[slot][20:1248]
        assert sender.session["send_next"] == receiver.session["received_next"] == first + 3
        assert sender.session["packets_out"] == receiver.session["packets_in"] == 3
        assert sender.session["last_out"] == receiver.session["last_in"] == NOW


@settings(max_examples=15 if PLAIN else 60)
@given(st.integers(0, 1 << 30), st.sampled_from(SUITES), st.lists(st.integers(0, 60), min_size=1, max_size=40))
def test_the_window_decides_after_authentication(seed: int, suite: int, order: list[int]) -> None:
    rng = random.Random(seed)
    sender, receiver = make_pair(suite, rng)
    base = rng.choice([0, WINDOW_BITS, (1 << 32) - 30])
    model = twin.Window()
    if base:
        receiver.session["received_next"] = base
        model.highest = base - 1
    packets = {n: twin_packet(sender, base + n, rng) for n in set(order)}
    for number in order:
        before = receiver.snapshot()
        code = receiver.open_bytes(packets[number])
        assert code == {"ok": Drop.OK, "replayed": Drop.REPLAYED, "too_old": Drop.TOO_OLD}[model.accept(base + number)]
        if code != Drop.OK:
            assert receiver.snapshot() == before
    assert receiver.session["packets_in"] == len(set(order))


@pytest.mark.parametrize("suite", SUITES)
def test_too_old(suite: int, rng: random.Random) -> None:
    sender, receiver = make_pair(suite, rng)
    receiver.session["received_next"] = WINDOW_BITS + 10
    before = receiver.snapshot()
    assert receiver.open_bytes(twin_packet(sender, 9, rng)) == Drop.TOO_OLD
    assert receiver.snapshot() == before
    assert receiver.open_bytes(twin_packet(sender, 10, rng)) == Drop.OK


@pytest.mark.parametrize("suite", SUITES)
def test_every_flipped_bit_is_rejected_and_changes_nothing(suite: int, rng: random.Random) -> None:
    sender, receiver = make_pair(suite, rng)
    receiver.session["received_next"] = 7
    packet = twin_packet(sender, 7, rng)
    bits = sorted(rng.sample(range(PACKET_SIZE * 8), 200)) if PLAIN else list(range(PACKET_SIZE * 8))
    before = receiver.snapshot()
    for start in range(0, len(bits), 128):
        part = bits[start : start + 128]
        pool = np.tile(np.frombuffer(packet, np.uint8), len(part))
        for i, bit in enumerate(part):
            pool[i * PACKET_SIZE + bit // 8] ^= 1 << bit % 8
        assert receiver.open(pool, list(range(len(part)))) == [Drop.BAD_TAG] * len(part)
    assert receiver.snapshot() == before
    assert receiver.open_bytes(packet) == Drop.OK


def test_zeros_under_a_short_tag_are_checked(rng: random.Random) -> None:
    sender, receiver = make_pair(SUITE_CHACHA, rng)
    before = receiver.snapshot()
    for i in range(16):
        zeros = bytes(i) + b"\x01" + bytes(15 - i)
        packet = twin_packet(sender, i, rng, zeros=zeros)
        assert receiver.open_bytes(packet) == Drop.BAD_ZEROS
        assert twin.open_(sender.keys, packet, 0) is None
    assert receiver.snapshot() == before


@pytest.mark.parametrize("suite", SUITES)
def test_directions_generations_and_sessions_are_apart(suite: int, rng: random.Random) -> None:
    sender, receiver = make_pair(suite, rng)
    packet = twin_packet(sender, 0, rng)
    assert sender.open_bytes(packet) == Drop.BAD_TAG  # reflected
    stranger = make_pair(suite, rng)[1]
    assert stranger.open_bytes(packet) == Drop.BAD_TAG
    if suite != SUITE_CHACHA:
        receiver.session["rekey_in"] = 1
        assert receiver.open_bytes(packet) == Drop.BAD_TAG
        receiver.session["rekey_in"] = 0
    assert receiver.open_bytes(packet) == Drop.OK


@pytest.mark.parametrize("suite", SUITES)
def test_rows_without_a_live_session(suite: int, rng: random.Random) -> None:
    sender, receiver = make_pair(suite, rng)
    packet = twin_packet(sender, 0, rng)
    before = receiver.snapshot()
    pool = np.tile(np.frombuffer(packet, np.uint8), 5)
    assert receiver.open(pool, [0, 1, 2, 3, 4], [-1, 0, 2, 3, 1 << 40]) == [Drop.UNKNOWN_CID] * 5
    receiver.session["state"] = SESSION_HELD
    assert receiver.open_bytes(packet) == Drop.UNKNOWN_CID
    receiver.session["state"] = SESSION_LIVE
    assert receiver.snapshot() == before
    receiver.session["state"] = SESSION_CLOSING
    assert receiver.open_bytes(packet) == Drop.OK


@pytest.mark.parametrize("suite", SUITES)
def test_what_cannot_be_sealed_is_wiped(suite: int, rng: random.Random) -> None:
    sender, _ = make_pair(suite, rng)
    pool = filled(6, rng)
    before = sender.snapshot()
    assert sender.seal(pool, [0, 1, 2], [-1, 0, 3]) == 3
    assert sender.snapshot() == before
    assert not pool[: 3 * PACKET_SIZE].any()
    sender.session["send_next"] = NUMBER_LIMIT - 1
    assert sender.seal(pool, [3, 4]) == 2
    assert not pool[3 * PACKET_SIZE : 5 * PACKET_SIZE].any()
    assert sender.session["send_next"] == NUMBER_LIMIT - 1
    assert sender.seal(pool, [5]) == 0
    assert sender.session["send_next"] == NUMBER_LIMIT


def test_runs_reserve_their_numbers_and_leave_other_rows_alone(rng: random.Random) -> None:
    sender, _ = make_pair(SUITE_AEGIS128L, rng)
    session_bytes(sender.columns, 2)[:] = session_bytes(sender.columns, ROW)
    zero = session_bytes(sender.columns, 0).copy()
    pool = filled(6, rng)
    clear = [packet_of(pool, s) for s in range(6)]
    assert sender.seal(pool, [0, 1, 2, 3, 4, 5], [1, 1, 2, 1, 2, 2]) == 0
    for slot, number in zip(range(6), (0, 1, 0, 2, 1, 2), strict=True):
        assert packet_of(pool, slot) == twin.seal(sender.keys, sender.cid, clear[slot][12:16], clear[slot][20:1248], number)
    assert [int(s["send_next"]) for s in sender.columns["sessions"]] == [0, 3, 3]
    assert (session_bytes(sender.columns, 0) == zero).all()
    for row in range(3):
        check_session(sender.columns, row)


@pytest.mark.parametrize("suite", SUITES)
def test_sealed_packets_look_random(suite: int, rng: random.Random) -> None:
    """Equal packets under following numbers share nothing but the connection id."""
    sender, _ = make_pair(suite, rng)
    pool = np.tile(filled(1, rng), 200)
    sender.seal(pool, list(range(200)))
    bits = np.unpackbits(pool.reshape(200, PACKET_SIZE)[:, 12:], axis=1)
    ones = bits.sum(axis=0, dtype=np.int64)  # of 200, at each of 10144 places: mean 100, deviation 7
    assert abs(ones - 100).max() < 45
    assert abs(int(bits.sum()) - bits.size // 2) < 5000


@pytest.mark.parametrize("suite", SUITES)
def test_scratch_keeps_no_mask(suite: int, rng: random.Random) -> None:
    sender, receiver = make_pair(suite, rng)
    scratch, pool = new_scratch(), filled(2, rng)
    slots, rows, codes = np.arange(2), np.full(2, ROW), np.zeros(2, np.int64)
    for _ in range(2):
        seal_packets(pool, slots, rows, 2, sender.columns["sessions"], NOW, scratch)
        assert not np.delete(scratch, slice(SCRATCH_NONCE, SCRATCH_NONCE + 16)).any()
        c = receiver.columns
        pool[5] ^= 1
        assert open_packets(pool, slots, rows, 2, c["sessions"], c["session_windows"], codes, NOW, scratch) == 1
        assert not np.delete(scratch, slice(SCRATCH_NONCE, SCRATCH_NONCE + 16)).any()
    assert scratch.size == SCRATCH_SIZE

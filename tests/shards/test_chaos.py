"""The chaos runs find what they look for: a packet number that was used twice, and something that grows."""

import random
from typing import Any

import numpy as np
import pytest

from bench.chaos.look import slope
from bench.chaos.tap import Tap, siphash, unmask
from nyx.columns import allocate
from nyx.crypto.scratch import new_scratch
from nyx.crypto.suites import SUITE_AEGIS128L
from nyx.link.seal import seal_packets
from nyx.link.session import SESSION_LIVE, session_columns
from nyx.wire.geometry import LINK_PAYLOAD_SIZE, PACKET_LENGTH, PACKET_SIZE

COUNT = 40


class Sender:
    """One session that seals packets."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.columns = rng, allocate(session_columns(1))
        self.session = self.columns["sessions"][0]
        self.session["suite"], self.session["state"] = SUITE_AEGIS128L, SESSION_LIVE
        for name in ("peer_cid", "send_key", "send_mask"):
            self.session[name] = np.frombuffer(rng.randbytes(len(self.session[name])), np.uint8)
        self.found = {self.session["peer_cid"].tobytes(): self.session["send_mask"].tobytes()}

    def seal(self, count: int = COUNT) -> np.ndarray[Any, Any]:
        pool = np.frombuffer(self.rng.randbytes(count * PACKET_SIZE), np.uint8).copy()
        pool.reshape(count, PACKET_SIZE)[:, PACKET_LENGTH : PACKET_LENGTH + 2] = divmod(LINK_PAYLOAD_SIZE, 256)
        slots, rows = np.arange(count), np.zeros(count, np.int64)
        seal_packets(pool, slots, rows, count, self.columns["sessions"], 1, new_scratch())
        return pool

    def look(self) -> None:
        """Nothing new."""


@pytest.fixture
def sender(rng):
    return Sender(rng)


def report(sender, *captured):
    keys: Any = sender
    tap = Tap(keys)
    for data in captured:
        tap.take(data)
    return tap.finish()


def test_siphash_is_the_published_one():
    """First words of the reference vectors of SipHash-2-4 for 16 bytes: key 00..0f, message 00..0f."""
    message = np.arange(16, dtype=np.uint8).reshape(1, 16)
    assert int(siphash(bytes(range(16)), message)[0]) == 0x3F2ACC7F57C29BDB


def test_numbers_come_off_the_wire(sender):
    kept = sender.seal().reshape(COUNT, PACKET_SIZE)[:, :36]
    numbers, right = unmask(sender.session["send_mask"].tobytes(), kept)
    assert numbers.tolist() == list(range(COUNT))
    assert right.all()


def test_numbers_that_differ_are_well(sender):
    found = report(sender, sender.seal(), sender.seal())
    assert (found.packets, found.with_key, found.repeats, found.doubles, found.odd) == (2 * COUNT, 2 * COUNT, 0, 0, 0)


def test_a_number_that_is_used_twice_is_found(sender):
    first = sender.seal()
    sender.session["send_next"] = COUNT - 3  # a worker that forgot three of its numbers
    assert report(sender, first, sender.seal(3)).repeats == 3


def test_a_packet_seen_twice_is_no_repeat(sender):
    packets = sender.seal()
    found = report(sender, packets, packets[: 2 * PACKET_SIZE])
    assert (found.repeats, found.doubles) == (0, 2)


def test_packets_without_a_key_are_counted_apart(sender, rng):
    found = report(sender, sender.seal(), Sender(rng).seal())
    assert (found.packets, found.with_key) == (2 * COUNT, COUNT)


def walk(rng, per_step, noise):
    return [(float(x), 100 + per_step * x + rng.gauss(0, noise)) for x in range(80)]


def test_growth_is_told_from_noise(rng):
    assert slope(walk(rng, 0.5, 1)).grows
    assert 0.4 < slope(walk(rng, 0.5, 1)).slope < 0.6
    assert not slope(walk(rng, -0.5, 1)).grows
    assert sum(slope(walk(rng, 0, 5)).grows for _ in range(200)) < 8
    assert not slope([(float(x), 7.0) for x in range(80)]).grows


def test_a_short_series_says_nothing(rng):
    assert not slope(walk(rng, 5, 0)[:15]).grows
    assert slope(walk(rng, 5, 0)[:16]).grows

"""The challenge of initiations: who passes, who gets a cookie, and each cookie against the plain twin."""

import random
import socket
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.attack.floods import forgery
from nyx.columns import allocate
from nyx.crypto.keys import StaticKeys
from nyx.link.initiations import replay_columns
from nyx.stats import COUNTERS
from nyx.wire.codes import Drop
from nyx.wire.geometry import PACKET_SIZE
from shards.address import ADDRESS_SIZE, pack
from shards.kernels.strangers import INITIATION, SIFTED
from shards.pool import Pool, pool_columns
from shards.quotas import BURST, quota_columns
from shards.strangers import COOKIES, PLACES, Challenge
from tests.reference import cookies

WALL = 1_800_000_000
SECOND = 1_000_000_000
KEYS = StaticKeys.generate(random.Random(9).randbytes)
SEAL = cookies.seal_key(KEYS.public.link_x25519, KEYS.public.link_ek)


class Bench:
    """A challenge over a pool and a socket's double."""

    def __init__(self, seed=1):
        self.rng = random.Random(seed)
        shared = allocate(pool_columns(1, 1024))
        self.pool = Pool(shared, 0, 1, ())
        self.sent = []
        self.udp = SimpleNamespace(
            pool=self.pool, origins=np.arange(900), sources=np.zeros(900 * ADDRESS_SIZE, np.uint8), send_to=self.send_to
        )
        self.drops = np.zeros(len(Drop), np.int64)
        batch: Any = SimpleNamespace(udp=self.udp, drops=self.drops, statistics=np.zeros(len(COUNTERS), np.int64))
        self.boot = self.rng.randbytes(32)
        columns = allocate([*replay_columns(), *quota_columns()])
        context: Any = SimpleNamespace(columns=columns, boot_secret=self.boot, entropy=self.rng.randbytes)
        self.challenge = Challenge(context, batch, KEYS.public)
        self.challenge.at(WALL)

    def send_to(self, slots, rows, n, _destinations, _stride):
        for k in range(n):
            at = int(slots[rows[k]]) * PACKET_SIZE
            self.sent.append(self.pool.packets[at : at + PACKET_SIZE].tobytes())
        return n

    def ask(self, packets, sources, *, loaded=True, crowded=False, now=SECOND):
        """Which packets passed, and whether that was a load; every slot is given back."""
        n, self.sent = len(packets), []
        slots = self.pool.take(n)
        for k, packet in enumerate(packets):
            self.pool.packets[int(slots[k]) * PACKET_SIZE :][:PACKET_SIZE] = np.frombuffer(packet, np.uint8)
            self.udp.sources[k * ADDRESS_SIZE :][:ADDRESS_SIZE] = np.frombuffer(sources[k], np.uint8)
        rows, done = np.full(n, INITIATION), np.zeros(n + 1, np.int64)
        free = self.pool.free_count
        heavy = self.challenge(slots, rows, n, done, 0, now, loaded=loaded, crowded=crowded)
        gone = self.challenge.dropped
        assert self.pool.free_count == free + len(self.sent)
        assert gone + len(self.sent) == int((rows == SIFTED).sum())
        self.pool.give(done[:gone])
        passed = rows == INITIATION
        self.pool.give(slots[passed])
        return passed.tolist(), heavy

    def packet(self, cookie=b""):
        return forgery(KEYS.public, self.rng.randbytes, WALL, cookie)

    def cookie(self, name, slots_ago=0):
        return cookies.cookie(self.boot, name, WALL // cookies.SLOT - slots_ago)


ADDRESSES = [
    (pack("10.1.2.3", 4000, socket.AF_INET), b"\x0f\xa0\x0a\x01\x02\x03"),
    (pack("10.1.2.3", 4000, socket.AF_INET6), b"\x0f\xa0\x0a\x01\x02\x03"),
    (
        pack("2001:db8::ffff:a01:203", 4000, socket.AF_INET6),
        b"\x0f\xa0" + socket.inet_pton(socket.AF_INET6, "2001:db8::ffff:a01:203"),
    ),
    (pack("::fffe:a01:203", 1, socket.AF_INET6), b"\x00\x01" + socket.inet_pton(socket.AF_INET6, "::fffe:a01:203")),
]


@pytest.mark.parametrize(("raw", "name"), ADDRESSES)
def test_a_cookie_is_what_the_specification_says(raw, name):
    bench = Bench()
    asked = bench.packet()
    assert bench.ask([asked], [raw]) == ([False], True)
    [reply] = bench.sent
    assert cookies.opened(reply, asked, SEAL) == bench.cookie(name)
    assert bench.drops[Drop.NO_COOKIE] == 1


@pytest.mark.parametrize(("raw", "name"), ADDRESSES)
@pytest.mark.parametrize("ago", [0, 1, 2])
def test_a_cookie_opens_the_door_in_its_slot_and_the_next(raw, name, ago):
    bench = Bench()
    assert bench.ask([bench.packet(bench.cookie(name, ago))], [raw]) == ([ago < 2], True)


def test_no_two_answers_to_one_address_have_anything_in_common():
    bench, raw = Bench(), ADDRESSES[0][0]
    same = bench.packet()
    seen: set[bytes] = set()
    for k in range(60):
        bench.ask([same[:16] + k.to_bytes(32, "big") + same[48:]], [raw])
        seen.update((bench.sent[0][12:24], bench.sent[0][24:40], bench.sent[0][56:1248], bench.sent[0][1248:]))
    assert len(seen) == 240


def test_a_quiet_relay_asks_for_nothing_until_a_batch_is_full():
    bench, raw = Bench(), ADDRESSES[0][0]
    packets = [bench.packet() for _ in range(PLACES)]
    assert bench.ask(packets, [raw] * PLACES, loaded=False) == ([True] * PLACES, False)
    more = [bench.packet() for _ in range(PLACES + 1)]
    assert bench.ask(more, [raw] * (PLACES + 1), loaded=False) == ([True] * PLACES + [False], True)
    assert len(bench.sent) == 1
    assert bench.ask(packets[:1], [raw], loaded=False) == ([False], False)
    assert bench.drops[Drop.REPLAYED_HANDSHAKE] == 1


def test_a_batch_gives_so_many_cookies_and_no_more():
    bench, count = Bench(), COOKIES + 50
    raws = [pack(f"10.0.{k >> 8}.{k & 255}", 4000, socket.AF_INET) for k in range(count)]
    assert bench.ask([bench.packet() for _ in raws], raws) == ([False] * count, True)
    assert len(bench.sent) == COOKIES
    assert bench.drops[Drop.NO_COOKIE] == count


def test_a_crowded_relay_drops_all_in_silence():
    bench = Bench()
    assert bench.ask([bench.packet()], [ADDRESSES[0][0]], crowded=True) == ([False], True)
    assert bench.drops[Drop.NO_BUFFER] == 1
    assert not bench.sent


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=120), st.integers(0, 99))
def test_of_any_mixture_those_pass_who_prove_their_address_within_their_quota(mixture, seed):
    """Each: whose, with a right cookie, or a copy of the one before."""
    bench = Bench(seed)
    packets: list[bytes] = []
    raws: list[bytes] = []
    expected: list[bool] = []
    used, before = [0] * 6, set[bytes]()
    for who, right, copied in mixture:
        host = f"10.0.{who}.1"
        if copied and packets:
            packet = packets[-1]
        else:
            packet = bench.packet(bench.cookie(b"\x0f\xa0" + socket.inet_aton(host)) if right else b"")
        raw = pack(host, 4000, socket.AF_INET)
        fresh = packet not in before
        entitled = fresh and right and not (copied and packets)
        within = entitled and used[who] < BURST
        used[who] += within
        expected.append(within and sum(expected) < PLACES)
        before.add(packet)
        packets.append(packet)
        raws.append(raw)
    assert bench.ask(packets, raws)[0] == expected

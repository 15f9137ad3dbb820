"""Floods of strangers against whole nodes: who gets in, what it costs, what is answered, and what stays."""

import socket
from typing import Any

import numpy as np
import pytest

from bench.attack.floods import forgery, half_build, junk
from nyx.config import KEYS
from nyx.crypto.suites import SUITE_AEGIS128L
from nyx.link.channel import CellReceived
from nyx.link.cookie import COOKIE_SLOT, open_cookie
from nyx.link.handshake import Initiator
from nyx.onion.build import ClientBuild, offered_work
from nyx.onion.seen import KEPT, SIZE, BuildReplay, seen_columns
from nyx.onion.work import Work
from nyx.stats import Counter
from nyx.wire.codes import Drop
from nyx.wire.geometry import PACKET_SIZE
from nyx.wire.packet import KIND_BUILD
from shards import hops, strangers
from shards.address import pack
from shards.effort import CALM, CEILING, FIRST
from shards.fair import OPERATIONS, PIECE
from shards.link import LinkState
from shards.proofs import Proofs
from shards.tables import ROLE_CLIENT
from tests.reference import cookies
from tests.shards.small_network import MS, SECOND, Flying, Network


@pytest.fixture
def net(rng, tmp_path):
    return Network(rng, tmp_path, clients=2)


def source(number):
    return pack(f"11.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 4000, socket.AF_INET)


def throw(net, relay, packets, address=None):
    """Packets arrive at a relay, each from a /24 of its own unless an address is given."""
    for number, packet in enumerate(packets):
        relay.air.waiting.append(Flying(address or source(number << 8), relay.address, packet))


def forgeries(net, relay, count, cookie=b""):
    return [forgery(relay.keys.public, net.rng.randbytes, net.time(), cookie) for _ in range(count)]


def load(net, relay):
    """Make a relay ask for cookies."""
    throw(net, relay, forgeries(net, relay, 2 * strangers.LOADED))
    net.tick(MS)
    assert relay.links.strangers.loaded


def sent_by(net, node, after=0):
    return [flying for flying in net.log[after:] if flying.source == node.address]


def statistic(node, counter):
    return int(node.statistics[counter])


def initiation(net, relay, cookie=b""):
    rows = net.clients[0].session_rows
    return Initiator(relay.keys.public, None, rows.suites, rows.new_cids(), net.rng.randbytes, net.time(), cookie)


def cookie_for(net, relay, address):
    """What a relay under load sends to an address that asks."""
    [asked] = forgeries(net, relay, 1)
    before = len(net.log)
    throw(net, relay, [asked], address)
    net.tick(MS)
    [answer] = [f.packet for f in net.log[before:] if f.target == address]
    return open_cookie(answer, asked, relay.keys.public)


# ---------------------------------------------------------------- handshakes


def test_between_two_batches_a_flood_gets_no_more_than_its_operations(net):
    relay = net.relays[0]
    throw(net, relay, [initiation(net, relay).packet for _ in range(20)])
    for turn in range(1, 6):
        net.tick(MS)
        assert statistic(relay, Counter.HANDSHAKES_ANSWERED) == turn * OPERATIONS // PIECE
    net.run(0.1, MS)
    assert statistic(relay, Counter.HANDSHAKES_ANSWERED) == 20
    assert not relay.links.strangers.loaded


def test_junk_costs_no_operation_and_gets_nothing(net):
    relay, before = net.relays[0], len(net.log)
    throw(net, relay, [junk(net.rng.randbytes) for _ in range(500)])
    net.run(0.1)
    assert relay.drops(Drop.FORGED_HANDSHAKE) == 500
    assert not sent_by(net, relay, before)
    assert relay.pool.free_count == net.relays[1].pool.free_count


def test_under_a_flood_without_cookies_an_honest_client_still_gets_in_by_a_cookie(net):
    client, relay = net.clients[0], net.relays[0]
    load(net, relay)
    found: list[Any] = []
    client.links.want(net.node_of(0), found.append, net.now, net.time())
    began = net.now
    while not found and net.now < began + SECOND:
        throw(net, relay, forgeries(net, relay, 20))
        net.tick()
    assert found[0].state is LinkState.UP
    assert statistic(client, Counter.COOKIES_TAKEN) == 1
    assert relay.drops(Drop.NO_COOKIE) > 20  # the flood was there
    assert statistic(relay, Counter.COOKIES_SENT) <= relay.drops(Drop.NO_COOKIE)
    assert all(len(flying.packet) == PACKET_SIZE for flying in net.log)


def test_no_source_is_sent_more_than_it_sent(net):
    relay = net.relays[0]
    load(net, relay)
    address, before = source(77), len(net.log)
    throw(net, relay, forgeries(net, relay, 500), address)
    net.run(0.2, MS)
    sent = [f for f in net.log[before:] if f.target == address]
    assert 0 < len(sent) <= 500


def test_a_repeated_initiation_meets_silence_under_load_too(net):
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    first = sent_by(net, client)[0]
    load(net, relay)
    before = len(net.log)
    relay.air.waiting.append(first)
    net.tick(MS)
    assert relay.drops(Drop.REPLAYED_HANDSHAKE) == 1
    assert not [f for f in net.log[before:] if f.target == first.source and f.source == relay.address]


def test_an_initiation_with_a_cookie_is_answered_once(net):
    relay, address = net.relays[0], source(99)
    load(net, relay)
    packet = initiation(net, relay, cookie_for(net, relay, address)).packet
    before = statistic(relay, Counter.HANDSHAKES_ANSWERED)
    throw(net, relay, [packet] * 3, address)
    net.run(0.2, MS)
    assert statistic(relay, Counter.HANDSHAKES_ANSWERED) == before + 1
    assert relay.drops(Drop.REPLAYED_HANDSHAKE) == 2


@pytest.mark.parametrize("change", ["address", "port", "age", "none"])
def test_a_cookie_is_good_for_one_address_and_two_slots(net, change):
    relay, address = net.relays[0], source(99)
    load(net, relay)
    cookie = cookie_for(net, relay, address)
    relay.restart()  # a cookie outlives the worker that gave it
    if change == "age":
        net.now += 2 * COOKIE_SLOT * SECOND
        relay.links.strangers.on_timer(net.now, net.time())
    load(net, relay)
    there = {"address": source(98), "port": pack("11.0.0.99", 4001, socket.AF_INET)}.get(change, address)
    before = statistic(relay, Counter.HANDSHAKES_ANSWERED)
    throw(net, relay, [initiation(net, relay, cookie).packet], there)
    net.run(0.2, MS)
    assert statistic(relay, Counter.HANDSHAKES_ANSWERED) == before + (change == "none")


def test_a_source_that_proves_itself_gets_its_quota_and_others_theirs(net):
    client, relay, address = net.clients[0], net.relays[0], source(99)
    load(net, relay)
    cookie = cookie_for(net, relay, address)
    throw(net, relay, forgeries(net, relay, 400, cookie), address)
    found: list[Any] = []
    client.links.want(net.node_of(0), found.append, net.now, net.time())
    net.run(0.5)
    assert relay.drops(Drop.OVER_QUOTA) > 300
    assert found[0].state is LinkState.UP


def test_a_full_replay_table_asks_for_cookies_instead_of_shutting_everybody_out(net):
    client, relay = net.clients[0], net.relays[0]
    words = relay.columns["handshakes_seen"]
    throw(net, relay, forgeries(net, relay, 1))
    net.tick()
    words[5:] = 1  # behind its key and its newest slot
    net.link(client, 0)
    assert statistic(client, Counter.COOKIES_TAKEN) == 1
    assert relay.links.strangers.loaded


def test_a_load_ends_when_the_flood_does(net):
    relay = net.relays[0]
    load(net, relay)
    net.run(strangers.CALM + 3, SECOND // 4)
    assert not relay.links.strangers.loaded
    net.link(net.clients[0], 0)
    assert statistic(net.clients[0], Counter.COOKIES_TAKEN) == 0


def test_a_relay_that_only_ever_sends_cookies_is_given_up(net):
    """An evil relay: each of our initiations is answered by a cookie."""
    client, relay = net.clients[0], net.relays[0]
    public = relay.keys.public
    key = cookies.seal_key(public.link_x25519, public.link_ek)
    found: list[Any] = []

    def cookies_only(flying):
        if flying.target == relay.address:
            answer = cookies.answer(flying.packet, bytes(16), key, net.rng.randbytes(12 + 1224))
            client.air.waiting.append(Flying(relay.address, client.address, answer))

    net.watch = cookies_only
    client.links.want(net.node_of(0), found.append, net.now, net.time())
    net.run(50, SECOND // 4)
    assert found == [None]
    assert statistic(client, Counter.COOKIES_TAKEN) >= 5
    assert len(sent_by(net, client)) <= 12


# ---------------------------------------------------------------- builds


def half_builds(net, relay, count):
    """Half-open builds at a relay, over one link from each of two clients."""
    links = [net.link(client, 0) for client in net.clients]
    there = [link for link in relay.links.all() if link.state is LinkState.UP]
    assert len(there) == len(links)
    cells, most = half_build(net.rng.randbytes), 0
    for number in range(count):
        link = there[number % len(there)]
        session = next(row for (generation, _), row in link.sessions.items() if generation == 1)
        for slot, cell in enumerate(cells):
            relay.desk.on_cell(link, session, CellReceived(KIND_BUILD, slot, number + 1, cell), net.now)
        most = max(most, relay.desk.hops.pending)
    return most


def test_half_open_builds_cost_bounded_memory_and_an_honest_one_passes(net, monkeypatch):
    monkeypatch.setattr(hops, "COLLECTING_MAX", 100)
    relay, client = net.relays[0], net.clients[0]
    most = half_builds(net, relay, 2000)
    assert most <= 100
    assert relay.drops(Drop.OVERFLOW) >= 1800
    net.run(hops.COLLECT_LIMIT / SECOND + 0.5, SECOND // 4)
    assert relay.desk.hops.pending == 0
    client.desk.clients.connection_for(b"somebody", net.now)
    net.run(1)
    assert client.circuits(ROLE_CLIENT)


# ---------------------------------------------------------------- proof of work


def ask(relay, bits):
    """This relay asks for so much work, and goes on asking."""
    relay.desk.hops.effort.bits = bits
    relay.desk.hops.effort.look = lambda *_: None


def test_builds_that_wait_make_a_relay_ask_for_work_and_calm_ends_it(net):
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    [link] = relay.links.all()
    session = next(row for (generation, _), row in link.sessions.items() if generation == 1)
    publics = [net.relays[i].keys.public for i in range(3)]
    for circuit in range(1, hops.PENDING_PER_CLIENT + 1):
        for slot, cell in enumerate(ClientBuild(publics, SUITE_AEGIS128L, net.rng.randbytes, net.time()).cells):
            relay.desk.on_cell(link, session, CellReceived(KIND_BUILD, slot, circuit, cell), net.now)
    assert relay.desk.hops.waiting == hops.COMPLETE_PER_LINK
    net.now += SECOND
    relay.desk.hops.on_timer(net.now)
    assert relay.desk.hops.effort.bits == FIRST
    assert "10 bits" in relay.desk.flooded()
    net.run(CALM / SECOND + 3, SECOND // 4)
    assert relay.desk.hops.effort.bits == 0
    assert relay.desk.flooded() is None


@pytest.mark.parametrize("asking", [[1], [0, 1, 2]])
def test_a_client_hears_what_is_asked_and_builds_again_with_it(net, asking):
    client = net.clients[0]
    for relay in asking:
        ask(net.relays[relay], 9 + relay)
    client.desk.clients.connection_for(b"somebody", net.now)
    net.run(2)
    assert client.circuits(ROLE_CLIENT)
    assert statistic(client, Counter.BUILDS_WORKED) == len(asking)
    assert statistic(client, Counter.BUILDS_FAILED) == 0


def test_no_more_work_is_made_than_the_configuration_allows(net):
    client = net.clients[0]
    client.path.effort = 8
    ask(net.relays[0], 9)
    client.desk.clients.connection_for(b"somebody", net.now)
    net.run(2)
    assert not client.circuits(ROLE_CLIENT)
    assert "9 bits of proof of work" in client.desk.clients.trouble


def test_a_relay_that_asks_for_ever_more_is_left(net):
    client, evil = net.clients[0], net.relays[0]
    effort = evil.desk.hops.effort
    bits = iter(range(1, 1000))
    decide = evil.desk.hops._decide

    def never(pending, suite, last):
        pending.worked = False
        effort.bits = min(next(bits), 12)
        return decide(pending, suite, last)

    evil.desk.hops._decide = never
    effort.look = lambda *_: None
    effort.bits = 1
    client.desk.clients.connection_for(b"somebody", net.now)
    net.run(3)
    assert statistic(client, Counter.BUILDS_FAILED) >= 1
    assert not client.circuits(ROLE_CLIENT)


def test_builds_without_work_get_few_operations_and_never_before_those_with_it(net):
    relay = net.relays[0]
    for client in net.clients:
        net.link(client, 0)
    ask(relay, 9)
    poor, rich = relay.links.all()
    epochs = [max(net.snapshot.epoch + n, 0) for n in (0, -1, 1)]
    publics = [net.relays[i].keys.public for i in range(3)]
    for circuit in range(1, 40):
        proofs = Work([p.node_id for p in publics], [9, 0, 0], net.snapshot.epoch, net.rng.randbytes)
        while not proofs.done:
            proofs.advance()
        for link, work in ((poor, ()), (rich, proofs.proofs)):
            session = next(row for (generation, _), row in link.sessions.items() if generation == 1)
            made = ClientBuild(publics, SUITE_AEGIS128L, net.rng.randbytes, net.time(), work)
            while not work and offered_work(made.cells, publics[0], epochs)[1] >= 9:  # by luck
                made = ClientBuild(publics, SUITE_AEGIS128L, net.rng.randbytes, net.time())
            for slot, cell in enumerate(made.cells):
                relay.desk.on_cell(link, session, CellReceived(KIND_BUILD, slot, circuit, cell), net.now)
    assert relay.drops(Drop.NO_WORK) > 20
    opened: list[bool] = []
    take = relay.desk.hops._open

    def open_one(pending, *rest):
        opened.append(pending.worked)
        take(pending, *rest)

    relay.desk.hops._open = open_one
    net.run(0.1, MS)
    assert all(opened[at : at + 4].count(False) == 1 for at in range(8))
    assert opened.count(True) == 39


def worked_build(net, relay, bits):
    """The seven cells of a build whose record for this relay, the first hop, shows so much work."""
    publics = [net.relays[i].keys.public for i in range(3)]
    proofs = Work([p.node_id for p in publics], [bits, 0, 0], net.snapshot.epoch, net.rng.randbytes)
    while not proofs.done:
        proofs.advance()
    return ClientBuild(publics, SUITE_AEGIS128L, net.rng.randbytes, net.time(), proofs.proofs).cells


def test_a_proof_of_work_serves_once_whatever_stands_behind_it(net):
    """One proof before any number of junk seals would be as many builds that go first."""
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    ask(relay, 9)
    [link] = relay.links.all()
    session = next(row for (generation, _), row in link.sessions.items() if generation == 1)
    cells = worked_build(net, relay, 9)
    worked: list[bool] = []
    relay.desk.hops._queue = lambda pending: worked.append(relay.desk.hops._worked(pending))
    for circuit in range(1, 4):
        for slot, cell in enumerate(cells):
            junk = cell[:-1] + bytes((cell[-1] ^ circuit,))  # of the tag: the seal does not open
            relay.desk.on_cell(link, session, CellReceived(KIND_BUILD, slot, circuit, junk), net.now)
    assert worked == [True, False, False]


def test_a_set_of_opened_builds_that_fills_asks_for_work_and_keeps_room_for_it(net, monkeypatch):
    relay = net.relays[0]
    desk = relay.desk.hops
    monkeypatch.setattr(desk._replay, "used", lambda _wall: hops.WORK_FILL + 0.01)
    net.now += SECOND
    desk.on_timer(net.now)
    assert desk.effort.bits == FIRST
    assert not desk._crowded
    monkeypatch.setattr(desk._replay, "used", lambda _wall: hops.IDLE_FILL + 0.01)
    net.now += SECOND
    desk.on_timer(net.now)
    net.link(net.clients[0], 0)
    [link] = relay.links.all()
    session = next(row for (generation, _), row in link.sessions.items() if generation == 1)
    before = relay.drops(Drop.NO_WORK)
    for circuit, cells in ((1, worked_build(net, relay, 0)), (2, worked_build(net, relay, 20 - 6))):
        for slot, cell in enumerate(cells):
            relay.desk.on_cell(link, session, CellReceived(KIND_BUILD, slot, circuit, cell), net.now)
    assert relay.drops(Drop.NO_WORK) == before + 1
    assert len(desk._complete) == 1


def test_proofs_are_forgotten_only_when_others_came(rng):
    proofs = Proofs(4)
    shown = [rng.randbytes(32) for _ in range(9)]
    assert all(proofs.first(x) for x in shown[:8])
    assert not any(proofs.first(x) for x in shown[:8])
    assert proofs.first(shown[8])
    assert not proofs.first(shown[4])
    assert proofs.first(shown[0])


def test_the_part_of_the_log_that_counts_is_told():
    words = np.zeros(seen_columns(1)[0].length, np.uint64)
    seen = BuildReplay(words, 0)
    assert seen.used(1000) == 0
    for number in range(100):
        seen.seen(number.to_bytes(16, "big"), 1000 + number, 1000)
    assert seen.used(1000) == 100 / SIZE
    assert seen.used(1000 + KEPT + 50) == 50 / SIZE


def test_a_relay_never_asks_more_than_clients_make():
    assert next(key.default for key in KEYS if key.name == "path.effort") >= CEILING


def test_a_full_table_of_proven_initiations_shuts_nobody_out(net):
    client, relay = net.clients[0], net.relays[0]
    strangers = relay.links.strangers
    relay.columns["handshakes_proven"][5:] = 1  # behind its key and its newest slot
    strangers._load.begin()
    net.link(client, 0)
    assert relay.links.all()

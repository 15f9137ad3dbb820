"""Links between whole nodes without sockets: what they say to strangers, what they keep, and what a restart leaves of them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nyx.crypto.replay import WINDOW_WORDS
from nyx.link.frames import Crypto, CryptoMessage, NewCid, Ping
from nyx.link.session import SESSION_FREE, SESSION_HELD, SESSION_LIVE, session_bytes
from nyx.stats import Latency, latency_histogram
from nyx.wire.codes import Drop
from nyx.wire.geometry import CID_SIZE, PACKET_SIZE
from nyx.wire.packet import KIND_BUILD
from shards import links as module
from shards.link import LinkState
from tests.shards.small_network import SECOND, Network


@pytest.fixture
def net(rng, tmp_path):
    return Network(rng, tmp_path, clients=2)


def sent_by(net, node, after=0):
    return [flying for flying in net.log[after:] if flying.source == node.address]


def only_link(node):
    [link] = node.links.all()
    return link


def cut(net, node, target):
    """Nothing from `node` to `target` arrives any more."""
    keep = net.watch
    net.watch = lambda flying: None if (flying.source, flying.target) == (node.address, target.address) else keep(flying)


def generations(node):
    sessions = node.columns["sessions"]
    return sorted(int(s["rekey_in"]) for s in sessions if s["state"] == SESSION_LIVE)


# ---------------------------------------------------------------- coming up


def test_a_link_comes_up_and_forgets_what_made_it(net):
    client, relay = net.clients[0], net.relays[0]
    link = net.link(client, 0)
    for ours in (link, only_link(relay)):
        assert ours.state is LinkState.UP
        assert ours.upgrade is None
        assert ours.attempt is None
    assert generations(client) == generations(relay) == [0, 1, 1, 1, 1]
    net.run(12, SECOND // 4)
    assert generations(client) == generations(relay) == [1, 1, 1, 1]
    for node in (client, relay):
        for row in np.flatnonzero(node.columns["sessions"]["state"] == SESSION_FREE):
            assert not session_bytes(node.columns, int(row)).any()


def test_round_trips_of_a_link_are_counted(net):
    net.link(net.clients[0], 0)
    net.run(12, SECOND // 4)
    histogram = latency_histogram(net.clients[0].shared["latencies"], 0, Latency.LINK_ROUND_TRIP)
    assert sum(histogram.counts) >= 2  # the exchange, and the first frames after it
    assert sum(latency_histogram(net.clients[0].shared["latencies"], 0, Latency.STREAM_OPEN).counts) == 0


def test_one_link_serves_both_directions_between_relays_and_both_know_who_is_there(net):
    link = net.link(net.relays[0], 1)
    back = net.link(net.relays[1], 0)
    assert back is only_link(net.relays[1])
    assert not back.initiator
    assert link.node == net.relays[1].keys.public.node_id
    assert back.node == net.relays[0].keys.public.node_id


def test_a_relay_is_not_used_before_it_has_proved_its_key(net):
    """Whoever names a relay's public key in an initiation is not that relay until a packet opens under the exchange."""
    one, two = net.relays[:2]
    cut(net, one, two)
    keep, net.watch = net.watch, lambda flying: flying.packet
    one.links.want(net.node_of(1), lambda _link: None, net.now, net.wall)
    net.watch = keep
    net.run(1)
    assert only_link(two).state is LinkState.KEYING
    assert two.links.find(one.keys.public.node_id) is None


def test_all_packets_have_one_size_and_no_two_share_a_number_under_a_key(net):
    net.link(net.clients[0], 0)
    net.run(40, SECOND // 4)
    assert {len(flying.packet) for flying in net.log} == {PACKET_SIZE}
    assert len({flying.packet for flying in net.log}) == len(net.log)


# ---------------------------------------------------------------- strangers


def test_one_packet_from_a_false_address_gets_one_packet_and_then_silence(net):
    client, relay = net.clients[0], net.relays[0]
    client.links.want(net.node_of(0), lambda _link: None, net.now, net.wall)
    client.air.waiting.clear()
    del net.nodes[client.address]
    net.run(15, SECOND // 4)
    assert len(sent_by(net, client)) == 1
    assert len(sent_by(net, relay)) == 1
    assert relay.links.all() == []
    assert not relay.columns["sessions"].view(np.uint8).any()


def test_a_peer_that_showed_its_key_and_stalls_is_told(net):
    client, relay = net.clients[0], net.relays[0]

    def first_control_only(flying):
        return flying.packet if flying.target == relay.address and len(sent_by(net, client)) <= 2 else None

    net.watch = lambda flying: flying.packet if flying.source == relay.address else first_control_only(flying)
    client.links.want(net.node_of(0), lambda _link: None, net.now, net.wall)
    net.run(0.5)
    before = len(net.log)
    net.run(15, SECOND // 4)
    assert sent_by(net, relay, before)
    assert relay.links.all() == []


def test_a_repeated_initiation_and_junk_meet_silence(net, rng):
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    first = sent_by(net, client)[0]
    before = len(sent_by(net, relay))
    for packet in (first.packet, first.packet[:-1] + bytes((first.packet[-1] ^ 1,)), rng.randbytes(PACKET_SIZE)):
        relay.air.waiting.append(first._replace(packet=packet))
    net.tick()
    assert relay.drops(Drop.REPLAYED_HANDSHAKE) == 2
    assert relay.drops(Drop.FORGED_HANDSHAKE) == 1
    assert len(sent_by(net, relay)) == before
    assert len(relay.links.all()) == 1


def test_a_repeated_initiation_meets_silence_after_a_restart_too(net):
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    relay.restart()
    relay.air.waiting.append(sent_by(net, client)[0])
    net.tick()
    assert relay.drops(Drop.REPLAYED_HANDSHAKE) == 1


def test_a_forged_answer_does_not_end_the_attempt(net):
    client, relay = net.clients[0], net.relays[0]
    net.watch = lambda flying: None if flying.source == relay.address else flying.packet
    up: list[Any] = []
    client.links.want(net.node_of(0), up.append, net.now, net.wall)
    net.tick()
    [answer] = sent_by(net, relay)
    net.watch = lambda flying: flying.packet
    client.air.waiting.append(
        answer._replace(packet=answer.packet[:700] + bytes((answer.packet[700] ^ 1,)) + answer.packet[701:])
    )
    net.tick()
    assert client.drops(Drop.BAD_HANDSHAKE) == 1
    client.air.waiting.append(answer)
    net.run(0.2)
    assert up[0].state is LinkState.UP


def test_a_client_answers_no_initiation(net):
    client, relay = net.clients[0], net.relays[0]
    net.link(net.clients[1], 0)
    initiation = sent_by(net, net.clients[1])[0]
    client.air.waiting.append(initiation._replace(target=client.address))
    before = len(sent_by(net, client))
    net.run(0.2)
    assert len(sent_by(net, client)) == before
    assert client.drops(Drop.UNKNOWN_CID) == 1
    assert relay.links.count_up == 1


def test_a_flood_of_strangers_leaves_room_for_links_of_our_own(net, monkeypatch):
    relay = net.relays[0]
    monkeypatch.setattr(module, "STRANGERS_MAX", 1)
    net.link(net.clients[0], 0)
    found: list[Any] = []
    net.clients[1].links.want(net.node_of(0), found.append, net.now, net.wall)
    net.run(0.2)
    assert found == []
    assert relay.drops(Drop.NO_BUFFER) >= 1
    assert net.link(relay, 1).state is LinkState.UP


# ---------------------------------------------------------------- generations


def send_on(node, link, generation, index, frames):
    link.channels[generation, index].send_frames(frames)
    node.links._busy.add((link.tag, generation, index))


@pytest.mark.parametrize(
    "frame", [NewCid(0, bytes(CID_SIZE)), Crypto(CryptoMessage.KEM_EK, bytes(1184)), Crypto(CryptoMessage.HELLO, b"\0\1\x80")]
)
def test_a_second_exchange_ends_the_link(net, frame):
    client, relay = net.clients[0], net.relays[0]
    link = net.link(client, 0)
    send_on(client, link, 1, 0, [frame])
    net.run(0.1)
    assert relay.links.all() == []
    assert client.links.all() == []


@pytest.mark.parametrize("header", [0x00, 0x08, 0x10, 0x18, 0x20])
def test_no_cell_of_any_kind_passes_under_generation_0(net, header):
    client, relay = net.clients[0], net.relays[0]
    link = net.link(client, 0)
    before = relay.drops(Drop.NOT_READY)
    client.batch.send_control(link.sessions[0, 0], header, 0, (5).to_bytes(4, "big") + bytes(1224))
    net.tick()
    net.tick()
    assert relay.drops(Drop.NOT_READY) == before + 1
    assert relay.desk.hops.pending == 0


@pytest.mark.parametrize(
    ("header", "circuit"),
    [(0x28, 5), (0x21, 5), (0x60, 0), (0x01, 5), (0x38, 5), (0x40, 5), (0x00, 0), (0x42, 0), (0x80, 0), (0xC0, 0)],
)
def test_headers_that_break_a_rule_are_dropped_without_a_word(net, header, circuit):
    client, relay = net.clients[0], net.relays[0]
    link = net.link(client, 0)
    before, count = relay.drops(Drop.BAD_HEADER), len(sent_by(net, relay))
    client.batch.send_control(link.sessions[1, 0], header, 0, circuit.to_bytes(4, "big") + bytes(1224))
    net.tick()
    net.tick()
    assert relay.drops(Drop.BAD_HEADER) == before + 1
    assert len(sent_by(net, relay)) == count


# ---------------------------------------------------------------- rows that change hands


def test_packets_of_an_ended_link_are_not_taken_for_those_of_the_next(net):
    """In one batch: a link's CLOSE, another link's key exchange, which takes new rows, and more packets of the first."""
    bad, good, relay = net.clients[0], net.clients[1], net.relays[0]
    link = net.link(bad, 0)
    net.run(12, SECOND // 4)
    held = []
    net.watch = lambda flying: held.append(flying) if flying.target == relay.address else flying.packet
    good.links.want(net.node_of(0), lambda _link: None, net.now, net.wall)
    relay.air.waiting.append(held.pop())
    net.tick()
    net.tick()
    exchange, held[:] = list(held), []
    for index in range(4):
        channel = link.channels[1, index]
        channel.close(0)
        bad.links._flush_channel(link, (1, index), channel, net.now)
    for index in range(4):
        for _ in range(3):
            bad.batch.send_control(link.sessions[1, index], 0x40, 0, bytes(4) + b"\x31" + bytes(1223))
    bad.batch.outbox.flush(net.now)
    relay.air.waiting += [held[0], *exchange, *held[1:]]
    relay.turn(net.now, net.wall)
    assert only_link(relay).address == good.address
    assert only_link(relay).state is LinkState.KEYING


def test_packets_that_wait_for_the_socket_never_follow_their_row_to_another_address(net):
    one, two, relay = net.clients[0], net.clients[1], net.relays[0]
    net.link(one, 0)
    theirs = {bytes(s["peer_cid"]) for s in relay.columns["sessions"] if s["state"] == SESSION_LIVE}
    link = only_link(relay)
    relay.air.blocked = True
    send_on(relay, link, 1, 0, [Ping(1)])
    relay.links.transmit(net.now)
    relay.batch.outbox.flush(net.now)
    assert relay.batch.outbox.blocked
    free = relay.pool.free_count
    relay.links.close(link, 0, net.now)
    assert not relay.batch.outbox.blocked
    assert relay.pool.free_count > free
    relay.air.blocked = False
    net.link(two, 0)
    assert not [f for f in net.log if f.target == two.address and f.packet[:CID_SIZE] in theirs]


def test_a_number_of_a_living_link_is_not_given_again(net):
    relay = net.relays[0]
    net.link(net.clients[0], 0)
    taken = only_link(relay).row
    relay.links._next_row = module.ROWS_MAX
    assert relay.links._take_row() == module.ROWS_MAX
    numbers = [relay.links._take_row() for _ in range(taken + 2)]
    assert taken not in numbers
    assert numbers[0] >= 1


# ---------------------------------------------------------------- a new life


def test_a_restart_repeats_no_packet_number_and_keeps_no_key_of_the_exchange(net):
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    before = {
        int(r): int(relay.columns["sessions"][r]["send_next"]) for r in np.flatnonzero(relay.columns["sessions"]["rekey_in"])
    }
    relay.restart()
    assert generations(relay) == [1, 1, 1, 1]
    assert only_link(relay).state is LinkState.UP
    assert all(int(relay.columns["sessions"][row]["send_next"]) >= number for row, number in before.items())


def test_a_half_made_link_does_not_outlive_its_worker(net):
    client, relay = net.clients[0], net.relays[0]
    client.links.want(net.node_of(0), lambda _link: None, net.now, net.wall)
    relay.turn(net.now, net.wall)
    assert generations(relay) == [0]
    relay.restart()
    assert relay.links.repaired == 1
    assert generations(relay) == []
    assert relay.links.all() == []
    assert not relay.columns["sessions"].view(np.uint8).any()


def test_a_row_that_was_being_written_is_free_again(net):
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    for row in (np.flatnonzero(relay.columns["sessions"]["rekey_in"])[0], 40):
        relay.columns["sessions"]["state"][row] = SESSION_HELD
    relay.restart()
    assert relay.session_rows.repaired == 2
    assert len(relay.session_rows.live()) == 3


def test_a_window_torn_from_its_number_is_whole_again(net):
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    sessions = relay.columns["sessions"]
    row = int(np.flatnonzero((sessions["received_next"] > 0) & (sessions["rekey_in"] > 0))[0])
    window = relay.columns["session_windows"][row * WINDOW_WORDS : (row + 1) * WINDOW_WORDS]
    before = window.copy()
    at, bit = divmod(int(sessions[row]["received_next"]) - 1, 64)
    window[at] &= ~np.uint64(1 << bit)  # killed between the commit word and the bit
    relay.restart()
    assert relay.session_rows.repaired == 1
    assert (window == before).all()


def test_the_control_channels_of_a_link_go_on_when_a_worker_dies_on_either_side(net, rng):
    """Far more packets than one window, with deaths between, and in the middle of what is under way."""
    client, relay = net.clients[0], net.relays[0]
    link, repaired = net.link(client, 0), 0
    for number in range(12):
        for circuit in range(20):
            client.links.send_destroy(link, link.sessions[1, 0], 1 + circuit, 0)
            mine = only_link(relay)
            relay.links.send_destroy(mine, mine.sessions[1, 0], 100 + circuit, 0)
            client.turn(net.now, net.wall)
        net.run(0.004 if number % 3 == 0 else 0.3)
        dead = (client, relay)[number % 2]
        dead.restart()
        repaired += dead.links.repaired
        link = only_link(client)
    assert repaired > 0, "no death came while something was unacknowledged"
    net.run(3)
    for node in (client, relay):
        assert only_link(node).state is LinkState.UP
        assert all(channel.waiting == 0 for channel in only_link(node).channels.values())
    assert client.links.find(relay.keys.public.node_id) is only_link(client)


def test_a_circuit_is_built_over_links_that_a_dead_worker_made(net):
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    relay.restart()
    client.restart()
    built: list[Any] = []
    client.links.want(net.node_of(0), built.append, net.now, net.wall)
    assert built == [only_link(client)]
    client.links.send_cell(built[0], built[0].sessions[1, 0], KIND_BUILD, 0, 5, bytes(1224))
    net.run(0.1)
    assert relay.desk.hops.pending == 1


# ---------------------------------------------------------------- workers among themselves


def second_worker(node, post):
    node.links._context = SimpleNamespace(**{**vars(node.context), "index": 1, "workers": 2})
    node.links._post = post


def test_a_wish_that_finds_no_way_to_the_first_worker_fails_at_once(net):
    found: list[Any] = []
    second_worker(net.relays[0], lambda _worker, _message: False)
    net.relays[0].links.want(net.node_of(1), found.append, net.now, net.wall)
    assert found == [None]


def test_nobody_waits_for_a_link_for_ever(net):
    found: list[Any] = []
    second_worker(net.relays[0], lambda _worker, _message: True)
    net.relays[0].links.want(net.node_of(1), found.append, net.now, net.wall)
    net.run(30, SECOND)
    assert found == []
    net.run(20, SECOND)
    assert found == [None]


def test_a_worker_that_lost_its_part_of_a_link_gets_another(net):
    relay = net.relays[0]
    first = net.link(relay, 1)
    node = net.node_of(1).id
    relay.links.want_for(node, net.now, net.wall)
    assert only_link(relay) is first  # its sessions are still on their way to the other worker
    net.run(12, SECOND // 4)
    relay.links.want_for(node, net.now, net.wall)
    net.run(0.3)
    assert len(relay.links.all()) == 2
    assert relay.links.find(node) is not first
    relay.links.close(relay.links.find(node), 0, net.now)
    assert relay.links.find(node) is first


def test_links_stay_while_peers_answer_and_end_when_they_do_not(net):
    client, relay = net.clients[0], net.relays[0]
    net.link(client, 0)
    net.run(150, SECOND // 4)
    assert only_link(relay).state is LinkState.UP
    cut(net, client, relay)
    net.run(70, SECOND // 4)
    assert relay.links.all() == []
    assert not relay.columns["sessions"].view(np.uint8).any()


def test_a_peer_that_says_nothing_to_what_is_sent_is_missed_within_seconds(net):
    client, relay = net.clients[0], net.relays[0]
    link = net.link(client, 0)
    net.run(3, SECOND // 4)
    cut(net, relay, client)
    for _ in range(7):  # cells without an answer
        client.columns["sessions"]["last_out"][list(link.sessions.values())] = net.now
        net.run(1, SECOND // 20)
    assert client.links.all() == []


def test_a_failed_hand_over_leaves_no_secret_in_the_slot(net):
    relay = net.relays[0]
    relay.batch._rings = SimpleNamespace(push=lambda *_: 0)
    assert not relay.batch.post(0, {"op": "link", "ck": "c0ffee" * 10})
    assert b"c0ffee" not in relay.pool.packets.tobytes()


def test_what_the_control_channel_says_ends_with_a_close(net):
    client, relay = net.clients[0], net.relays[0]
    link = net.link(client, 0)
    client.links.close(link, 0, net.now)
    net.run(0.1)
    assert relay.links.all() == client.links.all() == []


# ---------------------------------------------------------------- an address that changes


def test_a_client_at_another_address_gets_a_link_with_other_ids_and_the_old_one_turns_to_nobody(net):
    client, relay = net.clients[0], net.relays[0]
    old = net.link(client, 0)
    net.run(12, SECOND // 4)
    live = [client.columns["sessions"][row] for row in old.sessions.values()]
    ids = {session[name].tobytes() for session in live for name in ("local_cid", "peer_cid")}
    before, address = client.address, bytearray(client.address)
    address[7] ^= 1  # the last byte of its IPv4 address
    del net.nodes[before]
    client.address = client.air.address = bytes(address)
    net.nodes[client.address] = client
    at = len(net.log)
    client.links._ask(old, 0)
    net.run(8)
    assert old.state is LinkState.GONE
    moved = [flying for flying in net.log[at:] if flying.source == relay.address and flying.target == client.address]
    assert not moved
    assert any(flying.target == before for flying in sent_by(net, relay, at))
    new = net.link(client, 0)
    assert new.state is LinkState.UP
    fresh = [client.columns["sessions"][row] for row in new.sessions.values()]
    assert ids.isdisjoint(session[name].tobytes() for session in fresh for name in ("local_cid", "peer_cid"))

"""Builds at a hop, over real links between whole nodes: what passes, what is silence, what is kept and for how long."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nyx.crypto.schedule import layer_key
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA
from nyx.errors import RemoteProtocolError
from nyx.link.channel import CellReceived
from nyx.onion import build as onion_build
from nyx.onion.build import BuildRefusedError, ClientBuild
from nyx.onion.layer import FORWARD, remove_layer
from nyx.onion.work import Proof
from nyx.wire.codes import DestroyReason, Drop, ErrorCode
from nyx.wire.geometry import BUILD_SLOTS, CELL_SIZE
from nyx.wire.packet import KIND_ANSWER, KIND_BUILD
from shards import hops as module
from shards.tables import ROLE_LAST, ROLE_RELAY
from tests.shards.small_network import SECOND, Network

ID = 5  # a circuit id that an initiator may choose


class Peer:
    """What a client's neighbour sees: a link, the cells that came back on it, and the ends of circuits."""

    def __init__(self, net: Network, relay: int = 0, client: int = 0) -> None:
        self.net, self.node = net, net.clients[client]
        self.link = net.link(self.node, relay)
        self.answers: dict[int, dict[int, bytes]] = {}
        self.ends: list[tuple[int, int]] = []
        self.node.links.circuits = self

    def on_cell(self, link: Any, session: int, cell: Any, now: int) -> None:
        assert cell.kind == KIND_ANSWER
        self.answers.setdefault(cell.circuit, {})[cell.slot] = cell.cell

    def on_destroy(self, link: Any, circuit_id: int, reason: int, now: int) -> None:
        self.ends.append((circuit_id, reason))

    def on_link_lost(self, link: Any, now: int) -> None:
        self.link = None

    def session(self, index=0):
        return self.link.sessions[1, index]

    def send(self, build, circuit_id=ID, slots=range(BUILD_SLOTS), index=0):
        for slot in slots:
            assert self.node.links.send_cell(self.link, self.session(index), KIND_BUILD, slot, circuit_id, build.cells[slot])

    def end(self, circuit_id=ID, reason=0):
        self.node.links.send_destroy(self.link, self.session(), circuit_id, reason)

    def answer(self, circuit_id=ID):
        return [self.answers[circuit_id][slot] for slot in range(BUILD_SLOTS)]


@pytest.fixture
def net(rng, tmp_path):
    return Network(rng, tmp_path, clients=2)


def build(net, *path, suite=SUITE_AEGIS128L, wall=None):
    publics = [net.relays[i].keys.public for i in path]
    return ClientBuild(publics, suite, net.rng.randbytes, wall or net.wall)


def no_work(net):
    return Proof(net.rng.randbytes(32), net.rng.randbytes(8))


def nothing_left(node):
    circuits = node.columns["circuits"]
    return (
        node.desk.hops.pending == 0
        and not node.rows._reserved
        and not circuits.view(np.uint8).any()
        and not node.columns["layer_keys"].any()
    )


# ---------------------------------------------------------------- what passes


@pytest.mark.parametrize("suite", [SUITE_AEGIS128L, SUITE_CHACHA])
def test_a_build_crosses_three_relays_and_each_keeps_its_own_part(net, suite):
    peer, made = Peer(net), build(net, 0, 1, 2, suite=suite)
    peer.send(made)
    net.run(0.5)
    keys = made.finish(peer.answer())
    for relay, hop, role in zip(net.relays, keys.hops, (ROLE_RELAY, ROLE_RELAY, ROLE_LAST), strict=True):
        assert len(relay.circuits(role)) == 1
        held = relay.columns["layer_keys"].tobytes()
        own = [key for seed in (hop.forward_seed, hop.backward_seed) for key in (seed, layer_key(seed, suite))]
        assert all(key in held for key in own)
        others = [k for other in keys.hops if other is not hop for k in (other.forward_seed, other.backward_seed)]
        assert not any(key in held for key in others)
        assert relay.desk.hops.pending == 0
    peer.end()
    net.run(0.3)
    assert all(nothing_left(relay) for relay in net.relays)


def test_a_hop_learns_its_neighbours_and_no_more(net):
    """Of the middle relay: the links of its circuit lead to the first and the last, and its memory names nobody else."""
    peer = Peer(net)
    peer.send(build(net, 0, 1, 2))
    net.run(0.5)
    middle = net.relays[1]
    back, forth = middle.rows.legs(middle.circuits()[0])
    assert middle.links.link_of(back.session).node == net.relays[0].keys.public.node_id
    assert middle.links.link_of(forth.session).node == net.relays[2].keys.public.node_id
    memory = b"".join(column.tobytes() for name, column in middle.columns.items() if not re.match("stream_[rt]x", name))
    assert peer.node.address[2:8] not in memory  # port and address of the client


def test_the_refusal_of_a_hop_that_is_no_exit_comes_back_sealed_and_leaves_nothing(net):
    peer, made = Peer(net), build(net, 0, 1)
    peer.send(made)
    net.run(0.5)
    with pytest.raises(BuildRefusedError) as refused:
        made.finish(peer.answer())
    assert refused.value.hop == 1
    assert nothing_left(net.relays[1])


def test_a_refusal_in_the_middle_is_passed_back_and_frees_what_lies_behind(net):
    peer, made = Peer(net), build(net, 0, 1, 2)
    middle = net.relays[1]
    while middle.rows.take(ROLE_RELAY, 0) is not None:
        pass
    peer.send(made)
    net.run(0.5)
    with pytest.raises(BuildRefusedError) as refused:
        made.finish(peer.answer())
    assert refused.value.hop == 1
    assert not middle.rows._reserved
    assert middle.desk.hops.pending == 0
    assert nothing_left(net.relays[2])


# ---------------------------------------------------------------- silence


def dropped(net, peer, relay=0, code=Drop.BAD_BUILD):
    before = net.relays[relay].drops(code)
    net.run(0.3)
    assert not peer.answers
    assert not peer.ends
    return net.relays[relay].drops(code) - before


def test_a_build_for_somebody_else_is_silence(net):
    peer = Peer(net)
    peer.send(build(net, 1, 2))
    assert dropped(net, peer) == 1
    assert nothing_left(net.relays[0])


def test_a_build_that_leads_back_to_the_hop_itself_is_silence(net):
    peer = Peer(net)
    publics = [net.relays[0].keys.public, net.relays[2].keys.public]
    made = ClientBuild(publics, SUITE_AEGIS128L, net.rng.randbytes, net.wall)
    twin = onion_build._request(publics[0], publics[0].node_id, 3, SUITE_AEGIS128L, net.wall, no_work(net))[1]
    made.cells = [net.rng.randbytes(CELL_SIZE) for _ in range(BUILD_SLOTS)]
    made.cells[3] = twin
    peer.send(made)
    assert dropped(net, peer) == 1


def test_a_build_that_leads_back_to_the_relay_it_came_from_is_silence(net):
    """Relay 0 is told to pass to 1, which is told to pass to 0."""
    zero, one = net.relays[0].keys.public, net.relays[1].keys.public
    peer, cells = Peer(net), [bytearray(net.rng.randbytes(CELL_SIZE)) for _ in range(BUILD_SLOTS)]
    first, request = onion_build._request(zero, one.node_id, 0, SUITE_AEGIS128L, net.wall, no_work(net))
    _, second = onion_build._request(one, zero.node_id, 1, SUITE_AEGIS128L, net.wall, no_work(net))
    cells[0][:], cells[1][:] = request, second
    remove_layer(cells[1], first.keys.layers(SUITE_AEGIS128L)[0], SUITE_AEGIS128L, FORWARD, KIND_BUILD, 1)
    made = build(net, 0, 1)
    made.cells = [bytes(cell) for cell in cells]
    peer.send(made)
    assert dropped(net, peer, relay=1) == 1


def test_a_repeated_record_is_silence_on_any_link_and_after_a_restart(net):
    peer, made = Peer(net), build(net, 0, 1, 2)
    peer.send(made)
    net.run(0.5)
    assert len(peer.answers) == 1
    other = Peer(net, client=1)
    other.send(made)
    assert dropped(net, other) == 1
    net.relays[0].restart()
    other.node.links.close(other.link, ErrorCode.NO_ERROR, net.now)
    third = Peer(net, client=1)
    third.send(made, circuit_id=9)
    assert dropped(net, third) == 1


@pytest.mark.parametrize("age", [-601, 121])
def test_a_record_too_old_or_from_the_future_is_silence(net, age):
    peer = Peer(net)
    net.relays[0].context.started = 0
    peer.send(build(net, 0, 1, 2, wall=net.wall + age + (1 if age > 0 else -1)))
    assert dropped(net, peer) == 1


@pytest.mark.parametrize("circuit_id", [1 << 31 | 5, 1 << 31])
def test_an_id_that_the_sender_may_not_choose_is_silence(net, circuit_id):
    peer = Peer(net)
    peer.send(build(net, 0, 1, 2), circuit_id)
    assert dropped(net, peer) == BUILD_SLOTS


def test_one_changed_bit_in_any_slot_ends_the_build(net):
    for slot in range(BUILD_SLOTS):
        peer, made = Peer(net), build(net, 0, 1, 2)
        sent = list(made.cells)
        sent[slot] = bytes((sent[slot][0] ^ 1, *sent[slot][1:]))
        tampered = build(net, 0, 1, 2)
        tampered.cells = sent
        peer.send(tampered, circuit_id=20 + slot)
        net.run(0.4)
        if 20 + slot in peer.answers:
            with pytest.raises(RemoteProtocolError):
                made.finish(peer.answer(20 + slot))


# ---------------------------------------------------------------- ids, sessions, doubles


def test_a_second_build_under_an_id_in_use_is_silence_at_every_stage(net):
    """While it is collected, while the next link is made or answers are awaited, and while the circuit is open."""
    peer, relay = Peer(net), net.relays[0]
    net.watch = lambda flying: None if flying.target == net.relays[1].address else flying.packet
    peer.send(build(net, 0, 1, 2))
    net.run(0.2)
    assert relay.desk.hops.pending == 1
    peer.send(build(net, 0, 1, 2))
    assert dropped(net, peer) == BUILD_SLOTS
    assert relay.desk.hops.pending == 1
    net.watch = lambda flying: flying.packet
    net.run(3)
    assert len(relay.circuits()) == 1
    peer.answers.clear()
    peer.send(build(net, 0, 1, 2))
    assert dropped(net, peer) == BUILD_SLOTS
    assert len(relay.circuits()) == 1


def test_cells_of_one_build_come_on_one_session(net):
    peer, made = Peer(net), build(net, 0, 1, 2)
    peer.send(made, slots=range(4), index=0)
    net.run(0.1)
    peer.send(made, slots=range(4, 7), index=1)
    assert dropped(net, peer) == 3


def test_answers_are_taken_from_the_link_and_session_they_are_awaited_on_alone(net):
    peer, relay = Peer(net), net.relays[0]
    net.watch = lambda flying: None if flying.source == net.relays[1].address and len(net.log) > 200 else flying.packet
    net.link(relay, 1)
    while len(net.log) <= 200:
        net.run(1, SECOND // 4)
    peer.send(build(net, 0, 1, 2))
    net.run(0.1)
    [(link_row, circuit_id)] = relay.desk.hops._awaited
    forth = relay.desk.hops._awaited[link_row, circuit_id].forth
    wrong_link = next(link for link in relay.links.all() if link.row != link_row)
    right_link = next(link for link in relay.links.all() if link.row == link_row)
    cell = CellReceived(KIND_ANSWER, 0, circuit_id, bytes(CELL_SIZE))
    other = next(row for (generation, _), row in right_link.sessions.items() if generation == 1 and row != forth.session)
    before = relay.drops(Drop.UNKNOWN_CIRCUIT)
    relay.desk.on_cell(wrong_link, forth.session, cell, net.now)
    relay.desk.on_cell(right_link, other, cell, net.now)
    assert relay.drops(Drop.UNKNOWN_CIRCUIT) == before + 2
    relay.desk.on_cell(right_link, forth.session, cell, net.now)
    assert relay.drops(Drop.UNKNOWN_CIRCUIT) == before + 2


# ---------------------------------------------------------------- bounds and ends


def test_builds_that_are_never_complete_are_few_and_short(net):
    peer, relay = Peer(net), net.relays[0]
    made = build(net, 0, 1, 2)
    for n in range(module.COLLECTING_PER_LINK + 3):
        peer.send(made, circuit_id=100 + n, slots=[0])
        net.tick()
    net.run(0.5)
    assert relay.desk.hops.pending == module.COLLECTING_PER_LINK
    assert relay.drops(Drop.OVERFLOW) == 3
    net.run(3, SECOND // 4)
    assert nothing_left(relay)
    assert peer.ends == [(100 + n, DestroyReason.DEADLINE) for n in range(module.COLLECTING_PER_LINK)]


@pytest.mark.parametrize("name", ["PENDING_PER_CLIENT", "PENDING_MAX"])
def test_builds_that_wait_for_answers_are_bounded_too(net, monkeypatch, name):
    monkeypatch.setattr(module, name, 3)
    peer, relay = Peer(net), net.relays[0]
    net.watch = lambda flying: None if flying.target == net.relays[1].address else flying.packet
    for n in range(5):
        peer.send(build(net, 0, 1, 2), circuit_id=100 + n)
        net.run(0.1)
    assert relay.desk.hops.pending == 3
    assert relay.drops(Drop.OVERFLOW) == 2 * BUILD_SLOTS


def test_a_next_hop_that_does_not_answer_ends_the_build_with_a_reason(net):
    peer, relay = Peer(net), net.relays[0]
    net.link(relay, 1)
    net.watch = lambda flying: flying.packet if {flying.source, flying.target} & {peer.node.address} else None
    peer.send(build(net, 0, 1, 2))
    net.run(40, SECOND // 10)
    assert peer.ends[0][0] == ID
    assert peer.ends[0][1] in {DestroyReason.DEADLINE, DestroyReason.LINK_LOST}
    assert nothing_left(relay)


def test_a_next_hop_without_a_link_is_given_up_before_the_client_gives_up(net):
    peer, relay = Peer(net), net.relays[0]
    net.watch = lambda flying: None if flying.target == net.relays[1].address else flying.packet
    peer.send(build(net, 0, 1, 2))
    net.run(4, SECOND // 10)
    assert peer.ends == [(ID, DestroyReason.NEXT_UNREACHABLE)]
    assert nothing_left(relay)


def test_a_next_hop_that_is_unknown_is_said_to_be_so(net):
    peer = Peer(net)
    made = build(net, 0, 1, 2)
    net.relays[0].context.snapshot = SimpleNamespace(by_id=lambda _id: None)
    peer.send(made)
    net.run(0.3)
    assert peer.ends == [(ID, DestroyReason.NEXT_UNREACHABLE)]
    assert nothing_left(net.relays[0])


def test_the_client_may_give_up_at_any_stage(net):
    peer = Peer(net)
    for steps in range(1, 60, 3):
        peer.send(build(net, 0, 1, 2), circuit_id=1000 + steps)
        for _ in range(steps):
            net.tick(2_000_000)
        peer.end(1000 + steps)
        net.run(0.3)
        assert all(nothing_left(relay) for relay in net.relays)


def test_a_destroy_of_another_link_ends_nothing(net):
    peer, other = Peer(net), Peer(net, client=1)
    peer.send(build(net, 0, 1, 2))
    net.run(0.5)
    other.end()
    for link in net.relays[1].links.all():
        net.relays[1].links.send_destroy(link, link.sessions[1, 0], ID, 0)
    net.run(0.3)
    assert all(len(relay.circuits()) == 1 for relay in net.relays)


def test_a_lost_link_ends_what_went_over_it_on_both_sides(net):
    peer, relay = Peer(net), net.relays[0]
    peer.send(build(net, 0, 1, 2))
    net.run(0.5)
    middle = net.relays[1]
    link = next(link for link in middle.links.all() if link.node == net.relays[2].keys.public.node_id)
    middle.links.close(link, ErrorCode.NO_ERROR, net.now)
    net.run(0.3)
    assert peer.ends == [(ID, DestroyReason.LINK_LOST)]
    assert all(nothing_left(node) for node in (relay, middle, net.relays[2]))


def test_a_restart_in_the_middle_of_a_build_leaves_no_row_and_no_key(net):
    peer, relay = Peer(net), net.relays[0]
    net.watch = lambda flying: None if flying.target == net.relays[1].address else flying.packet
    peer.send(build(net, 0, 1, 2))
    net.run(0.2)
    assert relay.columns["circuits"]["state"].any()
    relay.restart()
    assert relay.rows.repaired == 1
    assert nothing_left(relay)
    relay.restart()
    assert relay.rows.repaired == 0


def test_both_sides_of_a_build_hear_at_once_that_a_hop_died(net):
    peer, relay = Peer(net), net.relays[1]
    net.link(relay, 2)
    net.watch = lambda flying: None if (flying.source, flying.target) == (net.relays[2].address, relay.address) else flying.packet
    peer.send(build(net, 0, 1, 2))
    net.run(0.2)
    assert net.relays[2].circuits(ROLE_LAST)
    net.watch = lambda flying: flying.packet
    relay.restart()
    net.run(0.3)
    assert peer.ends == [(ID, DestroyReason.NONE)]
    assert all(nothing_left(node) for node in net.relays)


def test_what_a_client_was_building_does_not_outlive_it_anywhere(rng, tmp_path):
    ended = 0
    for ticks in range(1, 12):
        net = Network(rng, tmp_path, ahead=1)
        for _ in range(ticks):
            net.tick(1_000_000)
        client = net.clients[0]
        client.path.circuits_ahead = 0
        client.restart()
        ended += client.rows.repaired
        net.run(0.3)
        hops = sorted(len(node.circuits()) for node in [client, *net.relays])
        assert hops in ([0, 0, 0, 0], [1, 1, 1, 1]), (ticks, hops)
    assert ended > 0, "no death came while a circuit was built"

"""Own circuits of a whole client without sockets: built ahead, ended, and never used when anything about them is wrong."""

from typing import Any

import numpy as np
import pytest

from nyx.errors import InternalError
from nyx.onion.build import ClientBuild
from nyx.stats import Counter
from nyx.stream.columns import FREE as CONNECTION_FREE
from nyx.stream.columns import LIVE as CONNECTION_LIVE
from nyx.wire.codes import DestroyReason
from shards import avoided
from shards import clients as module
from shards.tables import ROLE_CLIENT, ROLE_LAST
from tests.shards.small_network import SECOND, Network


@pytest.fixture
def net(rng, tmp_path):
    return Network(rng, tmp_path, relays=4, ahead=1)


def of(net):
    return net.clients[0].desk.clients


def test_circuits_are_built_ahead_through_three_different_relays(net):
    net.run(1)
    [circuit] = of(net).all
    assert circuit.ready
    assert len({node.id for node in circuit.path}) == 3
    assert circuit.build is None
    assert not circuit.answers
    assert len(net.clients[0].circuits(ROLE_CLIENT)) == 1
    assert sum(len(relay.circuits()) for relay in net.relays) == 3
    assert net.clients[0].announced == 1


def test_every_isolation_key_has_circuits_of_its_own(net):
    net.run(1)
    one = of(net).connection_for(b"one", net.now)
    assert one is not None
    assert of(net).connection_for(b"one", net.now) == one
    assert of(net).connection_for(b"two", net.now) is None
    net.run(1)
    assert of(net).connection_for(b"two", net.now) not in {None, one}


@pytest.mark.parametrize("slot", range(7))
def test_a_changed_answer_slot_spare_or_not_leaves_no_circuit(net, slot):
    """The entry changes one bit of one slot on its way back, which the link seal of the entry covers anew."""
    for relay in net.relays:
        send = relay.links.send_cell

        def change(link, session, kind, at, circuit_id, cell, send=send):
            if link.node is None and at == slot:
                cell = bytes((cell[0] ^ 1, *cell[1:]))
            return send(link, session, kind, at, circuit_id, cell)

        relay.links.send_cell = change
    net.run(0.6)
    assert of(net).ready == 0
    assert "answers were wrong" in of(net).warning
    assert not net.clients[0].columns["layer_keys"].any()
    assert all(int(c["state"]) == CONNECTION_FREE for c in net.clients[0].columns["connections"])


def test_a_build_without_answer_ends_in_time_and_backs_off(net):
    net.run(1)
    net.watch = lambda flying: None
    of(net).connection_for(b"one", net.now)
    net.run(9, SECOND // 10)
    assert of(net).warning
    assert len(of(net).all) <= 2
    assert of(net)._not_before > 0


def test_somebody_who_waits_is_served_by_another_build_when_the_first_is_late(net):
    """A relay that lost its state swallows builds: its neighbours know only later, and so does the client."""
    net.run(1)
    of(net).connection_for(b"spare", net.now)
    net.run(1)
    net.clients[0].path.circuits_ahead = 0
    for relay in net.relays:
        relay.links.send_cell = lambda *_: True  # taken and never sent
    assert of(net).connection_for(b"one", net.now) is not None
    assert of(net).connection_for(b"two", net.now) is None
    net.run(1, SECOND // 10)
    lost = [circuit for circuit in of(net).all if not circuit.ready]
    assert len(lost) == 1
    for relay in net.relays:
        del relay.links.send_cell
    net.run(2.5, SECOND // 10)
    assert of(net).connection_for(b"two", net.now) is not None
    assert lost[0] in of(net).all, "it is given up only at its deadline"
    assert all(c.path != lost[0].path for c in of(net).all if c is not lost[0] and c.created > lost[0].created)


def spoil(net, circuit):
    """A hop changes a cell of this circuit: the client finds its zero bytes wrong."""
    net.clients[0].columns["circuits"][circuit.row]["bad_cells"] = 1
    net.clients[0].columns["circuits"][circuit.row]["last_used"] = net.now
    net.run(0.05)
    assert circuit not in of(net).all


def hops_of(circuit):
    return frozenset(node.id for node in circuit.path)


def last_path(net):
    """The hops of a circuit that was just built."""
    net.run(2, SECOND // 10)
    [circuit] = of(net).all
    assert circuit.ready
    return circuit


def test_hops_among_which_a_cell_was_changed_are_not_chosen_together_for_a_while(net):
    """Two sets of hops are possible; whatever the draw, only the other is used, behind the same guard, until the time is over."""
    first = last_path(net)
    guard, spoiled = first.path[0].id, hops_of(first)
    spoil(net, first)
    until = net.now + avoided.SPOILED_FOR
    for _ in range(12):
        circuit = last_path(net)
        assert hops_of(circuit) != spoiled
        assert circuit.path[0].id == guard
        of(net).close(circuit, 0)
    net.clients[0].restart()
    for _ in range(4):
        circuit = last_path(net)
        assert hops_of(circuit) != spoiled, "a death of the worker makes it forget nothing"
        of(net).close(circuit, 0)
    net.now = max(net.now, until)
    found = set()
    for _ in range(24):
        circuit = last_path(net)
        found.add(hops_of(circuit))
        of(net).close(circuit, 0)
    assert spoiled in found


def test_a_client_that_knows_no_other_hops_takes_the_same_and_never_another_guard(net):
    first = last_path(net)
    guard, seen = first.path[0].id, {hops_of(first)}
    spoil(net, first)
    second = last_path(net)
    seen.add(hops_of(second))
    assert len(seen) == 2
    spoil(net, second)
    third = last_path(net)
    assert hops_of(third) in seen
    assert third.path[0].id == guard


def test_a_failed_cell_that_the_exit_reports_counts_as_well(net):
    first = last_path(net)
    last = next(relay for relay in net.relays if relay.circuits(ROLE_LAST))
    last.columns["circuits"][last.circuits(ROLE_LAST)[0]]["bad_cells"] = 1
    net.run(0.3)
    assert first not in of(net).all
    assert avoided.Avoided(net.clients[0].columns).sets(net.now)[0] == {hops_of(first)}


def test_what_else_ends_a_circuit_says_nothing_about_its_hops(net):
    first = last_path(net)
    net.clients[0].desk.end_row(first.row, DestroyReason.EXPIRED)
    assert avoided.Avoided(net.clients[0].columns).sets(net.now) == [frozenset()]


def test_more_spoiled_paths_than_are_remembered(net):
    memory = avoided.Avoided(net.clients[0].columns)
    paths = [[bytes([i]) * 32, bytes([i + 1]) * 32] for i in range(avoided.SPOILED_PATHS + 3)]
    for i, path in enumerate(paths):
        memory.spoiled(path, SECOND + i)
    assert memory.sets(SECOND)[0] == {frozenset(path) for path in paths[3:]}
    memory.late(paths[0], SECOND)
    assert memory.sets(SECOND)[0] == {frozenset(path) for path in [paths[0], *paths[3:]]}
    assert memory.sets(SECOND + avoided.LATE_FOR)[0] == {frozenset(path) for path in paths[3:]}
    assert memory.sets(SECOND + avoided.SPOILED_FOR + SECOND) == [frozenset()]


def test_builds_that_stand_in_for_late_ones_are_few(net):
    net.run(1)
    net.watch = lambda flying: None
    of(net).connection_for(b"one", net.now)
    of(net).connection_for(b"two", net.now)
    net.clients[0].path.circuits_ahead = 4
    net.run(2.2, SECOND // 10)
    assert net.clients[0].statistics[Counter.BUILDS_STARTED] == 1 + 5 + module.STAND_INS


def test_a_new_key_takes_the_place_of_the_one_unused_for_longest(net, monkeypatch):
    monkeypatch.setattr(module, "CIRCUITS_MAX", 3)
    net.run(1)
    for key in (b"one", b"two", b"one", b"three", b"four"):
        of(net).connection_for(key, net.now)
        net.run(1)
        assert of(net).connection_for(key, net.now) is not None, key
    assert len(of(net).all) <= 3
    assert b"two" not in {circuit.isolation for circuit in of(net).all}


def test_builds_that_fail_together_count_once(net, monkeypatch):
    """Many who wait for circuits must not make each other wait longer: one dead relay would stop them all."""
    net.run(1)
    net.watch = lambda flying: None
    for number in range(6):
        of(net).connection_for(bytes([number]), net.now)
    net.run(8.5, SECOND // 10)
    assert net.clients[0].statistics[Counter.BUILDS_FAILED] >= 6
    assert of(net)._back_off <= 2 * module.BACK_OFF_FIRST


def test_a_relay_is_no_hop_of_its_own_circuits(rng, tmp_path):
    net = Network(rng, tmp_path, relays=4)
    relay: Any = net.relays[0]
    relay.proxy, relay.path.circuits_ahead = True, 2
    relay.restart()
    net.run(3)
    circuits = relay.desk.clients.all
    assert len(circuits) == 2
    assert all(relay.keys.public.node_id not in {node.id for node in circuit.path} for circuit in circuits)


def test_a_client_is_not_known_again_by_its_clock(net, monkeypatch):
    seen = []
    made = ClientBuild

    def build(hops, suite, entropy, wall, proofs):
        seen.append(wall - net.wall)
        return made(hops, suite, entropy, wall, proofs)

    monkeypatch.setattr(module, "ClientBuild", build)
    net.clients[0].path.circuits_ahead = 4
    net.run(0.5)
    assert len(set(seen)) > 1
    assert all(0 <= ahead <= module.CLOCK_BLUR for ahead in seen)


def test_a_circuit_that_is_closed_at_one_end_is_gone_at_all_others(net):
    net.run(1)
    circuit = of(net).all[0]
    net.clients[0].path.circuits_ahead = 0
    of(net).close(circuit, 0)
    net.run(0.5)
    for node in [*net.clients, *net.relays]:
        assert node.circuits() == []
        assert not node.columns["layer_keys"].any()
        assert not node.rows._reserved


def test_circuits_serve_on_after_their_worker_died_each_its_own_key(net):
    """Else they would live on by their keep-alive, serving nobody, until every row is taken."""
    net.run(1)
    one = of(net).connection_for(b"one", net.now)
    net.run(1)
    kept = {(c.row, c.isolation, c.connection, tuple(node.id for node in c.path)) for c in of(net).all}
    assert len(kept) == 2
    net.clients[0].restart()
    net.run(1)
    assert {(c.row, c.isolation, c.connection, tuple(node.id for node in c.path)) for c in of(net).all} == kept
    assert of(net).connection_for(b"one", net.now) == one
    assert of(net).connection_for(b"two", net.now) not in {None, one}
    net.clients[0].path.circuits_ahead = 0
    for circuit in of(net).all:
        of(net).close(circuit, 0)
    net.run(0.5)
    for node in [*net.clients, *net.relays]:
        assert node.circuits() == []
        assert not any(node.columns[name].view(np.uint8).any() for name in ("layer_keys", "circuit_isolations"))


def test_an_exit_that_ends_a_circuit_is_heard(net):
    net.run(1)
    last = next(relay for relay in net.relays if relay.circuits(ROLE_LAST))
    net.clients[0].path.circuits_ahead = 0
    last.desk.end_row(last.circuits(ROLE_LAST)[0], 0)
    net.run(0.5)
    assert of(net).all == []
    assert all(node.circuits() == [] for node in [*net.clients, *net.relays])


def test_data_crosses_a_circuit_of_whole_nodes(net):
    net.run(1)
    client, connection = net.clients[0], of(net).all[0].connection
    client.streams.ping(connection, 7)
    last = next(relay for relay in net.relays if relay.circuits(ROLE_LAST))
    before = int(last.columns["circuits"][last.circuits(ROLE_LAST)[0]]["cells_forth"])
    net.run(0.3)
    assert int(last.columns["circuits"][last.circuits(ROLE_LAST)[0]]["cells_forth"]) > before
    assert int(client.columns["connections"][connection]["state"]) == CONNECTION_LIVE


def test_derived_state_that_contradicts_the_rows_is_found(net):
    net.run(1)
    client = net.clients[0]
    checks = (client.session_rows.check_invariants, client.rows.check_invariants, of(net).check_invariants)
    for check in checks:
        check()
    row = client.circuits(ROLE_CLIENT)[0]
    harms = (
        client.session_rows._free.pop,
        lambda: client.rows._free.append(row),
        lambda: client.rows.write_isolation(row, b"another"),
    )
    for check, harm in zip(checks, harms, strict=True):
        harm()
        with pytest.raises(InternalError):
            check()

"""How circuits end on all their sides, and what a restart leaves of them: whole nodes without sockets."""

import numpy as np
import pytest

from nyx.crypto.suites import SUITE_AEGIS128L
from nyx.stream.columns import FREE as CONNECTION_FREE
from nyx.wire.codes import DestroyReason
from shards import desk as module
from shards.tables import ROLE_CLIENT, ROLE_LAST, ROLE_RELAY
from tests.shards.small_network import SECOND, Network


@pytest.fixture
def net(rng, tmp_path):
    """A client with one circuit over three relays."""
    net = Network(rng, tmp_path, ahead=1)
    net.run(1)
    net.clients[0].path.circuits_ahead = 0
    assert all(len(node.circuits()) == 1 for node in [*net.clients, *net.relays])
    return net


def everybody(net):
    return [*net.clients, *net.relays]


def gone(net):
    return all(node.circuits() == [] and not node.columns["layer_keys"].any() for node in everybody(net))


def no_connection(node):
    return all(int(c["state"]) == CONNECTION_FREE for c in node.columns["connections"])


def the(net, role):
    node = next(node for node in everybody(net) if node.circuits(role))
    return node, node.circuits(role)[0]


def listen(node):
    """The reasons of all DESTROY frames that come to this node from now on."""
    reasons, on_destroy = [], node.desk.on_destroy

    def hear(link, circuit_id, reason, now):
        reasons.append(reason)
        on_destroy(link, circuit_id, reason, now)

    node.desk.on_destroy = hear
    return reasons


def wiped(node):
    return not node.columns["circuits"].view(np.uint8).any() and not node.columns["cell_windows"].any()


def test_the_first_failed_cell_ends_the_circuit_everywhere(net):
    last, row = the(net, ROLE_LAST)
    reasons = listen(net.clients[0])
    last.columns["circuits"][row]["bad_cells"] = 1
    net.run(0.3)
    assert gone(net)
    assert all(wiped(node) for node in everybody(net))
    assert reasons == [DestroyReason.FAILED_CELL]


def test_what_goes_towards_the_last_hop_gives_no_reason(net):
    client, row = the(net, ROLE_CLIENT)
    heard = [listen(relay) for relay in net.relays]
    client.desk.end_row(row, DestroyReason.FAILED_CELL)
    net.run(0.3)
    assert gone(net)
    assert heard == [[0], [0], [0]]


@pytest.mark.parametrize("direction", ["cells_forth", "cells_back"])
@pytest.mark.parametrize("role", [ROLE_CLIENT, ROLE_RELAY, ROLE_LAST])
def test_a_worn_key_ends_the_circuit(net, role, direction):
    node, row = the(net, role)
    circuit = node.columns["circuits"][row]
    limit = module.KEY_LIMIT_AEGIS if int(circuit["suite"]) == SUITE_AEGIS128L else module.KEY_LIMIT_CHACHA
    circuit[direction] = limit - 1
    net.run(0.1)
    assert not gone(net)
    node.columns["circuits"][row][direction] = limit
    net.run(0.3)
    assert gone(net)


def test_a_circuit_without_cells_expires(net):
    net.run(140, SECOND // 2)
    assert not gone(net)  # the client's PINGs keep it
    net.clients[0].columns["connections"]["keepalive"] = 0
    for node in everybody(net):
        node.desk.ratchet.on_timer = lambda _now, _wall: None  # nor begins any layer epoch, which is asked about
    net.run(100, SECOND // 2)
    assert not gone(net)
    net.run(30, SECOND // 2)
    assert gone(net)
    assert all(no_connection(node) for node in everybody(net))


def test_an_unknown_destroy_is_ignored(net):
    relay = net.relays[0]
    for link in relay.links.all():
        relay.desk.on_destroy(link, 12345, 0, net.now)
        relay.desk.on_destroy(link, 1 << 31 | 12345, 99, net.now)
    net.run(0.2)
    assert not gone(net)


# ---------------------------------------------------------------- restarts


def test_circuits_live_on_over_a_restart_of_any_hop(net):
    client = net.clients[0]
    connection = client.desk.clients.all[0].connection
    for relay in net.relays:
        relay.restart()
    last, row = the(net, ROLE_LAST)
    before = int(last.columns["circuits"][row]["cells_forth"])
    client.streams.ping(connection, 7)
    net.run(0.5)
    assert int(last.columns["circuits"][row]["cells_forth"]) > before
    assert int(last.columns["circuits"][row]["bad_cells"]) == 0


def test_a_connection_whose_circuit_is_gone_does_not_outlive_a_restart(net):
    """Killed between the circuit's end and its connection's: the row's next circuit must not meet the old connection."""
    last, row = the(net, ROLE_LAST)
    assert not no_connection(last)
    last.rows.close(row)
    last.restart()
    assert last.desk.repaired == 1
    assert no_connection(last)
    assert not last.batch.circuit_of.any()


def test_a_circuit_leaves_before_its_connection(net, monkeypatch):
    last, row = the(net, ROLE_LAST)
    states: list[int] = []
    monkeypatch.setattr(last.streams, "close_connection", lambda *_: states.append(int(last.columns["circuits"][row]["state"])))
    last.desk.end_row(row, DestroyReason.NONE)
    assert states == [0]


def test_many_ends_travel_in_few_packets(net):
    relay = next(relay for relay in net.relays if any(link.node is None for link in relay.links.all()))
    link = next(link for link in relay.links.all() if link.node is None)
    session = link.sessions[1, 0]
    heard = []
    net.clients[0].desk.on_destroy = lambda _link, circuit, _reason, _now: heard.append(circuit)
    before = len(net.log)
    for circuit in range(1, 3001):
        relay.links.send_destroy(link, session, circuit, 0)
    net.run(0.5)
    assert sorted(heard) == list(range(1, 3001))
    assert len(net.log) - before < 100

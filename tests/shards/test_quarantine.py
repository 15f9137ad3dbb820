"""A record over which a worker died three times is closed, with what hangs on it and nothing else; an innocent one never is."""

import signal
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nyx.columns import Column, allocate
from nyx.stats import QUARANTINE_KINDS, node_columns
from nyx.stream.inspect import check_invariants
from shards.context import WorkerContext
from shards.edge.table import edge_columns, live_sockets
from shards.memory import Memory
from shards.quarantine import FAULTS_MOST, LIMIT, begin_life, broken_rows, describe, is_fault, quarantine
from shards.tables import BUILDING, ROLE_LAST, ROLE_RELAY
from tests.shards.small_network import Network, SmallNode


@pytest.fixture
def net(rng, tmp_path):
    found = Network(rng, tmp_path, ahead=2)
    for node in found.nodes.values():
        node.columns.update(allocate(edge_columns(8)))
    found.run(2.0)
    client = found.clients[0]
    assert len(client.circuits()) == 2
    connection = int(client.columns["circuits"][client.circuits()[0]]["connection"]) - 1
    client.streams.open_stream(connection, 1, b"\x7f\x00\x00\x01", 80, found.now)
    found.run(0.5)
    return found


def victim(net: Network, kind: str) -> tuple[SmallNode, int]:
    """A node of the circuit that carries the stream, and the row of this kind there."""
    if kind == "circuits":
        relay = net.relays[1]
        return relay, relay.circuits(ROLE_RELAY)[0]
    last = net.relays[-1]
    stream = int(np.flatnonzero(last.columns["streams"]["state"])[0])
    connection = int(last.columns["streams"][stream]["connection"])
    circuit = next(r for r in last.circuits(ROLE_LAST) if int(last.columns["circuits"][r]["connection"]) == connection + 1)
    session = int(last.columns["circuits"][circuit]["back_session"]) - 1
    return last, {"sessions": session, "connections": connection, "streams": stream}[kind]


def born(client: SmallNode) -> set[int]:
    """When each circuit began."""
    return {int(client.columns["circuits"][row]["created"]) for row in client.circuits()}


def crash(node: SmallNode, kind: str, row: int, *, faulted: bool = True) -> Any:
    """A death with this row in hand, and the next life."""
    node.columns[kind][row]["in_hand"] = 1
    closed = quarantine(node.columns, faulted=faulted)
    node.restart()
    return closed


@pytest.mark.parametrize("kind", QUARANTINE_KINDS)
def test_three_faults_close_the_record_and_what_hangs_on_it(net, kind):
    node, row = victim(net, kind)
    client = net.clients[0]
    before = born(client)
    for _ in range(LIMIT - 1):
        assert not crash(node, kind, row)
        net.run(0.2)
        assert len(client.circuits()) == 2, "a worker's death alone ends nothing"
    closed = crash(node, kind, row)
    assert closed == [(kind, row)]
    check_invariants(node.streams)
    assert not broken_rows(node.columns)
    net.run(0.2)
    if kind == "sessions":  # who would tell them is gone: they miss us
        net.run(15.0, step=50_000_000)
    net.run(3.0)
    assert len(client.circuits()) == 2, "the client has built another"
    assert len(born(client) & before) <= 1, "it has heard that the old one is over"
    assert kind == "sessions" or len(born(client) & before) == 1, "no other circuit has ended"
    assert not node.columns["streams"]["state"].any() or kind == "circuits"


def test_who_is_killed_from_outside_is_innocent_however_often(net):
    node, row = victim(net, "connections")
    for _ in range(3 * LIMIT):
        assert not crash(node, "connections", row, faulted=False)
    assert int(node.columns["connections"][row]["crashes"]) == 0
    assert not node.columns["connections"]["in_hand"].any()
    net.run(0.5)
    assert len(net.clients[0].circuits()) == 2


def test_faults_are_told_from_kills():
    assert all(is_fault(number) for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGSYS, 256 + 1))
    assert not any(is_fault(number) for number in (0, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, 256))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("sessions", "address_size", 1 << 20),
        ("circuits", "back_session", 1 << 40),
        ("circuits", "state", 1 << 20),
        ("circuits", "connection", -5),
        ("circuits", "hops", 1 << 30),
        ("connections", "state", 99),
        ("streams", "connection", 1 << 30),
        ("streams", "fd", 1 << 44),
        ("streams", "fd", -7),
        ("streams", "tx_head", 1 << 60),
        ("streams", "rx_tail", 1 << 60),
    ],
)
def test_a_row_that_cannot_be_true_is_closed_before_anybody_reads_it(net, kind, name, value):
    node, row = victim(net, kind)
    assert not broken_rows(node.columns)
    node.columns[kind][row][name] = value
    closed = quarantine(node.columns, faulted=True)
    assert (kind, row) in closed
    assert not broken_rows(node.columns)
    node.restart()
    check_invariants(node.streams)
    net.run(20.0, step=50_000_000)
    assert len(net.clients[0].circuits()) == 2


def test_a_circuit_that_is_being_built_leads_to_a_session_that_can_be(net):
    node, row = victim(net, "circuits")
    node.columns["circuits"][row]["state"] = BUILDING
    node.columns["circuits"][row]["back_session"] = 1 << 20
    assert ("circuits", row) in quarantine(node.columns, faulted=False)
    node.restart()
    assert not broken_rows(node.columns)


def test_no_descriptor_is_found_under_a_number_that_is_none(net):
    """A new life looks at the sockets of its rows before anything else."""
    node, row = victim(net, "streams")
    node.columns["edge_streams"][row]["state"], node.columns["edge_streams"][row]["inode"] = 2, 1
    node.columns["streams"][row]["fd"] = 1 << 44
    assert live_sockets(node.columns) == set()


def test_a_worker_that_dies_of_nothing_in_hand_drops_all(net):
    """Something kills each life before it has anything in hand: after so many of them it begins from nothing."""
    node, _ = victim(net, "streams")
    memory = Memory.create("nyx-test", [Column(name, column.dtype, len(column)) for name, column in node.columns.items()])
    for name, column in memory.columns.items():
        column[:] = node.columns[name]
    seen = memory.columns["handshakes_seen"].copy()
    assert seen.view(np.uint8).any()
    rows = {"node_workers": allocate(node_columns(1))["node_workers"]}
    context = cast("WorkerContext", SimpleNamespace(index=0, shared=rows, columns=memory.columns, life=1))
    for killed_by in [*(FAULTS_MOST - 1) * [256 + 1], signal.SIGKILL]:
        rows["node_workers"]["killed_by"] = killed_by
        begin_life(context)
        assert memory.columns["streams"]["state"].any()
    rows["node_workers"]["killed_by"] = signal.SIGSEGV
    begin_life(context)
    left = {name for name, column in memory.columns.items() if column.view(np.uint8).any()}
    assert left <= {"handshakes_seen", "handshakes_proven", "quotas", "filter", "filter_table"}
    assert np.array_equal(memory.columns["handshakes_seen"], seen)
    found = rows["node_workers"][0]
    text = describe(int(found["quarantined"]), int(found["quarantined_kind"]), 0)
    assert text is not None
    assert "all that it had was dropped" in text
    assert int(found["faults"]) == 0
    memory.close()


def test_the_status_names_it():
    assert describe(0, 0, 1) is None
    one, many = describe(1, 2, 0), describe(4, 4, 3)
    assert one is not None
    assert many is not None
    assert "worker 0: one record was closed" in one
    assert "circuit)" in one
    assert "worker 3: 4 records were closed" in many
    assert "stream)" in many

"""The columns that outlive a worker: sockets without a stream, targets, reasons."""

import os
import socket

from nyx.columns import Column, allocate
from nyx.stream.columns import STREAM
from shards.edge import table as edge
from shards.edge.reasons import Reason
from shards.edge.table import EdgeTable, edge_columns, live_sockets, socket_inode


def test_places_are_taken_and_given_back():
    table = EdgeTable(allocate(edge_columns(2, 3)))
    socks = [socket.socket() for _ in range(3)]
    for sock in socks:
        table.hold(sock.fileno())
    assert table.room == 0
    assert table.held() == {s.fileno() for s in socks}
    table.drop(socks[1].fileno())
    table.drop(socks[1].fileno())
    table.drop(999)
    assert table.room == 1
    for sock in socks:
        sock.close()


def test_orphans_are_known_by_number_and_inode():
    columns = allocate(edge_columns(2, 4))
    table = EdgeTable(columns)
    socks = [socket.socket() for _ in range(3)]
    fds = [s.fileno() for s in socks]
    for fd in fds:
        table.hold(fd)
    socks[1].close()
    with socket.socket() as other:
        os.dup2(other.fileno(), fds[2])  # another socket under the old number
        assert EdgeTable(columns).take_orphans() == [fds[0]]
    assert EdgeTable(columns).room == 4
    assert EdgeTable(columns).take_orphans() == []
    for sock in (socks[0], socks[2]):
        sock.close()


def test_live_sockets_are_those_that_rows_name():
    columns = allocate([Column("streams", STREAM, 4), *edge_columns(4, 1)])
    table = EdgeTable(columns)
    with socket.socket() as one, socket.socket() as two:
        for row, sock, inode in ((0, one, socket_inode(one.fileno())), (1, two, 12345)):
            table.begin(row, edge.CLIENT, 0)
            table.rows[row]["inode"] = inode
            columns["streams"][row]["fd"] = sock.fileno() + 1
        assert live_sockets(columns) == {one.fileno()}
        table.move(0, edge.FREE)
        assert live_sockets(columns) == set()


def test_inodes():
    with socket.socket() as one, socket.socket() as two:
        assert socket_inode(one.fileno()) != socket_inode(two.fileno()) != 0
    assert socket_inode(10**6) == 0
    with open(os.devnull) as file:  # noqa: PTH123  # any descriptor that is no socket
        assert socket_inode(file.fileno()) == 0


def test_a_rows_life_and_the_first_reason():
    table = EdgeTable(allocate(edge_columns(2, 1)))
    table.begin(1, edge.CLIENT, 5, "x" * 253 + ".", 443)
    assert table.target(1) == "x" * 253 + ".:443"
    table.fail(1, Reason.POLICY, 7)
    table.fail(1, Reason.TIMEOUT, 8)
    assert [(f.reason, f.at) for f in table.failures] == [(Reason.POLICY, 7)]
    assert table.live() == [1]
    table.begin(1, edge.EXIT, 9)
    assert table.target(1) == ""
    assert table.count(edge.OPENING) == 1
    table.move(1, edge.FREE)
    assert table.live() == []


def test_only_the_last_failures_are_kept():
    table = EdgeTable(allocate(edge_columns(1, 1)))
    for i in range(200):
        table.begin(0, edge.EXIT, i)
        table.fail(0, Reason.POLICY, i)
    assert len(table.failures) == edge.FAILURES_KEPT

"""What would keep a node from starting anew is found while the old one runs; what the old one holds itself is none of it."""

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nyx.columns import Column, Columns
from shards import rehearsal
from shards.rehearsal import in_the_way, obstacles
from shards.seal import LockError


@pytest.fixture
def taken() -> Iterator[tuple[int, int]]:
    """A UDP and a TCP port of 127.0.0.1 that somebody holds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.create_server(("127.0.0.1", 0)) as tcp:
        udp.bind(("127.0.0.1", 0))
        yield udp.getsockname()[1], tcp.getsockname()[1]


def config(udp: int, tcp: int, *, lock: bool = True, address: str = "127.0.0.1") -> Any:
    node = SimpleNamespace(address=address, port=udp, lock_memory=lock)
    return SimpleNamespace(node=node, proxy=SimpleNamespace(listen=("127.0.0.1", tcp)))


def kept(udp: int, tcp: int) -> dict[str, Any]:
    return {"kept": {"node.address": "127.0.0.1", "node.port": udp, "proxy.listen": ["127.0.0.1", tcp]}}


def keys(count: int) -> list[Column]:
    return [Column("sessions", np.dtype("u1"), count), Column("rings", np.dtype("u1"), 1 << 40)]


def test_a_machine_with_room_has_no_obstacles(tmp_path: Path) -> None:
    assert obstacles(config(0, 0), 2, keys(4096)) == []


def test_ports_that_others_hold_are_in_the_way_and_ones_own_are_not(taken: tuple[int, int]) -> None:
    found = obstacles(config(*taken), 2, keys(4096))
    assert [obstacle["taken"] for obstacle in found] == [True, True]
    assert in_the_way(kept(*taken), kept(*taken), found) == []
    assert in_the_way(kept(1, taken[1]), kept(*taken), found) == [f"UDP 127.0.0.1 port {taken[0]}: Address already in use"]
    assert in_the_way(kept(taken[0], 1), kept(*taken), found) == [f"proxy 127.0.0.1 port {taken[1]}: Address already in use"]
    assert in_the_way({"kept": kept(*taken)["kept"] | {"proxy.listen": None}}, kept(*taken), found)


def test_an_address_that_this_machine_does_not_have_is_in_the_way_whatever_the_port() -> None:
    found = obstacles(config(0, 0, address="192.0.2.1"), 1, keys(4096))
    assert [obstacle["taken"] for obstacle in found] == [False]
    assert "192.0.2.1" in in_the_way(kept(0, 0), kept(0, 0), found)[0]


@pytest.mark.parametrize("lock", [True, False])
def test_keys_beyond_the_limit_are_in_the_way_where_they_must_be_locked(monkeypatch: pytest.MonkeyPatch, lock: bool) -> None:
    """The kernel's refusal is played: root may lock whatever the limit says."""
    asked: list[set[str]] = []

    def refuse(columns: Columns) -> None:
        asked.append(set(columns))
        raise LockError("keys cannot be locked")

    monkeypatch.setattr(rehearsal, "check_lock", refuse)
    found = obstacles(config(0, 0, lock=lock), 1, keys(4096))
    assert in_the_way(kept(0, 0), kept(0, 0), found) == (["keys cannot be locked"] if lock else [])
    assert asked == ([{"sessions"}] if lock else [])

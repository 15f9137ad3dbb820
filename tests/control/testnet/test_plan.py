"""Plans: who is in a network, and files that a node accepts."""

import os
import random
from pathlib import Path

import pytest

from control.testnet.plan import Plan, write_files
from nyx.config import load
from nyx.crypto.keyfile import load_keys
from nyx.errors import ConfigError
from nyx.path.directory import FileDirectory
from nyx.path.guards import keep_guard
from nyx.path.select import select_path

NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("relays", "roles"),
    [(1, "x"), (2, "xx"), (3, "rxx"), (4, "rrxx"), (7, "rrrrrxx"), (9, "rrrrrrxxx")],
)
def test_roles(relays, roles):
    members = Plan(Path("x"), relays=relays, hops=1, clients=2).members
    found = "".join({"relay": "r", "exit": "x", "client": ""}[m.role] for m in members)
    assert found == roles
    assert [m.port for m in members] == list(range(43300, 43302 + relays))
    assert [(m.alias, m.proxy) for m in members if m.role == "client"] == [("alice", 9750), ("bob", 9751)]
    assert len({m.alias for m in members}) == relays + 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"relays": 2}, "--relays 2: must be at least 3"),
        ({"relays": 0, "hops": 1}, "--relays 0: must be at least 1"),
        ({"hops": 8, "relays": 8}, "--hops 8: must be 1 to 7"),
        ({"clients": 0}, "--clients 0"),
        ({"clients": 9}, "--clients 9"),
        ({"workers": 5}, "--workers 5"),
        ({"base_port": 43398}, "5 nodes need ports within 43300 to 43399"),
        ({"base_port": 80}, "--base-port 80"),
        ({"proxy_port": 0}, "--proxy-port 0"),
        ({"folder": Path("/" + "x" * 90)}, "too long for the nodes' sockets"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Plan(**({"folder": Path("x")} | options))


def test_everything_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        Plan(Path("x"), clients=0, workers=9, hops=0)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("flags", ["fpu aes avx", "fpu"])
def test_the_files_are_accepted_by_those_who_read_them(tmp_path, flags):
    entropy = random.Random(1).randbytes
    plan = Plan(tmp_path, hops=4, workers=2)
    write_files(plan, entropy, NOW, flags)
    for member in plan.members:
        config = load(tmp_path / member.alias / "nyx.toml")
        assert (config.node.alias, config.node.role, config.node.port) == (member.alias, member.role, member.port)
        assert config.workers.count == 2
        assert not config.workers.pin
        assert config.path.hops == 4
        assert (config.proxy.listen == ("127.0.0.1", 9750)) == (member.role == "client")
        directory = FileDirectory(config.directory.file, config.directory.signers, config.directory.threshold, config.pin_file)
        snapshot = directory.snapshot(NOW)
        assert {n.alias for n in snapshot.nodes} == {"relay-1", "relay-2", "exit-1", "exit-2"}
        if member.role == "client":
            guard = keep_guard(config.guard_file, snapshot, entropy, NOW, allow_loopback=True)
            for _ in range(20):
                path = select_path(snapshot, 4, entropy, guard.id, allow_loopback=True)
                assert path[0].alias.startswith("relay")
                assert path[-1].exit
        else:
            node = snapshot.by_id(load_keys(config.key_file).public.node_id)
            assert node
            assert node.alias == member.alias
            assert node.descriptor.link_suites == ((1, 2, 3) if "aes" in flags else (1,))
            assert ("accept loopback:*" in config.exit.policy) == (member.role == "exit")


@pytest.mark.parametrize(("hard", "locks"), [(-1, True), (8 << 20, True), (64 << 10, False)])
def test_nodes_lock_their_keys_where_the_usual_limit_stands(monkeypatch, tmp_path, hard, locks):
    monkeypatch.setattr("control.testnet.plan.resource.getrlimit", lambda _what: (hard, hard))
    write_files(Plan(tmp_path, hops=1, relays=1), random.Random(1).randbytes, NOW, "")
    assert [load(file).node.lock_memory for file in tmp_path.glob("*/nyx.toml")] == 2 * [locks]


def test_nothing_of_it_can_be_read_by_others(tmp_path):
    write_files(Plan(tmp_path), random.Random(1).randbytes, NOW, "")
    for folder, _, files in os.walk(tmp_path / "relay-1"):
        assert Path(folder).stat().st_mode & 0o077 == 0
        assert all(Path(folder, file).stat().st_mode & 0o077 == 0 for file in files)

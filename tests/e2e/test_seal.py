"""A running network is sealed: the kernel says so of every process of a node, and the node of itself."""

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.network import ROOT, Network, command_environment, free_block, nyxctl, running_network
from nyx.sealing import EXPECTED, Seal, names

WORKERS = 2


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with running_network(tmp_path_factory.mktemp("net"), "--workers", str(WORKERS), nodes=4) as found:
        yield found


def processes(network: Network, alias: str) -> dict[str, Any]:
    """Rows of `nyxctl status` by name."""
    return {row["name"]: row for row in network.ask("status", alias=alias)["processes"]}


def kernel(pid: int, thread: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_kernel_says_so_of_every_process_and_every_thread(network: Network) -> None:
    assert network.curl("-o", os.devnull, "http://127.0.0.1:1", check=False).returncode != 0  # exits have looked for a target
    for node in network.nodes():
        rows = processes(network, node["alias"])
        assert {name.partition(" ")[0] for name in rows} == set(EXPECTED)
        for name, row in rows.items():
            for thread in Path(f"/proc/{row['pid']}/task").iterdir():
                status = kernel(row["pid"], int(thread.name))
                wanted = {"Seccomp": "2", "NoNewPrivs": "1"}
                assert {key: status[key] for key in wanted} == wanted, (name, thread)
                for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                    assert int(status[capabilities], 16) == 0, (name, thread, capabilities)
                assert os.geteuid() != 0 or int(status["CapBnd"], 16) == 0
            limits = Path(f"/proc/{row['pid']}/limits").read_text().splitlines()
            assert next(line for line in limits if "core file" in line).split()[4:6] == ["0", "0"], name


def test_no_process_has_the_keys_of_workers_but_the_supervisor_and_its_own_worker(network: Network) -> None:
    for node in network.nodes():
        for name, row in processes(network, node["alias"]).items():
            kind, _, index = name.partition(" ")
            maps = Path(f"/proc/{row['pid']}/maps").read_text()
            for worker in range(WORKERS):
                wanted = kind == "supervisor" or (kind != "control" and int(index) == worker)
                assert (f"memfd:nyx-worker-{worker} " in maps) == wanted, (name, worker)


def test_every_node_knows_it_and_warns_of_nothing_else(network: Network) -> None:
    for node in network.nodes():
        status = network.ask("status", alias=node["alias"])
        lacking: dict[str, str] = {}
        for row in status["processes"]:
            lacking |= {part: row["name"] for part in names(EXPECTED[row["name"].partition(" ")[0]]) if part not in row["sealed"]}
        old = {*names(Seal.NO_NEW_CODE)}  # Linux 6.3 has it
        inspected = set() if os.geteuid() == 0 else {*names(Seal.NOT_READABLE)}  # bench.network asks for that
        assert set(lacking) <= old | inspected
        assert len(status["warnings"]) == len(lacking), status["warnings"]


def test_keys_are_locked_and_stay_so_in_a_workers_next_life(network: Network) -> None:
    alias = network.client()
    before = processes(network, alias)["worker 0"]
    size = kernel(before["pid"], before["pid"])["VmLck"]
    assert int(size.split()[0]) > 1024
    os.kill(before["pid"], 9)
    after = before
    while after["pid"] in {before["pid"], None} or after["state"] != "running":
        after = processes(network, alias)["worker 0"]
    assert kernel(after["pid"], after["pid"])["VmLck"] == size
    assert after["sealed"] == before["sealed"]


@pytest.mark.parametrize("accepted", [False, True])
def test_a_node_whose_keys_cannot_be_locked_does_not_start_unless_that_is_accepted(network: Network, accepted: bool) -> None:
    """Without the right to raise the limit, and with a limit below what the keys need."""
    config = Path(network.nodes()[0]["config"])
    code = (
        "import resource, sys\nfrom shards import nyxd, seal\nresource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n"
        "seal.bound_capabilities(); seal.keep_capabilities(())\nsys.exit(nyxd.main(sys.argv[1:]))"
    )
    beside = config.parent / "beside"  # folders of its own, and keys
    beside.mkdir(mode=0o700, exist_ok=True)
    (beside / "keys").write_bytes((config.parent / "state" / "keys").read_bytes())
    (beside / "keys").chmod(0o600)
    settings = [
        f"node.state_dir={beside}",
        f"node.run_dir={beside}",
        f"node.port={free_block(1)}",
        f"node.lock_memory={str(not accepted).lower()}",
    ]
    flags = [word for setting in settings for word in ("--set", setting)]
    with subprocess.Popen(
        [sys.executable, "-c", code, "--config", str(config), *flags],
        cwd=ROOT, env=command_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as node:  # fmt: skip
        assert node.stdout
        assert node.stderr
        first = node.stdout.readline()
        node.terminate()
        said = node.stderr.read()
    if accepted:
        assert first.startswith("READY")
    else:
        assert (first, node.returncode) == ("", 1)
        assert "cannot be locked into memory, the limit is 0.1 MiB" in said
        assert "node.lock_memory = false" in said


def reachable(path: Path) -> bool:
    """Whether every user can come to the file."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.skipif(not reachable(Path(sys.executable)) or not reachable(ROOT), reason="other users cannot execute this checkout")
def test_a_node_that_root_starts_becomes_its_user_and_goes_on_without_root(network: Network) -> None:
    account = pwd.getpwuid(65534)
    relay = next(node for node in network.nodes() if node["role"] == "relay")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        state = folder / "state"
        state.mkdir(0o700)
        shutil.copy(Path(relay["config"]).parent / "state" / "keys", state / "keys")
        (state / "keys").chmod(0o600)
        shutil.copy(network.folder / "network", folder / "network")
        (folder / "network").chmod(0o644)
        text = Path(relay["config"]).read_text().replace('"../network"', '"network"')
        (folder / "nyx.toml").write_text(text.replace(f"port = {relay['port']}", f"port = {free_block(1)}"))
        settings = [f"node.user={account.pw_name}", "proxy.listen=127.0.0.1:701", "workers.count=1"]
        flags = [word for setting in settings for word in ("--set", setting)]
        environment = {**command_environment(), "NYX_KERNELS": "plain"}
        command = [sys.executable, "-m", "shards.nyxd", "--config", str(folder / "nyx.toml"), *flags]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as node:
            try:
                assert node.stdout
                assert node.stdout.readline().startswith("READY")
                ask = ("--socket", str(folder / "run" / "control.sock"))
                status = json.loads(nyxctl(*ask, "status", "--json").stdout)
                for row in status["processes"]:
                    found = kernel(row["pid"], row["pid"])
                    assert found["Uid"].split() == 4 * [str(account.pw_uid)]
                    assert found["Gid"].split() == 4 * [str(account.pw_gid)]
                    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == 0
                assert [warning for warning in status["warnings"] if "root" in warning] == []
                assert nyxctl(*ask, "upgrade", timeout=90).returncode == 0
                again = json.loads(nyxctl(*ask, "status", "--json").stdout)
                assert again["processes"][0]["pid"] == node.pid
                assert all(set(row["sealed"]) >= {"no_capabilities", "system_calls"} for row in again["processes"])
            finally:
                node.terminate()
        assert (state / "keys").stat().st_uid == (folder / "run").stat().st_uid == account.pw_uid

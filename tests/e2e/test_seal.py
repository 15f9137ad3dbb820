"""A running network is sealed: the kernel says so of every process of a node, and the node of itself."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.network import ROOT, Network, command_environment, free_block
from nyx.sealing import EXPECTED, Seal, names


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


def test_every_node_knows_it_and_warns_of_nothing_else(network: Network) -> None:
    for node in network.nodes():
        status = network.ask("status", alias=node["alias"])
        lacking: dict[str, str] = {}
        for row in status["processes"]:
            lacking |= {part: row["name"] for part in names(EXPECTED[row["name"].partition(" ")[0]]) if part not in row["sealed"]}
        old = names(Seal.NO_NEW_CODE)[0]  # Linux 6.3 has it
        assert set(lacking) <= {old}
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

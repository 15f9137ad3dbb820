"""A running node takes over new code, and starts workers anew, while streams run; what cannot be taken over says so."""

import concurrent.futures
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.network import Network, nyxctl, running_network
from tests.e2e.conftest import blob_digest
from tests.e2e.test_faults import DOWNLOAD, fetch, fetch_until, path_in_use, process

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def command(network: Network, alias: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of a command for one node."""
    control = next(node["socket"] for node in network.nodes() if node["alias"] == alias)
    done = nyxctl("--socket", control, *arguments, "--json", timeout=150, check=False)
    return done.returncode, json.loads(done.stdout)


def pids(network: Network, alias: str) -> dict[str, int]:
    return {found["name"]: found["pid"] for found in network.ask("status", alias=alias)["processes"]}


@pytest.mark.parametrize("place", ["client", "guard", "exit"])
def test_streams_go_on_over_an_upgrade_and_requests_meanwhile_are_served(network: Network, web: str, place: str) -> None:
    over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = pool.submit(fetch_until, network, web, over)
        time.sleep(0.5)
        path = path_in_use(network)
        alias = {"client": network.client(), "guard": path[0], "exit": path[-1]}[place]
        before = pids(network, alias)
        upgrading = pool.submit(command, network, alias, "upgrade")
        asked = 0
        try:
            while not upgrading.done():
                assert fetch(network, web, 1000) == (1000, blob_digest(1000))
                asked += 1
            assert not running.done(), "the upgrade came too late to show anything"
        finally:
            over.set()
        code, document = upgrading.result()
        assert (code, document["schema"], document["drained"]) == (0, "nyx.upgraded", False), document
        after = pids(network, alias)
        assert after["supervisor"] == before["supervisor"], "the supervisor only changes its code"
        assert {name for name in after if after[name] == before[name]} == {"supervisor"}
        assert asked
        assert running.result() == (DOWNLOAD, blob_digest(DOWNLOAD))
    assert network.ask("status", alias=alias)["upgrades"] >= 1


def test_a_worker_is_started_anew_even_when_it_hangs(network: Network, web: str) -> None:
    client = network.client()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(fetch, network, web, DOWNLOAD)
        time.sleep(0.5)
        for stopped in (False, True):
            before = process(network, client, "worker")
            if stopped:
                os.kill(before, signal.SIGSTOP)
            code, document = command(network, client, "restart", "worker", "0")
            assert (code, document["schema"]) == (0, "nyx.restarted"), document
            assert document["pid"] == process(network, client, "worker") != before
        assert running.result() == (DOWNLOAD, blob_digest(DOWNLOAD))
    code, document = command(network, client, "restart", "worker", "7")
    assert (code, document["code"]) == (1, "refused")
    assert "no worker 7" in document["message"]


def test_code_that_does_not_start_changes_nothing_and_another_layout_drains(tmp_path: Path, web: str) -> None:
    with running_network(tmp_path) as network, concurrent.futures.ThreadPoolExecutor(1) as pool:
        client = network.client()
        node = next(node for node in network.nodes() if node["alias"] == client)
        file = Path(node["config"])
        right = file.read_text()
        before = pids(network, client)
        file.write_text(right + "\n[limits]\nstreems = 3\n")
        code, document = command(network, client, "upgrade")
        assert code == 1
        assert "streems" in document["message"], document
        assert "nothing was changed" in document["message"]
        file.write_text(right + "\n[limits]\nstreams = 128\n")
        code, document = command(network, client, "upgrade", "--no-drain")
        assert code == 1
        assert "lays its memory out differently" in document["message"]
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            file.write_text(right.replace(f":{network.proxy_port}", f":{port}"))
            code, document = command(network, client, "upgrade")
        assert code == 1
        assert f"proxy 127.0.0.1 port {port}: Address already in use" in document["message"], document
        file.write_text(right + "\n[limits]\nstreams = 128\n")
        assert pids(network, client) == before
        running = pool.submit(fetch, network, web, DOWNLOAD // 4)
        time.sleep(0.5)
        code, document = command(network, client, "upgrade", "--drain", "30")
        assert (code, document["drained"]) == (0, True), document
        assert running.result() == (DOWNLOAD // 4, blob_digest(DOWNLOAD // 4)), "it had time to end"
        assert network.ask("status", "--wait")["ready"]
        assert fetch(network, web, 1000) == (1000, blob_digest(1000))
        assert next(n["pid"] for n in network.nodes() if n["alias"] == client) == node["pid"]

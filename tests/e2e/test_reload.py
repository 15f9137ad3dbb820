"""Reloads of a running network: all or nothing, on every worker at once, while downloads go on and workers are killed."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from bench.network import Network, nyxctl, running_network
from control import client as control
from nyx.path import cbor
from nyx.path.directory import build_snapshot
from tests.e2e.conftest import blob
from tests.e2e.test_faults import connect

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

RELOADS = 100


@dataclasses.dataclass
class Client:
    """The client of the network, its configuration file, and the ways to it."""

    network: Network
    alias: str
    file: Path
    socket: str
    pid: int

    def ctl(self, *arguments, check=True):
        return nyxctl("--socket", self.socket, *arguments, check=check)

    def ask(self, *arguments):
        return json.loads(self.ctl(*arguments, "--json").stdout)

    def edit(self, old, new):
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def running(self, key):
        return self.ctl("config", "get", "--running", key).stdout.strip()

    def version(self):
        return self.ask("status")["config"]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with running_network(tmp_path_factory.mktemp("net"), "--workers", "2", "--hops", "2", nodes=4) as network:
        alias = network.client()
        node = next(node for node in network.nodes() if node["alias"] == alias)
        yield Client(network, alias, Path(node["config"]), node["socket"], int(node["pid"]))


@pytest.fixture(autouse=True)
def _as_before(client):
    text = client.file.read_text()
    yield
    client.file.write_text(text)
    client.ctl("reload")


def pid_of(client, name):
    """Pid of a process of the node."""
    return next(p["pid"] for p in client.ask("status")["processes"] if p["name"] == name)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
    return found


def test_a_good_file_is_taken_over_by_every_worker_and_by_new_circuits(client, web):
    before = client.version()
    client.edit("hops = 2", "hops = 1")
    said = client.ctl("reload")
    assert f"version {before + 1} runs (was {before}): 1 change applied" in said.stdout
    assert "path.hops  2 -> 1" in said.stdout
    assert client.version() == before + 1
    assert client.network.curl(f"{web}/echo/after").stdout == b"after"

    def lengths():
        ready = [c for c in client.ask("circuits")["circuits"] if c["state"] == "ready"]
        return ready and {len(c["hops"]) for c in ready} == {1}

    until(lengths)
    assert "nothing to change" in client.ctl("reload").stdout
    assert client.version() == before + 1


def test_a_bad_file_changes_nothing_and_tells_every_error_with_its_place(client, web):
    before = client.version()
    client.file.write_text(client.file.read_text().replace("hops = 2", "hop = 2") + "\n[limits]\nstreams = 1\n")
    failed = client.ctl("reload", check=False)
    lines = failed.stderr.splitlines()
    assert failed.returncode == 78
    assert any(line.endswith('path.hop: unknown key, did you mean "hops"?') and f"{client.file}:" in line for line in lines)
    assert any("limits.streams: 1 is below the range 16 to 65536" in line for line in lines)
    assert lines[-1] == f"nothing was changed; version {before} still runs"
    assert client.version() == before
    document = json.loads(client.ctl("reload", "--json", check=False).stdout)
    assert (document["schema"], document["code"]) == ("nyx.error", "config")
    assert client.network.curl(f"{web}/echo/on").stdout == b"on"


def test_a_partly_bad_file_changes_nothing_either(client):
    before = client.version()
    client.edit("hops = 2", "hops = 1\ncircuits_ahead = 99")
    failed = client.ctl("reload", check=False)
    assert failed.returncode == 78
    assert "path.circuits_ahead: 99 is above the range 0 to 64" in failed.stderr
    assert client.running("path.hops") == "2"
    assert client.version() == before


def test_what_needs_a_restart_is_named_and_the_rest_is_taken_over(client):
    client.edit("hops = 2", "hops = 2\ncircuits_ahead = 3")
    client.edit("pin = false", "pin = true")
    said = client.ask("reload")
    assert [(c["key"], c["old"], c["new"]) for c in said["applied"]] == [("path.circuits_ahead", 2, 3)]
    assert [(c["key"], c["old"], c["new"]) for c in said["waiting"]] == [("workers.pin", False, True)]
    assert client.running("workers.pin") == "false"
    assert client.ask("status")["waiting"] == ["workers.pin"]
    assert "workers.pin: needs a restart" in client.ctl("status").stdout
    assert [c["key"] for c in client.ask("config", "diff")["changes"]] == ["workers.pin"]


def test_sighup_is_a_reload(client):
    before = client.version()
    client.edit("hops = 2", "hops = 2\ncircuits_ahead = 4")
    os.kill(client.pid, signal.SIGHUP)
    until(lambda: client.version() == before + 1)
    assert client.running("path.circuits_ahead") == "4"
    newest = client.ask("config", "history")["versions"][0]
    assert (newest["origin"], newest["changes"][0]["key"]) == ("SIGHUP", "path.circuits_ahead")


def test_set_keeps_comments_and_rollback_goes_back(client):
    client.edit("[path]\n", "# what my paths are like\n[path]\n")
    before = client.version()
    said = client.ctl("config", "set", "path.circuits_ahead", "5", "proxy.max_clients", "77")
    assert f"version {before + 1} runs" in said.stdout
    text = client.file.read_text()
    assert "# what my paths are like" in text
    assert "circuits_ahead = 5" in text
    assert client.running("proxy.max_clients") == "77"
    refused = client.ctl("config", "set", "path.circuits_ahead", "500", check=False)
    assert refused.returncode == 78
    assert client.file.read_text() == text
    client.ctl("config", "rollback")
    assert client.running("path.circuits_ahead") == "2"
    assert client.running("proxy.max_clients") == "1024"
    assert "# what my paths are like" in client.file.read_text()
    assert "max_clients" not in client.file.read_text()
    versions = client.ask("config", "history")["versions"]
    assert [v["origin"] for v in versions[:2]] == ["rollback", "set"]
    client.ctl("config", "rollback", str(before + 1))
    assert client.running("path.circuits_ahead") == "5"


def test_a_new_directory_is_a_version_and_an_older_one_is_refused(client, web, tmp_path):
    directory = client.network.folder / "network"
    old, authority = directory.read_bytes(), bytes(range(32))
    body = cbor.decode(cbor.decode(old)[0])
    newer = build_snapshot(
        [tuple(entry) for entry in body["nodes"]], [authority], network=body["network"], sequence=body["sequence"] + 5,
        valid_from=body["valid_from"], valid_until=body["valid_until"],
    )  # fmt: skip
    file = tmp_path / "newer"
    file.write_bytes(newer)
    client.edit('file = "../network"', f'file = "{file}"')
    assert client.ctl("reload", check=False).returncode == 78  # nobody said who signs it
    line = next(line for line in client.file.read_text().splitlines() if line.startswith("signers"))
    trusted = f'signers = ["{cbor.identity_of(authority).hex()}"]'
    client.edit(line, trusted)
    said = client.ask("reload")
    assert ("directory snapshot", body["sequence"], body["sequence"] + 5) in [
        (c["key"], c["old"], c["new"]) for c in said["applied"]
    ]
    assert client.network.curl(f"{web}/echo/new").stdout == b"new"
    worker = pid_of(client, "worker 1")
    os.kill(worker, signal.SIGKILL)  # its next life is forked from a keeper that knows the old directory
    until(lambda: client.ask("status")["ready"] and pid_of(client, "worker 1") not in (None, worker))
    assert client.network.curl(f"{web}/echo/life").stdout == b"life"
    file.write_bytes(old)
    client.edit(trusted, line)
    refused = client.ctl("reload", check=False)
    assert refused.returncode == 78
    assert "rolled back" in refused.stderr
    (client.file.parent / "state" / "directory.pin").unlink()  # the other tests go on with the network's own


def test_a_new_control_process_begins_with_the_version_in_force_whatever_the_files_say(client):
    before, control_pid = client.ask("status"), pid_of(client, "control")
    client.file.write_text("not a [configuration\n")
    os.kill(control_pid, signal.SIGKILL)
    until(lambda: client.ctl("status", check=False).returncode == 0 and pid_of(client, "control") != control_pid)
    assert client.version() == before["config"]
    assert client.running("path.hops") == "2"
    assert client.ctl("reload", check=False).returncode == 78


def test_other_code_over_the_same_memory_runs_the_same_version(client):
    client.ctl("config", "set", "path.circuits_ahead", "6")
    before = client.version()
    client.ctl("upgrade")
    assert client.ask("status")["upgrades"] == 1
    assert until(lambda: len(found := versions(client)) == 1 and found) == {before}
    assert client.running("path.circuits_ahead") == "6"
    client.ctl("config", "rollback")
    assert client.version() == before + 1


def kill_a_worker(client, after, which):
    """Kill one of the workers after so many seconds; its pid."""
    workers = [p["pid"] for p in control.ask(Path(client.socket), "status")["processes"] if p["name"].startswith("worker")]
    time.sleep(after)
    os.kill(workers[which], signal.SIGKILL)
    return workers[which]


def versions(client):
    """The versions that the workers run, and the one in force."""
    status = control.ask(Path(client.socket), "status")
    return {status["config"], *(p["config"] for p in status["processes"] if p["name"].startswith("worker"))}


def read_until(network, web, user, over):
    """Read one long download at a steady pace until told; how much came, and whether all of it was right."""
    block, at, right = blob(1 << 22), 0, True
    with connect(network, web, user) as sock, sock.makefile("rb") as reader:
        sock.sendall(b"GET /blob/%d HTTP/1.0\r\n\r\n" % (1 << 40))
        while reader.readline().strip():
            pass
        while not over.is_set():
            part = reader.read(1 << 18)
            right = right and part == block[at % len(block) : at % len(block) + (1 << 18)]
            at += len(part)
            time.sleep(0.01)
    return at, right


def test_reloads_under_downloads_with_workers_killed_never_leave_a_mixture(client, web):
    """Workers die at any moment of a reload; each ends with all of them on one version, and no byte is lost."""
    dice, text, number = random.Random(5), client.file.read_text(), client.version()
    killed, over = set(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(3) as pool, contextlib.ExitStack() as stack:
        stack.callback(over.set)
        downloads = [pool.submit(read_until, client.network, web, user, over) for user in ("a", "b")]
        for turn in range(RELOADS):
            client.file.write_text(text.replace("[proxy]\n", f"[proxy]\nmax_clients = {700 + turn % 2}\n"))
            dies = pool.submit(kill_a_worker, client, dice.random() * 0.02, turn % 2) if turn % 5 == 4 else None
            said = control.ask(Path(client.socket), "reload", timeout=30)
            number += 1
            assert (said["config"], said["changed"]) == (number, True)
            if dies:
                killed.add(dies.result())
            until(lambda: versions(client) == {number})  # noqa: B023 (called at once)
        assert not any(download.done() for download in downloads)
        over.set()
        for download in downloads:
            size, right = download.result(30)
            assert right
            assert size > 1 << 22
    assert len(killed) == RELOADS // 5
    assert len(client.ask("config", "history")["versions"]) == 50

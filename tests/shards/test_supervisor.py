"""Real processes around doubles: birth, death and rebirth, and that nothing is left."""

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nyx.wire.geometry import PACKET_SIZE
from tests.shards.node_double import COUNT, CRASH, QUERY

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 20.0


def eventually(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        select.select([], [], [], 0.005)
    return True


def free_port() -> int:
    """A port for a node. Tests that run beside each other look in ranges of their own."""
    beside = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4
    for port in range(43399 - 10 * beside, 43389 - 10 * beside, -1):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def free_tcp_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Running:
    """A node under test, started from a configuration in its own folder."""

    def __init__(self, folder: Path, workers: int = 1, alias: str = "double", port: int = 0, proxy: int = 0) -> None:
        folder.chmod(0o700)
        self.folder, self.workers = folder, workers
        self.port, self.proxy = port or free_port(), proxy or free_tcp_port()
        self.file = folder / "nyx.toml"
        self.file.write_text(
            f'[node]\nalias = "{alias}"\naddress = "127.0.0.1"\nport = {self.port}\nstate_dir = "."\nrun_dir = "."\n'
            f"[workers]\ncount = {workers}\npin = false\n"
            f'[proxy]\nlisten = "127.0.0.1:{self.proxy}"\n[path]\nallow_loopback = true\n'
            f'[directory]\nfile = "directory"\nsigners = ["{"00" * 32}"]\n'
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.shards.node_double", str(self.file)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def wait_ready(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE)[0]
        line = self.process.stdout.readline()
        assert line.startswith("READY"), self.process.communicate()
        return line

    def upgrade(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Order it; what the supervisor answers. Raises TimeoutError."""
        found: dict[str, Any] = json.loads(self.say(b"upgrade", patience))
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.say(b"say", PATIENCE))
        return found

    def say(self, what: bytes, patience: float) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(patience)
            sock.connect(str(self.folder / "control.sock"))
            sock.sendall(what)
            data = b""
            while piece := sock.recv(4096):
                data += piece
        return data

    def packet(self, kind: int, rng: random.Random) -> bytes:
        return rng.randbytes(12) + bytes([kind]) + bytes(PACKET_SIZE - 13)

    def send(self, kind: int, rng: random.Random) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(self.packet(kind, rng), ("127.0.0.1", self.port))

    def ask(self, rng: random.Random) -> dict[str, Any]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.sendto(self.packet(QUERY, rng), ("127.0.0.1", self.port))
            found: dict[str, Any] = json.loads(sock.recv(2048))
            return found

    def processes(self) -> dict[int, str]:
        """Pid -> title of everybody in the node's session."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (
                        os.getsid(int(entry.name)) == self.process.pid
                        and "Z" not in (entry / "stat").read_text().split(")")[1].split()[0]
                    ):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().rstrip(b"\0").decode().replace("\0", " ")
        return found

    def gone(self) -> bool:
        """No process, no socket, no memory of it."""
        if self.processes():
            return False
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.bind(("127.0.0.1", self.port))
            tcp.bind(("127.0.0.1", self.proxy))
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        assert eventually(self.gone)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def make(**settings: Any) -> Running:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        running.append(Running(folder, **settings))
        return running[-1]

    yield make
    for node in running:
        node.close()


def test_everybody_runs_and_knows_its_part(start: Callable[..., Running]) -> None:
    node = start(workers=2)
    line = node.wait_ready()
    assert f"udp=127.0.0.1:{node.port} workers=2 proxy=127.0.0.1:{node.proxy}" in line
    status = node.status()
    assert [said["index"] for said in status["said"]] == [0, 1]
    assert [said["pid"] for said in status["said"]] == status["workers"]["pid"] == status["workers"]["ready"]
    assert status["workers"]["restarts"] == status["workers"]["killed_by"] == [0, 0]
    assert status["node"]["supervisor"] == node.process.pid
    assert status["node"]["control"] == status["pid"]
    assert status["node"]["boot_epoch"] > 0
    assert abs(status["node"]["started"] - time.time()) < 100
    assert status["config"] == str(node.file)
    titles = node.processes()
    assert titles[node.process.pid] == "nyxd: supervisor (double)"
    assert [titles[pid] for pid in status["workers"]["pid"]] == ["nyxd: worker 0 (double)", "nyxd: worker 1 (double)"]
    assert [titles[pid] for pid in status["workers"]["keeper"]] == ["nyxd: keeper 0 (double)", "nyxd: keeper 1 (double)"]
    mode = (node.folder / "control.sock").stat().st_mode & 0o777
    assert mode == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_end_leaves_nothing(start: Callable[..., Running], number: signal.Signals) -> None:
    node = start(workers=2)
    node.wait_ready()
    assert len(node.processes()) == 6
    node.process.send_signal(number)
    assert node.process.wait(PATIENCE) == 0
    assert node.gone()
    assert not (node.folder / "control.sock").exists()
    assert node.process.communicate() == ("", "")


def test_sigint_of_a_terminal_reaches_all_and_ends_the_same_way(start: Callable[..., Running]) -> None:
    node = start(workers=2)
    node.wait_ready()
    os.killpg(node.process.pid, signal.SIGINT)
    assert node.process.wait(PATIENCE) == 0
    assert node.gone()


def test_a_hangup_changes_nothing(start: Callable[..., Running], rng: random.Random) -> None:
    node = start()
    node.wait_ready()
    os.killpg(node.process.pid, signal.SIGHUP)
    assert node.ask(rng)["life"] == 0
    assert node.process.poll() is None


def test_a_killed_supervisor_takes_everybody_along(start: Callable[..., Running]) -> None:
    node = start(workers=2)
    node.wait_ready()
    node.process.kill()
    assert eventually(node.gone, patience=2.0)
    again = Running(node.folder, workers=2, port=node.port, proxy=node.proxy)  # over the dead node's control socket
    again.wait_ready()
    assert again.status()["node"]["supervisor"] == again.process.pid
    again.close()


def test_a_killed_worker_goes_on_where_it_was(start: Callable[..., Running], rng: random.Random) -> None:
    """Packets that come while a worker is dead wait in its socket; its columns, and an accepted connection, live on."""
    node = start()
    node.wait_ready()
    with socket.create_connection(("127.0.0.1", node.proxy), PATIENCE) as application:
        application.sendall(b"before")
        assert application.recv(100) == b"BEFORE"
        for sent in range(1, 13):
            pid = node.ask(rng)["pid"]
            os.kill(pid, signal.SIGKILL)
            node.send(COUNT, rng)
            said = node.ask(rng)
            assert (said["count"], said["life"]) == (sent, sent)
            assert said["pid"] != pid
        application.sendall(b"after")
        assert application.recv(100) == b"AFTER"
    status = node.status()
    assert status["packets"] == [12]
    assert status["workers"]["restarts"] == [12]
    assert status["workers"]["killed_by"] == [signal.SIGKILL]
    assert node.ask(rng)["swept"] == 12  # each life's epoll, and nothing else


def test_the_first_restart_is_at_once(start: Callable[..., Running], rng: random.Random) -> None:
    node = start()
    node.wait_ready()
    pid = node.ask(rng)["pid"]
    before = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    assert node.ask(rng)["life"] == 1
    assert time.monotonic() - before < 2.0  # 20 ms on a quiet machine


def test_a_worker_that_ends_by_itself_is_restarted_with_its_code_noted(start: Callable[..., Running], rng: random.Random) -> None:
    node = start()
    node.wait_ready()
    node.send(CRASH, rng)
    assert eventually(lambda: node.status()["workers"]["killed_by"] == [256 + 3])  # a packet in its batch would be lost with it
    assert node.ask(rng)["life"] == 1


def test_a_killed_keeper_and_a_killed_control_process_come_back(start: Callable[..., Running], rng: random.Random) -> None:
    node = start(workers=2)
    node.wait_ready()
    node.send(COUNT, rng)
    first = node.status()
    os.kill(first["workers"]["keeper"][0], signal.SIGKILL)
    os.kill(first["pid"], signal.SIGKILL)

    def whole_again() -> bool:
        with contextlib.suppress(OSError, ValueError):
            status = node.status()
            return bool(status["pid"] != first["pid"] and status["workers"]["pid"][0] != first["workers"]["pid"][0])
        return False

    assert eventually(whole_again)
    second = node.status()
    assert second["workers"]["pid"][1] == first["workers"]["pid"][1]
    assert second["workers"]["restarts"] == [1, 0]
    assert second["node"]["control_restarts"] == 1
    assert sum(second["packets"]) == 1
    assert second["node"]["boot_epoch"] == first["node"]["boot_epoch"]
    assert len(node.processes()) == 6


def test_taken_ports_and_folders_stop_the_start(start: Callable[..., Running]) -> None:
    node = start(workers=2)
    node.wait_ready()
    port, proxy = free_port(), free_tcp_port()
    for settings, problem in (
        ({"port": node.port}, f"UDP 127.0.0.1 port {node.port}: Address already in use"),
        ({"port": node.port, "workers": 2}, f"UDP 127.0.0.1 port {node.port}: Address already in use"),
        ({"proxy": node.proxy}, f"proxy 127.0.0.1 port {node.proxy}: Address already in use"),
    ):
        second = start(**settings)
        out, err = second.process.communicate(timeout=PATIENCE)
        assert (second.process.returncode, out, err) == (1, "", problem + "\n")
        second.port, second.proxy = port, proxy
        assert not (second.folder / "control.sock").exists()
    beside = Running(node.folder, workers=2)
    out, err = beside.process.communicate(timeout=PATIENCE)
    assert (beside.process.returncode, out) == (1, "")
    assert "another nyxd is running" in err
    assert node.status()["workers"]["restarts"] == [0, 0]


@pytest.mark.parametrize("alias", ["broken", "no-control"])
def test_who_never_gets_ready_ends_the_start(start: Callable[..., Running], alias: str) -> None:
    node = start(alias=alias)
    out, err = node.process.communicate(timeout=PATIENCE)
    assert (node.process.returncode, out) == (1, "")
    assert "ended 5 times before it was ready" in err
    assert node.gone()


@pytest.mark.parametrize("role", ["pid", "keeper"])
def test_a_node_that_drains_goes_on_draining_over_deaths(start: Callable[..., Running], rng: random.Random, role: str) -> None:
    node = start()
    node.wait_ready()
    assert not node.ask(rng)["draining"]
    assert node.upgrade()["data"]["drained"]
    assert eventually(lambda: bool(node.ask(rng)["draining"]))
    before = node.status()["workers"]
    os.kill(before[role][0], signal.SIGKILL)
    assert eventually(lambda: node.status()["workers"]["ready"] != before["ready"])
    assert node.ask(rng)["draining"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_new_code_that_is_being_tried_ends_with_the_node(start: Callable[..., Running], number: signal.Signals) -> None:
    node = start(alias="patient")
    node.wait_ready()
    with pytest.raises(TimeoutError):
        node.upgrade(1.0)
    assert len(node.processes()) == 5, "the preflight runs"
    node.process.send_signal(number)
    assert eventually(node.gone, patience=10.0)

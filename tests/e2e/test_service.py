"""A node under a service manager: what it says on the notify socket, when it stops feeding the watchdog, what it mends itself.

The manager is a socket as systemd has it, with the senders' credentials: like NotifyAccess=main, the main process alone counts.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.network import nyxctl
from tests.shards.test_nyxd import ROOT, Home

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PERIOD = 12.0  # seconds of the watchdog
PATIENCE = 60.0
CREDENTIALS = struct.Struct("3i")


@dataclasses.dataclass(frozen=True)
class Said:
    """One message."""

    at: float
    pid: int
    fields: dict[str, str]


class Manager(contextlib.AbstractContextManager["Manager"]):
    """Listens at an abstract name, keeps every message."""

    def __init__(self):
        self.name = f"nyx-test-manager-{os.getpid()}"
        self.said: list[Said] = []
        self._news = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("\0" + self.name)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self):
        while True:
            data, extra, *_ = self._socket.recvmsg(4096, socket.CMSG_SPACE(CREDENTIALS.size))
            if data == b"end":
                return
            pid = CREDENTIALS.unpack(extra[0][2])[0]
            fields = dict(line.partition("=")[::2] for line in data.decode().splitlines())
            with self._news:
                self.said.append(Said(time.monotonic(), pid, fields))
                self._news.notify_all()

    def __exit__(self, *_):
        self._socket.sendto(b"end", "\0" + self.name)
        self._thread.join()
        self._socket.close()

    def wait_for(self, key, text="", after=0, seconds=PATIENCE):
        """Index of the first message after the given one that has this key and this text in its value."""
        with self._news:
            assert self._news.wait_for(lambda: self._find(key, text, after) is not None, seconds), self.said[after:]
            found = self._find(key, text, after)
            assert found is not None
            return found

    def _find(self, key, text, after):
        places = range(after, len(self.said))
        fields = ((place, self.said[place].fields) for place in places)
        return next((place for place, found in fields if key in found and text in found[key]), None)

    def fed(self, since, until):
        """Times of the watchdog's messages between two times."""
        return [message.at for message in self.said if since < message.at < until and "WATCHDOG" in message.fields]


@dataclasses.dataclass
class Node:
    """A relay with its manager."""

    home: Home
    manager: Manager
    process: "subprocess.Popen[bytes]"
    log: Path

    def ctl(self, *arguments, check=True):
        return nyxctl("--socket", str(self.home.folder / "control.sock"), *arguments, check=check)

    def pid_of(self, name):
        status = json.loads(self.ctl("status", "--json").stdout)
        return next(p["pid"] for p in status["processes"] if p["name"] == name)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    home, log = Home(folder), folder / "log"
    with Manager() as manager, log.open("wb") as out:
        given = {"NOTIFY_SOCKET": "@" + manager.name, "WATCHDOG_USEC": str(int(PERIOD * 1e6)), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "shards.nyxd", "--config", str(home.file)]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | given, stdout=out, stderr=out, start_new_session=True)
        try:
            yield Node(home, manager, process, log)
        finally:
            process.kill()
            process.wait()


def test_a_start_is_told_and_ready_is_said_when_everything_answers(node):
    ready = node.manager.wait_for("READY")
    assert node.ctl("status", "--json").returncode == 0
    assert any(message.fields.get("STATUS", "").startswith("starting:") for message in node.manager.said[:ready]), (
        node.manager.said
    )
    assert "READY test" in node.log.read_text()
    node.manager.wait_for("STATUS", "ready", after=ready)
    assert {message.pid for message in node.manager.said} == {node.process.pid}


def test_the_watchdog_is_fed_twice_a_period(node):
    began = node.manager.wait_for("WATCHDOG", after=len(node.manager.said))
    place = began
    for _ in range(4):
        place = node.manager.wait_for("WATCHDOG", after=place + 1)
    times = [message.at for message in node.manager.said[began : place + 1] if "WATCHDOG" in message.fields]
    assert max(b - a for a, b in itertools.pairwise(times)) < PERIOD / 2


@pytest.fixture
def _file_as_before(node):
    yield
    node.home.file.write_text(node.home.text)


@pytest.mark.usefixtures("_file_as_before")
@pytest.mark.parametrize("way", ["SIGHUP", "nyxctl"])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_reload_is_told_from_its_beginning_to_its_end(node, way, right):
    level = {"SIGHUP": "debug", "nyxctl": "info"}[way]
    node.home.file.write_text(node.home.text + (f'[log]\nlevel = "{level}"\n' if right else "[nonsense]\n"))
    at, clock = len(node.manager.said), time.monotonic_ns() // 1000
    if way == "SIGHUP":
        node.process.send_signal(signal.SIGHUP)
    else:
        assert node.ctl("reload", check=False).returncode == (0 if right else 78)
    began = node.manager.wait_for("RELOADING", after=at)
    assert clock <= int(node.manager.said[began].fields["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    ended = node.manager.wait_for("READY", after=began)
    assert ("refused" in node.manager.said[ended].fields["STATUS"]) == (not right)
    if right:
        assert node.ctl("config", "get", "--running", "log.level").stdout.strip() == level


def test_a_worker_that_hangs_starves_the_watchdog_until_its_next_life(node):
    worker, keeper = node.pid_of("worker 0"), node.pid_of("keeper 0")
    at = len(node.manager.said)
    os.kill(keeper, signal.SIGSTOP)
    os.kill(worker, signal.SIGSTOP)
    try:
        named = node.manager.said[node.manager.wait_for("STATUS", "stands still: worker 0", after=at)]
        assert f"watchdog: worker 0 (process {worker})" not in node.log.read_text().split("stands still")[0]
        deadline = time.monotonic() + PATIENCE
        while f"watchdog: worker 0 (process {worker})" not in node.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        threading.Event().wait(PERIOD / 2)  # its keeper does not hear the order: longer than the watchdog is ever left alone
        assert not node.manager.fed(named.at, time.monotonic())
    finally:
        os.kill(keeper, signal.SIGCONT)
    node.manager.wait_for("WATCHDOG", after=len(node.manager.said))
    assert node.pid_of("worker 0") not in (worker, 0, None)
    node.manager.wait_for("STATUS", "ready", after=at)


def test_a_control_process_that_hangs_is_started_again(node):
    control = node.pid_of("control")
    at = len(node.manager.said)
    os.kill(control, signal.SIGSTOP)
    named = node.manager.wait_for("STATUS", "stands still: control process", after=at)
    node.manager.wait_for("WATCHDOG", after=named)
    node.manager.wait_for("STATUS", "ready", after=named)
    assert node.pid_of("control") not in (control, 0, None)


def test_an_upgrade_keeps_the_main_process_and_the_watchdog(node):
    at = len(node.manager.said)
    node.ctl("upgrade")
    ready = node.manager.wait_for("READY", after=at)
    node.manager.wait_for("WATCHDOG", after=ready + 1)
    assert {message.pid for message in node.manager.said[at:]} == {node.process.pid}


def test_a_stop_is_told_before_it_happens(node):
    at = len(node.manager.said)
    node.process.terminate()
    assert node.process.wait(30) == 0
    stopping = node.manager.wait_for("STOPPING", after=at)
    assert "WATCHDOG" not in node.manager.said[-1].fields
    assert stopping == len(node.manager.said) - 1

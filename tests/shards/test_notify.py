"""Lines to a service manager: to a path, to an abstract name, to nobody; and for whom the watchdog is."""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from shards.notify import Notifier
from shards.process import package_environment


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_message_arrives_whole(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{tmp_path}/notify" if kind == "path" else f"@nyx-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("notify" if kind == "path" else "\0" + name[1:])
        manager.settimeout(5)
        with contextlib.closing(Notifier({"NOTIFY_SOCKET": name})) as notifier:
            notifier.send("READY=1", "STATUS=ready")
            assert manager.recv(100) == b"READY=1\nSTATUS=ready"
            assert notifier.connected
            assert notifier.period == 0.0


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_manager_nothing_is_sent(environ: dict[str, str]) -> None:
    notifier = Notifier(environ | {"WATCHDOG_USEC": "1000000"})
    notifier.send("READY=1")
    assert not notifier.connected
    assert notifier.period == 0.0


def test_a_manager_that_does_not_listen_is_no_failure(tmp_path: Path) -> None:
    with contextlib.closing(Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})) as notifier:
        notifier.send("READY=1")
        assert notifier.connected


@pytest.mark.parametrize(
    ("pid", "usec", "period"), [("own", "3000000", 3.0), ("", "500000", 0.5), ("1", "3000000", 0.0), ("own", "soon", 0.0)]
)
def test_the_watchdog_is_for_the_process_that_it_names(pid: str, usec: str, period: float) -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": usec}
    if pid:
        environ["WATCHDOG_PID"] = str(os.getpid()) if pid == "own" else pid
    with contextlib.closing(Notifier(environ)) as notifier:
        assert notifier.period == period


def test_what_the_supervisor_starts_does_not_speak_to_the_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "1")
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & package_environment().keys()

"""What the systems of `bench.compare_tor` have in common: doors to enter by, and processes that are counted and ended.

A door leads to a circuit of its own: a SOCKS5 port with credentials that isolate, or a port of its own.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench.stream import children

_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
STOP_TIME: Final = 5  # seconds from asking to killing


class MissingError(Exception):
    """A program of the system is not installed; the text names it and its Debian package."""


@dataclass(frozen=True)
class Door:
    """A SOCKS5 port, and the user name that has a circuit of its own there (None: the port has one)."""

    port: int
    user: str | None


class System(Protocol):
    """A running network under measurement."""

    def doors(self, count: int) -> list[Door]:
        """Doors to so many circuits; the first of them are the same in each call."""

    def pids(self) -> list[int]:
        """Every process of the system."""


def program(name: str, package: str) -> str:
    """Path of a program; the folders of servers are searched too, which a user's PATH may lack. Raises MissingError."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise MissingError(f"{name} is not installed (Debian: {package})")
    return found


def free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 that nothing listens on."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a process listens. Raises RuntimeError when it ends or does not."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen on 127.0.0.1:{port} (exit status {process.poll()})")


class Group:
    """Processes that end together, with everything they have started."""

    def __init__(self) -> None:
        self.leaders: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a process at the head of its own process group; what it says goes to the end of a file."""
        with log.open("ab") as said:
            leader = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True, env=_environment()
            )
        self.leaders.append(leader)
        return leader

    def pids(self) -> list[int]:
        """The processes and what they have started; some of it has left their groups (sshd's sessions)."""
        return [pid for leader in self.leaders if leader.poll() is None for pid in children(leader.pid)]

    def stop(self) -> None:
        """Ask every process to end, and kill what is left."""
        with contextlib.ExitStack() as stack:
            known = [stack.enter_context(_held(pid)) for pid in self.pids()]
            for number, patience in ((signal.SIGTERM, STOP_TIME), (signal.SIGKILL, STOP_TIME)):
                for handle in known:
                    if handle is not None:
                        with contextlib.suppress(ProcessLookupError):
                            signal.pidfd_send_signal(handle, number)
                deadline = time.monotonic() + patience
                for leader in self.leaders:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        leader.wait(max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int | None]:
    """A handle of a process, which never means another one that got its number; None when it has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _environment() -> dict[str, str]:
    """No proxy, agent or setting of the caller's shell reaches a rival."""
    return {"PATH": _PATH, "LC_ALL": "C", "HOME": "/nonexistent"}


@contextlib.contextmanager
def group() -> Iterator[Group]:
    """A group that is stopped at the end whatever happens."""
    made = Group()
    try:
        yield made
    finally:
        made.stop()

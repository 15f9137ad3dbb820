"""How faults that are not kills are made on a running test network: stopped processes, taken descriptors, clocks that are set.

Everything here acts on real processes from outside, as an operator, a full machine or a bad time server would.
"""

import contextlib
import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bench.network import Network, nyxctl
from bench.stream import children

SHIM: Final = Path(__file__).with_name("faultshim.c")
_ROW: Final = struct.Struct("=4q")
_ROWS: Final = 64


def supervisor_of(network: Network, alias: str) -> int:
    """Pid of a node's supervisor, which leads its session."""
    return supervisors(network)[alias]


def pid_of(network: Network, alias: str, role: str) -> int:
    """Pid of the first process of this role ("worker", "keeper", "control", "supervisor") in a node."""
    for pid in children(supervisor_of(network, alias)):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(f"nyxd: {role}".encode()):
            return pid
    raise LookupError(f"{alias} has no {role}")


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """These processes stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def no_more_descriptors(pid: int, more: int = 0) -> Iterator[None]:
    """The process may open `more` descriptors beyond those it has, and then none."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = sorted(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
    free = [fd for fd in range(used[-1] + 1) if fd not in set(used)]
    limit = free[more] if more < len(free) else used[-1] + 1 + more - len(free)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def cpu_seconds(pid: int) -> float:
    """CPU time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def log_of(network: Network, alias: str) -> str:
    """What a node wrote to its log."""
    return (network.folder / alias / "log").read_text("utf-8", "replace")


def warnings_of(network: Network, alias: str) -> list[str]:
    """The warnings of `nyxctl status`."""
    return list(status_of(network, alias)["warnings"])


def status_of(network: Network, alias: str) -> dict[str, Any]:
    """`nyxctl status` of one node, without asking the others, which may stand still."""
    socket = network.folder / alias / "run" / "control.sock"
    found: dict[str, Any] = json.loads(nyxctl("--socket", str(socket), "status", "--json").stdout)
    return found


def supervisors(network: Network) -> dict[str, int]:
    """Alias -> pid of the supervisor, which leads its node's session."""
    return {str(node["alias"]): int(node["pid"]) for node in network.nodes()}


def wait_for(condition: Callable[[], object], seconds: float) -> float:
    """Seconds until the condition held. Raises TimeoutError."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.05)
    return time.monotonic() - began


class Shim:
    """What lies below the nodes that `environment` was given to: wall clocks, and whether new processes are refused."""

    def __init__(self, folder: Path) -> None:
        library, file = folder / "faultshim.so", folder / "faults"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"], check=True)
        file.write_bytes(bytes(_ROW.size * _ROWS))
        self.environment = {"LD_PRELOAD": str(library), "FAULT_TABLE": str(file)}
        with file.open("r+b") as opened:
            self._table = mmap.mmap(opened.fileno(), _ROW.size * _ROWS)
        self._rows: dict[int, list[int]] = {}

    def set_clock(self, session: int, ahead: int) -> None:
        """Set the wall clock of all processes of a session so many seconds ahead of the machine's."""
        self._set(session, 1, ahead)

    def refuse_processes(self, session: int, *, refuse: bool = True) -> None:
        """Let all processes of a session (-1: of every one) find no room for another process."""
        self._set(session, 2, int(refuse))

    def _set(self, session: int, word: int, value: int) -> None:
        row = self._rows.setdefault(session, [session, 0, 0, 0])
        row[word] = value
        at = _ROW.size * list(self._rows).index(session)
        self._table[at : at + _ROW.size] = _ROW.pack(*row)

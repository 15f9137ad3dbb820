"""Nyx beside a private Tor network of the same hops and relays, and beside `ssh -J` through three sshd, in one run.

Every system stands all the time and they are measured in turn, so that what else the machine does meets them all. They and the
load share this machine's cores: the figures are what one machine carries in all. For each count of circuits, downloads run at
once, one a circuit (isolated by SOCKS credentials; a chain each for ssh), that make `--mib` together. Printed are Mbps of
application bytes, CPU-seconds of all processes of the system per GB (the load's own apart), PSS of all its processes while the
circuits stand, and the time from opening a connection to the first byte of the answer on a warm circuit. What is not installed
says so in its column; a measurement that fails says why, and the run ends with 1.

    python -m bench.compare_tor [--mib 256] [--rounds 3] [--circuits 1,6,50] [--only nyx,tor,tor-vanilla,ssh] [--json]
"""

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.network import Network, running_network
from bench.rivals.ssh import running_ssh
from bench.rivals.system import Door, MissingError, System
from bench.rivals.tor import AUTHORITIES, HOPS, RELAYS, running_tor
from bench.stream import connect, cpu_seconds, first_byte, processes, pss_kib, source

NAMES: Final = ("nyx", "tor", "tor-vanilla", "ssh")
FIRST_BYTES: Final = 20  # per round
WARM_TIME: Final = 120  # seconds for a circuit to be there
RUSH_TIME: Final = 300  # seconds for all bytes of a measurement


@dataclass(frozen=True)
class Nyx:
    """A test network of Nyx as a system under measurement."""

    network: Network
    found: list[int]

    def doors(self, count: int) -> list[Door]:
        """Credentials at the client's proxy."""
        return [Door(self.network.proxy_port, f"circuit-{i}") for i in range(count)]

    def pids(self) -> list[int]:
        """Supervisors, workers and control processes of every node."""
        return self.found


@contextlib.contextmanager
def running_nyx(folder: Path) -> Iterator[Nyx]:
    """Start a test network with as many relays and hops as Tor's."""
    with running_network(folder, "--hops", str(HOPS), nodes=AUTHORITIES + RELAYS + 1) as network:
        yield Nyx(network, list(processes(network)))


def start(name: str, folder: Path) -> contextlib.AbstractContextManager[System]:
    """The system of this name, started when the manager is entered. Raises MissingError, RuntimeError."""
    match name:
        case "nyx":
            return running_nyx(folder)
        case "tor":
            return running_tor(folder)
        case "tor-vanilla":
            return running_tor(folder, "Vanilla")
        case _:
            return running_ssh(folder)


# ---------------------------------------------------------------- load


def warm(doors: list[Door], target: int) -> None:
    """Bring a byte through every door, so that its circuit stands. Raises RuntimeError."""
    for door in doors:
        deadline = time.monotonic() + WARM_TIME
        while True:
            try:
                first_byte(target, door.port, door.user)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no circuit within {WARM_TIME} s: {error}") from error
                time.sleep(0.5)


def rush(doors: list[Door], target: int, size: int) -> float:
    """Seconds to bring `size` bytes through the doors at once, from requests to last byte. Raises OSError, RuntimeError."""
    share = size // len(doors)
    with contextlib.ExitStack() as stack:
        select = stack.enter_context(selectors.DefaultSelector())
        streams = [stack.enter_context(connect(target, door.port, user=door.user)) for door in doors]
        began = time.perf_counter()
        for stream in streams:
            stream.sendall(struct.pack(">Q", share))
            select.register(stream, selectors.EVENT_READ)
        _read(select, dict.fromkeys(streams, share), began + RUSH_TIME)
        return time.perf_counter() - began


def _read(select: selectors.BaseSelector, left: dict[socket.socket, int], deadline: float) -> None:
    """Read until nothing is left of any stream."""
    buffer = bytearray(1 << 20)
    while left:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"{sum(left.values())} bytes are missing after {RUSH_TIME} s")
        for key, _ in select.select(1):
            stream = key.fileobj
            assert isinstance(stream, socket.socket)
            count = stream.recv_into(buffer)
            if count == 0:
                raise RuntimeError(f"a stream ended {left[stream]} bytes early")
            left[stream] -= count
            if left[stream] == 0:
                del left[stream]
                select.unregister(stream)


# ---------------------------------------------------------------- measuring


@dataclass
class Level:
    """What was found with so many circuits."""

    mbps: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # seconds per GB
    pss: list[float] = field(default_factory=list)  # MiB
    processes: int = 0
    failed: str | None = None

    def document(self, circuits: int) -> dict[str, Any]:
        """As JSON."""
        medians = {
            name: statistics.median(found) if found else None
            for name, found in (("mbps", self.mbps), ("cpu_seconds_per_gb", self.cpu), ("pss_mib", self.pss))
        }
        return {"circuits": circuits, **medians, "mbps_rounds": self.mbps, "processes": self.processes, "failed": self.failed}


@dataclass
class Column:
    """A system and what was found of it."""

    name: str
    system: System | None
    missing: str | None = None  # why there is no system
    broken: bool = False  # it is installed and did not start
    first: list[float] = field(default_factory=list)  # milliseconds
    levels: dict[int, Level] = field(default_factory=dict)

    def measure(self, circuits: int, target: int, size: int) -> None:
        """One round with so many circuits; a failure is kept, and ends the rounds of this count."""
        level = self.levels.setdefault(circuits, Level())
        if self.system is None or level.failed:
            return
        try:
            self._measure(self.system, level, circuits, target, size)
        except (OSError, RuntimeError) as error:
            level.failed = f"{type(error).__name__}: {error}"

    def _measure(self, system: System, level: Level, circuits: int, target: int, size: int) -> None:
        doors = system.doors(circuits)
        warm(doors, target)
        if circuits == min(self.levels):
            self.first += [first_byte(target, doors[0].port, doors[0].user) for _ in range(FIRST_BYTES)]
        pids = system.pids()
        before = sum(map(cpu_seconds, pids))
        seconds = rush(doors, target, size)
        level.cpu.append((sum(map(cpu_seconds, pids)) - before) / (size / 1e9))
        level.mbps.append(size * 8e-6 / seconds)
        level.pss.append(sum(map(pss_kib, pids)) / 1024)
        level.processes = len(pids)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        first = {"median": statistics.median(self.first), "worst": max(self.first)} if self.first else None
        levels = [] if self.missing else [level.document(circuits) for circuits, level in self.levels.items()]
        return {"name": self.name, "missing": self.missing, "first_byte_ms": first, "levels": levels}


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def start_all(stack: contextlib.ExitStack, folder: Path, names: list[str]) -> list[Column]:
    """Start every system; one that is not installed, or does not start, becomes a column that says so."""
    columns = []
    for name in names:
        say(f"starting {name}")
        try:
            columns.append(Column(name, stack.enter_context(start(name, folder / name))))
        except MissingError as error:
            columns.append(Column(name, None, str(error)))
            say(f"  {error}")
        except RuntimeError as error:
            columns.append(Column(name, None, f"did not start: {error}", broken=True))
            say(f"  did not start: {error}")
    return columns


def compare(names: list[str], counts: list[int], size: int, rounds: int) -> list[Column]:
    """Measure the systems in turn."""
    with contextlib.ExitStack() as stack:
        pid, target = source()
        stack.callback(os.waitpid, pid, 0)
        stack.callback(os.kill, pid, 15)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the systems are stopped
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-", ignore_cleanup_errors=True)))
        columns = start_all(stack, folder, names)
        for circuits in counts:
            for number in range(rounds):
                for column in columns:
                    column.measure(circuits, target, size)
                    level = column.levels[circuits]
                    found = level.failed or (f"{level.mbps[-1]:.0f} Mbps" if level.mbps else "not running")
                    say(f"{circuits} circuits, round {number + 1} of {rounds}: {column.name} {found}")
        return columns


# ---------------------------------------------------------------- printing


def rows(columns: list[Column], counts: list[int]) -> Iterator[list[str]]:
    """The table: a row a figure, a column a system."""
    yield ["", *(c.name for c in columns)]
    found = [c.document() for c in columns]
    for key, unit, digits in (("mbps", "Mbps", 0), ("cpu_seconds_per_gb", "CPU-s/GB", 1), ("pss_mib", "MiB PSS", 0)):
        for at, circuits in enumerate(counts):
            values = [c["levels"][at][key] if c["levels"] else None for c in found]
            yield [f"{circuits} circuits, {unit}", *("-" if v is None else f"{v:.{digits}f}" for v in values)]
    first = [c["first_byte_ms"] for c in found]
    yield ["first byte, ms (worst)", *("-" if f is None else f"{f['median']:.1f} ({f['worst']:.1f})" for f in first)]
    last = [c["levels"][-1]["processes"] if c["levels"] else 0 for c in found]
    yield [f"processes, {counts[-1]} circuits", *(str(n or "-") for n in last)]


def report(columns: list[Column], counts: list[int]) -> None:
    """Print the table, and below it what is missing in it."""
    for title, *cells in rows(columns, counts):
        shown = ["missing" if title and c.missing else cell for c, cell in zip(columns, cells, strict=True)]
        print(f"{title:26}" + "".join(f"{cell:>16}" for cell in shown))
    for column in columns:
        if column.missing:
            print(f"{column.name}: {column.missing}")
        for circuits, level in column.levels.items():
            if level.failed:
                print(f"{column.name}, {circuits} circuits: {level.failed}")


def options() -> argparse.Namespace:
    """The command line. Ends with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="of each measurement, over all circuits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--circuits", default="1,6,50")
    parser.add_argument("--only", default=",".join(NAMES), help="systems, of " + ",".join(NAMES))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.only = given.only.split(",")
    if wrong := [name for name in given.only if name not in NAMES]:
        parser.error(f"--only: no system {wrong[0]!r}; there are {', '.join(NAMES)}")
    try:
        given.circuits = sorted({int(count) for count in given.circuits.split(",")})
    except ValueError:
        parser.error(f"--circuits: {given.circuits!r} is not a list of numbers such as 1,6,50")
    if given.circuits[0] < 1 or given.circuits[-1] > 100 or given.rounds < 1 or given.mib < 1:
        parser.error("--circuits takes 1 to 100, --rounds and --mib at least 1")
    return given


def main() -> int:
    """Run as the module's docstring says."""
    given = options()
    load = os.getloadavg()[0]
    columns = compare(given.only, given.circuits, given.mib << 20, given.rounds)
    if given.json:
        document = {"schema": "nyx.bench.compare_tor", "version": 1, "hops": HOPS, "relays": AUTHORITIES + RELAYS}
        run = {"mib": given.mib, "rounds": given.rounds, "load_before": load}
        print(json.dumps({**document, **run, "systems": [c.document() for c in columns]}, indent=1))
    else:
        report(columns, given.circuits)
        print(f"{HOPS} hops, {AUTHORITIES + RELAYS} relays, {given.mib} MiB, medians of {given.rounds}; load before: {load:.1f}")
    return int(any(c.broken or level.failed for c in columns for level in c.levels.values()))


if __name__ == "__main__":
    sys.exit(main())

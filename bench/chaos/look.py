"""What a test network's nodes hold: memory, descriptors, streams, circuits, sessions, counters; and whether a series grows."""

import json
import math
import socket
import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.network import Network

_T: Final = 3.71  # standard errors that a slope through 8 points passes by chance once in 200 (Student's t, 6 degrees of freedom)


class Member(NamedTuple):
    """One node."""

    alias: str
    role: str
    pid: int  # of its supervisor
    control: str  # path of its control socket


class Holding(NamedTuple):
    """What all nodes hold at a moment."""

    memory: int  # PSS of all processes, bytes
    descriptors: int
    streams: int
    circuits: int  # rows of all nodes
    ready: int  # own circuits of clients: each has a row at the client and one at each hop
    sessions: int


def members(network: Network) -> list[Member]:
    """All nodes of the network."""
    return [Member(str(n["alias"]), str(n["role"]), int(n["pid"]), str(n["socket"])) for n in network.nodes()]


def family(pid: int) -> list[int]:
    """The process and its descendants that live now."""
    found = [pid]
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += family(int(child))
    return found


def processes(nodes: Sequence[Member]) -> list[tuple[str, int]]:
    """Role and pid of everything that runs."""
    found = []
    for node in nodes:
        for pid in family(node.pid):
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                role = next((r for r in ("worker", "control", "keeper", "supervisor") if title.startswith(f"nyxd: {r}")), "")
                found.append((role or "other", pid))
    return found


def ask(node: Member, op: str) -> dict[str, Any]:
    """The document of an operation, straight from the control socket. Raises OSError, also for a refusal."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(node.control)
        sock.sendall(json.dumps({"v": 1, "op": op, "args": {}}).encode() + b"\n")
        with sock.makefile("rb") as reader:
            answer = json.loads(reader.readline() or b'{"ok": false}')
    if not answer["ok"]:
        raise ConnectionError(f"{node.alias}: {op}: {answer.get('error', 'no answer')}")
    return dict(answer["document"])


def counters(nodes: Sequence[Member]) -> Counter[str]:
    """All counters of all nodes, added."""
    total: Counter[str] = Counter()
    for node in nodes:
        total.update(ask(node, "stats")["total"])
    return total


def memory(nodes: Sequence[Member]) -> int:
    """PSS of all processes, in bytes."""
    total = 0
    for _, pid in processes(nodes):
        with suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += 1024 * int(text.partition("\nPss:")[2].split()[0])
    return total


def descriptors(nodes: Sequence[Member]) -> int:
    """Open descriptors of all nodes; a worker's are its keeper's, so that both count once."""
    total = 0
    for role, pid in processes(nodes):
        if role in {"keeper", "supervisor"}:
            with suppress(OSError):
                total += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return total


def holding(nodes: Sequence[Member]) -> Holding:
    """What all nodes hold now. Raises OSError where a control process is being started again."""
    states = [ask(node, "status") for node in nodes]
    sessions = sum(peer["sessions"] for node in nodes for peer in ask(node, "peers")["peers"])
    streams, circuits, ready = (sum(state[name] for state in states) for name in ("streams", "circuits", "circuits_ready"))
    return Holding(memory(nodes), descriptors(nodes), streams, circuits, ready, sessions)


class Slope(NamedTuple):
    """A straight line through a series: growth per unit of x, its standard error, and the level."""

    slope: float
    error: float
    level: float

    @property
    def bound(self) -> float:
        """Growth that chance alone makes once in 200 times."""
        return _T * self.error

    @property
    def grows(self) -> bool:
        """Whether the growth is more than chance."""
        return self.slope > self.bound


def slope(series: Sequence[tuple[float, float]], parts: int = 8) -> Slope:
    """Least squares through the means of `parts` stretches: neighbouring samples are alike, means of stretches hardly.

    With fewer than two samples a stretch the error is infinite: nothing can be said.
    """
    size = len(series) // parts
    if size < 2:
        return Slope(0.0, math.inf, statistics.fmean(y for _, y in series) if series else 0.0)
    stretches = [series[at : at + size] for at in range(0, len(series), size) if len(series[at : at + size]) == size]
    points = [(statistics.fmean(x for x, _ in s), statistics.fmean(y for _, y in s)) for s in stretches]
    middle_x, middle_y = statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    found = sum((x - middle_x) * (y - middle_y) for x, y in points) / spread
    rest = sum((y - middle_y - found * (x - middle_x)) ** 2 for x, y in points)
    return Slope(found, math.sqrt(rest / (len(points) - 2) / spread), middle_y)

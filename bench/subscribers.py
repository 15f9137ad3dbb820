"""Claim: a hundred subscribers, some of them stalled, cost the data plane next to nothing and a bounded amount of memory.

    python -m bench.subscribers [--subscribers 100] [--stalled 3] [--spells 8] [--seconds 6] [--json]

A download of three hops fills the machine. In every other spell so many subscribers are at the client's node, a third each at the
API's events, at the API's statistics of streams and at the ZeroMQ feed; the first of each kind that shall stall reads one message
and then no more. They are one process, whose processor time is told apart: on a machine without a core to spare it comes out of
the download as well. Prints the rate with and without them, the processor time of each part, what they were told, and memory.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import grpc
import zmq

from bench.cap import Honest
from bench.network import Network, running_network
from bench.stream import children, cpu_seconds, pss_kib, source
from control.api.generated import nyx_v1_pb2 as pb
from control.api.generated.nyx_v1_pb2_grpc import NodeStub, StreamsStub

KINDS: Final = ("events", "statistics", "feed")
_JOIN: Final = 20.0  # seconds within which all must have been told something
_SEPARATE: Final = (("grpc.use_local_subchannel_pool", 1),)  # a connection for each channel
_TIME: Final = 3600


class Crowd:
    """The subscribers, in a process that is forked before it has a thread; `told` counts messages by kind."""

    def __init__(self, run_dir: Path, count: int, stalled: int) -> None:
        read, write = os.pipe()
        self._read = read
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                os.close(read)
                _Subscribers(run_dir, count, stalled).run(write)
            os._exit(1)
        os.close(write)

    def told(self) -> dict[str, int]:
        """The newest count that it said."""
        lines = os.read(self._read, 1 << 16).splitlines()
        if not lines:
            raise RuntimeError("the subscribers ended")
        return dict(json.loads(lines[-1]))

    def stop(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._read)


class _Subscribers:
    """What runs in that process: a thread for each call of the API, one for the feed."""

    def __init__(self, run_dir: Path, count: int, stalled: int) -> None:
        self._told: Counter[str] = Counter()
        each = [count // 3, count // 3, count - 2 * (count // 3)]
        stall = [(stalled + 2) // 3, (stalled + 1) // 3, stalled // 3]
        for number in range(each[0]):
            channel = grpc.insecure_channel(f"unix:{run_dir / 'api.sock'}", options=_SEPARATE)
            events = NodeStub(channel).SubscribeEvents(pb.SubscribeEventsRequest(after=pb.Position()), timeout=_TIME)
            figures = StreamsStub(channel).StreamStats(pb.StreamStatsRequest(interval=1.0), timeout=_TIME)
            self._start("events", events, stalls=number < stall[0])
            self._start("statistics", figures, stalls=number < stall[1])
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets = [self._subscribe(run_dir / "feed.sock") for _ in range(each[2])]
        self._deaf = stall[2]

    def _start(self, kind: str, call: Any, *, stalls: bool) -> None:
        def read() -> None:
            with contextlib.suppress(grpc.RpcError):
                for _ in call:
                    self._told[kind] += 1
                    if stalls:
                        threading.Event().wait()

        threading.Thread(target=read, daemon=True).start()

    def _subscribe(self, path: Path) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.subscribe("")
        socket.connect(f"ipc://{path}")
        return socket

    def run(self, told: int) -> None:
        """Read the feed, and say now and then what was told."""
        poller = zmq.Poller()
        for socket in self._sockets[self._deaf :]:
            poller.register(socket, zmq.POLLIN)
        due = 0.0
        while True:
            for socket, _ in poller.poll(100):
                socket.recv_multipart()
                self._told["feed"] += 1
            if time.monotonic() >= due:
                due = time.monotonic() + 0.2
                os.write(told, json.dumps(dict(self._told)).encode() + b"\n")


class Parts:
    """Processor time of the client's node by part, and of all nodes' workers."""

    def __init__(self, network: Network) -> None:
        rows = network.nodes()
        self.client = next(int(row["pid"]) for row in rows if row["role"] == "client")
        self._pids = {pid: title(pid) for row in rows for pid in children(int(row["pid"]))}
        self._control = next(pid for pid in children(self.client) if title(pid) == "control")

    def now(self) -> dict[str, float]:
        """Seconds so far."""
        workers = sum(cpu_seconds(pid) for pid, name in self._pids.items() if name == "worker")
        return {"workers": workers, "control": cpu_seconds(self._control)}

    def control_mib(self) -> float:
        """Memory of the client's control process."""
        return pss_kib(self._control) / 1024


def title(pid: int) -> str:
    """What a process of a node is."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").removeprefix("nyxd: ").split(" ")[0]
    return ""


def spell(honest: Honest, parts: Parts, seconds: float, crowd: Crowd | None) -> dict[str, float]:
    """One stretch of time: Mbps, and processor seconds a second of each part."""
    before, beside = parts.now(), cpu_seconds(crowd.pid) if crowd else 0.0
    start = time.monotonic()
    rate = honest.rate(seconds)
    passed = time.monotonic() - start
    used = {name: (value - before[name]) / passed for name, value in parts.now().items()}
    crowds = (cpu_seconds(crowd.pid) - beside) / passed if crowd else 0.0
    return {"mbps": rate, **used, "subscribers": crowds, "workers_s_per_gb": used["workers"] * 8000 / max(rate, 1e-9)}


def join(crowd: Crowd) -> None:
    """Wait until every kind was told something. Raises RuntimeError."""
    end, told = time.monotonic() + _JOIN, dict[str, int]()
    while time.monotonic() < end:
        told = crowd.told()
        if all(told.get(kind) for kind in KINDS):
            return
    raise RuntimeError(f"not every kind of subscriber was told anything: {told}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All spells, on a network of its own."""
    pid, port = source()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            running_network(Path(folder) / "net", "--set", "monitor.feed=true", nodes=5) as network,
        ):
            parts, honest = Parts(network), Honest(port, network.proxy_port)
            run_dir = network.folder / network.client() / "run"
            honest.start()
            time.sleep(2)
            memory, found = {"before": parts.control_mib()}, {"without": list[Any](), "with": list[Any]()}
            told: Counter[str] = Counter()
            for _ in range(options.spells):
                found["without"].append(spell(honest, parts, options.seconds, None))
                crowd = Crowd(run_dir, options.subscribers, options.stalled)
                try:
                    join(crowd)
                    found["with"].append(spell(honest, parts, options.seconds, crowd))
                    told.update(crowd.told())
                    memory["with"] = max(memory.get("with", 0.0), parts.control_mib())
                finally:
                    crowd.stop()
            memory["after"] = parts.control_mib()
            honest.stop()
            return {"told": dict(told), "control_mib": memory, "lost": honest.lost} | _medians(found)
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def _medians(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    medians = {kind: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for kind, rows in found.items()}
    ratios = [one["mbps"] / max(other["mbps"], 1e-9) for one, other in zip(found["with"], found["without"], strict=True)]
    return {**medians, "ratio": statistics.median(ratios), "ratios": sorted(ratios)}


def main() -> int:
    """Measure and print; ends with 0 whatever the figures say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, default=100)
    parser.add_argument("--stalled", type=int, default=3)
    parser.add_argument("--spells", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        settings = {"subscribers": options.subscribers, "stalled": options.stalled}
        print(json.dumps({"schema": "nyx.bench.subscribers", "version": 1} | settings | result))
        return 0
    for kind in ("without", "with"):
        row = result[kind]
        print(
            f"{kind:8} {row['mbps']:6.0f} Mbps; of a core: workers {row['workers']:.3f}, the client's control process "
            f"{row['control']:.3f}, subscribers {row['subscribers']:.3f}; workers {row['workers_s_per_gb']:.2f} s a GB"
        )
    print(f"rate with / without: {result['ratio']:.3f} (pairs from {result['ratios'][0]:.3f} to {result['ratios'][-1]:.3f})")
    print(f"told: {result['told']}; streams lost: {result['lost']}")
    print("the client's control process: " + ", ".join(f"{when} {size:.1f} MiB" for when, size in result["control_mib"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

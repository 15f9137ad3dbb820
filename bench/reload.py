"""What reloads cost: latency of a stream, packets lost and memory, with and without reloads of every node, under a full load.

A download runs through the network all the time, and a byte goes back and forth on another stream; the reloads are asked for by
a process of their own, so that they do not hold up those who measure. Quiet spells and spells in which every node takes a new
version of its configuration take turns, so that what else this machine does hits both. Prints the percentiles of both, what was
lost in each, the time that a reload takes, and the memory of all processes after the first spells and after the last.

    python -m bench.reload [--reloads 1000] [--rate 5] [--spells 10] [--hops 3] [--json]
"""

import argparse
import contextlib
import json
import os
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Self

from bench.network import Network, running_network
from bench.stream import connect, cpu_seconds, processes, pss_kib, source
from control import client

_LOST: Final = ("ring_full", "send_failed", "pool_empty", "control_retransmitted")
_WARM: Final = 200  # reloads before memory is looked at first
_KEYS: Final = (1000, 1001)  # proxy.max_clients: a change that touches nothing else


@dataclass
class Spell:
    """One kind of time: with reloads or without."""

    trips: list[float] = field(default_factory=list)  # seconds
    bytes: int = 0
    seconds: float = 0.0
    lost: dict[str, int] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Percentiles and rates."""
        trips = sorted(self.trips)
        at = {f"p{share}": 1e6 * trips[min(len(trips) - 1, len(trips) * share // 100)] for share in (50, 90, 99)}
        mbps = self.bytes * 8e-6 / self.seconds
        return {"round_trip_us": at, "round_trips": len(trips), "download_mbps": mbps, "lost": self.lost}


class Load:
    """A download without end and a byte that goes back and forth, each in a thread; both know which spell it is."""

    def __init__(self, port: int, proxy: int) -> None:
        self.spell = Spell()
        self._over = threading.Event()
        self._port, self._proxy = port, proxy
        self._threads = [threading.Thread(target=job, daemon=True) for job in (self._download, self._trips)]
        self.failed: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _download(self) -> None:
        with connect(self._port, self._proxy) as stream:
            stream.sendall(struct.pack(">Q", 1 << 50))
            buffer = bytearray(1 << 20)
            while not self._over.is_set():
                count = stream.recv_into(buffer)
                if not count:
                    self.failed.append("the download ended")
                    return
                self.spell.bytes += count

    def _trips(self) -> None:
        with connect(self._port, self._proxy) as stream:
            stream.sendall(struct.pack(">Q", 1))
            stream.recv(1)
            while not self._over.is_set():
                start = time.perf_counter()
                stream.sendall(b"x")
                if not stream.recv(1):
                    self.failed.append("the stream ended")
                    return
                self.spell.trips.append(time.perf_counter() - start)
                time.sleep(0.001)


class Nodes:
    """All nodes of the network, their sockets and files."""

    def __init__(self, network: Network) -> None:
        rows = network.nodes()
        self._sockets = [Path(row["socket"]) for row in rows]
        self._files = [Path(row["config"]) for row in rows]
        self._texts = [file.read_text() for file in self._files]
        self._turn = 0

    def reload(self) -> list[float]:
        """Every node takes another version, one after the other; the seconds of each."""
        self._turn += 1
        times = []
        line = f"[proxy]\nmax_clients = {_KEYS[self._turn % 2]}\n"
        for socket, file, text in zip(self._sockets, self._files, self._texts, strict=True):
            file.write_text(text.replace("[proxy]\n", line))
            start = time.perf_counter()
            said = client.ask(socket, "reload", timeout=30)
            times.append(time.perf_counter() - start)
            if not said["changed"] or any(worker["config"] != said["config"] for worker in said["workers"]):
                raise RuntimeError(f"a reload did not reach all: {said}")
        return times

    def serve(self, asked: Connection) -> None:
        """Whenever a number of rounds and the seconds of each come, do them; answer with the seconds that each reload took."""
        while True:
            rounds, pace = asked.recv()
            times, begun = [], time.monotonic()
            for turn in range(rounds):
                times += self.reload()
                time.sleep(max(0.0, begun + pace * (turn + 1) - time.monotonic()))
            asked.send(times)

    def lost(self) -> dict[str, int]:
        """Counters of lost and repeated packets, over all nodes."""
        totals = [client.ask(socket, "stats")["total"] for socket in self._sockets]
        names = [name for name in totals[0] if name in _LOST or name.startswith("dropped_")]
        return {name: sum(total[name] for total in totals) for name in names}


def measure(options: argparse.Namespace, port: int) -> dict[str, Any]:
    """All spells, over one network."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = stack.enter_context(running_network(folder / "net", "--hops", str(options.hops), nodes=5))
        names, nodes = processes(network), Nodes(network)
        ours, theirs = Pipe()
        Process(target=nodes.serve, args=(theirs,), daemon=True).start()
        idle = {pid: cpu_seconds(pid) for pid in names}
        warm = len(_rounds(ours, _WARM // len(network.nodes()), 0))
        cost: dict[str, float] = {}
        for pid, name in names.items():
            cost[name.split()[1]] = cost.get(name.split()[1], 0.0) + 1e3 * (cpu_seconds(pid) - idle[pid]) / warm
        memory: dict[str, float] = {}
        times: list[float] = []
        kinds = {"quiet": Spell(), "with_reloads": Spell()}
        with Load(port, network.proxy_port) as load:
            time.sleep(1)
            for number in range(options.spells):
                memory = _memory(names) if number < 2 else memory
                for name, spell in kinds.items():
                    times += _one_spell(load, spell, nodes, options, ours if name == "with_reloads" else None)
            failed = load.failed
        return {
            "reloads": len(times),
            "reload_ms": {f"p{s}": 1e3 * sorted(times)[len(times) * s // 100] for s in (50, 99)},
            "reload_cpu_ms": cost,
            "streams_lost": failed,
            **{name: spell.report() for name, spell in kinds.items()},
            "pss_mib_before": memory,
            "pss_mib_after": _memory(names),
        }


def _rounds(asked: Connection, rounds: int, pace: float) -> Sequence[float]:
    asked.send((rounds, pace))
    return list(asked.recv())


def _one_spell(
    load: Load, spell: Spell, nodes: Nodes, options: argparse.Namespace, reloads: Connection | None
) -> Sequence[float]:
    """One stretch of time of this kind, as long as its share of the reloads takes at the wanted rate; seconds of each reload."""
    rounds, pace = max(1, options.reloads // options.spells // 5), 5 / options.rate
    before, begun = nodes.lost(), time.monotonic()
    load.spell = spell
    times: Sequence[float] = ()
    if reloads:
        times = _rounds(reloads, rounds, pace)
    else:
        time.sleep(rounds * pace)
    load.spell = Spell()  # what comes between two spells belongs to none
    spell.seconds += time.monotonic() - begun
    for name, count in nodes.lost().items():
        if count > before[name]:
            spell.lost[name] = spell.lost.get(name, 0) + count - before[name]
    return times


def _memory(names: dict[int, str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pid, name in names.items():
        found[name] = found.get(name, 0.0) + pss_kib(pid) / 1024
    return {name: round(size, 1) for name, size in sorted(found.items())} | {"all": round(sum(found.values()), 1)}


def report(result: dict[str, Any]) -> None:
    """Print the result as text."""
    times, lost = result["reload_ms"], result["streams_lost"]
    print(f"{result['reloads']} reloads, each {times['p50']:.1f} ms (p99 {times['p99']:.1f}); streams lost: {lost or 0}")
    print("CPU a reload: " + ", ".join(f"{name} {cost:.1f} ms" for name, cost in result["reload_cpu_ms"].items()))
    for name in ("quiet", "with_reloads"):
        spell = result[name]
        trips = "  ".join(f"{share} {value:6.0f} us" for share, value in spell["round_trip_us"].items())
        print(f"{name:12} round trip {trips}  ({spell['round_trips']})  download {spell['download_mbps']:5.0f} Mbps")
        print(f"{'':12} lost {spell['lost'] or 0}")
    p99 = [result[name]["round_trip_us"]["p99"] for name in ("quiet", "with_reloads")]
    print(f"p99 with reloads / without: {p99[1] / p99[0]:.3f}")
    for name, size in result["pss_mib_after"].items():
        print(f"{name:24} {result['pss_mib_before'][name]:7.1f} -> {size:7.1f} MiB")


def main() -> None:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=5.0, help="reloads a second, over all nodes")
    parser.add_argument("--spells", type=int, default=10)
    parser.add_argument("--hops", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pid, port = source()
    try:
        result = measure(options, port)
    finally:
        os.kill(pid, 15)
        os.waitpid(pid, 0)
    if options.json:
        print(json.dumps({"schema": "nyx.bench.reload", "version": 1, **result}, indent=1))
    else:
        report(result)
    sys.stdout.flush()


if __name__ == "__main__":
    main()

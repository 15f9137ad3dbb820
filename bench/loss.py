"""What is left of a network that loses 30 of 100 packets on every hop: circuits, small requests and a download by three hops.

In a network namespace of its own (root): a rule of the packet filter drops UDP at random in INPUT, once the network stands.
Circuits: each of `--builds` requests comes with credentials of its own, so each needs a circuit of its own, eight at a time; it
is served when its first byte came within 30 s, the stream's opening included. Requests: one byte each, one after the other, on
circuits that stand. A download of `--mib`, checked byte for byte. Printed besides: what the nodes counted meanwhile (a build that
took more than 8 s counts as failed: another takes its place). Exit 1 when a circuit was not served in time, a link ended or bytes
were wrong. What streams
make of such a network is reported only: of a download not complete within `--seconds`, what came.

    python -m bench.loss [--loss 30] [--builds 100] [--requests 20] [--mib 4] [--seconds 120] [--json]
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.network import ROOT, Network, running_network
from bench.stream import connect, first_byte, source

LIMIT: Final = 30  # seconds for a circuit and its first byte
BLOCK: Final = random.Random(7).randbytes(1 << 20)  # what the download brings, again and again
AT_ONCE: Final = 8
NAMES: Final = ("builds_started", "builds_ready", "builds_failed", "links_opened", "links_closed", "control_retransmitted")


def namespaced(arguments: Sequence[str]) -> int:
    """Run this script again in a network namespace of its own; its exit code."""
    if os.geteuid():
        raise SystemExit("a network namespace and its packet filter need root: run it as root")
    command = ["unshare", "--net", sys.executable, "-m", "bench.loss", *arguments, "--inside"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def lose(percent: int) -> None:
    """From now on this share of UDP packets that arrive anywhere in this namespace is dropped."""
    rule = ["-p", "udp", "-m", "statistic", "--mode", "random", "--probability", f"{percent / 100}", "-j", "DROP"]
    subprocess.run(["iptables", "-A", "INPUT", *rule], check=True, capture_output=True)


def timed(work: Callable[[], object]) -> float | None:
    """Seconds that it took, None when it failed."""
    start = time.monotonic()
    try:
        work()
    except OSError:
        return None
    return time.monotonic() - start


def circuits(network: Network, port: int, count: int) -> list[float | None]:
    """Seconds to the first byte for so many isolations, each over a circuit of its own."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(timed, partial(first_byte, port, network.proxy_port, f"circuit-{n}")) for n in range(count)]
        return [job.result() for job in jobs]


def target(size: int) -> int:
    """The port of a server that gives the first who connects so many bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                for at in range(0, size, len(BLOCK)):
                    connection.sendall(BLOCK[: size - at])

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def right(data: bytes, at: int) -> bool:
    """Whether these are the target's bytes from this place on."""
    start = at % len(BLOCK)
    return data == (BLOCK[start:] + BLOCK)[: len(data)]


def download(network: Network, size: int, seconds: float) -> dict[str, Any]:
    """What came of so many bytes, and whether they are the target's."""
    start, got, wrong, ended = time.monotonic(), 0, False, ""
    try:
        with connect(target(size), network.proxy_port) as stream:
            while got < size and (left := start + seconds - time.monotonic()) > 0:
                stream.settimeout(left)
                data = stream.recv(min(1 << 16, size - got))
                if not data:
                    break
                got, wrong = got + len(data), wrong or not right(data, got)
    except OSError as error:
        ended = error.strerror or str(error)
    took = time.monotonic() - start
    return {"bytes": got, "of": size, "seconds": took, "kbit_s": got * 8e-3 / took, "wrong": wrong, "ended": ended}


def counted(network: Network) -> dict[str, int]:
    """Sums over all nodes."""
    total = dict.fromkeys(NAMES, 0)
    for node in network.nodes():
        counters = network.ask("stats", alias=node["alias"])["total"]
        for name in NAMES:
            total[name] += int(counters[name])
    return total


def summary(times: Sequence[float | None]) -> dict[str, Any]:
    """How many were served in time, and how long it took."""
    good = sorted(t for t in times if t is not None and t <= LIMIT)
    middle, most = (statistics.median(good), good[-1]) if good else (None, None)
    return {"of": len(times), "served": len(good), "median_s": middle, "most_s": most}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
    pid, port = source()
    try:
        with tempfile.TemporaryDirectory() as folder, running_network(Path(folder), "--hops", "3") as network:
            return run(network, port, options)
    finally:
        os.kill(pid, signal.SIGTERM)


def run(network: Network, port: int, options: argparse.Namespace) -> dict[str, Any]:
    """All measurements, in order."""
    first_byte(port, network.proxy_port)
    before = counted(network)
    lose(options.loss)
    start = time.monotonic()
    made = circuits(network, port, options.builds)
    asked = [timed(lambda: first_byte(port, network.proxy_port)) for _ in range(options.requests)]
    loaded = download(network, options.mib << 20, options.seconds)
    after = counted(network)
    return {
        "schema": "nyx.bench.loss", "version": 1, "loss_percent": options.loss, "seconds": time.monotonic() - start,
        "circuits": summary(made), "requests": summary(asked), "download": loaded,
        "counted": {name: after[name] - before[name] for name in NAMES},
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """For people."""
    for name in ("circuits", "requests"):
        row = found[name]
        print(f"{name}: {row['served']} of {row['of']} within {LIMIT} s, median {row['median_s']} s, most {row['most_s']} s")
    loaded = found["download"]
    came = f"{loaded['bytes']} of {loaded['of']} bytes in {loaded['seconds']:.1f} s, {loaded['kbit_s']:.0f} kbit/s"
    print(f"download: {came} {loaded['ended']}")
    print(", ".join(f"{name} {value}" for name, value in found["counted"].items()))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("loss", 30), ("builds", 100), ("requests", 20), ("mib", 4), ("seconds", 120)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        return namespaced(sys.argv[1:])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    circuits = found["circuits"]
    whole = circuits["served"] == circuits["of"] and not found["counted"]["links_closed"]
    return 0 if whole and not found["download"]["wrong"] else 1


if __name__ == "__main__":
    sys.exit(main())

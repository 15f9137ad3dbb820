"""Claim: circuits that do not read cannot make a node hold more than its cap, and cost the others little.

    python -m bench.cap [--circuits 200] [--streams 4] [--cap 256] [--seconds 15] [--json]

Starts a test network and gives its exits a cap on memory while they run. An honest application downloads by a circuit of its own,
first alone, then while so many other circuits, of so many streams each, ask for bytes without end and read none; with `--again`
whose stream is ended asks again. Prints the honest rate before and during the attack, the most that an exit held (the sum of
PSS of its processes, looked at all the time), and what the exits ended.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.network import Network, nyxctl, running_network
from bench.stream import children, connect, pss_kib, source

CLIENTS: Final = 3  # the honest one, and two that share the attackers' circuits: a client has 128 of its own
SHAPE: Final = ("--relays", "3", "--clients", str(CLIENTS))
ENDLESS: Final = 1 << 40
BLOCK: Final = 1 << 16
STARTERS: Final = 16  # threads that open the attackers' streams


class Honest(threading.Thread):
    """Downloads without end by a circuit of its own, and counts."""

    def __init__(self, port: int, proxy: int) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.lost = 0  # streams that ended though nobody ended them
        self._over = threading.Event()
        self._where = (port, proxy)

    def run(self) -> None:
        """Until asked to stop."""
        while not self._over.is_set():
            with contextlib.suppress(OSError), connect(*self._where, timeout=20, user="honest") as stream:
                stream.sendall(struct.pack(">Q", ENDLESS))
                while not self._over.is_set() and (data := stream.recv(BLOCK)):
                    self.bytes += len(data)
            self.lost += not self._over.is_set()

    def rate(self, seconds: float) -> float:
        """Mbps over so long."""
        before, start = self.bytes, time.monotonic()
        time.sleep(seconds)
        return (self.bytes - before) * 8e-6 / (time.monotonic() - start)

    def stop(self) -> None:
        """Let it end."""
        self._over.set()
        self.join(30)


def hoard(proxies: range, options: argparse.Namespace, ready: int) -> None:
    """The attackers' process: hold the streams and read nothing. Ends by a signal."""
    port = tap()
    poll, held, left = select.poll(), {}, list(range(options.circuits * options.streams))

    def ask(user: int) -> None:
        with contextlib.suppress(OSError):
            stream = connect(port, proxies[user % len(proxies)], timeout=10, user=f"attacker{user}")
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            held[stream.fileno()] = (stream, user)
            poll.register(stream.fileno(), select.POLLHUP | select.POLLERR)

    def begin() -> None:
        with contextlib.suppress(IndexError):
            while True:
                ask(left.pop() % options.circuits)

    starters = [threading.Thread(target=begin) for _ in range(STARTERS)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    os.write(ready, b".")
    while True:
        for fd, _ in poll.poll(1000):
            stream, user = held.pop(fd)
            poll.unregister(fd)
            stream.close()
            if options.again:
                ask(user)


def tap() -> int:
    """Serve bytes without end to whoever connects, with little kept in the kernel; the port. It ends with this process."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)

    def pour(stream: socket.socket) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK)
        with contextlib.suppress(OSError):
            while stream.send(bytes(BLOCK)):
                pass

    def serve() -> None:
        while True:
            threading.Thread(target=pour, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def start_hoard(proxies: range, options: argparse.Namespace) -> int:
    """Fork it and wait until each of its streams was asked for once; its pid."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            hoard(proxies, options, write)
        os._exit(1)
    os.close(write)
    with contextlib.closing(os.fdopen(read, "rb")) as told:
        told.read(1)
    return pid


class Watch(threading.Thread):
    """The most that each exit held."""

    def __init__(self, network: Network) -> None:
        super().__init__(daemon=True)
        self.supervisors = {n["alias"]: int(n["pid"]) for n in network.nodes() if n["role"] == "exit"}
        self.most = dict.fromkeys(self.supervisors, 0)
        self._over = threading.Event()

    def run(self) -> None:
        """Until asked to stop."""
        while not self._over.wait(0.1):
            for alias, pid in self.supervisors.items():
                with contextlib.suppress(OSError):
                    self.most[alias] = max(self.most[alias], sum(pss_kib(child) for child in children(pid)) >> 10)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join(10)


def limit_exits(network: Network, cap: int) -> None:
    """Put the cap in force at the exits, which run."""
    for node in network.nodes():
        if node["role"] == "exit":
            extra = Path(node["config"]).parent / "conf.d"
            extra.mkdir(exist_ok=True)
            (extra / "cap.toml").write_text(f"[limits]\nmemory = {cap}\n")
            nyxctl("--socket", node["socket"], "reload")


def ended(network: Network) -> dict[str, int]:
    """What the exits ended so far, and how many circuits and streams they carried."""
    names = ("streams_evicted", "circuits_evicted", "builds_passed", "streams_closed")
    totals = [network.ask("stats", alias=n["alias"])["total"] for n in network.nodes() if n["role"] == "exit"]
    return {name: sum(total[name] for total in totals) for name in names}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run on a network of its own."""
    pid, port = source()
    attacker = 0
    try:
        with tempfile.TemporaryDirectory() as folder, running_network(Path(folder), *SHAPE, nodes=3 + CLIENTS) as network:
            limit_exits(network, options.cap)
            honest = Honest(port, network.proxy_port)
            honest.start()
            time.sleep(2)
            alone = honest.rate(options.seconds)
            watch = Watch(network)
            watch.start()
            attacker = start_hoard(range(network.proxy_port + 1, network.proxy_port + CLIENTS), options)
            attacked = honest.rate(options.seconds)
            found, states = ended(network), [network.ask("status", alias=alias) for alias in watch.most]
            warnings = [text for state in states for text in state["warnings"]]
            watch.stop()
            honest.stop()
            return {
                "alone": alone, "attacked": attacked, "share": attacked / max(alone, 1e-9), "pss_mib": max(watch.most.values()),
                "held": {name: sum(state[name] for state in states) for name in ("streams", "circuits")},
                "honest_lost": honest.lost, "ended": found, "warned": sum("limits.memory" in text for text in warnings),
            }  # fmt: skip
    finally:
        for child in filter(None, (attacker, pid)):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def main() -> int:
    """Measure and print; ends with 0 whatever the figures say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--circuits", type=int, default=200)
    parser.add_argument("--streams", type=int, default=4, help="of each circuit")
    parser.add_argument("--cap", type=int, default=256, help="MiB of each exit")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--again", action="store_true", help="whose stream is ended asks again")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        settings = {"circuits": options.circuits, "streams": options.streams, "cap_mib": options.cap}
        print(json.dumps({"schema": "nyx.bench.cap", "version": 1} | settings | found))
        return 0
    print(f"honest download: {found['alone']:.0f} Mbps alone, {found['attacked']:.0f} under attack ({found['share']:.0%})")
    print(f"its streams lost: {found['honest_lost']}")
    print(f"most that an exit held: {found['pss_mib']} MiB with a cap of {options.cap} ({found['pss_mib'] / options.cap:.2f})")
    print("the exits held: {streams} streams, {circuits} circuits".format(**found["held"]))
    print("the exits ended: {streams_evicted} streams, {circuits_evicted} circuits".format(**found["ended"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Ten million hostile packets over all stages against a running network, by strangers, a hostile client and a hostile relay.

    python -m bench.hostile [--packets 10000000] [--seed 1] [--json]

Starts a test network, ends one of its relays and takes its place with its keys; clients of our own are hostile too. Honest
applications go on asking through the network meanwhile. Judged: no process of an honest node ended, none grew by more than
16 MiB (PSS), no byte of an answer was wrong, every stage has reached its victim and its packets stand under named counters, no
traceback in a log, and a request after it is served. What is sent, and in which order, follows from the seed. Exit 1 when
something of it is not so.
"""

import argparse
import json
import os
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from bench.attack.peer import Peer, backlog, ground_of
from bench.attack.stages import STAGES, Hostile, run
from bench.chaos.look import Member, counters, family, members, memory, processes
from bench.network import Network, running_network
from bench.stream import connect, first_byte, source

GROWTH: Final = 16 << 20  # bytes
INNER: Final = ("relay-1", "relay-2")  # one turns hostile, the other is its victim
WARM_UP: Final = 0.05  # of the packets: touches what a node keeps for good, its pool and its tables
GAP: Final = 0.3  # seconds between two honest requests


ECHO: Final = 32 << 10  # bytes of an honest request, there and back
REQUEST_LIMIT: Final = 10.0  # seconds


def echo(port: int, proxy: int, user: str, data: bytes) -> bytes:
    """What comes back of these bytes through three hops. Raises OSError."""
    with connect(port, proxy, REQUEST_LIMIT, user) as stream:
        stream.sendall(struct.pack(">Q", 0) + data)
        found = b""
        while len(found) < len(data):
            part = stream.recv(len(data))
            if not part:
                raise ConnectionError("the stream ended early")
            found += part
        return found


class Honest:
    """An application that asks again and again, on 40 circuits in turn, and compares each byte of the answer."""

    def __init__(self, network: Network, port: int) -> None:
        self.served = self.failed = self.wrong = 0
        self._stop = threading.Event()
        self._network, self._port = network, port
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(GAP):
            number += 1
            try:
                data = os.urandom(ECHO)
                found = echo(self._port, self._network.proxy_port, f"honest{number % 40}", data)
                self.served += 1
                self.wrong += found != data
            except (OSError, RuntimeError):
                self.failed += 1

    def stop(self) -> None:
        """No further request."""
        self._stop.set()
        self._thread.join(120)


def parts(network: Network) -> tuple[str, str]:
    """Who turns hostile and who is the victim: never the honest client's own guard, which could end all its circuits."""
    circuits = network.ask("circuits")["circuits"]
    guards = {circuit["hops"][0]["alias"] for circuit in circuits if circuit["role"] == "client" and circuit["hops"]}
    turned = next(alias for alias in reversed(INNER) if alias not in guards)
    return turned, next(alias for alias in INNER if alias != turned)


def take_place(network: Network, turned: str) -> int:
    """End the relay that shall be hostile; its UDP port."""
    node = next(node for node in network.nodes() if node["alias"] == turned)
    pids = family(int(node["pid"]))
    os.kill(int(node["pid"]), signal.SIGTERM)
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/fd").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    return int(node["port"])


def attack(network: Network, total: int, seed: int, application: int) -> dict[str, Any]:
    """The whole attack on a network that runs; its report."""
    turned, attacked = parts(network)
    honest_nodes = [member for member in members(network) if member.alias != turned]
    port = take_place(network, turned)
    with ground_of(network, seed) as ground:
        relay = Peer(ground, ground.keys_of(turned), port=port)
        client, end = Peer(ground), Peer(ground, circuits=2)
        victim = int(ground.node_of(attacked).addresses[0][1])
        hostile = Hostile(ground, client, relay, end, attacked, victim)
        honest = Honest(network, application)
        try:
            run(hostile, int(total * WARM_UP))
            before = _state(honest_nodes, victim)
            hostile.sent.clear()
            began = time.monotonic()
            run(hostile, total)
            seconds = time.monotonic() - began
        finally:
            honest.stop()
        for peer in (client, relay, end):
            peer.close()
    time.sleep(1)
    after = _state(honest_nodes, victim)
    return _judge(network, hostile, honest, before, after, seconds, application)


def _state(nodes: list[Member], port: int) -> dict[str, Any]:
    """Processes, memory by node, counters, and packets that the victim's full socket has dropped."""
    return {
        "processes": sorted(pid for _, pid in processes(nodes)),
        "memory": {node.alias: memory([node]) for node in nodes},
        "counters": counters(nodes),
        "lost": backlog(port)[1],
    }


def _judge(
    network: Network,
    hostile: Hostile,
    honest: Honest,
    before: dict[str, Any],
    after: dict[str, Any],
    seconds: float,
    application: int,
) -> dict[str, Any]:
    gained: Counter[str] = after["counters"] - before["counters"]
    grown = {alias: after["memory"][alias] - size for alias, size in before["memory"].items()}
    served = False
    with suppress(OSError, RuntimeError):
        served = first_byte(application, network.proxy_port, "afterwards") > 0
    tracebacks = sum("Traceback" in (network.folder / alias / "log").read_text("utf-8", "replace") for alias in before["memory"])
    unseen = [
        name for name, (_, named) in STAGES.items() if not hostile.sent[name] or (named and not any(gained[n] for n in named))
    ]
    findings = [f"{name}: the attack did not happen, or nothing counted it" for name in unseen]
    findings += ["a process ended"] if before["processes"] != after["processes"] else []
    findings += [f"{alias} grew by {size >> 20} MiB" for alias, size in grown.items() if size > GROWTH]
    findings += [f"{tracebacks} logs hold a traceback"] if tracebacks else []
    findings += [f"{honest.wrong} answers with wrong bytes"] if honest.wrong else []
    findings += [] if served else ["no request is served afterwards"]
    findings += [] if hostile.mangled else ["the hostile relay had nothing to change"]
    return {
        "packets": hostile.sent.total(), "seconds": seconds, "stages": dict(hostile.sent), "mangled": dict(hostile.mangled),
        "links_made": hostile.links_made, "stuck": hostile.stuck, "lost_in_full_sockets": after["lost"] - before["lost"],
        "grown_bytes": grown, "counters": {n: c for n, c in sorted(gained.items()) if n.startswith("dropped") or n == "odd_size"},
        "honest": {"served": honest.served, "failed": honest.failed, "wrong": honest.wrong}, "findings": findings,
    }  # fmt: skip


def measure(total: int, seed: int) -> dict[str, Any]:
    """The attack on a network of its own."""
    pid, port = source()
    try:
        with tempfile.TemporaryDirectory() as folder, running_network(Path(folder) / "net", nodes=5) as network:
            first_byte(port, network.proxy_port)
            return attack(network, total, seed, port)
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def report(found: dict[str, Any]) -> None:
    """As text."""
    print(f"{found['packets']} hostile packets in {found['seconds']:.0f} s, {found['links_made']} links made for them")
    for name, sent in found["stages"].items():
        print(f"    {name:18} {sent:10}")
    print(f"    changed in passing: {found['mangled']}")
    print("counted by honest nodes: " + ", ".join(f"{name} {count}" for name, count in found["counters"].items()))
    print("grown, KiB: " + ", ".join(f"{alias} {size >> 10}" for alias, size in found["grown_bytes"].items()))
    print("honest requests: " + ", ".join(f"{name} {count}" for name, count in found["honest"].items()))
    print("\n".join(found["findings"]) or "nothing crashed, nothing grew, everything is counted")


def main() -> int:
    """Attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.packets, options.seed)
    if options.json:
        print(json.dumps({"schema": "nyx.bench.hostile", "version": 1, "seed": options.seed} | found, indent=1))
    else:
        report(found)
    return 1 if found["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())

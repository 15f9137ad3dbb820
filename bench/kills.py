"""What is lost when workers and control processes die at random, on every node of a network, while streams run both ways.

Prints transfers that arrived byte for byte, those that ended with an error, those that were wrong, the longest pause that an
application saw, and kills by role. A download is checked against the bytes that the source sends, an upload by the digest that
the sink returns.

    python -m bench.kills [--kills 100] [--gap 0.5] [--mib 64] [--seed 1] [--json]
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.network import Network, running_network
from bench.stream import children, connect

_BLOCK: Final = random.Random(7).randbytes(1 << 20)
_PATIENCE: Final = 30  # seconds without a byte: the stream is lost


@dataclass
class Outcome:
    """What happened; transfers are counted once each."""

    right: int = 0
    ended: int = 0
    wrong: int = 0
    pause: float = 0.0
    kills: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def expected(size: int) -> str:
    """SHA-256 of the first `size` bytes that a source sends."""
    digest = hashlib.sha256()
    for at in range(0, size, len(_BLOCK)):
        digest.update(_BLOCK[: min(len(_BLOCK), size - at)])
    return digest.hexdigest()


def server() -> socket.socket:
    """A target: "D" and a size asks for bytes, "U" and a size sends some and gets their digest."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                kind, size = struct.unpack(">cQ", connection.recv(9, socket.MSG_WAITALL))
                (_send if kind == b"D" else _sink)(connection, size)
                connection.recv(1)
            except (OSError, struct.error):
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def _send(connection: socket.socket, size: int) -> None:
    for at in range(0, size, len(_BLOCK)):
        connection.sendall(_BLOCK[: min(len(_BLOCK), size - at)])


def _sink(connection: socket.socket, size: int) -> None:
    digest = hashlib.sha256()
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            return
        digest.update(part)
        size -= len(part)
    connection.sendall(digest.digest())


def download(stream: socket.socket, size: int, outcome: Outcome) -> bool:
    """Whether `size` bytes came as they were sent."""
    stream.sendall(struct.pack(">cQ", b"D", size))
    digest, left, last = hashlib.sha256(), size, time.monotonic()
    while left:
        part = stream.recv(min(left, 1 << 20))
        if not part:
            raise ConnectionError("the stream ended early")
        now = time.monotonic()
        outcome.pause = max(outcome.pause, now - last)
        last = now
        digest.update(part)
        left -= len(part)
    return digest.hexdigest() == expected(size)


def upload(stream: socket.socket, size: int, _outcome: Outcome) -> bool:
    """Whether `size` bytes arrived as they were sent."""
    stream.sendall(struct.pack(">cQ", b"U", size))
    _send(stream, size)
    answer = stream.recv(32, socket.MSG_WAITALL)
    if len(answer) != 32:
        raise ConnectionError("the stream ended early")
    return answer.hex() == expected(size)


def transfers(port: int, proxy: int, size: int, outcome: Outcome, stop: threading.Event, first: int) -> None:
    """Downloads and uploads in turn until told to stop."""
    number = first
    while not stop.is_set():
        number += 1
        try:
            with connect(port, proxy, _PATIENCE) as stream:
                right = (download, upload)[number % 2](stream, size, outcome)
        except OSError as error:
            outcome.ended += 1
            outcome.errors.append(str(error))
            time.sleep(0.1)
            continue
        outcome.right += right
        outcome.wrong += not right


def victims(network: Network) -> list[tuple[str, int]]:
    """Role and pid of every process that may die here: workers and control processes."""
    found = []
    for node in network.nodes():
        for pid in children(int(node["pid"])):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            role = next((name for name in ("worker", "control") if name in title), None)
            if role:
                found.append((role, pid))
    return found


def kill_some(network: Network, kills: int, gap: float, rng: random.Random, outcome: Outcome) -> None:
    """Kill one process after the other, each with SIGKILL, at random moments."""
    done = 0
    while done < kills:
        time.sleep(rng.uniform(gap / 2, gap * 3 / 2))
        try:
            role, pid = rng.choice(victims(network))
            os.kill(pid, signal.SIGKILL)
        except (OSError, IndexError):
            continue  # it died between the look and the kill
        done += 1
        outcome.kills[role] = outcome.kills.get(role, 0) + 1


def run(kills: int, gap: float, size: int, seed: int) -> dict[str, Any]:
    """One network, two streams at a time, so many kills."""
    outcome, stop, target = Outcome(), threading.Event(), server()
    with tempfile.TemporaryDirectory() as folder, running_network(Path(folder) / "net") as network, target:
        port = int(target.getsockname()[1])
        users = [
            threading.Thread(target=transfers, args=(port, network.proxy_port, size, outcome, stop, first)) for first in (0, 1)
        ]
        for user in users:
            user.start()
        kill_some(network, kills, gap, random.Random(seed), outcome)
        stop.set()
        for user in users:
            user.join()
    return asdict(outcome) | {"seed": seed, "mib": size >> 20}


def main() -> int:
    """Run as the module's docstring says; exit 1 when a stream carried wrong bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--gap", type=float, default=0.5, help="mean seconds between two kills")
    parser.add_argument("--mib", type=int, default=64, help="size of a transfer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(options.kills, options.gap, options.mib << 20, options.seed)
    if options.json:
        print(json.dumps({"schema": "nyx.bench.kills", "version": 1, **result}))
    else:
        print(f"{result['right']} transfers right, {result['ended']} ended with an error, {result['wrong']} wrong")
        print(f"longest pause {result['pause']:.2f} s, kills {result['kills']}, seed {result['seed']}")
        for error in sorted(set(result["errors"])):
            print(f"    {result['errors'].count(error)} x {error}")
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Layer keys that change every two seconds under a running stream of a real network, while its workers are killed."""

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.network import Network, running_network
from tests.e2e.test_faults import connect, path_in_use, process

SECONDS = 16.0
EPOCH = 2  # seconds, in place of 30


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets, on loopback."""

    def serve(stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            while part := stream.recv(65536):
                stream.sendall(part)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def moves(network: Network, alias: str) -> int:
    """Layer epochs that a node's workers have begun."""
    return int(network.ask("stats", alias=alias)["total"]["layer_moves"])


def test_epochs_turn_under_a_stream_whose_workers_are_killed(tmp_path: Path, echo: str) -> None:
    rng = random.Random(3)
    with running_network(tmp_path, "--set", f"node.ratchet={EPOCH}") as network, connect(network, echo) as stream:
        stream.settimeout(20)
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        path = path_in_use(network)
        victims = [network.client(), *path]
        before = {alias: moves(network, alias) for alias in victims}
        end, next_kill = time.monotonic() + SECONDS, time.monotonic() + 3
        while time.monotonic() < end:
            data = rng.randbytes(rng.randrange(1, 60_000))
            stream.sendall(data)
            got = bytearray()
            while len(got) < len(data):
                part = stream.recv(len(data) - len(got))
                assert part, "the stream ended"
                got += part
            assert got == data
            if time.monotonic() > next_kill and victims:
                next_kill = time.monotonic() + 3
                os.kill(process(network, victims.pop(), "worker"), signal.SIGKILL)
            time.sleep(0.02)
        assert path_in_use(network) == path, "the circuit is the same"
        assert int(network.ask("stats")["total"]["refreshes_done"]) >= 1
        for alias in (network.client(), *path):
            assert moves(network, alias) - before[alias] >= 4, alias
        for alias in (network.client(), *path):
            total = network.ask("stats", alias=alias)["total"]
            assert not {name for name in ("dropped_bad_cell", "dropped_bad_header") if total[name]}, alias

"""A real network of real nodes, a real web server, and a capture of everything that crosses the loopback interface.

All end-to-end tests share one network and run in one test process: two networks would fight for two cores.
"""

import contextlib
import hashlib
import http.server
import shutil
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bench.network import Network, free_port, running_network

NODES = 5


@pytest.fixture(scope="session")
def metrics_port() -> int:
    """The first of as many free TCP ports in a row as the network has nodes."""
    return free_tcp_block(NODES)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[Network]:
    with running_network(
        tmp_path_factory.mktemp("net"), "--metrics-port", str(metrics_port), "--set", "monitor.feed=true", nodes=NODES
    ) as found:
        yield found


def free_tcp_block(count: int) -> int:
    """The first of `count` TCP ports in a row that nobody listens on at 127.0.0.1."""
    for _ in range(100):
        base = free_port()
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return base
    raise AssertionError(f"no {count} free TCP ports in a row")


# ---------------------------------------------------------------- a web server


def blob(size: int, seed: int = 7) -> memoryview:
    """Deterministic bytes that do not compress or repeat within a window."""
    return memoryview(np.random.default_rng(seed).bytes(size))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    block = blob(1 << 22)

    def do_GET(self) -> None:
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "blob":
            self._blob(int(rest))
        elif kind == "echo":
            self._text(rest.encode())
        elif kind == "page":
            self._text(b"<!doctype html><title>Nyx</title><p id=x>carried through three relays</p>", "text/html")
        else:
            self.send_error(404)

    def _blob(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        left = size
        while left:
            part = self.block[: min(left, len(self.block))]
            self.wfile.write(part)
            left -= len(part)

    def _text(self, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        digest = hashlib.sha256()
        left = int(self.headers["Content-Length"])
        while left:
            part = self.rfile.read(min(left, 1 << 20))
            if not part:
                return
            digest.update(part)
            left -= len(part)
        self._text(digest.hexdigest().encode())

    def log_message(self, *_: Any) -> None:
        pass


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_: Any) -> None:
        pass  # a client that went away is part of the tests


def blob_digest(size: int) -> str:
    """SHA-256 of what GET /blob/<size> sends."""
    digest = hashlib.sha256()
    left = size
    while left:
        part = _Handler.block[: min(left, len(_Handler.block))]
        digest.update(part)
        left -= len(part)
    return digest.hexdigest()


@pytest.fixture(scope="session")
def web() -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


# ---------------------------------------------------------------- programs and rights


def need(program: str) -> str:
    """Path of a program that the README names; its absence fails the test."""
    found = shutil.which(program)
    assert found, f"{program} is not installed: see the Debian packages in the README"
    return found

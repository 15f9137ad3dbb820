"""A test network for benchmarks and end-to-end tests: started, asked and stopped through `nyxctl` as a user would."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
START_TIMEOUT: Final = 400  # seconds; a first start compiles every kernel
START_TRIES: Final = 3


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_block(nodes: int, first: int = 43360, last: int = 43399) -> int:
    """The first of `nodes` UDP ports in a row that nobody uses on 127.0.0.1, beside other networks of this machine."""
    for base in range(first, last - nodes + 2):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + nodes):
                    stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise RuntimeError(f"no {nodes} free UDP ports in a row from {first} to {last}: stop another test network")


def command_environment() -> dict[str, str]:
    """The caller's environment without settings of Nyx, so that a shell's own do not change a run."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NYX_") or k == "NYX_CACHE_DIR"}
    inspect = {} if os.geteuid() == 0 else {"NYX_NODE_INSPECT": "true"}  # without root, memory is measured of such nodes alone
    return {**kept, **inspect, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


def nyxctl(*arguments: str, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, from this checkout."""
    code = "import sys; sys.argv[0] = 'nyxctl'; from control.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=command_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )


@dataclass
class Network:
    """A running test network: relays, and a client with its proxy."""

    folder: Path
    ports: range  # UDP, of its nodes
    proxy_port: int

    @property
    def proxy(self) -> str:
        """The proxy's address as curl takes it."""
        return f"socks5h://127.0.0.1:{self.proxy_port}"

    def nodes(self) -> list[dict[str, Any]]:
        """Rows of `nyxctl testnet status`."""
        status = json.loads(nyxctl("testnet", "status", "--dir", str(self.folder), "--json").stdout)
        return list(status["nodes"])

    def client(self) -> str:
        """Alias of the client node."""
        return str(next(n["alias"] for n in self.nodes() if n["role"] == "client"))

    def ask(self, *arguments: str, alias: str | None = None) -> dict[str, Any]:
        """Answer of `nyxctl ... --json` of one node, the client unless named."""
        wanted = alias or self.client()
        control = next(n["socket"] for n in self.nodes() if n["alias"] == wanted)
        answer: dict[str, Any] = json.loads(nyxctl("--socket", control, *arguments, "--json").stdout)
        return answer

    def curl(self, *arguments: str, timeout: float = 110, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run curl through the proxy."""
        command = ["curl", "-sS", "--max-time", str(timeout), "--proxy", self.proxy, *arguments]
        return subprocess.run(command, capture_output=True, timeout=timeout + 10, check=check)


@contextlib.contextmanager
def running_network(folder: Path, *options: str, nodes: int = 5) -> Iterator[Network]:
    """Start a test network of so many nodes (relays and a client) in `folder`, and stop it at the end whatever happens."""
    where = ("--dir", str(folder))
    try:
        yield _start(folder, where, options, nodes, START_TRIES)
    finally:
        nyxctl("testnet", "down", *where, check=False)


def _start(folder: Path, where: tuple[str, ...], options: tuple[str, ...], nodes: int, tries: int) -> Network:
    """Start on free ports; again on others when another network took them meanwhile."""
    base_port, proxy_port = free_block(nodes), free_port()
    ports = ("--relays", str(nodes - 1), "--base-port", str(base_port), "--proxy-port", str(proxy_port))
    started = nyxctl("testnet", "up", *where, *ports, *options, timeout=START_TIMEOUT, check=False)
    if started.returncode == 0:
        return Network(folder, range(base_port, base_port + nodes), proxy_port)
    said = started.stdout + started.stderr
    if tries > 1 and ("in use" in said or "is taken" in said):
        nyxctl("testnet", "down", *where, check=False)
        return _start(folder, where, options, nodes, tries - 1)
    raise RuntimeError(f"the test network did not start:\n{said}")

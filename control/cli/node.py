"""The way from nyxctl to a node: finding its socket, asking over it, and saying plainly what is wrong when that fails."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from control import wire
from control.cli.state import EXIT_DENIED, EXIT_FAILURE, EXIT_TIMEOUT, EXIT_UNREACHABLE, Failure, State
from control.places import default_sockets, load_record, testnet_dir

TIMEOUT: Final = 10.0  # seconds for an answer, unless --timeout says otherwise
_EXIT_OF: Final = {"denied": EXIT_DENIED, "timeout": EXIT_TIMEOUT}


def find_socket(state: State) -> Path:
    """The socket that the options mean. Raises Failure, ConfigError."""
    if state.socket:
        return Path(state.socket)
    if state.node:
        return _testnet_socket(state.node)
    if state.config:
        from nyx.config import load

        return load(Path(state.config), environ=os.environ).control_socket
    candidates = default_sockets(os.environ)
    for path in candidates:
        if _there(path):
            return path
    return candidates[0]


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True  # somebody else's node: asking it says so


def _testnet_socket(alias: str) -> Path:
    record = load_record(testnet_dir(os.environ))
    nodes = {node["alias"]: node for node in record["nodes"]} if record else {}
    if alias not in nodes:
        known = ", ".join(nodes) if nodes else "no test network is up; start one with: nyxctl testnet up"
        raise Failure(EXIT_UNREACHABLE, "unreachable", f"there is no node {alias!r} in the test network ({known})")
    return Path(nodes[alias]["socket"])


def ask(state: State, op: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The document that the node answers. Raises Failure."""
    return ask_at(find_socket(state), op, args, state.timeout or TIMEOUT)


def ask_at(path: Path, op: str, args: Mapping[str, Any] | None = None, timeout: float = TIMEOUT) -> dict[str, Any]:
    """The document that the node at this socket answers. Raises Failure."""
    try:
        return wire.parse_answer(_exchange(path, wire.request(op, dict(args or {})), time.monotonic() + timeout))
    except wire.Refusal as error:
        raise Failure(_EXIT_OF.get(error.code, EXIT_FAILURE), error.code, str(error)) from error
    except PermissionError as error:
        raise Failure(EXIT_DENIED, "denied", f"{path}: only the node's own user and root may speak to it") from error
    except TimeoutError as error:
        raise Failure(EXIT_TIMEOUT, "timeout", f"the node at {path} did not answer within {timeout:g} s") from error
    except OSError as error:
        text = f"no node answers at {path} ({error.strerror or error}); is nyxd running?"
        raise Failure(EXIT_UNREACHABLE, "unreachable", text) from error


def _exchange(path: Path, request: bytes, until: float) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(until - time.monotonic(), 0.001))
        connection.connect(str(path))
        connection.sendall(request)
        found = bytearray()
        while not found.endswith(b"\n"):
            connection.settimeout(max(until - time.monotonic(), 0.001))
            part = connection.recv(1 << 16)
            if not part or len(found) > wire.DOCUMENT_MAX:
                raise ConnectionError("the connection ended in the middle of an answer")
            found += part
        return bytes(found)

"""The way from nyxctl to a node: finding its socket, asking over it, and saying plainly what is wrong when that fails."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from control import client
from control.cli.state import EXIT_CONFIG, EXIT_DENIED, EXIT_FAILURE, EXIT_TIMEOUT, EXIT_UNREACHABLE, Failure, State
from control.places import default_sockets, load_record, program, testnet_dir

_EXIT_OF: Final = {"denied": EXIT_DENIED, "timeout": EXIT_TIMEOUT, "unreachable": EXIT_UNREACHABLE, "config": EXIT_CONFIG}


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
        known = ", ".join(nodes) if nodes else f"no test network is up; start one with: {program()} testnet up"
        raise Failure(EXIT_UNREACHABLE, "unreachable", f"there is no node {alias!r} in the test network ({known})")
    return Path(nodes[alias]["socket"])


def ask(state: State, op: str, args: Mapping[str, Any] | None = None, timeout: float = client.TIMEOUT) -> dict[str, Any]:
    """The document that the node answers, within `timeout` seconds unless the options say otherwise. Raises Failure."""
    try:
        return client.ask(find_socket(state), op, args, state.timeout or timeout)
    except client.ClientError as error:
        if error.code == "unreachable" and not (state.socket or state.node or state.config):
            looked = ", ".join(map(str, default_sockets(os.environ)))
            message = f"{error}\nlooked for: {looked}\na whole network to try: {program()} testnet demo"
            raise Failure(EXIT_UNREACHABLE, error.code, message) from error
        raise Failure(_EXIT_OF.get(error.code, EXIT_FAILURE), error.code, str(error)) from error

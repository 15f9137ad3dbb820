"""What would keep a node from starting anew: the part of a start that can be tried while the old node still runs.

Place: the preflight of an upgrade (`nyxd --plan`) tries, the supervisor judges before it drains; a drained node that cannot start
is gone. What the running node itself holds is no obstacle: its sockets are closed before the new start.
Source: docs/architecture.md, "New code under running streams".
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from nyx.columns import Column, allocate
from nyx.config import Config
from shards.holdings import listen_proxy
from shards.seal import SECRETS, LockError, check_lock
from shards.udp import bind_group

Obstacle = Mapping[str, Any]  # keys: the configuration's, text, taken: whether an address is in use


def obstacles(config: Config, workers: int, own: Sequence[Column]) -> list[Obstacle]:
    """Addresses that cannot be bound and keys that cannot be locked, in this process and now."""
    node, listen = config.node, config.proxy.listen
    found = [_try(["node.address", "node.port"], f"UDP {node.address} port {node.port}", _udp(node.address, node.port, workers))]
    if listen:
        found.append(_try(["proxy.listen"], f"proxy {listen[0]} port {listen[1]}", lambda: [listen_proxy(*listen)]))
    if node.lock_memory:
        found.append(_lock(own))
    return [obstacle for obstacle in found if obstacle]


def in_the_way(now: Mapping[str, Any], then: Mapping[str, Any], found: Iterable[Obstacle]) -> list[str]:
    """Which of them would still be there once the node of `now` has ended, as sentences."""
    kept, wanted = now["kept"], then["kept"]

    def ours(obstacle: Obstacle) -> bool:
        keys = obstacle["keys"]
        return obstacle["taken"] and bool(keys) and _port(kept[keys[-1]]) == _port(wanted.get(keys[-1]))

    return [str(obstacle["text"]) for obstacle in found if not ours(obstacle)]


def _port(value: Any) -> Any:
    """Of an address: two that differ in the host alone exclude each other where one is a wildcard."""
    return value[-1] if isinstance(value, list) else value


def _udp(host: str, port: int, workers: int) -> Callable[[], Sequence[Any]]:
    return lambda: bind_group(host, port, workers)


def _try(keys: Sequence[str], what: str, bind: Callable[[], Sequence[Any]]) -> Obstacle | None:
    try:
        for sock in bind():
            with closing(sock):
                pass
    except OSError as error:
        return {"keys": keys, "text": f"{what}: {error.strerror or error}", "taken": error.errno == errno.EADDRINUSE}
    return None


def _lock(own: Sequence[Column]) -> Obstacle | None:
    try:
        check_lock(allocate([column for column in own if column.name in SECRETS]))
    except LockError as error:
        return {"keys": [], "text": str(error), "taken": False}
    return None

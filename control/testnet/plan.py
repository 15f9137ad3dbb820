"""What a test network consists of, and its files: keys, configurations, the directory, signed by an authority of the moment."""

import json
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nyx.config import PORT_FIRST, PORT_LAST, SOCKET_PATH_MAX
from nyx.crypto.keyfile import save_keys
from nyx.crypto.keys import StaticKeys
from nyx.crypto.suites import available_suites, with_layers
from nyx.errors import ConfigError
from nyx.files import private_folder, write_whole
from nyx.path.cbor import identity_of
from nyx.path.descriptor import EXIT_FLAG, Descriptor
from nyx.path.directory import build_snapshot

HOST: Final = "127.0.0.1"
CLIENTS: Final = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")
WEB_OFFSET: Final = 30  # the demo's web server listens this far above the proxy, where that port is free
VALIDITY: Final = 30 * 86400  # seconds
_LOCKED: Final = 8 << 20  # bytes that nodes of this size lock, at most
_BACK: Final = 3600  # the directory begins this long ago: a clock set back a little does not stop the network


@dataclass(frozen=True, slots=True)
class Member:
    """One node to be: its name, its role, its UDP port, for a client its proxy's port, and the port of its metrics."""

    alias: str
    role: str
    port: int
    proxy: int | None
    metrics: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `testnet up` was asked for. Raises ConfigError with everything that cannot be."""

    folder: Path
    relays: int = 4
    clients: int = 1
    hops: int = 3
    workers: int = 1
    base_port: int = PORT_FIRST
    proxy_port: int = 9750
    metrics_port: int | None = None
    settings: tuple[str, ...] = ()  # "KEY=VALUE" of all nodes, over their configuration files

    def __post_init__(self) -> None:
        last = self.base_port + self.relays + self.clients - 1
        wrong = []
        if not 1 <= self.clients <= len(CLIENTS):
            wrong.append(f"--clients {self.clients}: must be 1 to {len(CLIENTS)}")
        if not 1 <= self.hops <= 7:
            wrong.append(f"--hops {self.hops}: must be 1 to 7")
        if self.relays < max(self.hops, 1):
            wrong.append(f"--relays {self.relays}: must be at least {max(self.hops, 1)}, the hops of a circuit")
        if not 1 <= self.workers <= 4:
            wrong.append(f"--workers {self.workers}: must be 1 to 4")
        if not PORT_FIRST <= self.base_port <= last <= PORT_LAST:
            wrong.append(
                f"--base-port {self.base_port}: {self.relays + self.clients} nodes need ports within {PORT_FIRST} to {PORT_LAST}"
            )
        if not 1 <= self.proxy_port <= 65535 - len(CLIENTS):
            wrong.append(f"--proxy-port {self.proxy_port}: must be 1 to {65535 - len(CLIENTS)}")
        if self.metrics_port is not None and not 1 <= self.metrics_port <= 65536 - self.relays - self.clients:
            wrong.append(f"--metrics-port {self.metrics_port}: must be 1 to {65536 - self.relays - self.clients}")
        wrong += [f"--set {text}: is not KEY=VALUE, like path.circuits_ahead=4" for text in self.settings if "=" not in text]
        socket = node_folder(self.folder, "relay-99") / "run" / "control.sock"
        if len(str(socket).encode()) > SOCKET_PATH_MAX:
            wrong.append(
                f"--dir {self.folder}: too long for the nodes' sockets, whose paths have at most {SOCKET_PATH_MAX} bytes"
            )
        if wrong:
            raise ConfigError(wrong)

    @property
    def members(self) -> list[Member]:
        """Relays first, the last of them exits (two at least, where there are two), then clients."""
        exits = min(max(2, self.relays // 3), self.relays)
        inner = self.relays - exits
        names = [(f"relay-{i + 1}", "relay") for i in range(inner)] + [(f"exit-{i + 1}", "exit") for i in range(exits)]
        found = [Member(alias, role, self.base_port + i, None) for i, (alias, role) in enumerate(names)]
        for i, alias in enumerate(CLIENTS[: self.clients]):
            found.append(Member(alias, "client", self.base_port + self.relays + i, self.proxy_port + i))
        if self.metrics_port is None:
            return found
        return [replace(member, metrics=self.metrics_port + i) for i, member in enumerate(found)]


def node_folder(folder: Path, alias: str) -> Path:
    """Where a node of the network keeps its files."""
    return folder / alias


def write_files(plan: Plan, entropy: Callable[[int], bytes], wall: int, cpu_flags: str) -> None:
    """Keys, directory and configurations of all nodes. The authority's key is forgotten at once. Raises OSError, ConfigError."""
    authority = entropy(32)
    signer = identity_of(authority).hex()
    suites = available_suites(cpu_flags)
    records = []
    for member in plan.members:
        state = node_folder(plan.folder, member.alias) / "state"
        for folder in (state.parent, state, state.with_name("run")):
            private_folder(folder)
        if member.role != "client":
            keys = StaticKeys.generate(entropy)
            save_keys(state / "keys", keys)
            records.append((_descriptor(member, keys, suites, wall), 1000))
        write_whole(state.with_name("nyx.toml"), configuration(plan, member, signer).encode())
    snapshot = build_snapshot(
        records, [authority], network="nyx-testnet", sequence=wall, valid_from=wall - _BACK, valid_until=wall + VALIDITY
    )
    write_whole(plan.folder / "network", snapshot)


def _descriptor(member: Member, keys: StaticKeys, suites: Sequence[int], wall: int) -> bytes:
    return Descriptor(
        alias=member.alias,
        family="",
        public=keys.public,
        addresses=((HOST, member.port),),
        flags=(EXIT_FLAG,) if member.role == "exit" else (),
        link_suites=tuple(sorted(suites)),
        layer_suites=tuple(sorted(with_layers(suites))),
        sequence=wall,
        valid_from=wall - _BACK,
        valid_until=wall + VALIDITY,
    ).sign(keys)


def configuration(plan: Plan, member: Member, signer: str) -> str:
    """The configuration file of one node."""
    text = f"""# Made by nyxctl testnet: a node of a test network, of no use elsewhere.
[node]
alias = {_quoted(member.alias)}
role = {_quoted(member.role)}
address = {_quoted(HOST)}
port = {member.port}
state_dir = "state"
run_dir = "run"

[workers]
count = {plan.workers}
pin = false

[proxy]
listen = {_quoted(f"{HOST}:{member.proxy}" if member.proxy else "off")}

[metrics]
listen = {_quoted(f"{HOST}:{member.metrics}" if member.metrics else "off")}

[path]
hops = {plan.hops}
allow_loopback = true

[directory]
file = "../network"
signers = [{_quoted(signer)}]
threshold = 1
"""
    if not _can_lock():
        text = text.replace("\n[workers]", "lock_memory = false\n\n[workers]")  # keys that are of no use elsewhere may reach swap
    return text + ('\n[exit]\npolicy = ["accept loopback:*", "accept public:*", "reject *:*"]\n' if member.role == "exit" else "")


def _can_lock() -> bool:
    """Whether the limit on locked memory is the usual one at least; containers may have less."""
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    return hard == resource.RLIM_INFINITY or hard >= _LOCKED


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

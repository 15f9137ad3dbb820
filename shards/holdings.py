"""What must outlive a worker, and the supervisor's own code: memory, sockets, wake-ups, locks, and the secrets of this boot.

Roles: the supervisor makes all of it before it starts anybody, and passes it to the image of itself that replaces it
(`shards/upgrade.py`). There the descriptors have the same numbers, so that what workers keep in columns stays true.

    make     everything new; raises StartError and leaves nothing when something cannot be had
    keep     a document with descriptors and values, for `adopt` in the next image
    adopt    the same things again; raises InternalError when the memory holds columns of another layout
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from nyx.columns import Column, Columns, layout_digest, offsets
from nyx.committed import committed_columns
from nyx.config import Config
from nyx.errors import InternalError, NyxError
from nyx.files import PRIVATE
from nyx.onion.seen import seen_columns
from nyx.stats import node_columns, statistics_columns
from shards import poller
from shards.clock import ahead
from shards.memory import Memory
from shards.pool import pool_columns
from shards.ring import ring_columns
from shards.steer import attach_program, draw_multiplier
from shards.udp import bind_group

T = TypeVar("T")
Entropy = Callable[[int], bytes]

BACKLOG: Final = 128
PROXY_BACKLOG: Final = 4096  # what the kernel allows by default: a flood of slow clients must not make it drop an honest one
SHARED: Final = ("packets", "statistics", "node", "versions")  # memory of all workers, beside one for each

READABLE: Final = ("statistics", "node", "versions")  # by the control process


class StartError(NyxError):
    """The node cannot start for a reason outside its configuration: a port is taken, a process does not come up."""


def memory_layouts(workers: int, config: Config, own: Sequence[Column]) -> dict[str, list[Column]]:
    """The columns of every memory by its name."""
    shared = [*pool_columns(workers, config.limits.pool_packets), *ring_columns(workers), *seen_columns(workers)]
    common = {"packets": shared, "statistics": statistics_columns(workers), "node": node_columns(workers)}
    common["versions"] = committed_columns()
    return common | {f"worker-{index}": list(own) for index in range(workers)}


def layout_digests(layouts: Mapping[str, Sequence[Column]]) -> dict[str, str]:
    """What two images must agree on to work on the same memory."""
    return {name: layout_digest(columns) for name, columns in layouts.items()}


class Holdings:
    """All of it, of one node. Sockets by their use: udp, proxy, admin, sdk, channels, worker_ends, orders, control_end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.locks: list[int] = []
        self.memories: dict[str, Memory] = {}
        self.readers: dict[str, int] = {}  # of READABLE
        self.sockets: dict[str, list[socket.socket]] = {}
        self.events: tuple[int, ...] = ()
        self.stops: tuple[int, ...] = ()
        self.multiplier = 0
        self.boot_secret = b""
        self.started = 0  # Unix seconds

    # ------------------------------------------------------------ new

    @classmethod
    def make(cls, config: Config, workers: int, own: Sequence[Column], entropy: Entropy, wall: int) -> Self:
        """Everything that a start needs. Raises StartError."""
        held = cls(config)
        try:
            held._lock_folders()
            with _named_shortage(own, workers):
                held._make_memory(workers, own)
            held._draw(entropy, wall, workers)
            held._make_sockets(workers)
        except BaseException:
            held.close()
            raise
        return held

    def _lock_folders(self) -> None:
        """One node per state folder and run folder: a second one would reuse keys, guards and the control socket."""
        node = self.config.node
        for folder in dict.fromkeys((node.state_dir, node.run_dir)):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.locks.append(handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StartError(f"{folder}: another nyxd is running in this folder") from error

    def _make_memory(self, workers: int, own: Sequence[Column]) -> None:
        for name, columns in memory_layouts(workers, self.config, own).items():
            self.memories[name] = Memory.create(f"nyx-{name}", columns)
        self.readers = {name: self.memories[name].open_reader() for name in READABLE}

    def _draw(self, entropy: Entropy, wall: int, workers: int) -> None:
        self.multiplier = draw_multiplier(entropy)
        self.boot_secret = entropy(32)
        self.started = wall
        row = self.shared["node"]
        row["boot_epoch"] = int.from_bytes(entropy(8), "big") >> 1 | 1
        row["started"], row["workers"], row["supervisor"] = wall, workers, os.getpid()
        row["clock"] = ahead()

    def _make_sockets(self, workers: int) -> None:
        node, sockets = self.config.node, self.sockets
        group = _bound(f"UDP {node.address} port {node.port}", lambda: bind_group(node.address, node.port, workers))
        sockets["udp"] = list(group)
        attach_program(sockets["udp"][0], self.multiplier, workers)
        sockets["proxy"] = []
        if listen := self.config.proxy.listen:
            sockets["proxy"] = [_bound(f"proxy {listen[0]} port {listen[1]}", lambda: listen_proxy(*listen))]
        sockets["admin"] = [_listen_private(self.config.control_socket, socket.SOCK_STREAM)]
        sockets["sdk"] = []
        if self.config.sdk.enabled:
            sockets["sdk"] = [_listen_private(self.config.sdk_socket, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)]
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers + 1)]
        sockets["orders"], sockets["control_end"] = [pairs[-1][0]], [pairs[-1][1]]
        sockets["channels"], sockets["worker_ends"] = [a for a, _ in pairs[:-1]], [b for _, b in pairs[:-1]]
        for end in (*sockets["worker_ends"], *sockets["orders"]):
            end.settimeout(0)
        self.events = tuple(poller.make_event() for _ in range(workers))
        self.stops = tuple(poller.make_event() for _ in range(workers))

    # ------------------------------------------------------------ over an upgrade

    def keep(self) -> dict[str, Any]:
        """What `adopt` needs. It holds the boot's secret: it is handed on in memory alone."""
        return {
            "locks": self.locks,
            "memories": {name: memory.fd for name, memory in self.memories.items()},
            "readers": self.readers,
            "sockets": {name: [sock.fileno() for sock in socks] for name, socks in self.sockets.items()},
            "events": self.events,
            "stops": self.stops,
            "multiplier": self.multiplier,
            "boot_secret": self.boot_secret.hex(),
            "started": self.started,
        }

    def descriptors(self) -> list[int]:
        """Every descriptor that `keep` names."""
        memories = (memory.fd for memory in self.memories.values())
        sockets = (sock.fileno() for socks in self.sockets.values() for sock in socks)
        return [*self.locks, *memories, *self.readers.values(), *sockets, *self.events, *self.stops]

    @classmethod
    def adopt(cls, config: Config, kept: Mapping[str, Any], layouts: Mapping[str, Sequence[Column]]) -> Self:
        """The holdings of the image before this one. Raises InternalError."""
        held = cls(config)
        if set(layouts) != set(kept["memories"]):
            raise InternalError("another number of workers")
        held.locks, held.readers = list(kept["locks"]), dict(kept["readers"])
        held.memories = {name: Memory.attach(fd, layouts[name]) for name, fd in kept["memories"].items()}
        held.sockets = {name: [socket.socket(fileno=fd) for fd in fds] for name, fds in kept["sockets"].items()}
        held.events, held.stops = tuple(kept["events"]), tuple(kept["stops"])
        held.multiplier, held.started = kept["multiplier"], kept["started"]
        held.boot_secret = bytes.fromhex(kept["boot_secret"])
        for end in (end for name in ("udp", "proxy", "sdk", "worker_ends", "orders") for end in held.sockets[name]):
            end.settimeout(0)
        for fd in held.descriptors():
            os.set_inheritable(fd, False)  # noqa: FBT003 (the standard library's form)
        return held

    # ------------------------------------------------------------ use

    @property
    def shared(self) -> Columns:
        """The columns that every worker has."""
        return {key: column for name in SHARED for key, column in self.memories[name].columns.items()}

    def own(self, index: int) -> Columns:
        """One worker's columns."""
        return self.memories[f"worker-{index}"].columns

    def lend(self, index: int) -> None:
        """Let the next fork have the shared columns and this worker's own: no worker sees another's keys."""
        for name, memory in self.memories.items():
            memory.inherit(wanted=name in {*SHARED, f"worker-{index}"})

    @property
    def digests(self) -> dict[str, str]:
        """The layouts in force."""
        return layout_digests({name: memory.layout for name, memory in self.memories.items()})

    def close(self) -> None:
        """Let everything go and remove the names of the unix sockets."""
        for name, path in (("admin", self.config.control_socket), ("sdk", self.config.sdk_socket)):
            if self.sockets.get(name):
                path.unlink(missing_ok=True)
        for sock in (sock for socks in self.sockets.values() for sock in socks):
            sock.close()
        self.sockets.clear()
        for memory in self.memories.values():
            memory.close()
        for handle in (*self.locks, *self.readers.values(), *self.events, *self.stops):
            with contextlib.suppress(OSError):
                os.close(handle)
        self.locks.clear()
        self.readers.clear()
        self.events = self.stops = ()


@contextlib.contextmanager
def _named_shortage(own: Sequence[Column], workers: int) -> Iterator[None]:
    """Memory that cannot be had, in words."""
    try:
        yield
    except (OSError, MemoryError) as error:
        size = offsets(own)[1] * workers >> 20
        why = getattr(error, "strerror", None) or os.strerror(errno.ENOMEM)
        advice = "lower limits.* or workers.count, or allow this node more"
        raise StartError(f"{size} MiB of memory for the workers' tables: {why}; {advice}") from error


def _bound(what: str, bind: Callable[[], T]) -> T:
    try:
        return bind()
    except OSError as error:
        raise StartError(f"{what}: {error.strerror or error}") from error


def listen_proxy(host: str, port: int) -> socket.socket:
    """The proxy's socket. Without SO_REUSEPORT: nobody can join it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections in TIME_WAIT do not count
        # What is accepted inherits this: killed a moment later, its worker leaves a reset behind, not an end of file.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.bind((host, port))
        sock.listen(PROXY_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _listen_private(path: Path, kind: int) -> socket.socket:
    """A socket of this user's own: in a 0700 folder that is locked already, so a name found there is a dead node's."""

    def listen() -> socket.socket:
        if path.is_socket():
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            os.fchmod(sock.fileno(), PRIVATE)  # bind takes it over, so the name is never open to others
            sock.bind(str(path))
            path.chmod(PRIVATE)  # whatever the umask says
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock

    return _bound(str(path), listen)

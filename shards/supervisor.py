"""The supervisor: makes memory, sockets and channels, starts everybody, starts them again, and takes everything down.

Roles. It is single-threaded and touches no packet. It owns what must outlive a worker: the memory of all columns, the steered
UDP sockets, the proxy's listening socket, the control socket, the channels between control process and workers.

    supervisor --> keeper 0 --> worker 0        forked: they share the loaded kernels' pages
               --> keeper 1 --> worker 1
               --> control process              executed: it needs no kernels and has threads of its own

Everything is made before anybody is started, so a port that is taken or a folder that is open to others stops the start and
leaves nothing. Everybody is killed with the supervisor, however it ends (PDEATHSIG). On SIGTERM and SIGINT it stops the
children, closes, removes the control socket's name, and nothing is left.
"""

import contextlib
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from nyx.columns import Column, Columns
from nyx.config import Config
from nyx.crypto.keys import StaticKeys
from nyx.errors import NyxError
from nyx.files import PRIVATE
from nyx.onion.seen import seen_columns
from nyx.path.directory import Snapshot
from nyx.stats import node_columns, statistics_columns
from shards import poller
from shards.context import Entropy, WorkerContext
from shards.keeper import Main, keep
from shards.memory import Memory
from shards.pool import pool_columns
from shards.process import Child, Watch, default_signals, die_with, fork, name_process, package_environment
from shards.ring import ring_columns
from shards.steer import attach_program, draw_multiplier
from shards.udp import bind_group

T = TypeVar("T")

WORKERS_MOST: Final = 4
BACKLOG: Final = 128
DESCRIPTORS: Final = 65536  # asked of RLIMIT_NOFILE, within the hard limit
START_TRIES: Final = 5  # lives of a process that never got ready, before the start is given up
START_POLL: Final = 0.01  # seconds
STOP_GRACE: Final = 6.0  # more than the keepers give their workers


class StartError(NyxError):
    """The node cannot start for a reason outside its configuration: a port is taken, a process does not come up."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, checked already."""

    config: Config
    config_file: Path
    keys: StaticKeys | None
    snapshot: Snapshot
    main: Main  # a worker's life: shards.worker.worker_main
    columns: Sequence[Column]  # of each worker: shards.worker.worker_columns(config)
    control: Sequence[str]  # command of the control process; empty: none
    entropy: Entropy
    wall: int  # Unix seconds
    offload: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)  # flags: the control process gets them as its environment


def worker_count(config: Config) -> int:
    """Workers that this configuration means on this machine."""
    return config.workers.count or min(len(os.sched_getaffinity(0)), WORKERS_MOST)


class Supervisor:
    """One node's parent process. `run` returns when it has been told to stop and nothing is left."""

    def __init__(self, plan: Plan) -> None:
        """Make everything that can fail. Raises StartError."""
        self.plan = plan
        self.workers = worker_count(plan.config)
        self._pid = os.getpid()
        self._locks: list[int] = []
        self._sockets: list[socket.socket] = []
        self._admin: socket.socket | None = None
        self._probe: socket.socket | None = None
        self._announced = False
        _raise_limits()
        try:
            self._lock_folders()
            self._make_memory()
            self._make_sockets()
        except BaseException:
            self.close()
            raise
        self._contexts = [self._context(index) for index in range(self.workers)]
        self._children = [self._keeper(context) for context in self._contexts]
        if plan.control:
            self._children.append(Child("control", self._start_control, self._control_changed))

    # ------------------------------------------------------------ what outlives a worker

    def _lock_folders(self) -> None:
        """One node per state folder and run folder: a second one would reuse keys, guards and the control socket."""
        node = self.plan.config.node
        for folder in dict.fromkeys((node.state_dir, node.run_dir)):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._locks.append(handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StartError(f"{folder}: another nyxd is running in this folder") from error

    def _make_memory(self) -> None:
        plan, workers = self.plan, self.workers
        shared = [*pool_columns(workers, plan.config.limits.pool_packets), *ring_columns(workers), *seen_columns(workers)]
        self.statistics = Memory.create("nyx-statistics", statistics_columns(workers), exclusive=True)
        self.node = Memory.create("nyx-node", node_columns(workers), exclusive=True)
        packets = Memory.create("nyx-packets", shared, exclusive=True)
        own = [Memory.create(f"nyx-worker-{index}", plan.columns, exclusive=True) for index in range(workers)]
        self.shared: Columns = {**packets.columns, **self.statistics.columns, **self.node.columns}
        self.columns: list[Columns] = [memory.columns for memory in own]
        for memory in (packets, *own):
            memory.close()  # nobody else ever maps it; the mapping stays
        row = self.shared["node"]
        row["boot_epoch"] = int.from_bytes(plan.entropy(8), "big") >> 1 | 1
        row["started"], row["workers"], row["supervisor"] = plan.wall, workers, os.getpid()

    def _make_sockets(self) -> None:
        config = self.plan.config
        self._multiplier = draw_multiplier(self.plan.entropy)
        self._boot_secret = self.plan.entropy(32)
        self.udp = _bound(f"UDP {config.node.address} port {config.node.port}", self._bind_udp)
        self._sockets += self.udp
        attach_program(self.udp[0], self._multiplier, self.workers)
        self.proxy: tuple[socket.socket, ...] = ()
        if listen := config.proxy.listen:
            self.proxy = (_bound(f"proxy {listen[0]} port {listen[1]}", lambda: _listen(*listen)),)
            self._sockets += self.proxy
        self._admin = _bound(str(config.control_socket), lambda: _listen_admin(config.control_socket))
        channels = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(self.workers)]
        self._sockets += [end for pair in channels for end in pair]
        for _, worker_end in channels:
            worker_end.settimeout(0)
        self._channels = channels
        self._events = tuple(poller.make_event() for _ in range(self.workers))
        self._stops = tuple(poller.make_event() for _ in range(self.workers))

    def _bind_udp(self) -> list[socket.socket]:
        node = self.plan.config.node
        return list(bind_group(node.address, node.port, self.workers))

    # ------------------------------------------------------------ children

    def _context(self, index: int) -> WorkerContext:
        plan = self.plan
        return WorkerContext(
            index=index,
            workers=self.workers,
            config=plan.config,
            keys=plan.keys,
            snapshot=plan.snapshot,
            udp=self.udp[index],
            proxy=self.proxy,
            control=self._channels[index][1],
            columns=self.columns[index],
            shared=self.shared,
            events=self._events,
            stop=self._stops[index],
            multiplier=self._multiplier,
            boot_epoch=int(self.shared["node"]["boot_epoch"][0]),
            boot_secret=self._boot_secret,
            started=plan.wall,
            offload=plan.offload,
            entropy=plan.entropy,
        )

    def _keeper(self, context: WorkerContext) -> Child:
        def start() -> int:
            pid = fork()
            if pid == 0:
                keep(context, self.plan.main, self._pid)
            return pid

        return Child(f"worker {context.index}", start, lambda _child: None)

    def _start_control(self) -> int:
        assert self._admin is not None
        given = {
            "admin": self._admin.fileno(),
            "workers": [control_end.fileno() for control_end, _ in self._channels],
            "statistics": self.statistics.fd,
            "node": self.node.fd,
            "config": str(self.plan.config_file),
        }
        pid = fork()
        if pid == 0:
            _execute(self.plan, given, self._pid)
        return pid

    def _control_changed(self, child: Child) -> None:
        row = self.shared["node"]
        row["control"], row["control_restarts"] = child.pid, max(child.restarts, 0)

    # ------------------------------------------------------------ life

    def run(self, announce: Callable[[str], None] = print) -> None:
        """Start everybody, say READY when all run, watch until SIGTERM or SIGINT, take everything down. Raises StartError."""
        name_process("supervisor", self.plan.config.node.alias)
        gc.collect()
        gc.freeze()
        watch = Watch(self._children, [signal.SIGTERM, signal.SIGINT])
        try:
            watch.run(lambda: self._tick(watch, announce))
        finally:
            watch.stop(STOP_GRACE)
            self.close()

    def _tick(self, watch: Watch, announce: Callable[[str], None]) -> float | None:
        """Until the node has been announced: look whether all run, and give up on who cannot."""
        if self._announced:
            return None
        rows = self.shared["node_workers"]
        tries = {f"worker {index}": int(rows["restarts"][index]) for index in range(self.workers)}
        for child in watch.children:
            if max(child.restarts, tries.get(child.name, 0)) >= START_TRIES:
                raise StartError(f"{child.name} ended {START_TRIES} times before it was ready; its messages stand above")
        if (rows["pid"] > 0).all() and (rows["ready"] == rows["pid"]).all() and self._control_answers():
            self._announced = True
            announce(self._ready_line())
            return None
        return START_POLL

    def _control_answers(self) -> bool:
        """Whether the control process serves its socket: asked anything, even nonsense, it answers a line."""
        if not self.plan.control:
            return True
        with contextlib.suppress(BlockingIOError, ConnectionError):
            if self._probe is None:
                self._probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                self._probe.connect(str(self.plan.config.control_socket))
                self._probe.send(b"{}\n")
            said = self._probe.recv(1)
            self._probe.close()
            self._probe = None
            return bool(said)
        return False

    def _ready_line(self) -> str:
        config = self.plan.config
        address, port = self.udp[0].getsockname()[:2]
        proxy = "off" if config.proxy.listen is None else "{}:{}".format(*config.proxy.listen)
        return (
            f"READY {config.node.alias} udp={address}:{port} workers={self.workers} proxy={proxy} control={config.control_socket}"
        )

    def close(self) -> None:
        """Let everything go and remove the control socket's name."""
        if self._admin is not None:
            self.plan.config.control_socket.unlink(missing_ok=True)
            self._admin.close()
            self._admin = None
        for sock in self._sockets:
            sock.close()
        for handle in self._locks:
            os.close(handle)
        self._locks.clear()


def _raise_limits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # keys do not go into core files


def _bound(what: str, bind: Callable[[], T]) -> T:
    try:
        return bind()
    except OSError as error:
        raise StartError(f"{what}: {error.strerror or error}") from error


def _listen(host: str, port: int) -> socket.socket:
    """The proxy's socket. Without SO_REUSEPORT: nobody can join it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections in TIME_WAIT do not count
        # What is accepted inherits this: killed a moment later, its worker leaves a reset behind, not an end of file.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _listen_admin(path: Path) -> socket.socket:
    """The control socket: in a 0700 folder that is locked already, so a name found there is a dead node's."""
    if path.is_socket():
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), PRIVATE)  # bind takes it over, so the name is never open to others
        sock.bind(str(path))
        path.chmod(PRIVATE)  # whatever the umask says
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _execute(plan: Plan, given: dict[str, object], parent: int) -> None:
    """Become the control process, in a fresh child. Does not return."""
    try:
        die_with(parent)
        default_signals()
        fds = [fd for value in given.values() for fd in (value if isinstance(value, list) else [value]) if isinstance(fd, int)]
        for fd in fds:
            fcntl.fcntl(fd, fcntl.F_SETFD, 0)  # open across exec
        settings = {"NYX_" + key.replace(".", "_").upper(): value for key, value in plan.settings.items()}
        own = {"NYX_KERNELS": "plain", "NYX_CONTROL_FDS": json.dumps(given)}
        os.execve(plan.control[0], list(plan.control), package_environment() | settings | own)  # noqa: S606 (a list of arguments, no shell)
    except BaseException as error:  # noqa: BLE001 (the last frame of a forked process)
        sys.stderr.write(f"nyxd: control process: {error}\n")
    finally:
        os._exit(1)

"""The supervisor: makes memory, sockets and channels, starts everybody, starts them again, and takes everything down.

Roles. It is single-threaded and touches no packet. It owns what must outlive a worker (`shards/holdings.py`): the memory of all
columns, the steered UDP sockets, the listening sockets, the channels between control process and workers.

    supervisor --> keeper 0 --> worker 0        forked: they share the loaded kernels' pages
               --> keeper 1 --> worker 1
               --> control process              executed: it needs no kernels and has threads of its own

Everything is made before anybody is started, so a port that is taken or a folder that is open to others stops the start and
leaves nothing. Everybody is killed with the supervisor, however it ends (PDEATHSIG). On SIGTERM and SIGINT it stops the
children, closes, removes the control socket's name, and nothing is left. Ordered by the control process (`shards/orders.py`) it
starts a worker anew, or replaces its own code and then everybody's (`shards/upgrade.py`). On SIGHUP it tells the control process.
A service manager is told how the node is, and that its loops turn (`shards/vigil.py`).
"""

import base64
import contextlib
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nyx.columns import Column
from nyx.config import Config
from nyx.crypto.keys import StaticKeys
from nyx.path.directory import Snapshot
from nyx.wire.orders import Message, Notice, Order
from shards import handover, poller
from shards.context import Entropy, WorkerContext
from shards.health import Conditions, birth_condition
from shards.holdings import Holdings, StartError, memory_layouts
from shards.keeper import Main, keep
from shards.notify import Notifier
from shards.orders import Handler, OrderRefusedError, Orders
from shards.probe import Probe
from shards.process import Child, Watch, default_signals, die_with, fork, name_process, package_environment
from shards.pulse import Pulse
from shards.replacement import Replacement
from shards.say import say, speak_as
from shards.seal import check_lock, make_filters, raise_lock_limit, seal_supervisor, wipe
from shards.versions import Versions
from shards.vigil import Remedies, Vigil

WORKERS_MOST: Final = 4
DESCRIPTORS: Final = 65536  # asked of RLIMIT_NOFILE, within the hard limit
DESCRIPTORS_LEAST: Final = 64  # a node that has fewer cannot serve: what Python, the files and sixteen connections take,
DESCRIPTORS_EACH: Final = 8  # and what a worker takes
START_TRIES: Final = 5  # lives of a process that never got ready, before the start is given up
POLL: Final = 0.01  # seconds, while something is awaited
STOP_GRACE: Final = 6.0  # more than the keepers give their workers
RESTART_LIMIT: Final = 15.0  # seconds for a worker's next life to run


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
    directory: bytes = b""  # what the snapshot was read from; empty: versions of the configuration are not kept
    offload: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)  # flags: the control process gets them as its environment
    command: Sequence[str] = ()  # of this program, to execute it anew; empty: it cannot be upgraded
    preflight: Sequence[str] = ()  # of this program, to print what it would hold


def worker_count(config: Config) -> int:
    """Workers that this configuration means on this machine."""
    return config.workers.count or min(len(os.sched_getaffinity(0)), WORKERS_MOST)


@dataclass(slots=True)
class _Awaited:
    """An order that is answered once the worker's next life runs."""

    order: int
    worker: int
    before: int  # pid of the life that was ended
    until: float


class Supervisor:
    """One node's parent process. `run` returns when it has been told to stop and nothing is left."""

    def __init__(self, plan: Plan, state: Mapping[str, Any] | None = None) -> None:
        """Make everything that can fail, or take it over from the image before (`state`). Raises StartError."""
        self.plan = plan
        self.workers = worker_count(plan.config)
        self._pid = os.getpid()
        self._probe = Probe(plan.config.control_socket) if plan.control else None
        self._awaited: list[_Awaited] = []
        self._received: dict[int, dict[int, int]] = {}  # worker -> descriptors for its next keeper
        self._ends: dict[int, socket.socket] = {}  # worker -> our end of the pair with its keeper
        _raise_limits(DESCRIPTORS_LEAST + DESCRIPTORS_EACH * self.workers)
        raise_lock_limit(plan.columns)
        self._filters = make_filters()
        if state is None:
            self.held = Holdings.make(plan.config, self.workers, plan.columns, plan.entropy, plan.wall)
        else:
            self.held = Holdings.adopt(plan.config, state["held"], memory_layouts(self.workers, plan.config, plan.columns))
        self.shared = self.held.shared
        self._versions = Versions(self.shared, plan.config.node.state_dir, self._wake)
        self._begin_version()
        self._announced = state is not None
        self._pulse = Pulse(self.shared, self.workers)
        self._births = Conditions()
        remedies = Remedies(self._restart_hung, self._end_control)
        self._vigil = Vigil(Notifier(os.environ), self.shared, self.workers, self._probe, remedies)
        self._contexts = [self._context(index) for index in range(self.workers)]
        self._children = [self._keeper(context) for context in self._contexts]
        if plan.control:
            self._children.append(Child("control", self._start_control, self._control_changed))
        self.watch = Watch(self._children, [signal.SIGTERM, signal.SIGINT], {signal.SIGHUP: self._on_hangup})
        table: dict[Order, Handler] = {
            Order.RESTART: self._restart,
            Order.UPGRADE: self._upgrade,
            Order.STAGE_CONFIG: lambda order: self._versions.stage(order.args),
            Order.COMMIT_CONFIG: lambda order: self._versions.commit(order.args),
            Order.RELOAD_BEGINS: self._reload_begins,
            Order.RELOAD_ENDS: self._reload_ends,
        }
        self._orders = Orders(self.held.sockets["orders"][0], table)
        self._replacement = Replacement(plan, self.held, self.watch, self._orders, self._ends, self._children, self._drain)
        self._adopted = state is not None
        if state is not None:
            self._adopt_children(state)

    def _begin_version(self) -> None:
        """Put the configuration of this start in force, before anybody is there who reads it."""
        plan = self.plan
        if plan.directory:
            warning = self._versions.begin(plan.config, plan.snapshot, plan.directory, plan.wall)
            if warning:
                say("warning", warning)

    def _wake(self) -> None:
        """Let every worker have a turn."""
        for event in self.held.events:
            poller.signal(event)

    # ------------------------------------------------------------ children

    def _context(self, index: int) -> WorkerContext:
        plan, held = self.plan, self.held
        return WorkerContext(
            index=index,
            workers=self.workers,
            config=plan.config,
            keys=plan.keys,
            snapshot=plan.snapshot,
            udp=held.sockets["udp"][index],
            proxy=tuple(held.sockets["proxy"]),
            sdk=tuple(held.sockets["sdk"]),
            control=held.sockets["worker_ends"][index],
            columns=held.own(index),
            shared=self.shared,
            events=held.events,
            stop=held.stops[index],
            multiplier=held.multiplier,
            boot_epoch=int(self.shared["node"]["boot_epoch"][0]),
            boot_secret=held.boot_secret,
            started=held.started,
            offload=plan.offload,
            entropy=plan.entropy,
            filters=self._filters,
        )

    def _keeper(self, context: WorkerContext) -> Child:
        index = context.index

        def start() -> int:
            ours, theirs = handover.make_pair()
            received = self._received.get(index, {})
            self._ends[index] = ours
            self.held.lend(index)
            pid = fork()
            if pid == 0:
                keep(context, self.plan.main, self._pid, theirs, received)
            theirs.close()
            for fd in self._received.pop(index, {}).values():
                os.close(fd)
            return pid

        return Child(f"worker {index}", start, lambda _child: None)

    def _start_control(self) -> int:
        held = self.held
        given = {
            "admin": held.sockets["admin"][0].fileno(),
            "workers": [end.fileno() for end in held.sockets["channels"]],
            "supervisor": held.sockets["control_end"][0].fileno(),
            "statistics": held.readers["statistics"],
            "node": held.readers["node"],
            "filter": base64.b64encode(self._filters.programs.get("control", b"")).decode(),
            "versions": held.readers["versions"],
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
        """Start everybody, say READY when all run, watch until SIGTERM or SIGINT, take everything down. Raises StartError.

        Does not return when the node starts anew under other code.
        """
        name_process("supervisor", self.plan.config.node.alias)
        speak_as("supervisor")
        gc.collect()
        gc.freeze()
        over = False
        try:
            self._seal()
            if self._adopted:
                self._vigil.ready()
                self._take_over()
            self.watch.listen(self._orders.fileno(), self._orders.on_readable)
            over = self._watch(announce)
        finally:
            if not over:
                self._vigil.stopping()
            self._vigil.close()
            self.watch.stop(STOP_GRACE)
            self.watch.close()
            for index in range(self.workers):
                wipe(self.held.own(index))
            self.held.close()
        if over:
            self._replacement.start_over()

    def _seal(self) -> None:
        """Give up what only the start needed. Raises LockError."""
        node = self.plan.config.node
        self.shared["node"]["sealed"] = seal_supervisor(
            self._filters, inspect=node.inspect, tell=lambda text: say("warning", text)
        )
        if node.lock_memory:
            check_lock(self.held.own(0))

    def _watch(self, announce: Callable[[str], None]) -> bool:
        """Until told to stop (False) or everybody has drained and the node shall start anew (True)."""
        try:
            self.watch.run(lambda: self._tick(announce))
        except Replacement.StartOver:
            return True
        return False

    def _tick(self, announce: Callable[[str], None]) -> float | None:
        if not self._announced:
            self._look_at_start(announce)
            self._pulse.beat()
            self._vigil.tick()
            return POLL
        self._answer_awaited()
        pauses = (self._replacement.tick(), POLL if self._awaited else None, self._look_at_family())
        return min(pause for pause in pauses if pause is not None)

    def _look_at_family(self) -> float:
        """Name who stands still or cannot be born; returns in how many seconds to look again."""
        for place, child in enumerate(self._children):
            self._births.judge(child.name, birth_condition(child.name, child.refused))
            if child.refused and place < self.workers:
                self.shared["node_workers"]["unborn"][place] = child.refused  # its keeper is not there to say so
        return min(self._pulse.beat(), self._vigil.tick())

    def _look_at_start(self, announce: Callable[[str], None]) -> None:
        """Until the node has been announced: look whether all run, and give up on who cannot."""
        rows = self.shared["node_workers"]
        refused = [(child.name, child.refused) for child in self._children]
        refused += [(f"worker {index}", int(rows["unborn"][index])) for index in range(self.workers)]
        for name, number in refused:
            if number:
                raise StartError(birth_condition(name, number))
        tries = {f"worker {index}": int(rows["restarts"][index]) for index in range(self.workers)}
        for child in self.watch.children:
            if max(child.restarts, tries.get(child.name, 0)) >= START_TRIES:
                raise StartError(f"{child.name} ended {START_TRIES} times before it was ready; its messages stand above")
        if (rows["pid"] > 0).all() and (rows["ready"] == rows["pid"]).all() and (self._probe is None or self._probe.look()):
            self._announced = True
            announce(self._ready_line())
            self._vigil.ready()

    def _ready_line(self) -> str:
        config = self.plan.config
        address, port = self.held.sockets["udp"][0].getsockname()[:2]
        proxy = "off" if config.proxy.listen is None else "{}:{}".format(*config.proxy.listen)
        return (
            f"READY {config.node.alias} udp={address}:{port} workers={self.workers} proxy={proxy} control={config.control_socket}"
        )

    # ------------------------------------------------------------ orders

    def _on_hangup(self) -> None:
        self._orders.tell(Notice.RELOAD)

    def _reload_begins(self, _order: Message) -> dict[str, Any]:
        self._vigil.reload_begins()
        return {}

    def _reload_ends(self, order: Message) -> dict[str, Any]:
        self._vigil.reload_ends(refused=bool(order.args.get("refused")))
        return {}

    def _restart(self, order: Message) -> None:
        """Let a worker end at its next rest; its keeper starts the next life at once."""
        index = order.args.get("worker")
        if type(index) is not int or not 0 <= index < self.workers:
            raise OrderRefusedError(f"there is no worker {index!r}; this node has workers 0 to {self.workers - 1}")
        before = int(self.shared["node_workers"]["pid"][index])
        self._send_keeper(index, handover.RESTART)
        self._awaited.append(_Awaited(order.id, index, before, time.monotonic() + RESTART_LIMIT))

    def _send_keeper(self, index: int, what: bytes) -> None:
        try:
            self._ends[index].send(what)
        except (OSError, KeyError) as error:
            raise OrderRefusedError(f"worker {index} has no keeper now; try again") from error

    def _restart_hung(self, index: int) -> None:
        """As an operator would; where its keeper does not hear it either, the service manager ends all."""
        with contextlib.suppress(OrderRefusedError):
            self._send_keeper(index, handover.RESTART)

    def _end_control(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(self.shared["node"]["control"][0]), signal.SIGKILL)

    def _answer_awaited(self) -> None:
        rows, now = self.shared["node_workers"], time.monotonic()
        for awaited in list(self._awaited):
            pid, ready = int(rows["pid"][awaited.worker]), int(rows["ready"][awaited.worker])
            if pid and pid == ready and pid != awaited.before:
                self._orders.answer(awaited.order, {"pid": pid})
            elif now > awaited.until:
                self._orders.refuse(awaited.order, f"worker {awaited.worker} does not come up again; the node's log says why")
            else:
                continue
            self._awaited.remove(awaited)

    def _drain(self) -> None:
        """Let nobody take anything new: not the workers that run, nor those of keepers that are started from here on."""
        for context in self._contexts:
            context.draining = True
        for end in self._ends.values():
            with contextlib.suppress(OSError):  # this keeper is dead: the next one knows
                end.send(handover.DRAIN)

    def _upgrade(self, order: Message) -> None:
        self._replacement.begin(order)

    # ------------------------------------------------------------ after an upgrade

    def _adopt_children(self, state: Mapping[str, Any]) -> None:
        """The children of the image before are ours."""
        now = time.monotonic()
        for child in self._children:
            if pid := int(state["children"].get(child.name, {}).get("pid", 0)):
                child.adopt(pid, int(state["children"][child.name]["restarts"]), now)
        for name, fd in state["ends"].items():
            self._ends[int(name)] = socket.socket(fileno=fd)
            self._ends[int(name)].settimeout(handover.PATIENCE)
            os.set_inheritable(fd, False)  # noqa: FBT003 (the standard library's form)

    def _take_over(self) -> None:
        """Worker by worker: the old keeper's descriptors go to a keeper of this code; then the control process is new."""
        for child in self._children:
            if child.name == "control":
                child.replace()
                if child.pid:
                    os.kill(child.pid, signal.SIGTERM)
                continue
            index = int(child.name.split()[-1])
            with contextlib.suppress(OSError, KeyError):
                self._ends[index].send(handover.HAND_OVER)
                self._received[index] = handover.receive(self._ends[index])
            if child.pid:
                child.wait(handover.PATIENCE)
            child.replace()
            child.start(time.monotonic())
        row = self.shared["node"]
        row["upgrades"] += 1
        row["upgraded"] = self.plan.wall


def _raise_limits(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        raise StartError(f"{hard} open files are allowed here, this node needs {needed}: raise the limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # keys do not go into core files


def _execute(plan: Plan, given: dict[str, object], parent: int) -> None:
    """Become the control process, in a fresh child. Does not return."""
    try:
        die_with(parent)
        default_signals()
        fds = [fd for value in given.values() for fd in (value if isinstance(value, list) else [value]) if isinstance(fd, int)]
        for fd in fds:
            fcntl.fcntl(fd, fcntl.F_SETFD, 0)  # open across exec
        settings = {"NYX_" + key.replace(".", "_").upper(): value for key, value in plan.settings.items()}
        own = {"NYX_KERNELS": "plain", "OPENBLAS_NUM_THREADS": "1", "NYX_CONTROL_FDS": json.dumps(given)}
        os.execve(plan.control[0], list(plan.control), package_environment() | settings | own)  # noqa: S606 (a list of arguments, no shell)
    except BaseException as error:  # noqa: BLE001 (the last frame of a forked process)
        say("error", f"the control process cannot be started: {error}")
    finally:
        os._exit(1)

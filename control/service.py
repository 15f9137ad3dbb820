"""What the control process answers: documents put together from the workers' answers and the supervisor's pages.

A worker that does not answer in time is named as unreachable; everything else is still told.
"""

import asyncio
import dataclasses
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from control import health, schemas
from control.channel import RESTART_DEADLINE, UPGRADE_DEADLINE, Channel, Supervisor, WorkerRefusedError, WorkerSilentError
from control.pages import Pages, Processes
from control.reload import Reloader
from control.telemetry.spans import Trace, untraced
from control.wire import Refusal
from nyx import __version__, sealing
from nyx.config import Config
from nyx.sealing import UNTOLD, Seal
from nyx.stats import BOUNDS, UNITS, Histogram, quantile
from nyx.wire.admin import Op, Stage
from nyx.wire.orders import Order

PROGRESS: Final[Mapping[str, int]] = {Stage.STARTING: 10, Stage.LINKS: 40, Stage.CIRCUITS: 70, Stage.READY: 100}
_ORDER: Final = list(PROGRESS)

Args = Mapping[str, Any]


class Service:
    """All operations of one node's admin socket; `handle` is the way in."""

    def __init__(
        self,
        config: Config,
        channels: Sequence[Channel],
        pages: Pages,
        supervisor: Supervisor | None = None,
        reloader: Reloader | None = None,
    ) -> None:
        self._config = config
        self._channels = channels
        self._pages = pages
        self._supervisor = supervisor
        self.sealed = UNTOLD  # this process
        self.notices: list[Callable[[], str | None]] = []  # each tells what the user should know of the control process, or None
        self.trace: Trace = untraced
        self._reloader = reloader
        self._operations: dict[str, Callable[[Args], Awaitable[schemas.Document]]] = {
            "status": self._status,
            "stats": self._stats,
            "circuits": self._circuits,
            "streams": self._streams,
            "peers": self._peers,
            "close_circuit": self._close_circuit,
            "close_stream": self._close_stream,
            "restart": self._restart,
            "upgrade": self._upgrade,
        }
        if reloader:
            self._operations |= reloader.operations

    def add(self, op: str, operation: Callable[[Args], Awaitable[schemas.Document]]) -> None:
        """Take an operation that somebody else answers."""
        self._operations[op] = operation

    async def handle(self, op: str, args: Args) -> schemas.Document:
        """The document that answers. Raises Refusal."""
        if op not in self._operations:
            raise Refusal("unknown_operation", f"this node knows no operation {op[:40]!r}")
        with self.trace(op):
            return await self._operations[op](args)

    async def _ask_all(self, op: Op, args: Args | None = None) -> tuple[dict[int, dict[str, Any]], list[int]]:
        """Answers by worker, and the workers that gave none."""

        async def one(channel: Channel) -> tuple[int, dict[str, Any] | None]:
            try:
                return channel.worker, await channel.ask(op, args)
            except (WorkerSilentError, WorkerRefusedError):
                return channel.worker, None

        answers = await asyncio.gather(*(one(channel) for channel in self._channels))
        return {w: data for w, data in answers if data is not None}, [w for w, data in answers if data is None]

    async def _status(self, _args: Args) -> schemas.Document:
        return await self.status()

    async def status(self) -> schemas.Status:
        """How the node is."""
        answers, silent = await self._ask_all(Op.STATUS)
        table = self._pages.processes()
        stages = [str(data.get("stage")) for data in answers.values()] + [Stage.STARTING] * len(silent)
        stage = min((s if s in _ORDER else str(Stage.STARTING) for s in stages), key=_ORDER.index, default=str(Stage.STARTING))
        version = self._reloader.running if self._reloader else None
        node, listen = self._config.node, self._config.proxy.listen
        warnings = health.warnings(table, silent, time.monotonic_ns())
        warnings += [str(text) for data in answers.values() for text in data.get("warnings", [])]
        warnings += [text for notice in self.notices if (text := notice())]
        warnings += self._unsealed(table)

        def total(name: str) -> int:
            return sum(int(data.get(name, 0)) for data in answers.values())

        return schemas.Status(
            alias=node.alias,
            role=node.role,
            address=node.address,
            port=node.port,
            release=__version__,
            ready=stage == Stage.READY,
            stage=str(stage),
            progress=PROGRESS[stage],
            started=table.started or None if table else None,
            uptime=max(0.0, time.time() - table.started) if table and table.started else 0.0,
            proxy=address_text(listen) if listen else None,
            links=total("links"),
            circuits=total("circuits"),
            circuits_ready=total("circuits_ready"),
            streams=total("streams"),
            upgrades=table.upgrades if table else 0,
            processes=_processes(table, self.sealed, answers, silent),
            warnings=list(dict.fromkeys(warnings)),
            config=version.number if version else None,
            waiting=sorted(version.waiting) if version else [],
            memory_used=total("memory_used") or None,
            memory_cap=max((int(data.get("memory_cap", 0)) for data in answers.values()), default=0) or None,
        )

    def _unsealed(self, table: Processes | None) -> list[str]:
        """What lacks a seal that it should have."""
        found = {"control": self.sealed}
        if table:
            found["supervisor"] = Seal(table.sealed)
            for worker, life in enumerate(table.workers):
                found[f"keeper {worker}"], found[f"worker {worker}"] = Seal(life.keeper_sealed), Seal(life.sealed)
        lines = sealing.warnings(found)
        if os.geteuid() == 0 and not self._config.path.allow_loopback:
            lines.append("this node runs as root; node.user names a user to become")
        return lines

    async def _stats(self, _args: Args) -> schemas.Document:
        rows = self._pages.counters()
        total = {name: sum(row[name] for row in rows) for name in (rows[0] if rows else ())}
        workers = [schemas.WorkerStats(worker, counters) for worker, counters in enumerate(rows)]
        latencies = {which.name.lower(): _latency(histogram) for which, histogram in self._pages.latencies().items()}
        return schemas.Stats(self._config.node.alias, total, workers, dict(UNITS), latencies)

    async def _circuits(self, _args: Args) -> schemas.Document:
        answers, silent = await self._ask_all(Op.CIRCUITS)
        rows = [_circuit(values) for data in answers.values() for values in data.get("circuits", [])]
        return schemas.Circuits(self._config.node.alias, rows, silent)

    async def _streams(self, args: Args) -> schemas.Document:
        show = args.get("show_targets", False)
        if not isinstance(show, bool):
            raise Refusal("bad_request", "show_targets must be true or false")
        answers, silent = await self._ask_all(Op.STREAMS, {"show_targets": show})
        rows = [_row(schemas.Stream, values) for data in answers.values() for values in data.get("streams", [])]
        if not show:
            rows = [schemas.row(schemas.Stream, _fields(stream) | {"target": None}) for stream in rows]
        return schemas.Streams(self._config.node.alias, rows, silent)

    async def _peers(self, _args: Args) -> schemas.Document:
        answers, silent = await self._ask_all(Op.PEERS)
        rows = [_row(schemas.Peer, values) for data in answers.values() for values in data.get("peers", [])]
        return schemas.Peers(self._config.node.alias, rows, silent)

    async def _close_circuit(self, args: Args) -> schemas.Document:
        worker, circuit = _number(args, "worker"), _number(args, "circuit")
        await self._tell(worker, Op.CLOSE_CIRCUIT, {"circuit": circuit})
        return schemas.Closed(self._config.node.alias, worker, circuit)

    async def _close_stream(self, args: Args) -> schemas.Document:
        worker, circuit, stream = (_number(args, name) for name in ("worker", "circuit", "stream"))
        await self._tell(worker, Op.CLOSE_STREAM, {"circuit": circuit, "stream": stream})
        return schemas.Closed(self._config.node.alias, worker, circuit, stream)

    async def _tell(self, worker: int, op: Op, args: Args) -> None:
        if not 0 <= worker < len(self._channels):
            raise Refusal("not_found", f"there is no worker {worker}")
        try:
            await self._channels[worker].ask(op, args)
        except WorkerRefusedError as error:
            raise Refusal("not_found", str(error)) from error
        except WorkerSilentError as error:
            raise Refusal("timeout", str(error)) from error

    async def _order(self, order: Order, args: Args, deadline: float) -> dict[str, Any]:
        if self._supervisor is None:
            raise Refusal("unknown_operation", "this node has no supervisor that takes orders")
        try:
            return await self._supervisor.order(order, args, deadline)
        except WorkerRefusedError as error:
            raise Refusal("refused", str(error)) from error
        except WorkerSilentError as error:
            raise Refusal("timeout", str(error)) from error

    async def _restart(self, args: Args) -> schemas.Document:
        worker = args.get("worker")
        if type(worker) is not int:
            raise Refusal("bad_request", "worker must be a number")
        data = await self._order(Order.RESTART, {"worker": worker}, RESTART_DEADLINE)
        return schemas.Restarted(self._config.node.alias, worker, int(data["pid"]))

    async def _upgrade(self, args: Args) -> schemas.Document:
        drain = args.get("drain")
        if drain is not None and type(drain) not in (int, float):
            raise Refusal("bad_request", "drain must be seconds, or null")
        table = self._pages.processes()
        data = await self._order(Order.UPGRADE, {"drain": drain}, UPGRADE_DEADLINE)
        return schemas.Upgrading(
            alias=self._config.node.alias,
            release=__version__,
            upgrades=table.upgrades if table else 0,
            control=os.getpid(),
            drained=bool(data.get("drained")),
            changes=[str(text) for text in data.get("changes", [])],
        )


def _number(args: Args, name: str) -> int:
    value = args.get(name)
    if type(value) is not int:
        raise Refusal("bad_request", f"{name} must be a number")
    return value


def _latency(histogram: Histogram) -> schemas.Latency:
    counts = histogram.counts

    def seconds(share: float) -> float | None:
        found = quantile(counts, share)
        return None if found is None else found / 1e9

    bounds = [bound / 1e9 for bound in BOUNDS]
    return schemas.Latency(sum(counts), histogram.total / 1e9, seconds(0.5), seconds(0.9), seconds(0.99), bounds, counts)


def address_text(listen: tuple[str, int]) -> str:
    """Address and port as people and URLs write them."""
    host, port = listen
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _processes(table: Processes | None, own: int, answers: Mapping[int, Args], silent: Sequence[int]) -> list[schemas.Process]:
    def sealed(seal: int) -> list[str] | None:
        return sealing.names(Seal(seal)) if seal else None

    def state(pid: int) -> str:
        return "running" if pid else "down"

    rows = []
    if table:
        rows.append(schemas.Process("supervisor", table.supervisor or None, 0, state(table.supervisor), sealed(table.sealed)))
        control = table.control
        rows.append(schemas.Process("control", control or None, table.control_restarts, state(control), sealed(own)))
    for worker in sorted([*answers, *silent]):
        life = table.workers[worker] if table and worker < len(table.workers) else None
        pid = int(answers[worker].get("pid", 0)) if worker in answers else life.pid if life else 0
        condition = "running" if worker in answers else "unreachable" if pid else "down"
        version = answers[worker].get("config") or None if worker in answers else None
        restarts, seal = (life.restarts, life.sealed) if life else (0, 0)
        rows.append(schemas.Process(f"worker {worker}", pid or None, restarts, condition, sealed(seal), version))
    for worker, life in enumerate(table.workers if table else ()):
        if life.keeper:
            rows.append(schemas.Process(f"keeper {worker}", life.keeper, 0, "running", sealed(life.keeper_sealed)))
    return rows


def _row(cls: type[schemas.T], values: Any) -> schemas.T:
    try:
        return schemas.row(cls, values)
    except (KeyError, TypeError) as error:
        raise Refusal("internal", f"a worker's answer has no {error}") from error


def _circuit(values: Any) -> schemas.Circuit:
    found = _row(schemas.Circuit, values)
    hops = None if found.hops is None else [_row(schemas.Hop, hop) for hop in found.hops]
    return schemas.row(schemas.Circuit, _fields(found) | {"hops": hops})


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}

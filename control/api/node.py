"""nyx.v1.Node: what is told of the node, what happens to it, and its life."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, cast

from control import schemas
from control.api import convert
from control.api.generated import nyx_v1_pb2 as pb
from control.feed.watch import Told, Watch
from control.metrics.processes import Usage, usages
from control.pages import Pages
from control.service import Service
from control.wire import Refusal
from nyx.scrub import scrub
from nyx.wire.geometry import PACKET_SIZE

OVER: Final = (0.1, 1.0, 10.0)  # seconds over which rates are measured: least, default, most
KINDS_MAX: Final = 64
PARTING: Final = 0.2  # seconds for the answer to leave before the node is told to stop


class Node:
    """The methods of the service."""

    def __init__(self, service: Service, pages: Pages, watch: Watch) -> None:
        self._service = service
        self._pages = pages
        self._watch = watch

    async def get_info(self, _request: pb.GetInfoRequest) -> pb.NodeInfo:
        """How the node is."""
        return convert.node_info(await self._service.status())

    async def list_circuits(self, _request: pb.ListCircuitsRequest) -> pb.ListCircuitsResponse:
        """Every circuit."""
        found = cast("schemas.Circuits", await self._service.handle("circuits", {}))
        return pb.ListCircuitsResponse(circuits=map(convert.circuit, found.circuits), unreachable=found.unreachable)

    async def close_circuit(self, request: pb.CloseCircuitRequest) -> pb.CloseCircuitResponse:
        """Close an own circuit."""
        await self._service.handle("close_circuit", {"worker": request.worker, "circuit": request.circuit})
        return pb.CloseCircuitResponse()

    async def list_peers(self, _request: pb.ListPeersRequest) -> pb.ListPeersResponse:
        """Every link."""
        found = cast("schemas.Peers", await self._service.handle("peers", {}))
        return pb.ListPeersResponse(peers=map(convert.peer, found.peers), unreachable=found.unreachable)

    # ------------------------------------------------------------ performance

    async def get_performance(self, request: pb.GetPerformanceRequest) -> pb.Performance:
        """Figures of now, and what changes in a moment."""
        over = request.over if request.HasField("over") else OVER[1]
        if not OVER[0] <= over <= OVER[2]:
            raise Refusal("bad_request", f"over must be from {OVER[0]} to {OVER[2]} seconds")
        before, used, start = await self._total(), self._uses(), time.monotonic()
        await asyncio.sleep(over)
        stats, seconds = await self._stats(), time.monotonic() - start
        groups: dict[str, dict[str, int]] = {"dropped": {}, "refused": {}, "": {}}
        for name, value in stats.total.items():
            group, _, rest = name.partition("_")
            groups[group if group in groups else ""][rest if group in groups else name] = value
        return pb.Performance(
            latencies={name: convert.latency(found) for name, found in stats.latencies.items()},
            drops=groups["dropped"],
            refusals=groups["refused"],
            counters=groups[""],
            rates=_rates(before, stats.total, seconds),
            processes=[_use(now, used.get((now.role, now.worker)), seconds) for now in self._uses().values()],
        )

    async def _stats(self) -> schemas.Stats:
        return cast("schemas.Stats", await self._service.handle("stats", {}))

    async def _total(self) -> Mapping[str, int]:
        return (await self._stats()).total

    def _uses(self) -> dict[tuple[str, str], Usage]:
        table = self._pages.processes()
        return {(use.role, use.worker): use for use in (usages(table) if table else ())}

    # ------------------------------------------------------------ events

    async def subscribe_events(self, request: pb.SubscribeEventsRequest) -> AsyncGenerator[pb.SubscribeEventsResponse, None]:
        """What happens. The place of the client is all that is kept for it."""
        wanted, watch = frozenset(request.kinds), self._watch
        if len(wanted) > KINDS_MAX:
            raise Refusal("bad_request", f"at most {KINDS_MAX} kinds")
        place, whole = watch.last, True
        if request.HasField("after"):
            known = request.after.life == watch.life
            if known and request.after.sequence > watch.last:
                raise Refusal("bad_request", f"no event has the number {request.after.sequence} yet; the last is {watch.last}")
            place, whole = (request.after.sequence, True) if known else (0, False)
        while True:
            events, all_of_them = watch.after(place)
            if not whole or not all_of_them:
                yield pb.SubscribeEventsResponse(gap=pb.Gap())
                whole = True
            for told in events:
                place = told.sequence
                if not wanted or told.event.kind in wanted:
                    yield pb.SubscribeEventsResponse(event=self._event(told))
            if place >= watch.last:
                await watch.wait()

    def _event(self, told: Told) -> pb.Event:
        event = told.event
        return pb.Event(
            position=pb.Position(life=self._watch.life, sequence=told.sequence), time=told.time, kind=event.kind,
            worker=event.worker, count=event.count, text=None if event.text is None else scrub(event.text),
        )  # fmt: skip

    # ------------------------------------------------------------ its life

    async def restart_worker(self, request: pb.RestartWorkerRequest) -> pb.RestartWorkerResponse:
        """Start a worker anew."""
        found = cast("schemas.Restarted", await self._service.handle("restart", {"worker": request.worker}))
        return pb.RestartWorkerResponse(pid=found.pid)

    async def upgrade(self, request: pb.UpgradeRequest) -> pb.UpgradeResponse:
        """Replace the code."""
        drain = request.drain if request.HasField("drain") else None
        if drain is not None and not 0 <= drain <= 86400:
            raise Refusal("bad_request", "drain must be from 0 to 86400 seconds")
        found = cast("schemas.Upgrading", await self._service.handle("upgrade", {"drain": drain}))
        return pb.UpgradeResponse(drained=found.drained, changes=found.changes)

    async def shutdown(self, _request: pb.ShutdownRequest) -> pb.ShutdownResponse:
        """Tell the supervisor to stop, as a terminal or an init system would, once the answer is on its way."""
        table = self._pages.processes()
        if table is None or table.supervisor != os.getppid():
            raise Refusal("unknown_operation", "this control process has no supervisor of its own to stop")
        asyncio.get_running_loop().call_later(PARTING, _stop, table.supervisor)
        return pb.ShutdownResponse(pid=table.supervisor)


def _stop(supervisor: int) -> None:
    if supervisor == os.getppid():
        os.kill(supervisor, signal.SIGTERM)


def _rates(before: Mapping[str, int], after: Mapping[str, int], seconds: float) -> pb.Rates:
    def rate(name: str) -> float:
        return (after.get(name, 0) - before.get(name, 0)) / seconds

    drops = sum(rate(name) for name in after if name.startswith("dropped_"))
    packets_in, packets_out = rate("packets_in"), rate("packets_out")
    return pb.Rates(
        seconds=seconds, packets_in=packets_in, packets_out=packets_out, bytes_in=packets_in * PACKET_SIZE,
        bytes_out=packets_out * PACKET_SIZE, stream_bytes_sent=rate("bytes_in"), stream_bytes_received=rate("bytes_out"),
        drops=drops,
    )  # fmt: skip


def _use(now: Usage, before: Usage | None, seconds: float) -> pb.ProcessUse:
    known: Any = now.cpu is not None and before is not None and before.cpu is not None and now.cpu >= before.cpu
    return pb.ProcessUse(
        role=now.role, worker=int(now.worker) if now.worker else None, cpu_seconds=now.cpu,
        cpu_cores=(now.cpu - before.cpu) / seconds if known else None,  # type: ignore[union-attr,operator]
        memory=now.memory, descriptors=now.descriptors,
    )  # fmt: skip

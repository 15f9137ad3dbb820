"""nyx.v1.Streams: data through the network, and what is known of each stream."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final, NamedTuple, cast

from control import schemas
from control.api import convert
from control.api.carrier import Carrier
from control.api.generated import nyx_v1_pb2 as pb
from control.service import Service
from control.wire import Refusal
from nyx.sdk import Stream

CHUNK: Final = 1 << 16  # bytes of an answer
DATA_MAX: Final = 1 << 18  # bytes of a request
OPEN_TIME: Final = (60.0, 120.0)  # seconds: default, most
INTERVAL: Final = (0.1, 1.0, 3600.0)  # seconds: least, default, most

FRESH: Final = 0.09  # seconds: less than the least interval

_Key = tuple[int, int, int]


class _Moment(NamedTuple):
    """What was known of all streams at a time of the monotonic clock."""

    at: float
    rows: Sequence[pb.StreamInfo]
    unreachable: Sequence[int]


class Streams:
    """The methods of the service."""

    def __init__(self, service: Service, carrier: Carrier) -> None:
        self._service = service
        self._carrier = carrier
        self._looking = asyncio.Lock()
        self._last = _Moment(float("-inf"), [], [])

    # ------------------------------------------------------------ data

    async def open_stream(self, request: pb.OpenStreamRequest) -> pb.OpenStreamResponse:
        """Open a stream."""
        seconds = request.timeout if request.HasField("timeout") else OPEN_TIME[0]
        if not 0 < seconds <= OPEN_TIME[1]:
            raise Refusal("bad_request", f"timeout must be above 0 and at most {OPEN_TIME[1]:g} seconds")
        isolation = request.isolation if request.HasField("isolation") else None
        return pb.OpenStreamResponse(handle=await self._carrier.open(request.host, request.port, isolation, seconds))

    async def stream(self, requests: AsyncIterator[pb.StreamRequest]) -> AsyncGenerator[pb.StreamResponse, None]:
        """Carry bytes until both sides have ended."""
        first = await anext(requests, pb.StreamRequest())
        match first.WhichOneof("what"):
            case "open":
                handle = (await self.open_stream(first.open)).handle
            case "handle":
                handle = first.handle
            case _:
                raise Refusal("bad_request", "the first message must have open or handle")
        stream, well = self._carrier.take(handle), False
        upwards = asyncio.create_task(_upwards(requests, stream))
        try:
            yield pb.StreamResponse(opened=pb.OpenStreamResponse(handle=handle))
            try:
                while data := await stream.read(CHUNK):
                    yield pb.StreamResponse(data=data)
            except Exception:
                if upwards.done():
                    upwards.result()  # what it met is why this ended
                raise
            yield pb.StreamResponse(end=pb.End())
            await upwards
            well = True
        finally:
            upwards.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await upwards
            self._carrier.end(handle, well=well)

    async def close_stream(self, request: pb.CloseStreamRequest) -> pb.CloseStreamResponse:
        """Reset a stream."""
        match request.WhichOneof("which"):
            case "handle":
                if not self._carrier.end(request.handle):
                    raise Refusal("not_found", "there is no stream of this handle")
            case "ref":
                ref = request.ref
                await self._service.handle("close_stream", {"worker": ref.worker, "circuit": ref.circuit, "stream": ref.id})
            case _:
                raise Refusal("bad_request", "ref or handle must name the stream")
        return pb.CloseStreamResponse()

    # ------------------------------------------------------------ what is known

    async def list_streams(self, request: pb.ListStreamsRequest) -> pb.ListStreamsResponse:
        """Every stream."""
        found = await self._rows(show_targets=request.show_targets)
        return pb.ListStreamsResponse(streams=map(convert.stream, found.streams), unreachable=found.unreachable)

    async def get_stream(self, request: pb.GetStreamRequest) -> pb.StreamInfo:
        """One stream."""
        found = await self._rows(show_targets=request.show_target)
        for row in map(convert.stream, found.streams):
            if row.HasField("ref") and _key(row.ref) == _key(request.ref):
                return row
        if request.ref.worker in found.unreachable:
            raise Refusal("timeout", f"worker {request.ref.worker} does not answer")
        raise Refusal("not_found", "there is no such stream")

    async def stream_stats(self, request: pb.StreamStatsRequest) -> AsyncGenerator[pb.StreamStatsResponse, None]:
        """Figures at an interval."""
        least, usual, most = INTERVAL
        interval = request.interval if request.HasField("interval") else usual
        if not least <= interval <= most:
            raise Refusal("bad_request", f"interval must be from {least} to {most:g} seconds")
        wanted = _key(request.ref) if request.HasField("ref") else None
        before: dict[_Key, tuple[float, int, int]] = {}
        seen = False
        while True:
            now = await self._now()
            rows = [row for row in now.rows if wanted in {None, _key(row.ref)}]
            if wanted and not rows and wanted[0] not in now.unreachable:
                if seen:
                    return
                raise Refusal("not_found", "there is no such stream")
            seen = True
            figures = [_figures(row, before, now.at) for row in rows]
            yield pb.StreamStatsResponse(time=time.time(), streams=figures, unreachable=now.unreachable)
            before = {_key(row.ref): (now.at, row.bytes_in, row.bytes_out) for row in rows}
            await asyncio.sleep(interval)

    async def _now(self) -> _Moment:
        """Every stream of a moment that is not long ago: many who watch ask the workers as often as one."""
        async with self._looking:
            if time.monotonic() - self._last.at >= FRESH:
                found = await self._rows(show_targets=False)
                rows = [row for row in map(convert.stream, found.streams) if row.HasField("ref")]
                self._last = _Moment(time.monotonic(), rows, found.unreachable)
            return self._last

    async def _rows(self, *, show_targets: bool) -> schemas.Streams:
        return cast("schemas.Streams", await self._service.handle("streams", {"show_targets": show_targets}))


async def _upwards(requests: AsyncIterator[pb.StreamRequest], stream: Stream) -> None:
    """From the client into the stream, until it says end; what goes wrong ends the stream for the reader too."""
    try:
        async for request in requests:
            kind = request.WhichOneof("what")
            if kind == "end":
                break
            if kind != "data" or len(request.data) > DATA_MAX:
                raise Refusal("bad_request", f"after the first message come end, or data of at most {DATA_MAX} bytes")
            await stream.send(request.data)
        stream.write_eof()
    except Exception:
        stream.abort()
        raise


def _key(ref: pb.StreamRef) -> _Key:
    return ref.worker, ref.circuit, ref.id


def _figures(row: pb.StreamInfo, before: dict[_Key, tuple[float, int, int]], now: float) -> pb.StreamFigures:
    found = pb.StreamFigures(stream=row)
    if (last := before.get(_key(row.ref))) and now > last[0]:
        found.rate_in = (row.bytes_in - last[1]) / (now - last[0])
        found.rate_out = (row.bytes_out - last[2]) / (now - last[0])
    return found

"""Streams that the API carries: opened over the node's own SDK socket, named by handles until somebody carries or ends them.

The bytes go client - gRPC - this process - shared memory - worker. A stream lives as long as the call that carries it; one that
nobody carries is given up after a while.
"""

import asyncio
import secrets
from pathlib import Path
from typing import Final

from control.wire import Refusal
from nyx.sdk import Client, Stream

STREAMS_MAX: Final = 64
WAITING_TIME: Final = 30.0  # seconds that an opened stream waits to be carried


class Carrier:
    """The streams of all clients of the API. `socket`: None where the node serves no applications."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket
        self._client: Client | None = None
        self._starting = asyncio.Lock()
        self._opening = 0
        self._streams: dict[str, Stream] = {}
        self._waiting: dict[str, asyncio.TimerHandle] = {}

    async def open(self, host: str, port: int, isolation: str | None, seconds: float) -> str:
        """Open a stream; its handle. Raises Refusal, SdkError."""
        if self._opening + len(self._streams) >= STREAMS_MAX:
            raise Refusal("busy", f"{STREAMS_MAX} streams of the API are open")
        self._opening += 1
        try:
            client = await self._started()
            try:
                stream = await client.open_stream(host, port, isolation=isolation, timeout=seconds)
            except ValueError as error:
                raise Refusal("bad_request", str(error)) from error
        finally:
            self._opening -= 1
        handle = secrets.token_hex(16)
        self._streams[handle] = stream
        self._waiting[handle] = asyncio.get_running_loop().call_later(WAITING_TIME, self.end, handle)
        return handle

    async def _started(self) -> Client:
        if self._socket is None:
            raise Refusal("sdk_off", "this node serves no applications")
        async with self._starting:
            if self._client is None:
                client = Client(self._socket, streams=STREAMS_MAX)
                await client.start()
                self._client = client
            return self._client

    def take(self, handle: str) -> Stream:
        """The stream, for the one call that carries it. Raises Refusal."""
        timer = self._waiting.pop(handle, None)
        if timer is None:
            raise Refusal("not_found", "there is no stream of this handle that nobody carries")
        timer.cancel()
        return self._streams[handle]

    def end(self, handle: str, *, well: bool = False) -> bool:
        """End a stream, `well`: after all that was written; else at once. False: there is none of this handle."""
        if timer := self._waiting.pop(handle, None):
            timer.cancel()
        stream = self._streams.pop(handle, None)
        if stream is None:
            return False
        if well:
            stream.close()
        else:
            stream.abort()
        return True

    async def close(self) -> None:
        """End everything."""
        for handle in list(self._streams):
            self.end(handle)
        if self._client is not None:
            await self._client.close()

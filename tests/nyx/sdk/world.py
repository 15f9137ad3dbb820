"""The SDK against a worker's real edge in the same process: a real unix socket and shared memory, streams joined in memory."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from nyx.sdk import Client
from shards.edge.sdk import Welcoming
from tests.shards.edge.bench import Bench, Side
from tests.shards.edge.real import RealBench


class World(Bench):
    """A bench whose client's edge listens for the SDK, turned by a task of the test's event loop."""

    def __init__(self, path: Path, *, max_streams: int = 16, boot: str = "boot", **options: Any) -> None:
        self.path = path
        self.ready = 1
        self.boot = boot
        self.lives = 1
        self.max_streams = max_streams
        self.exit_waits = False  # the exit does nothing meanwhile
        self.sdk_listener = self.listen()
        super().__init__(**options)

    def listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.path.unlink(missing_ok=True)
        listener.bind(str(self.path))
        listener.listen(16)
        return listener

    def more(self) -> dict[str, Any]:
        return {"welcoming": Welcoming([self.sdk_listener], self.boot, 0, self.max_streams, lambda: self.ready)}

    def turn(self) -> None:
        if not self.exit_waits:
            super().turn()
            return
        self.client.turn(self.now)

    def restart(self) -> None:
        """The client's worker is killed, and the next one begins on its columns and descriptors."""
        dead = self.client
        for guest in dead.edge.slots.guests.values():
            if guest.sock is not None:
                guest.sock.detach()
        dead.epoll.close()
        self.client = Side(self.near, listeners=[self.listener], open_circuit=self.open_circuit, **self.more())
        if isinstance(self, RealBench):
            self.client.streams.rebuild(self.now)
        self.client.edge.recover(self.now)
        self.lives += 1

    async def run(self) -> None:
        while True:
            self.turn()
            self.now += 100_000
            await asyncio.sleep(0)

    async def come(self, condition: Callable[[], object]) -> None:
        """Wait until it holds."""
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  # the world turns in another task, and only while this one yields
                await asyncio.sleep(0)

    def close(self) -> None:
        super().close()
        self.sdk_listener.close()


class RealWorld(World, RealBench):
    """The same over the real streams."""


@contextlib.asynccontextmanager
async def world(folder: Path, kind: type[World] = World, *, tidy: bool = True, **options: Any) -> AsyncIterator[World]:
    """A world that turns; nothing may be left of it at the end, unless it ends in the middle."""
    made = kind(folder / "sdk.sock", **options)
    task = asyncio.create_task(made.run())
    try:
        yield made
        if tidy:
            await made.come(made.idle)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        made.close()


def run(main: Callable[[World, Client], Awaitable[None]], folder: Path, *, streams: int = 8, **options: Any) -> None:
    """A test's coroutine in a world with a client."""

    async def whole() -> None:
        async with world(folder, **options) as made, Client(made.path, streams=streams, ring=1 << 16) as client:
            await main(made, client)

    asyncio.run(whole())


async def echo_server() -> tuple[asyncio.Server, int]:
    """A target that sends everything back, and half-closes after its client."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]

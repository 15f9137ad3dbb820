"""The SDK for programs without an event loop: the same client and streams, whose calls wait.

A thread of the client's own runs the event loop; calls may come from any thread, and each stream may be read by one and written
by another at the same time.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from nyx.sdk import client as asynchronous
from nyx.sdk.errors import UnreachableError
from nyx.sdk.events import Event
from nyx.sdk.sockets import Socket
from nyx.sdk.stream import CHUNK
from nyx.sdk.stream import Stream as AsynchronousStream
from nyx.wire.sdk import RING_DEFAULT, SLOTS_DEFAULT

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nyx.sdk", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. Interrupted, it is cancelled. Raises UnreachableError once the loop has ended."""
        if self._loop.is_closed():
            work.close()
            raise UnreachableError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise UnreachableError("the client was closed") from None
        except BaseException:
            future.cancel()
            raise

    def call(self, work: Callable[[], T]) -> T:
        """The function's result, called in the loop's thread."""

        async def within() -> T:
            return work()

        return self.run(within())

    def close(self) -> None:
        """End the loop and its thread; what still waits is cancelled."""
        if self._loop.is_closed():
            return
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Stream:
    """One open stream. Close it, or use it as a context manager. Errors and limits as in nyx.sdk.Stream."""

    def __init__(self, loop: Loop, stream: AsynchronousStream) -> None:
        self._loop = loop
        self._stream = stream

    def __repr__(self) -> str:
        return repr(self._stream)

    @property
    def target(self) -> str:
        """Host and port."""
        return self._stream.target

    @property
    def timeout(self) -> float | None:
        """Seconds that a call waits for the other side; None: for ever."""
        return self._stream.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._stream.timeout = seconds

    def read(self, n: int = -1) -> bytes:
        """Up to n bytes, at least one; b"" at the end of file. n < 0: everything up to there."""
        return self._loop.run(self._stream.read(n))

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read into the caller's memory; how many bytes, 0 at the end of file."""
        return self._loop.run(self._stream.readinto(buffer))

    def readexactly(self, n: int) -> bytes:
        """Exactly n bytes. Raises asyncio.IncompleteReadError."""
        return self._loop.run(self._stream.readexactly(n))

    def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Bytes up to and with the separator. Raises asyncio.IncompleteReadError, asyncio.LimitOverrunError."""
        return self._loop.run(self._stream.readuntil(separator))

    def readline(self) -> bytes:
        """Read a line; the last one may have no end."""
        return self._loop.run(self._stream.readline())

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(CHUNK):
            yield data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it: the daemon has it when this returns."""
        self._loop.run(self._stream.send(data))

    def write_eof(self) -> None:
        """Half-close: the other side reads the end of file; reading goes on."""
        self._loop.call(self._stream.write_eof)

    def close(self) -> None:
        """Read no more; what was written is still sent. Harmless when the client is closed already."""
        with contextlib.suppress(UnreachableError):
            self._loop.call(self._stream.close)

    def abort(self) -> None:
        """Give up; the other side sees a reset."""
        with contextlib.suppress(UnreachableError):
            self._loop.call(self._stream.abort)

    def wait_closed(self) -> None:
        """Wait until the daemon is through with a closed stream."""
        self._loop.run(self._stream.wait_closed())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close after success, abort after an exception."""
        if kind is None:
            self.close()
        else:
            self.abort()


class Client:
    """A client of one daemon. Use it as a context manager, or `start` and `close` it."""

    def __init__(self, socket: str | Path | None = None, *, streams: int = SLOTS_DEFAULT, ring: int = RING_DEFAULT) -> None:
        """As nyx.sdk.Client."""
        self._client = asynchronous.Client(socket, streams=streams, ring=ring)
        self._loop: Loop | None = None

    @property
    def _running(self) -> Loop:
        if self._loop is None:
            raise UnreachableError("the client is not started, or closed")
        return self._loop

    def start(self) -> None:
        """Connect. Raises UnreachableError when no daemon answers now."""
        loop = Loop()
        try:
            loop.run(self._client.start())
        except BaseException:
            loop.close()
            raise
        self._loop = loop

    def close(self) -> None:
        """Disconnect: closed streams are still sent to their end, the others are given up."""
        loop, self._loop = self._loop, None
        if loop is not None:
            try:
                loop.run(self._client.close())
            finally:
                loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether the daemon answers."""
        return self._client.connected

    @property
    def circuits(self) -> int:
        """How many circuits are ready."""
        return self._client.circuits

    def ready(self, timeout: float | None = asynchronous.OPEN_TIME) -> None:
        """Wait until a circuit is ready. Raises NotReadyError after `timeout` seconds."""
        self._running.run(self._client.ready(timeout))

    def open_stream(
        self,
        host: str,
        port: int,
        *,
        isolation: str | bytes | None = None,
        timeout: float | None = asynchronous.OPEN_TIME,
    ) -> Stream:
        """Open a stream. Raises as nyx.sdk.Client.open_stream."""
        loop = self._running
        return Stream(loop, loop.run(self._client.open_stream(host, port, isolation=isolation, timeout=timeout)))

    def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | object | None = None,
        source_address: object = None,
        *,
        isolation: str | bytes | None = None,
    ) -> Socket:
        """As socket.create_connection: a stream that looks like a socket. Raises as `open_stream`.

        `timeout`, when it is a number, bounds the opening and each later call; `source_address` means nothing here.
        """
        del source_address
        limit = float(timeout) if isinstance(timeout, int | float) else None
        stream = self.open_stream(*address[:2], isolation=isolation, timeout=asynchronous.OPEN_TIME if limit is None else limit)
        return Socket(stream, limit)

    def on_event(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call this with everything that happens, in the client's thread: it must not wait. Gives what stops it."""
        return self._client.on_event(callback)

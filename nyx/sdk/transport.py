"""A stream as an asyncio transport: what asyncio's readers and writers, TLS and other libraries' protocols stand on.

Bytes go from `Stream.read` to the protocol's data_received, and from the protocol's transport.write to `Stream.write`.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from nyx.sdk.stream import CHUNK, Stream

HIGH_WATER: Final = 1 << 18  # unsent bytes above which a protocol is paused
_LIMIT: Final = 1 << 18  # of an asyncio.StreamReader


class StreamTransport(asyncio.Transport):
    """One stream as a transport. The protocol is told of the connection in the loop's next turn."""

    _start_tls_compatible = True  # asyncio asks this of a transport that TLS is put on

    def __init__(self, stream: Stream, protocol: asyncio.BaseProtocol) -> None:
        host, _, port = stream.target.rpartition(":")
        super().__init__({"peername": (host, int(port)), "nyx_stream": stream})
        self._stream = stream
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._writing_paused = False
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self._drainer: asyncio.Task[None] | None = None
        self._over = False
        self._loop.call_soon(protocol.connection_made, self)
        self._reader = self._loop.create_task(self._read())

    # ---------------------------------------------------------------- protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Use another protocol."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Give the protocol in use."""
        return self._protocol

    # ---------------------------------------------------------------- reading

    async def _read(self) -> None:
        error: Exception | None = None
        try:
            while True:
                await self._may_read.wait()
                data = await self._stream.read(CHUNK)
                await self._may_read.wait()
                if not data:
                    break
                self._deliver(data)
            protocol = self._protocol
            keep = protocol.eof_received() if isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol) else False
            if keep:
                return
        except OSError as problem:
            error = problem
        except ValueError:
            pass  # closed while it waited
        self._end(error)

    def _deliver(self, data: bytes) -> None:
        protocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            left = memoryview(data)
            while left:
                room = memoryview(protocol.get_buffer(len(left))).cast("B")
                count = min(len(room), len(left))
                room[:count] = left[:count]
                protocol.buffer_updated(count)
                left = left[count:]
        elif isinstance(protocol, asyncio.Protocol):
            protocol.data_received(data)

    def pause_reading(self) -> None:
        """Deliver nothing for a while."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """Deliver again."""
        self._may_read.set()

    def is_reading(self) -> bool:
        """Whether data is delivered."""
        return self._may_read.is_set() and not self._over

    # ---------------------------------------------------------------- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write; a broken stream is told by connection_lost."""
        if self._over or self._stream.is_closing():
            return
        try:
            self._stream.write(data)
        except OSError as error:
            self._end(error)
            return
        if self._stream.unsent > self._high and self._drainer is None:
            self._protocol.pause_writing()
            self._writing_paused = True
            self._drainer = self._loop.create_task(self._drain())

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Write all of them."""
        self.write(b"".join(list_of_data))

    async def _drain(self) -> None:
        try:
            await self._stream.drain()
        except OSError as error:
            self._end(error)
        finally:
            self._drainer = None
            self._writing_paused = False
            self._protocol.resume_writing()

    def can_write_eof(self) -> bool:
        """Half-closing is possible."""
        return True

    def write_eof(self) -> None:
        """Half-close."""
        self._stream.write_eof()

    def get_write_buffer_size(self) -> int:
        """Give the bytes for which the ring had no room yet."""
        return self._stream.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when a protocol is paused; it is resumed when all is written."""
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Give the limits."""
        return self._low, self._high

    # ---------------------------------------------------------------- ends

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self._over or self._stream.is_closing()

    def close(self) -> None:
        """Send what was written, then end."""
        self._end(None)

    def abort(self) -> None:
        """End at once."""
        self._stream.abort()
        self._end(None)

    def _force_close(self, error: Exception | None) -> None:
        """End at once, because of this: asyncio's TLS calls it when a handshake fails."""
        self._stream.abort()
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._over:
            return
        self._over = True
        if error is None:
            self._stream.close()
        else:
            self._stream.abort()
        if self._reader is not asyncio.current_task():
            self._reader.cancel()
        self._loop.call_soon(self._protocol.connection_lost, error)


def open_streams(stream: Stream) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Make asyncio's own reader and writer over a stream."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LIMIT, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = StreamTransport(stream, protocol)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

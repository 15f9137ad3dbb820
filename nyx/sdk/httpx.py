"""httpx over Nyx: `httpx.AsyncClient(transport=NyxTransport(client))`. Needs the package httpx.

Names are resolved at the exit; TLS is between this program and the target. Connections are kept and reused as httpx does it.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpcore
import httpx

from nyx.sdk.client import OPEN_TIME, Client
from nyx.sdk.errors import SdkError, TimedOutError
from nyx.sdk.stream import Stream
from nyx.sdk.transport import open_streams


class NyxTransport(httpx.AsyncBaseTransport):
    """A transport whose connections are streams of one client, of one isolation."""

    def __init__(
        self, client: Client, *, isolation: str | bytes | None = None, verify: ssl.SSLContext | bool = True, connections: int = 32
    ) -> None:
        """`verify` as in httpx; `connections` is how many are open at a time."""
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(verify=verify),
            max_connections=connections,
            network_backend=_Backend(client, isolation),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request through Nyx. Raises the errors of httpx."""
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        asked = httpcore.Request(
            request.method, url, headers=request.headers.raw, content=request.stream, extensions=request.extensions
        )
        try:
            answer = await self._pool.handle_async_request(asked)
        except Exception as error:  # renamed, or raised again
            raise _renamed(error) from error
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


def _renamed(error: Exception) -> Exception:
    """What httpx calls an error of httpcore."""
    name = type(error).__name__
    if type(error).__module__.startswith("httpcore") and isinstance(named := getattr(httpx, name, None), type):
        return named(str(error)) if issubclass(named, httpx.TransportError) else error
    return error


class _Body(httpx.AsyncByteStream):
    """An answer's body."""

    def __init__(self, parts: Any) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._parts:
                yield part
        except Exception as error:  # renamed, or raised again
            raise _renamed(error) from error

    async def aclose(self) -> None:
        await self._parts.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    """How httpcore gets connections."""

    def __init__(self, client: Client, isolation: str | bytes | None) -> None:
        self._client = client
        self._isolation = isolation

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,  # noqa: ARG002, ASYNC109
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        try:
            stream = await self._client.open_stream(
                host, port, isolation=self._isolation, timeout=OPEN_TIME if timeout is None else timeout
            )
        except TimedOutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except (SdkError, ValueError) as error:
            raise httpcore.ConnectError(str(error)) from error
        return _Plain(stream)


class _Plain(httpcore.AsyncNetworkStream):
    """A stream as httpcore wants it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        self._stream.timeout = timeout
        try:
            return await self._stream.read(max_bytes)
        except TimedOutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._stream.timeout = timeout
        try:
            await self._stream.send(buffer)
        except TimedOutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._stream.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        reader, writer = open_streams(self._stream)
        try:
            await writer.start_tls(ssl_context, server_hostname=server_hostname, ssl_handshake_timeout=timeout)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:  # ssl.SSLError is one
            raise httpcore.ConnectError(str(error)) from error
        return _Secret(reader, writer)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.is_readable if info == "is_readable" else None


class _Secret(httpcore.AsyncNetworkStream):
    """A stream with TLS on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._writer.close()

    def get_extra_info(self, info: str) -> Any:
        return self._reader.at_eof() if info == "is_readable" else self._writer.get_extra_info(info)

"""Streams through a running node for commands that carry data: by the SDK's socket where it is, by the proxy where it is not.

Place: `connect` and `bench`. Both ways give asyncio's reader and writer; what goes wrong is a Failure with the exit code that
the command ends with. Source: RFC 1928; docs/sdk.md.
"""

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Final, Self

from control.cli.node import ask, find_socket
from control.cli.state import EXIT_FAILURE, EXIT_NOT_READY, EXIT_TIMEOUT, EXIT_UNREACHABLE, EXIT_USAGE, Failure, State
from nyx.sdk import Client, NotReadyError, SdkError, TimedOutError, UnreachableError

OPEN_TIME: Final = 60.0  # seconds, unless --timeout says otherwise
CHUNK: Final = 1 << 16
WAYS: Final = ("auto", "sdk", "proxy")
_REPLIES: Final = {
    1: "the proxy could not open it",
    2: "the exit's rules do not allow it",
    3: "the network is unreachable",
    4: "the host is unreachable or its name unknown",
    5: "the target refused the connection",
    6: "the target did not answer",
}  # fmt: skip
_ADDRESS_SIZES: Final = {1: 4, 4: 16}

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Carrier:
    """Opens streams through one node. An asynchronous context manager; `way` says by what: sdk or proxy."""

    def __init__(self, state: State, way: str = "auto", streams: int = 1) -> None:
        self._state = state
        self._wanted = way
        self._time = state.timeout or OPEN_TIME
        self._socket = find_socket(state).parent / "sdk.sock"
        self._streams = streams
        self._client: Client | None = None
        self._proxy: tuple[str, int] | None = None
        self.way = ""

    async def __aenter__(self) -> Self:
        """Find the way. Raises Failure."""
        if self._wanted != "proxy":
            client = Client(self._socket, streams=self._streams)
            try:
                await client.start()
            except UnreachableError as error:
                if self._wanted == "sdk":
                    raise Failure(EXIT_UNREACHABLE, "unreachable", f"no stream by the SDK: {error}") from error
            else:
                self._client, self.way = client, "sdk"
                return self
        self._proxy, self.way = _proxy(self._state), "proxy"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._client is not None:
            await self._client.close()

    async def open(self, host: str, port: int) -> Pair:
        """A stream to the target. Raises Failure."""
        try:
            if self._client is not None:
                return await self._client.open_connection(host, port, timeout=self._time)
            async with asyncio.timeout(self._time):
                return await self._by_proxy(host, port)
        except ValueError as error:
            raise Failure(EXIT_USAGE, "usage", str(error)) from error
        except TimedOutError as error:
            raise Failure(EXIT_TIMEOUT, "timeout", str(error)) from error
        except TimeoutError as error:
            raise Failure(EXIT_TIMEOUT, "timeout", f"{host}:{port}: no answer within {self._time:g} s") from error
        except NotReadyError as error:
            raise Failure(EXIT_NOT_READY, "not_ready", str(error)) from error
        except UnreachableError as error:
            raise Failure(EXIT_UNREACHABLE, "unreachable", str(error)) from error
        except SdkError as error:
            raise Failure(EXIT_FAILURE, "refused", str(error)) from error

    async def _by_proxy(self, host: str, port: int) -> Pair:
        assert self._proxy is not None
        name = host.encode("idna") if not host.isascii() else host.encode()
        if not 0 < len(name) < 256:
            raise ValueError(f"{host!r} is no host")
        try:
            reader, writer = await asyncio.open_connection(*self._proxy)
        except OSError as error:
            raise Failure(EXIT_UNREACHABLE, "unreachable", f"the proxy does not answer: {error.strerror or error}") from error
        try:
            writer.write(b"\x05\x01\x00")
            if await reader.readexactly(2) != b"\x05\x00":
                raise Failure(EXIT_FAILURE, "failure", "the proxy does not speak SOCKS5")
            writer.write(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
            code, form = (await reader.readexactly(4))[1::2]
            if code:
                raise Failure(EXIT_FAILURE, "refused", f"{host}:{port}: {_REPLIES.get(code, f'SOCKS reply {code}')}")
            size = _ADDRESS_SIZES.get(form) or (await reader.readexactly(1))[0]
            await reader.readexactly(size + 2)
        except (OSError, EOFError) as error:
            reset(writer)
            raise Failure(EXIT_FAILURE, "failure", f"{host}:{port}: the proxy closed the connection") from error
        except BaseException:
            reset(writer)
            raise
        return reader, writer


def _proxy(state: State) -> tuple[str, int]:
    """Where the node's proxy listens. Raises Failure."""
    address = ask(state, "status")["proxy"]
    if not address:
        raise Failure(EXIT_UNREACHABLE, "unreachable", "this node takes no streams: it has neither proxy.listen nor sdk.enabled")
    host, _, port = str(address).rpartition(":")
    return host.strip("[]"), int(port)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """Carry bytes to the end of file and pass that on; how many. Raises OSError, SdkError where either side breaks."""
    count = 0
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
        count += len(data)
    if writer.can_write_eof():
        writer.write_eof()
    return count


def reset(writer: asyncio.StreamWriter) -> None:
    """End it so that the other side sees a reset, not a proper end."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def join(near: Pair, far: Pair) -> None:
    """Carry both ways until both sides have ended, or one breaks: then neither hears a proper end."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(near[0], far[1]))
            group.create_task(pump(far[0], near[1]))
    except BaseExceptionGroup:
        reset(near[1])
        reset(far[1])
    finally:
        for _, writer in (near, far):
            writer.close()

"""The admin socket: who may speak, how much, and one answer a line.

Only the node's own user and root are served: the socket is 0600 in a 0700 folder, and each connection's peer credentials are
checked as well, because a folder's mode is one mistaken command away from being open. Connections, lines and silence are bounded.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from control import wire
from control.schemas import Document
from nyx.files import private_folder

CONNECTIONS_MAX: Final = 64
REFUSED_MAX: Final = 16  # connections above that are told so; more are closed without a word
REFUSED_SILENCE: Final = 2.0  # seconds that one to be refused has to send its request
SILENCE: Final = 60.0  # seconds a connection may stay without a request, or without reading its answer
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid

Handler = Callable[[str, Mapping[str, Any]], Awaitable[Document]]

_log: Final = logging.getLogger(__name__)


def peer_user(connection: socket.socket) -> int:
    """User id of the process that connected."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def bind(path: Path) -> socket.socket:
    """A listening socket at `path`, 0600 in a 0700 folder, in the place of what a dead process may have left there."""
    private_folder(path.parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(str(temporary))
    finally:
        os.umask(before)
    listener.listen(CONNECTIONS_MAX)
    temporary.rename(path)
    return listener


class Server:
    """Serves one handler on one listening socket."""

    def __init__(self, listener: socket.socket, handler: Handler, allowed: frozenset[int] | None = None) -> None:
        self._listener = listener
        self._handler = handler
        self._allowed = frozenset({0, os.geteuid()}) if allowed is None else allowed
        self._open = {True: 0, False: 0}  # connections of users who are served, and of others: these cannot crowd out those

    async def run(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_unix_server(self._serve, sock=self._listener, limit=wire.LINE_MAX)
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known = peer_user(writer.get_extra_info("socket")) in self._allowed
        self._open[known] += 1
        try:
            if self._open[known] > (CONNECTIONS_MAX + REFUSED_MAX if known else REFUSED_MAX):
                return
            if not known:
                await self._refuse(reader, writer, wire.Refusal("denied", "only the node's own user and root are served"))
            elif self._open[known] > CONNECTIONS_MAX:
                await self._refuse(reader, writer, wire.Refusal("busy", f"{CONNECTIONS_MAX} connections are open"))
            else:
                await self._converse(reader, writer)
        except (OSError, TimeoutError):
            pass  # the peer went away or fell silent: its answer has no reader
        except asyncio.CancelledError:
            pass  # this process ends: nobody waits for the task, and asyncio would log it as a failure
        finally:
            self._open[known] -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refusal: wire.Refusal) -> None:
        """Refuse the first request. It is read first: closing a unix socket over unread bytes would lose the answer."""
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REFUSED_SILENCE):
                await reader.readuntil(b"\n")
        await self._send(writer, wire.refusal(refusal))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                await self._send(
                    writer, wire.refusal(wire.Refusal("bad_request", f"a request has at most {wire.LINE_MAX} bytes"))
                )
                return
            await self._send(writer, await self._answer(line))

    async def _answer(self, line: bytes) -> bytes:
        try:
            op, args = wire.parse_request(line)
            return wire.answer((await self._handler(op, args)).to_json())
        except wire.Refusal as error:
            return wire.refusal(error)
        except Exception:  # noqa: BLE001  one bad request must not end the control process
            _log.exception("a request failed")
            return wire.refusal(wire.Refusal("internal", "this request met a bug; the node's log has it"))

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(line)
        async with asyncio.timeout(SILENCE):
            await writer.drain()

"""The door of the API: run_dir/api.sock, who may come through it, and when gRPC is loaded at all.

gRPC for Python tells nobody who is at the other end of a unix socket. So this process listens itself: each connection's process
must run as this node's user or as root, whatever the permissions of socket and folder are. Only then are its bytes passed on to
gRPC's own socket, which has a name of its own in a folder that nobody else can enter. gRPC is imported and started for the first
connection: a node whose API nobody uses has it neither in its memory nor in the time of its start.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from control.server import bind, peer_user
from nyx.files import private_folder

CONNECTIONS_MAX: Final = 64
CHUNK: Final = 1 << 16
FOLDER: Final = "api"  # of gRPC's own socket, in run_dir
STRANGERS_MAX: Final = 16  # users whose refusal is logged, each once

_log: Final = logging.getLogger(__name__)

Start = Callable[[Path], Awaitable[None]]


class Front:
    """Listens at `path`; `start` makes gRPC listen at another path, once. `allowed`: users that are served."""

    def __init__(self, path: Path, start: Start, allowed: frozenset[int] | None = None) -> None:
        self._path = path
        self._start = start
        self._allowed = frozenset({0, os.geteuid()}) if allowed is None else allowed
        self._inner = path.parent / FOLDER / secrets.token_urlsafe(6)
        self._starting = asyncio.Lock()
        self._started = False
        self._open = 0
        self._strangers: set[int] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        self._clear()
        listener = bind(self._path)
        mine = self._path.stat().st_ino
        try:
            server = await asyncio.start_unix_server(self._serve, sock=listener, limit=CHUNK)
            async with server:
                await server.serve_forever()
        finally:
            listener.close()
            with contextlib.suppress(OSError):  # another life may have its own there by now
                if self._path.stat().st_ino == mine:
                    self._path.unlink()
                self._inner.unlink(missing_ok=True)
                self._inner.parent.rmdir()

    def _clear(self) -> None:
        """An empty folder for gRPC's socket: a life that was killed left its own."""
        private_folder(self._inner.parent)
        for left in self._inner.parent.iterdir():
            left.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS_MAX and self._welcome(writer):
                await self._relay(reader, writer)
        except OSError:
            pass  # somebody went away
        finally:
            self._open -= 1
            writer.transport.abort()

    def _welcome(self, writer: asyncio.StreamWriter) -> bool:
        connection: socket.socket = writer.get_extra_info("socket")
        user = peer_user(connection)
        if user not in self._allowed and user not in self._strangers and len(self._strangers) < STRANGERS_MAX:
            self._strangers.add(user)
            _log.warning("user %d was refused at the API: only the node's own user and root are served", user)
        return user in self._allowed

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._starting:
            if not self._started:
                await self._start(self._inner)
                self._started = True
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._inner, limit=CHUNK)
        try:
            ways = [asyncio.create_task(_pump(reader, inner_writer)), asyncio.create_task(_pump(inner_reader, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            inner_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()

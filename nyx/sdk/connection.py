"""One connection to the daemon: its socket, the shared memory with its slots, and the two wake-ups.

A worker that is killed takes nothing of this along: the socket, the memory and the wake-ups stay open in its keeper, and the next
worker goes on. So the end of the socket means that the daemon itself, or the keeper with all that it kept, is gone.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from nyx.errors import RemoteProtocolError
from nyx.sdk.errors import TimedOutError, UnreachableError
from nyx.sdk.memory import Memory, Slot
from nyx.sdk.signal import Signal
from nyx.sdk.stream import Stream
from nyx.wire.sdk import HOST_MAX, MESSAGE_MAX, Hello, Refusal, Welcome, decode_answer, decode_note

HELLO_TIME: Final = 5.0  # seconds for the daemon's welcome


def isolation_key(isolation: str | bytes | None) -> bytes:
    """What the daemon keeps of an isolation: a digest, empty for none."""
    if isolation is None:
        return b""
    data = isolation.encode() if isinstance(isolation, str) else bytes(isolation)
    return hashlib.sha256(b"nyx sdk isolation" + data).digest()


class Connection:
    """A connection that stands; `made` gives one."""

    def __init__(self, sock: socket.socket, welcome: Welcome, fds: list[int]) -> None:
        """Take the socket and the descriptors, whatever happens. Raises UnreachableError, OSError."""
        memory, self._wake_fd, self._bell = fds
        self._sock = sock
        self.welcome = welcome
        self.ready = welcome.ready
        self.lost = False
        self.changed = Signal()  # a slot is free, the number of ready circuits is another, or the connection is lost
        self.on_note: Callable[[], None] = lambda: None
        self.on_life: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        self._streams: dict[int, Stream] = {}
        try:
            self._memory = Memory(memory, welcome.slots, welcome.ring)
        except BaseException:
            self._close_descriptors()
            raise
        finally:
            os.close(memory)
        fcntl.fcntl(self._bell, fcntl.F_SETFL, os.O_NONBLOCK)
        self._life = self._memory.life
        self._free = list(reversed(self._memory.slots))
        loop = asyncio.get_running_loop()
        self._loop = loop
        loop.add_reader(self._bell, self._on_bell)
        loop.add_reader(sock.fileno(), self._on_message)

    @classmethod
    async def made(cls, path: Path, hello: Hello) -> Self:
        """Connect and be welcomed. Raises UnreachableError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(path))
            sock.send(hello.encode())
            async with asyncio.timeout(HELLO_TIME):
                await _until_readable(sock)
            message, fds, _flags, _address = socket.recv_fds(sock, MESSAGE_MAX, 8, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:  # TimeoutError is one
            sock.close()
            raise UnreachableError(_why(path, error)) from error
        except BaseException:
            sock.close()
            raise
        try:
            answer = decode_answer(message)
            if isinstance(answer, Refusal):
                raise UnreachableError(f"{path}: {answer.text}")
            if len(fds) != 3:
                raise UnreachableError(f"{path}: the daemon's welcome came with {len(fds)} descriptors")
        except (RemoteProtocolError, UnreachableError) as error:
            for fd in fds:
                os.close(fd)
            sock.close()
            raise UnreachableError(str(error)) from error
        return cls(sock, answer, fds)

    # ---------------------------------------------------------------- streams

    @property
    def slots_free(self) -> int:
        """How many more streams may be opened now."""
        return len(self._free)

    @property
    def streams(self) -> list[Stream]:
        """Streams that hold a slot."""
        return list(self._streams.values())

    def open(self, host: str, port: int, key: bytes) -> Stream:
        """Ask for a stream; there is a free slot. Raises ValueError for what cannot be a target."""
        try:
            name = host.encode("ascii" if host.isascii() else "idna")
        except UnicodeError as error:
            raise ValueError(f"{host!r} is no host name") from error
        if not 0 < len(name) <= HOST_MAX or not 0 < port < 65536:
            raise ValueError(f"{host!r} port {port} is no target")
        slot = self._free.pop()
        slot.begin(name, port, key)
        stream = Stream(slot, f"{host}:{port}", self.wake, lambda _stream: self._give_back(slot))
        self._streams[slot.number] = stream
        self.wake()
        return stream

    def _give_back(self, slot: Slot) -> None:
        del self._streams[slot.number]
        if not self.lost:
            self._free.append(slot)
            self.changed.fire()

    def wake(self) -> None:
        """Tell the worker that something moved."""
        if not self.lost:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._wake_fd, 1)

    # ---------------------------------------------------------------- what the worker tells

    def _on_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._bell, 1 << 16)
        for stream in list(self._streams.values()):
            stream.look()
        if self._memory.life != self._life:
            self._life = self._memory.life
            self.on_life()

    def _on_message(self) -> None:
        try:
            message = self._sock.recv(MESSAGE_MAX)
            if message:
                self.ready = decode_note(message).ready
                self.on_note()
                self.changed.fire()
                return
        except BlockingIOError:
            return
        except (OSError, RemoteProtocolError):
            pass
        self.close("the daemon has gone")
        self.on_lost()

    def close(self, why: str) -> None:
        """Let everything go; streams that hold a slot are lost."""
        if self.lost:
            return
        self._loop.remove_reader(self._bell)
        self._loop.remove_reader(self._sock.fileno())
        for stream in list(self._streams.values()):
            stream.look()
        self.lost = True
        for stream in list(self._streams.values()):
            stream.lose(why)
        self._close_descriptors()
        self._memory.close()
        self.changed.fire()

    def _close_descriptors(self) -> None:
        self._sock.close()
        os.close(self._wake_fd)
        os.close(self._bell)


async def _until_readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"{path}: no daemon runs here; start nyxd, or name its run_dir/sdk.sock"
    if isinstance(error, PermissionError):
        return f"{path}: belongs to another user's daemon"
    if isinstance(error, BlockingIOError):
        return f"{path}: the daemon is too busy to take a connection"
    if isinstance(error, TimeoutError | TimedOutError):
        return f"{path}: the daemon did not answer in time"
    return f"{path}: {error.strerror or error}"

"""A stream that looks like a connected TCP socket, for libraries that are given one: http.client, smtplib and their like.

What a socket of the kernel alone can do is missing: it has no descriptor, so neither select nor ssl.wrap_socket takes it. For TLS
use the asyncio side (`StreamWriter.start_tls`) or an adapter. A time limit of 0 means, as for sockets, never to wait.
"""

import errno
import io
import os
import socket
from typing import Any, Protocol, Self

from nyx.sdk.errors import TimedOutError


class BlockingStream(Protocol):
    """What is asked of the stream: nyx.sdk.sync.Stream."""

    timeout: float | None

    @property
    def target(self) -> str:
        """Host and port."""

    def read(self, n: int = -1) -> bytes:
        """Read."""

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read into memory."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all."""

    def write_eof(self) -> None:
        """Half-close."""

    def close(self) -> None:
        """Close."""

    def abort(self) -> None:
        """Give up."""


class Socket:
    """The methods of socket.socket that make sense for an open stream; files made of it keep it open, as with sockets."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    proto = socket.IPPROTO_TCP

    def __init__(self, stream: BlockingStream, timeout: float | None = None) -> None:
        self._stream = stream
        self._files = 0
        self._open = True
        self._over = False  # by shutdown(SHUT_RD)
        self.settimeout(timeout)

    def __repr__(self) -> str:
        return f"<nyx.sdk Socket over {self._stream!r}>"

    # ---------------------------------------------------------------- bytes

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Up to `bufsize` bytes, b"" at the end of file. Raises BlockingIOError in place of waiting when the time limit is 0."""
        self._check(flags)
        if self._over:
            return b""
        try:
            return self._stream.read(max(bufsize, 0))
        except TimedOutError as error:
            raise self._late(error) from None

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """As `recv`, into the caller's memory; how many bytes."""
        self._check(flags)
        if self._over:
            return 0
        view = memoryview(buffer).cast("B")
        try:
            return self._stream.readinto(view[:nbytes] if nbytes else view)
        except TimedOutError as error:
            raise self._late(error) from None

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """Send all of it, and say so."""
        self._check(flags)
        try:
            self._stream.write(data)
        except TimedOutError:
            if not self._never_waits:
                raise  # what was not taken yet is still sent: the stream keeps it
        return memoryview(data).nbytes

    def sendall(self, data: bytes | bytearray | memoryview, flags: int = 0) -> None:
        """Send all of it."""
        self.send(data, flags)

    def _late(self, error: TimedOutError) -> OSError:
        return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) if self._never_waits else error

    def _check(self, flags: int) -> None:
        if not self._open and not self._files:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if flags:
            raise ValueError("a stream of nyx.sdk takes no flags")

    # ---------------------------------------------------------------- ends

    def shutdown(self, how: int) -> None:
        """SHUT_WR half-closes, SHUT_RD lets every later read find the end of file."""
        self._check(0)
        if how in {socket.SHUT_WR, socket.SHUT_RDWR}:
            self._stream.write_eof()
        if how in {socket.SHUT_RD, socket.SHUT_RDWR}:
            self._over = True

    def close(self) -> None:
        """Close, once every file made of it is closed too."""
        self._open = False
        if not self._files:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # ---------------------------------------------------------------- settings

    @property
    def _never_waits(self) -> bool:
        return self._stream.timeout == 0

    def settimeout(self, value: float | None) -> None:
        """Seconds for each later call; None: no limit, 0: never wait."""
        if value is not None and value < 0:
            raise ValueError("a time limit below zero")
        self._stream.timeout = value

    def gettimeout(self) -> float | None:
        """The limit in force."""
        return self._stream.timeout

    def setblocking(self, flag: bool) -> None:  # as socket.socket has it
        """True: no limit, False: never wait."""
        self.settimeout(None if flag else 0)

    def getblocking(self) -> bool:
        """Whether calls may wait."""
        return not self._never_waits

    def setsockopt(self, *_option: Any) -> None:
        """Take every option of TCP and do nothing: small writes leave at once anyway."""

    def getpeername(self) -> tuple[str, int]:
        """Host and port that were asked for."""
        host, _, port = self._stream.target.rpartition(":")
        return host, int(port)

    def fileno(self) -> int:
        """Raises OSError: there is no descriptor."""
        raise io.UnsupportedOperation("a stream of nyx.sdk has no descriptor")

    # ---------------------------------------------------------------- files

    def makefile(
        self, mode: str = "r", buffering: int | None = None, *, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None,
    ) -> Any:  # fmt: skip
        """As socket.socket.makefile: a file that reads, writes, or both."""
        if not set(mode) <= {"r", "w", "b"}:
            raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
        reading, writing = "r" in mode or "w" not in mode, "w" in mode
        raw = _File(self, reading=reading, writing=writing)
        if buffering == 0:
            if "b" not in mode:
                raise ValueError("unbuffered streams must be binary")
            return raw
        size = buffering if buffering is not None and buffering > 0 else io.DEFAULT_BUFFER_SIZE
        file: Any
        if reading and writing:
            file = io.BufferedRWPair(raw, raw, size)
        else:
            file = io.BufferedReader(raw, size) if reading else io.BufferedWriter(raw, size)
        return file if "b" in mode else io.TextIOWrapper(file, encoding, errors, newline)

    def file_opened(self) -> None:
        """A file was made of it."""
        self._files += 1

    def file_closed(self) -> None:
        """One of them was closed."""
        self._files -= 1
        if not self._files and not self._open:
            self._stream.close()


class _File(io.RawIOBase):
    """One file over a socket."""

    def __init__(self, sock: Socket, *, reading: bool, writing: bool) -> None:
        self._sock = sock
        self._reading, self._writing = reading, writing
        sock.file_opened()

    def readable(self) -> bool:
        return self._reading

    def writable(self) -> bool:
        return self._writing

    def readinto(self, buffer: Any) -> int | None:
        try:
            return self._sock.recv_into(memoryview(buffer))
        except BlockingIOError:
            return None

    def write(self, data: Any) -> int:
        return self._sock.send(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._sock.file_closed()

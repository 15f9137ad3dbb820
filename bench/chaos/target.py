"""The target of chaos runs: a TCP server that sends, swallows, echoes, closes and resets as it is asked, and says what it saw.

A request is a letter and a size: D bytes wanted; U so many come, their digest back; H everything up to the end of file, then its
digest and so many bytes, then an end of file; C so many bytes and an end of file; R so many bytes and a reset; X bytes come and
then a reset, which must not arrive as an end of file. What is sent is always the beginning of the same stream of bytes.
"""

import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

REQUEST: Final = struct.Struct(">cQ")
BLOCK: Final = random.Random(7).randbytes(1 << 20)
PART: Final = 1 << 18
_RESET: Final = struct.pack("ii", 1, 0)


def pieces(size: int) -> Iterator[bytes]:
    """The first `size` bytes of what everybody sends."""
    for at in range(0, size, PART):
        start = at % len(BLOCK)
        yield BLOCK[start : start + min(PART, size - at)]


def expected(size: int) -> bytes:
    """SHA-256 of the first `size` bytes."""
    digest = hashlib.sha256()
    for piece in pieces(size):
        digest.update(piece)
    return digest.digest()


def reset(connection: socket.socket) -> None:
    """End a connection by a reset."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


class Target:
    """The server. `pause` is the longest wait for bytes of an upload, `false_ends` counts resets that came as ends of file."""

    def __init__(self) -> None:
        self.pause = 0.0
        self.false_ends = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take nobody more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, struct.error):
            kind, size = REQUEST.unpack(connection.recv(REQUEST.size, socket.MSG_WAITALL))
            answers = {
                b"D": self._send,
                b"U": self._take,
                b"H": self._half,
                b"C": self._close,
                b"R": self._reset,
                b"X": self._expect,
            }
            answers[kind](connection, size)

    @staticmethod
    def _send(connection: socket.socket, size: int) -> None:
        for piece in pieces(size):
            connection.sendall(piece)
        connection.recv(1)

    def _take(self, connection: socket.socket, size: int) -> None:
        digest = hashlib.sha256()
        while size:
            began = time.monotonic()
            part = connection.recv(min(size, PART))
            if not part:
                return
            self.pause = max(self.pause, time.monotonic() - began)
            digest.update(part)
            size -= len(part)
        connection.sendall(digest.digest())
        connection.recv(1)

    def _half(self, connection: socket.socket, size: int) -> None:
        digest = hashlib.sha256()
        while part := connection.recv(PART):
            digest.update(part)
        connection.sendall(digest.digest())
        self._close(connection, size)

    @staticmethod
    def _close(connection: socket.socket, size: int) -> None:
        for piece in pieces(size):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    @staticmethod
    def _reset(connection: socket.socket, size: int) -> None:
        for piece in pieces(size):
            connection.sendall(piece)
        reset(connection)

    def _expect(self, connection: socket.socket, _size: int) -> None:
        while connection.recv(PART):
            pass
        self.false_ends += 1

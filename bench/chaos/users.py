"""Applications of chaos runs: they open streams by SOCKS5 and HTTP CONNECT, move bytes, close in every way, and judge each end.

A stream that is open must carry every byte, whatever dies. A request that is being opened may be refused: by an answer that says
so or by a reset, never by silence or an end of file. Refusals are counted apart and the request is made again.
"""

import base64
import hashlib
import random
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from bench.chaos.target import PART, REQUEST, Target, expected, pieces, reset

PATIENCE: Final = 60  # seconds without a byte or an answer: longer than anything that the proxy waits for
_TRIES: Final = 50


class RefusedError(Exception):
    """The proxy did not open the stream, and said so."""


class FalseEndError(Exception):
    """An end of file where there is none."""


@dataclass
class Tally:
    """What the applications saw. Threads add under the lock."""

    right: Counter[str] = field(default_factory=Counter)  # streams as they should be, by kind
    wrong: Counter[str] = field(default_factory=Counter)  # other bytes than were sent
    lost: Counter[str] = field(default_factory=Counter)  # open streams that ended with an error, by kind and error
    refused: Counter[str] = field(default_factory=Counter)  # while opening, then tried again
    hung: int = 0  # neither an answer nor an end
    false_ends: int = 0
    abandoned: int = 0  # greetings left half-sent on purpose
    pause: float = 0.0  # longest time in which an open stream gave no byte
    opening: float = 0.0  # longest time from a request to its answer, refusals included
    refusals: list[tuple[float, float]] = field(default_factory=list)  # begin and end of each refused request
    lock: threading.Lock = field(default_factory=threading.Lock)


class User:
    """One application thread. `rate` is bytes a second, 0 for all that comes."""

    def __init__(self, target: Target, proxy: int, tally: Tally, seed: int, stop: threading.Event, rate: int = 0) -> None:
        self.target, self.proxy, self.tally, self.stop, self.rate = target, proxy, tally, stop, rate
        self.rng = random.Random(seed)
        self._digests: dict[int, bytes] = {}

    # ------------------------------------------------------------ opening

    def _answer(self, sock: socket.socket, size: int) -> bytes:
        got = sock.recv(size, socket.MSG_WAITALL)
        if len(got) < size:
            raise FalseEndError("an end of file in place of an answer")
        return got

    def _say(self, sock: socket.socket, data: bytes) -> None:
        """Send in one piece, or in two with a moment between."""
        if self.rng.random() < 0.5:
            cut = self.rng.randrange(1, len(data))
            sock.sendall(data[:cut])
            time.sleep(self.rng.uniform(0, 0.1))
            data = data[cut:]
        sock.sendall(data)

    def _socks(self, sock: socket.socket, key: str) -> None:
        self._say(sock, b"\x05\x01" + (b"\x02" if key else b"\x00"))
        if self._answer(sock, 2)[1] == 0x02:
            self._say(sock, b"\x01" + bytes([len(key)]) + key.encode() + b"\x01x")
            self._answer(sock, 2)
        self._say(sock, b"\x05\x01\x00\x01\x7f\x00\x00\x01" + self.target.port.to_bytes(2, "big"))
        reply = self._answer(sock, 10)
        if reply[1]:
            raise RefusedError(f"SOCKS reply {reply[1]}")

    def _http(self, sock: socket.socket, key: str) -> None:
        where = f"127.0.0.1:{self.target.port}"
        pair = f"Proxy-Authorization: Basic {base64.b64encode(f'{key}:x'.encode()).decode()}\r\n" if key else ""
        self._say(sock, f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{pair}\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._answer(sock, 1)
        status = head.split(b" ", 2)[1].decode()
        if status != "200":
            raise RefusedError(f"HTTP status {status}")

    def _try(self, key: str, *, http: bool) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.proxy), PATIENCE)
        try:
            (self._http if http else self._socks)(sock, key)
        except BaseException:
            reset(sock)
            raise
        return sock

    def open(self, key: str = "", *, http: bool = False) -> socket.socket | None:
        """A stream to the target, tried again while it is refused; None when that cannot be."""
        for _ in range(_TRIES):
            began = time.monotonic()
            try:
                return self._try(key, http=http)
            except TimeoutError:
                self._count("hung")
                return None
            except FalseEndError:
                self._count("false_ends")
                return None
            except (RefusedError, ConnectionError) as error:
                with self.tally.lock:
                    self.tally.refused[str(error) if isinstance(error, RefusedError) else type(error).__name__] += 1
                    self.tally.refusals.append((began, time.monotonic()))
                time.sleep(self.rng.uniform(0.01, 0.1))
            finally:
                self.tally.opening = max(self.tally.opening, time.monotonic() - began)
        self._count("hung")
        return None

    def _count(self, name: str) -> None:
        with self.tally.lock:
            setattr(self.tally, name, getattr(self.tally, name) + 1)

    # ------------------------------------------------------------ kinds of streams

    def _read(self, sock: socket.socket, size: int) -> bytes:
        """Digest of the next `size` bytes."""
        digest = hashlib.sha256()
        while size:
            began = time.monotonic()
            part = sock.recv(min(size, PART))
            if not part:
                raise FalseEndError("the stream ended early")
            self.tally.pause = max(self.tally.pause, time.monotonic() - began)
            digest.update(part)
            size -= len(part)
            if self.rate:
                time.sleep(len(part) / self.rate)
        return digest.digest()

    def _write(self, sock: socket.socket, size: int) -> None:
        for piece in pieces(size):
            sock.sendall(piece)
            if self.rate:
                time.sleep(len(piece) / self.rate)

    def _should(self, size: int) -> bytes:
        return self._digests.setdefault(size, expected(size))

    def download(self, sock: socket.socket, size: int) -> bool:
        """So many bytes come."""
        sock.sendall(REQUEST.pack(b"D", size))
        return self._read(sock, size) == self._should(size)

    def upload(self, sock: socket.socket, size: int) -> bool:
        """So many bytes go, their digest comes."""
        sock.sendall(REQUEST.pack(b"U", size))
        self._write(sock, size)
        return self._answer(sock, 32) == self._should(size)

    def half_close(self, sock: socket.socket, size: int) -> bool:
        """Bytes go and end; their digest comes, and bytes, and an end."""
        sock.sendall(REQUEST.pack(b"H", size))
        self._write(sock, size)
        sock.shutdown(socket.SHUT_WR)
        return self._answer(sock, 32) == self._should(size) and self._whole(sock, size)

    def close(self, sock: socket.socket, size: int) -> bool:
        """Bytes come and end."""
        sock.sendall(REQUEST.pack(b"C", size))
        return self._whole(sock, size)

    def _whole(self, sock: socket.socket, size: int) -> bool:
        return self._read(sock, size) == self._should(size) and sock.recv(1) == b""

    def reset_by_target(self, sock: socket.socket, size: int) -> bool:
        """Bytes come, perhaps not all, and a reset."""
        sock.sendall(REQUEST.pack(b"R", size))
        try:
            while sock.recv(PART):
                pass
        except ConnectionResetError:
            return True
        raise FalseEndError("a reset arrived as an end of file")

    def reset_by_us(self, sock: socket.socket, size: int) -> bool:
        """Bytes go and a reset, which the target judges."""
        sock.sendall(REQUEST.pack(b"X", size))
        self._write(sock, size)
        reset(sock)
        return True

    # ------------------------------------------------------------ lives

    def one(self, kind: str, size: int, key: str = "", *, http: bool = False) -> None:
        """One stream from its opening to its end, counted."""
        sock = self.open(key, http=http)
        if sock is None:
            return
        try:
            with sock:
                right = getattr(self, kind)(sock, size)
        except FalseEndError:
            self._count("false_ends")
        except TimeoutError:
            self._count("hung")
        except OSError as error:
            with self.tally.lock:
                self.tally.lost[f"{kind}: {error.strerror or error}"] += 1
        else:
            with self.tally.lock:
                (self.tally.right if right else self.tally.wrong)[kind] += 1

    def bulk(self, size: int) -> None:
        """Big downloads and uploads in turn, until told to stop."""
        kinds = ["download", "upload"]
        self.rng.shuffle(kinds)
        while not self.stop.is_set():
            self.one(kinds[0], size)
            kinds.reverse()

    def mixed(self, most: int) -> None:
        """Small streams of every kind, half of them under a new isolation key, and greetings left half-sent."""
        kinds = ["download", "upload", "half_close", "close", "reset_by_target", "reset_by_us", "abandon"]
        while not self.stop.is_set():
            kind = self.rng.choice(kinds)
            key = self.rng.randbytes(8).hex() if self.rng.random() < 0.5 else ""
            if kind == "abandon":
                self.abandon()
            else:
                self.one(kind, self.rng.choice([1, 1000, 100_000, most]), key, http=self.rng.random() < 0.3)
            time.sleep(self.rng.uniform(0, 0.1))

    def abandon(self) -> None:
        """Half a greeting, a moment, gone."""
        whole = self.rng.choice([b"\x05\x01\x02", b"\x05\x01\x00\x05\x01\x00\x01\x7f", b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n"])
        with socket.create_connection(("127.0.0.1", self.proxy), PATIENCE) as sock:
            sock.sendall(whole[: self.rng.randrange(1, len(whole))])
            self.stop.wait(self.rng.uniform(0, 0.5))
        self._count("abandoned")

"""Names to addresses at the exit: getaddrinfo in a few threads, so that the worker never waits for it.

`submit` hands a name over, the descriptor `fileno()` becomes readable when answers are there, `collect` gives them. Threads
start with the first name and are daemons. A look-up cannot be cut short: its caller stops waiting (the exit's deadline), the
thread comes back when the system's resolver gives up. Nothing is cached: an answer's age would tell one circuit what another
asked for; the system's resolver may keep a cache of its own.
"""

import contextlib
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, NamedTuple

from nyx.path.policy import Address

THREADS_MAX: Final = 8
QUEUE_MAX: Final = 256  # names that wait for a thread; more are refused
ADDRESSES_MAX: Final = 16  # of one name; the rest is not looked at
_STACK: Final = 512 * 1024  # bytes; glibc's resolver needs less than 128 KiB

LookUp = Callable[[str], list[Address]]


class Answer(NamedTuple):
    """What became of a look-up: addresses in the order to try, none when the name does not resolve."""

    key: int
    addresses: list[Address]


def look_up(name: str) -> list[Address]:
    """Addresses of a name from the system's resolver, in its order. Raises OSError or UnicodeError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    texts = [str(entry[4][0]) for entry in found]
    return [ip_address(text) for text in dict.fromkeys(texts) if "%" not in text]


class Resolver:
    """A bounded number of look-ups at a time."""

    def __init__(self, threads: int = THREADS_MAX, lookup: LookUp = look_up) -> None:
        self._lookup = lookup
        self._threads_max = threads
        self._threads: list[threading.Thread] = []
        self._questions: queue.Queue[tuple[int, str] | None] = queue.Queue(QUEUE_MAX)
        self._answers: deque[Answer] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._keys = 0
        self._waiting = 0

    def fileno(self) -> int:
        """Readable when there are answers."""
        return self._wake

    def submit(self, name: str) -> int | None:
        """Ask for a name; the key of its answer, or None when too many are waiting."""
        if self._waiting >= len(self._threads) and len(self._threads) < self._threads_max:
            with contextlib.suppress(RuntimeError):  # the system has no room for a thread: those that there are must do
                self._start()
        if not self._threads:
            return None
        key = self._keys
        try:
            self._questions.put_nowait((key, name))
        except queue.Full:
            return None
        self._keys += 1
        self._waiting += 1
        return key

    def collect(self) -> list[Answer]:
        """All answers that are there."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        found: list[Answer] = []
        while self._answers:
            found.append(self._answers.popleft())
        self._waiting -= len(found)
        return found

    def close(self) -> None:
        """Let the threads end as they come back; the descriptor is closed."""
        with self._lock:
            wake, self._wake = self._wake, -1
        with contextlib.suppress(queue.Full):
            for _ in self._threads:
                self._questions.put_nowait(None)
        if wake >= 0:
            os.close(wake)

    def _start(self) -> None:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=self._work, name="resolver", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
        self._threads.append(thread)

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            key, name = question
            try:
                addresses = self._lookup(name)[:ADDRESSES_MAX]
            except (OSError, UnicodeError, ValueError):
                addresses = []
            self._answers.append(Answer(key, addresses))
            with self._lock:
                if self._wake >= 0:  # else the number may be another descriptor's by now
                    os.eventfd_write(self._wake, 1)

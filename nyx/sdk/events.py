"""What happens to a client, for those who want to know: by callback or by asynchronous iteration.

Nobody is waited for: an iterator that falls behind loses the oldest events.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from enum import StrEnum
from typing import Final, NamedTuple

KEPT: Final = 256  # events that an iterator may be behind


class Kind(StrEnum):
    """What happened."""

    READY = "ready"  # the first circuit is there, or is again
    CIRCUITS = "circuits"  # the number of ready circuits is another
    STREAM_CLOSED = "stream closed"  # the daemon is through with the stream to `target`
    WORKER_RESTARTED = "worker restarted"  # streams went on
    DAEMON_LOST = "daemon lost"  # its streams are lost; the client connects again by itself
    DAEMON_RESTARTED = "daemon restarted"  # connected again, to another start of it
    RECONNECTED = "reconnected"  # connected again, to the same


class Event(NamedTuple):
    """One event; `circuits` is the number of those that are ready."""

    kind: Kind
    circuits: int = 0
    target: str = ""


class Events:
    """Who listens."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Event], None]] = []

    def tell(self, event: Event) -> None:
        """Give the event to all. What a callback raises goes to the event loop's handler."""
        for callback in list(self._callbacks):
            asyncio.get_running_loop().call_soon(self._call, callback, event)

    def _call(self, callback: Callable[[Event], None], event: Event) -> None:
        if callback in self._callbacks:  # and was not taken back meanwhile
            callback(event)

    def add(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call this with every event; gives what stops it."""
        self._callbacks.append(callback)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return remove

    async def iterate(self) -> AsyncGenerator[Event, None]:
        """Every event from the first step on."""
        waiting: asyncio.Queue[Event] = asyncio.Queue(KEPT)

        def put(event: Event) -> None:
            if waiting.full():
                waiting.get_nowait()
            waiting.put_nowait(event)

        remove = self.add(put)
        try:
            while True:
                yield await waiting.get()
        finally:
            remove()

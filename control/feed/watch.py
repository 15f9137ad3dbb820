"""One look at the node after another, for all who want to know what happens: nyxctl, the ZeroMQ feed and the API.

Each event gets a number within this life of the control process, and the last KEPT stay for those who come back. Whoever reads
slowly finds its place gone; nobody is waited for and nothing is kept for anybody in particular.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from control.feed.events import Look, between, look
from control.pages import Pages
from control.schemas import Event, Status
from control.service import Service

KEPT: Final = 1024  # events

_log: Final = logging.getLogger(__name__)


class Told(NamedTuple):
    """An event, when it was told, and its number within this life, from 1."""

    sequence: int
    time: float
    event: Event


Listener = Callable[[Status, Sequence[Told]], Awaitable[None]]


class Watch:
    """Looks at the node every `interval` seconds once `start` was called; `listeners` are called after each look."""

    def __init__(self, service: Service, pages: Pages, interval: float, clock: Callable[[], float] = time.time) -> None:
        self.life = secrets.token_hex(8)
        self.listeners: list[Listener] = []
        self._service = service
        self._pages = pages
        self._interval = interval
        self._clock = clock
        self._before: Look | None = None
        self._kept: deque[Told] = deque(maxlen=KEPT)
        self._sequence = 0
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def last(self) -> int:
        """Number of the last event; 0: there was none."""
        return self._sequence

    def start(self) -> None:
        """Begin to look, if nobody did."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def ended(self) -> None:
        """Wait to be cancelled, and look no more then."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self._task is not None:
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception:  # noqa: BLE001  a bug here must not end the control process
                _log.exception("a look at the node failed")
            await asyncio.sleep(self._interval)

    async def _turn(self) -> None:
        status = await self._service.status()
        now = look(status, self._pages)
        told = [self.add(event) for event in between(self._before, now)]
        self._before = now
        for listener in self.listeners:
            await listener(status, told)

    def add(self, event: Event) -> Told:
        """Number an event and tell it."""
        self._sequence += 1
        told = Told(self._sequence, self._clock(), event)
        self._kept.append(told)
        self._more.set()
        self._more = asyncio.Event()
        return told

    def after(self, sequence: int) -> tuple[list[Told], bool]:
        """Kept events with a higher number, and whether these are all that there were."""
        first = self._sequence - len(self._kept)
        found = [told for told in self._kept if told.sequence > sequence]
        return found, sequence >= first

    async def wait(self) -> None:
        """Wait until there is an event more."""
        await self._more.wait()

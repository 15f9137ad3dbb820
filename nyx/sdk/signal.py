"""Waiting for "something changed", with a time limit: the one primitive of the SDK's coroutines.

A waiter looks at its condition, waits, and looks again; a signal that nobody waits for is forgotten.
"""

import asyncio

from nyx.sdk.errors import TimedOutError


class Signal:
    """Any number of waiters, all woken by each `fire`. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def fire(self) -> None:
        """Wake whoever waits now."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self, timeout: float | None, what: str) -> None:  # noqa: ASYNC109  # one timer, not a scope, on the data path
        """Until the next `fire`. Raises TimedOutError after `timeout` seconds; `what` completes its sentence."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.add(waiter)
        timer = None if timeout is None else loop.call_later(max(timeout, 0), _expire, waiter, f"{what} in time")
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()


def _expire(waiter: asyncio.Future[None], text: str) -> None:
    if not waiter.done():
        waiter.set_exception(TimedOutError(text))

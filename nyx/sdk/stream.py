"""A stream, as coroutines: read, write, half-close, close, abort.

Bytes that came stay in the shared ring until a call returns them, so a cancelled or timed-out read loses nothing. `timeout`, in
seconds, bounds every wait for the other side; a call that moves bytes bit by bit may take longer in all.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final, Self

from nyx.sdk.errors import ResetError, SdkError, StreamLostError
from nyx.sdk.memory import Slot
from nyx.sdk.signal import Signal
from nyx.wire.sdk import Outcome, Phase

CHUNK: Final = 1 << 16  # what iteration gives at most at a time


class Stream:
    """One open stream. Close it, or use it as an asynchronous context manager."""

    def __init__(self, slot: Slot, target: str, wake: Callable[[], None], over: Callable[["Stream"], None]) -> None:
        """`wake` tells the worker that something moved; `over` is called once, when the slot is free again."""
        self.target = target
        self.timeout: float | None = None
        self._slot: Slot | None = slot
        self._wake = wake
        self._over = over
        self._signal = Signal()
        self._pending = bytearray()  # written, not in the ring yet
        self._kept = b""  # taken by a call that was broken off
        self._phase, self._outcome = Phase.NONE, Outcome.OK
        self._eof_written = False  # by the application
        self._eof_put = False  # and stored
        self._eof_read = False
        self._closed = False
        self._lost = ""
        self._tasted = 0  # bytes taken since the worker was told

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._phase.name.lower()
        return f"<Stream to {self.target}, {state}>"

    # ---------------------------------------------------------------- what the connection calls

    def look(self) -> None:
        """The worker moved something: write on, notice ends, wake who waits."""
        slot = self._slot
        if slot is None:
            return
        self._phase, self._outcome = slot.state()
        if self._pending and self._phase is Phase.OPENED:
            self._put()
        self._settle()
        self._signal.fire()

    def lose(self, why: str) -> None:
        """The daemon that kept the stream is gone. What stands in the ring can still be read."""
        self._lost = why
        self._pending.clear()
        self._keep()
        self._signal.fire()

    def on_over(self, callback: Callable[["Stream"], None]) -> None:
        """Call this as well when the daemon is through with the stream."""
        before = self._over

        def both(stream: "Stream") -> None:
            before(stream)
            callback(stream)

        self._over = both

    def _keep(self) -> None:
        """Take what is left out of the slot, which will be unmapped or reused."""
        slot, self._slot = self._slot, None
        if slot is not None:
            if not self._closed:
                self._eof_read = slot.complete
                self._kept += slot.take(slot.available)
            self._over(self)

    def _settle(self) -> None:
        """An ended stream gives its slot back as soon as nothing is left in it."""
        slot = self._slot
        if slot is not None and self._phase is Phase.ENDED and (self._closed or not slot.available):
            self._keep()

    # ---------------------------------------------------------------- opening

    async def opened(self, timeout: float | None) -> Outcome:  # noqa: ASYNC109  # see Signal.wait
        """Wait for the answer; OK, or why not. Raises StreamLostError and TimedOutError."""
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while self._phase not in {Phase.OPENED, Phase.ENDED}:
            if self._lost:
                raise StreamLostError(f"{self.target}: {self._lost}")
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            await self._signal.wait(left, f"{self.target}: no answer")
        return self._outcome if self._phase is Phase.ENDED else Outcome.OK

    # ---------------------------------------------------------------- reading

    async def read(self, n: int = -1) -> bytes:
        """Up to n bytes, at least one; b"" at the other side's end of file. n < 0: everything up to there."""
        if n < 0:
            return await self._read_all()
        if n == 0 or not await self._readable():
            return b""
        return self._take(n)

    async def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read into memory of the caller; how many bytes, 0 at the end of file."""
        target = memoryview(buffer).cast("B")
        if not len(target) or not await self._readable():
            return 0
        if self._kept or self._slot is None:
            data = self._take(len(target))
            target[: len(data)] = data
            return len(data)
        count = self._slot.take_into(target)
        self._taken(count)
        return count

    async def readexactly(self, n: int) -> bytes:
        """Exactly n bytes. Raises asyncio.IncompleteReadError at the end of file; what came before is in it."""
        parts: list[bytes] = []
        missing = n
        try:
            while missing > 0:
                if not await self._readable():
                    raise asyncio.IncompleteReadError(b"".join(parts), n)
                parts.append(self._take(missing))
                missing -= len(parts[-1])
        except (asyncio.CancelledError, SdkError):
            self._kept = b"".join(parts) + self._kept
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Bytes up to and with the separator.

        Raises asyncio.IncompleteReadError when the end of file comes first, asyncio.LimitOverrunError when more than a ring's
        bytes hold no separator: they stay.
        """
        if not separator:
            raise ValueError("an empty separator")
        seen = 0
        while True:
            count = len(self._kept) + (self._slot.available if self._slot else 0)
            if count > seen:
                start = max(0, seen - len(separator) + 1)
                found = self._peek(start, count - start).find(separator)
                if found >= 0:
                    return await self.readexactly(start + found + len(separator))
                seen = count
            if self._slot is not None and self._slot.available >= self._slot.ring:
                raise asyncio.LimitOverrunError("no separator in the bytes that a stream keeps", seen)
            if not await self._more(seen):
                raise asyncio.IncompleteReadError(await self.readexactly(seen), None)

    async def readline(self) -> bytes:
        """Read a line; the last one may have no end."""
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while data := await self.read(CHUNK):
            yield data

    async def _read_all(self) -> bytes:
        parts: list[bytes] = []
        try:
            while await self._readable():
                parts.append(self._take(1 << 30))
        except (asyncio.CancelledError, SdkError):
            self._kept = b"".join(parts) + self._kept
            raise
        return b"".join(parts)

    @property
    def is_readable(self) -> bool:
        """Whether a read would not wait: bytes, the end of file, or an error are there."""
        return self._slot is None or bool(self._kept) or self._slot.available > 0 or self._slot.complete

    def at_eof(self) -> bool:
        """Whether everything was read and the other side has finished."""
        slot = self._slot
        return not self._kept and (self._eof_read if slot is None else slot.complete and not slot.available)

    async def _readable(self) -> bool:
        """Wait until a byte can be taken; False at the end of file."""
        if self._closed:
            raise ValueError(f"{self.target}: the stream is closed")
        return await self._more(0)

    async def _more(self, have: int) -> bool:
        """Wait until more than `have` bytes can be taken; False at the end of file. Raises ResetError, StreamLostError."""
        while True:
            slot = self._slot
            over = self._eof_read if slot is None else slot.complete  # before the bytes are counted: none come after it
            if len(self._kept) + (slot.available if slot else 0) > have:
                return True
            if over:
                self._settle()
                return False
            self._raise_if_broken()
            await self._signal.wait(self.timeout, f"{self.target}: nothing to read")

    def _peek(self, start: int, count: int) -> bytes:
        kept = self._kept[start : start + count]
        behind = max(0, start - len(self._kept))
        return kept + (self._slot.peek(behind, count - len(kept)) if self._slot and count > len(kept) else b"")

    def _take(self, n: int) -> bytes:
        if self._kept:
            data, self._kept = self._kept[:n], self._kept[n:]
            return data
        assert self._slot is not None
        data = self._slot.take(min(n, self._slot.available))
        self._taken(len(data))
        return data

    def _taken(self, count: int) -> None:
        """Tell the worker that there is room, when that is worth a wake-up."""
        slot = self._slot
        assert slot is not None
        self._tasted += count
        if self._tasted >= slot.ring // 4:
            self._tasted = 0
            self._wake()
        self._settle()

    # ---------------------------------------------------------------- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write without waiting: what the ring has no room for is kept. Follow it with `drain`."""
        if self._closed or self._eof_written:
            raise ValueError(f"{self.target}: nothing can be written after the end")
        self._raise_if_unwritable()
        if self._pending or self._slot is None:
            self._pending += data
            return
        view = memoryview(data).cast("B")
        count = self._slot.put(view)
        if count:
            self._wake()
        if count < len(view):
            self._pending += view[count:]

    async def drain(self) -> None:
        """Wait until what was written is in the hands of the daemon. Raises ResetError, StreamLostError, TimedOutError."""
        while True:
            self._raise_if_unwritable()
            if not self._pending:
                return
            await self._signal.wait(self.timeout, f"{self.target}: nothing could be written")

    async def flushed(self) -> None:
        """Wait until nothing written waits for room in the ring, or never will."""
        while self._pending and self._slot is not None:
            await self._signal.wait(None, "")

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Write and drain."""
        self.write(data)
        await self.drain()

    def write_eof(self) -> None:
        """Half-close: the other side reads the end of file after what was written. Reading goes on."""
        if not self._eof_written:
            self._eof_written = True
            self._put()

    def can_write_eof(self) -> bool:
        """Half-closing is always possible."""
        return True

    @property
    def unsent(self) -> int:
        """Written bytes for which the ring had no room yet."""
        return len(self._pending)

    def _put(self) -> None:
        slot = self._slot
        if slot is None:
            return
        moved = 0
        if self._pending:
            with memoryview(self._pending) as view:
                moved = slot.put(view)
            del self._pending[:moved]
        if self._eof_written and not self._eof_put and not self._pending:
            self._eof_put = True
            slot.finish()
            if self._closed:
                slot.close()
            moved = 1
        if moved:
            self._wake()

    # ---------------------------------------------------------------- ends

    def close(self) -> None:
        """Read no more; what was written is still sent, then the stream ends. Does not wait."""
        if self._closed:
            return
        self._closed = True
        self._kept = b""
        if self._eof_put and self._slot is not None:
            self._slot.close()
            self._wake()
        self.write_eof()
        self._settle()
        self._signal.fire()

    def abort(self) -> None:
        """Give up what was not sent and end the stream; the other side sees a reset."""
        if self._closed and self._phase is Phase.ENDED:
            return
        self._closed = self._eof_written = self._eof_put = True
        self._pending.clear()
        if self._slot is not None:
            self._slot.abort()
            self._wake()
        self._settle()
        self._signal.fire()

    def is_closing(self) -> bool:
        """Whether `close` or `abort` was called."""
        return self._closed

    async def wait_closed(self) -> None:
        """Wait until the daemon is through with a closed stream. Raises StreamLostError if it went away before."""
        while self._slot is not None:
            await self._signal.wait(self.timeout, f"{self.target}: the stream did not end")
        if self._lost:
            raise StreamLostError(f"{self.target}: {self._lost}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close after success, abort after an exception."""
        if kind is None:
            self.close()
        else:
            self.abort()

    def _raise_if_broken(self) -> None:
        if self._lost:
            raise StreamLostError(f"{self.target}: {self._lost}")
        if self._phase is Phase.ENDED and self._outcome in {Outcome.SHUTDOWN, Outcome.RESTARTED}:
            raise StreamLostError(f"{self.target}: {self._outcome.text}")
        if self._phase is Phase.ENDED:
            raise ResetError(self.target, self._outcome if self._outcome is not Outcome.OK else Outcome.CANCELLED)

    def _raise_if_unwritable(self) -> None:
        if self._lost or (self._phase is Phase.ENDED and not self._eof_put):
            self._raise_if_broken()
        slot = self._slot
        if slot is not None and not self._eof_put and (outcome := slot.stopped) is not None:
            raise ResetError(self.target, outcome)

"""The application's end of a slot: words and rings in the memory that the worker made (nyx/wire/sdk.py has the protocol).

Nothing here waits or wakes: callers signal the worker after a call that returns something. Bytes are copied before the word that
announces them is stored; each word is one aligned 8-byte store, and x86-64 keeps stores in the order in which they were made.
"""

import fcntl
import mmap
import os
import platform
from typing import Final

from nyx.sdk.errors import UnreachableError
from nyx.wire.sdk import (
    DOWN_END,
    DOWN_HEAD,
    DOWN_TAIL,
    HEADER_LIFE,
    HOST,
    HOST_SIZE,
    ISOLATED,
    KEY,
    PAGE,
    PORT,
    STATE,
    UP_END,
    UP_HEAD,
    UP_STOP,
    UP_TAIL,
    VERB,
    Outcome,
    Phase,
    Verb,
    memory_size,
    read_state,
    slot_at,
    verb_word,
)

_SEALED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Memory:
    """The memory of one connection: its slots, and how often its worker was started again."""

    def __init__(self, fd: int, slots: int, ring: int) -> None:
        """Map the memfd, which must have its size for good. Raises UnreachableError."""
        if platform.machine() not in {"x86_64", "AMD64"}:
            raise UnreachableError(
                "nyx.sdk needs an x86-64 processor: others may store a position before the bytes that it announces"
            )
        size = memory_size(slots, ring)
        try:
            right = os.fstat(fd).st_size == size and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALED == _SEALED
        except OSError:
            right = False
        if not right:
            raise UnreachableError("the daemon gave memory of another size than it said")
        self._pages = mmap.mmap(fd, size)
        self._view = memoryview(self._pages)
        self._header = self._view[:PAGE].cast("q")
        self.slots = [Slot(self._view, number, ring) for number in range(slots)]

    @property
    def life(self) -> int:
        """How often the worker was started again since this memory is."""
        return self._header[HEADER_LIFE]

    def close(self) -> None:
        """Unmap. No slot may be used afterwards."""
        for slot in self.slots:
            slot.release()
        self._header.release()
        self._view.release()
        self._pages.close()


class Slot:
    """One slot: the streams that use it, one after the other, are its generations."""

    def __init__(self, view: memoryview, number: int, ring: int) -> None:
        at = slot_at(number, ring)
        self.number = number
        self.ring = ring
        self.generation = 0
        self._page = view[at : at + PAGE]
        self._words = self._page.cast("q")
        self._up = view[at + PAGE : at + PAGE + ring]
        self._down = view[at + PAGE + ring : at + PAGE + 2 * ring]
        self._head = 0  # what UP_HEAD and DOWN_TAIL say
        self._tail = 0

    def release(self) -> None:
        """Let the views go."""
        for view in (self._words, self._page, self._up, self._down):
            view.release()

    # ---------------------------------------------------------------- a stream's life

    def begin(self, host: bytes, port: int, key: bytes) -> None:
        """Ask for a stream in the next generation."""
        words = self._words
        self._head = self._tail = 0
        words[UP_HEAD] = words[DOWN_TAIL] = words[UP_END] = 0
        words[PORT], words[HOST_SIZE], words[ISOLATED] = port, len(host), int(bool(key))
        self._page[HOST : HOST + len(host)] = host
        self._page[KEY : KEY + len(key)] = key
        self.generation += 1
        words[VERB] = verb_word(self.generation, Verb.OPEN)

    def state(self) -> tuple[Phase, Outcome]:
        """How far the worker is with this generation."""
        generation, phase, outcome = read_state(self._words[STATE])
        return (phase, outcome) if generation == self.generation else (Phase.NONE, Outcome.OK)

    def finish(self) -> None:
        """Half-close: nothing is put after this."""
        self._words[UP_END] = self._head + 1

    def close(self) -> None:
        """Nothing is read any more; what was put is still sent."""
        self._words[VERB] = verb_word(self.generation, Verb.CLOSE)

    def abort(self) -> None:
        """Give up."""
        self._words[VERB] = verb_word(self.generation, Verb.ABORT)

    @property
    def stopped(self) -> Outcome | None:
        """Why the other side reads no more, if it does not."""
        word = self._words[UP_STOP]
        return Outcome(word - 1) if 0 < word <= len(Outcome) else None

    # ---------------------------------------------------------------- bytes

    def put(self, data: memoryview) -> int:
        """Put as much as there is room for; how much."""
        ring, head = self.ring, self._head
        count = min(ring - (head - self._words[UP_TAIL]), len(data))
        if count <= 0:
            return 0
        at = head & (ring - 1)
        first = min(count, ring - at)
        self._up[at : at + first] = data[:first]
        if first < count:
            self._up[: count - first] = data[first:count]
        self._head = self._words[UP_HEAD] = head + count
        return count

    @property
    def taken(self) -> bool:
        """Whether the worker took everything that was put."""
        return self._words[UP_TAIL] == self._head

    @property
    def available(self) -> int:
        """Bytes that can be taken."""
        return self._words[DOWN_HEAD] - self._tail

    @property
    def complete(self) -> bool:
        """Whether the other side has finished, and nothing comes after what can be taken."""
        return self._words[DOWN_END] != 0

    def peek(self, start: int, count: int) -> bytes:
        """Bytes from `start` on of those that can be taken; they stay."""
        at = (self._tail + start) & (self.ring - 1)
        first = min(count, self.ring - at)
        if first == count:
            return bytes(self._down[at : at + count])
        return b"".join((self._down[at : at + first], self._down[: count - first]))

    def take(self, count: int) -> bytes:
        """Take so many bytes; they are there."""
        data = self.peek(0, count)
        self._tail += count
        self._words[DOWN_TAIL] = self._tail
        return data

    def take_into(self, target: memoryview) -> int:
        """Take what fits and is there."""
        count = min(len(target), self.available)
        at = self._tail & (self.ring - 1)
        first = min(count, self.ring - at)
        target[:first] = self._down[at : at + first]
        if first < count:
            target[first:count] = self._down[: count - first]
        self._tail += count
        self._words[DOWN_TAIL] = self._tail
        return count

"""What is wrong with a node or a worker now: conditions with a code and a sentence each, for as long as their cause lasts.

Place on a packet's way: none; looked at once a second. A condition stands in `nyxctl status` while it lasts. The log gets
one line when it begins and one when it is over.
A sentence names what to do; it never names a peer, a target or a stream.
"""

import os
import resource
from collections.abc import Callable
from typing import Final

from shards.say import say

SECOND: Final = 1_000_000_000
BUFFER_LOW: Final = 1 << 20  # bytes of a receive buffer below which bursts of several circuits get lost
STARVED: Final = 10 * SECOND  # after the last refused descriptor the shortage counts as over

Write = Callable[[str, str], object]  # level, message


class Conditions:
    """Everything that is wrong now, by code. `who` begins each line of the log, where it is not of the process that writes."""

    def __init__(self, who: str = "", write: Write = say) -> None:
        self._who = f"{who}: " if who else ""
        self._write = write
        self._texts: dict[str, str] = {}

    def judge(self, code: str, text: str | None) -> None:
        """What is the matter with `code`: a sentence, or None while nothing is. Changes are logged, each once."""
        before = self._texts.get(code)
        if text is None:
            if before is not None:
                del self._texts[code]
                self._write("info", f"{self._who}over: {before}")
            return
        self._texts[code] = text
        if before is None:
            self._write("warning", f"{self._who}{text}")

    @property
    def texts(self) -> list[str]:
        """The sentences, oldest condition first."""
        return list(self._texts.values())


def buffer_condition(granted: int, asked: int) -> str | None:
    """What is wrong with a receive buffer of `granted` bytes, as the kernel counts them: it grants twice what it was asked."""
    if granted >= BUFFER_LOW:
        return None
    if granted >= 2 * asked:
        low = BUFFER_LOW >> 10
        return f"the receive buffer has {granted >> 10} KiB, as node.receive_buffer asks: below {low} KiB bursts get lost"
    return f"the kernel grants {granted >> 10} KiB of receive buffer, so bursts get lost; raise net.core.rmem_max to {asked}"


class Shortage:
    """Whether descriptors ran out: from a refusal until none came for a while."""

    def __init__(self) -> None:
        self._seen = 0
        self._until = 0

    def condition(self, refused: int, now: int) -> str | None:
        """`refused`: how often the system has had no descriptor for us."""
        if refused != self._seen:
            self._seen, self._until = refused, now + STARVED
        if now >= self._until:
            return None
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"no descriptors are left of {limit}: new connections are refused; close some, or raise the limit (ulimit -n)"


def birth_condition(name: str, refused: int) -> str | None:
    """What is wrong when the system refused a process for `name` with this errno; 0: it did not."""
    if not refused:
        return None
    return f"the system has no room for the process of {name} ({os.strerror(refused)}): see ulimit -u and the memory limit"

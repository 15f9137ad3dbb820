"""Waiting: one call a turn tells which descriptors are ready, with a time limit in nanoseconds.

Place in a worker's turn: its end. `Poller.wait` fills two vectors, the descriptors and their event masks, so that a turn costs
one call however many are ready. epoll_pwait2 waits to about 0.1 ms with the timer slack that `fine_timers` sets; an older kernel
or C library rounds up to milliseconds. Wake-ups between processes are eventfds: any number of `signal`s, one `drain`.
Source: Linux epoll_wait(2), eventfd(2), prctl(2) PR_SET_TIMERSLACK.
"""

import contextlib
import ctypes
import os
import platform
import select
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import address, foreign, kernel

Words = NDArray[np.int64]

EVENTS_MAX: Final = 1024  # ready descriptors told in one turn; the rest stays ready
_EVENT_WORDS: Final = 3 if platform.machine() in {"x86_64", "AMD64"} else 4  # struct epoll_event is packed on x86-64 alone
_DATA: Final = 1 if _EVENT_WORDS == 3 else 2
_EPOLL_PWAIT2: Final = 441
_EINTR: Final = 4
_ENOSYS: Final = 38
_PR_SET_TIMERSLACK: Final = 29
_MILLISECOND: Final = 1_000_000
_SECOND: Final = 1_000_000_000
_LONGEST: Final = 86_400 * _SECOND  # a longer wait is cut to a day

_syscall = foreign(None, "syscall", "i8", "i8", "i8", "i8", "i8", "i8", "i8", "i8")
_epoll_wait = foreign(None, "epoll_wait", "i4", "i4", "i8", "i4", "i4")
_write = foreign(None, "write", "i8", "i4", "i8", "i8")
_errno_location = foreign(None, "__errno_location", "i8")
_memcpy = foreign(None, "memcpy", "i8", "i8", "i8", "i8")

_libc = ctypes.CDLL(None, use_errno=True)


@kernel("i8", "i8", "i8", "i8[]", "i4[]", "i8[]", "i8[]")
def wait_events(fd: int, timeout: int, scratch: Words, raw: NDArray[np.int32], fds: Words, events: Words) -> int:
    """Fill `fds` and `events`; how many, or -errno. scratch: 1 = wait in milliseconds, seconds, nanoseconds, errno."""
    if scratch[0] == 0:
        scratch[1] = timeout // _SECOND
        scratch[2] = timeout % _SECOND
        limit = address(scratch) + 8 if timeout >= 0 else np.int64(0)
        n = np.int64(_syscall(_EPOLL_PWAIT2, fd, address(raw), fds.size, limit, 0, 0))
    else:
        rounded = (timeout + _MILLISECOND - 1) // _MILLISECOND if timeout >= 0 else np.int64(-1)
        n = np.int64(_epoll_wait(fd, address(raw), fds.size, rounded))
    if n < 0:
        scratch[3] = 0
        _memcpy(address(scratch) + 24, _errno_location(), 4)
        return -np.int64(scratch[3])  # type: ignore[return-value]
    for i in range(n):
        events[i] = np.int64(raw[_EVENT_WORDS * i]) & 0xFFFFFFFF
        fds[i] = np.int64(raw[_EVENT_WORDS * i + _DATA])
    return n  # type: ignore[return-value]


class Poller:
    """An epoll set. After `wait` returned n: `fds[:n]` are ready with the masks `events[:n]` (select.EPOLL* bits)."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.register = self.epoll.register  # (fd, mask)
        self.modify = self.epoll.modify
        self.unregister = self.epoll.unregister
        self.fds: Words = np.zeros(EVENTS_MAX, np.int64)
        self.events: Words = np.zeros(EVENTS_MAX, np.int64)
        self.raw: NDArray[np.int32] = np.zeros(EVENTS_MAX * _EVENT_WORDS, np.int32)
        self.state: Words = np.zeros(4, np.int64)

    @property
    def precise(self) -> bool:
        """Whether limits are kept to the timer slack, not to the millisecond."""
        return int(self.state[0]) == 0

    def fileno(self) -> int:
        """The epoll descriptor."""
        return self.epoll.fileno()

    def wait(self, timeout: int) -> int:
        """Wait up to `timeout` ns (negative: for ever, 0: not at all); how many are ready. 0 after a signal as well."""
        limit = min(timeout, _LONGEST)
        n = int(wait_events(self.epoll.fileno(), limit, self.state, self.raw, self.fds, self.events))
        return self.wait(timeout) if self.failed(n) else max(n, 0)

    def failed(self, result: int) -> bool:
        """Whether a wait of `wait_events` must be made again, for the kernel is older. Raises OSError when it failed for good."""
        if result == -_ENOSYS:
            self.state[0] = 1
            return True
        if result < 0 and result != -_EINTR:
            raise OSError(-result, os.strerror(-result))
        return False

    def close(self) -> None:
        """Let the epoll descriptor go."""
        self.epoll.close()


def fine_timers() -> None:
    """Let this process's waits end within 1 us of their time instead of 50."""
    _libc.prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)


# ---------------------------------------------------------------- eventfds


def make_event() -> int:
    """A wake-up between processes: a descriptor that is readable while somebody signalled it."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def signal(fd: int) -> None:
    """Make it readable."""
    with contextlib.suppress(BlockingIOError):  # it counts to 2^64 - 2: it is readable already
        os.eventfd_write(fd, 1)


def drain(fd: int) -> bool:
    """Make it unreadable again; whether it had been signalled."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True

"""Processes: how they are born, how they die with their parent, and how one that must run is started again.

Only single-threaded parents fork here. `fork` gives the child its own descriptor table; `clone_shared` shares the parent's, so
that what a worker accepted or opened is still open when it is killed a moment later (nothing else can hand a descriptor on
between accept and death). A child asks to be killed with its parent first of all.
Source: Linux clone(2), prctl(2), sigwaitinfo(2), signalfd(2).
"""

import contextlib
import ctypes
import errno
import math
import os
import platform
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from setproctitle import setproctitle

from nyx.errors import InternalError
from shards.notify import VARIABLES

_PR_SET_PDEATHSIG: Final = 1
_CLONE_FILES: Final = 0x400
_SIGSET_SIZE: Final = 128  # bytes of the C library's sigset_t
_SYS_CLONE: Final = {"x86_64": 56, "aarch64": 220}.get(platform.machine())

STREAK_FREE: Final = 3  # short lives in a row that are followed by a new one at once
DELAY_FIRST: Final = 0.01  # seconds after the next, doubling
DELAY_MOST: Final = 0.5  # a crash loop costs a few per cent of a core, and nobody waits long after it ends
HEALTHY: Final = 1.0  # a life of so many seconds ends the row
GRACE: Final = 3.0  # seconds from SIGTERM to SIGKILL

WATCHED: Final = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

_libc = ctypes.CDLL(None, use_errno=True)


# ---------------------------------------------------------------- birth


def fork() -> int:
    """A child with a descriptor table of its own: 0 in the child."""
    return os.fork()


def clone_shared() -> int:
    """A child that shares our descriptor table, not our memory: 0 in the child. Neither x86-64 nor ARM64: as `fork`."""
    if _SYS_CLONE is None:
        return os.fork()
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_libc.syscall(_SYS_CLONE, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return pid


def die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends; at once if it has ended already."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def default_signals() -> None:
    """Deliver again what a watching parent had blocked; SIGINT is the supervisor's alone (a terminal sends it to all)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def name_process(role: str, alias: str) -> None:
    """Title for ps and top."""
    setproctitle(f"nyxd: {role} ({alias})")


def open_descriptors() -> frozenset[int]:
    """Every descriptor this process has open now."""
    with os.scandir("/proc/self/fd") as entries:
        listed = {int(entry.name) for entry in entries}
    return frozenset(fd for fd in listed if _is_open(fd))  # the listing's own is closed by now


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def package_environment() -> dict[str, str]:
    """Our environment, such that another interpreter finds the same packages as this one wherever it is started.

    The service manager's socket is left out: it hears the supervisor alone.
    """
    root = str(Path(__file__).resolve().parent.parent)
    known = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    own = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**own, "PYTHONPATH": os.pathsep.join(dict.fromkeys([root, *known]))}


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor but these and the standard three."""
    for fd in open_descriptors() - set(kept) - {0, 1, 2}:
        with contextlib.suppress(OSError):
            os.close(fd)


# ---------------------------------------------------------------- watching


def _signal_descriptor(signals: Iterable[signal.Signals]) -> int:
    """A descriptor that is readable while one of these blocked signals is pending; sigtimedwait takes them."""
    mask = sum(1 << (number - 1) for number in signals).to_bytes(8, sys.byteorder).ljust(_SIGSET_SIZE, b"\0")
    fd = int(_libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd


class Child:
    """A process that must run. `start` makes one and returns its pid; `changed` is told after each birth and death."""

    def __init__(self, name: str, start: Callable[[], int], changed: Callable[["Child"], None]) -> None:
        self.name = name
        self.pid = 0  # 0: not running
        self.restarts = -1  # births - 1
        self.status = 0  # wait status of the last life
        self.due = 0.0  # monotonic seconds from which it may start
        self.refused = 0  # errno with which the system refused the last birth; 0: it did not
        self._start = start
        self._changed = changed
        self._born = 0.0
        self._streak = 0

    def start(self, now: float) -> None:
        """Give birth to the next life; where the system has no room for a process, try again later."""
        try:
            pid = self._start()
        except OSError as error:
            self.due = now + DELAY_MOST
            self.refused = error.errno or errno.EAGAIN
            self._changed(self)
            return
        self.refused = 0
        self._born = now
        self.restarts += 1
        self.pid = pid
        self._changed(self)

    def adopt(self, pid: int, restarts: int, now: float) -> None:
        """A life that an earlier image of this process began."""
        self.pid, self.restarts, self._born = pid, restarts, now

    def replace(self) -> None:
        """It will be ended on purpose: the next life may start at once."""
        self._streak = 0

    def wait(self, limit: float) -> None:
        """Wait for its end, and kill it after so many seconds."""
        until = time.monotonic() + limit
        while True:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.died(status, time.monotonic())
                return
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, 0.05)

    def died(self, status: int, now: float) -> None:
        """It ended: decide when it may start again. The first ones in a row start at once."""
        self.pid, self.status = 0, status
        self._streak = 1 if now - self._born >= HEALTHY else self._streak + 1
        over = self._streak - STREAK_FREE
        self.due = now + (min(DELAY_FIRST * 2.0 ** min(over - 1, 16), DELAY_MOST) if over > 0 else 0.0)
        self._changed(self)


class Watch:
    """A single-threaded parent: starts its children, starts them again, and stops them when told.

    `helpers` are processes that run once: their wait status goes to the function that stands beside their pid.
    """

    def __init__(
        self,
        children: Sequence[Child],
        stop_signals: Iterable[signal.Signals],
        on_signal: Mapping[signal.Signals, Callable[[], None]] | None = None,
    ) -> None:
        self.children = list(children)
        self.helpers: dict[int, Callable[[int], None]] = {}
        self._stop = frozenset(stop_signals)
        self._on_signal = dict(on_signal or {})
        self._sources: dict[int, Callable[[], None]] = {}
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        self._poll = select.poll()
        self._signals = _signal_descriptor(WATCHED)
        self._poll.register(self._signals, select.POLLIN)

    def listen(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Call this when the descriptor is readable, or its other end is gone."""
        self._sources[fd] = on_readable
        self._poll.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        """Listen no more; harmless for an unknown one."""
        if self._sources.pop(fd, None):
            self._poll.unregister(fd)

    def run(self, tick: Callable[[], float | None] = lambda: None) -> signal.Signals:
        """Until a stop signal comes (returned) or something called from here raises.

        `tick` runs each turn and says in how many seconds again.
        """
        while True:
            self._start_due()
            pause = tick()
            for fd, _ in self._poll.poll(self._patience(pause)):
                if fd in self._sources:
                    self._sources[fd]()
            if (stop := self._take_signals()) is not None:
                return stop

    def _start_due(self) -> None:
        for child in self.children:
            if not child.pid and child.due <= time.monotonic():
                child.start(time.monotonic())

    def _patience(self, pause: float | None) -> float:
        """Milliseconds until a child may start or the tick wants its turn."""
        now = time.monotonic()
        wanted = [3600.0 if pause is None else pause, *(child.due - now for child in self.children if not child.pid)]
        return math.ceil(1000 * max(0.0, min(wanted)))

    def _take_signals(self) -> signal.Signals | None:
        """Reap the dead, call what signals ask for; the stop signal, if one came."""
        stop = None
        while found := signal.sigtimedwait(WATCHED, 0):
            number = signal.Signals(found.si_signo)
            if number in self._stop:
                stop = number
            elif action := self._on_signal.get(number):
                action()
        self.reap()
        return stop

    def reap(self) -> None:
        """Take note of every child that ended."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if told := self.helpers.pop(ended[0], None):
                    told(ended[1])
                for child in self.children:
                    if child.pid == ended[0]:
                        child.died(ended[1], time.monotonic())

    def close(self) -> None:
        """Let the descriptor of the signals go."""
        if self._signals >= 0:
            os.close(self._signals)
            self._signals = -1

    def stop(self, grace: float = GRACE, gently: signal.Signals = signal.SIGTERM) -> None:
        """A gentle signal to all, SIGKILL to who is left after `grace` seconds; none is left when this returns."""
        deadline = time.monotonic() + grace
        for number in (gently, signal.SIGKILL):
            for child in self.children:
                if child.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, number)
            while any(child.pid for child in self.children):
                left = deadline - time.monotonic()
                if number == gently and left <= 0:
                    break
                signal.sigtimedwait({signal.SIGCHLD}, max(left, 0.1))
                self.reap()
        if any(child.pid for child in self.children):
            raise InternalError("a child outlived SIGKILL")

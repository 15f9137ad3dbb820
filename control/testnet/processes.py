"""Processes of a test network: started apart from the terminal, known by id and start time, stopped exactly.

A process id alone names nobody: it is used again. An `Identity` also has the start time of Linux (ticks since boot), and signals
go through a pidfd that was opened before that time was compared, so they reach this process or none. Every node is a session
of its own, so what a dead supervisor may have left is found by its session's id, which Linux gives to nobody else while any
member lives.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

_POLL: Final = 0.02  # seconds between looks at a process whose pidfd cannot be had


class Identity(NamedTuple):
    """One process for all time, until the machine starts again."""

    pid: int
    start: int


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of this: a process that was started is recorded too, one that must be stopped is stopped."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def boot_id() -> str:
    """Names the time since the machine's start: identities of another boot name nobody."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def identify(pid: int) -> Identity | None:
    """The process that has this id now, or None where there is none but a dead one not yet collected."""
    fields = _stat(pid)
    return Identity(pid, int(fields[19])) if fields and fields[0] not in "ZX" else None


def alive(identity: Identity) -> bool:
    """Whether this very process runs."""
    return identify(identity.pid) == identity


class Child:
    """A process that was started here and outlives this program; while it does not, its exit code can be had."""

    def __init__(self, pid: int) -> None:
        self.identity = identify(pid) or Identity(pid, -1)
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that ended it), or None while it runs."""
        if self._code is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.identity.pid, os.WNOHANG)
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def start(command: Sequence[str], log: Path, environ: Mapping[str, str]) -> Child:
    """Start a process in a session of its own, its output appended to `log`; it inherits no descriptor. Raises OSError.

    It is not a `subprocess.Popen`: that wants to be waited for.
    """
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _descriptors() if fd > 2]
    return Child(os.posix_spawn(command[0], list(command), dict(environ), file_actions=actions, setsid=True))


def _descriptors() -> list[int]:
    """Descriptors that a child would inherit: make's and shells' own, for instance."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.get_inheritable(int(entry.name)):
                found.append(int(entry.name))
    return found


def session(leader: Identity) -> list[Identity]:
    """Everybody in the session that this process began, itself included.

    Session 0 holds the kernel and whoever never began a session, and this program is nobody's test node: neither is ever named.
    """
    if leader.pid <= 1 or leader.start <= 0 or leader.pid == os.getsid(0):
        return []
    holder = identify(leader.pid)
    if holder is not None and holder != leader:
        return []  # the id belongs to somebody else now, so the session has no member left
    members = (identify(pid) for pid in _pids() if (fields := _stat(pid)) and int(fields[3]) == leader.pid)
    return [member for member in members if member is not None and member.start >= leader.start]


def stop(identities: Iterable[Identity], grace: float) -> None:
    """SIGTERM to all, SIGKILL to who still runs after `grace` seconds; returns when all are gone, sessions included."""
    leaders = [leader for leader in identities if leader.pid > 1 and leader.start > 0]
    members = [member for leader in leaders for member in session(leader)]
    _end(leaders, signal.SIGTERM, grace)
    for _ in range(3):  # a member may have started another before it died
        rest = [
            member for member in dict.fromkeys([*members, *(m for leader in leaders for m in session(leader))]) if alive(member)
        ]
        if not rest:
            break
        _end(rest, signal.SIGKILL, grace)


def _end(identities: Sequence[Identity], number: signal.Signals, grace: float) -> None:
    until = time.monotonic() + grace
    with contextlib.ExitStack() as stack:
        opened = [(identity, _open(identity)) for identity in identities]
        for _, fd in opened:
            if fd is not None:
                stack.callback(os.close, fd)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
        for identity, fd in opened:
            if fd is not None:
                _await(identity, fd, until)


def _open(identity: Identity) -> int | None:
    try:
        fd = os.pidfd_open(identity.pid)
    except OSError:
        return None
    if alive(identity):
        return fd
    os.close(fd)
    return None


def _await(identity: Identity, fd: int, until: float) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    left = until - time.monotonic()
    if left > 0 and poller.poll(left * 1000):
        return
    while alive(identity) and time.monotonic() < until:
        time.sleep(_POLL)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal())


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on: [0] state, [1] parent, [3] session, [19] start time."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()

"""Sealing: each process gives up, before it works, every right that it does not need.

    nyxd         as root with node.user: becomes that user, keeping until the sockets are bound what binding them takes
    supervisor   limits, memory and sockets first; then no capabilities, no new privileges, not readable, its filter. Children
                 inherit all of it, and so does the control process over exec (being readable apart)
    keeper       no new code, its filter (`shards/syscalls.py`)
    worker       its filter, keys locked into memory

What the kernel or a missing library refuses is left out, told, and seen in `nyxctl status`; only keys that cannot be locked stop
the start. Each process then writes what took effect, as the kernel tells it, into the process table.
Source: Linux prctl(2), seccomp(2), capabilities(7), mlock2(2), credentials(7); docs/threat-model.md, "Client machine".
"""

import ctypes
import os
import platform
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from nyx.columns import ALIGN, Column, Columns
from nyx.errors import NyxError
from nyx.sealing import Seal, from_status
from shards import syscalls
from shards.memory import keep_from_swap

SECRETS: Final = ("sessions", "layer_keys")  # columns with keys

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_PR_SET_MDWE: Final = 65  # Linux 6.3; older ones say EINVAL
_PR_GET_MDWE: Final = 66
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}.get(platform.machine())
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_TSYNC: Final = 1  # every thread of the process
_SECCOMP_SPEC_ALLOW: Final = 4  # before Linux 5.16 a filter slows the processor down for the sake of foreign code: there is none
_CAPABILITY_VERSION: Final = 0x20080522
_CAPABILITY_LAST: Final = 63
_MIB: Final = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class LockError(NyxError):
    """Keys cannot be locked into memory, and the configuration does not accept that."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Filter programs by role, and why there are none."""

    programs: Mapping[str, bytes]
    problem: str = ""


NO_FILTERS: Final = Filters({})


def make_filters() -> Filters:
    """The filters of all roles; without libseccomp none, and the reason."""
    try:
        return Filters({role: syscalls.program(role) for role in ("supervisor", *syscalls.ALLOWED)})
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return Filters({}, str(error))


# ---------------------------------------------------------------- the steps


def load_filter(program: bytes) -> bool:
    """Restrict this process, with all its threads and children, to what the program allows; False where the kernel cannot."""
    if not program:
        return False
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    given = Program(len(program) // 8, ctypes.addressof(code))
    if _SYS_SECCOMP is not None:
        for flags in (_SECCOMP_TSYNC | _SECCOMP_SPEC_ALLOW, _SECCOMP_TSYNC):
            if _libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(given)) == 0:
                return True
    return int(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(given), 0, 0)) == 0


def refuse_new_code() -> bool:
    """From now on no memory of this process becomes executable. A later compile would crash: only when all kernels are loaded."""
    return int(_libc.prctl(_PR_SET_MDWE, 1, 0, 0, 0)) == 0


def refuse_new_privileges() -> bool:
    """No program that is executed from here on gains rights; the kernel demands this before a filter."""
    return int(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) == 0


def refuse_readers() -> None:
    """No core file, and nobody but root attaches or reads memory; exec undoes it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def bound_capabilities() -> None:
    """Let nothing that is executed from here on have a capability, not even as root. Without CAP_SETPCAP nothing happens."""
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(_CAPABILITY_LAST + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def keep_capabilities(kept: Sequence[int]) -> bool:
    """Have of these capabilities those that are permitted, and no other; False where the kernel refuses."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low words, then the high ones
    if _libc.capget(header, data) != 0:
        return False
    for word in range(2):
        wanted = sum(1 << (number % 32) for number in kept if number // 32 == word) & data[3 * word + 1]
        data[3 * word : 3 * word + 3] = [wanted, wanted, 0]
    return int(_libc.capset(header, data)) == 0


# ---------------------------------------------------------------- each process


def seal_supervisor(filters: Filters, *, inspect: bool, tell: Callable[[str], None]) -> Seal:
    """Once everything is open, and before anybody is started."""
    bound_capabilities()
    keep_capabilities(())
    refuse_new_privileges()
    if not inspect:
        refuse_readers()
    mark, own = "NYX_SUPERVISOR_FILTER", str(os.getpid())  # over a re-execution the filter is still there
    problem = filters.problem
    filtered = os.environ.get(mark) == own or load_filter(filters.programs.get("supervisor", b""))
    if filtered:
        os.environ[mark] = own
    else:
        tell(f"no system call filters: {problem or 'the kernel refuses them'}; the node runs without")
    return in_force(filtered=filtered)


def seal_keeper(filters: Filters) -> Seal:
    """First of all; what it starts inherits it."""
    refuse_new_code()
    return in_force(filtered=load_filter(filters.programs.get("keeper", b"")))


def seal_worker(filters: Filters, columns: Columns, *, lock: bool) -> Seal:
    """One life, before its loop. Raises LockError."""
    if lock:
        _lock(columns)
    refuse_new_code()
    seal = in_force(filtered=load_filter(filters.programs.get("worker", b"")))
    return seal | Seal.KEYS_LOCKED if lock else seal


def in_force(*, filtered: bool) -> Seal:
    """What the kernel says about this process. `filtered`: our filter was loaded (a container may have one of its own)."""
    found = from_status(Path("/proc/self/status").read_text("utf-8", "replace"))
    if not filtered:
        found &= ~Seal.SYSTEM_CALLS
    if _libc.prctl(_PR_GET_MDWE, 0, 0, 0, 0) == 1:
        found |= Seal.NO_NEW_CODE
    if _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0:
        found |= Seal.NOT_READABLE
    return found


# ---------------------------------------------------------------- locked keys


def raise_lock_limit(columns: Sequence[Column]) -> None:
    """Let each worker lock its keys: within the hard limit, or above it where this process may."""
    need = sum(_whole_pages(c.dtype.itemsize * c.length) for c in columns if c.name in SECRETS)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return
    for limits in ((need, hard if hard == resource.RLIM_INFINITY else max(hard, need)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)
        except (OSError, ValueError):
            continue
        return


def check_lock(columns: Columns) -> None:
    """Try, in the supervisor, what each worker will do. Raises LockError."""
    try:
        _lock(columns)
    finally:
        _libc.munlockall()


def wipe(columns: Columns) -> None:
    """Overwrite the keys that are left when nobody uses them any more; pages that were never touched stay so."""
    for name in SECRETS:
        if name not in columns:
            continue
        data = columns[name].view(np.uint8)
        resident = np.zeros(-(-len(data) // ALIGN), np.uint8)
        _libc.mincore(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(len(data)), ctypes.c_void_p(resident.ctypes.data))
        for page in np.flatnonzero(resident & 1).tolist():
            data[page * ALIGN : (page + 1) * ALIGN] = 0


def _lock(columns: Columns) -> None:
    found = [columns[name] for name in SECRETS if name in columns]
    if not all(map(keep_from_swap, found)):
        raise LockError(_refusal(sum(_whole_pages(column.nbytes) for column in found)))


def _whole_pages(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _refusal(need: int) -> str:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    return (
        f"a worker's keys ({need / _MIB:.1f} MiB) cannot be locked into memory, the limit is {max(limit, 0) / _MIB:.1f} MiB: "
        "raise it (ulimit -l, systemd's LimitMEMLOCK), lower limits.circuits, or accept keys in swap: node.lock_memory = false"
    )

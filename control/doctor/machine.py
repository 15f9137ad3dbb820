"""Checks of the machine: clock, kernel, socket buffers, limits, folders, room on disks. No node needs to run.

Place: `nyxctl doctor`. Each function looks at one thing and tells a Check with what to do.
Source: Linux adjtimex(2), udp(7), prctl(2), proc(5), docs/operations.md.
"""

import ctypes
import os
import resource
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from control.schemas import Check
from nyx.config import Config

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_PR_GET_MDWE: Final = 66
_TIME_ERROR: Final = 5  # what adjtimex gives for a clock that nothing sets
_ROOM_LEAST: Final = 64 << 20  # bytes: kernels take 40 MiB, keys and history little
_ROOM_NONE: Final = 1 << 20
_STALE: Final = 30 * 86400  # seconds since compiled kernels were read last
_KEYS_OF_CIRCUIT: Final = 3700  # bytes, locked
_FILES_LEAST: Final = 64
_FILES_WORKER: Final = 8


def clock() -> Check:
    """Whether the kernel knows that its clock is right: handshakes with a wrong one are refused in silence."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if state == _TIME_ERROR:
        return Check("clock", "warn", f"{said}; nothing keeps this clock right", "timedatectl set-ntp true, or run an NTP client")
    if state < 0:
        return Check("clock", "ok", f"{said}; this system does not tell whether it is kept right")
    return Check("clock", "ok", f"{said}, kept right")


def buffers(wanted: int) -> Check:
    """Whether the kernel grants the socket buffers, in bytes, that a node asks for."""
    low = {}
    for name in ("rmem_max", "wmem_max"):
        granted = int(Path("/proc/sys/net/core", name).read_text("ascii"))
        if granted < wanted:
            low[name] = granted
    if not low:
        return Check("udp buffers", "ok", f"the kernel grants {wanted >> 10} KiB")
    text = ", ".join(f"net.core.{name} is {granted}" for name, granted in low.items())
    fix = (
        "sysctl -w " + " ".join(f"net.core.{name}={wanted}" for name in low) + " (to keep: a file in /etc/sysctl.d), then restart"
    )
    return Check("udp buffers", "warn", f"{text}, the node asks for {wanted}: bursts get lost", fix)


def offloads() -> Check:
    """Whether UDP packets travel through the kernel many at a time."""
    missing = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name, option, value in (("GSO", _UDP_SEGMENT, 1200), ("GRO", _UDP_GRO, 1)):
            try:
                probe.setsockopt(_SOL_UDP, option, value)
            except OSError:
                missing.append(name)
    if missing:
        text = f"this kernel has no UDP {' and '.join(missing)}: more work for each packet"
        return Check("udp offload", "warn", text, "a kernel from Linux 5.0 on")
    return Check("udp offload", "ok", "GSO and GRO")


def sealing() -> Iterator[Check]:
    """Whether kernel and libraries can do what the processes seal themselves with."""
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text("ascii").split()
        ctypes.CDLL("libseccomp.so.2")
    except FileNotFoundError:
        yield Check("seccomp", "warn", "this kernel has no system call filters", "a kernel with CONFIG_SECCOMP_FILTER")
    except OSError:
        yield Check(
            "seccomp", "warn", "libseccomp.so.2 is missing: there are no system call filters", "apt-get install libseccomp2"
        )
    else:
        yield Check("seccomp", "ok", f"filters with {', '.join(actions)}")
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_MDWE, 0, 0, 0, 0) < 0:
        yield Check("mdwe", "warn", "this kernel cannot refuse new executable memory (PR_SET_MDWE)", "a kernel from Linux 6.3 on")
    else:
        yield Check("mdwe", "ok", "new executable memory can be refused")


def limits(config: Config | None, pid: int | None) -> Iterator[Check]:
    """Descriptors and locked memory that a worker, or else this shell, may have."""
    files, locked = _limits(pid)
    whose = f"process {pid}" if pid else "this shell"
    workers = config.workers.count or min(os.cpu_count() or 1, 4) if config else 1
    least = _FILES_LEAST + _FILES_WORKER * workers
    wanted = least + (2 * config.proxy.max_clients if config and config.proxy.listen else 1024)
    if files < wanted:
        state = "fail" if files < least else "warn"
        text = f"{whose} may have {files} open files; {least} are needed, {wanted} when all connections are in use"
        yield Check("open files", state, text, f"ulimit -n {wanted}, or LimitNOFILE={wanted} in the unit of systemd")
    else:
        yield Check("open files", "ok", f"{whose} may have {_count(files)}")
    keys = (config.limits.circuits if config else 2048) * _KEYS_OF_CIRCUIT
    if locked < keys and os.geteuid() != 0:
        strict = config is None or config.node.lock_memory
        text = f"{whose} may lock {locked >> 10} KiB of memory; a worker's keys take {keys >> 10} KiB"
        yield Check(
            "locked memory", "fail" if strict and not pid else "warn", text, "ulimit -l unlimited, or LimitMEMLOCK=infinity"
        )
    else:
        yield Check("locked memory", "ok", f"{whose} may lock {_count(locked >> 10)} KiB" if locked < 1 << 62 else "unlimited")


def _limits(pid: int | None) -> tuple[int, int]:
    """Soft limits of open files and of locked bytes. A process that has gone meanwhile: our own."""
    found = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK)]
    if pid:
        try:
            lines = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
        except OSError:
            lines = []
        words = {line[:26].strip(): line[26:].split()[0] for line in lines[1:]}
        for index, name in enumerate(("Max open files", "Max locked memory")):
            if name in words:
                found[index] = -1 if words[name] == "unlimited" else int(words[name])
    return tuple(1 << 62 if value < 0 else value for value in found)  # type: ignore[return-value]


def _count(value: int) -> str:
    return "any number" if value >= 1 << 52 else str(value)


def folders(config: Config) -> Iterator[Check]:
    """Whether the folders of keys and sockets are closed to others."""
    for name, path, allowed in (
        ("state folder", config.node.state_dir, 0o700),
        ("run folder", config.node.run_dir, 0o711),
        ("keys", config.key_file, 0o600),
    ):
        try:
            found = path.stat()
        except FileNotFoundError:
            if name != "keys":
                yield Check(name, "ok", f"{path} will be made at the start")
            continue
        except OSError as error:
            yield Check(name, "warn", f"{path} cannot be looked at: {error.strerror}", "ask as the node's own user or as root")
            continue
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o022 or (name != "run folder" and mode & ~allowed & 0o077):
            yield Check(name, "fail", f"{path} is open to others (mode {mode:04o})", f"chmod {allowed:o} {path}")
        else:
            yield Check(name, "ok", f"{path} (mode {mode:04o})")


def room(name: str, path: Path) -> Check:
    """Whether there is room on the disk where this folder is or will be."""
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110  # false where not allowed
    free = shutil.disk_usage(there).free
    nodes = os.statvfs(there)
    if nodes.f_files and not nodes.f_favail:
        return Check(name, "fail", f"no file can be made where {path} is: no inodes are left", f"make room below {there}")
    if free < _ROOM_LEAST:
        state = "fail" if free < _ROOM_NONE else "warn"
        return Check(name, state, f"{free >> 10} KiB are left where {path} is", f"make room below {there}")
    return Check(name, "ok", f"{free >> 20} MiB are left where {path} is")


def kernels(cache: Path) -> Check:
    """Whether compiled kernels lie around that nothing has read for a month: those of versions that are gone."""
    old, size = [], 0
    for folder in sorted(cache.iterdir()) if cache.is_dir() else ():
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
        if files and max(max(file.st_atime, file.st_mtime) for file in files) < time.time() - _STALE:
            old.append(folder)
            size += sum(file.st_size for file in files)
    if old:
        text = f"{len(old)} set{'' if len(old) == 1 else 's'} of compiled kernels, {size >> 20} MiB, unread for a month"
        return Check("old kernels", "warn", text, f"find {cache} -mindepth 1 -type f -atime +30 -delete")
    return Check("old kernels", "ok", f"none in {cache}")

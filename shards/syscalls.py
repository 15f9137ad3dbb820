"""System calls: which of them each process of a node may make, and the filter program that says so.

Three answers. What is listed for a role is allowed. What only an attacker would try (starting programs, reading other processes,
mounting, loading code into the kernel, io_uring) ends the process. Everything else fails with EPERM, so that a C library which
tries a call unknown to this table goes on without it, and is not killed by an upgrade of the system.

    worker      sockets of the internet and unix families, files, memory, threads; no children, no signals to others, no listening
    keeper      the same, and children and signals: a filter is inherited and never loosened, so this one holds its worker's
    control     the same as a worker, and listening and signals: it serves sockets of its own
    supervisor  everything but what ends the others, starting programs excepted: all others inherit from it

Sockets of other families and kinds (raw, packet) are refused. clone makes threads, in a keeper also processes, never
namespaces; clone3 hides its flags from filters and is "not implemented", so that C libraries fall back to clone.
Programs are made once, by the supervisor (pyseccomp, over libseccomp), and loaded as bytes.
Source: Linux seccomp(2), syscalls(2); libseccomp's seccomp_rule_add(3).
"""

import errno
import itertools
import os
import socket
from collections.abc import Iterable
from typing import Any, Final

_DEADLY: Final = """
    ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd
    mount umount umount2 move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr pivot_root chroot
    swapon swapoff acct quotactl quotactl_fd reboot
    bpf perf_event_open userfaultfd kexec_load kexec_file_load init_module finit_module delete_module
    add_key request_key keyctl setns unshare open_by_handle_at name_to_handle_at
    io_uring_setup io_uring_enter io_uring_register iopl ioperm vm86 modify_ldt uselib
"""
DEADLY: Final[tuple[str, ...]] = tuple(_DEADLY.split())
PROGRAMS: Final[tuple[str, ...]] = ("execve", "execveat")

_BASE: Final = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range
    open openat openat2 creat access faccessat faccessat2 stat fstat lstat newfstatat statx statfs fstatfs readlink readlinkat
    getcwd chdir fchdir getdents getdents64 mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 chmod fchmod fchmodat
    umask ftruncate truncate fallocate fadvise64 fsync fdatasync flock fcntl dup dup2 dup3 pipe pipe2 utimensat sendfile splice
    brk mmap munmap mremap mprotect madvise mincore msync mlock mlock2 munlock memfd_create get_mempolicy membarrier
    futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list get_robust_list rseq set_tid_address arch_prctl prctl
    exit exit_group rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack
    restart_syscall pause tgkill tkill
    getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups capget
    sched_yield sched_getaffinity sched_setaffinity sched_getscheduler sched_setscheduler sched_getparam sched_setparam
    sched_get_priority_max sched_get_priority_min getcpu getpriority getrlimit getrusage times sysinfo uname
    time gettimeofday clock_gettime clock_getres nanosleep clock_nanosleep getitimer setitimer alarm
    timerfd_create timerfd_settime timerfd_gettime
    getrandom eventfd eventfd2 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6
    socketpair bind connect accept accept4 shutdown getsockname getpeername getsockopt setsockopt
    sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg
"""
_PARENTING: Final = "wait4 waitid kill rt_sigqueueinfo signalfd4 pidfd_open pidfd_send_signal seccomp"
_SERVING: Final = "listen kill pidfd_open pidfd_send_signal wait4 waitid inotify_init1 inotify_add_watch inotify_rm_watch"

ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    "worker": tuple(_BASE.split()),
    "keeper": tuple(f"{_BASE} {_PARENTING}".split()),
    "control": tuple(f"{_BASE} {_SERVING}".split()),
}

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_KINDS: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
_KIND_MASK: Final = 0xF
_WORD: Final = 0xFFFFFFFF  # an int argument; what stands above it in the register is not the kernel's to read
_REQUESTS: Final = {  # of ioctl
    "FIONREAD": 0x541B, "TIOCOUTQ": 0x5411, "FIONBIO": 0x5421, "FIOCLEX": 0x5451, "FIONCLEX": 0x5450,
    "TCGETS": 0x5401, "TIOCGWINSZ": 0x5413, "SIOCGIFINDEX": 0x8933, "SIOCGIFNAME": 0x8910, "SIOCGIFCONF": 0x8912,
}  # fmt: skip
_SYS_CLONE3: Final = 435  # on every processor; an older libseccomp does not know its name
_CLONE_THREAD: Final = 0x10000
_CLONE_NEW: Final = 0x7E020000  # every flag that makes a namespace


def program(role: str) -> bytes:
    """The filter of a role, for the kernel. Raises OSError or RuntimeError where libseccomp is missing or too old."""
    import pyseccomp  # looks for the library by running a program: never in a sealed process

    if role == "supervisor":
        made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    else:
        made = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
        _add(made, pyseccomp.KILL_PROCESS, PROGRAMS)
        _add(made, pyseccomp.ALLOW, ALLOWED[role])
        _add_argued(made, pyseccomp, forks=role == "keeper")
    made.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    _add(made, pyseccomp.KILL_PROCESS, DEADLY)
    with os.fdopen(os.memfd_create("filter"), "w+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


def _add(made: Any, action: int, calls: Iterable[str]) -> None:
    for call in calls:
        try:
            made.add_rule(action, call)
        except OSError:  # this processor, or this libseccomp, knows no such call
            continue


def _add_argued(made: Any, pyseccomp: Any, *, forks: bool) -> None:
    """Rules that look at arguments."""

    def equal(place: int, value: int, mask: int = _WORD) -> Any:
        return pyseccomp.Arg(place, pyseccomp.MASKED_EQ, mask, value)

    allow = pyseccomp.ALLOW
    for family, kind in itertools.product(_FAMILIES, _KINDS):
        made.add_rule(allow, "socket", equal(0, family), equal(1, kind, _KIND_MASK))
    made.add_rule(allow, "socket", equal(0, socket.AF_NETLINK), equal(2, 0))  # NETLINK_ROUTE: getaddrinfo asks for own addresses
    for request in _REQUESTS.values():
        made.add_rule(allow, "ioctl", equal(1, request))
    made.add_rule(allow, "prlimit64", equal(0, 0))  # its own limits
    made.add_rule(allow, "clone", equal(0, 0 if forks else _CLONE_THREAD, _CLONE_NEW | (0 if forks else _CLONE_THREAD)))
    if forks:
        _add(made, allow, ["fork"])
    made.add_rule(pyseccomp.ERRNO(errno.ENOSYS), _SYS_CLONE3)

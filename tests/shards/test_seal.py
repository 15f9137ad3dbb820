"""What a sealed process can do and cannot: each try runs in a forked child, which seals itself first."""

import array
import ctypes
import importlib
import mmap
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nyx.columns import ALIGN, Column, Columns
from nyx.sealing import EXPECTED, Seal
from shards import process, seal
from shards.memory import Memory

REFUSED, ALLOWED, WRONG, RAISED = 10, 11, 12, 77
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls of x86-64")
NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


@cache
def filters() -> seal.Filters:
    found = seal.make_filters()
    assert not found.problem, "libseccomp.so.2 is part of every Debian"
    return found


def complain(text: str) -> None:
    os.write(2, text.encode())


def ended(work: Callable[[], object]) -> int:
    """Exit code of a forked child that runs `work`: negative for a signal, RAISED when it raised."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(int(work()))  # type: ignore[call-overload]
        except BaseException as error:  # noqa: BLE001
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(RAISED)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sealed(role: str, work: Callable[[], object]) -> int:
    """How `work` ends in a process that is sealed as this one's children are."""

    def child() -> object:
        made = filters()
        seal.seal_supervisor(made, inspect=False, tell=complain)
        if role != "supervisor":
            seal.refuse_new_code()
            assert seal.load_filter(made.programs["keeper" if role == "worker" else role])
        if role == "worker":
            assert seal.load_filter(made.programs[role])
        return work()

    filters()  # made once, here
    return ended(child)


def refused(work: Callable[[], object]) -> Callable[[], int]:
    def attempt() -> int:
        try:
            work()
        except PermissionError:
            return REFUSED
        return ALLOWED

    return attempt


def call(number: int, *arguments: int) -> None:
    if _libc.syscall(number, *arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def descend(work: Callable[[], int]) -> int:
    """Exit code of a child of this sealed process."""
    pid = os.fork()
    if pid == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---------------------------------------------------------------- what ends the process, what is refused


@pytest.mark.parametrize("role", ["worker", "keeper", "control"])
def test_another_program_ends_the_process(role: str) -> None:
    assert sealed(role, lambda: os.execv("/bin/true", ["true"])) == -signal.SIGSYS


def test_the_supervisor_starts_programs_and_they_inherit_its_limits() -> None:
    def work() -> int:
        assert subprocess.run(["/bin/true"], check=False).returncode == 0
        done = subprocess.run([sys.executable, "-c", "import ctypes; ctypes.CDLL(None).unshare(0)"], check=False)
        return REFUSED if done.returncode == -signal.SIGSYS else ALLOWED

    assert sealed("supervisor", work) == REFUSED


@X86
@pytest.mark.parametrize("role", ["worker", "keeper", "control", "supervisor"])
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ptrace", 101), ("process_vm_readv", 310), ("mount", 165), ("pivot_root", 155), ("bpf", 321), ("perf_event_open", 298),
        ("userfaultfd", 323), ("init_module", 175), ("kexec_load", 246), ("keyctl", 250), ("setns", 308), ("unshare", 272),
        ("io_uring_setup", 425), ("pidfd_getfd", 438), ("open_by_handle_at", 304),
    ],
)  # fmt: skip
def test_an_attackers_call_ends_the_process(role: str, name: str, number: int) -> None:
    assert sealed(role, lambda: call(number, 0, 0, 0, 0, 0, 0)) == -signal.SIGSYS


@X86
def test_calls_of_32_bit_programs_end_the_process() -> None:
    """The other table of numbers, x32, on which a filter of names says nothing."""
    assert sealed("worker", lambda: call(0x40000000 | 39)) == -signal.SIGSYS


@pytest.mark.parametrize(
    "work",
    [
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0),
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15),
        lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).listen(),
        lambda: os.kill(os.getppid(), 0),
        os.fork,
        lambda: os.setuid(NOBODY),
        lambda: Path("/tmp/nyx-test-link").symlink_to("a"),
        lambda: os.mknod("/tmp/nyx-test-node"),
        lambda: os.chown("/tmp", 0, 0),
        lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE),
        lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
        lambda: mmap.mmap(-1, ALIGN, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    ],
)
def test_what_a_worker_never_needs_is_refused(work: Callable[[], object]) -> None:
    code = sealed("worker", refused(work))
    if code == ALLOWED and work.__code__.co_names[:1] == ("mmap",) and not _mdwe():
        pytest.skip("this kernel cannot refuse new code")
    assert code == REFUSED


def _mdwe() -> bool:
    return ended(lambda: not seal.refuse_new_code()) == 0


def test_a_keeper_has_children_and_they_are_workers() -> None:
    def keeper() -> int:
        pid = process.clone_shared()
        if pid == 0:
            signal.pause()
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

        def worker() -> int:
            assert seal.load_filter(filters().programs["worker"])
            return refused(os.fork)()

        return descend(worker)

    assert sealed("keeper", keeper) == REFUSED


# ---------------------------------------------------------------- what goes on


def works_in_a_worker() -> int:
    """What later code may need as well: threads, modules, passed descriptors, sealed memory."""
    done: list[object] = []
    threads = [threading.Thread(target=lambda: done.append(socket.getaddrinfo("localhost", 80))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3
    importlib.import_module("_sqlite3" if importlib.util.find_spec("_sqlite3") else "_bz2")
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = Memory.create("nyx-passed", [Column("words", np.dtype(np.int64), 8)])
    memory.columns["words"][3] = 7
    socket.send_fds(here, [b"m"], [memory.fd, os.eventfd(1)])
    _, (passed, event), _, _ = socket.recv_fds(there, 10, 2)
    assert os.eventfd_read(event) == 1
    assert Memory.attach(passed, [Column("words", np.dtype(np.int64), 8)]).columns["words"][3] == 7
    fd = os.open("/proc/self/fd", os.O_RDONLY)
    os.close(fd)
    assert passed in process.open_descriptors()
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    assert len(array.array("b", os.getrandom(8))) == 8
    process.die_with(os.getppid())
    return ALLOWED


@pytest.mark.parametrize("role", ["worker", "keeper", "control"])
def test_what_a_worker_needs_goes_on(role: str) -> None:
    assert sealed(role, works_in_a_worker) == ALLOWED


def test_a_control_process_serves() -> None:
    def work() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            server.accept()[0].close()
        os.kill(os.getpid(), 0)
        return ALLOWED

    assert sealed("control", work) == ALLOWED


# ---------------------------------------------------------------- what each process says


@pytest.mark.parametrize("role", ["supervisor", "keeper", "worker"])
def test_the_mask_is_what_the_kernel_says(role: str) -> None:
    columns: Columns = {"layer_keys": np.zeros(100, np.uint8), "other": np.zeros(10)}

    def work() -> int:
        found = seal.seal_supervisor(filters(), inspect=False, tell=complain)
        if role != "supervisor":
            found = seal.seal_keeper(filters())
        if role == "worker":
            found = seal.seal_worker(filters(), columns, lock=True)
            assert Seal.KEYS_LOCKED not in seal.seal_worker(seal.NO_FILTERS, columns, lock=False)
        return found

    expected = EXPECTED[role] if _mdwe() else EXPECTED[role] & ~Seal.NO_NEW_CODE
    assert ended(work) == expected


def test_without_the_library_the_node_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    made = seal.make_filters()
    assert made.problem
    assert not made.programs
    told: list[str] = []

    def work() -> int:
        found = seal.seal_supervisor(made, inspect=False, tell=told.append)
        assert len(told) == 1
        assert "no system call filters" in told[0]
        assert Seal.SYSTEM_CALLS not in seal.seal_keeper(made)
        return found

    assert ended(work) == EXPECTED["supervisor"] & ~Seal.SYSTEM_CALLS


def test_a_supervisor_that_executed_itself_has_one_filter_still() -> None:
    def count() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("Seccomp_filters")), -1)

    def work() -> int:
        before = count()
        first = seal.seal_supervisor(filters(), inspect=False, tell=lambda _text: None)
        again = seal.seal_supervisor(filters(), inspect=False, tell=lambda _text: None)  # the mark is in the environment
        assert first == again
        return count() - before

    assert ended(work) in {0, 1}


@ROOT_ONLY
@pytest.mark.root
def test_root_without_capabilities_executes_nothing_that_has_some() -> None:
    def work() -> int:
        seal.bound_capabilities()
        assert seal.keep_capabilities(())
        status = subprocess.run(["cat", "/proc/self/status"], check=True, capture_output=True, text=True).stdout
        kept = {
            name: int(value, 16) for name, _, value in (line.partition(":\t") for line in status.splitlines()) if "Cap" in name
        }
        return REFUSED if not any(kept[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh")) else ALLOWED

    assert ended(work) == REFUSED


@ROOT_ONLY
@pytest.mark.root
@pytest.mark.parametrize(("inspect", "outcome"), [(False, REFUSED), (True, ALLOWED)])
def test_programs_of_the_same_user_do_not_read_its_memory(inspect: bool, outcome: int) -> None:
    reader, writer = os.pipe()
    node = os.fork()
    if node == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            _libc.prctl(4, 1, 0, 0, 0)  # as a program has it that this user starts
            seal.seal_supervisor(filters(), inspect=inspect, tell=lambda _text: None)
            os.write(writer, b"x")
            signal.pause()
        except BaseException as error:  # noqa: BLE001
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(RAISED)
    os.close(writer)
    assert os.read(reader, 1) == b"x"

    def neighbour() -> int:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return refused(lambda: Path(f"/proc/{node}/smaps_rollup").read_bytes())()

    assert ended(neighbour) == outcome
    os.kill(node, signal.SIGKILL)
    os.waitpid(node, 0)
    os.close(reader)


def test_core_files_are_off_for_good() -> None:
    def work() -> int:
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        return ALLOWED

    assert sealed("worker", work) == ALLOWED


# ---------------------------------------------------------------- keys


def keys(size: int) -> Memory:
    return Memory.create(
        "nyx-keys", [Column("layer_keys", np.dtype(np.uint8), size), Column("bulk", np.dtype(np.uint8), 64 << 20)]
    )


def test_keys_that_cannot_be_locked_stop_the_start() -> None:
    memory = keys(1 << 20)

    def work() -> int:
        seal.keep_capabilities(())
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 19, 1 << 19))
        seal.raise_lock_limit(memory.layout)  # the hard limit stands
        for attempt in (
            lambda: seal.check_lock(memory.columns),
            lambda: seal.seal_worker(seal.NO_FILTERS, memory.columns, lock=True),
        ):
            with pytest.raises(seal.LockError) as caught:
                attempt()
            for word in ("1.0 MiB", "0.5 MiB", "node.lock_memory", "limits.circuits"):
                assert word in str(caught.value)
        assert Seal.KEYS_LOCKED not in seal.seal_worker(seal.NO_FILTERS, memory.columns, lock=False)
        return REFUSED

    assert ended(work) == REFUSED


def test_the_limit_is_raised_as_far_as_keys_need_it() -> None:
    memory = keys(3 << 20)

    def work() -> int:
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        if 0 <= hard < 3 << 20:
            return REFUSED
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, hard))
        seal.raise_lock_limit(memory.layout)
        seal.keep_capabilities(())
        seal.check_lock(memory.columns)
        assert Seal.KEYS_LOCKED in seal.seal_worker(seal.NO_FILTERS, memory.columns, lock=True)
        memory.columns["layer_keys"][5] = 1
        locked = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck"))
        return ALLOWED if int(locked.split()[1]) == 3 << 10 else WRONG

    assert ended(work) in {ALLOWED, REFUSED}


def test_keys_are_wiped_and_nothing_is_touched_for_it() -> None:
    memory = keys(64 * ALIGN + 7)
    column = memory.columns["layer_keys"]
    column[:3] = 1
    column[-2:] = 1
    column[20 * ALIGN] = 1
    seal.wipe(memory.columns)
    assert os.fstat(memory.fd).st_blocks * 512 <= 8 * ALIGN
    assert not column.any()

"""Birth and death of processes, and when one is started again."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from shards import process
from shards.process import Child, Watch, clone_shared, close_all_but, open_descriptors, package_environment


def in_child(work: Callable[[], object]) -> int:
    """Exit code of a forked child that runs `work`; 77 when it raised."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(int(bool(work())))
        finally:
            os._exit(77)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_a_clone_opens_its_parent_has() -> None:
    """Accepted a moment before SIGKILL, still open for the next life."""

    def keeper() -> int:
        before = open_descriptors()
        pid = clone_shared()
        if pid == 0:
            os.write(os.pipe()[1], b"left behind")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        reader, _ = sorted(open_descriptors() - before)
        return os.read(reader, 100) != b"left behind"

    assert in_child(keeper) == 0


def test_all_but_the_named_are_closed() -> None:
    def work() -> int:
        reader, writer = os.pipe()
        close_all_but([writer])
        return not (writer in open_descriptors() and reader not in open_descriptors() and {0, 1, 2} <= open_descriptors())

    assert in_child(work) == 0


def test_a_child_dies_with_its_parent() -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        me = os.getpid()
        if os.fork() == 0:
            process.die_with(me)
            os.write(writer, b"bound")
        signal.pause()
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 5) == b"bound"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(reader, 1) == b""  # the grandchild's end is closed too
    os.close(reader)


def test_an_orphan_ends_at_once() -> None:
    assert in_child(lambda: process.die_with(os.getppid() + 1)) == 1


def test_short_lives_in_a_row_wait_longer_and_a_long_one_is_forgiven() -> None:
    child = Child("x", lambda: 1, lambda _child: None)
    now, gaps = 100.0, []
    for _ in range(14):
        child.start(now)
        child.died(9, now + 0.001)
        gaps.append(round(child.due - now - 0.001, 6))
        now = child.due
    assert gaps[:6] == [0, 0, 0, process.DELAY_FIRST, 2 * process.DELAY_FIRST, 4 * process.DELAY_FIRST]
    assert gaps[-1] == process.DELAY_MOST
    child.start(now)
    child.died(9, now + process.HEALTHY)
    assert child.due == now + process.HEALTHY
    assert child.restarts == 14


def test_no_room_for_a_process_is_tried_again() -> None:
    def fail() -> int:
        raise BlockingIOError

    told: list[tuple[int, int]] = []
    child = Child("x", fail, lambda child: told.append((child.pid, child.refused)))
    child.start(5.0)
    assert told == [(0, errno.EAGAIN)]
    assert (child.pid, child.due, child.restarts) == (0, 5.0 + process.DELAY_MOST, -1)


def test_a_child_that_does_not_listen_is_killed() -> None:
    def work() -> int:
        reader, writer = os.pipe()

        def start() -> int:
            pid = os.fork()
            if pid == 0:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                os.write(writer, b"x")
                while True:
                    signal.pause()
            return pid

        watch = Watch([Child("deaf", start, lambda _child: None)], [signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.run() == signal.SIGTERM
        os.read(reader, 1)
        before = time.monotonic()
        watch.stop(0.2)
        return not (watch.children[0].pid == 0 and time.monotonic() - before >= 0.2)

    assert in_child(work) == 0


def test_another_interpreter_finds_our_packages() -> None:
    root = str(Path(process.__file__).resolve().parent.parent)
    assert package_environment()["PYTHONPATH"].split(os.pathsep)[0] == root

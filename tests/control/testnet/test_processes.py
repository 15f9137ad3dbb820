"""Processes: known exactly, stopped exactly, sessions included, and nobody else touched."""

import os
import signal
import sys

import pytest

from control.testnet import processes
from control.testnet.processes import Identity

SLEEP = "import signal; print('on', flush=True); signal.pause()"
STUBBORN = "import signal; signal.pthread_sigmask(0, [15]); " + SLEEP
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]).wait()"


@pytest.fixture
def begun(tmp_path):
    children: list[processes.Child] = []

    def begin(code, lines=1):
        log = tmp_path / f"log{len(children)}"
        child = processes.start([sys.executable, "-c", code], log, os.environ)
        children.append(child)
        while not log.exists() or log.read_text().count("on\n") < lines:
            assert child.poll() is None
        return child.identity, child

    yield begin
    for child in children:
        if child.poll() is None:
            kill(child)


def kill(child):
    os.kill(child.identity.pid, signal.SIGKILL)
    wait(child)


def wait(child):
    os.waitid(os.P_PID, child.identity.pid, os.WEXITED | os.WNOWAIT)
    return child.poll()


def test_a_process_is_known_by_its_start_too(begun):
    identity, child = begun(SLEEP)
    assert processes.alive(identity)
    assert not processes.alive(Identity(identity.pid, identity.start - 1))
    assert os.getsid(identity.pid) == identity.pid
    kill(child)
    assert not processes.alive(identity)
    assert processes.identify(identity.pid) is None


def test_a_zombie_does_not_live(begun):
    identity, _ = begun(SLEEP)
    os.kill(identity.pid, signal.SIGKILL)
    os.waitid(os.P_PID, identity.pid, os.WEXITED | os.WNOWAIT)
    assert not processes.alive(identity)


def test_stop_ends_with_sigterm_what_obeys_it(begun):
    identity, child = begun(SLEEP)
    processes.stop([identity], 10)
    assert wait(child) == -signal.SIGTERM
    assert not processes.alive(identity)


def test_stop_kills_what_does_not(begun):
    identity, child = begun(STUBBORN)
    processes.stop([identity], 0.1)
    assert wait(child) == -signal.SIGKILL
    assert not processes.alive(identity)


def test_stop_ends_the_whole_session_also_when_its_leader_is_dead(begun):
    identity, child = begun(PARENT)
    members = processes.session(identity)
    assert len(members) == 2
    kill(child)
    assert len(processes.session(identity)) == 1
    processes.stop([identity], 0.1)
    assert processes.session(identity) == []
    assert not any(processes.alive(m) for m in members)


def test_nobody_who_only_has_the_number_is_touched(begun):
    identity, child = begun(SLEEP)
    other = Identity(identity.pid, identity.start - 1)
    assert processes.session(other) == []
    processes.stop([other, Identity(2**22 - 1, 5)], 0.1)
    assert child.poll() is None


def test_the_boot_has_a_name():
    assert processes.boot_id() == processes.boot_id()


@pytest.mark.parametrize(
    "identity", [Identity(0, 0), Identity(0, 5), Identity(1, 1), Identity(-1, 1), Identity(2, 0), Identity(2, -1)]
)
def test_numbers_that_name_no_session_of_ours_select_nobody(identity, monkeypatch):
    """Session 0 is the kernel's and everybody's who never began one: a signal to it would end the machine's other work."""
    sent: list[object] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *args: sent.append(args))
    assert processes.session(identity) == []
    processes.stop([identity], 0.0)
    assert sent == []


def test_this_programs_own_session_is_never_named():
    own = processes.identify(os.getsid(0))
    if own is not None:
        assert processes.session(own) == []

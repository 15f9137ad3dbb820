"""Faults that are no kills, on real processes: each is named while it lasts, costs what it must, and is over by itself."""

import concurrent.futures
import contextlib
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bench.chaos.seams import (
    Shim,
    cpu_seconds,
    log_of,
    no_more_descriptors,
    pid_of,
    status_of,
    stopped,
    supervisor_of,
    wait_for,
    warnings_of,
)
from bench.network import Network, running_network
from bench.stream import children
from tests.e2e.conftest import blob_digest
from tests.e2e.test_faults import connect, fetch, path_in_use

pytestmark = pytest.mark.timeout(240)

HOUR = 3600
SMALL = 1000
LONG = 7.0  # seconds: longer than a turn can take, so that the worker notices
SIZE = 40 << 20
PACE = 1 << 20  # bytes a second that an application reads during a fault


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, shim: Shim) -> Iterator[Network]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shim.environment.items():
            patch.setenv(name, value)
        with running_network(tmp_path_factory.mktemp("net")) as found:
            yield found


class Download:
    """A transfer that lasts while a fault does: its application reads slowly until somebody asks for the result."""

    def __init__(self, pool: concurrent.futures.Executor, network: Network, web: str) -> None:
        self._hurry = threading.Event()
        self._future = pool.submit(self._read, network, web)

    def _read(self, network: Network, web: str) -> tuple[int, str]:
        with connect(network, web) as sock, sock.makefile("rb") as reader:
            sock.sendall(f"GET /blob/{SIZE} HTTP/1.0\r\n\r\n".encode())
            while reader.readline().strip():
                pass
            digest, found = hashlib.sha256(), 0
            while part := reader.read1(1 << 16):
                digest.update(part)
                found += len(part)
                self._hurry.wait(len(part) / PACE)
            return found, digest.hexdigest()

    def done(self) -> bool:
        return self._future.done()

    def result(self, timeout: float = 60) -> tuple[int, str]:
        self._hurry.set()
        return self._future.result(timeout)


@pytest.fixture
def download(network: Network, web: str) -> Iterator[Callable[[], Download]]:
    """Begins a download, alone on its circuit."""
    begun: list[Download] = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def begin() -> Download:
            wait_for(lambda: not carrying(network), 20)
            begun.append(Download(pool, network, web))
            wait_for(lambda: carrying(network), 20)
            return begun[-1]

        yield begin
        for running in begun:  # a test that failed waits for nobody
            with contextlib.suppress(OSError, TimeoutError):
                running.result()


def carrying(network: Network) -> bool:
    return any(circuit["streams"] for circuit in network.ask("circuits")["circuits"])


def named(network: Network, alias: str, *words: str) -> bool:
    """Whether one warning of the node has all these words."""
    return any(all(word in warning for word in words) for warning in warnings_of(network, alias))


def quiet(network: Network, alias: str) -> bool:
    status = status_of(network, alias)
    return status["warnings"] == [] and bool(status["ready"])


def place(network: Network, where: str) -> str:
    return (
        network.client()
        if where == "client"
        else dict(zip(("guard", "middle", "exit"), path_in_use(network), strict=True))[where]
    )


# ---------------------------------------------------------------- processes that stand still


@pytest.mark.parametrize("where", ["client", "middle", "exit"])
def test_streams_outlive_a_worker_that_stands_still_for_seconds(network: Network, download, where: str) -> None:
    running = download()
    alias = place(network, where)
    with stopped(pid := pid_of(network, alias, "worker")):
        wait_for(lambda: named(network, alias, "worker 0 does not answer", f"kill -CONT {pid}"), 30)
        assert not running.done()
    assert running.result() == (SIZE, blob_digest(SIZE))
    wait_for(lambda: quiet(network, alias), 20)
    wait_for(lambda: f"worker 0: over: its process {pid} was stopped" in log_of(network, alias), 30)
    assert log_of(network, alias).count(f"worker 0: its process {pid} was stopped by a signal") == 1
    assert log_of(network, alias).count(f"worker 0: over: its process {pid} was stopped") == 1


@pytest.mark.timeout(400)
@pytest.mark.parametrize("where", ["guard", "middle"])
def test_a_relay_that_stands_still_for_long_is_missed_and_comes_back(network: Network, web: str, download, where: str) -> None:
    """All of its processes are stopped: streams over it end by a reset, and it serves again once it may go on."""
    running = download()
    alias = place(network, where)
    began = time.monotonic()
    with stopped(*children(supervisor_of(network, alias))):
        with pytest.raises(ConnectionResetError):
            running.result(20)
        if where == "middle":  # the others make a path without it; a client has one guard
            wait_for(lambda: asked(network, web, f"without {alias} {time.monotonic()}") == "carried", 40)
        wait_for(lambda: time.monotonic() - began > LONG, 2 * LONG)
    passed = network.ask("stats", alias=alias)["total"]["builds_passed"]
    wait_for(lambda: quiet(network, alias) and quiet(network, network.client()), 30)

    def used_again() -> bool:
        asked(network, web, f"again {time.monotonic()}")
        return network.ask("stats", alias=alias)["total"]["builds_passed"] > passed

    wait_for(used_again, 100)  # a path whose build was not answered is avoided for 60 s
    assert fetch(network, web, SMALL, f"whole {alias}") == (SMALL, blob_digest(SMALL))
    wait_for(lambda: "went on after it had stood still for" in log_of(network, alias), 30)


def test_a_stopped_keeper_is_named_and_makes_up_for_what_it_missed(network: Network, web: str) -> None:
    alias = network.client()
    with stopped(keeper := pid_of(network, alias, "keeper")):
        wait_for(lambda: named(network, alias, "keeper of worker 0", f"kill -CONT {keeper}"), 30)
        os.kill(pid_of(network, alias, "worker"), signal.SIGKILL)
        wait_for(lambda: named(network, alias, "worker 0 does not answer"), 30)
    wait_for(lambda: quiet(network, alias), 20)
    assert fetch(network, web, SMALL, "after the keeper") == (SMALL, blob_digest(SMALL))


def test_a_stopped_supervisor_is_named_and_makes_up_for_what_it_missed(network: Network, web: str) -> None:
    alias = network.client()
    with stopped(supervisor := supervisor_of(network, alias)):
        wait_for(lambda: named(network, alias, "supervisor", f"kill -CONT {supervisor}"), 15)
        os.kill(pid_of(network, alias, "keeper"), signal.SIGKILL)  # its worker goes with it
        wait_for(lambda: named(network, alias, "worker 0 does not answer"), 30)
    wait_for(lambda: quiet(network, alias), 20)
    assert fetch(network, web, SMALL, "after the supervisor") == (SMALL, blob_digest(SMALL))


def test_a_stopped_control_process_hinders_nobody_and_is_logged(network: Network, web: str) -> None:
    alias = network.client()
    with stopped(control := pid_of(network, alias, "control")):
        wait_for(lambda: f"control process: its process {control} was stopped by a signal" in log_of(network, alias), 30)
        assert fetch(network, web, SMALL, "without control") == (SMALL, blob_digest(SMALL))
    wait_for(lambda: quiet(network, alias), 20)
    wait_for(lambda: f"control process: over: its process {control}" in log_of(network, alias), 30)


# ---------------------------------------------------------------- processes that cannot be had


def test_a_worker_that_cannot_be_born_is_named_and_tried_again(network: Network, web: str, shim: Shim) -> None:
    alias = network.client()
    session = supervisor_of(network, alias)
    shim.refuse_processes(session)
    try:
        os.kill(pid_of(network, alias, "worker"), signal.SIGKILL)
        wait_for(lambda: named(network, alias, "worker 0 does not answer", "Resource temporarily unavailable"), 30)
    finally:
        shim.refuse_processes(session, refuse=False)
    wait_for(lambda: quiet(network, alias), 20)
    assert fetch(network, web, SMALL, "born again") == (SMALL, blob_digest(SMALL))
    log = log_of(network, alias)
    assert log.count("the system has no room for the process of worker 0") == 2  # when it began, and "over"


# ---------------------------------------------------------------- files that cannot be written


def test_guards_that_cannot_be_written_are_named_and_written_later(network: Network, web: str) -> None:
    """A folder stands where the new file would be made: a full disk as root sees it."""
    alias = network.client()
    state = network.folder / alias / "state"
    (state / "guards").unlink()
    (state / "guards.new").mkdir()
    try:
        os.kill(pid_of(network, alias, "worker"), signal.SIGKILL)  # it knows its guard until then
        with contextlib.suppress(OSError, AssertionError):
            connect(network, web, "needs a guard").close()
        wait_for(lambda: named(network, alias, f"{state}/guards: cannot be written", "make room"), 20)
    finally:
        (state / "guards.new").rmdir()
    assert fetch(network, web, SMALL, "has a guard") == (SMALL, blob_digest(SMALL))
    wait_for(lambda: quiet(network, alias), 20)
    assert (state / "guards").exists()


# ---------------------------------------------------------------- descriptors


def asked(network: Network, web: str, user: str) -> str:
    """What became of a request: "carried", or how it was refused."""
    try:
        connect(network, web, user).close()
    except (AssertionError, ConnectionError):
        return "refused"
    except TimeoutError:
        return "hung"
    return "carried"


def test_a_client_without_descriptors_refuses_at_once_and_serves_again_later(network: Network, web: str, download) -> None:
    alias = network.client()
    running = download()
    worker = pid_of(network, alias, "worker")
    with no_more_descriptors(worker):
        assert [asked(network, web, f"none{i}") for i in range(3)] == 3 * ["refused"]
        wait_for(lambda: named(network, alias, "no descriptors are left"), 9)
        with contextlib.ExitStack() as held:  # a queue that nobody can be taken from
            for _ in range(5):
                held.enter_context(socket.create_connection(("127.0.0.1", network.proxy_port)))
            running.result()
            before, began = cpu_seconds(worker), time.monotonic()
            time.sleep(2)
            assert cpu_seconds(worker) - before < (time.monotonic() - began) / 2, "it spins"
    assert running.result() == (SIZE, blob_digest(SIZE))
    wait_for(lambda: asked(network, web, f"some{time.monotonic()}") == "carried", 10)
    wait_for(lambda: quiet(network, alias), 20)
    log = log_of(network, alias)
    assert log.count("over: no descriptors are left") == 1
    assert log.count("no descriptors are left") == 2
    assert pid_of(network, alias, "worker") == worker


def test_an_exit_without_descriptors_refuses_and_serves_again_later(network: Network, web: str) -> None:
    exits = [str(node["alias"]) for node in network.nodes() if node["role"] == "exit"]
    with contextlib.ExitStack() as stack:
        for alias in exits:
            stack.enter_context(no_more_descriptors(pid_of(network, alias, "worker")))
        assert asked(network, web, "no exit") == "refused"

        def told() -> bool:
            """The exit that was asked last says so; the warning ends soon after the last who was refused."""
            return asked(network, web, "no exit") == "refused" and any(
                named(network, alias, "no descriptors are left") for alias in exits
            )

        wait_for(told, 30)
    wait_for(lambda: asked(network, web, "an exit") == "carried", 20)
    wait_for(lambda: all(quiet(network, alias) for alias in exits), 20)


# ---------------------------------------------------------------- clocks


def ask_for_circuits(network: Network, web: str, seen: Callable[[], bool]) -> None:
    """Streams that each need a circuit of their own, until the builds that follow show; the first may find some built ahead."""

    def asked_and_seen() -> bool:
        with contextlib.suppress(OSError, AssertionError):
            connect(network, web, f"needs a circuit {time.monotonic()}").close()
        return seen()

    wait_for(asked_and_seen, 60)


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_client_whose_clock_was_set_says_so_and_recovers_with_it(
    network: Network, web: str, download, shim: Shim, step: int
) -> None:
    alias = network.client()
    running = download()
    failed = network.ask("stats")["total"]["builds_failed"]
    shim.set_clock(supervisor_of(network, alias), step)
    try:
        wait_for(lambda: named(network, alias, "clock was set", "ahead" if step > 0 else "back", f"{HOUR} s"), 30)
        ask_for_circuits(network, web, lambda: network.ask("stats")["total"]["builds_failed"] > failed)
        assert running.result() == (SIZE, blob_digest(SIZE))
    finally:
        shim.set_clock(supervisor_of(network, alias), 0)
    wait_for(lambda: quiet(network, alias), 20)
    assert fetch(network, web, SMALL, f"right again {step}") == (SMALL, blob_digest(SMALL))


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_relay_whose_clock_was_set_says_so_and_recovers_with_it(network: Network, web: str, shim: Shim, step: int) -> None:
    """It refuses builds; when the clock is right it takes part again."""
    assert fetch(network, web, SMALL, f"before {step}") == (SMALL, blob_digest(SMALL))
    guard = next(c["hops"][0]["alias"] for c in network.ask("circuits")["circuits"] if c["hops"])
    refused = network.ask("stats", alias=guard)["total"]["dropped_bad_build"]
    shim.set_clock(supervisor_of(network, guard), step)
    try:
        wait_for(lambda: named(network, guard, "clock was set", f"{HOUR} s"), 30)
        ask_for_circuits(network, web, lambda: network.ask("stats", alias=guard)["total"]["dropped_bad_build"] > refused)
    finally:
        shim.set_clock(supervisor_of(network, guard), 0)
    wait_for(lambda: quiet(network, guard), 20)
    passed = network.ask("stats", alias=guard)["total"]["builds_passed"]
    assert fetch(network, web, SMALL, f"after {step}") == (SMALL, blob_digest(SMALL))
    ask_for_circuits(network, web, lambda: network.ask("stats", alias=guard)["total"]["builds_passed"] > passed)


# ---------------------------------------------------------------- small buffers


def test_small_buffers_are_named_and_carry_everything(tmp_path, web: str) -> None:
    """Three hops with the 416 KiB that a Debian kernel grants."""
    with running_network(tmp_path, "--set", "node.receive_buffer=208") as network:
        assert fetch(network, web, SIZE) == (SIZE, blob_digest(SIZE))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            size = SIZE // 4
            some = [pool.submit(fetch, network, web, size, f"user{number}") for number in range(4)]
            assert [part.result() for part in some] == 4 * [(size, blob_digest(size))]
        for node in network.nodes():
            assert named(network, node["alias"], "receive buffer", "416 KiB")

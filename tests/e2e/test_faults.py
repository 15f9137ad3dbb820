"""Processes that are killed while bytes flow: what runs continues exactly or ends by an error, what is new works at once."""

import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.network import Network, running_network
from bench.stream import children
from nyx.columns import ALIGN, offsets
from nyx.config import load
from shards.tables import CIRCUIT
from shards.worker import worker_columns
from tests.e2e.conftest import blob_digest

pytestmark = pytest.mark.timeout(120)

DOWNLOAD = 100 << 20
PACE = 25 << 20  # bytes a second that the application reads: a transfer lasts while its network is broken


def connect(network: Network, web: str, user: str = "") -> socket.socket:
    """A SOCKS5 connection to the web server; `user` isolates it."""
    sock = socket.create_connection(("127.0.0.1", network.proxy_port), 30)
    try:
        with sock.makefile("rb") as reader:
            sock.sendall(b"\5\1" + (b"\2" if user else b"\0"))
            assert reader.read(1) == b"\5"
            if reader.read(1) == b"\2":
                sock.sendall(b"\1" + bytes([len(user)]) + user.encode() + b"\1x")
                assert reader.read(2) == b"\1\0"
            port = int(web.rpartition(":")[2])
            sock.sendall(b"\5\1\0\1\x7f\0\0\1" + struct.pack(">H", port))
            assert reader.read(2) == b"\5\0"
            reader.read(8)
    except BaseException:
        sock.close()
        raise
    return sock


def fetch(network: Network, web: str, size: int, user: str = "") -> tuple[int, str]:
    """Bytes of a download's body and their digest, read at a steady pace. Raises what the socket raises."""
    with connect(network, web, user) as sock, sock.makefile("rb") as reader:
        sock.sendall(f"GET /blob/{size} HTTP/1.0\r\n\r\n".encode())
        while reader.readline().strip():
            pass
        digest, found = hashlib.sha256(), 0
        while part := reader.read1(1 << 18):
            digest.update(part)
            found += len(part)
            time.sleep(len(part) / PACE)
        return found, digest.hexdigest()


def fetch_until(network: Network, web: str, over: threading.Event) -> tuple[int, str]:
    """A download that is read slowly, and to its end once `over` is set."""
    with connect(network, web) as sock, sock.makefile("rb") as reader:
        sock.sendall(f"GET /blob/{DOWNLOAD} HTTP/1.0\r\n\r\n".encode())
        while reader.readline().strip():
            pass
        digest, found = hashlib.sha256(), 0
        while part := reader.read1(1 << 16):
            digest.update(part)
            found += len(part)
            if found < DOWNLOAD // 2:
                over.wait(0.05)
        return found, digest.hexdigest()


def process(network: Network, alias: str, role: str) -> int:
    """Pid of the process of this role in a node."""
    supervisor = next(int(node["pid"]) for node in network.nodes() if node["alias"] == alias)
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(supervisor)}
    return next(pid for pid, title in titles.items() if title.startswith(f"nyxd: {role}".encode()))


def path_in_use(network: Network) -> list[str]:
    """Aliases of the hops of a circuit that carries a stream."""
    circuits = network.ask("circuits")["circuits"]
    return next([hop["alias"] for hop in circuit["hops"]] for circuit in circuits if circuit["streams"])


@pytest.mark.parametrize("place", ["client", "guard", "middle", "exit"])
def test_a_killed_worker_costs_nobody_anything(network: Network, web: str, place: str) -> None:
    """The download goes on over the death of a worker on its way, and new circuits are built at once."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = pool.submit(fetch, network, web, DOWNLOAD)
        time.sleep(0.5)
        alias = dict(zip(("guard", "middle", "exit"), path_in_use(network), strict=True)).get(place, network.client())
        os.kill(process(network, alias, "worker"), signal.SIGKILL)
        assert not running.done(), "the kill came too late to show anything"
        began = time.monotonic()
        fresh = [pool.submit(fetch, network, web, 1000, f"{place}{number}") for number in range(6)]
        assert [part.result() for part in fresh] == 6 * [(1000, blob_digest(1000))]
        assert time.monotonic() - began < 20
        assert running.result() == (DOWNLOAD, blob_digest(DOWNLOAD))


@pytest.mark.parametrize("place", ["client", "exit"])
def test_a_torn_transfer_does_not_look_whole(network: Network, web: str, place: str) -> None:
    """With its keeper a worker's sockets die: the application sees a reset, not an end of file."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(fetch, network, web, DOWNLOAD)
        time.sleep(0.5)
        alias = network.client() if place == "client" else path_in_use(network)[-1]
        os.kill(process(network, alias, "keeper"), signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            running.result()
    assert fetch(network, web, 1000, f"after {place}") == (1000, blob_digest(1000))


def fetch_at_last(network: Network, web: str, user: str) -> tuple[int, str]:
    """A small download; a refusal because no circuit was ready in time is tried again."""
    for _ in range(2):
        try:
            return fetch(network, web, 1000, user)
        except AssertionError:
            continue
    return fetch(network, web, 1000, user)


def test_a_dead_relay_stops_nobody_for_long(tmp_path: Path, web: str) -> None:
    """A whole relay ends without a word: its neighbours miss it, and requests take other paths."""
    with running_network(tmp_path) as network, concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = pool.submit(fetch, network, web, DOWNLOAD)
        time.sleep(0.5)
        middle = path_in_use(network)[1]
        os.kill(next(int(node["pid"]) for node in network.nodes() if node["alias"] == middle), signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            running.result()
        assert time.monotonic() - began < 30
        folder = Path(next(str(node["socket"]) for node in network.nodes() if node["alias"] == middle)).parent
        until = time.monotonic() + 10
        while (left := [path for path in folder.iterdir() if path.is_socket()]) and time.monotonic() < until:
            time.sleep(0.05)
        assert not left, "the supervisor's death leaves nothing"
        fresh = [pool.submit(fetch_at_last, network, web, f"fresh{number}") for number in range(4)]
        assert [part.result() for part in fresh] == 4 * [(1000, blob_digest(1000))]
        assert time.monotonic() - began < 90


@pytest.mark.root
def test_a_poisoned_record_is_closed_and_named_and_the_node_serves_on(tmp_path: Path, web: str) -> None:
    """A circuit's row at a middle relay is overwritten in memory: its worker dies of it, and the next life closes the circuit."""
    over = threading.Event()
    with running_network(tmp_path) as network, concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(fetch_until, network, web, over)
        time.sleep(0.5)
        middle = path_in_use(network)[1]
        circuits = network.ask("circuits", alias=middle)["circuits"]
        busy = max(circuits, key=lambda row: int(row["cells_in"]) + int(row["cells_out"]))["id"]
        before = process(network, middle, "worker")
        config = Path(next(node["config"] for node in network.nodes() if node["alias"] == middle))
        poison(before, config, busy)
        over.set()
        with pytest.raises((ConnectionResetError, AssertionError)):
            running.result()
        until = time.monotonic() + 30
        while not (named := closed_circuit_named(network, middle)) and time.monotonic() < until:
            time.sleep(0.2)  # once a second a worker looks at itself
        assert named
        assert fetch(network, web, 1000, "after") == (1000, blob_digest(1000))
        assert process(network, middle, "worker") != before


def test_a_worker_that_does_not_come_to_life_begins_from_nothing(network: Network, web: str) -> None:
    """It dies by faults over nothing in particular, again and again: at last all that it had is dropped, which is named."""
    middle = next(node["alias"] for node in network.nodes() if node["role"] == "relay")
    supervisor = next(int(node["pid"]) for node in network.nodes() if node["alias"] == middle)
    named: list[str] = []
    until = time.monotonic() + 60
    while not named and time.monotonic() < until:
        for _ in range(20):
            with contextlib.suppress(OSError):  # it ended while we looked
                for pid in children(supervisor):
                    if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGSEGV)
            time.sleep(0.3)  # a life is killed while it begins, or a moment later
        named = [text for text in network.ask("status", alias=middle)["warnings"] if "all that it had was dropped" in text]
    assert named
    assert fetch_at_last(network, web, "after nothing") == (1000, blob_digest(1000))
    assert network.ask("status", "--wait", alias=middle)["ready"]
    wait_until_well(network, web)


def wait_until_well(network: Network, web: str) -> None:
    """Until every link to a relay that forgot everything has been found dead: the next test meets a whole network."""
    until = time.monotonic() + 60
    for attempt in itertools.count():
        began = time.monotonic()
        found = [fetch_at_last(network, web, f"well {attempt} {number}") for number in range(6)]
        assert found == 6 * [(1000, blob_digest(1000))]
        if time.monotonic() - began < 3:
            return
        assert began < until, "the network did not become well"


def closed_circuit_named(network: Network, alias: str) -> bool:
    warnings = network.ask("status", alias=alias)["warnings"]
    return any("record was closed" in warning and "circuit" in warning for warning in warnings)


def poison(pid: int, config_file: Path, circuit: int) -> None:
    """Let a circuit of this worker lead to a session that cannot be."""
    columns = worker_columns(load(config_file))
    starts, _ = offsets(columns)
    at = next(start for start, column in zip(starts, columns, strict=True) if column.name == "circuits")
    fields: Any = CIRCUIT.fields
    field = int(fields["forth_session"][1])
    line = next(line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "nyx-worker-0" in line)
    base = int(line.partition("-")[0], 16) + ALIGN
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(base + at + circuit * CIRCUIT.itemsize + field)
        memory.write((1 << 44).to_bytes(8, "little"))

"""Faults that are no kills, at full length, one after the other on one test network while a stream runs through it.

For each: seconds until the node named it (`nyxctl status`, or its log where it cannot answer), what became of the stream,
whether a new request was served meanwhile, and seconds from the fault's end until the node had nothing to report and a request
through three hops was served. The stream is checked byte for byte. Exit 1 when a fault was not named, bytes were wrong, or
something did not recover.

    python -m bench.faults [--seconds 60] [--only NAME] [--json]

The time servers' fault and the refused processes are made by a library that is preloaded into the nodes (gcc).
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

from bench.chaos.seams import Shim, log_of, no_more_descriptors, pid_of, status_of, stopped, supervisor_of, wait_for, warnings_of
from bench.network import Network, running_network
from bench.stream import children, connect

HOUR: Final = 3600
PATIENCE: Final = 120  # seconds for a node to name a fault, or to recover
PACE: Final = 4 << 20  # bytes a second that the application reads
_BLOCK: Final = random.Random(7).randbytes(1 << 20)  # what the target sends, again and again
SIZE: Final = 1 << 30  # of the stream, which nobody waits for


@dataclass
class Row:
    """What one fault did."""

    fault: str
    named: float | None = None
    stream: str = "runs on"
    served: bool = False
    recovered: float | None = None


@contextlib.contextmanager
def target() -> Iterator[int]:
    """A server that sends each connection the bytes it asks for; its port."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, struct.error):
            (left,) = struct.unpack(">Q", connection.recv(8, socket.MSG_WAITALL))
            while left > 0:
                connection.sendall(_BLOCK[: min(left, len(_BLOCK))])
                left -= len(_BLOCK)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield int(listener.getsockname()[1])


class Reader:
    """An application that reads a long stream at a steady pace until told to stop."""

    def __init__(self, port: int, proxy: int) -> None:
        self._stop = threading.Event()
        self.outcome = "runs on"
        self._stream = connect(port, proxy, PATIENCE)
        self._stream.sendall(struct.pack(">Q", SIZE))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        at = 0
        while not self._stop.is_set():
            try:
                part = self._stream.recv(1 << 16)
            except OSError as error:
                self.outcome = f"{type(error).__name__}"
                return
            if not part:
                self.outcome = "ended early"
                return
            if part != (_BLOCK[at : at + len(part)] + _BLOCK)[: len(part)]:
                self.outcome = "WRONG BYTES"
                return
            at = (at + len(part)) % len(_BLOCK)
            time.sleep(len(part) / PACE)

    def stop(self) -> str:
        """What became of it."""
        self._stop.set()
        self._thread.join(5)
        self._stream.close()
        return self.outcome


@dataclass
class Fault:
    """How one is made, on whom, and by what words it is named."""

    name: str
    alias: str
    make: Callable[[], contextlib.AbstractContextManager[object]]
    words: str
    in_log: bool = False


def faults(network: Network, shim: Shim) -> list[Fault]:
    """All of them. Processes are looked up when the fault is made: earlier ones may have been replaced."""
    client, inner = network.client(), [str(node["alias"]) for node in network.nodes() if node["role"] == "relay"]

    def of(alias: str, role: str) -> Callable[[], contextlib.AbstractContextManager[object]]:
        return lambda: stopped(pid_of(network, alias, role))

    @contextlib.contextmanager
    def clock(alias: str, ahead: int) -> Iterator[None]:
        session = supervisor_of(network, alias)
        shim.set_clock(session, ahead)
        try:
            yield
        finally:
            shim.set_clock(session, 0)

    @contextlib.contextmanager
    def unborn(alias: str) -> Iterator[None]:
        session = supervisor_of(network, alias)
        shim.refuse_processes(session)
        try:
            os.kill(pid_of(network, alias, "worker"), signal.SIGKILL)
            yield
        finally:
            shim.refuse_processes(session, refuse=False)

    return [
        Fault("client: worker stopped", client, of(client, "worker"), "was stopped by a signal"),
        Fault("client: keeper stopped", client, of(client, "keeper"), "is stopped"),
        Fault("client: control stopped", client, of(client, "control"), "control process: its process", in_log=True),
        Fault("client: supervisor stopped", client, of(client, "supervisor"), "has stood still"),
        Fault("relay: worker stopped", inner[0], of(inner[0], "worker"), "was stopped by a signal"),
        Fault(
            "relay: all stopped", inner[0], lambda: stopped(*children(supervisor_of(network, inner[0]))),
            "went on after it had stood still", in_log=True,
        ),
        Fault("client: no descriptors", client, lambda: no_more_descriptors(pid_of(network, client, "worker")), "no descriptors"),
        Fault("client: no process", client, lambda: unborn(client), "no room for its process"),
        Fault("client: clock +1 h", client, lambda: clock(client, HOUR), "clock was set ahead"),
        Fault("client: clock -1 h", client, lambda: clock(client, -HOUR), "clock was set back"),
        Fault("relay: clock +1 h", inner[0], lambda: clock(inner[0], HOUR), "clock was set ahead"),
        Fault("relay: clock -1 h", inner[0], lambda: clock(inner[0], -HOUR), "clock was set back"),
    ]  # fmt: skip


def served(port: int, network: Network, timeout: float) -> bool:
    """Whether a new request is carried now."""
    try:
        with connect(port, network.proxy_port, timeout) as stream:
            stream.sendall(struct.pack(">Q", 1000))
            return len(stream.recv(1000, socket.MSG_WAITALL)) == 1000
    except OSError:
        return False


def said(network: Network, fault: Fault, before: int) -> bool:
    """Whether the node names the fault, in what it wrote since the log had so many characters or in its status."""
    if fault.in_log:
        return fault.words in log_of(network, fault.alias)[before:]
    return any(fault.words in warning for warning in warnings_of(network, fault.alias))


def quiet(network: Network, alias: str) -> bool:
    """Whether a node is ready and has nothing to report."""
    status = status_of(network, alias)
    return bool(status["ready"]) and not status["warnings"]


def measure(network: Network, fault: Fault, port: int, seconds: float) -> Row:
    """Make one fault for so long, and wait for its end to be over."""
    row, before = Row(fault.name), len(log_of(network, fault.alias))
    reader, began = Reader(port, network.proxy_port), time.monotonic()
    whole_node = fault.name.endswith("all stopped")  # says so when it goes on
    with fault.make():
        if fault.words == "no descriptors":
            served(port, network, 5)
        if not whole_node:
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: said(network, fault, before), PATIENCE)
                row.named = time.monotonic() - began
        row.served = served(port, network, 20)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    ended = time.monotonic()
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: quiet(network, fault.alias) and quiet(network, network.client()), PATIENCE)
        wait_for(lambda: served(port, network, 30), PATIENCE)
        row.recovered = time.monotonic() - ended
    if whole_node and said(network, fault, before):
        row.named = time.monotonic() - began
    row.stream = reader.stop()
    return row


def run(seconds: float, only: str | None) -> list[Row]:
    """One network, all faults."""
    with target() as port, tempfile.TemporaryDirectory() as folder:
        shim = Shim(Path(folder))
        with mock.patch.dict(os.environ, shim.environment), running_network(Path(folder) / "net") as network:
            chosen = [fault for fault in faults(network, shim) if only is None or only in fault.name]
            return [measure(network, fault, port, seconds) for fault in chosen]


def main() -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="length of each fault")
    parser.add_argument("--only", metavar="NAME", help="faults whose names contain this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = run(options.seconds, options.only)
    if options.json:
        document: dict[str, Any] = {"schema": "nyx.bench.faults", "version": 1, "seconds": options.seconds}
        print(json.dumps(document | {"faults": [asdict(row) for row in rows]}))
    else:
        print(f"each for {options.seconds:g} s\n{'fault':28}{'named':>8}  {'new request':12}{'recovered':>10}  stream")
        for row in rows:
            named, back = (f"{value:.1f} s" if value is not None else "NEVER" for value in (row.named, row.recovered))
            print(f"{row.fault:28}{named:>8}  {'served' if row.served else 'refused':12}{back:>10}  {row.stream}")
    wrong = [row for row in rows if row.named is None or row.recovered is None or row.stream.isupper()]
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())

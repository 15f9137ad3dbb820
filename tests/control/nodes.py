"""A control process of its own, real, beside stand-ins of workers: what nyxctl speaks to in the tests of this room."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from control.server import bind
from nyx.columns import ALIGN, layout_digest, offsets, view
from nyx.stats import COUNTERS, latency_histogram, node_columns, statistics_columns, statistics_row
from tests.control.workers import Worker, answers

BLOCK = 10  # UDP ports that one test may use


@contextlib.contextmanager
def port_block():
    """The first of BLOCK free UDP ports that no other test, of this run or another, uses meanwhile."""
    for base in range(43350, 43310, -BLOCK):
        with Path(tempfile.gettempdir(), f"nyx-test-ports-{base}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for port in range(base, base + BLOCK):
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                        probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            yield base
            return
    pytest.skip("no block of UDP ports is free")


CONFIG = f"""
[node]
alias = "alice"
address = "127.0.0.1"
state_dir = "state"
run_dir = "run"
[path]
allow_loopback = true
[directory]
file = "network"
signers = ["{"ab" * 32}"]
"""


def memory(columns):
    """A memfd as the supervisor makes it, and its columns."""
    size = ALIGN + offsets(columns)[1]
    fd = os.memfd_create("test")
    data = bytearray(size)
    header = b"nyx memory 1\n" + layout_digest(columns).encode()
    data[: len(header)] = header
    return fd, data, view(columns, memoryview(data)[ALIGN:])


def statistics(workers):
    fd, data, columns = memory(statistics_columns(workers))
    for worker in range(workers):
        statistics_row(columns["statistics"], worker)[:] = np.arange(len(COUNTERS)) + worker
    os.pwrite(fd, data, 0)
    return fd


def process_table(workers, supervisor):
    fd, data, columns = memory(node_columns(workers))
    row = columns["node"][0]
    row["started"], row["workers"], row["supervisor"], row["control"], row["control_restarts"] = 1234, workers, supervisor, 99, 1
    for worker in range(workers):
        columns["node_workers"][worker]["pid"], columns["node_workers"][worker]["restarts"] = 1000 + worker, worker
    os.pwrite(fd, data, 0)
    return fd


class Node:
    """A running control process."""

    def __init__(self, folder, workers, process, statistics_fd, table_fd):
        self.folder, self.workers, self.process = folder, workers, process
        self._statistics, self._table = statistics_fd, table_fd
        self.socket = folder / "run" / "control.sock"

    def count(self, worker, name, more):
        """Raise a counter, as its worker would."""
        columns, save = self._columns()
        statistics_row(columns["statistics"], worker)[COUNTERS.index(name)] += more
        save()

    def restart(self, worker):
        """Count another life of a worker, as its keeper would."""
        data = bytearray(os.pread(self._table, os.fstat(self._table).st_size, 0))
        columns = view(node_columns(len(self.workers)), memoryview(data)[ALIGN:])
        columns["node_workers"][worker]["restarts"] += 1
        os.pwrite(self._table, data, 0)

    def observe(self, worker, times):
        """Add times, in ns, to the histograms of a worker."""
        columns, save = self._columns()
        for which, values in times.items():
            for value in values:
                latency_histogram(columns["latencies"], worker, which).observe(value)
        save()

    def _columns(self):
        data = bytearray(os.pread(self._statistics, os.fstat(self._statistics).st_size, 0))
        columns = view(statistics_columns(len(self.workers)), memoryview(data)[ALIGN:])
        return columns, lambda: os.pwrite(self._statistics, data, 0)


@contextlib.contextmanager
def node(folder: Path, told=None, own_socket=False, config=CONFIG):
    """A control process with a worker for each table of answers; `own_socket`: it binds its socket itself."""
    (folder / "nyx.toml").write_text(config)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(t)) for t in ([answers()] if told is None else told)]
        fds = [statistics(len(workers)), process_table(len(workers), os.getpid())]
        given = {
            "config": str(folder / "nyx.toml"),
            "workers": [w.far.fileno() for w in workers],
            "statistics": fds[0],
            "node": fds[1],
        }
        if not own_socket:
            listener = stack.enter_context(bind(folder / "run" / "control.sock"))
            given["admin"] = listener.fileno()
            fds.append(listener.fileno())
        environ = os.environ | {"NYX_CONTROL_FDS": json.dumps(given), "NYX_KERNELS": "plain"}
        for fd in fds:
            os.set_inheritable(fd, True)
        process = subprocess.Popen(
            [sys.executable, "-m", "control.process"],
            env=environ, pass_fds=[*fds, *given["workers"]], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield Node(folder, workers, process, fds[0], fds[1])
        finally:
            for fd in fds[:2]:
                os.close(fd)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
            assert out == b""
            assert process.returncode == 0, err
